//! `mcpg store copy`: a consistent copy of a store to another one that is empty, whatever control planes do meanwhile.
//!
//! # Why it loads
//!
//! The floor is read first: `F`. At that moment (rule L2) each org has a state that holds what its sections up to `F`
//! brought, its tables hold those samples, and its checkpoint covers those entries. All three only move on. So whatever
//! is copied of them later, with the log from `F` on, is enough. In this order:
//!
//! 1. of each org states, runs of keys, Delta's log and then the files, segments and tiles and then checkpoints, and
//!    what else is there;
//! 2. the log, from `F` to the last object that is listed *after* that: it reaches what was copied of every org (rule
//!    L4). What comes later is left out;
//! 3. the floor `F`.
//!
//! If an object of the log is gone because the floor rose past it, a new round begins at the newer floor. What vanished
//! between being listed and being read (a state that a newer one replaced, say) may have left a gap in the copy: so the
//! copy is checked, and where it is not sound a further round copies what has come or changed since. A round that finds
//! the same faults as the one before ends it: they are the store's own.
//!
//! Wrapped keys of sealed payloads are left out unless they are asked for: the copy opens no payload then.
//!
//! # Until it is whole
//!
//! `wal/layout` is written first, with bytes that no control plane takes for a layout, and replaced by the store's own
//! when the copy has been found sound. A copy that was broken off is refused by a control plane, and by `copy`.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectMeta;
use object_store::path::Path;

use super::{Finding, Findings, Inspector, Progress, Report};
use crate::ledger;
use crate::log::{self, layout};
use crate::model::OrgName;
use crate::state::{parked_folders, state_folder};
use crate::storage::{Created, StorageError, Store};

/// Objects that are copied at once.
const AT_ONCE: usize = 8;
/// How often a copy is made good that what went on meanwhile has left a gap in.
const ROUNDS: u32 = 6;
/// How often a part is listed again from which something vanished while it was read.
const LISTS: usize = 5;
/// What is in the place of the layout until the copy is whole.
const UNFINISHED: &[u8] = b"a copy that is not finished\n";

/// What was copied.
#[derive(Debug, Clone)]
pub struct Copied {
    /// Objects written.
    pub objects: u64,
    /// Bytes written.
    pub bytes: u64,
    /// How often it took what has come since.
    pub rounds: u32,
    /// What the check of the copy found. If it is not sound, the copy has no layout.
    pub report: Report,
}

/// Copies a store, and checks the copy.
///
/// # Errors
/// What the stores say; [`StorageError::Unusable`] when the one is no store, or the other is not empty.
pub async fn copy(from: &Inspector, to: &Inspector, progress: &Progress<'_>) -> Result<Copied, StorageError> {
    from.layout().await?;
    let (source, target) = (&from.node.store, &to.node.store);
    let layout_path = Path::from(layout::NAME);
    let layout = source.get(&layout_path).await?;
    let layout = layout.ok_or_else(|| StorageError::failed("read", &layout_path, "it went away"))?;
    if let Some(found) = target.objects().list(None).next().await {
        let found = found.map_err(|e| StorageError::failed("list", target.url(), e))?;
        let reason = format!("it is not empty: there is {}; a copy goes to a place of its own", found.location);
        return Err(target.unusable(reason));
    }
    target.probe(&*to.node.clock).await?;
    match target.create(&layout_path, bytes::Bytes::from_static(UNFINISHED).into()).await {
        Created::Won => {}
        Created::Exists => return Err(target.unusable("another copy to it has begun")),
        Created::Unknown(e) => return Err(e),
    }
    let mut copying = Copying { source, target, progress, copied: HashMap::new(), objects: 0, bytes: 0, vanished: 0 };
    let mut before: Option<Vec<Finding>> = None;
    let mut rounds = 0;
    loop {
        rounds += 1;
        let floor = from.node.log.floor().await?;
        // The log goes along with the orgs, so that trimming does not overtake it; its end comes after the last org.
        let mut next = floor.number + 1;
        let mut kept_up = copying.log(from, &mut next).await?;
        for org in from.orgs().await? {
            if kept_up {
                copying.org(&org).await?;
                kept_up = copying.log(from, &mut next).await?;
            }
        }
        if !kept_up {
            if rounds == ROUNDS {
                return Err(StorageError::failed("copy", "wal", "the log is trimmed faster than it can be copied"));
            }
            continue;
        }
        to.node.log.begin().await?;
        to.node.log.raise(&floor).await?;
        progress("the copy is checked");
        let report = to.check_parts(Findings::default(), progress).await?;
        let done = Copied { objects: copying.objects, bytes: copying.bytes, rounds, report };
        if done.report.is_sound() {
            target.put(&layout_path, layout).await?;
            return Ok(done);
        }
        if rounds == ROUNDS || before.as_ref() == Some(&done.report.faults) {
            return Ok(done);
        }
        before = Some(done.report.faults);
    }
}

/// Copies the wrapped keys of sealed payloads, where they lie in the store itself.
///
/// # Errors
/// What the stores say.
pub async fn copy_payload_keys(from: &Inspector, to: &Inspector) -> Result<(), StorageError> {
    let (source, target) = (&from.node.store, &to.node.store);
    for meta in source.list(&Path::from("payload-keys")).await? {
        // One that is destroyed meanwhile is not copied.
        transfer(source, target, &meta.location).await?;
    }
    Ok(())
}

/// By what an object is known to be the one that was copied.
type Stamp = (u64, DateTime<Utc>, Option<String>);

fn stamp(meta: &ObjectMeta) -> Stamp {
    (meta.size, meta.last_modified, meta.e_tag.clone())
}

struct Copying<'a> {
    source: &'a Store,
    target: &'a Store,
    progress: &'a Progress<'a>,
    copied: HashMap<Path, Stamp>,
    objects: u64,
    bytes: u64,
    /// Objects that were gone when they were to be read.
    vanished: u64,
}

impl Copying<'_> {
    /// Copies an org: each part before what stands on it.
    async fn org(&mut self, org: &OrgName) -> Result<(), StorageError> {
        let folder = format!("orgs/{org}");
        (self.progress)(&folder);
        self.whole(&state_folder(org)).await?;
        self.part(&Path::from(format!("{folder}/keys")), |_| true).await?;
        let tables = self.tables(&folder).await?;
        for table in &tables {
            // A hint at a checkpoint of Delta's log, which is there before the hint.
            self.one(&Path::from(format!("{table}/_delta_log/_last_checkpoint"))).await?;
            self.part(&Path::from(format!("{table}/_delta_log")), |path| !path.ends_with("/_last_checkpoint")).await?;
            // Files are there before the commit that names them.
            self.part(table, |path| !path.contains("/_delta_log/")).await?;
        }
        self.ledger(org).await?;
        // What has come since of the parts above is left out.
        let mut done: Vec<String> = tables.iter().map(|table| format!("{table}/")).collect();
        done.extend(["state", "keys", "audit"].map(|part| format!("{folder}/{part}/")));
        self.part(&Path::from(folder), |path| !done.iter().any(|part| path.starts_with(part))).await?;
        let [_, parked_beside_the_log] = parked_folders(org);
        self.part(&parked_beside_the_log, |_| true).await
    }

    async fn tables(&self, folder: &str) -> Result<Vec<Path>, StorageError> {
        let folder = Path::from(folder);
        let listed = self.source.objects().list_with_delimiter(Some(&folder)).await;
        let listed = listed.map_err(|e| StorageError::failed("list", &folder, e))?;
        let mut tables = Vec::new();
        for inner in listed.common_prefixes {
            let log = Path::from(format!("{inner}/_delta_log"));
            if !self.source.list(&log).await?.is_empty() {
                tables.push(inner);
            }
        }
        Ok(tables)
    }

    /// Copies a ledger: what its checkpoints are over is listed after they were read.
    async fn ledger(&mut self, org: &OrgName) -> Result<(), StorageError> {
        let folder = Path::from(ledger::folder(org));
        let is_checkpoint = |path: &str| path.contains("/audit/checkpoint");
        // What there is much of first: then there is little to do between a checkpoint and what it is over.
        self.part(&folder, |path| !is_checkpoint(path)).await?;
        for _ in 0..LISTS {
            let before = self.vanished;
            self.part(&folder, is_checkpoint).await?;
            self.part(&folder, |path| !is_checkpoint(path)).await?;
            if self.vanished == before {
                break;
            }
        }
        Ok(())
    }

    /// Copies a part from which nothing vanishes while it is read.
    async fn whole(&mut self, folder: &Path) -> Result<(), StorageError> {
        for _ in 0..LISTS {
            let before = self.vanished;
            self.part(folder, |_| true).await?;
            if self.vanished == before {
                break;
            }
        }
        Ok(())
    }

    /// Copies what is listed now and chosen, and was not copied as it is.
    async fn part(&mut self, folder: &Path, chosen: impl Fn(&str) -> bool) -> Result<(), StorageError> {
        let mut listed = self.source.list(folder).await?;
        listed.retain(|meta| chosen(meta.location.as_ref()) && self.copied.get(&meta.location) != Some(&stamp(meta)));
        let (source, target) = (self.source, self.target);
        let mut copies = futures::stream::iter(listed)
            .map(async |meta| Ok::<_, StorageError>((transfer(source, target, &meta.location).await?, meta)))
            .buffer_unordered(AT_ONCE);
        while let Some((bytes, meta)) = copies.try_next().await? {
            self.count(bytes);
            if bytes.is_some() {
                let stamp = stamp(&meta);
                self.copied.insert(meta.location, stamp);
            }
        }
        Ok(())
    }

    /// Copies an object if it is there.
    async fn one(&mut self, path: &Path) -> Result<(), StorageError> {
        if let Some(bytes) = transfer(self.source, self.target, path).await? {
            self.count(Some(bytes));
        }
        Ok(())
    }

    fn count(&mut self, bytes: Option<u64>) {
        match bytes {
            Some(bytes) => {
                self.objects += 1;
                self.bytes += bytes;
            }
            None => self.vanished += 1,
        }
    }

    /// Copies the log from number `next` up to what is its end now. False if the floor has passed what was to be read.
    async fn log(&mut self, from: &Inspector, next: &mut u64) -> Result<bool, StorageError> {
        (self.progress)("wal");
        let last = from.node.log.list().await?.last().copied().unwrap_or_default();
        let (source, target) = (self.source, self.target);
        let mut copies = futures::stream::iter(*next..=last)
            .map(async |seq| transfer(source, target, &Path::from(log::name(seq))).await.map(|bytes| (seq, bytes)))
            .buffered(AT_ONCE);
        while let Some((seq, bytes)) = copies.try_next().await? {
            if bytes.is_none() {
                if from.node.log.floor().await?.number >= seq {
                    return Ok(false);
                }
                return Err(StorageError::damaged(log::name(seq), "it is missing from the log"));
            }
            self.count(bytes);
        }
        *next = (*next).max(last + 1);
        Ok(from.node.log.floor().await?.number < *next)
    }
}

/// Copies one object as it is; its length, or none if it is gone.
async fn transfer(source: &Store, target: &Store, path: &Path) -> Result<Option<u64>, StorageError> {
    let Some(bytes) = source.get(path).await? else { return Ok(None) };
    let length = bytes.len() as u64;
    target.put(path, bytes).await?;
    Ok(Some(length))
}
