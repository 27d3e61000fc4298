//! Records that wait in memory for the disk, encoded as they will stand in the segment, and those who wait for them.
//!
//! It is guarded by a lock that is held for copying alone, never for a write: so a call can always leave its record,
//! however the disk does. A number that is drawn here is never given back, so a record that is refused, or given up,
//! leaves a hole. `kill -9` takes what is here.

use tokio::sync::oneshot;

use super::NotRecorded;
use super::segment;

/// Where a waiting recorder gets the outcome.
pub(super) type Waiter = oneshot::Sender<Result<(), NotRecorded>>;

/// Sends the outcome to those who wait.
pub(super) fn answer(waiters: Vec<Waiter>, result: Result<(), NotRecorded>) {
    for waiter in waiters {
        // Ignore the error: the receiver was dropped.
        let _ = waiter.send(result);
    }
}

/// The records that wait.
#[derive(Debug)]
pub(super) struct Pending {
    bytes: Vec<u8>,
    records: u64,
    /// The number of the next record.
    next: u64,
    waiters: Vec<Waiter>,
}

/// What was pending and is being written, without the bytes.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) records: u64,
    /// The number after the last that was drawn.
    pub(super) next: u64,
    pub(super) waiters: Vec<Waiter>,
}

impl Pending {
    /// Nothing; the first record gets the number `next`.
    pub(super) fn new(next: u64) -> Self {
        Self { bytes: Vec::new(), records: 0, next, waiters: Vec::new() }
    }

    /// Bytes of the records.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Draws the number of a record.
    pub(super) fn draw_number(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        number
    }

    /// Adds a record under the number that was drawn for it.
    pub(super) fn push(&mut self, number: u64, payload: &[u8], waiter: Option<Waiter>) {
        segment::push_frame(&mut self.bytes, number, payload);
        self.records += 1;
        self.waiters.extend(waiter);
    }

    /// Takes all that is pending, its bytes into `scratch`, whose own are given up; none when there is nothing.
    pub(super) fn take(&mut self, scratch: &mut Vec<u8>) -> Option<Taken> {
        if self.bytes.is_empty() {
            return None;
        }
        scratch.clear();
        std::mem::swap(scratch, &mut self.bytes);
        Some(self.taken())
    }

    /// Puts back, before what has come since, what was taken and could not be written.
    pub(super) fn put_back(&mut self, scratch: &mut Vec<u8>, taken: Taken) {
        scratch.extend_from_slice(&self.bytes);
        std::mem::swap(scratch, &mut self.bytes);
        self.records += taken.records;
        self.waiters.splice(0..0, taken.waiters);
    }

    /// Drops the records; their numbers stay missing.
    pub(super) fn give_up(&mut self) -> Taken {
        self.bytes.clear();
        self.taken()
    }

    fn taken(&mut self) -> Taken {
        let (records, waiters) = (std::mem::take(&mut self.records), std::mem::take(&mut self.waiters));
        Taken { records, next: self.next, waiters }
    }
}
