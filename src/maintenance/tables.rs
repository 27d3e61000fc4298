//! The tables of an org as its maintenance has them: those of the loaded org, which its flushes write and its queries
//! see, or handles of their own where the org is not loaded. Each is held for the time of one operation.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use tokio::sync::{Mutex, MutexGuard};

use super::merge::Site;
use crate::flush::Part;
use crate::model::OrgName;
use crate::model::schema::PARTITION_COLUMN;
use crate::node::Node;
use crate::rollup::Granularity;
use crate::state::{Org, Tables};
use crate::storage::StorageError;
use crate::storage::table::{
    LiveFile, Orphans, Partitioning, Reclaimable, Replaced, Replacement, Table, TableSnapshot,
};

/// The name of a part's table.
pub(super) fn name(part: Part) -> &'static str {
    part.name()
}

fn schema(node: &Node, part: Part) -> &SchemaRef {
    match part {
        Part::Payloads => &node.schemas.payloads,
        Part::Samples => &node.schemas.tool_invocations,
        Part::Rollup(Granularity::Hour) => &node.schemas.tool_usage_hourly,
        Part::Rollup(Granularity::Day) => &node.schemas.tool_usage_daily,
    }
}

/// The tables of an org, held one operation at a time.
#[derive(Debug)]
pub(crate) enum Handles {
    /// Of an org that is loaded.
    Loaded(Arc<Org>),
    /// Of one that is not.
    Apart(OrgName, Box<Mutex<Apart>>),
}

/// Handles of its own.
#[derive(Debug)]
pub(crate) struct Apart {
    samples: Table,
    hourly: Table,
    daily: Table,
    payloads: Table,
}

impl Apart {
    fn table(&mut self, part: Part) -> &mut Table {
        match part {
            Part::Payloads => &mut self.payloads,
            Part::Samples => &mut self.samples,
            Part::Rollup(Granularity::Hour) => &mut self.hourly,
            Part::Rollup(Granularity::Day) => &mut self.daily,
        }
    }
}

/// The tables while they are held.
enum Held<'a> {
    Loaded(&'a Org, MutexGuard<'a, Tables>),
    Apart(MutexGuard<'a, Apart>),
}

impl Held<'_> {
    fn table(&mut self, part: Part) -> &mut Table {
        match self {
            Self::Loaded(_, tables) => part.table(tables),
            Self::Apart(tables) => tables.table(part),
        }
    }

    /// Shows queries the table as it is now.
    fn show(&self, part: Part, now: TableSnapshot) {
        let Self::Loaded(org, _) = self else { return };
        let mut state = org.state.write();
        let known = part.state(&mut state);
        let is_ahead = now.position > known.position;
        if now.position >= known.position {
            *known = now;
        }
        if is_ahead {
            state.flushed_by_peer = true;
        }
    }
}

/// What there is to plan with.
#[derive(Debug)]
pub(super) struct View {
    pub(super) files: Vec<LiveFile>,
    pub(super) partitioning: Partitioning,
}

impl Handles {
    /// Opens the tables of an org that is not loaded.
    ///
    /// # Errors
    /// What the store says, or that Delta's log is damaged.
    pub(crate) async fn apart(node: &Node, org: &OrgName) -> Result<Self, StorageError> {
        let open = |part: Part| {
            let time = if let Part::Rollup(_) = part { "window_start" } else { "started_at" };
            Table::open(&node.store, org, name(part), Arc::clone(schema(node, part)), time)
        };
        let (samples, hourly, daily, payloads) = futures::try_join!(
            open(Part::Samples),
            open(Part::Rollup(Granularity::Hour)),
            open(Part::Rollup(Granularity::Day)),
            open(Part::Payloads),
        )?;
        let tables = Apart { samples: samples.0, hourly: hourly.0, daily: daily.0, payloads: payloads.0 };
        Ok(Self::Apart(org.clone(), Box::new(Mutex::new(tables))))
    }

    /// Whose they are.
    pub(super) fn org(&self) -> &OrgName {
        match self {
            Self::Loaded(org) => &org.name,
            Self::Apart(org, _) => org,
        }
    }

    /// The runs of keys that the loaded org has, by name.
    pub(super) fn runs(&self) -> HashSet<String> {
        match self {
            Self::Loaded(org) => org.state.read().dedup.keys().runs().map(|run| run.reference().name()).collect(),
            Self::Apart(..) => HashSet::new(),
        }
    }

    /// The newest entry of the ledger that records a removal of rows, where that is known.
    pub(super) fn removal(&self) -> Option<u64> {
        match self {
            Self::Loaded(org) => org.ledger.read().status().removal,
            Self::Apart(..) => None,
        }
    }

    /// Whether they may be written: an instance of the org in whose place there is another one writes nothing.
    pub(super) fn may_write(&self) -> bool {
        match self {
            Self::Loaded(org) => org.may_write(),
            Self::Apart(..) => true,
        }
    }

    async fn hold(&self) -> Held<'_> {
        match self {
            Self::Loaded(org) => Held::Loaded(org, org.tables.lock().await),
            Self::Apart(_, tables) => Held::Apart(tables.lock().await),
        }
    }

    /// Where the files of a table go.
    pub(super) async fn site(&self, node: &Node, part: Part) -> Site {
        let mut held = self.hold().await;
        let table = held.table(part);
        let (folder, partitioning) = (table.folder().clone(), table.partitioning());
        let all = schema(node, part);
        let stored = all
            .fields()
            .iter()
            .filter(|field| partitioning == Partitioning::Month || field.name().as_str() != PARTITION_COLUMN);
        let schema = Arc::new(Schema::new(stored.cloned().collect::<Vec<_>>()));
        Site { folder, partitioning, schema }
    }

    /// A table as it was read last.
    pub(super) async fn view(&self, part: Part) -> View {
        let mut held = self.hold().await;
        let table = held.table(part);
        View { files: table.live_files(), partitioning: table.partitioning() }
    }

    /// Reads a table again, and shows it to queries.
    pub(super) async fn refresh(&self, _: &Node, part: Part) -> Result<View, StorageError> {
        let mut held = self.hold().await;
        let now = held.table(part).refresh().await?;
        held.show(part, now);
        let table = held.table(part);
        Ok(View { files: table.live_files(), partitioning: table.partitioning() })
    }

    /// The table's fence: see [`crate::storage::table`].
    pub(super) async fn fence(&self, part: Part) -> Result<u64, StorageError> {
        self.hold().await.table(part).fence().await
    }

    /// Commits files in the place of others. Whether they are.
    pub(super) async fn replace(&self, part: Part, replacement: &Replacement, now: i64) -> Result<bool, StorageError> {
        let mut held = self.hold().await;
        let (now, is_done) = match held.table(part).replace(replacement, now).await? {
            Replaced::Done(now) => (now, true),
            Replaced::Stale(now) => (now, false),
        };
        held.show(part, now);
        Ok(is_done)
    }

    /// Makes a checkpoint of Delta's log, if it is time.
    pub(super) async fn checkpoint(&self, part: Part) -> Result<bool, StorageError> {
        self.hold().await.table(part).checkpoint().await
    }

    /// Makes a checkpoint of Delta's log, unless there is one of the version that was read last.
    pub(super) async fn checkpoint_past(&self, part: Part) -> Result<(), StorageError> {
        self.hold().await.table(part).checkpoint_past().await
    }

    /// What must not be deleted.
    pub(super) async fn reclaimable(&self, part: Part, cutoff: i64) -> Result<Reclaimable, StorageError> {
        self.hold().await.table(part).reclaimable(cutoff).await
    }

    /// Sees to it that files are never committed, and says which may be deleted.
    pub(super) async fn fence_off(
        &self,
        part: Part,
        orphans: Orphans,
    ) -> Result<Vec<object_store::path::Path>, StorageError> {
        let mut held = self.hold().await;
        let (paths, now) = held.table(part).fence_off(orphans).await?;
        held.show(part, now);
        Ok(paths)
    }
}
