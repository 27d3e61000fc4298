//! The newest checkpoint, the ones that were kept of those before, and the ones that the auditor kept.
//!
//! The newest is the greater of `checkpoint` and the greatest in `checkpoints/`: the first is overwritten, so a write
//! that a store carries out late may put an older one there. The kept ones are listed before `checkpoint` is read: a
//! ledger that grows meanwhile is read at one point or the other.
//!
//! After a change of keys, the checkpoints before it are signed by the former key alone. Such a checkpoint says nothing
//! that the newest one does not prove, since its root is compared with the tree; but it must lie before the entry
//! `ledger.key` that records the change, or, where that was removed, among removed entries and before every checkpoint
//! that a given key has signed.
//!
//! Two signed checkpoints of one size with two roots are a fork: the signer has signed two histories. Both files are
//! named.

use bytes::Bytes;

use super::source::{Source, SourceError};
use super::{Expected, Fault, Kind, VerifyError};
use crate::audit::note::{Note, VKey};
use crate::audit::{Checkpoint, Hash, checkpoint, witness};

/// The folder of kept checkpoints.
const FOLDER: &str = "checkpoints";
/// The object that is overwritten with the newest checkpoint.
pub(super) const NEWEST: &str = "checkpoint";
/// Checkpoints that are read at once.
const AT_ONCE: usize = 64;

/// The newest checkpoint.
#[derive(Debug)]
pub(super) struct Newest {
    pub(super) checkpoint: Checkpoint,
    pub(super) cosigned: Vec<u64>,
    /// The file that it was read from.
    pub(super) file: String,
    /// `checkpoint`, where that is another one.
    pub(super) hint: Option<Kept>,
    /// What is to be said of where it was found.
    pub(super) remark: Option<String>,
}

/// Where a checkpoint was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In `checkpoint`.
    Hint,
    /// In `checkpoints/`.
    Kept,
    /// With the auditor, as the one of this number.
    Remembered(usize),
}

/// A checkpoint that is not the newest one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) place: Place,
    pub(super) size: u64,
    pub(super) root: Hash,
    /// Whether a key that was given has signed it.
    pub(super) signed: bool,
}

/// The path of the kept checkpoint of so many entries.
pub(super) fn path(size: u64) -> String {
    format!("{FOLDER}/{size:020}")
}

impl Kept {
    /// The file that it was read from.
    pub(super) fn file(&self, remembered: &[String]) -> String {
        match self.place {
            Place::Hint => NEWEST.to_owned(),
            Place::Kept => path(self.size),
            Place::Remembered(at) => remembered.get(at).cloned().unwrap_or_default(),
        }
    }
}

fn forged(file: &str, why: impl ToString) -> Fault {
    Fault { kind: Kind::ForgedHead, seq: None, file: file.to_owned(), why: why.to_string() }
}

fn forked(newest: (&str, &Checkpoint), file: &str, root: Hash) -> Fault {
    let (other, checkpoint) = newest;
    let why = format!(
        "two checkpoints of {} entries are signed: the root in {file} is {root}, the one in {other} is {}",
        checkpoint.size, checkpoint.root
    );
    Fault { kind: Kind::Forked, seq: None, file: file.to_owned(), why }
}

/// The sizes of the kept checkpoints, in order.
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

/// The greatest kept checkpoint that is there.
fn greatest(source: &dyn Source, sizes: &[u64]) -> Result<Option<(Bytes, Note, Checkpoint)>, VerifyError> {
    for size in sizes.iter().rev() {
        let file = path(*size);
        // It may have gone since it was listed; then it claims nothing.
        let Some(bytes) = source.read_one(&file)? else { continue };
        let (note, checkpoint) = parse(&file, &bytes)?;
        if checkpoint.size != *size {
            return Err(
                forged(&file, format!("it is a checkpoint of {} entries, not of {size}", checkpoint.size)).into()
            );
        }
        return Ok(Some((bytes, note, checkpoint)));
    }
    Ok(None)
}

/// The newest checkpoint as it is stored, not looked at any further: the greater of `checkpoint` and the kept ones.
pub(super) fn unverified(source: &dyn Source) -> Result<(Bytes, Checkpoint), VerifyError> {
    let kept = greatest(source, &list(source)?)?.map(|(bytes, _, checkpoint)| (bytes, checkpoint));
    let hint = source.read_one(NEWEST)?;
    let hint = hint.map(|bytes| parse(NEWEST, &bytes).map(|(_, checkpoint)| (bytes, checkpoint))).transpose()?;
    let newest = [kept, hint].into_iter().flatten().max_by_key(|(_, checkpoint)| checkpoint.size);
    newest.ok_or_else(|| SourceError::new(NEWEST, "there is no ledger here").into())
}

/// The newest checkpoint; `sizes` are those of the kept ones.
pub(super) fn newest(source: &dyn Source, expected: &Expected, sizes: &[u64]) -> Result<Newest, VerifyError> {
    let kept = greatest(source, sizes)?.map(|(_, note, checkpoint)| (checkpoint.size, note, checkpoint));
    let hint = source.read_one(NEWEST)?.map(|bytes| parse(NEWEST, &bytes)).transpose()?;
    let (file, mut note, checkpoint, other, remark) = match (hint, kept) {
        (None, None) => {
            if !source.list("segments")?.is_empty() {
                let why = "there is no checkpoint, though there is a ledger".to_owned();
                return Err(Fault { kind: Kind::Missing, seq: None, file: NEWEST.to_owned(), why }.into());
            }
            return Err(SourceError::new(NEWEST, "there is no ledger here").into());
        }
        (None, Some((size, note, checkpoint))) => {
            let remark = format!("there is no object {NEWEST}; the greatest kept checkpoint counts, {}", path(size));
            (path(size), note, checkpoint, None, Some(remark))
        }
        (Some((hint, found)), Some((size, note, checkpoint))) if size > found.size => {
            let remark =
                format!("{NEWEST} is of {} entries; the greatest kept checkpoint counts, {}", found.size, path(size));
            (path(size), note, checkpoint, Some((hint, found)), Some(remark))
        }
        (Some((note, checkpoint)), _) => (NEWEST.to_owned(), note, checkpoint, None, None),
    };
    if !checkpoint::is_of(&checkpoint.origin, expected.org.as_str()) {
        let why = format!("it is the checkpoint of {}, not of a ledger of org {}", checkpoint.origin, expected.org);
        return Err(Fault { kind: Kind::WrongOrg, seq: None, file, why }.into());
    }
    let fitting: Vec<_> = expected.vkeys.iter().filter(|key| key.name() == checkpoint.origin).cloned().collect();
    if !is_signed_by_any(&file, &note, &fitting)? {
        let signers: Vec<_> = note.signatures.iter().map(|signature| signature.to_string()).collect();
        let given: Vec<_> = expected.vkeys.iter().map(ToString::to_string).collect();
        let why =
            format!("no key that was given has signed it: {}; signed: {}", given.join(", "), signers.concat().trim());
        return Err(Fault { kind: Kind::WrongKey, seq: None, file, why }.into());
    }
    let hint = match other {
        Some((hint, found)) => Some(judged(expected, (&file, &checkpoint), Place::Hint, NEWEST, (&hint, &found))?),
        None => None,
    };
    // A witness's cosignature may have come to one of two copies only.
    if file == NEWEST
        && !expected.witnesses.is_empty()
        && let Some(bytes) = source.read_one(&path(checkpoint.size))?
        && let Some(joined) = std::str::from_utf8(&bytes).ok().and_then(|kept| witness::joined(&note.to_string(), kept))
    {
        note = joined.parse().map_err(|error| forged(&file, error))?;
    }
    let mut cosigned = Vec::new();
    for witness in &expected.witnesses {
        if !is_signed(&file, &note, witness)? {
            let why = format!("the witness {} has not cosigned it", witness.name());
            return Err(Fault { kind: Kind::NotCosigned, seq: None, file, why }.into());
        }
        cosigned.extend(witness.verify(&note).ok().flatten());
    }
    Ok(Newest { checkpoint, cosigned, file, hint, remark })
}

/// The other checkpoints, in order: `checkpoint` where it is older, the kept ones of these sizes, the auditor's.
pub(super) fn older(
    source: &dyn Source,
    expected: &Expected,
    newest: &Newest,
    sizes: &[u64],
) -> Result<Vec<Kept>, VerifyError> {
    let mut kept = Vec::with_capacity(sizes.len());
    let among = (newest.file.as_str(), &newest.checkpoint);
    for some in sizes.chunks(AT_ONCE) {
        let paths: Vec<_> = some.iter().map(|size| path(*size)).collect();
        let found = source.read(&paths)?;
        for ((size, path), bytes) in some.iter().zip(&paths).zip(found) {
            // It may have gone since it was listed; then it claims nothing.
            let Some(bytes) = bytes else { continue };
            let (note, found) = parse(path, &bytes)?;
            if found.size != *size {
                return Err(forged(path, format!("it is a checkpoint of {} entries, not of {size}", found.size)).into());
            }
            kept.push(judged(expected, among, Place::Kept, path, (&note, &found))?);
        }
    }
    kept.extend(newest.hint);
    for (at, remembered) in expected.checkpoints.iter().enumerate() {
        kept.push(from_auditor(expected, newest, at, remembered)?);
    }
    kept.sort_by_key(|kept| kept.size);
    Ok(kept)
}

/// A checkpoint of the store, but for its root, which is compared with the tree later.
fn judged(
    expected: &Expected,
    newest: (&str, &Checkpoint),
    place: Place,
    file: &str,
    (note, found): (&Note, &Checkpoint),
) -> Result<Kept, Fault> {
    if found.origin != newest.1.origin {
        let why = format!("it is a checkpoint of {}, not of {}", found.origin, newest.1.origin);
        return Err(Fault { kind: Kind::WrongOrg, seq: None, file: file.to_owned(), why });
    }
    let signed = is_signed_by_any(file, note, &expected.vkeys)?;
    if found.size == newest.1.size && found.root != newest.1.root {
        return Err(if signed { forked(newest, file, found.root) } else { forged(file, "it is of another root") });
    }
    Ok(Kept { place, size: found.size, root: found.root, signed })
}

/// A checkpoint that the auditor kept. It is not part of the ledger: what is wrong with it is wrong use, but that the
/// ledger is not what it grew to is the ledger's fault.
fn from_auditor(
    expected: &Expected,
    newest: &Newest,
    at: usize,
    Remembered { file, note }: &Remembered,
) -> Result<Kept, VerifyError> {
    let unusable = |why: String| VerifyError::from(SourceError::new(file.as_str(), why));
    let (note, found) = parse(file, &Bytes::copy_from_slice(note)).map_err(|fault| unusable(fault.why))?;
    if found.origin != newest.checkpoint.origin {
        return Err(unusable(format!("it is a checkpoint of {}, not of {}", found.origin, newest.checkpoint.origin)));
    }
    if !is_signed_by_any(file, &note, &expected.vkeys).map_err(|fault| unusable(fault.why))? {
        return Err(unusable(
            "no key that was given has signed it; after a change of keys, give the former one too".to_owned(),
        ));
    }
    let (among, newest) = ((newest.file.as_str(), &newest.checkpoint), &newest.checkpoint);
    if found.size > newest.size {
        let why =
            format!("it is of {} entries, and {file} is of {}: the ledger was rolled back", newest.size, found.size);
        return Err(Fault { kind: Kind::RolledBack, seq: Some(newest.size), file: among.0.to_owned(), why }.into());
    }
    if found.size == newest.size && found.root != newest.root {
        return Err(forked(among, file, found.root).into());
    }
    Ok(Kept { place: Place::Remembered(at), size: found.size, root: found.root, signed: true })
}

/// A checkpoint that the auditor kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remembered {
    /// Its name, for messages.
    pub file: String,
    /// Its bytes.
    pub note: Vec<u8>,
}

/// Checks the checkpoints that no given key has signed; see the module's doc. `rotated` is the last entry `ledger.key`.
pub(super) fn check_unsigned(kept: &[Kept], rotated: Option<u64>, first_kept: u64) -> Result<(), Fault> {
    let first_signed = kept.iter().find(|head| head.signed).map_or(u64::MAX, |head| head.size);
    let is_explained = |head: &&Kept| {
        rotated.is_some_and(|seq| head.size <= seq) || (head.size <= first_kept && head.size < first_signed)
    };
    match kept.iter().filter(|head| !head.signed).find(|head| !is_explained(head)) {
        Some(head) => {
            let why =
                "no key that was given has signed it, and no entry ledger.key after it tells of another".to_owned();
            Err(Fault { kind: Kind::WrongKey, seq: None, file: head.file(&[]), why })
        }
        None => Ok(()),
    }
}
