//! Makes the families: each is registered to be served, and noted so that a push can send it too.

use std::sync::{Mutex, PoisonError};

use opentelemetry::KeyValue;
use prometheus::{
    GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use super::timer::{Instrument, TimerVec};
use crate::telemetry::metrics::Registrar;

/// What a push has to know of the families.
#[derive(Debug, Default)]
pub(super) struct Families {
    pub(super) values: Mutex<Vec<Value>>,
    pub(super) durations: Mutex<Vec<Durations>>,
}

/// A family that is read when a push is due.
#[derive(Debug, Clone)]
pub(super) struct Value {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) counts: bool,
}

/// A family that is recorded as it happens.
#[derive(Debug)]
pub(super) struct Durations {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) bounds: Vec<f64>,
    pub(super) instrument: Instrument,
}

/// Makes and registers metric families.
pub(super) struct Maker<'a> {
    pub(super) registry: &'a Registry,
    pub(super) families: &'a Families,
    /// Labels that every series of the families made next has.
    pub(super) constant: Vec<(&'static str, String)>,
}

impl Maker<'_> {
    fn opts(&self, name: &'static str, help: &'static str, counts: bool) -> Opts {
        self.families.values.lock().unwrap_or_else(PoisonError::into_inner).push(Value { name, help, counts });
        self.labelled(Opts::new(name, help))
    }

    fn labelled(&self, opts: Opts) -> Opts {
        self.constant.iter().fold(opts, |opts, (name, value)| opts.const_label(*name, value))
    }

    fn registrar(&self) -> Registrar<'_> {
        Registrar(self.registry)
    }

    pub(super) fn counter(&self, name: &'static str, help: &'static str) -> IntCounter {
        self.registrar().add(IntCounter::with_opts(self.opts(name, help, true)))
    }

    pub(super) fn counters(&self, name: &'static str, help: &'static str, labels: &[&str]) -> IntCounterVec {
        self.registrar().add(IntCounterVec::new(self.opts(name, help, true), labels))
    }

    pub(super) fn gauge(&self, name: &'static str, help: &'static str) -> IntGauge {
        self.registrar().add(IntGauge::with_opts(self.opts(name, help, false)))
    }

    pub(super) fn gauges(&self, name: &'static str, help: &'static str, labels: &[&str]) -> IntGaugeVec {
        self.registrar().add(IntGaugeVec::new(self.opts(name, help, false), labels))
    }

    pub(super) fn decimals(&self, name: &'static str, help: &'static str, labels: &[&str]) -> GaugeVec {
        self.registrar().add(GaugeVec::new(self.opts(name, help, false), labels))
    }

    /// A family of durations in seconds.
    pub(super) fn timers(&self, name: &'static str, help: &'static str, labels: &[&str], bounds: &[f64]) -> TimerVec {
        let mut opts = HistogramOpts::new(name, help).buckets(bounds.to_vec());
        opts.common_opts = self.labelled(opts.common_opts);
        let served = self.registrar().add(HistogramVec::new(opts, labels));
        let instrument = Instrument::default();
        let noted = Durations { name, help, bounds: bounds.to_vec(), instrument: Instrument::clone(&instrument) };
        self.families.durations.lock().unwrap_or_else(PoisonError::into_inner).push(noted);
        let constant = self.constant.iter().map(|(name, value)| KeyValue::new(*name, value.clone())).collect();
        TimerVec::new(served, instrument, labels, constant)
    }
}
