//! What can go wrong with an operation of the store, and which operations it befalls.

use std::io;
use std::time::Duration;

use object_store::path::Path;
use object_store::{Error, PutMode};

use super::determinism::{hash, mix};

/// What is asked of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Operation {
    Put,
    Create,
    Update,
    Get,
    List,
    Delete,
}

impl Operation {
    pub(super) fn of_put(mode: &PutMode) -> Self {
        match mode {
            PutMode::Overwrite => Self::Put,
            PutMode::Create => Self::Create,
            PutMode::Update(_) => Self::Update,
        }
    }

    fn is_write(self) -> bool {
        !matches!(self, Self::Get | Self::List)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Create => "create",
            Self::Update => "update",
            Self::Get => "get",
            Self::List => "list",
            Self::Delete => "delete",
        }
    }
}

/// What the error of a failed operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// `EIO` of a folder.
    Eio,
    /// `ESTALE` of a folder over NFS.
    Estale,
    /// No answer in time.
    Timeout,
    /// The connection is lost.
    Reset,
    /// 503 of S3.
    Busy,
    /// 403 of S3, as when credentials are being renewed.
    Denied,
}

impl Cause {
    pub(super) const ALL: [Self; 6] = [Self::Eio, Self::Estale, Self::Timeout, Self::Reset, Self::Busy, Self::Denied];

    pub(super) fn error(self, path: &Path) -> Error {
        let source: Box<dyn std::error::Error + Send + Sync> = match self {
            Self::Eio => io::Error::from_raw_os_error(5).into(),
            Self::Estale => io::Error::from_raw_os_error(116).into(),
            Self::Timeout => io::Error::from(io::ErrorKind::TimedOut).into(),
            Self::Reset => io::Error::from(io::ErrorKind::ConnectionReset).into(),
            Self::Busy => "503 Service Unavailable: SlowDown".into(),
            Self::Denied => return Error::PermissionDenied { path: path.to_string(), source: "403 Forbidden".into() },
        };
        Error::Generic { store: "simulated", source }
    }
}

/// What goes wrong with one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// It is not done, and answered with an error.
    Refused(Cause),
    /// It is done, and answered with an error.
    AnswerLost(Cause),
    /// It is answered with an error after the first time, and done after the second all the same.
    Late(Cause, Duration, Duration),
    /// It is not done, and answered "exists", or "another version".
    NotDoneExists,
    /// It is done, and answered so.
    DoneExists,
    /// Its sender stops for so long before it is done.
    Slow(Duration),
    /// Its sender stops for so long after it is done, before it has the answer.
    Stuck(Duration),
    /// What is read ends in the middle, without an error.
    Short,
    /// What is read ends in the middle, with one.
    Broken(Cause),
    /// The process is killed before it.
    DiesBefore,
    /// The process is killed when it is done.
    DiesAfter,
}

impl Fault {
    /// Whether the fault can befall an operation of this kind.
    pub(super) fn fits(self, operation: Operation) -> bool {
        match self {
            Self::NotDoneExists | Self::DoneExists => matches!(operation, Operation::Create | Operation::Update),
            Self::Short => operation == Operation::Get,
            Self::Broken(_) => !operation.is_write(),
            Self::AnswerLost(_) | Self::Late(..) => operation.is_write(),
            _ => true,
        }
    }

    /// One of those that fit, drawn from `draw`, with pauses up to `longest`.
    fn any(draw: u64, operation: Operation, longest: Duration) -> Self {
        let (kind, cause, length) = (draw % 64, mix(draw ^ 1), mix(draw ^ 2));
        let cause = Cause::ALL[cause as usize % Cause::ALL.len()];
        // As often of the order of milliseconds as of seconds, minutes, hours.
        let magnitude = (longest.as_millis() as f64).ln() * (length % 1_000) as f64 / 1_000.0;
        let pause = Duration::from_millis(magnitude.exp() as u64);
        match (operation.is_write(), kind) {
            (true, 0..8) => Self::Refused(cause),
            (true, 8..20) => Self::AnswerLost(cause),
            (true, 20..34) => Self::Late(cause, pause.min(Duration::from_secs(10)), pause),
            (true, 34..40) if Self::DoneExists.fits(operation) => Self::DoneExists,
            (true, 40..46) if Self::DoneExists.fits(operation) => Self::NotDoneExists,
            (true, 34..50) => Self::Slow(pause),
            (false, 0..16) => Self::Refused(cause),
            (false, 16..24) if Self::Short.fits(operation) => Self::Short,
            (false, 16..32) => Self::Broken(cause),
            (false, 32..46) => Self::Slow(pause),
            (_, 62) => Self::DiesBefore,
            (_, 63) => Self::DiesAfter,
            _ => Self::Stuck(pause),
        }
    }
}

/// An operation as a plan of faults sees it.
#[derive(Debug)]
pub(super) struct Asked<'a> {
    /// The node, and which of its processes.
    pub(super) node: usize,
    pub(super) process: u64,
    pub(super) operation: Operation,
    pub(super) path: &'a Path,
    /// How many operations of this process came before it.
    pub(super) number: u64,
    /// How often this process has asked the same of this path before.
    pub(super) again: u64,
}

impl Asked<'_> {
    /// A draw that follows from the seed and from what the operation is, but not from what other operations there are.
    pub(super) fn draw(&self, seed: u64, what: &str) -> u64 {
        let numbers = [self.node as u64, self.process, self.again].map(u64::to_le_bytes);
        let name = self.operation.name();
        hash(seed, &[&what, &numbers.concat(), &name, &self.path.as_ref()])
    }
}

/// One fault of one operation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Single {
    pub(super) node: usize,
    /// It befalls the first operation that it fits, of this node's first process, from this number on.
    pub(super) from: u64,
    pub(super) fault: Fault,
}

impl Single {
    /// Every kind of fault, with times that are long beside an interval between flushes.
    pub(super) fn kinds(flush: Duration) -> [Fault; 13] {
        [
            Fault::Refused(Cause::Eio),
            Fault::Refused(Cause::Busy),
            Fault::AnswerLost(Cause::Reset),
            Fault::Late(Cause::Timeout, Duration::from_secs(5), 40 * flush),
            Fault::Late(Cause::Reset, Duration::from_millis(5), 400 * flush),
            Fault::NotDoneExists,
            Fault::DoneExists,
            Fault::Slow(100 * flush),
            Fault::Stuck(100 * flush),
            Fault::Short,
            Fault::Broken(Cause::Estale),
            Fault::DiesBefore,
            Fault::DiesAfter,
        ]
    }
}

/// Which operations something goes wrong with.
#[derive(Debug, Clone, Default)]
pub(super) enum Weather {
    /// None.
    #[default]
    Fair,
    /// These alone.
    At(Vec<Single>),
    /// Whatever a node asks of a path that begins so takes so long.
    Slow { node: usize, path: &'static str, pause: Duration },
    /// All that would change something on a path that begins so is refused.
    Sick(&'static str),
    /// One in so many, at random; a fault in four is followed by a second one at once. Pauses take up to so long.
    /// Nothing goes wrong with what is on a path that holds one of these texts.
    Foul { one_in: u64, longest: Duration, spared: &'static [&'static str] },
}

/// What is kept to find the faults of a process.
#[derive(Debug, Default)]
pub(super) struct Luck {
    pair: bool,
    had: Vec<usize>,
}

impl Weather {
    pub(super) fn fault(&self, seed: u64, asked: &Asked<'_>, luck: &mut Luck) -> Option<Fault> {
        let fault = match self {
            Self::Fair => None,
            Self::At(singles) => {
                let befalls = |single: &Single| {
                    let is_asked = asked.process == 0 && asked.node == single.node && asked.number >= single.from;
                    is_asked && single.fault.fits(asked.operation)
                };
                let at = (0..singles.len()).find(|at| !luck.had.contains(at) && befalls(&singles[*at]));
                luck.had.extend(at);
                at.map(|at| singles[at].fault)
            }
            Self::Slow { node, path, pause } => {
                let is_slow = asked.node == *node && asked.path.as_ref().starts_with(path);
                is_slow.then_some(Fault::Slow(*pause))
            }
            Self::Sick(path) => {
                let is_sick = asked.operation.is_write() && asked.path.as_ref().starts_with(path);
                is_sick.then_some(Fault::Refused(Cause::Denied))
            }
            Self::Foul { one_in, longest, spared } => {
                let draw = asked.draw(seed, "fault");
                let hit = std::mem::take(&mut luck.pair) || draw.is_multiple_of(*one_in);
                luck.pair = hit && mix(draw).is_multiple_of(4);
                let is_spared = spared.iter().any(|text| asked.path.as_ref().contains(text));
                (hit && !is_spared).then(|| Fault::any(mix(draw ^ 3), asked.operation, *longest))
            }
        };
        fault.filter(|fault| fault.fits(asked.operation))
    }
}
