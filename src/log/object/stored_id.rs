//! The identity of a batch as a log object's header holds it.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ingest::{BatchId, Fingerprint, IdempotencyKey, Lane};

/// A batch's identity as a header holds it: `k:<key>:<body>` or `s:<emitter>/<lane>:<number>:<body>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StoredId(pub BatchId);

impl From<StoredId> for String {
    fn from(StoredId(id): StoredId) -> Self {
        match id {
            BatchId::Key { key, body } => format!("k:{key}:{:016x}", body.0),
            BatchId::Sequence { lane, number, after, body } => {
                format!("s:{}/{}:{number}:{after}:{:016x}", lane.emitter.simple(), lane.lane, body.0)
            }
        }
    }
}

impl TryFrom<String> for StoredId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let fault = || format!("`{text}` is no identity of a batch");
        let body = |hex: &str| u64::from_str_radix(hex, 16).ok().map(Fingerprint);
        let parts: Vec<_> = text.split(':').collect();
        let id = match *parts.as_slice() {
            ["k", key, hex] => {
                IdempotencyKey::from_str(key).ok().zip(body(hex)).map(|(key, body)| BatchId::Key { key, body })
            }
            ["s", lane, number, after, hex] => lane.split_once('/').and_then(|(emitter, lane)| {
                let lane = Lane { emitter: emitter.parse().ok()?, lane: lane.parse().ok()? };
                Some(BatchId::Sequence {
                    lane,
                    number: number.parse().ok()?,
                    after: after.parse().ok()?,
                    body: body(hex)?,
                })
            }),
            _ => None,
        };
        id.map(Self).ok_or_else(fault)
    }
}
