//! Signed notes and their keys, as C2SP signed-note says (<https://c2sp.org/signed-note>).
//!
//! ```text
//! note      = text (ends in a newline) ‖ "\n" ‖ signature line, one or more
//! signature = "— " ‖ key name ‖ " " ‖ base64(key id, 4 bytes ‖ signature) ‖ "\n"
//! vkey      = key name ‖ "+" ‖ key id, 8 hex ‖ "+" ‖ base64(algorithm ‖ public key)
//! key id    = SHA-256(key name ‖ "\n" ‖ algorithm ‖ public key), the first 4 bytes
//! ```
//!
//! Two algorithms are known here: Ed25519 (0x01), by which checkpoints are signed, and the timestamped Ed25519
//! cosignature (0x04), by which a witness says that it has seen a checkpoint extend the one before
//! (<https://c2sp.org/tlog-cosignature>).

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::{Signature as Ed25519Signature, Signer as _, SigningKey, VerifyingKey};

use super::{AuditError, Hash};

/// What begins a signature line.
const DASH: &str = "\u{2014} ";

/// How a signature is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// Ed25519 over the note's text.
    Ed25519,
    /// Ed25519 over `cosignature/v1`, a time, and the note's text.
    Cosignature,
}

impl Algorithm {
    const fn byte(self) -> u8 {
        match self {
            Self::Ed25519 => 1,
            Self::Cosignature => 4,
        }
    }
}

/// A verifier key: by its name, a note says who signed it.
#[derive(Clone, PartialEq, Eq)]
pub struct VKey {
    name: String,
    algorithm: Algorithm,
    key: VerifyingKey,
}

impl VKey {
    /// The key of that name.
    ///
    /// # Errors
    /// [`AuditError::Malformed`] when the name cannot stand in a note.
    pub fn new(name: &str, algorithm: Algorithm, key: VerifyingKey) -> Result<Self, AuditError> {
        if name.is_empty() || name.contains('+') || name.chars().any(char::is_whitespace) {
            return Err(AuditError::Malformed(format!("`{name}` cannot be a key's name")));
        }
        Ok(Self { name: name.to_owned(), algorithm, key })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it is a witness's: for cosignatures.
    pub fn is_cosignature(&self) -> bool {
        self.algorithm == Algorithm::Cosignature
    }

    /// The first four bytes of the hash of name, algorithm and key.
    pub fn id(&self) -> [u8; 4] {
        let parts = [self.name.as_bytes(), b"\n", &[self.algorithm.byte()], self.key.as_bytes()];
        Hash::of(&parts).0.first_chunk().copied().unwrap_or_default()
    }

    /// Whether a signature of this key is on the note. A cosignature's time comes back, in seconds since the Unix
    /// epoch.
    ///
    /// # Errors
    /// [`AuditError::Signature`] when it is missing or does not hold.
    pub fn verify(&self, note: &Note) -> Result<Option<u64>, AuditError> {
        let id = self.id();
        let mine = |signature: &&NoteSignature| signature.name == self.name && signature.id == id;
        let Some(signature) = note.signatures.iter().find(mine) else {
            let signers: Vec<_> = note.signatures.iter().map(|s| format!("{} {}", s.name, hex(s.id))).collect();
            let reason = format!("it is not signed by {} {}, but by {}", self.name, hex(id), signers.join(", "));
            return Err(AuditError::Signature(reason));
        };
        let (time, bytes) = match self.algorithm {
            Algorithm::Ed25519 => (None, signature.bytes.as_slice()),
            Algorithm::Cosignature => {
                let (time, rest) = signature.bytes.split_first_chunk().unwrap_or((&[0; 8], &[]));
                (Some(u64::from_be_bytes(*time)), rest)
            }
        };
        let message = match time {
            Some(time) => format!("cosignature/v1\ntime {time}\n{}", note.text),
            None => note.text.clone(),
        };
        let signed = Ed25519Signature::from_slice(bytes)
            .is_ok_and(|signature| self.key.verify_strict(message.as_bytes(), &signature).is_ok());
        let wrong = || AuditError::Signature(format!("the signature of {} {} does not hold", self.name, hex(id)));
        if signed { Ok(time) } else { Err(wrong()) }
    }
}

fn hex(id: [u8; 4]) -> String {
    format!("{:08x}", u32::from_be_bytes(id))
}

impl fmt::Display for VKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = [&[self.algorithm.byte()][..], self.key.as_bytes()].concat();
        write!(f, "{}+{}+{}", self.name, hex(self.id()), BASE64.encode(key))
    }
}

impl fmt::Debug for VKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for VKey {
    type Err = AuditError;

    fn from_str(text: &str) -> Result<Self, AuditError> {
        let malformed = |reason: &str| AuditError::Malformed(format!("this is no verifier key: {reason}"));
        let mut parts = text.trim().splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(malformed("it is written <name>+<id, 8 hex digits>+<base64>, as `mcpg audit vkey` prints it"));
        };
        let key = BASE64.decode(key).map_err(|_| malformed("its last part is not base64"))?;
        let algorithm = match key.first() {
            Some(1) => Algorithm::Ed25519,
            Some(4) => Algorithm::Cosignature,
            _ => return Err(malformed("its algorithm is neither Ed25519 (1) nor a cosignature (4)")),
        };
        let key = key.get(1..).and_then(|key| key.try_into().ok());
        let key = key.ok_or_else(|| malformed("an Ed25519 key has 32 bytes"))?;
        let key = VerifyingKey::from_bytes(&key).map_err(|_| malformed("its bytes are no Ed25519 key"))?;
        let vkey = Self::new(name, algorithm, key)?;
        if hex(vkey.id()) == id { Ok(vkey) } else { Err(malformed("its id is not that of its name and key")) }
    }
}

/// One signature of a note.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoteSignature {
    /// The key's name.
    pub name: String,
    /// The key's id.
    pub id: [u8; 4],
    /// What follows the id.
    pub bytes: Vec<u8>,
}

impl fmt::Display for NoteSignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{DASH}{} {}", self.name, BASE64.encode([&self.id[..], &self.bytes].concat()))
    }
}

/// A text and the signatures on it; they are held to be true by [`VKey::verify`] alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// The text, which ends in a newline.
    pub text: String,
    /// The signatures.
    pub signatures: Vec<NoteSignature>,
}

impl Note {
    /// Signs `text`, which ends in a newline, with each of `keys` under the name `name`.
    ///
    /// # Errors
    /// [`AuditError::Malformed`] when the name cannot stand in a note.
    pub fn sign(text: String, name: &str, keys: &[&SigningKey]) -> Result<Self, AuditError> {
        let sign = |key: &&SigningKey| {
            let vkey = VKey::new(name, Algorithm::Ed25519, key.verifying_key())?;
            let bytes = key.sign(text.as_bytes()).to_bytes().to_vec();
            Ok(NoteSignature { name: name.to_owned(), id: vkey.id(), bytes })
        };
        let signatures = keys.iter().map(sign).collect::<Result<_, AuditError>>()?;
        Ok(Self { text, signatures })
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.text)?;
        self.signatures.iter().try_for_each(|signature| signature.fmt(f))
    }
}

impl FromStr for Note {
    type Err = AuditError;

    fn from_str(note: &str) -> Result<Self, AuditError> {
        let malformed = |reason: &str| AuditError::Malformed(format!("this is no signed note: {reason}"));
        if note.chars().any(|c| c.is_control() && c != '\n') {
            return Err(malformed("it has a control character"));
        }
        let (text, lines) =
            note.rsplit_once("\n\n").ok_or_else(|| malformed("no empty line parts text and signatures"))?;
        let lines = lines.strip_suffix('\n').ok_or_else(|| malformed("it does not end in a newline"))?;
        let signature = |line: &str| {
            let (name, signature) = line.strip_prefix(DASH)?.split_once(' ')?;
            let signature = BASE64.decode(signature).ok()?;
            let (id, bytes) = signature.split_first_chunk()?;
            (!name.is_empty()).then(|| NoteSignature { name: name.to_owned(), id: *id, bytes: bytes.to_vec() })
        };
        let signature = |line| signature(line).ok_or_else(|| malformed("a signature line is not one"));
        Ok(Self { text: format!("{text}\n"), signatures: lines.split('\n').map(signature).collect::<Result<_, _>>()? })
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;

    use super::{Note, VKey};

    /// The example of the Go package `golang.org/x/mod/sumdb/note`, the origin of the specification.
    const VKEY: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
    const NOTE: &str = "If you think cryptography is the answer to your problem,\n\
                        then you don't know what your problem is.\n\n\
                        \u{2014} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";

    #[test]
    fn a_note_that_others_have_signed_is_verified() {
        let (vkey, note): (VKey, Note) = (VKEY.parse().unwrap(), NOTE.parse().unwrap());
        assert_eq!(vkey.verify(&note), Ok(None));
        assert_eq!((vkey.to_string(), note.to_string()), (VKEY.to_owned(), NOTE.to_owned()));
        let changed: Note = NOTE.replacen("think", "thank", 1).parse().unwrap();
        assert!(vkey.verify(&changed).unwrap_err().to_string().contains("does not hold"));
    }

    #[test]
    fn a_note_of_several_keys_is_verified_by_each_and_by_no_other() {
        let keys = [1, 2, 3].map(|n| SigningKey::from_bytes(&[n; 32]));
        let vkey = |n: usize, name| VKey::new(name, super::Algorithm::Ed25519, keys[n].verifying_key()).unwrap();
        let note = Note::sign("a\nb\n".to_owned(), "mcpg.local/x", &[&keys[0], &keys[1]]).unwrap();
        let note: Note = note.to_string().parse().unwrap();
        assert!(vkey(0, "mcpg.local/x").verify(&note).is_ok() && vkey(1, "mcpg.local/x").verify(&note).is_ok());
        assert!(vkey(2, "mcpg.local/x").verify(&note).is_err() && vkey(0, "mcpg.local/y").verify(&note).is_err());
    }

    #[test]
    fn what_is_no_note_or_no_key_is_refused() {
        for bad in ["", "a\n", "a\n\n", "a\n\n\u{2014} x AAAA", "a\n\nx\n", "a\r\n\n\u{2014} x AAAAAA==\n"] {
            assert!(bad.parse::<Note>().is_err(), "{bad:?}");
        }
        for bad in ["", "a+b", "PeterNeumann+c74f20a4+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW", "a+00000000+AQ=="]
        {
            assert!(bad.parse::<VKey>().is_err(), "{bad:?}");
        }
    }
}
