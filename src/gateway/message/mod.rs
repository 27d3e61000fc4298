//! JSON-RPC messages as a relay carries them: the method, the id, and everything else as the bytes it was written in.
//!
//! Parameters and results are [`Json`]: slices of the body they came in, checked to be JSON and never parsed into a
//! tree on their way. So a number, the order of members, an unknown member or an escape arrives as its sender wrote it.
//! What a relay has to replace (a name's prefix, `_meta`, a progress token) it replaces member by member ([`Object`]);
//! all other members keep their bytes. White space between the members of an object that is rewritten goes, and line
//! breaks go on the way to a pipe or an event stream, where they would end a message ([`Json::one_line`]).
//!
//! A message is one JSON object; its members say which kind it is, as JSON-RPC 2.0 says: `method` and `id` make a
//! request, `method` alone a notification, `result` or `error` a response.
//!
//! Two parsers may read an object that names a member twice differently, so that one of them decides on what the other
//! does not see. What decides asks [`Json::is_unambiguous`] first.
//!
//! Parameters and results are payload: no type here shows them in its `Debug` (invariant I6).

mod encode;
mod id;
mod json;
mod object;

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny};
use serde_json::value::RawValue;

pub(crate) use self::encode::{encode, encode_response};
pub(crate) use self::id::Id;
pub(crate) use self::json::Json;
use self::json::{Items, TOO_MANY};
pub(crate) use self::object::Object;
use super::protocol::code;

/// Members that an object has at most that is taken apart: parameters, what lies directly within them, a result.
const MAX_MEMBERS: usize = 1_024;

/// The largest `_meta` of parameters.
const MAX_META: usize = 64 << 10;

/// Any message.
#[derive(Debug)]
pub(crate) enum Message {
    /// It expects a response.
    Request(Request),
    /// It expects none.
    Notification(Notification),
    /// The answer to a request.
    Response(Response),
}

/// A request.
#[derive(Clone)]
pub(crate) struct Request {
    pub(crate) id: Id,
    pub(crate) method: Box<str>,
    pub(crate) params: Option<Json>,
}

/// A notification.
#[derive(Clone)]
pub(crate) struct Notification {
    pub(crate) method: Box<str>,
    pub(crate) params: Option<Json>,
}

/// The answer to the request of the same id. An error may have none, when the request's could not be read.
#[derive(Clone)]
pub(crate) struct Response {
    pub(crate) id: Option<Id>,
    pub(crate) outcome: Result<Json, RpcError>,
}

/// The error of a response.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct RpcError {
    pub(crate) code: i64,
    pub(crate) message: Box<str>,
    pub(crate) data: Option<Json>,
}

impl RpcError {
    pub(crate) fn new(code: i64, message: impl Into<Box<str>>) -> Self {
        Self { code, message: message.into(), data: None }
    }

    pub(crate) fn with_data(mut self, data: Json) -> Self {
        self.data = Some(data);
        self
    }

    pub(crate) fn invalid_request(message: impl Into<Box<str>>) -> Self {
        Self::new(code::INVALID_REQUEST, message)
    }

    pub(crate) fn invalid_params(message: impl Into<Box<str>>) -> Self {
        Self::new(code::INVALID_PARAMS, message)
    }

    pub(crate) fn method_not_found(message: impl Into<Box<str>>) -> Self {
        Self::new(code::METHOD_NOT_FOUND, message)
    }

    pub(crate) fn internal(message: impl Into<Box<str>>) -> Self {
        Self::new(code::INTERNAL_ERROR, message)
    }

    /// As it stands in a response.
    pub(crate) fn to_json(&self) -> Json {
        let mut text = BytesMut::new();
        self.put(&mut text);
        Json(text.freeze())
    }

    fn put(&self, text: &mut BytesMut) {
        text.extend_from_slice(b"{\"code\":");
        text.extend_from_slice(itoa::Buffer::new().format(self.code).as_bytes());
        text.extend_from_slice(b",\"message\":");
        text.extend_from_slice(Json::text(&self.message).as_bytes());
        if let Some(data) = &self.data {
            text.extend_from_slice(b",\"data\":");
            text.extend_from_slice(data.as_bytes());
        }
        text.put_u8(b'}');
    }
}

/// Why bytes are no message. Says nothing of what they hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    /// No JSON at all.
    #[error("Parse error: the body is not JSON (line {line}, column {column})")]
    Json { line: usize, column: usize },
    /// JSON, but no message.
    #[error("Invalid Request: {0}")]
    Shape(&'static str),
}

impl Malformed {
    /// The error of JSON-RPC for it.
    pub(crate) fn to_error(self) -> RpcError {
        let code = match self {
            Self::Json { .. } => code::PARSE_ERROR,
            Self::Shape(_) => code::INVALID_REQUEST,
        };
        RpcError::new(code, self.to_string())
    }
}

/// The members of a message. A member that is `null` is another than one that is absent.
#[derive(Deserialize)]
struct Members<'a> {
    jsonrpc: Option<String>,
    #[serde(borrow, default, deserialize_with = "present")]
    id: Option<&'a RawValue>,
    method: Option<Box<str>>,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    result: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<ErrorMembers<'a>>,
}

#[derive(Deserialize)]
struct ErrorMembers<'a> {
    code: i64,
    #[serde(default)]
    message: Box<str>,
    #[serde(borrow, default, deserialize_with = "present")]
    data: Option<&'a RawValue>,
}

fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

impl Message {
    /// Reads one message.
    ///
    /// # Errors
    /// When it is no message.
    pub(crate) fn parse(body: &Bytes) -> Result<Self, Malformed> {
        let text = std::str::from_utf8(body).map_err(|_| Malformed::Json { line: 1, column: 1 })?;
        let members: Members<'_> = serde_json::from_str(text).map_err(|error| {
            // Whether it is JSON at all is what tells the two codes apart.
            if error.is_data() && serde_json::from_str::<IgnoredAny>(text).is_ok() {
                Malformed::Shape("the body is not one JSON-RPC message")
            } else {
                Malformed::Json { line: error.line(), column: error.column() }
            }
        })?;
        if members.jsonrpc.as_deref() != Some("2.0") {
            return Err(Malformed::Shape("jsonrpc must be \"2.0\""));
        }
        let id = match members.id.map(RawValue::get) {
            None | Some("null") => None,
            Some(id) => {
                let id = Id::from_slice(id.as_bytes());
                Some(id.ok_or(Malformed::Shape("id must be a string or a whole number"))?)
            }
        };
        let params = members.params.map(|raw| Json::within(body, raw));
        if params.as_ref().is_some_and(Json::is_array) {
            return Err(Malformed::Shape("params must be an object"));
        }
        if params.as_ref().is_some_and(|params| !is_bounded(params)) {
            return Err(Malformed::Shape("params have too many members"));
        }
        match (members.method, id, members.result, members.error) {
            (Some(method), Some(id), None, None) => Ok(Self::Request(Request { id, method, params })),
            (Some(method), None, None, None) if members.id.is_none() => {
                Ok(Self::Notification(Notification { method, params }))
            }
            (None, Some(id), Some(result), None) => {
                let result = Json::within(body, result);
                if !result.has_at_most(MAX_MEMBERS) {
                    return Err(Malformed::Shape("the result has too many members"));
                }
                Ok(Self::Response(Response { id: Some(id), outcome: Ok(result) }))
            }
            (None, id, None, Some(error)) => {
                let data = error.data.map(|raw| Json::within(body, raw));
                let error = RpcError { code: error.code, message: error.message, data };
                Ok(Self::Response(Response { id, outcome: Err(error) }))
            }
            _ => Err(Malformed::Shape("a message is a request, a notification or a response")),
        }
    }

    /// The messages of a body that may be an array of them (JSON-RPC batches), at most so many, and whether it is one.
    ///
    /// # Errors
    /// When the body is neither a message nor an array with anything in it, or one with more. Items that are no
    /// messages are errors of their own.
    pub(crate) fn parse_batch(body: &Bytes, most: usize) -> Result<Option<Vec<Result<Self, Malformed>>>, Malformed> {
        if body.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'[') {
            return Ok(None);
        }
        let text = std::str::from_utf8(body).map_err(|_| Malformed::Json { line: 1, column: 1 })?;
        let mut parser = serde_json::Deserializer::from_str(text);
        let items = Items { most, cut: false }.deserialize(&mut parser).and_then(|items| parser.end().map(|()| items));
        let items = items.map_err(|error| match error.to_string().starts_with(TOO_MANY) {
            true => Malformed::Shape("an array of too many messages"),
            false => Malformed::Json { line: error.line(), column: error.column() },
        })?;
        if items.is_empty() {
            return Err(Malformed::Shape("an array without any message"));
        }
        Ok(Some(items.into_iter().map(|raw| Self::parse(&Json::within(body, raw).0)).collect()))
    }
}

/// Whether a message's parameters are no more than may be taken apart: what is kept of each member takes many times the
/// member's own size. Of `arguments` no member is kept.
fn is_bounded(params: &Json) -> bool {
    if params.len() <= MAX_MEMBERS {
        return true;
    }
    if !params.has_at_most(MAX_MEMBERS) {
        return false;
    }
    let Some(object) = params.object() else { return true };
    object.iter().all(|(name, member)| match name {
        "arguments" => true,
        "_meta" => member.len() <= MAX_META,
        _ => member.has_at_most(MAX_MEMBERS),
    })
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").field("method", &self.method).finish_non_exhaustive()
    }
}

impl fmt::Debug for Notification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notification").field("method", &self.method).finish_non_exhaustive()
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Response").field("ok", &self.outcome.is_ok()).finish_non_exhaustive()
    }
}

impl fmt::Debug for RpcError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RpcError").field("code", &self.code).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::json;

    use super::{Id, Json, Malformed, Message, RpcError, encode, encode_response};

    fn raw(text: &str) -> Json {
        Json::parse(&Bytes::copy_from_slice(text.as_bytes())).unwrap()
    }

    fn parse(text: &str) -> Result<Message, Malformed> {
        Message::parse(&Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn messages_are_told_apart_by_their_members() {
        let parse = |value: serde_json::Value| parse(&value.to_string());
        assert!(matches!(parse(json!({"jsonrpc": "2.0", "id": 1, "method": "ping"})), Ok(Message::Request(_))));
        assert!(matches!(parse(json!({"jsonrpc": "2.0", "method": "ping"})), Ok(Message::Notification(_))));
        assert!(matches!(parse(json!({"jsonrpc": "2.0", "id": "a", "result": null})), Ok(Message::Response(_))));
        let error = json!({"jsonrpc": "2.0", "id": null, "error": {"code": -1, "message": "no"}});
        assert!(matches!(parse(error), Ok(Message::Response(_))));
        assert!(parse(json!({"jsonrpc": "2.0", "id": null, "method": "ping"})).is_err(), "null is not an id");
        assert!(parse(json!({"jsonrpc": "2.0", "id": 1, "method": "ping", "params": [1]})).is_err());
    }

    #[test]
    fn params_are_the_bytes_they_were_written_in() {
        let params = r#"{ "wei":1000000000000000000001, "b" : "\u00e9", "a":1.50 }"#;
        let Ok(Message::Request(request)) =
            parse(&format!(r#"{{"jsonrpc":"2.0","id":7,"method":"m","params": {params} }}"#))
        else {
            panic!("a request")
        };
        assert_eq!(request.params.as_ref().unwrap().as_bytes(), params.as_bytes());
        let again = encode(Some(&request.id), &request.method, request.params.as_ref());
        assert_eq!(again, format!(r#"{{"jsonrpc":"2.0","id":7,"method":"m","params":{params}}}"#));
    }

    #[test]
    fn what_is_no_message_is_refused_without_an_echo() {
        let secret = "hunter2";
        for body in [
            format!("{{\"{secret}\""),
            format!("[\"{secret}\"]"),
            format!("{{\"jsonrpc\": \"2.0\", \"id\": {{\"a\": \"{secret}\"}}, \"method\": \"x\"}}"),
            format!("{{\"jsonrpc\": \"{secret}\", \"method\": \"x\"}}"),
        ] {
            let fault = parse(&body).unwrap_err();
            assert!(!fault.to_string().contains(secret), "{fault}");
        }
        assert_eq!(parse("{").unwrap_err(), Malformed::Json { line: 1, column: 1 });
        let twice = parse(r#"{"jsonrpc":"2.0","id":1,"method":"a","method":"b"}"#);
        assert!(matches!(twice, Err(Malformed::Shape(_))), "a method that is named twice");
    }

    #[test]
    fn a_member_is_replaced_in_its_place_and_the_others_keep_their_bytes() {
        let mut object = raw(r#"{ "z": 1e400, "n\u0061me": "x", "y": [1, 2] }"#).object().unwrap();
        assert_eq!(object.text("name").unwrap(), "x");
        object.set("name", Json::text("y"));
        object.set("new", Json::of(&1));
        assert_eq!(object.take("y").unwrap().as_bytes(), b"[1, 2]");
        assert_eq!(object.to_json().as_bytes(), br#"{"z":1e400,"n\u0061me":"y","new":1}"#);
    }

    #[test]
    fn a_member_that_is_named_twice_is_seen_at_any_depth() {
        assert!(raw(r#"{"a": [{"b": 1}, {"b": 2}], "b": null}"#).is_unambiguous());
        assert!(raw(r#"{"n": 1E400, "m": "\"n\":", "s": ["n", "n"]}"#).is_unambiguous());
        for twice in [r#"{"a":1,"a":2}"#, r#"[{"x":{"a":1,"\u0061":2}}]"#, r#"{"a":[{},{"b":"\\","b":1}]}"#] {
            assert!(!raw(twice).is_unambiguous(), "{twice}");
        }
        assert!(!raw(&format!("{}{}", "[".repeat(500), "]".repeat(500))).is_unambiguous());
    }

    #[test]
    fn a_member_set_anew_is_there_once() {
        let mut object = raw(r#"{"a":1,"b":2,"a":3}"#).object().unwrap();
        assert_eq!(object.get("a").unwrap().as_bytes(), b"3");
        object.set("a", Json::of(&4));
        assert_eq!(object.to_json().as_bytes(), br#"{"a":4,"b":2}"#);
    }

    #[test]
    fn line_breaks_go_and_nothing_else() {
        assert_eq!(raw("{\r\n  \"a\": \"b\\nc\"\n}").one_line().as_bytes(), br#"{  "a": "b\nc"}"#);
    }

    #[test]
    fn an_array_is_as_many_messages() {
        let body = Bytes::from_static(br#" [{"jsonrpc":"2.0","id":1,"method":"a"}, 7]"#);
        let items = Message::parse_batch(&body, 64).unwrap().unwrap();
        assert!(matches!(&items[..], [Ok(Message::Request(_)), Err(Malformed::Shape(_))]));
        assert!(Message::parse_batch(&Bytes::from_static(b"{}"), 64).unwrap().is_none());
        assert!(Message::parse_batch(&Bytes::from_static(b"[]"), 64).is_err());
    }

    #[test]
    fn an_array_of_more_messages_than_may_be_is_not_taken_apart() {
        let body = Bytes::from(format!("[{}1]", "1,".repeat(64)));
        assert!(matches!(Message::parse_batch(&body, 64), Err(Malformed::Shape(_))));
        let body = Bytes::from(format!("[{}1]x", "1,".repeat(7)));
        assert!(matches!(Message::parse_batch(&body, 64), Err(Malformed::Json { .. })));
    }

    #[test]
    fn more_members_than_are_taken_apart_are_refused_wherever_they_are_but_in_arguments() {
        let many = format!("{{{}\"z\":1}}", (0..2_000).map(|n| format!("\"m{n}\":1,")).collect::<String>());
        let padding = " ".repeat(2_000);
        let request = |params: &str| parse(&format!(r#"{{"jsonrpc":"2.0","id":7,"method":"m","params":{params}}}"#));
        assert!(request(&many).is_err());
        assert!(request(&format!(r#"{{"inputResponses":{many}}}"#)).is_err());
        assert!(request(&format!(r#"{{"_meta":{{"x":"{}"}}}}"#, "x".repeat(65_536))).is_err());
        assert!(request(&format!(r#"{{"arguments":{many},{padding}"name":"t"}}"#)).is_ok());
        assert!(parse(&format!(r#"{{"jsonrpc":"2.0","id":7,"result":{many}}}"#)).is_err());
        assert!(parse(&format!(r#"{{"jsonrpc":"2.0","id":7,"result":{{"structuredContent":{many}}}}}"#)).is_ok());
    }

    #[test]
    fn a_member_is_found_however_its_name_is_written() {
        let json = raw(r#"{"a":1,"n\u0061me":"x","b":{"name":"y"},"a":2}"#);
        assert_eq!(json.get("name").unwrap().as_text().unwrap(), "x");
        assert_eq!(json.get("a").unwrap().as_bytes(), b"2", "the last of several");
        assert!(json.get("y").is_none() && raw("[1]").get("a").is_none());
        assert!(json.has_at_most(4) && raw(&format!("{{{}\"a\":1}}", "\"a\":1,".repeat(9))).has_at_most(10));
        assert!(!raw(&format!("{{{}\"a\":1}}", "\"a\":1,".repeat(9))).has_at_most(9));
    }

    #[test]
    fn a_response_has_its_id_as_it_came() {
        let text = encode_response(Some(&Id::Text("a\"b".into())), &Ok(raw("{ }")));
        assert_eq!(text, r#"{"jsonrpc":"2.0","id":"a\"b","result":{ }}"#);
        let error = RpcError::invalid_params("no").with_data(raw("[1]"));
        let text = encode_response(None, &Err(error));
        assert_eq!(text, r#"{"jsonrpc":"2.0","error":{"code":-32602,"message":"no","data":[1]}}"#);
    }

    #[test]
    fn debug_shows_no_payload() {
        let body =
            r#"{"jsonrpc":"2.0","id":"hunter2","method":"tools/call","params":{"arguments":{"password":"hunter2"}}}"#;
        assert!(!format!("{:?}", parse(body).unwrap()).contains("hunter2"));
    }
}
