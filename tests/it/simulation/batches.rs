//! The batches that clients make, how each is named, and the lanes of emitters: what was sent is known here, whatever
//! the nodes answer.

use mcpg::ingest::{BatchId, Fingerprint, IdempotencyKey, Lane, RowKind};
use rand::RngExt;
use rand::rngs::StdRng;
use uuid::Uuid;

use super::determinism::mix;

/// How a client names a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Naming {
    /// By an idempotency key.
    Key,
    /// By its number in a lane, and the number that was answered before.
    Sequence { lane: usize, number: u64, after: u64 },
    /// Not at all: it is sent once.
    Nameless,
}

/// A batch as it is sent, each time the same.
#[derive(Debug, Clone)]
pub(super) struct Batch {
    pub(super) number: u64,
    pub(super) org: String,
    pub(super) kind: RowKind,
    pub(super) rows: usize,
    pub(super) naming: Naming,
}

impl Batch {
    /// Its identity on the wire.
    pub(super) fn id(&self) -> Option<BatchId> {
        let body = Fingerprint(mix(self.number));
        match self.naming {
            Naming::Key => {
                let key = IdempotencyKey::new(self.kind, format!("batch-{}", self.number).as_bytes()).unwrap();
                Some(BatchId::Key { key, body })
            }
            Naming::Sequence { lane, number, after } => {
                let lane = Lane { emitter: Uuid::from_u128(0xe1 << 64), lane: lane as u16 };
                Some(BatchId::Sequence { lane, number, after, body })
            }
            Naming::Nameless => None,
        }
    }
}

/// A lane of an emitter, which has one batch under way at a time.
#[derive(Debug)]
struct Emitter {
    org: String,
    kind: RowKind,
    number: u64,
    after: u64,
    /// The batch that is not answered yet, and whether it is under way.
    open: Option<(u64, bool)>,
}

/// All batches of a world, in the order in which they were made.
#[derive(Debug, Default)]
pub(super) struct Batches {
    /// The first batch's number.
    from: u64,
    made: Vec<Batch>,
    emitters: Vec<Emitter>,
}

impl Batches {
    /// Begins to count batches at a number, so that two worlds make none of the same.
    pub(super) fn skip(&mut self, from: u64) {
        self.from = from;
    }

    pub(super) fn all(&self) -> &[Batch] {
        &self.made
    }

    /// Makes a batch that has never been sent.
    pub(super) fn make(&mut self, org: &str, kind: RowKind, rows: usize, naming: Naming) -> Batch {
        let batch = Batch { number: self.from + self.made.len() as u64, org: org.to_owned(), kind, rows, naming };
        self.made.push(batch.clone());
        batch
    }

    /// Opens lanes, each for one of these orgs and one kind of rows.
    pub(super) fn open_lanes(&mut self, count: usize, orgs: &[String], random: &mut StdRng) {
        for _ in 0..count {
            let org = orgs[random.random_range(0..orgs.len())].clone();
            let kind = if random.random_bool(0.3) { RowKind::Event } else { RowKind::Sample };
            self.emitters.push(Emitter { org, kind, number: 0, after: 0, open: None });
        }
    }

    /// The batch that a lane is to send next: the one that is not answered, or a new one. `None` while one is under
    /// way.
    pub(super) fn next_of(&mut self, lane: usize, rows: usize) -> Option<Batch> {
        let emitter = self.emitters.get_mut(lane)?;
        match &mut emitter.open {
            Some((_, true)) => None,
            Some((number, under_way)) => {
                *under_way = true;
                let number = *number;
                Some(self.made[number as usize].clone())
            }
            None => {
                emitter.number += 1;
                let naming = Naming::Sequence { lane, number: emitter.number, after: emitter.after };
                let (org, kind) = (emitter.org.clone(), emitter.kind);
                let number = self.made.len() as u64;
                let batch = Batch { number, org, kind, rows, naming };
                self.made.push(batch.clone());
                self.emitters[lane].open = Some((number, true));
                Some(batch)
            }
        }
    }

    /// A batch was answered; one that was not acknowledged is sent again under the same number.
    pub(super) fn answered(&mut self, batch: &Batch, acknowledged: bool) {
        if let Naming::Sequence { lane, number, .. } = batch.naming {
            let emitter = &mut self.emitters[lane];
            if emitter.open.is_some_and(|(open, _)| open == batch.number) {
                emitter.open = if acknowledged { None } else { Some((batch.number, false)) };
                emitter.after = if acknowledged { number } else { emitter.after };
            }
        }
    }

    /// A batch found no node to take it: as if the connection had been refused.
    pub(super) fn not_sent(&mut self, batch: &Batch) {
        if let Naming::Sequence { lane, .. } = batch.naming {
            self.emitters[lane].open = Some((batch.number, false));
        }
    }
}
