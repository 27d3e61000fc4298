//! Retention of the ledger: old entries go, and the ledger says so itself.
//!
//! 1. The oldest segments whose every entry was recorded longer ago than the org keeps them are read and checked: each entry's
//!    hash, and the chain from the first of them to the first entry that is kept. What does not verify is not removed, and
//!    `ledger.verification_failed` says so: pruning must not wash away a trace.
//! 2. `ledger.prune` is appended: the rule, `first_kept`, and the SHA-256 of each segment that is to go.
//! 3. A head is signed that covers it.
//! 4. The segments that end before `first_kept` are deleted, oldest first, once no query can still be reading them (`press`).
//!
//! What is pruned follows from the log alone: every node drops the same segments from its view at the same entry, and deleting
//! is harmless twice. A crash after 2 or 3, or in 4, is made good by any node that is there or starts (`ledger_load` finds in the
//! newest segment what was pruned). Tiles stay, so every head and every proof that was made before still holds.
//!
//! A **legal hold** is the entry `ledger.hold`: a prune that the log has after it is of no effect, until `ledger.release`.
//!
//! Segments go whole, and the newest stays whatever its age. So an entry is there for as long as the newest of its segment is
//! kept. Nothing here touches the analytics tables, nor does their retention touch the ledger.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use arrow::array::AsArray;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use object_store::path::Path;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::errors::ParquetError;
use parquet::file::statistics::Statistics;
use serde::Serialize;
use serde_json::json;
use tokio::time::sleep;

use super::ledger::segment_path;
use super::own_events::OwnEvent;
use super::press::get;
use super::standing::{CONFIG_LOADED, HOLD, PRUNE, RELEASE};
use super::{Plane, PlaneError, Readiness};
use crate::audit::segment::{self, SegmentName};
use crate::audit::{Hash, entry};
use crate::model::OrgName;
use crate::storage::StorageError;

/// Segments of one prune at most; what is left is for the next.
const MOST_SEGMENTS: usize = 256;
/// How soon after a start the first run is.
const FIRST: Duration = Duration::from_secs(60);

/// How long an org's entries are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Keep {
    pub(super) period: Duration,
    /// The period, and what says so.
    pub(super) rule: String,
}

/// What a prune removes, or would.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PrunePlan {
    /// How long entries are kept, and what says so.
    pub rule: String,
    /// Entries recorded before this are not kept.
    pub before: DateTime<Utc>,
    /// The entry of the hold that stops it.
    pub hold: Option<u64>,
    /// The first entry that is there afterwards.
    pub first_kept: u64,
    /// How many entries go.
    pub entries: u64,
    /// Their segments.
    pub segments: Vec<PrunedSegment>,
}

/// A segment that goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PrunedSegment {
    /// Its file name.
    pub name: String,
    /// SHA-256 of the file.
    pub sha256: String,
    /// Its size.
    pub bytes: u64,
}

/// How an org's ledger is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Keeping {
    /// How long entries are kept, and what says so.
    pub rule: String,
    /// The entry of the hold that is in force.
    pub hold: Option<u64>,
    /// The first entry that is there.
    pub first_kept: u64,
    /// How many entries there have ever been.
    pub size: u64,
}

/// Prunes now and then until the plane is drained.
pub(super) async fn run(plane: Arc<Plane>) {
    let every = plane.settings.prune_interval;
    let mut pause = every.min(FIRST);
    while plane.readiness() != Readiness::Draining {
        sleep(pause).await;
        pause = every;
        for name in &plane.settings.orgs {
            match plane.prune(name).await {
                Ok(plan) if plan.entries > 0 => {
                    tracing::info!(org = %name, entries = plan.entries, first_kept = plan.first_kept, "pruned a ledger");
                }
                Ok(_) => {}
                // It was stopped with an error of its own, or the process is.
                Err(PlaneError::OrgStopped { .. }) => {}
                Err(_) if plane.readiness() == Readiness::Draining => return,
                Err(e) => {
                    plane.metrics.audit.failures.inc();
                    tracing::warn!(org = %name, error = %e, "a ledger was not pruned and will be tried again");
                }
            }
        }
    }
}

impl Plane {
    /// How an org's ledger is kept.
    ///
    /// # Errors
    /// See [`PlaneError`].
    pub async fn keeping(&self, name: &OrgName) -> Result<Keeping, PlaneError> {
        let org = self.caught_up(name).await?;
        let (rule, ledger) = (self.keep(name)?.rule.clone(), org.ledger());
        Ok(Keeping { rule, hold: ledger.standing().hold, first_kept: ledger.first_kept(), size: ledger.size() })
    }

    /// Puts an org's ledger on hold: nothing of it is removed from here on.
    ///
    /// # Errors
    /// See [`PlaneError`].
    pub async fn hold(&self, name: &OrgName, actor: &str, reason: &str) -> Result<Keeping, PlaneError> {
        self.record(name, vec![OwnEvent::new(actor, HOLD).target(name.as_str()).reason(reason)]).await?;
        self.keeping(name).await
    }

    /// Ends the hold of an org's ledger; nothing is done if there is none.
    ///
    /// # Errors
    /// See [`PlaneError`].
    pub async fn release(&self, name: &OrgName, actor: &str, reason: &str) -> Result<Keeping, PlaneError> {
        if self.keeping(name).await?.hold.is_some() {
            self.record(name, vec![OwnEvent::new(actor, RELEASE).target(name.as_str()).reason(reason)]).await?;
        }
        self.keeping(name).await
    }

    /// Prunes an org's ledger, if something of it is due.
    ///
    /// # Errors
    /// See [`PlaneError`]; [`PlaneError::OrgStopped`] and [`StorageError::Damaged`] when what is due does not verify.
    pub async fn prune(&self, name: &OrgName) -> Result<PrunePlan, PlaneError> {
        self.prune_as(name, &self.actor()).await
    }

    /// As [`Plane::prune`], because `actor` asks for it.
    ///
    /// # Errors
    /// As [`Plane::prune`].
    pub async fn prune_as(&self, name: &OrgName, actor: &str) -> Result<PrunePlan, PlaneError> {
        let plan = self.plan_prune(name).await?;
        if plan.segments.is_empty() {
            return Ok(plan);
        }
        let mut events = Vec::new();
        // What the next start compares its configuration with must not go.
        let config = self.org(name)?.ledger().standing().config.filter(|seq| *seq < plan.first_kept);
        if let Some(seq) = config
            && let Some(detail) = self.entry_detail(name, seq).await?
        {
            let detail = serde_json::from_str(&detail).map_err(|e| PlaneError::Internal(e.to_string()))?;
            events.push(
                OwnEvent::new(self.actor(), CONFIG_LOADED).reason("said again before it is pruned").detail(detail),
            );
        }
        let detail = json!({
            "rule": plan.rule,
            "before": plan.before,
            "first_kept": plan.first_kept.to_string(),
            "entries": plan.entries.to_string(),
            "segments": plan.segments.iter().map(|s| json!({ "name": s.name, "sha256": s.sha256 })).collect::<Vec<_>>(),
        });
        events.push(OwnEvent::new(actor, PRUNE).target(name.as_str()).detail(detail));
        // Nodes that find the same to be due say so once. One that came to nothing, because of a hold or because its segments
        // had become another, is no reason not to say it again.
        let names: Vec<_> = plan.segments.iter().map(|segment| segment.name.as_bytes()).collect();
        let released = self.org(name)?.ledger().standing().released;
        self.record_once(name, events, &format!("prune/{released:?}/{}", Hash::of(&names))).await?;
        Ok(plan)
    }

    /// What a prune would remove now.
    ///
    /// # Errors
    /// As [`Plane::prune`].
    pub async fn plan_prune(&self, name: &OrgName) -> Result<PrunePlan, PlaneError> {
        let org = self.caught_up(name).await?;
        let Keep { period, rule } = self.keep(name)?.clone();
        let before = self.clock.now() - chrono::TimeDelta::from_std(period).unwrap_or(chrono::TimeDelta::MAX);
        let (candidates, hold, first_kept) = {
            let ledger = org.ledger();
            (ledger.prunable(), ledger.standing().hold, ledger.first_kept())
        };
        let mut plan = PrunePlan { rule, before, hold, first_kept, entries: 0, segments: Vec::new() };
        let mut chain = None;
        for (segment, size) in candidates.into_iter().take(MOST_SEGMENTS).take_while(|_| hold.is_none()) {
            if !self.is_older(name, segment, before).await? {
                break;
            }
            let (sha256, last) = self.check(name, segment, chain).await?;
            chain = Some(last);
            plan.entries += segment.entries();
            plan.first_kept = segment.last + 1;
            plan.segments.push(PrunedSegment { name: segment.to_string(), sha256: sha256.to_string(), bytes: size });
        }
        if let Some(chain) = chain {
            self.check_link(name, plan.first_kept, chain).await?;
        }
        Ok(plan)
    }

    fn keep(&self, name: &OrgName) -> Result<&Keep, PlaneError> {
        self.settings.keep.get(name).ok_or_else(|| PlaneError::UnknownOrg(name.to_string()))
    }

    /// Whether all entries of a segment were recorded before then, as its statistics say.
    async fn is_older(&self, org: &OrgName, name: SegmentName, before: DateTime<Utc>) -> Result<bool, PlaneError> {
        let ages = || self.ages.lock().unwrap_or_else(PoisonError::into_inner);
        // The segment that is looked at is the same one for a long time: until it is old.
        let known = ages().get(org).filter(|(known, _)| *known == name).map(|(_, newest)| *newest);
        let newest = match known {
            Some(newest) => newest,
            None => {
                let path = segment_path(org, name);
                let bytes = self.segment(&path).await?;
                let newest = newest_recorded(bytes).map_err(|e| StorageError::damaged(&path, e))?;
                ages().insert(org.clone(), (name, newest));
                newest
            }
        };
        // What has no statistics is of an age that is not known: it is kept.
        Ok(newest.is_some_and(|newest| newest < before.timestamp_micros()))
    }

    async fn segment(&self, path: &Path) -> Result<Bytes, StorageError> {
        get(self, path).await?.ok_or_else(|| StorageError::damaged(path, "it is missing"))
    }

    /// Checks each entry of a segment against its hash, and the chain through it. Gives the file's hash and the last entry's.
    async fn check(&self, org: &OrgName, name: SegmentName, chain: Option<Hash>) -> Result<(Hash, Hash), PlaneError> {
        let path = segment_path(org, name);
        let bytes = self.segment(&path).await?;
        let origin = self.org(org)?.ledger().origin().to_owned();
        let checked = tokio::task::spawn_blocking(move || check(&path, name, bytes, &origin, chain)).await;
        let checked = checked.map_err(|e| PlaneError::Internal(e.to_string()))?;
        self.judged(org, name, checked).await
    }

    /// Checks that the first entry that is kept follows the last one that goes.
    async fn check_link(&self, org: &OrgName, first_kept: u64, chain: Hash) -> Result<(), PlaneError> {
        let next = self.org(org)?.ledger().stored_from(first_kept);
        // Whatever comes next may have become part of a larger segment since: then the plan has no effect anyway.
        let Some(name) = next else { return Ok(()) };
        let path = segment_path(org, name);
        let bytes = self.segment(&path).await?;
        let hash = first_link(bytes).map_err(|e| StorageError::damaged(&path, e))?;
        let follows = hash == Some(chain);
        let reason = || StorageError::damaged(&path, format!("entry {first_kept} does not follow the one before it"));
        self.judged(org, name, if follows { Ok(()) } else { Err(reason()) }).await
    }

    /// Puts into the ledger that it did not stand the check, if it did not.
    async fn judged<T>(
        &self,
        org: &OrgName,
        name: SegmentName,
        checked: Result<T, StorageError>,
    ) -> Result<T, PlaneError> {
        if let Err(e) = &checked
            && e.is_damage()
        {
            tracing::error!(%org, error = %e, "entries that are due to be pruned do not verify; they are kept");
            let detail = json!({ "check": "prune", "segment": name.to_string() });
            let event = OwnEvent::new(self.actor(), "ledger.verification_failed").reason(&e.to_string()).detail(detail);
            self.record_once(org, vec![event], &format!("check/{name}")).await?;
        }
        Ok(checked?)
    }
}

/// When the newest entry of a segment was recorded, in µs, as its statistics say.
fn newest_recorded(bytes: Bytes) -> Result<Option<i64>, ParquetError> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(bytes)?;
    let newest = builder.metadata().row_groups().iter().map(|group| {
        let column = group.columns().iter().find(|column| column.column_path().string() == "recorded_at")?;
        match column.statistics()? {
            Statistics::Int64(times) => times.max_opt().copied(),
            _ => None,
        }
    });
    Ok(newest.collect::<Option<Vec<_>>>().and_then(|times| times.into_iter().max()))
}

/// `prev_hash` of a segment's first entry.
fn first_link(bytes: Bytes) -> Result<Option<Hash>, ParquetError> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(bytes)?;
    let column = ProjectionMask::columns(builder.parquet_schema(), ["prev_hash"]);
    let Some(first) = builder.with_projection(column).with_limit(1).build()?.next() else { return Ok(None) };
    let first = first.map_err(|e| ParquetError::ArrowError(e.to_string()))?;
    let hashes = first.column_by_name("prev_hash").and_then(|column| column.as_string_opt::<i32>());
    Ok(hashes.and_then(|hashes| hashes.iter().next().flatten()?.parse().ok()))
}

/// See [`Plane::check`].
fn check(
    path: &Path,
    name: SegmentName,
    bytes: Bytes,
    origin: &str,
    chain: Option<Hash>,
) -> Result<(Hash, Hash), StorageError> {
    let (sha256, mut chain, mut seq, mut canonical) =
        (Hash::of(&[&bytes]), chain, name.first, Vec::with_capacity(1_024));
    let end = segment::read(path.as_ref(), name, bytes, |batch| {
        let damaged = |seq: u64, what: &str| StorageError::damaged(path, format!("entry {seq}: {what}"));
        let columns = entry::Columns::of(&batch).map_err(|e| StorageError::damaged(path, e))?;
        let hashes = |name: &str| batch.column_by_name(name).and_then(|column| column.as_string_opt::<i32>());
        let (Some(before), Some(own)) = (hashes("prev_hash"), hashes("entry_hash")) else {
            return Err(damaged(seq, "it has no hashes"));
        };
        for (row, (before, own)) in before.iter().zip(own).enumerate() {
            let hash = |text: Option<&str>| text.and_then(|text| text.parse::<Hash>().ok());
            let (Some(before), Some(own)) = (hash(before), hash(own)) else {
                return Err(damaged(seq, "it has no hashes"));
            };
            if chain.is_some_and(|chain| chain != before) {
                return Err(damaged(seq, "it does not follow the one before it"));
            }
            canonical.clear();
            let written = columns.write_canonical(row, origin, seq, &before, &mut canonical);
            written.map_err(|e| damaged(seq, &e.to_string()))?;
            if Hash::of(&[&canonical]) != own {
                return Err(damaged(seq, "it is not what its hash was made of"));
            }
            (chain, seq) = (Some(own), seq + 1);
        }
        Ok(())
    })?;
    Ok((sha256, end.head.last))
}
