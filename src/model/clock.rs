//! Time as a component: what needs the wall clock is handed one, so that tests can set it.

use std::fmt::Debug;

use chrono::{DateTime, Utc};

/// The wall clock, injected at the top of the program.
pub trait Clock: Debug + Send + Sync + 'static {
    /// The time now, in UTC.
    fn now(&self) -> DateTime<Utc>;
}

/// The machine's own wall clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
    fn now(&self) -> DateTime<Utc> {
        Utc::now()
    }
}

/// Microseconds since the Unix epoch: how every timestamp column holds its time.
pub fn micros(time: DateTime<Utc>) -> i64 {
    time.timestamp_micros()
}
