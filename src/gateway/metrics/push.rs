//! The gateway's own metrics sent to a collector over OTLP, beside being served.
//!
//! Counters and gauges are read from the registry when a push is due, histograms are recorded as they happen. A push
//! that fails is the exporter's to log; the next one carries the same cumulative figures, so nothing is lost by it. The
//! push runs on a thread of its own.

use std::future::{Future, poll_fn};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{AsyncInstrument, Meter, MeterProvider};
use opentelemetry_otlp::MetricExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider, Temporality};
use prometheus::Registry;
use prometheus::proto::{Metric, MetricFamily, MetricType};
use tokio::runtime::Handle;

use super::GatewayMetrics;
use super::make::Value;
use crate::config::{MetricsPush, OtlpProtocol};
use crate::telemetry::collector::{self, CollectorError, Target};

/// The name of the meter.
const METER: &str = "mcpg-gateway";

/// A push while it runs.
#[derive(Debug)]
pub struct Push {
    provider: SdkMeterProvider,
}

impl Push {
    /// Starts to push the `metrics` of the gateway `instance`. Within a Tokio runtime, on which they are sent.
    ///
    /// # Errors
    /// When the file of authorities is of no use, or the exporter refuses the settings.
    pub fn start(settings: &MetricsPush, instance: &str, metrics: &GatewayMetrics) -> Result<Self, CollectorError> {
        let exporter = OnRuntime { exporter: Arc::new(exporter(settings)?), runtime: Handle::current() };
        let resource = Resource::builder()
            .with_service_name(METER)
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_attribute(KeyValue::new("service.instance.id", instance.to_owned()))
            .build();
        let reader = PeriodicReader::builder(exporter).with_interval(settings.interval.as_duration()).build();
        let provider = SdkMeterProvider::builder().with_reader(reader).with_resource(resource).build();
        let meter = provider.meter(METER);
        for family in metrics.families.durations.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let instrument = meter
                .f64_histogram(family.name)
                .with_description(family.help)
                .with_unit("s")
                .with_boundaries(family.bounds.clone())
                .build();
            // Set once: a gateway has one push.
            let _ = family.instrument.set(instrument);
        }
        for family in metrics.families.values.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            observe(&meter, &metrics.registry, family);
        }
        Ok(Self { provider })
    }

    /// Pushes once more and ends, within a few seconds.
    pub async fn shutdown(self) {
        let ended =
            tokio::task::spawn_blocking(move || self.provider.shutdown_with_timeout(collector::SEND_TIMEOUT / 2)).await;
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the last metrics were not pushed"),
            Err(error) => tracing::warn!(%error, "the last metrics were not pushed"),
        }
    }
}

/// Registers an instrument for a counter or gauge, which is read from the registry when it is asked for.
fn observe(meter: &Meter, registry: &Registry, family: &Value) {
    let (registry, name) = (registry.clone(), family.name);
    let callback = move |instrument: &dyn AsyncInstrument<f64>| {
        registry.gather().iter().filter(|family| family.name() == name).for_each(|family| tell(family, instrument));
    };
    if family.counts {
        meter.f64_observable_counter(name).with_description(family.help).with_callback(callback).build();
    } else {
        meter.f64_observable_gauge(name).with_description(family.help).with_callback(callback).build();
    }
}

fn tell(family: &MetricFamily, instrument: &dyn AsyncInstrument<f64>) {
    for metric in family.get_metric() {
        let value = match family.get_field_type() {
            MetricType::COUNTER => metric.get_counter().get_value(),
            _ => metric.get_gauge().get_value(),
        };
        instrument.observe(value, &attributes(metric));
    }
}

fn attributes(metric: &Metric) -> Vec<KeyValue> {
    metric.get_label().iter().map(|label| KeyValue::new(label.name().to_owned(), label.value().to_owned())).collect()
}

fn exporter(settings: &MetricsPush) -> Result<MetricExporter, CollectorError> {
    let MetricsPush { endpoint, headers, ca_file, .. } = settings;
    let to = Target { endpoint, headers, ca_file: ca_file.as_deref() };
    let exporter = MetricExporter::builder().with_temporality(Temporality::Cumulative);
    Ok(match settings.protocol {
        OtlpProtocol::Grpc => collector::by_grpc(exporter.with_tonic(), to)?.build()?,
        OtlpProtocol::Http => collector::by_http(exporter.with_http(), "/v1/metrics", to)?.build()?,
    })
}

/// Sends on the Tokio runtime what the SDK's own thread, which has none, hands over.
#[derive(Debug)]
struct OnRuntime {
    exporter: Arc<MetricExporter>,
    runtime: Handle,
}

impl PushMetricExporter for OnRuntime {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        let mut export = Box::pin(self.exporter.export(metrics));
        poll_fn(|context| {
            let _entered = self.runtime.enter();
            export.as_mut().poll(context)
        })
        .await
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn temporality(&self) -> Temporality {
        self.exporter.temporality()
    }
}
