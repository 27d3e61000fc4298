//! Families of the process itself, which the gateway has too. They are read when they are rendered.

use std::sync::{Mutex, PoisonError};

use prometheus::{Counter, Gauge, IntGauge};

use super::registrar::Registrar;
use crate::telemetry::process;

/// The process, under the names that every Prometheus client library uses.
#[derive(Debug)]
pub struct Process {
    /// When the process started, in seconds since the Unix epoch.
    pub start_time_seconds: Gauge,
    resident_bytes: IntGauge,
    open_files: IntGauge,
    cpu_seconds: Counter,
    /// Held from a look at the counter to its increment: of two scrapes at once each would add what was spent.
    reading: Mutex<()>,
}

impl Process {
    /// The families, not read yet.
    pub(crate) fn new(r: &Registrar<'_>) -> Self {
        Self {
            start_time_seconds: r
                .decimal("process_start_time_seconds", "Start time of the process since the Unix epoch in seconds"),
            resident_bytes: r.gauge("process_resident_memory_bytes", "Resident memory size in bytes"),
            open_files: r.gauge("process_open_fds", "Number of open file descriptors"),
            cpu_seconds: r
                .add(Counter::new("process_cpu_seconds_total", "Total user and system CPU time spent in seconds")),
            reading: Mutex::new(()),
        }
    }

    /// Reads the process's figures as they are now.
    pub(crate) fn read(&self) {
        let _reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(figures) = process::figures() {
            self.resident_bytes.set(figures.resident_bytes);
            self.open_files.set(figures.open_files);
            self.cpu_seconds.inc_by((figures.cpu_seconds - self.cpu_seconds.get()).max(0.0));
        }
    }
}
