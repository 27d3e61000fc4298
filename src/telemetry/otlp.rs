//! Spans over OTLP, the OpenTelemetry protocol, by gRPC or HTTP.
//!
//! Spans wait in a queue bounded in number and bytes, and are sent in batches by a thread of their own, each of fewer
//! bytes than a collector takes: a caller's `tracestate` is up to 16 KiB, and is in every span. When the queue is full,
//! or the collector does not take a batch, spans are dropped and counted ([`SpanCounts`]), and what they describe goes
//! on: ending a span takes the same few atomic operations whether the collector is there, slow, or away.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry::trace::SpanContext;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider, Span, SpanData, SpanExporter, SpanProcessor,
};
use tokio::runtime::Handle;
use url::Url;

use super::collector::{self, CollectorError, Target};
use crate::config::{Otlp, OtlpProtocol};

/// How many spans may wait.
const QUEUE: usize = 8_192;

/// How many bytes of spans may wait, and are sent at once: collectors take 4 MiB over gRPC unless they are set
/// otherwise.
const QUEUE_BYTES: usize = 32 << 20;
const BATCH_BYTES: usize = 1 << 20;

/// What a span takes beside its texts.
const SPAN_BYTES: usize = 256;

/// How many spans are sent at once, and how long one waits for others at most.
const BATCH: usize = 512;
const LINGER: Duration = Duration::from_secs(1);

/// How long the last spans may take to send when the program stops.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// What became of the spans that were to be sent.
#[derive(Debug, Default)]
pub struct SpanCounts {
    waiting: AtomicUsize,
    waiting_bytes: AtomicUsize,
    sent: AtomicU64,
    queue_full: AtomicU64,
    not_taken: AtomicU64,
}

impl SpanCounts {
    /// Spans that the collector took.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Spans dropped because too many waited.
    pub fn dropped_queue_full(&self) -> u64 {
        self.queue_full.load(Ordering::Relaxed)
    }

    /// Spans dropped because the collector was away or did not take them.
    pub fn dropped_not_taken(&self) -> u64 {
        self.not_taken.load(Ordering::Relaxed)
    }

    /// Spans that wait to be sent.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}

/// The export of spans while it runs.
#[derive(Debug)]
pub struct Export {
    provider: SdkTracerProvider,
    counts: Arc<SpanCounts>,
}

impl Export {
    /// Starts the export to `endpoint`, of spans that `resource` emits. Within a Tokio runtime, on which spans are
    /// sent.
    ///
    /// A caller's decision whether its trace is kept is followed; of the traces that start here the configured share is
    /// kept, whole.
    ///
    /// # Errors
    /// When the file of authorities is of no use, or the exporter refuses the settings.
    pub fn start(otlp: &Otlp, endpoint: &Url, resource: Resource) -> Result<Self, CollectorError> {
        let exporter = OnRuntime { exporter: Arc::new(exporter(otlp, endpoint)?), runtime: Handle::current() };
        Ok(Self::through(exporter, otlp.sample_rate, resource))
    }

    /// The same through an exporter of one's own.
    pub(crate) fn through<E: SpanExporter + 'static>(exporter: E, sample_rate: f64, resource: Resource) -> Self {
        let counts = Arc::new(SpanCounts::default());
        let provider = SdkTracerProvider::builder()
            .with_span_processor(Bounded::new(exporter, QUEUE, Arc::clone(&counts)))
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(sample_rate))))
            .with_resource(resource)
            .build();
        Self { provider, counts }
    }

    /// What makes spans.
    pub fn provider(&self) -> &SdkTracerProvider {
        &self.provider
    }

    /// What became of the spans.
    pub fn counts(&self) -> &Arc<SpanCounts> {
        &self.counts
    }

    /// Sends the spans that still wait, for a few seconds at most. Spans that end later are not sent.
    pub async fn shutdown(&self) {
        let provider = self.provider.clone();
        let ended = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(SHUTDOWN_TIMEOUT)).await;
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the last spans were not sent"),
            Err(error) => tracing::warn!(%error, "the last spans were not sent"),
        }
    }
}

fn exporter(otlp: &Otlp, endpoint: &Url) -> Result<opentelemetry_otlp::SpanExporter, CollectorError> {
    let to = Target { endpoint, headers: &otlp.headers, ca_file: otlp.ca_file.as_deref() };
    let exporter = opentelemetry_otlp::SpanExporter::builder();
    Ok(match otlp.protocol {
        OtlpProtocol::Grpc => collector::by_grpc(exporter.with_tonic(), to)?.build()?,
        OtlpProtocol::Http => collector::by_http(exporter.with_http(), "/v1/traces", to)?.build()?,
    })
}

/// The SDK's batches behind a bound of its own, so that what is dropped is known. A span counts as waiting until its
/// batch has been tried, so the SDK's queue, which is as long, is never the one that is full.
#[derive(Debug)]
struct Bounded {
    batches: BatchSpanProcessor,
    limit: usize,
    counts: Arc<SpanCounts>,
}

impl Bounded {
    fn new<E: SpanExporter + 'static>(exporter: E, limit: usize, counts: Arc<SpanCounts>) -> Self {
        let exporter = Counting { exporter, counts: Arc::clone(&counts), failing: AtomicBool::new(false) };
        let config = BatchConfigBuilder::default()
            .with_max_queue_size(limit)
            .with_max_export_batch_size(BATCH.min(limit))
            .with_scheduled_delay(LINGER)
            .build();
        Self { batches: BatchSpanProcessor::builder(exporter).with_batch_config(config).build(), limit, counts }
    }
}

impl SpanProcessor for Bounded {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.batches.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        let bytes = size(&span);
        let is_room = self.counts.waiting.fetch_add(1, Ordering::AcqRel) < self.limit;
        if self.counts.waiting_bytes.fetch_add(bytes, Ordering::AcqRel) < QUEUE_BYTES && is_room {
            self.batches.on_end(span);
        } else {
            self.counts.waiting.fetch_sub(1, Ordering::AcqRel);
            self.counts.waiting_bytes.fetch_sub(bytes, Ordering::AcqRel);
            self.counts.queue_full.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.batches.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.batches.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.batches.set_resource(resource);
    }
}

/// Counts what the collector took, and says when it stops and starts to take spans.
#[derive(Debug)]
struct Counting<E> {
    exporter: E,
    counts: Arc<SpanCounts>,
    failing: AtomicBool,
}

impl<E: SpanExporter> SpanExporter for Counting<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let mut outcome = Ok(());
        for (part, bytes) in parts(batch) {
            let result = self.export_part(part, bytes).await;
            outcome = outcome.and(result);
        }
        outcome
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

impl<E: SpanExporter> Counting<E> {
    async fn export_part(&self, batch: Vec<SpanData>, bytes: usize) -> OTelSdkResult {
        let spans = batch.len();
        let result = self.exporter.export(batch).await;
        self.counts.waiting.fetch_sub(spans, Ordering::AcqRel);
        self.counts.waiting_bytes.fetch_sub(bytes, Ordering::AcqRel);
        let count = if result.is_ok() { &self.counts.sent } else { &self.counts.not_taken };
        count.fetch_add(spans as u64, Ordering::Relaxed);
        match (&result, self.failing.swap(result.is_err(), Ordering::Relaxed)) {
            (Err(error), false) => {
                tracing::warn!(%error, "the collector does not take spans; they are dropped and counted until it does")
            }
            (Ok(()), true) => tracing::info!("the collector takes spans again"),
            _ => {}
        }
        result
    }
}

/// A batch in parts that a collector takes, and the bytes of each. A span that is larger by itself is a part of its
/// own.
fn parts(batch: Vec<SpanData>) -> Vec<(Vec<SpanData>, usize)> {
    let (mut parts, mut part, mut bytes) = (Vec::new(), Vec::new(), 0_usize);
    for span in batch {
        let size = size(&span);
        if !part.is_empty() && bytes.saturating_add(size) > BATCH_BYTES {
            parts.push((std::mem::take(&mut part), std::mem::take(&mut bytes)));
        }
        bytes = bytes.saturating_add(size);
        part.push(span);
    }
    if !part.is_empty() {
        parts.push((part, bytes));
    }
    parts
}

/// About how many bytes a span takes.
fn size(span: &SpanData) -> usize {
    let state = |context: &SpanContext| context.trace_state().header().len();
    let links: usize = span.links.iter().map(|link| SPAN_BYTES + state(&link.span_context)).sum();
    let attributes: usize =
        span.attributes.iter().map(|attribute| attribute.key.as_str().len() + attribute.value.as_str().len()).sum();
    SPAN_BYTES + span.name.len() + state(&span.span_context) + links + attributes
}

/// Sends on the Tokio runtime what the SDK's own thread, which has none, hands over.
#[derive(Debug)]
struct OnRuntime<E> {
    exporter: Arc<E>,
    runtime: Handle,
}

impl<E: SpanExporter + 'static> SpanExporter for OnRuntime<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let exporter = Arc::clone(&self.exporter);
        let sent = self.runtime.spawn(async move { exporter.export(batch).await }).await;
        sent.unwrap_or_else(|error| Err(OTelSdkError::InternalFailure(error.to_string())))
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        // Set once, when the provider is built, before anything is sent: the exporter has no other holder then.
        if let Some(exporter) = Arc::get_mut(&mut self.exporter) {
            exporter.set_resource(resource);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use opentelemetry::KeyValue;
    use opentelemetry::trace::{Span, Tracer, TracerProvider};
    use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
    use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};

    use super::{BATCH_BYTES, Bounded, QUEUE_BYTES, SpanCounts};

    /// A collector that answers when the gate is free, with a given status.
    #[derive(Debug, Clone)]
    struct Collector {
        gate: Arc<Mutex<()>>,
        takes: bool,
    }

    impl SpanExporter for Collector {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            drop(self.gate.lock().unwrap());
            let bytes: usize = batch.iter().map(super::size).sum();
            assert!(batch.len() == 1 || bytes <= BATCH_BYTES, "{bytes} bytes at once");
            if self.takes { Ok(()) } else { Err(OTelSdkError::InternalFailure("away".to_owned())) }
        }
    }

    fn provider(takes: bool, limit: usize) -> (SdkTracerProvider, Arc<SpanCounts>, Arc<Mutex<()>>) {
        let (gate, counts) = (Arc::new(Mutex::new(())), Arc::new(SpanCounts::default()));
        let bounded = Bounded::new(Collector { gate: Arc::clone(&gate), takes }, limit, Arc::clone(&counts));
        (SdkTracerProvider::builder().with_span_processor(bounded).build(), counts, gate)
    }

    fn end_spans(provider: &SdkTracerProvider, spans: usize) {
        let tracer = provider.tracer("test");
        for _ in 0..spans {
            drop(tracer.start("call"));
        }
    }

    #[test]
    fn while_the_collector_hangs_spans_beyond_the_bound_are_dropped_and_counted() {
        let (provider, counts, gate) = provider(true, 16);
        let hangs = gate.lock().unwrap();
        end_spans(&provider, 50);
        assert_eq!((counts.waiting(), counts.dropped_queue_full(), counts.sent()), (16, 34, 0));
        drop(hangs);
        provider.force_flush().unwrap();
        assert_eq!((counts.waiting(), counts.dropped_queue_full(), counts.sent()), (0, 34, 16));
        end_spans(&provider, 16);
        provider.shutdown().unwrap();
        assert_eq!((counts.waiting(), counts.dropped_queue_full(), counts.sent()), (0, 34, 32), "room is used again");
    }

    #[test]
    fn spans_that_the_collector_does_not_take_are_counted() {
        let (provider, counts, _gate) = provider(false, 16);
        end_spans(&provider, 5);
        assert!(provider.force_flush().is_err());
        assert_eq!((counts.waiting(), counts.dropped_not_taken(), counts.sent()), (0, 5, 0));
    }

    #[test]
    fn large_spans_are_bounded_in_bytes_where_they_wait_and_where_they_are_sent() {
        let (provider, counts, gate) = provider(true, 1_000);
        let hangs = gate.lock().unwrap();
        let tracer = provider.tracer("test");
        for _ in 0..400 {
            let mut span = tracer.start("call");
            span.set_attribute(KeyValue::new("long", "x".repeat(200_000)));
        }
        assert!(counts.waiting() * 200_000 <= QUEUE_BYTES + 200_000, "{}", counts.waiting());
        let waited = counts.waiting() as u64;
        drop(hangs);
        provider.force_flush().unwrap();
        assert_eq!((counts.waiting(), counts.sent(), counts.dropped_queue_full()), (0, waited, 400 - waited));
    }
}
