//! The control plane's own spans, sent over OTLP.
//!
//! Each HTTP request makes one span (made in the API's middleware). When a caller sends `traceparent`, the span joins
//! that trace and follows its decision whether to keep it; of the traces that start here the configured share is kept.

use opentelemetry::trace::{SpanContext, TraceContextExt, TracerProvider};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::Resource;
use tracing::{Level, Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;

use super::CollectorError;
use super::otlp::Export;
use crate::config::Otlp;

/// The name that the program's spans carry as their service.
const SERVICE: &str = "mcpg-control-plane";

/// The export of spans while it runs.
#[derive(Debug)]
pub struct Traces {
    export: Export,
}

impl Traces {
    /// Starts the export, if an endpoint is set. Within a Tokio runtime, on which spans are sent.
    ///
    /// # Errors
    /// When the file of authorities is of no use, or the exporter refuses the settings.
    pub fn start(otlp: &Otlp) -> Result<Option<Self>, CollectorError> {
        let Some(endpoint) = &otlp.endpoint else { return Ok(None) };
        let resource = Resource::builder()
            .with_service_name(SERVICE)
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_attribute(KeyValue::new("service.instance.id", uuid::Uuid::new_v4().to_string()))
            .build();
        Ok(Some(Self { export: Export::start(otlp, endpoint, resource)? }))
    }

    /// The layer that turns the program's own spans, from level `info` on, into OpenTelemetry's.
    pub(super) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        tracing_opentelemetry::layer()
            .with_tracer(self.export.provider().tracer(SERVICE))
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_filter(Targets::new().with_target("mcpg", Level::INFO))
    }

    /// Sends the spans that still wait, for a few seconds at most.
    pub async fn shutdown(self) {
        self.export.shutdown().await;
    }
}

/// Makes `span`, not entered yet, part of the caller's trace. Without an export there is nothing to join.
pub fn join(span: &Span, caller: SpanContext) {
    // The one error there can be is that no layer exports spans.
    let _ = span.set_parent(Context::new().with_remote_span_context(caller));
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tracing_subscriber::layer::SubscriberExt;

    use super::{Traces, join};
    use crate::config::{Otlp, OtlpProtocol, Secret};
    use crate::telemetry::collector::testing::{Sink, contains};
    use crate::telemetry::w3c;

    async fn exported(protocol: OtlpProtocol) -> (String, String, Vec<u8>) {
        let mut sink = Sink::start().await;
        let headers = BTreeMap::from([("authorization".to_owned(), Secret::new("Bearer t"))]);
        let endpoint = Some(sink.url().into());
        let otlp = Otlp { endpoint, headers, sample_rate: 0.0, protocol, ca_file: None };
        let traces = Traces::start(&otlp).unwrap().unwrap();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(traces.layer()), || {
            let dropped = tracing::info_span!(target: "mcpg::test", "started-here");
            dropped.in_scope(|| {});
            let span = tracing::info_span!(target: "mcpg::test", "joined");
            join(&span, w3c::from_headers(&headers_of_caller()).unwrap());
            span.in_scope(|| {});
        });
        traces.shutdown().await;
        sink.received()
    }

    fn headers_of_caller() -> http::HeaderMap {
        let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        http::HeaderMap::from_iter([("traceparent".parse().unwrap(), traceparent.parse().unwrap())])
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
            assert!(contains(&body, b"joined") && contains(&body, &trace));
            assert!(contains(&body, b"service.name") && contains(&body, b"service.instance.id"), "who sends it");
            assert!(!contains(&body, b"started-here"), "a share of nothing is kept of the traces that start here");
        }
    }

    #[tokio::test]
    async fn without_an_endpoint_no_export_starts() {
        assert!(Traces::start(&Otlp::default()).unwrap().is_none());
    }
}
