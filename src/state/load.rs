//! An org from what is stored: its newest state, its tables, its newest checkpoint, and what the log has since.
//!
//! In this order (rule L4): states, tables and checkpoint are read first, the log's end after. The state names the id
//! of the object at its position, and the first section after it names that position: what does not fit is damage, once
//! a second load finds it too. Delta ahead of the state is a flush cut short: each table takes live rows from its own
//! position on. Delta behind the state is a restore: the rows between are taken from the log if it has all of them.
//!
//! What is replayed of the log before the state's position, for entries that no checkpoint covers yet or rows that a
//! table lacks, is found by walking the org's chain of sections back from there.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::change::{Change, Place, Rows};
use super::org::{Org, OrgState, Tables};
use super::payloads::numbered;
use super::snapshot::{self, Saved};
use super::{parked_folders, parked_paths};
use crate::audit::{ChainHead, checkpoint};
use crate::ledger::load::{Signed, assemble, signed};
use crate::ledger::replication::Elsewhere;
use crate::ledger::state::LedgerState;
use crate::log::{Floor, Object, ObjectId, SectionKind};
use crate::model::OrgName;
use crate::model::schema::{TOOL_INVOCATION_PAYLOADS, TOOL_INVOCATIONS, TOOL_USAGE_DAILY, TOOL_USAGE_HOURLY};
use crate::node::{Health, Node};
use crate::storage::StorageError;
use crate::storage::table::Table;

/// An org that is being loaded.
#[derive(Debug)]
pub(crate) struct Loading {
    name: OrgName,
    state: OrgState,
    ledger: LedgerState,
    tables: Tables,
    signed: Signed,
    /// The position above which some table lacks rows of up to the state's; none if none does.
    lacks: Option<u64>,
    /// The same of sealed payloads.
    lacks_payloads: Option<u64>,
    /// The greatest position that a state was listed at.
    listed: u64,
    /// The lowest number of the log that was read.
    pub(crate) lowest: Option<u64>,
}

/// Reads what is stored of an org beside the log, from its state on.
///
/// # Errors
/// What the store says, or the first object that is damaged.
pub(crate) async fn begin_from(
    node: &Node,
    elsewhere: &Elsewhere,
    name: &OrgName,
    loaded: Option<snapshot::Loaded>,
) -> Result<Loading, StorageError> {
    let origin = checkpoint::origin(&node.settings.name, name);
    let schemas = node.schemas;
    let open = |table, schema: &_, time| Table::open(&node.store, name, table, Arc::clone(schema), time);
    let (samples, hourly, daily, payloads, signed) = futures::try_join!(
        open(TOOL_INVOCATIONS, &schemas.tool_invocations, "started_at"),
        open(TOOL_USAGE_HOURLY, &schemas.tool_usage_hourly, "window_start"),
        open(TOOL_USAGE_DAILY, &schemas.tool_usage_daily, "window_start"),
        open(TOOL_INVOCATION_PAYLOADS, &schemas.payloads, "started_at"),
        signed(node, elsewhere, name, &origin),
    )?;
    let mut state = OrgState::new(name.clone(), node.settings.limits);
    let schema = Arc::clone(&schemas.audit_log);
    let mut ledger = LedgerState::new(origin.clone(), Arc::clone(&schema));
    let (mut saved, mut owed, mut owed_payloads, mut listed) = (Saved::default(), [0; 3], 0, 0);
    if let Some(loaded) = loaded {
        listed = loaded.listed;
        let header = loaded.header;
        ledger = LedgerState::restore(origin, schema, &header.ledger).ok_or_else(|| {
            StorageError::damaged(super::state_path(name, header.position), "what it says of the ledger cannot be")
        })?;
        (state.position, state.object, state.time) = (header.position, header.object, header.time);
        (state.limits, state.saved, state.saved_before) = (header.limits, header.position, loaded.before);
        state.removed = header.removed;
        (state.totals, state.dedup, saved) = (loaded.totals, loaded.dedup, loaded.saved);
        (owed, owed_payloads) = (header.tables, header.payloads);
    }
    let tables = Tables { samples: samples.0, hourly: hourly.0, daily: daily.0, payloads: payloads.0, saved };
    state.payloads.table = payloads.1;
    (state.samples, state.hourly, state.daily) = (samples.1, hourly.1, daily.1);
    let held = [state.samples.position, state.hourly.position, state.daily.position];
    let lacks = held.into_iter().zip(owed).filter(|(held, owed)| held < owed && node.rules.replay);
    let lacks = lacks.map(|(held, _)| held).min();
    let held = state.payloads.table.position;
    let lacks_payloads = Some(held).filter(|held| *held < owed_payloads);
    Ok(Loading { name: name.clone(), state, ledger, tables, signed, lacks, lacks_payloads, listed, lowest: None })
}

impl Loading {
    /// The position up to which it is applied.
    pub(crate) fn position(&self) -> u64 {
        self.state.position
    }

    /// Whether a change was written after what is applied.
    pub(crate) fn is_followed_by(&self, change: &Change) -> bool {
        change.follows(&self.state)
    }

    /// Its state, where what the log has last says that the grace of its removal is over.
    pub(crate) fn deleted(&self) -> Option<&OrgState> {
        self.state.deleted.then_some(&self.state)
    }

    /// The log must reach at least to here: a state or a table says so. A state that was passed over says so too: it
    /// proves that the org has a section there.
    pub(crate) fn reaches(&self) -> u64 {
        let state = &self.state;
        let tables = state.samples.position.max(state.hourly.position).max(state.daily.position);
        state.position.max(self.listed).max(tables).max(state.payloads.table.position)
    }

    fn damaged(&self, reason: String) -> StorageError {
        StorageError::damaged(super::state_path(&self.name, self.state.saved), reason)
    }

    /// What is damaged, where entries that no checkpoint covers cannot be had from the log: what lies in a checkpoint's
    /// place and is not one, if anything does.
    fn unsigned(&self, otherwise: StorageError) -> StorageError {
        let Some(foreign) = self.signed.foreign() else { return otherwise };
        let size = self.signed.size();
        let reason = format!(
            "no key of this deployment has signed it for this ledger; the newest checkpoint that one has covers {size} of {} entries, \
             and the log does not have the rest any more",
            self.ledger.size()
        );
        StorageError::damaged(foreign, reason)
    }

    /// Reads what is needed of the log up to the state's position: the object there, whose id the state names, and
    /// those before it that hold entries which no checkpoint covers, or rows which a table lacks.
    ///
    /// # Errors
    /// What the store says, or that the log does not have them any more.
    pub(crate) async fn replay_before(&mut self, node: &Node, floor: &Floor) -> Result<(), StorageError> {
        let position = self.state.position;
        if position == 0 {
            return Ok(());
        }
        if position == floor.number && floor.id != self.state.object && self.state.object.is_some() {
            return Err(
                self.damaged("the floor is at another object of this number than the one it was made at".to_owned())
            );
        }
        let size = self.signed.size();
        let (lacks_entries, held) = (size < self.ledger.size(), self.lacks.unwrap_or(u64::MAX));
        let held_payloads = self.lacks_payloads.unwrap_or(u64::MAX);
        if position > floor.number {
            let found = self.read(node, position, floor).await?;
            if self.state.object.as_ref().is_some_and(|id| *id != found.id) {
                let reason = format!(
                    "the log has another object {position} than the one that it was made at: one of both is older"
                );
                return Err(self.damaged(reason));
            }
        }
        let (mut at, mut back, mut found) = (position, Vec::new(), false);
        while at > 0 && (lacks_entries && !found || held.min(held_payloads) < at) {
            let object = self.read(node, at, floor).await;
            let object =
                object.map_err(|e| if e.is_damage() && lacks_entries && !found { self.unsigned(e) } else { e })?;
            let change = Change::decode(node, &object, &self.name)?;
            found |= firsts(&object, &self.name).any(|first| first == size);
            at = change.previous;
            back.push((object, change));
        }
        if lacks_entries && !found {
            let reason = format!("the checkpoint covers {size} entries, and nothing in the log begins with that one");
            return Err(self.unsigned(self.damaged(reason)));
        }
        // Entries past the checkpoint come from the log, and must end where the state says.
        let mut head = ChainHead { size, last: self.signed.last() };
        for (object, change) in back.into_iter().rev() {
            let mut firsts = firsts(&object, &self.name).collect::<Vec<_>>().into_iter();
            for rows in change.rows {
                match rows {
                    Rows::Samples(batch, ..) if object.header.seq > held => {
                        self.state.live.push(object.header.seq, batch)
                    }
                    Rows::Samples(..) => {}
                    Rows::Payloads(batch, first) if object.header.seq > held_payloads => {
                        let numbered = numbered(&batch, first);
                        let numbered =
                            numbered.map_err(|e| StorageError::damaged(crate::log::name(object.header.seq), e))?;
                        self.state.payloads.push(object.header.seq, numbered);
                    }
                    Rows::Payloads(..) => {}
                    Rows::Events(events, _) => {
                        if !lacks_entries || firsts.next().is_none_or(|first| first < size) {
                            continue;
                        }
                        let sealed = self.ledger.seal_after(&head, &events);
                        let sealed =
                            sealed.map_err(|e| StorageError::damaged(crate::log::name(object.header.seq), e))?;
                        head = sealed.head;
                        self.ledger.hold(object.header.seq, sealed);
                    }
                }
            }
        }
        if lacks_entries && head != self.ledger.head() {
            return Err(self.damaged(format!(
                "the ledger has forked: it has {} entries that end in {}, and the log makes it {} that end in {}",
                self.ledger.size(),
                self.ledger.head().last,
                head.size,
                head.last
            )));
        }
        if !lacks_entries && size == self.ledger.size() && size > 0 && self.signed.last() != self.ledger.head().last {
            return Err(
                self.damaged(format!("the checkpoint over {size} entries is of another ledger than this state's"))
            );
        }
        Ok(())
    }

    async fn read(&mut self, node: &Node, seq: u64, floor: &Floor) -> Result<Object, StorageError> {
        let object = if seq <= floor.number {
            read_parked(node, &self.name, seq).await?
        } else {
            self.lowest = Some(self.lowest.map_or(seq, |lowest| lowest.min(seq)));
            node.log.read(seq).await?
        };
        object.ok_or_else(|| StorageError::damaged(crate::log::name(seq), "it is missing from the log"))
    }

    /// Applies the next object that has a section of the org.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] when it does not continue what is applied.
    pub(crate) fn apply(&mut self, node: &Node, object: &Object) -> Result<(), StorageError> {
        let seq = object.header.seq;
        let change = Change::decode(node, object, &self.name)?;
        if change.decisions.repaired {
            // Its state is yet to be stored. What was given up must not come back because it can be read again.
            let reason =
                format!("org {} is being repaired; if `mcpg store repair` was stopped, run it again", self.name);
            return Err(StorageError::failed("load", crate::log::name(seq), reason));
        }
        if node.rules.chain && !self.is_followed_by(&change) {
            let id = |id: Option<&str>| id.map_or_else(String::new, |id| format!(" ({id})"));
            let stored = self.state.object.as_ref().map(ObjectId::beginning);
            let reason = format!(
                "its section of org {} was written after one at {}{}, and what is stored has one at {}{} before it",
                self.name,
                change.previous,
                id(change.before.as_deref()),
                self.state.position,
                id(stored.as_deref())
            );
            return Err(StorageError::damaged(crate::log::name(seq), reason));
        }
        self.take(node, object, change)
    }

    /// The position of the state that it began from, and the greatest that one was listed at; 0 without one.
    pub(crate) fn began(&self) -> (u64, u64) {
        (self.state.saved, self.listed)
    }

    /// How many entries a checkpoint covers.
    pub(crate) fn signed(&self) -> u64 {
        self.signed.size()
    }

    /// How many entries there are so far.
    pub(crate) fn entries(&self) -> u64 {
        self.ledger.size()
    }

    /// Applies what is left of what an object brings, for a repair.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] when the ledger that it makes is not the one that is signed.
    pub(crate) fn take(&mut self, node: &Node, object: &Object, change: Change) -> Result<(), StorageError> {
        let seq = object.header.seq;
        let before = self.ledger.size();
        let prepared = change.prepare(&self.ledger).map_err(|e| StorageError::damaged(crate::log::name(seq), e))?;
        prepared.apply(&Place::of(node, object), &mut self.state, &mut self.ledger, node.rules.once);
        // The ledger's own chain must agree with the checkpoint where it passes it.
        let (size, last) = (self.signed.size(), self.signed.last());
        if before < size && self.ledger.size() == size && self.ledger.head().last != last {
            let reason =
                format!("the ledger has forked: entry {} of the log is not what the checkpoint covers", size - 1);
            return Err(StorageError::damaged(crate::log::name(seq), reason));
        }
        if before < size && self.ledger.size() > size {
            let reason = format!("the checkpoint ends at entry {size}, within what one object brought");
            return Err(StorageError::damaged(crate::log::name(seq), reason));
        }
        Ok(())
    }

    /// The org, once everything is applied.
    ///
    /// # Errors
    /// What the store says, or that the ledger's files are not those of its checkpoint.
    pub(crate) async fn finish(self, node: &Node) -> Result<Org, StorageError> {
        let Self { name, mut state, ledger, tables, signed, .. } = self;
        let health = Arc::new(Health::new(name.clone()));
        let ledger = assemble(node, &name, ledger, signed, Arc::clone(&health)).await?;
        state.waiting_since = (!state.is_flushed()).then(tokio::time::Instant::now);
        Ok(Org::new(name, state, tables, ledger, health))
    }
}

/// The first entry of each section of events that an object has of an org.
fn firsts<'a>(object: &'a Object, org: &'a OrgName) -> impl Iterator<Item = u64> + 'a {
    let sections = object.header.sections.iter().filter(move |section| section.org == *org);
    let events = |rows: &&crate::log::RowsHeader| rows.kind == SectionKind::Events;
    sections.filter_map(move |section| section.rows.as_ref().filter(events)?.first)
}

/// What was parked of an org at a position, if anything. What the log itself has at or under the floor does not exist
/// for a reader: it may be an object that landed late.
///
/// # Errors
/// What the store says, or that the object is damaged.
pub(crate) async fn read_parked(node: &Node, org: &OrgName, seq: u64) -> Result<Option<Object>, StorageError> {
    for path in parked_paths(org, seq) {
        if let Some(bytes) = node.store.get(&path).await? {
            node.log.open_of_org(path.as_ref(), &bytes).await?;
            return Object::unpark(node.log.keys(), path.as_ref(), &bytes).map(Some);
        }
    }
    Ok(None)
}

/// The positions of what is parked of an org, ascending.
///
/// # Errors
/// What the store says.
pub(crate) async fn parked(node: &Node, org: &OrgName) -> Result<Vec<u64>, StorageError> {
    let name = |meta: &object_store::ObjectMeta| -> Option<u64> {
        meta.location.filename().filter(|name| name.len() == 20)?.parse().ok()
    };
    let mut positions = BTreeSet::new();
    for folder in parked_folders(org) {
        positions.extend(node.store.list(&folder).await?.iter().filter_map(name));
    }
    Ok(positions.into_iter().collect())
}
