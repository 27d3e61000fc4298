//! The newest head, and the ones that were kept of those before.
//!
//! The kept ones are listed before the newest is read: a ledger that grows meanwhile has the newest one first as `checkpoint`, so
//! none that was listed can be newer than it.
//!
//! After a change of keys, the heads before it are signed by the former key alone. Such a head says nothing that the newest one
//! does not prove, since its root is compared with the tree; but it must lie before the entry `ledger.key` that tells of the
//! change, or, where that was removed, among removed entries and before every head that a given key has signed.

use bytes::Bytes;

use super::source::Source;
use super::{Expected, Fault, Kind, VerifyError};
use crate::audit::note::{Note, VKey};
use crate::audit::{Checkpoint, Hash};

/// The folder of kept heads.
const FOLDER: &str = "checkpoints";
/// The newest head.
pub(super) const NEWEST: &str = "checkpoint";
/// Heads that are read at once.
const AT_ONCE: usize = 64;

/// The newest head.
#[derive(Debug)]
pub(super) struct Newest {
    pub(super) checkpoint: Checkpoint,
    pub(super) cosigned: Vec<u64>,
}

/// A head that was kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) size: u64,
    pub(super) root: Hash,
    /// Whether a key that was given has signed it.
    pub(super) signed: bool,
}

/// The path of the kept head of so many entries.
pub(super) fn path(size: u64) -> String {
    format!("{FOLDER}/{size:020}")
}

fn forged(file: &str, why: impl ToString) -> Fault {
    Fault { kind: Kind::ForgedHead, seq: None, file: file.to_owned(), why: why.to_string() }
}

/// The sizes of the kept heads, in order.
pub(super) fn list(source: &dyn Source) -> Result<Vec<u64>, VerifyError> {
    let size = |name: String| {
        let size = name.parse().ok().filter(|size| format!("{size:020}") == name);
        size.ok_or_else(|| forged(&format!("{FOLDER}/{name}"), "its name is not a number of entries in 20 digits"))
    };
    let mut sizes = source.list(FOLDER)?.into_iter().map(size).collect::<Result<Vec<u64>, _>>()?;
    sizes.sort_unstable();
    Ok(sizes)
}

fn parse(file: &str, bytes: &Bytes) -> Result<(Note, Checkpoint), Fault> {
    let text = std::str::from_utf8(bytes).map_err(|_| forged(file, "it is not UTF-8"))?;
    let note: Note = text.parse().map_err(|error| forged(file, error))?;
    let checkpoint = note.text.parse().map_err(|error| forged(file, error))?;
    Ok((note, checkpoint))
}

/// Whether a key has signed the note. A signature that bears its name and id and does not hold is a forgery.
fn is_signed(file: &str, note: &Note, key: &VKey) -> Result<bool, Fault> {
    let bears = note.signatures.iter().any(|signature| signature.name == key.name() && signature.id == key.id());
    match key.verify(note) {
        Ok(_) => Ok(true),
        Err(error) if bears => Err(forged(file, error)),
        Err(_) => Ok(false),
    }
}

fn is_signed_by_any(file: &str, note: &Note, keys: &[VKey]) -> Result<bool, Fault> {
    let mut signed = false;
    for key in keys {
        signed |= is_signed(file, note, key)?;
    }
    Ok(signed)
}

/// Whether `origin` is that of a ledger of the org, whatever the deployment.
fn is_of(origin: &str, org: &str) -> bool {
    let generation = |text: &str| text.parse::<u32>().is_ok_and(|number| number > 0 && number.to_string() == text);
    let rest = origin.rsplit_once('/').filter(|(_, last)| generation(last)).map(|(rest, _)| rest);
    let name = rest.and_then(|rest| rest.strip_suffix(&format!("/orgs/{org}/audit")));
    name.is_some_and(|name| !name.is_empty())
}

/// The newest head; `has_kept` tells whether there are kept ones.
pub(super) fn newest(source: &dyn Source, expected: &Expected, has_kept: bool) -> Result<Newest, VerifyError> {
    let Some(bytes) = source.read_one(NEWEST)? else {
        if has_kept || !source.list("segments")?.is_empty() {
            let why = "there is no newest head, though there is a ledger".to_owned();
            return Err(Fault { kind: Kind::Missing, seq: None, file: NEWEST.to_owned(), why }.into());
        }
        return Err(super::SourceError::new(NEWEST, "there is no ledger here").into());
    };
    let (note, checkpoint) = parse(NEWEST, &bytes)?;
    if !is_of(&checkpoint.origin, expected.org.as_str()) {
        let why = format!("it is the head of {}, not of a ledger of org {}", checkpoint.origin, expected.org);
        return Err(Fault { kind: Kind::WrongOrg, seq: None, file: NEWEST.to_owned(), why }.into());
    }
    let wrong_key = |why: String| Fault { kind: Kind::WrongKey, seq: None, file: NEWEST.to_owned(), why };
    let fitting: Vec<_> = expected.vkeys.iter().filter(|key| key.name() == checkpoint.origin).cloned().collect();
    if !is_signed_by_any(NEWEST, &note, &fitting)? {
        let signers: Vec<_> = note.signatures.iter().map(|signature| signature.to_string()).collect();
        let given: Vec<_> = expected.vkeys.iter().map(ToString::to_string).collect();
        let why =
            format!("no key that was given has signed it: {}; signed: {}", given.join(", "), signers.concat().trim());
        return Err(wrong_key(why).into());
    }
    let mut cosigned = Vec::new();
    for witness in &expected.witnesses {
        if !is_signed(NEWEST, &note, witness)? {
            return Err(wrong_key(format!("the witness {} has not cosigned it", witness.name())).into());
        }
        cosigned.extend(witness.verify(&note).ok().flatten());
    }
    Ok(Newest { checkpoint, cosigned })
}

/// The kept heads of these sizes, in order.
pub(super) fn older(
    source: &dyn Source,
    expected: &Expected,
    newest: &Newest,
    sizes: Vec<u64>,
) -> Result<Vec<Kept>, VerifyError> {
    let mut kept = Vec::with_capacity(sizes.len());
    for some in sizes.chunks(AT_ONCE) {
        let paths: Vec<_> = some.iter().map(|size| path(*size)).collect();
        let found = source.read(&paths)?;
        for ((size, path), bytes) in some.iter().zip(&paths).zip(found) {
            // It may have gone since it was listed; then it claims nothing.
            let Some(bytes) = bytes else { continue };
            kept.push(one(expected, newest, *size, path, &bytes)?);
        }
    }
    Ok(kept)
}

fn one(expected: &Expected, newest: &Newest, size: u64, path: &str, bytes: &Bytes) -> Result<Kept, Fault> {
    let (note, found) = parse(path, bytes)?;
    if found.origin != newest.checkpoint.origin {
        let why = format!("it is a head of {}, not of {}", found.origin, newest.checkpoint.origin);
        return Err(Fault { kind: Kind::WrongOrg, seq: None, file: path.to_owned(), why });
    }
    if found.size != size {
        return Err(forged(path, format!("it is a head of {} entries, not of {size}", found.size)));
    }
    let signed = is_signed_by_any(path, &note, &expected.vkeys)?;
    if size > newest.checkpoint.size {
        let why = format!("a head of {size} entries was kept, and the newest one covers {}", newest.checkpoint.size);
        let kind = if signed { Kind::RolledBack } else { Kind::ForgedHead };
        return Err(Fault { kind, seq: Some(newest.checkpoint.size), file: path.to_owned(), why });
    }
    Ok(Kept { size, root: found.root, signed })
}

/// Checks the heads that no given key has signed; see the module's doc. `rotated` is the last entry `ledger.key`.
pub(super) fn check_unsigned(kept: &[Kept], rotated: Option<u64>, first_kept: u64) -> Result<(), Fault> {
    let first_signed = kept.iter().find(|head| head.signed).map_or(u64::MAX, |head| head.size);
    let is_explained = |head: &&Kept| {
        rotated.is_some_and(|seq| head.size <= seq) || (head.size <= first_kept && head.size < first_signed)
    };
    match kept.iter().filter(|head| !head.signed).find(|head| !is_explained(head)) {
        Some(head) => {
            let why =
                "no key that was given has signed it, and no entry ledger.key after it tells of another".to_owned();
            Err(Fault { kind: Kind::WrongKey, seq: None, file: path(head.size), why })
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::is_of;

    #[test]
    fn an_origin_is_of_the_org_whatever_the_deployment() {
        for good in ["mcpg.local/orgs/acme/audit/1", "a.example/b/orgs/acme/audit/12"] {
            assert!(is_of(good, "acme"), "{good}");
        }
        for bad in [
            "mcpg.local/orgs/globex/audit/1",
            "/orgs/acme/audit/1",
            "x/orgs/acme/audit/0",
            "x/orgs/acme/audit/01",
            "acme",
            "",
        ] {
            assert!(!is_of(bad, "acme"), "{bad}");
        }
    }
}
