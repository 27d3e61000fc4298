//! The audit events of a gateway that writes them to a file.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Gateway, GatewayConfig, eventually};

/// The file, in the gateway's folder.
const FILE: &str = "audit.ndjson";

/// How long an event may take until it is in the file.
const PATIENCE: Duration = Duration::from_secs(60);

impl GatewayConfig {
    /// Writes audit events to a file, in place of a control plane.
    pub(crate) fn audit_file(self) -> Self {
        self.with(json!({ "observability": { "audit": { "file": FILE } } }))
    }
}

impl Gateway {
    /// The audit events so far, whose action starts with `prefix`.
    pub(crate) fn audit(&self, prefix: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path(FILE)).unwrap_or_default();
        // The last line may be one that is being written.
        let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        events.filter(|event| event["action"].as_str().unwrap().starts_with(prefix)).collect()
    }

    /// The audit events of that kind, once there are so many.
    pub(crate) async fn audited(&self, prefix: &str, enough: usize) -> Vec<Value> {
        eventually(&format!("{enough} events {prefix}*"), PATIENCE, async || {
            let events = self.audit(prefix);
            (events.len() >= enough).then_some(events)
        })
        .await
    }
}
