//! The program's own spans, sent over OTLP; the W3C trace context of callers.
//!
//! Each HTTP request makes one span (made in the API's middleware). When a caller sends `traceparent`, the span joins
//! that trace and follows its decision whether to keep it; of the traces that start here the configured share is kept.
//! Spans wait in a bounded queue and are sent in batches by a thread of their own; when the collector is away they are
//! dropped, never the request.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{SpanContext, TraceContextExt, TracerProvider};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::tonic_types::metadata::MetadataMap;
use opentelemetry_otlp::tonic_types::transport::ClientTlsConfig;
use opentelemetry_otlp::{ExporterBuildError, Protocol, WithExportConfig, WithHttpConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider, SpanData, SpanExporter};
use tokio::runtime::Handle;
use tracing::{Level, Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;
use url::Url;

use crate::config::{Otlp, OtlpProtocol};

/// The name that the program's spans carry as their service.
const SERVICE: &str = "mcpg-control-plane";

/// How long one batch of spans may take to send.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the last spans may take to send when the program stops.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// The export of spans while it runs.
#[derive(Debug)]
pub struct Traces {
    provider: SdkTracerProvider,
}

impl Traces {
    /// Starts the export, if an endpoint is set. Within a Tokio runtime, on which spans are sent.
    ///
    /// # Errors
    /// When the exporter refuses the settings.
    pub fn start(otlp: &Otlp) -> Result<Option<Self>, ExporterBuildError> {
        let Some(endpoint) = &otlp.endpoint else { return Ok(None) };
        let exporter = OnRuntime { exporter: Arc::new(exporter(otlp, endpoint)?), runtime: Handle::current() };
        let resource = Resource::builder()
            .with_service_name(SERVICE)
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_attribute(KeyValue::new("service.instance.id", uuid::Uuid::new_v4().to_string()))
            .build();
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(otlp.sample_rate))))
            .with_resource(resource)
            .build();
        Ok(Some(Self { provider }))
    }

    /// The layer that turns the program's own spans, from level `info` on, into OpenTelemetry's.
    pub(super) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer(SERVICE))
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_filter(Targets::new().with_target("mcpg", Level::INFO))
    }

    /// Sends the spans that still wait, for a few seconds at most.
    pub async fn shutdown(self) {
        let ended = tokio::task::spawn_blocking(move || self.provider.shutdown_with_timeout(SHUTDOWN_TIMEOUT)).await;
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the last spans were not sent"),
            Err(error) => tracing::warn!(%error, "the last spans were not sent"),
        }
    }
}

fn exporter(otlp: &Otlp, endpoint: &Url) -> Result<opentelemetry_otlp::SpanExporter, ExporterBuildError> {
    let builder = opentelemetry_otlp::SpanExporter::builder();
    match otlp.protocol {
        OtlpProtocol::Grpc => {
            let mut headers = HeaderMap::new();
            for (name, value) in &otlp.headers {
                // Both were checked when the configuration was read.
                if let (Ok(name), Ok(mut value)) = (name.parse::<HeaderName>(), value.expose().parse::<HeaderValue>()) {
                    value.set_sensitive(true);
                    headers.append(name, value);
                }
            }
            let mut builder = builder
                .with_tonic()
                .with_endpoint(endpoint.as_str())
                .with_timeout(SEND_TIMEOUT)
                .with_metadata(MetadataMap::from_headers(headers));
            if endpoint.scheme() == "https" {
                builder = builder.with_tls_config(ClientTlsConfig::new().with_enabled_roots());
            }
            builder.build()
        }
        OtlpProtocol::Http => {
            let headers: HashMap<String, String> =
                otlp.headers.iter().map(|(name, value)| (name.clone(), value.expose().to_owned())).collect();
            builder
                .with_http()
                .with_protocol(Protocol::HttpBinary)
                .with_endpoint(traces_url(endpoint))
                .with_timeout(SEND_TIMEOUT)
                .with_headers(headers)
                .build()
        }
    }
}

/// The URL that spans are posted to: the endpoint, with OTLP's own path where it has none.
fn traces_url(endpoint: &Url) -> Url {
    let mut url = endpoint.clone();
    if matches!(url.path(), "" | "/") {
        url.set_path("/v1/traces");
    }
    url
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
}

/// The trace that a request's `traceparent` header names, if it is a valid one.
pub fn inbound(headers: &HeaderMap) -> Option<SpanContext> {
    // The propagator takes ids of any length; the specification has 32 and 16 digits (W3C Trace Context, section
    // 3.2.2).
    let mut fields = headers.get("traceparent")?.to_str().ok()?.trim().split('-').skip(1).map(str::len);
    if (fields.next(), fields.next()) != (Some(32), Some(16)) {
        return None;
    }
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(headers));
    let span = context.span().span_context().clone();
    span.is_valid().then_some(span)
}

/// Makes `span`, not entered yet, part of the caller's trace. Without an export there is nothing to join.
pub fn join(span: &Span, caller: SpanContext) {
    // The one error there can be is that no layer exports spans.
    let _ = span.set_parent(Context::new().with_remote_span_context(caller));
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use axum::Router;
    use axum::body::to_bytes;
    use axum::extract::Request;
    use http::{HeaderMap, HeaderValue};
    use tokio::net::TcpListener;
    use tokio::sync::mpsc;
    use tracing_subscriber::layer::SubscriberExt;
    use url::Url;

    use super::{Traces, inbound, join, traces_url};
    use crate::config::{Otlp, OtlpProtocol, Secret};

    fn headers(traceparent: &'static str) -> HeaderMap {
        HeaderMap::from_iter([("traceparent".parse().unwrap(), HeaderValue::from_static(traceparent))])
    }

    #[test]
    fn a_valid_traceparent_names_the_callers_trace() {
        let span = inbound(&headers("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")).unwrap();
        assert_eq!(span.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert!(span.is_sampled() && span.is_remote());
    }

    #[test]
    fn a_malformed_or_zero_traceparent_is_passed_over() {
        for bad in ["", "garbage", "00-00000000000000000000000000000000-b7ad6b7169203331-01", "00-0af7-b7ad-01"] {
            assert!(inbound(&headers(bad)).is_none(), "{bad}");
        }
        assert!(inbound(&HeaderMap::new()).is_none());
    }

    #[test]
    fn an_endpoint_without_a_path_gets_the_protocols_own() {
        let url = |text: &str| traces_url(&Url::parse(text).unwrap()).to_string();
        assert_eq!(url("http://c:4318"), "http://c:4318/v1/traces");
        assert_eq!(url("http://c:4318/v1/traces"), "http://c:4318/v1/traces");
        assert_eq!(url("https://c/tenant/traces"), "https://c/tenant/traces");
    }

    /// Keeps what is posted anywhere: path, authorization, body.
    async fn sink() -> (Url, mpsc::UnboundedReceiver<(String, String, Vec<u8>)>) {
        let (sender, received) = mpsc::unbounded_channel();
        let keep = move |request: Request| {
            let sender = sender.clone();
            async move {
                let (head, body) = request.into_parts();
                let authorization = head.headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
                let body = to_bytes(body, usize::MAX).await.unwrap().to_vec();
                sender.send((head.uri.path().to_owned(), authorization.unwrap_or_default(), body)).unwrap();
                ([("content-type", "application/grpc"), ("grpc-status", "0")], "")
            }
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let router: Router = Router::new().fallback(keep);
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        (url, received)
    }

    async fn exported(protocol: OtlpProtocol) -> (String, String, Vec<u8>) {
        let (endpoint, mut received) = sink().await;
        let headers = BTreeMap::from([("authorization".to_owned(), Secret::new("Bearer t"))]);
        let traces = Traces::start(&Otlp { endpoint: Some(endpoint.into()), headers, sample_rate: 0.0, protocol })
            .unwrap()
            .unwrap();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(traces.layer()), || {
            let dropped = tracing::info_span!(target: "mcpg::test", "started-here");
            dropped.in_scope(|| {});
            let span = tracing::info_span!(target: "mcpg::test", "joined");
            join(&span, inbound(&headers_of_caller()).unwrap());
            span.in_scope(|| {});
        });
        traces.shutdown().await;
        received.try_recv().unwrap()
    }

    fn headers_of_caller() -> HeaderMap {
        headers("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    }

    fn contains(body: &[u8], part: &[u8]) -> bool {
        body.windows(part.len()).any(|window| window == part)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_span_of_a_callers_trace_is_sent_as_the_caller_decided() {
        for (protocol, expected) in [
            (OtlpProtocol::Http, "/v1/traces"),
            (OtlpProtocol::Grpc, "/opentelemetry.proto.collector.trace.v1.TraceService/Export"),
        ] {
            let (path, authorization, body) = exported(protocol).await;
            assert_eq!((path.as_str(), authorization.as_str()), (expected, "Bearer t"));
            let trace: [u8; 16] = 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128.to_be_bytes();
            assert!(contains(&body, b"joined") && contains(&body, &trace) && contains(&body, b"mcpg-control-plane"));
            assert!(!contains(&body, b"started-here"), "a share of nothing is kept of the traces that start here");
        }
    }

    #[tokio::test]
    async fn without_an_endpoint_no_export_starts() {
        assert!(Traces::start(&Otlp::default()).unwrap().is_none());
    }
}
