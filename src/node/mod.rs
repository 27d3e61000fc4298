//! What the parts of a control-plane node share: its store and log, clock, randomness, metrics and settings; the error
//! that it answers with; whether an org is sound.

mod error;
mod health;
mod settings;

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use uuid::Uuid;

pub use error::PlaneError;
pub use health::Health;
pub use settings::{Retention, Settings, TableRetention};

use crate::audit::SigningKeys;
use crate::log::{Log, Rules, SectionKind};
use crate::model::schema::Schemas;
use crate::model::{Clock, Random};
use crate::storage::Store;
use crate::telemetry::metrics::Metrics;

/// The shared parts of a control-plane node.
#[derive(Debug)]
#[expect(missing_docs, reason = "each is what its type says")]
pub struct Node {
    pub store: Store,
    pub log: Log,
    pub clock: Arc<dyn Clock>,
    pub random: Arc<dyn Random>,
    pub metrics: Arc<Metrics>,
    pub settings: Settings,
    pub schemas: &'static Schemas,
    /// The name of this process in the objects that it writes.
    pub writer: Uuid,
    pub signing: Arc<SigningKeys>,
    pub rules: Rules,
}

impl Node {
    /// The time now, in µs since the epoch, by this node's clock.
    pub fn now(&self) -> i64 {
        crate::model::micros(self.clock.now())
    }

    /// The schema of a section's rows.
    pub fn schema_of(&self, kind: SectionKind) -> &'static SchemaRef {
        match kind {
            SectionKind::Samples => &self.schemas.tool_invocations,
            SectionKind::Events => &self.schemas.audit_event,
            SectionKind::Payloads => &self.schemas.payload_rows,
        }
    }

    /// The name of this node in what it does itself: the first eight digits of [`Node::writer`].
    pub fn name(&self) -> String {
        self.writer.simple().to_string().chars().take(8).collect()
    }
}
