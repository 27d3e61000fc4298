//! A histogram of durations that is served to Prometheus and, once a push is set up, recorded for the collector too.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use opentelemetry::KeyValue;
use prometheus::{Histogram, HistogramVec};

/// The collector's instrument of a family; empty until metrics are pushed.
pub(super) type Instrument = Arc<OnceLock<opentelemetry::metrics::Histogram<f64>>>;

/// One series of a family of durations.
#[derive(Debug, Clone)]
pub struct Timer {
    served: Histogram,
    pushed: Instrument,
    attributes: Arc<[KeyValue]>,
}

impl Timer {
    /// Something took this long.
    pub fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        self.served.observe(seconds);
        if let Some(instrument) = self.pushed.get() {
            instrument.record(seconds, &self.attributes);
        }
    }
}

/// A family of durations.
#[derive(Debug)]
pub(super) struct TimerVec {
    served: HistogramVec,
    pushed: Instrument,
    labels: Vec<String>,
    constant: Vec<KeyValue>,
}

impl TimerVec {
    pub(super) fn new(served: HistogramVec, pushed: Instrument, labels: &[&str], constant: Vec<KeyValue>) -> Self {
        Self { served, pushed, labels: labels.iter().map(|label| (*label).to_owned()).collect(), constant }
    }

    /// The series of these label values.
    pub(super) fn with(&self, values: &[&str]) -> Timer {
        let own = self.labels.iter().zip(values).map(|(name, value)| KeyValue::new(name.clone(), (*value).to_owned()));
        Timer {
            served: self.served.with_label_values(values),
            pushed: Arc::clone(&self.pushed),
            attributes: self.constant.iter().cloned().chain(own).collect(),
        }
    }
}
