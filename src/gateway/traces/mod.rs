//! Stream 2: the spans of each request, in OpenTelemetry's terms.
//!
//! ```text
//! SERVER   tools/call list_repos      the request, from its arrival to its answer
//! ├ INTERNAL identity                 who asks
//! ├ INTERNAL policy                   what is decided
//! └ CLIENT   tools/call list_repos    the upstream at work; its id goes to the upstream
//! ```
//!
//! Names and attributes follow the semantic conventions for MCP, what they lack is named `mcpg.…`. The spans are made
//! with OpenTelemetry's API, not with `tracing`'s macros: kinds, parents and links are exact, and every request has a
//! trace id and a span id, also when its trace is not kept or nothing is exported. The sample and the audit entry of a
//! call carry those ids.
//!
//! Of what a caller wrote, a span has the ids of its session and its request alone: no argument, no result, no other
//! header, no error text, no URI of a resource. Names of tools and prompts are in it only once the gateway knows them;
//! a method that MCP does not have is `_OTHER`.
//!
//! A request whose future is dropped, because its client went away, still ends its spans, as `cancelled`.

mod describe;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{
    Link, Span as _, SpanContext, SpanId, SpanKind, TraceContextExt, TraceId, Tracer, TracerProvider,
};
use opentelemetry::{Array, Context, InstrumentationScope, KeyValue, StringValue, Value};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider, Span};

use self::describe::known;
pub use self::describe::{Failure, Request, Target, Upstream};
use crate::config::Otlp;
use crate::model::{Decision, OrgName, Outcome};
use crate::telemetry::CollectorError;
use crate::telemetry::otlp::{Export, SpanCounts};
use crate::telemetry::w3c::{Baggage, Inbound, Outbound};

/// The name that the gateway's spans carry as their service.
const SERVICE: &str = "mcpg-gateway";

/// Which gateway emits the spans.
#[derive(Debug, Clone, Copy)]
pub struct Emitter<'a> {
    /// Its org.
    pub org: &'a OrgName,
    /// Its workspace.
    pub workspace: &'a str,
    /// Its name.
    pub instance: &'a str,
}

/// Makes the spans of requests.
#[derive(Debug)]
pub struct Traces {
    tracer: SdkTracer,
    export: Option<Export>,
    /// The share of traces that is kept.
    rate: f64,
    /// What is drawn by which of strangers' traces are kept.
    key: [u8; 32],
}

/// When finding out who asks began and ended.
#[derive(Debug, Clone, Copy)]
pub struct IdentityTook {
    /// When it began: the request was there.
    pub began: SystemTime,
    /// When it ended.
    pub ended: SystemTime,
    /// How long it took, by the monotonic clock.
    pub took: Duration,
}

impl Traces {
    /// Starts the export to the configured collector. Without an endpoint spans have ids all the same, nothing is
    /// exported, and a caller's context is passed on as it came. Within a Tokio runtime.
    ///
    /// # Errors
    /// When the file of authorities is of no use, or the exporter refuses the settings.
    pub fn start(otlp: &Otlp, emitter: Emitter<'_>) -> Result<Self, CollectorError> {
        let Some(endpoint) = &otlp.endpoint else {
            let ids_only = SdkTracerProvider::builder().with_sampler(Sampler::AlwaysOff).build();
            return Ok(Self { tracer: tracer(&ids_only), export: None, rate: 0.0, key: [0; 32] });
        };
        let resource = Resource::builder()
            .with_service_name(SERVICE)
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_attribute(KeyValue::new("service.instance.id", emitter.instance.to_owned()))
            .with_attribute(KeyValue::new("mcpg.org", emitter.org.to_string()))
            .with_attribute(KeyValue::new("mcpg.workspace", emitter.workspace.to_owned()))
            .build();
        Ok(Self::through(Export::start(otlp, endpoint, resource)?, otlp.sample_rate))
    }

    fn through(export: Export, rate: f64) -> Self {
        Self { tracer: tracer(export.provider()), export: Some(export), rate, key: rand::random() }
    }

    /// Opens the span of a request that has just arrived. A caller's trace is always joined; whether it is kept is the
    /// caller's decision where it is `trusted`, else the gateway's own. `identity`: how long finding out who asks took,
    /// before this.
    pub fn request(
        &self,
        request: &Request<'_>,
        inbound: Inbound,
        trusted: bool,
        identity: Option<&IdentityTook>,
    ) -> RequestSpans {
        let method = known(request.method);
        // Who exports nothing has nothing to decide, and passes the context on as it came.
        let inbound = if trusted || self.export.is_none() { inbound } else { self.own_decision(inbound) };
        let parent =
            inbound.parent.clone().map_or_else(Context::new, |parent| Context::new().with_remote_span_context(parent));
        let mut builder = self.tracer.span_builder(method).with_kind(SpanKind::Server);
        if let Some(link) = inbound.link {
            builder = builder.with_links(vec![Link::with_context(link)]);
        }
        if let Some(identity) = identity {
            builder = builder.with_start_time(identity.began);
        }
        let mut span = self.tracer.build_with_context(builder, &parent);
        if span.is_recording() {
            request.describe(method, &mut span);
        }
        RequestSpans {
            tracer: self.tracer.clone(),
            context: Context::new().with_remote_span_context(span.span_context().clone()),
            span,
            method,
            caller_span: inbound.parent,
            baggage: inbound.baggage,
            exported: self.export.is_some(),
            ended: false,
        }
    }

    /// The context of a caller that does not decide whether its trace is kept: that is the gateway's rate, the same for
    /// all requests of a trace, and not to be foreseen from its id.
    fn own_decision(&self, mut inbound: Inbound) -> Inbound {
        if let Some(parent) = inbound.parent.take() {
            let hash = blake3::keyed_hash(&self.key, &parent.trace_id().to_bytes());
            let draw = hash.as_bytes().iter().take(8).fold(0_u64, |draw, byte| draw << 8 | u64::from(*byte));
            let kept = (draw as f64) < self.rate * u64::MAX as f64;
            let flags = parent.trace_flags().with_sampled(kept);
            let (trace, span, state) = (parent.trace_id(), parent.span_id(), parent.trace_state().clone());
            inbound.parent = Some(SpanContext::new(trace, span, flags, true, state));
        }
        inbound
    }

    /// What became of the spans, if any are exported.
    pub fn counts(&self) -> Option<&Arc<SpanCounts>> {
        self.export.as_ref().map(Export::counts)
    }

    /// Sends the spans that still wait, for a few seconds at most. Requests that come later have no ids.
    pub async fn shutdown(&self) {
        if let Some(export) = &self.export {
            export.shutdown().await;
        }
    }
}

fn tracer(provider: &SdkTracerProvider) -> SdkTracer {
    provider.tracer_with_scope(InstrumentationScope::builder(SERVICE).with_version(env!("CARGO_PKG_VERSION")).build())
}

/// The spans of one request. Its own ends when this is dropped.
#[derive(Debug)]
pub struct RequestSpans {
    tracer: SdkTracer,
    span: Span,
    context: Context,
    method: &'static str,
    caller_span: Option<SpanContext>,
    baggage: Option<Baggage>,
    exported: bool,
    ended: bool,
}

impl RequestSpans {
    /// The trace that the request belongs to: its caller's, or one of its own.
    pub fn trace_id(&self) -> TraceId {
        self.span.span_context().trace_id()
    }

    /// The request's own span.
    pub fn span_id(&self) -> SpanId {
        self.span.span_context().span_id()
    }

    /// It is about something that `plugin` has.
    pub fn about(&mut self, plugin: &str, target: Target<'_>) {
        if self.span.is_recording() {
            target.describe(self.method, plugin, &mut self.span);
        }
    }

    /// Finding out who asks begins.
    pub fn identity(&self) -> IdentitySpan {
        IdentitySpan(self.child("identity", SpanKind::Internal))
    }

    /// It was found out before the request was read.
    pub fn identified(&self, identity: &IdentityTook, name: &str) {
        let builder =
            self.tracer.span_builder("identity").with_kind(SpanKind::Internal).with_start_time(identity.began);
        let mut span = self.tracer.build_with_context(builder, &self.context);
        if span.is_recording() {
            span.set_attribute(KeyValue::new("mcpg.caller", name.to_owned()));
        }
        span.end_with_timestamp(identity.ended);
    }

    /// Deciding begins.
    pub fn policy(&self) -> PolicySpan {
        PolicySpan(self.child("policy", SpanKind::Internal))
    }

    /// The upstream's work begins.
    pub fn dispatch(&self, plugin: &str, target: Target<'_>, upstream: &Upstream<'_>) -> DispatchSpan {
        let mut span = self.child(self.method, SpanKind::Client);
        if span.is_recording() {
            span.set_attribute(KeyValue::new("mcp.method.name", self.method));
            target.describe(self.method, plugin, &mut span);
            upstream.describe(&mut span);
        }
        // Who exports no spans is no part of the trace: the upstream's span would have a parent that is never exported.
        let parent = if self.exported { Some(span.span_context()) } else { self.caller_span.as_ref() };
        let outbound = Outbound::new(parent, self.baggage.clone());
        DispatchSpan { span, outbound, ended: false }
    }

    /// The request is answered.
    pub fn end(mut self, answer: Answer<'_>) {
        self.ended = true;
        if !self.span.is_recording() {
            return;
        }
        if let Some(outcome) = answer.outcome {
            self.span.set_attribute(KeyValue::new("mcpg.outcome", outcome.as_str()));
        }
        if let Some(code) = answer.error_code {
            self.span.set_attribute(KeyValue::new("mcpg.error_code", code.to_owned()));
        }
        if let Some(failure) = answer.failure {
            failure.mark(&mut self.span);
        }
    }

    fn child(&self, name: &'static str, kind: SpanKind) -> Span {
        self.tracer.build_with_context(self.tracer.span_builder(name).with_kind(kind), &self.context)
    }
}

impl Drop for RequestSpans {
    fn drop(&mut self) {
        if !self.ended && self.span.is_recording() {
            Failure::CANCELLED.mark(&mut self.span);
        }
    }
}

/// How a request was answered.
#[derive(Debug, Clone, Copy, Default)]
pub struct Answer<'a> {
    /// As the call's sample has it.
    pub outcome: Option<Outcome>,
    /// As the call's sample has it.
    pub error_code: Option<&'a str>,
    /// How it failed.
    pub failure: Option<Failure>,
}

/// Finding out who asks. Ends when it is dropped.
#[derive(Debug)]
pub struct IdentitySpan(Span);

impl IdentitySpan {
    /// It is this one.
    pub fn caller(mut self, name: &str) {
        if self.0.is_recording() {
            self.0.set_attribute(KeyValue::new("mcpg.caller", name.to_owned()));
        }
    }

    /// Nobody that the gateway knows.
    pub fn refused(mut self) {
        Failure::Kind("unauthenticated").mark(&mut self.0);
    }
}

/// Deciding. Ends when it is dropped.
#[derive(Debug)]
pub struct PolicySpan(Span);

impl PolicySpan {
    /// This was decided, by these policies.
    pub fn decided<S: AsRef<str>>(mut self, decision: Decision, policy_ids: &[S], obligations: &[S]) {
        if !self.0.is_recording() {
            return;
        }
        self.0.set_attribute(KeyValue::new("mcpg.decision", decision.as_str()));
        for (name, values) in [("mcpg.policy_ids", policy_ids), ("mcpg.obligations", obligations)] {
            if !values.is_empty() {
                let values = values.iter().map(|value| StringValue::from(value.as_ref().to_owned())).collect();
                self.0.set_attribute(KeyValue::new(name, Value::Array(Array::String(values))));
            }
        }
    }
}

/// The upstream at work. Ends when it is dropped.
#[derive(Debug)]
pub struct DispatchSpan {
    span: Span,
    outbound: Outbound,
    ended: bool,
}

impl DispatchSpan {
    /// The trace context for the upstream, in the message and in the headers: this span is its parent.
    pub fn outbound(&self) -> &Outbound {
        &self.outbound
    }

    /// The upstream is done.
    pub fn end(mut self, failure: Option<Failure>) {
        self.ended = true;
        if let Some(failure) = failure {
            failure.mark(&mut self.span);
        }
    }
}

impl Drop for DispatchSpan {
    fn drop(&mut self) {
        if !self.ended {
            Failure::CANCELLED.mark(&mut self.span);
        }
    }
}

#[cfg(test)]
mod tests;
