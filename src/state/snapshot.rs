//! A state as it is stored: what is known of an org at a position of the log, in one object (rule L5).
//!
//! `orgs/<org>/state/<position>`, created if absent, since all nodes make the same of a position:
//!
//! ```text
//! magic "MCPGSTA1" ‖ length of the header, u32 little-endian ‖ header, JSON, see `StateHeader`
//! ‖ running totals, zstd: a full snapshot, or the changes since the state before
//! ‖ what is remembered of batches: all of it, or what changed; see `dedup`
//! ‖ MAC, see `log::mac`
//! ```
//!
//! With many series a flush changes few of them: so a state may hold the changes alone, and name the state that they
//! are put upon, its *base*, by position and by the id of the log's object there. The log makes the same of a position
//! on every node: so changes may be put upon whichever state of it is there, full or not, of any writer. A chain of
//! bases ends in a full one; it is at most 16 long, and a full one is written before the changes add up to half of it,
//! or to 16 KiB.
//!
//! A base must not go while a state stands on it. A writer that stored a state of changes lists the folder afterwards:
//! if another state lies between it and the full one under it, or one that it stands on is gone, somebody had slept, and
//! it does not count: it is stored again in full, in its place. A reader passes over a state whose base is gone, for the
//! same reason. States are deleted by the writer of the newest one that is listed: all but the two newest that count and
//! what these stand on. A writer that lists a newer one than its own has slept itself, and deletes nothing: it does not
//! know what the newer ones stand on. All of this is model-checked, `tests/model/states.py`.

use bytes::Bytes;
use object_store::path::Path;
use serde::{Deserialize, Serialize};

use super::dedup::{Dedup, Stored};
use super::{OrgState, state_folder, state_path};
use crate::ledger::state::LedgerEnd;
use crate::log::{LogKeys, ObjectId, OrgLimits};
use crate::model::OrgName;
use crate::node::Node;
use crate::rollup::RunningTotals;
use crate::storage::{Created, Ensured, StorageError};

const MAGIC: &[u8; 8] = b"MCPGSTA1";
/// The version that a reader of what this program writes must know.
const NEEDS: u32 = 4;
/// States that stand on one another, at most.
const LONGEST_CHAIN: usize = 16;
/// Changes of so many bytes are put upon a full state however small that is.
const LEAST_CHANGES: usize = 16 << 10;

/// What a state says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateHeader {
    /// The version that a reader must know.
    pub needs: u32,
    /// Whose.
    pub org: OrgName,
    /// The position of the last object that had a section of the org.
    pub position: u64,
    /// The id of that object; none of a state that was brought over from version 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<ObjectId>,
    /// When that object was written, µs since the epoch.
    pub time: i64,
    /// The limits that the log has set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<OrgLimits>,
    /// Since when the org is removed, µs since the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removed: Option<i64>,
    /// Whether it is a tombstone: the grace of the removal is over, and nothing else of the org is to be read.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deleted: bool,
    /// Positions that samples, hourly and daily must hold, so that they have everything up to the state's. A table that
    /// stands lower takes the rows between from the log.
    pub tables: [u64; 3],
    /// The same of sealed payloads.
    #[serde(default)]
    pub payloads: u64,
    /// The ledger.
    pub(crate) ledger: LedgerEnd,
    /// The positions of the states that it stands on, oldest first; empty of a full one.
    pub chain: Vec<u64>,
    /// The id of the log's object at the last of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<ObjectId>,
    /// Bytes of the totals, compressed.
    pub totals: u64,
}

/// The stored states that a node goes on from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Saved {
    /// The newest, and those that it stands on before it; empty if the next is to be full.
    chain: Vec<u64>,
    /// The id of the log's object at the newest.
    object: Option<ObjectId>,
    /// The epoch of the totals that ended with the newest.
    epoch: u64,
    /// The time of the newest.
    time: i64,
    /// Bytes of the full one, and of the changes since.
    full: usize,
    changes: usize,
}

/// A state that is to be stored.
#[derive(Debug)]
pub struct Draft {
    header: StateHeader,
    bytes: Bytes,
    saved: Saved,
}

/// What became of a draft.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// The position of the stored state.
    pub position: u64,
    /// Whether it may be relied on: nothing came between it and what it stands on.
    pub counts: bool,
}

/// What a draft is made of, taken under the org's lock in one step.
#[derive(Debug)]
pub struct Parts {
    header: StateHeader,
    totals: TotalsPart,
    dedup: Vec<u8>,
    epoch: u64,
}

#[derive(Debug)]
enum TotalsPart {
    Full(Box<RunningTotals>),
    Changes(Vec<u8>),
}

/// Takes what a state is made of. The rest, which costs time, needs no lock.
pub(crate) fn take(org: &OrgName, state: &mut OrgState, ledger: LedgerEnd, saved: &Saved) -> Parts {
    state.totals.expire(state.time);
    let is_full = saved.chain.is_empty()
        || saved.chain.len() >= LONGEST_CHAIN
        || saved.changes * 2 > saved.full.max(2 * LEAST_CHANGES);
    let totals = if is_full {
        TotalsPart::Full(Box::new(state.totals.clone()))
    } else {
        TotalsPart::Changes(state.totals.encode_changes(saved.epoch))
    };
    let dedup = state.dedup.encode((!is_full).then_some(saved.time));
    let header = StateHeader {
        needs: NEEDS,
        org: org.clone(),
        position: state.position,
        object: state.object.clone(),
        time: state.time,
        limits: state.limits,
        removed: state.removed,
        deleted: false,
        tables: [&state.samples, &state.hourly, &state.daily].map(|table| state.owed(table.position)),
        payloads: state.payloads.owed(),
        ledger,
        chain: if is_full { Vec::new() } else { saved.chain.clone() },
        base: if is_full { None } else { saved.object.clone() },
        totals: 0,
    };
    Parts { header, totals, dedup, epoch: state.totals.mark() }
}

/// Takes the place of everything stored of an org whose removal is over: that it was there, and nothing else.
///
/// # Errors
/// What the store says.
pub(crate) async fn bury(node: &Node, dead: &OrgState) -> Result<(), StorageError> {
    let org = dead.totals.org().clone();
    let mut state = OrgState::new(org.clone(), node.settings.limits);
    (state.position, state.object, state.time) = (dead.position, dead.object.clone(), dead.time);
    (state.limits, state.removed) = (dead.limits, dead.removed);
    let mut parts = take(&org, &mut state, LedgerEnd::default(), &Saved::default());
    parts.header.deleted = true;
    let Draft { bytes, .. } = draft(node.log.keys(), parts, &Saved::default())?;
    let path = state_path(&org, dead.position);
    if let Ensured::Other(_) = node.store.ensure(&path, bytes.clone()).await? {
        node.store.put(&path, bytes).await?;
    }
    Ok(())
}

/// Puts a state's bytes together.
///
/// # Errors
/// When zstd or JSON fail, which they do not for plain data.
pub fn draft(keys: &LogKeys, parts: Parts, saved: &Saved) -> Result<Draft, StorageError> {
    let Parts { mut header, totals, dedup, epoch } = parts;
    let path = state_path(&header.org, header.position);
    let failed = |e: &dyn std::fmt::Display| StorageError::failed("encode", &path, e.to_string());
    let (totals, is_full) = match totals {
        TotalsPart::Full(totals) => (totals.encode(), true),
        TotalsPart::Changes(bytes) => (bytes, false),
    };
    let totals = zstd::bulk::compress(&totals, 1).map_err(|e| failed(&e))?;
    header.totals = totals.len() as u64;
    let text = serde_json::to_vec(&header).map_err(|e| failed(&e))?;
    let length = u32::try_from(text.len()).map_err(|e| failed(&e))?;
    let mut body = Vec::with_capacity(12 + text.len() + totals.len() + dedup.len() + LogKeys::trailer_length());
    body.extend_from_slice(MAGIC);
    body.extend_from_slice(&length.to_le_bytes());
    body.extend_from_slice(&text);
    body.extend_from_slice(&totals);
    body.extend_from_slice(&dedup);
    let bytes = keys.seal(path.as_ref(), body);
    let (full, changes) = if is_full { (bytes.len(), 0) } else { (saved.full, saved.changes + bytes.len()) };
    let mut chain = header.chain.clone();
    chain.push(header.position);
    let saved = Saved { chain, object: header.object.clone(), epoch, time: header.time, full, changes };
    Ok(Draft { header, bytes, saved })
}

/// Stores a draft, unless the position has a state already that may be relied on, and deletes those that nothing stands
/// on any more. Gives what this node goes on from.
///
/// A full draft takes the place of a state that may not be relied on.
///
/// # Errors
/// What the store says; [`StorageError::Damaged`] when another node made another ledger of the same position.
pub async fn keep(node: &Node, draft: Draft) -> Result<(Kept, Saved), StorageError> {
    let Draft { header, bytes, mut saved } = draft;
    let (org, position) = (&header.org, header.position);
    let path = state_path(org, position);
    let mut chain = header.chain.clone();
    let found = node.store.ensure(&path, bytes.clone()).await?;
    let listed = positions(node, org).await?;
    if let Ensured::Other(found) = found {
        // Another node's, which stands on another state or has seen other tables. What the log makes of a position is
        // the same.
        let (other, ..) = parse(node, org, position, &found).await?;
        if other.object != header.object {
            return Err(StorageError::damaged(&path, "it was made of another log than this node has followed"));
        }
        if !other.ledger.is_same(&header.ledger) {
            let reason = format!(
                "the ledger has forked: it has {} entries that end in {}, and this node's has {} that end in {}",
                other.ledger.size, other.ledger.hash, header.ledger.size, header.ledger.hash
            );
            return Err(StorageError::damaged(&path, reason));
        }
        if header.chain.is_empty() && !is_whole(&listed, &other.chain, position) {
            node.store.put(&path, bytes).await?;
        } else {
            // The totals at the position are the same, however they were written: the changes since go upon that one.
            chain = other.chain;
            saved.chain.clone_from(&chain);
            saved.chain.push(position);
        }
    }
    let counts = is_whole(&listed, &chain, position);
    if !counts {
        tracing::warn!(%org, position, "a state was stored by a node that had slept; the next one is stored in full");
        return Ok((Kept { position, counts }, Saved::default()));
    }
    if is_newest(&listed, position) {
        tidy(node, org, &listed, position, &saved.chain).await?;
    }
    Ok((Kept { position, counts }, saved))
}

/// Puts all states of an org, and what is parked of it, under the current key.
///
/// # Errors
/// What the store says, or that something is damaged.
pub async fn reseal(node: &Node, org: &OrgName) -> Result<(), StorageError> {
    let parked = super::load::parked(node, org).await?.into_iter().flat_map(|at| super::parked_paths(org, at));
    let paths = positions(node, org).await?.into_iter().map(|position| state_path(org, position)).chain(parked);
    for path in paths.collect::<Vec<_>>() {
        let Some((bytes, version)) = node.store.get_versioned(&path).await? else { continue };
        node.log.open_of_org(path.as_ref(), &bytes).await?;
        let Some(sealed) = node.log.keys().reseal(path.as_ref(), &bytes)? else { continue };
        if !node.store.can_swap() {
            node.store.put(&path, sealed).await?;
        } else if let Created::Unknown(e) = node.store.swap(&path, Some(version), sealed).await {
            return Err(e);
        }
        // Where it was replaced meanwhile, that was done under the current key.
    }
    Ok(())
}

/// Whether a state may be relied on: all that it stands on is there, and nothing else lies between it and the full one.
fn is_whole(listed: &[u64], chain: &[u64], position: u64) -> bool {
    let from = chain.first().copied().unwrap_or(position);
    listed.iter().filter(|at| (from..position).contains(at)).eq(chain)
}

/// Whether no newer state is listed than the one at a position.
fn is_newest(listed: &[u64], position: u64) -> bool {
    listed.last().is_none_or(|newest| *newest <= position)
}

/// Deletes the states that neither the two newest which may be relied on are, nor stand on.
async fn tidy(node: &Node, org: &OrgName, listed: &[u64], newest: u64, chain: &[u64]) -> Result<(), StorageError> {
    for before in listed.iter().rev().copied().filter(|position| *position < newest) {
        let older: Vec<u64> = listed.iter().copied().filter(|position| *position < before).collect();
        if older.iter().all(|position| chain.contains(position)) {
            return Ok(());
        }
        let Some(found) = node.store.get(&state_path(org, before)).await? else { return Ok(()) };
        let (found, ..) = parse(node, org, before, &found).await?;
        if !is_whole(listed, &found.chain, before) {
            continue;
        }
        let gone = older.into_iter().filter(|position| !chain.contains(position) && !found.chain.contains(position));
        let gone: Vec<Path> = gone.map(|position| state_path(org, position)).collect();
        return if gone.is_empty() { Ok(()) } else { node.store.delete_all(gone).await };
    }
    Ok(())
}

/// The positions of an org's stored states, ascending. What is not named by a position is ignored.
pub async fn positions(node: &Node, org: &OrgName) -> Result<Vec<u64>, StorageError> {
    let listed = node.store.list(&state_folder(org)).await?;
    let name = |meta: &object_store::ObjectMeta| meta.location.filename().filter(|name| name.len() == 20)?.parse().ok();
    Ok(listed.iter().filter_map(name).collect())
}

/// A state as it was read.
#[derive(Debug)]
pub struct Loaded {
    /// What it says of itself.
    pub header: StateHeader,
    /// Running totals.
    pub totals: RunningTotals,
    /// What is remembered of batches.
    pub(crate) dedup: Dedup,
    /// What the next state may stand on.
    pub saved: Saved,
    /// The position of the state before it; 0 without one.
    pub before: u64,
    /// The greatest position that a state was listed at: this one's, but for states that do not count.
    pub(crate) listed: u64,
}

/// Reads an org's newest state, if it has one.
///
/// # Errors
/// What the store says, or the first object that is damaged.
pub async fn newest(node: &Node, org: &OrgName) -> Result<Option<Loaded>, StorageError> {
    let mut listed = positions(node, org).await?;
    'listing: loop {
        for (at, position) in listed.iter().enumerate().rev() {
            if let Some(mut loaded) = read(node, org, *position).await? {
                loaded.listed = listed.last().copied().unwrap_or(0);
                loaded.before = at.checked_sub(1).and_then(|at| listed.get(at)).copied().unwrap_or(0);
                return Ok(Some(loaded));
            }
            // It may have been deleted since it was listed, for a newer one.
            let now = positions(node, org).await?;
            if now != listed {
                listed = now;
                continue 'listing;
            }
            tracing::warn!(%org, position, "passed over a state whose base is gone");
        }
        return if listed.is_empty() {
            Ok(None)
        } else {
            Err(StorageError::damaged(state_folder(org), "there are states, and what each of them stands on is gone"))
        };
    }
}

/// Reads an org's newest state that is sound, and says why each newer one is not: for a repair, which goes on from
/// there.
///
/// # Errors
/// What the store says.
pub(crate) async fn newest_sound(
    node: &Node,
    org: &OrgName,
) -> Result<(Option<Loaded>, Vec<(u64, StorageError)>), StorageError> {
    let mut unsound = Vec::new();
    let listed = positions(node, org).await?;
    for position in listed.iter().rev().copied() {
        match read(node, org, position).await {
            Ok(Some(mut loaded)) => {
                loaded.listed = listed.last().copied().unwrap_or(0);
                return Ok((Some(loaded), unsound));
            }
            Ok(None) => {
                unsound.push((position, StorageError::damaged(state_path(org, position), "what it stands on is gone")));
            }
            Err(e) if e.is_damage() => unsound.push((position, e)),
            Err(e) => return Err(e),
        }
    }
    Ok((None, unsound))
}

/// A stored state, as one of those that another stands on.
struct Link {
    position: u64,
    length: usize,
    header: StateHeader,
    totals: Bytes,
    remembered: Bytes,
}

/// Reads the state at a position and all that it stands on, as they are stored now, the full one first; nothing if one
/// of them is gone, or was made of another object of the log than the one that the next names.
async fn links(node: &Node, org: &OrgName, position: u64) -> Result<Vec<Link>, StorageError> {
    let mut links: Vec<Link> = Vec::new();
    let mut next = Some(position);
    while let Some(position) = next {
        let Some(bytes) = node.store.get(&state_path(org, position)).await? else { return Ok(Vec::new()) };
        let (header, totals, remembered) = parse(node, org, position, &bytes).await?;
        if links.last().is_some_and(|upon: &Link| upon.header.base != header.object) {
            return Ok(Vec::new());
        }
        next = header.chain.last().copied();
        if next.is_some_and(|base| base >= position) {
            return Err(StorageError::damaged(state_path(org, position), "it stands on a newer one"));
        }
        links.push(Link { position, length: bytes.len(), header, totals, remembered });
    }
    links.reverse();
    Ok(links)
}

/// Reads the state at a position; none if it, or what it stands on, is gone.
async fn read(node: &Node, org: &OrgName, position: u64) -> Result<Option<Loaded>, StorageError> {
    let links = links(node, org, position).await?;
    let Some(header) = links.last().map(|newest| newest.header.clone()) else { return Ok(None) };
    let chain: Vec<u64> = links.iter().map(|link| link.position).collect();
    let default = usize::try_from(node.settings.limits.series).unwrap_or(usize::MAX);
    let (mut totals, mut dedup): (Option<RunningTotals>, Option<Dedup>) = (None, None);
    let (mut full, mut changes) = (0, 0);
    for Link { position: at, length, header: link, totals: packed, remembered } in links {
        let path = state_path(org, at);
        let damaged = |e: &dyn std::fmt::Display| StorageError::damaged(&path, e);
        let series = link.limits.map_or(default, |limits| usize::try_from(limits.series).unwrap_or(usize::MAX));
        let unpacked = zstd::decode_all(packed.as_ref()).map_err(|e| damaged(&e))?;
        match &mut totals {
            None => {
                totals = Some(RunningTotals::decode(&unpacked, series).map_err(|e| damaged(&e))?);
                full = length;
            }
            Some(totals) => {
                totals.apply_changes(&unpacked).map_err(|e| damaged(&e))?;
                totals.set_max_series(series);
                changes += length;
            }
        }
        let stored = Stored::decode(&remembered).map_err(|e| damaged(&e))?;
        let mut runs = Vec::new();
        // Only the last one's runs are read: the others' are those of before.
        for run in stored.runs().iter().filter(|_| at == position) {
            let path = Path::from(format!("orgs/{org}/keys/{}", run.name()));
            let bytes = node.store.get(&path).await?;
            let bytes = bytes.ok_or_else(|| StorageError::damaged(&path, "it is missing, and a state names it"))?;
            runs.push(run.decode(&bytes).map_err(|e| StorageError::damaged(&path, e))?);
        }
        dedup = Some(if at == position {
            stored.complete(runs, dedup.as_ref()).map_err(|e| damaged(&e))?
        } else {
            stored.complete_lanes(dedup.as_ref()).map_err(|e| damaged(&e))?
        });
    }
    let (Some(mut totals), Some(dedup)) = (totals, dedup) else {
        return Err(StorageError::damaged(state_path(org, position), "it is empty"));
    };
    let (epoch, time) = (totals.mark(), header.time);
    let saved = Saved { chain, object: header.object.clone(), epoch, time, full, changes };
    Ok(Some(Loaded { header, totals, dedup, saved, before: 0, listed: 0 }))
}

/// Reads a state's header, its totals (compressed) and what it remembers of batches.
///
/// # Errors
/// [`StorageError::Damaged`] when it is not what was written, [`StorageError::Unusable`] when it is of a newer version
/// or of a key that this node lacks.
pub(crate) async fn parse(
    node: &Node,
    org: &OrgName,
    position: u64,
    bytes: &Bytes,
) -> Result<(StateHeader, Bytes, Bytes), StorageError> {
    let path = state_path(org, position);
    let damaged = |reason: &str| StorageError::damaged(&path, reason);
    let body = node.log.open_of_org(path.as_ref(), bytes).await?;
    let length = body.get(8..12).and_then(|length| length.try_into().ok()).map(u32::from_le_bytes);
    let (Some(MAGIC), Some(length)) = (body.first_chunk::<8>(), length) else {
        return Err(damaged("it does not start with the magic bytes of a state"));
    };
    let end = 12_usize.saturating_add(length as usize);
    let text = body.get(12..end).ok_or_else(|| damaged("its header is longer than it"))?;
    let header: StateHeader = serde_json::from_slice(text).map_err(|e| damaged(&format!("its header: {e}")))?;
    if header.needs > NEEDS {
        return Err(StorageError::Unusable {
            url: path.to_string(),
            reason: format!("it needs a program that knows version {} of a state", header.needs),
        });
    }
    if header.org != *org || header.position != position {
        return Err(damaged(&format!("it says that it is of org {} at {}", header.org, header.position)));
    }
    let totals_end = end.saturating_add(usize::try_from(header.totals).unwrap_or(usize::MAX));
    if totals_end > body.len() {
        return Err(damaged("its totals are longer than it"));
    }
    Ok((header, body.slice(end..totals_end), body.slice(totals_end..)))
}
