//! Going through the entries in order: one thread reads and decodes, others hash, and the caller's puts one entry after
//! the other into the chain and the tree.
//!
//! Between the threads there are short queues, so that a fast one waits for a slow one and memory stays bounded.

use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

use arrow::record_batch::RecordBatch;

use super::chain::Chain;
use super::checkpoints::{Kept, Newest};
use super::coverage::Coverage;
use super::rows::{self, Checked, Rows};
use super::source::Source;
use super::{Fault, Kind, Progress, Sound, VerifyError};
use crate::audit::segment::SegmentName;

/// Batches that may be on their way at once, beside one a worker.
const QUEUE: usize = 6;

/// What a reading thread comes upon, in order.
pub(super) enum Step<B> {
    /// Entries of this segment come now.
    Begin(SegmentName, u64),
    /// Some of them.
    Batch(B),
    /// The segment is at its end.
    End(SegmentName),
}

/// Verifies what lies under a checkpoint whose signature has been checked.
pub(super) fn run(
    source: &dyn Source,
    head: Newest,
    older: Vec<Kept>,
    remembered: Vec<String>,
    workers: Option<NonZeroUsize>,
    progress: &Progress<'_>,
) -> Result<Sound, VerifyError> {
    let coverage = Coverage::find(source, 0)?;
    let origin = head.checkpoint.origin.clone();
    let mut chain = Chain::new(source, head, (older, remembered), &coverage, progress);
    match workers {
        None => {
            let mut reading = Reading { source, origin: &origin, coverage };
            reading.run(&mut |step| match step {
                Step::Begin(name, total) => chain.begin(name, total),
                Step::Batch(batch) => chain.batch(rows::check(&batch, &origin)),
                Step::End(name) => chain.end(name),
            })?;
        }
        Some(workers) => pipeline(source, &origin, coverage, workers, &mut chain)?,
    }
    chain.finish()
}

type Hashed = Step<Receiver<Checked>>;
type Job = (RecordBatch, SyncSender<Checked>);

fn pipeline(
    source: &dyn Source,
    origin: &str,
    coverage: Coverage,
    workers: NonZeroUsize,
    chain: &mut Chain<'_>,
) -> Result<(), VerifyError> {
    let queue = QUEUE + workers.get();
    let (jobs, todo) = sync_channel::<Job>(queue);
    let (steps, order) = sync_channel::<Result<Hashed, VerifyError>>(queue);
    let todo = Mutex::new(todo);
    thread::scope(|scope| {
        for _ in 0..workers.get() {
            scope.spawn(|| {
                loop {
                    let job = todo.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok((batch, answer)) = job else { return };
                    // The receiver was dropped: it has found a fault.
                    let _ = answer.send(rows::check(&batch, origin));
                }
            });
        }
        scope.spawn(move || {
            let mut reading = Reading { source, origin, coverage };
            let outcome = reading.run(&mut |step| {
                let step = match step {
                    Step::Begin(name, total) => Step::Begin(name, total),
                    Step::End(name) => Step::End(name),
                    Step::Batch(batch) => {
                        let (answer, checked) = sync_channel(1);
                        jobs.send((batch, answer)).map_err(|_| ended())?;
                        Step::Batch(checked)
                    }
                };
                steps.send(Ok(step)).map_err(|_| ended())
            });
            if let Err(error) = outcome {
                let _ = steps.send(Err(error));
            }
        });
        // `order` is dropped at a fault, which ends the reading thread, which ends the workers.
        for step in order {
            match step? {
                Step::Begin(name, total) => chain.begin(name, total)?,
                Step::Batch(checked) => chain.batch(checked.recv().map_err(|_| ended())?)?,
                Step::End(name) => chain.end(name)?,
            }
        }
        Ok(())
    })
}

fn ended() -> VerifyError {
    super::SourceError::new("segments", "a thread of the verifier ended early").into()
}

/// Reads segments one after the other.
struct Reading<'a> {
    source: &'a dyn Source,
    origin: &'a str,
    coverage: Coverage,
}

impl Reading<'_> {
    /// Hands all that is read to `take`. Leftovers come last, when their entries are known from the wider ones.
    fn run(&mut self, take: &mut dyn FnMut(Step<RecordBatch>) -> Result<(), VerifyError>) -> Result<(), VerifyError> {
        let mut next = 0;
        while let Some(name) = self.coverage.wide.iter().find(|name| name.last >= next).copied() {
            if self.segment(name, take)? {
                next = name.last + 1;
                continue;
            }
            // It has been merged since it was listed, or removed with its age, or it was never there.
            let found = Coverage::find(self.source, next)?;
            if found.wide.contains(&name) {
                return Err(missing(name).into());
            }
            if !found.wide.iter().any(|wide| wide.holds(name)) {
                let why = "it went away while the ledger was read; try again";
                return Err(super::SourceError::new(rows::path(name), why).into());
            }
            self.coverage.wide = found.wide;
        }
        for name in std::mem::take(&mut self.coverage.within) {
            // A leftover that has gone meanwhile claims nothing.
            self.segment(name, take)?;
        }
        Ok(())
    }

    /// Reads a segment; whether it is there.
    fn segment(
        &self,
        name: SegmentName,
        take: &mut dyn FnMut(Step<RecordBatch>) -> Result<(), VerifyError>,
    ) -> Result<bool, VerifyError> {
        let Some(blob) = self.source.open(&rows::path(name))? else { return Ok(false) };
        let mut rows = guarded(name, || rows::open(name, blob, self.origin))?;
        take(Step::Begin(name, rows.total))?;
        while let Some(batch) = guarded(name, || rows.next_batch().transpose())? {
            take(Step::Batch(batch))?;
        }
        take(Step::End(name))?;
        guarded(name, || rows.judge())?;
        Ok(true)
    }
}

/// Decodes; a decoder that a damaged file makes panic is a damaged file.
pub(super) fn guarded<T>(name: SegmentName, decode: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
    let unreadable = |_| Fault {
        kind: Kind::Unreadable,
        seq: Some(name.first),
        file: rows::path(name),
        why: "the decoder gave up on it".to_owned(),
    };
    catch_unwind(AssertUnwindSafe(decode)).unwrap_or_else(|panic| Err(unreadable(panic)))
}

fn missing(name: SegmentName) -> Fault {
    let why = "it is listed, and there is no such file".to_owned();
    Fault { kind: Kind::Missing, seq: Some(name.first), file: rows::path(name), why }
}

/// Opens a segment again, to find out about a row that is not in its place.
pub(super) fn look_again(
    source: &dyn Source,
    origin: &str,
    name: SegmentName,
    wanted: u64,
) -> Result<(u64, bool), VerifyError> {
    let Some(blob) = source.open(&rows::path(name))? else { return Ok((0, false)) };
    let mut rows: Rows = guarded(name, || rows::open(name, blob, origin))?;
    Ok(guarded(name, || rows::find(&mut rows, wanted))?)
}
