//! What `mcpg store` says of a store and does with it: status, check, repair, copy.
//!
//! | file | holds |
//! |---|---|
//! | `index` | the log above the floor, each object verified, and where each org has sections in it |
//! | `status` | what lies on the store |
//! | `check` | verifying all of it |
//! | `org`, `table` | verifying one org, and one of its tables |
//! | `copy` | a consistent copy to another store |
//! | `repair` | an org that is stopped goes on from what can be read of it |
//!
//! It works on the store itself, beside control planes that run: it reads as they load, takes no lock, and writes
//! nothing but a copy or a repair. So what it reads moves. Three rules make that harmless:
//!
//! - What is stored of an org is read first and the log's end after (rule L4): the log reaches at least as far.
//! - What was read of the log counts once a floor read after it is lower (rule L3).
//! - What does not fit is looked at again, and is a fault when it is found twice. A read that fails is no fault (rule
//!   L9): what could not be read is listed apart.

mod check;
mod copy;
mod index;
mod org;
mod repair;
mod status;
mod table;

use std::sync::Arc;
use std::time::Duration;

use object_store::path::Path;

pub use check::Report;
pub use copy::{Copied, copy, copy_payload_keys};
pub use repair::Repair;

use crate::audit::SigningKeys;
use crate::config::ControlPlane;
use crate::log::{Log, LogKeys, Rules, layout, mac};
use crate::model::schema::schemas;
use crate::model::{OrgName, Random, SystemClock, SystemRandom};
use crate::node::{Node, Settings};
use crate::storage::{StorageError, Store};
use crate::telemetry::metrics::Metrics;

/// How often what does not fit, or cannot be read, is looked at.
const LOOKS: u32 = 4;
/// The pause before the second look; it doubles with each.
const PAUSE: Duration = Duration::from_millis(250);

/// The progress of work that takes long: the object or the part that it has come to.
pub type Progress<'a> = dyn Fn(&str) + Sync + 'a;

/// An object, and what is wrong with it or why it could not be read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// Its path on the store.
    pub object: String,
    /// Why.
    pub reason: String,
}

impl Finding {
    /// What was found of an object.
    pub fn new(object: impl ToString, reason: impl ToString) -> Self {
        Self { object: object.to_string(), reason: reason.to_string() }
    }
}

/// What a look has found.
#[derive(Debug, Clone, Default)]
struct Findings {
    faults: Vec<Finding>,
    unread: Vec<Finding>,
}

impl Findings {
    fn is_empty(&self) -> bool {
        self.faults.is_empty() && self.unread.is_empty()
    }

    fn fault(&mut self, object: impl ToString, reason: impl ToString) {
        self.faults.push(Finding::new(object, reason));
    }

    fn unread(&mut self, object: impl ToString, reason: impl ToString) {
        self.unread.push(Finding::new(object, reason));
    }

    fn add(&mut self, error: StorageError) {
        match error {
            StorageError::Damaged { object, reason } => self.fault(object, reason),
            StorageError::Failed { ref object, .. } => self.unread(object.clone(), &error),
            StorageError::Unusable { url, reason } => self.unread(url, reason),
        }
    }

    /// The value; an error becomes a finding.
    fn take<T>(&mut self, result: Result<T, StorageError>) -> Option<T> {
        result.map_err(|error| self.add(error)).ok()
    }

    fn join(&mut self, other: Self) {
        self.faults.extend(other.faults);
        self.unread.extend(other.unread);
    }

    /// Whether a fault of this object is among them.
    fn names(&self, object: &str) -> bool {
        self.faults.iter().any(|fault| fault.object == object)
    }
}

/// Looks again at what does not fit: a fault is what two looks after each other find of one object. What cannot be read
/// is tried as often, and then said.
async fn confirmed(mut look: impl AsyncFnMut() -> Findings) -> Findings {
    let (mut before, mut pause) = (Findings::default(), PAUSE);
    for attempt in 1..=LOOKS {
        let mut now = look().await;
        if now.is_empty() {
            return now;
        }
        let (same, new): (Vec<_>, Vec<_>) = now.faults.into_iter().partition(|fault| before.names(&fault.object));
        if attempt == LOOKS {
            let moving =
                |found: Finding| Finding { reason: format!("it changes too fast to tell: {}", found.reason), ..found };
            now.unread.extend(new.into_iter().map(moving));
            return Findings { faults: same, unread: now.unread };
        }
        if !same.is_empty() && now.unread.is_empty() {
            return Findings { faults: same, unread: Vec::new() };
        }
        before = Findings { faults: same.into_iter().chain(new).collect(), unread: Vec::new() };
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
    before
}

/// One store, with the keys of its deployment.
#[derive(Debug)]
pub struct Inspector {
    node: Node,
}

impl Inspector {
    /// The store, as a control plane with these settings would take it.
    ///
    /// # Errors
    /// When the schemas compiled into the program do not parse.
    pub fn new(settings: &ControlPlane, store: Store, signing: SigningKeys) -> Result<Self, StorageError> {
        let (current, previous) = signing.derive(mac::DERIVATION);
        let keys = Arc::new(LogKeys::new(current, previous));
        let random: Arc<dyn Random> = Arc::new(SystemRandom);
        let node = Node {
            log: Log::new(store.clone(), keys),
            settings: Settings::of(settings),
            store,
            clock: Arc::new(SystemClock),
            writer: random.uuid(),
            random,
            metrics: Arc::new(Metrics::new()),
            schemas: schemas().map_err(|e| StorageError::failed("read", "the schemas", e.to_string()))?,
            signing: Arc::new(signing),
            rules: Rules::default(),
        };
        Ok(Self { node })
    }

    /// Makes sure that this is a store of this version, and one whose key this is.
    async fn layout(&self) -> Result<(), StorageError> {
        let store = &self.node.store;
        match layout::find(store, self.node.log.keys()).await? {
            layout::Found::Current => Ok(()),
            layout::Found::Empty => Err(store.unusable("no control plane has begun a store there")),
            // Version 1 had no floor.
            layout::Found::First if !store.list(&Path::from("wal/floor")).await?.is_empty() => {
                Err(StorageError::damaged(layout::NAME, "it is missing, though there is a floor"))
            }
            layout::Found::First => Err(store.unusable(
                "it is of version 1 of the log; a control plane with `log: { bring_over: true }` brings it over",
            )),
        }
    }

    /// The orgs that have a folder, in order.
    async fn orgs(&self) -> Result<Vec<OrgName>, StorageError> {
        let folder = Path::from("orgs");
        let listed = self.node.store.objects().list_with_delimiter(Some(&folder)).await;
        let listed = listed.map_err(|e| StorageError::failed("list", &folder, e))?;
        let mut orgs: Vec<OrgName> =
            listed.common_prefixes.iter().filter_map(|folder| folder.filename()?.parse().ok()).collect();
        orgs.sort_unstable();
        Ok(orgs)
    }
}
