//! What is said to a witness and what it answers: C2SP tlog-witness (<https://c2sp.org/tlog-witness>).
//!
//! ```text
//! POST <url>/add-checkpoint
//! old <size that the witness saw last>
//! <consistency proof, a hash a line, base64>
//!
//! <the checkpoint, a signed note>
//! ```
//!
//! 200 with signature lines: it has seen the checkpoint extend the one before, and says so with its time. 409 with the
//! size that it saw last: the proof is to begin there. 422: what it saw before is not the beginning of this checkpoint.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::note::{Note, VKey};
use super::{AuditError, Hash};

/// The body of a request.
pub fn request(old: u64, proof: &[Hash], note: &str) -> String {
    let mut body = format!("old {old}\n");
    for hash in proof {
        body.push_str(&BASE64.encode(hash.0));
        body.push('\n');
    }
    body.push('\n');
    body.push_str(note);
    body
}

/// The size in a 409.
///
/// # Errors
/// [`AuditError::Malformed`] when it is not a size.
pub fn conflict(body: &str) -> Result<u64, AuditError> {
    let number = body.trim_end_matches('\n').parse::<u64>().ok();
    number.ok_or_else(|| AuditError::Malformed("the witness says 409 without the size that it saw last".to_owned()))
}

/// The note with the witness's signature added, out of the lines that it answered with.
///
/// # Errors
/// [`AuditError::Malformed`] when they are no signature lines, [`AuditError::Signature`] when none is of that key or it
/// does not hold.
pub fn cosigned(note: &str, answer: &str, witness: &VKey) -> Result<String, AuditError> {
    let note: Note = note.parse()?;
    let answered: Note = format!("{}\n{answer}", note.text).parse()?;
    witness.verify(&answered)?;
    let (name, id) = (witness.name(), witness.id());
    let theirs = answered.signatures.into_iter().find(|signature| signature.name == name && signature.id == id);
    let mut note = note;
    note.signatures.retain(|signature| signature.name != name || signature.id != id);
    note.signatures.extend(theirs);
    Ok(note.to_string())
}

/// Both notes' signatures on the text that they share: of two by one key, the first note's. None if they share none.
pub fn joined(one: &str, other: &str) -> Option<String> {
    let (mut one, other): (Note, Note) = (one.parse().ok()?, other.parse().ok()?);
    if one.text != other.text {
        return None;
    }
    for signature in other.signatures {
        if !one.signatures.iter().any(|known| known.name == signature.name && known.id == signature.id) {
            one.signatures.push(signature);
        }
    }
    Some(one.to_string())
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::{Signer, SigningKey};

    use super::{conflict, cosigned, joined, request};
    use crate::audit::note::{Algorithm, Note, NoteSignature, VKey};
    use crate::audit::{AuditError, Hash};

    const TEXT: &str = "mcpg.local/orgs/acme/audit/1\n7\nAAAA\n";

    fn note() -> String {
        Note::sign(TEXT.to_owned(), "mcpg.local/orgs/acme/audit/1", &[&SigningKey::from_bytes(&[1; 32])])
            .unwrap()
            .to_string()
    }

    fn witness(seed: u8) -> (SigningKey, VKey) {
        let key = SigningKey::from_bytes(&[seed; 32]);
        let vkey = VKey::new("witness.example/w", Algorithm::Cosignature, key.verifying_key()).unwrap();
        (key, vkey)
    }

    fn cosignature(seed: u8, time: u64) -> String {
        let (key, vkey) = witness(seed);
        let signature = key.sign(format!("cosignature/v1\ntime {time}\n{TEXT}").as_bytes());
        let bytes = [&time.to_be_bytes()[..], &signature.to_bytes()].concat();
        NoteSignature { name: vkey.name().to_owned(), id: vkey.id(), bytes }.to_string()
    }

    #[test]
    fn a_request_is_the_old_size_the_proof_an_empty_line_and_the_head() {
        let body = request(5, &[Hash([0; 32]), Hash([1; 32])], "head\n");
        let proof = ["A".repeat(43), "AQEB".repeat(10) + "AQE"].map(|hash| hash + "=\n").concat();
        assert_eq!(body, format!("old 5\n{proof}\nhead\n"));
        assert_eq!(request(0, &[], "head\n"), "old 0\n\nhead\n");
    }

    #[test]
    fn a_cosignature_that_holds_becomes_part_of_the_note_once() {
        let (_, vkey) = witness(2);
        let once = cosigned(&note(), &cosignature(2, 100), &vkey).unwrap();
        let twice = cosigned(&once, &cosignature(2, 200), &vkey).unwrap();
        let parsed: Note = twice.parse().unwrap();
        assert_eq!((parsed.signatures.len(), vkey.verify(&parsed)), (2, Ok(Some(200))));
    }

    #[test]
    fn a_cosignature_of_another_witness_or_of_another_time_is_refused() {
        let (_, vkey) = witness(2);
        assert!(matches!(cosigned(&note(), &cosignature(3, 100), &vkey), Err(AuditError::Signature(_))));
        let forged = redated(&cosignature(2, 100), 101);
        assert!(matches!(cosigned(&note(), &forged, &vkey), Err(AuditError::Signature(_))));
        assert!(cosigned(&note(), "thanks", &vkey).is_err());
    }

    /// The same signature line with another time.
    fn redated(line: &str, time: u64) -> String {
        let mut note: Note = format!("x\n\n{line}").parse().unwrap();
        note.signatures[0].bytes[..8].copy_from_slice(&time.to_be_bytes());
        note.signatures[0].to_string()
    }

    #[test]
    fn signatures_of_two_copies_of_a_note_are_joined() {
        let (_, vkey) = witness(2);
        let one = cosigned(&note(), &cosignature(2, 100), &vkey).unwrap();
        assert_eq!(joined(&note(), &one), Some(one.clone()));
        assert_eq!(joined(&one, &note()), Some(one.clone()));
        assert_eq!(joined(&one, &note().replace("\n7\n", "\n8\n")), None);
    }

    #[test]
    fn a_conflict_tells_the_size() {
        assert_eq!(conflict("20852163\n"), Ok(20_852_163));
        assert!(conflict("no\n").is_err());
    }
}
