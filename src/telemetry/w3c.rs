//! W3C Trace Context and Baggage: read from what a caller sends, written to what is sent on.
//!
//! Two carriers hold the same three fields (`traceparent`, `tracestate`, `baggage`): HTTP headers, and an MCP message's
//! `params._meta` (unprefixed there, as MCP's SEP-414 has it). Whatever is not valid is passed over, never guessed at:
//! a bad `traceparent` means that a trace starts here, a bad `tracestate` or member of the baggage is left out. Both
//! are bounded, so that a caller cannot make each hop carry ever more.

use std::fmt;

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{SpanContext, TraceContextExt, TraceFlags};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use serde_json::{Map, Value};

const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";
const BAGGAGE: &str = "baggage";

/// The flags there are: the trace is kept, and its id is random (Trace Context Level 2, section 3.2.2.5).
const FLAGS: TraceFlags = TraceFlags::new(0b11);

/// The longest `tracestate` that is read, bytes: 32 members of 256 and 256 characters (Trace Context, section 3.3.1).
const TRACESTATE_BYTES: usize = 32 * (256 + 256 + 2);

/// The most baggage that is passed on (Baggage, section 3.3.2).
const BAGGAGE_BYTES: usize = 8_192;
const BAGGAGE_MEMBERS: usize = 64;

/// The trace that a request's `traceparent` header names, if it is a valid one.
pub fn from_headers(headers: &HeaderMap) -> Option<SpanContext> {
    span_context(&Fields { traceparent: one(headers, TRACEPARENT), tracestate: joined(headers, TRACESTATE) })
}

/// What a caller sent with its call.
#[derive(Debug, Clone, Default)]
pub struct Inbound {
    /// The span that the call's own is a child of; none: a trace starts here.
    pub parent: Option<SpanContext>,
    /// The span of the transport, where the message names another: worth a link.
    pub link: Option<SpanContext>,
    /// What is to be passed on as it came.
    pub baggage: Option<Baggage>,
}

impl Inbound {
    /// Reads a message's `params._meta`, and the headers of the HTTP request that brought it. The message comes first:
    /// one HTTP request may bring several messages, and a proxy between may have put its own span on the transport.
    pub fn read(headers: &HeaderMap, meta: Option<&Map<String, Value>>) -> Self {
        let text = |name: &str| meta.and_then(|meta| meta.get(name)).and_then(Value::as_str);
        let message = span_context(&Fields {
            traceparent: text(TRACEPARENT).map(str::to_owned),
            tracestate: text(TRACESTATE).map(str::to_owned),
        });
        let transport = from_headers(headers);
        let (parent, link) = match (message, transport) {
            (Some(message), Some(transport)) if same_span(&message, &transport) => (Some(message), None),
            (Some(message), transport) => (Some(message), transport),
            (None, transport) => (transport, None),
        };
        let baggage = text(BAGGAGE).and_then(Baggage::parse);
        let baggage = baggage.or_else(|| Baggage::parse(&joined(headers, BAGGAGE)?));
        Self { parent, link, baggage }
    }
}

fn same_span(one: &SpanContext, other: &SpanContext) -> bool {
    (one.trace_id(), one.span_id()) == (other.trace_id(), other.span_id())
}

/// What is sent on with a call.
#[derive(Debug, Clone, Default)]
pub struct Outbound {
    traceparent: Option<String>,
    tracestate: Option<String>,
    baggage: Option<Baggage>,
}

impl Outbound {
    /// Names `span`, if there is one, as the parent of what happens there.
    pub fn new(span: Option<&SpanContext>, baggage: Option<Baggage>) -> Self {
        let span = span.filter(|span| span.is_valid());
        let traceparent = span.map(|span| {
            let flags = (span.trace_flags() & FLAGS).to_u8();
            format!("00-{}-{}-{flags:02x}", span.trace_id(), span.span_id())
        });
        let tracestate = span.map(|span| span.trace_state().header()).filter(|state| !state.is_empty());
        Self { traceparent, tracestate, baggage }
    }

    /// The fields to send, by name.
    pub fn fields(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let baggage = self.baggage.as_ref().map(|baggage| baggage.0.as_str());
        [(TRACEPARENT, self.traceparent.as_deref()), (TRACESTATE, self.tracestate.as_deref()), (BAGGAGE, baggage)]
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
    }

    /// Puts the fields into the headers of an HTTP request, instead of those that are there.
    pub fn put_headers(&self, headers: &mut HeaderMap) {
        for name in [TRACEPARENT, TRACESTATE, BAGGAGE] {
            headers.remove(name);
        }
        for (name, value) in self.fields() {
            // Each field was checked when it was read, and is of visible ASCII.
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
    }

    /// Puts the fields into a message's `params._meta`, instead of those that are there.
    pub fn put_meta(&self, meta: &mut Map<String, Value>) {
        for name in [TRACEPARENT, TRACESTATE, BAGGAGE] {
            meta.remove(name);
        }
        for (name, value) in self.fields() {
            meta.insert(name.to_owned(), Value::from(value));
        }
    }
}

/// W3C baggage: what a caller wants to be known along the whole way of a call. It is passed on and never looked at, nor
/// shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Baggage(String);

impl Baggage {
    /// The valid members of a list, as they are, up to the bounds; `None` without any.
    pub fn parse(text: &str) -> Option<Self> {
        let mut kept = String::new();
        // An absurdly long text is not even looked at to its end.
        for member in text
            .split(',')
            .take(4 * BAGGAGE_MEMBERS)
            .map(str::trim)
            .filter(|member| is_member(member))
            .take(BAGGAGE_MEMBERS)
        {
            if kept.len() + 1 + member.len() > BAGGAGE_BYTES {
                break;
            }
            if !kept.is_empty() {
                kept.push(',');
            }
            kept.push_str(member);
        }
        (!kept.is_empty()).then_some(Self(kept))
    }

    /// The list as it is sent.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Baggage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Baggage({} bytes)", self.0.len())
    }
}

/// Whether this is `key=value`, with properties after it perhaps (Baggage, section 3.3.1).
fn is_member(member: &str) -> bool {
    if member.len() > BAGGAGE_BYTES {
        return false;
    }
    let mut parts = member.split(';').map(str::trim);
    let pair =
        |part: &str| part.split_once('=').map(|(key, value)| is_token(key.trim_end()) && is_value(value.trim_start()));
    parts.next().and_then(pair) == Some(true)
        && parts.all(|property| pair(property).unwrap_or_else(|| is_token(property)))
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

fn is_value(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'"' | b',' | b';' | b'\\'))
}

/// The fields of a trace's context as a carrier holds them.
struct Fields {
    traceparent: Option<String>,
    tracestate: Option<String>,
}

impl Extractor for Fields {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            TRACEPARENT => self.traceparent.as_deref(),
            TRACESTATE => self.tracestate.as_deref().filter(|state| state.len() <= TRACESTATE_BYTES),
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec![TRACEPARENT, TRACESTATE]
    }
}

fn span_context(fields: &Fields) -> Option<SpanContext> {
    // The propagator takes fields of any length; the specification has 2, 32, 16 and 2 digits (Trace Context, section
    // 3.2.2).
    let mut lengths = fields.traceparent.as_deref()?.trim().splitn(5, '-').map(str::len);
    if [lengths.next(), lengths.next(), lengths.next(), lengths.next()] != [Some(2), Some(32), Some(16), Some(2)] {
        return None;
    }
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), fields);
    let span = context.span().span_context().clone();
    if !span.is_valid() {
        return None;
    }
    // The propagator knows the flags of Level 1 alone.
    let flags = u8::from_str_radix(fields.traceparent.as_deref()?.trim().get(53..55)?, 16).ok()?;
    let (flags, state) = (TraceFlags::new(flags) & FLAGS, span.trace_state().clone());
    Some(SpanContext::new(span.trace_id(), span.span_id(), flags, true, state))
}

fn one(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// A list that may be spread over several headers.
fn joined(headers: &HeaderMap, name: &str) -> Option<String> {
    let parts: Vec<&str> = headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
    (!parts.is_empty()).then(|| parts.join(","))
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderName, HeaderValue};
    use proptest::prelude::*;
    use serde_json::{Map, Value, json};

    use super::{BAGGAGE_BYTES, BAGGAGE_MEMBERS, Baggage, Inbound, Outbound, from_headers};

    const ONE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    const OTHER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn meta(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    fn sent(inbound: &Inbound) -> Map<String, Value> {
        let mut meta = Map::new();
        Outbound::new(inbound.parent.as_ref(), inbound.baggage.clone()).put_meta(&mut meta);
        meta
    }

    #[test]
    fn a_valid_traceparent_names_the_callers_trace() {
        let span = from_headers(&headers(&[("traceparent", ONE)])).unwrap();
        assert_eq!(span.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(span.span_id().to_string(), "b7ad6b7169203331");
        assert!(span.is_sampled() && span.is_remote());
    }

    #[test]
    fn flags_that_there_are_go_on_and_others_do_not() {
        for (given, expected) in [("00", "00"), ("02", "02"), ("03", "03"), ("ff", "03")] {
            let traceparent = ONE.replace("-01", &format!("-{given}"));
            let read = Inbound::read(&HeaderMap::new(), Some(&meta(json!({ "traceparent": traceparent }))));
            assert_eq!(sent(&read)["traceparent"], ONE.replace("-01", &format!("-{expected}")));
        }
    }

    #[test]
    fn a_malformed_or_zero_traceparent_is_passed_over() {
        for bad in [
            "",
            "garbage",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7-b7ad-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0100",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
        ] {
            assert!(from_headers(&headers(&[("traceparent", bad)])).is_none(), "{bad}");
            assert!(
                Inbound::read(&HeaderMap::new(), Some(&meta(json!({ "traceparent": bad })))).parent.is_none(),
                "{bad}"
            );
        }
        assert!(from_headers(&HeaderMap::new()).is_none());
        assert!(Inbound::read(&HeaderMap::new(), Some(&meta(json!({ "traceparent": 7 })))).parent.is_none());
    }

    #[test]
    fn the_message_names_the_parent_and_the_transport_is_linked() {
        let read = Inbound::read(&headers(&[("traceparent", OTHER)]), Some(&meta(json!({ "traceparent": ONE }))));
        assert_eq!(read.parent.unwrap().span_id().to_string(), "b7ad6b7169203331");
        assert_eq!(read.link.unwrap().span_id().to_string(), "00f067aa0ba902b7");
    }

    #[test]
    fn the_same_span_in_both_is_not_linked_to_itself() {
        let read = Inbound::read(&headers(&[("traceparent", ONE)]), Some(&meta(json!({ "traceparent": ONE }))));
        assert!(read.parent.is_some() && read.link.is_none());
    }

    #[test]
    fn without_a_context_in_the_message_the_headers_name_the_parent() {
        for meta in [None, Some(meta(json!({ "traceparent": "garbage" })))] {
            let read = Inbound::read(&headers(&[("traceparent", ONE)]), meta.as_ref());
            assert_eq!(read.parent.unwrap().span_id().to_string(), "b7ad6b7169203331");
            assert!(read.link.is_none());
        }
    }

    #[test]
    fn a_tracestate_is_kept_also_when_spread_over_headers_and_left_out_when_bad() {
        let read = Inbound::read(&headers(&[("traceparent", ONE), ("tracestate", "a=1"), ("tracestate", "b=2")]), None);
        assert_eq!(sent(&read)["tracestate"], "a=1,b=2");
        let read =
            Inbound::read(&HeaderMap::new(), Some(&meta(json!({ "traceparent": ONE, "tracestate": "no pair" }))));
        assert!(read.parent.is_some());
        assert!(!sent(&read).contains_key("tracestate"));
    }

    #[test]
    fn a_tracestate_without_a_traceparent_means_nothing() {
        assert!(sent(&Inbound::read(&headers(&[("tracestate", "a=1")]), None)).is_empty());
    }

    #[test]
    fn baggage_is_passed_on_as_it_came() {
        let text = "userId=alice,serverNode=DF%2028;ttl=30;secure,isProduction=false";
        let in_message = Inbound::read(&headers(&[("baggage", "k=header")]), Some(&meta(json!({ "baggage": text }))));
        assert_eq!(sent(&in_message)["baggage"], text);
        let in_headers = Inbound::read(&headers(&[("baggage", "a=1"), ("baggage", "b=2")]), None);
        assert_eq!(sent(&in_headers)["baggage"], "a=1,b=2");
    }

    #[test]
    fn bad_members_of_baggage_are_left_out_and_the_others_kept() {
        let kept = Baggage::parse("a=1, novalue ,b d=2,c=\"q\",=3,d=,\u{e9}=1,e=1;bad prop,f=2;ok").unwrap();
        assert_eq!(kept.as_str(), "a=1,d=,f=2;ok");
        assert!(Baggage::parse("nothing here").is_none());
    }

    #[test]
    fn baggage_is_not_shown() {
        assert_eq!(format!("{:?}", Baggage::parse("user=alice").unwrap()), "Baggage(10 bytes)");
    }

    #[test]
    fn the_callers_fields_are_replaced_in_both_carriers() {
        let inbound = Inbound::read(&headers(&[("traceparent", ONE), ("baggage", "a=1")]), None);
        let outbound = Outbound::new(inbound.parent.as_ref(), None);
        let mut message =
            meta(json!({ "traceparent": OTHER, "tracestate": "x=1", "baggage": "b=2", "progressToken": 7 }));
        outbound.put_meta(&mut message);
        assert_eq!(Value::Object(message), json!({ "traceparent": ONE, "progressToken": 7 }));
        let mut head = headers(&[("traceparent", OTHER), ("baggage", "b=2"), ("accept", "*/*")]);
        outbound.put_headers(&mut head);
        assert_eq!(head, headers(&[("accept", "*/*"), ("traceparent", ONE)]));
    }

    proptest! {
        #[test]
        fn what_comes_in_never_goes_out_larger_than_the_bounds(text in "[ -~]{0,200}", times in 1_usize..400) {
            let long = vec![text; times].join(",");
            let read = Inbound::read(&HeaderMap::new(), Some(&meta(json!({ "baggage": long, "traceparent": ONE, "tracestate": long }))));
            if let Some(baggage) = &read.baggage {
                prop_assert!(baggage.as_str().len() <= BAGGAGE_BYTES);
                prop_assert!(baggage.as_str().split(',').count() <= BAGGAGE_MEMBERS);
                prop_assert_eq!(Baggage::parse(baggage.as_str()), Some(baggage.clone()));
            }
            let mut head = HeaderMap::new();
            let outbound = Outbound::new(read.parent.as_ref(), read.baggage);
            outbound.put_headers(&mut head);
            prop_assert_eq!(head.len(), outbound.fields().count(), "whatever goes into a message fits a header too");
        }
    }
}
