//! Who ran which query: an access record of each, a log line of the slow ones, and an entry of the ledger where
//! `audit.queries` asks for it.
//!
//! A query's text may hold what it looks for, a caller's name or an address. So what is recorded is its digest, by
//! which equal ones are found, and of a slow one its shape, in which every literal is a `?`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;

use super::who::Who;
use crate::model::OrgName;
use crate::plane::{Plane, SystemEvent};
use crate::query::shape;

/// Hex digits of a digest: as many as tell a million texts apart.
const DIGEST_DIGITS: usize = 16;

/// What is known of a query at its end.
#[derive(Debug, Default)]
pub(super) struct Record {
    pub(super) org: Option<OrgName>,
    pub(super) who: Option<Who>,
    pub(super) from: Option<SocketAddr>,
    pub(super) request_id: Option<String>,
    pub(super) text: String,
    /// Rows handed over so far.
    pub(super) rows: Option<Arc<AtomicUsize>>,
    /// Bytes sent.
    pub(super) bytes: u64,
}

impl Record {
    /// The rows of the answer.
    pub(super) fn row_count(&self) -> usize {
        self.rows.as_ref().map_or(0, |rows| rows.load(Ordering::Relaxed))
    }
}

/// Where queries are recorded.
#[derive(Debug)]
pub(super) struct Records {
    plane: Arc<Plane>,
    slow: Duration,
    in_ledger: bool,
}

impl Records {
    /// Records to the log, those slower than `slow` with their shape, and to the ledger if asked.
    pub(super) fn new(plane: Arc<Plane>, slow: Duration, in_ledger: bool) -> Self {
        Self { plane, slow, in_ledger }
    }

    /// Records a query that has ended.
    pub(super) fn ended(&self, record: Record, outcome: &'static str, took: Duration) {
        let Some(org) = record.org.clone() else { return };
        let rows = record.row_count();
        let Record { who, from, request_id, text, bytes, .. } = record;
        let request_id = request_id.unwrap_or_default();
        let actor = who.as_ref().map_or("anonymous", Who::actor).to_owned();
        let token = who.as_ref().and_then(Who::label).unwrap_or_default().to_owned();
        let from = from.map(|from| from.ip().to_string()).unwrap_or_default();
        let digest: String = blake3::hash(text.as_bytes()).to_hex().chars().take(DIGEST_DIGITS).collect();
        let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        tracing::info!(target: "mcpg::access", %org, token, digest, outcome, rows, bytes, took_ms, from, request_id, "query");
        if took >= self.slow {
            let shape = shape(&text);
            tracing::warn!(target: "mcpg::slow_query", %org, token, digest, outcome, rows, bytes, took_ms, request_id, shape, "slow query");
        }
        if !self.in_ledger {
            return;
        }
        let event = SystemEvent::new(actor, "operator.query")
            .target("sql")
            .detail(json!({ "digest": digest, "outcome": outcome, "rows": rows, "bytes": bytes, "took_ms": took_ms, "from": from }));
        let plane = Arc::clone(&self.plane);
        tokio::spawn(async move {
            if let Err(error) = plane.record(&org, vec![event]).await {
                tracing::error!(%error, %org, digest, "a query could not be put into the ledger");
            }
        });
    }
}
