//! JSON-RPC messages as a relay sees them: the method, the id, and everything else as it was written.
//!
//! A relay must not drop what it does not know: parameters and results stay JSON values from the socket they came in by
//! to the socket they leave by. On the wire a message is one JSON object, told apart by its members as JSON-RPC 2.0
//! says: `method` and `id` make a request, `method` alone a notification, `result` or `error` a response.
//!
//! Parameters and results are payload: no type here shows them in its `Debug` (invariant I6).

use std::fmt;
use std::io::{self, Write};

use rmcp::model::{CustomResult, ErrorData, RequestId, ServerJsonRpcMessage, ServerResult};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

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
    pub(crate) id: RequestId,
    pub(crate) method: String,
    pub(crate) params: Option<Value>,
}

/// A notification.
#[derive(Clone)]
pub(crate) struct Notification {
    pub(crate) method: String,
    pub(crate) params: Option<Value>,
}

/// The answer to the request of the same id. An error may have none, when the request's could not be read.
pub(crate) struct Response {
    pub(crate) id: Option<RequestId>,
    pub(crate) outcome: Result<Value, ErrorData>,
}

impl Response {
    /// Whether it is the answer to the request of this id. Some servers write a number as text.
    pub(crate) fn answers(&self, id: i64) -> bool {
        match &self.id {
            Some(RequestId::Number(found)) => *found == id,
            Some(RequestId::String(found)) => found.parse() == Ok(id),
            None => false,
        }
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
    pub(crate) fn to_error(self) -> ErrorData {
        match self {
            Self::Json { .. } => ErrorData::parse_error(self.to_string(), None),
            Self::Shape(_) => ErrorData::invalid_request(self.to_string(), None),
        }
    }
}

/// A message as it is on the wire. A member that is `null` is told apart from one that is absent.
#[derive(Deserialize)]
struct Wire {
    jsonrpc: Option<String>,
    #[serde(default, deserialize_with = "present")]
    id: Option<Value>,
    method: Option<String>,
    params: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    result: Option<Value>,
    error: Option<ErrorData>,
}

fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

impl Message {
    /// Reads one message.
    ///
    /// # Errors
    /// When it is none.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let wire: Wire = serde_json::from_slice(bytes).map_err(|error| {
            if error.is_data() {
                Malformed::Shape("the body is not one JSON-RPC message (batches are not part of MCP)")
            } else {
                Malformed::Json { line: error.line(), column: error.column() }
            }
        })?;
        if wire.jsonrpc.as_deref() != Some("2.0") {
            return Err(Malformed::Shape("jsonrpc must be \"2.0\""));
        }
        let id = match wire.id {
            None | Some(Value::Null) => None,
            Some(id) => Some(request_id(id).ok_or(Malformed::Shape("id must be a string or a whole number"))?),
        };
        match (wire.method, id, wire.result, wire.error) {
            (Some(method), Some(id), None, None) => Ok(Self::Request(Request { id, method, params: wire.params })),
            (Some(method), None, None, None) => Ok(Self::Notification(Notification { method, params: wire.params })),
            (None, Some(id), Some(result), None) => Ok(Self::Response(Response { id: Some(id), outcome: Ok(result) })),
            (None, id, None, Some(error)) => Ok(Self::Response(Response { id, outcome: Err(error) })),
            _ => Err(Malformed::Shape("a message is a request, a notification or a response")),
        }
    }
}

fn request_id(id: Value) -> Option<RequestId> {
    match id {
        Value::String(text) => Some(RequestId::String(text.into())),
        Value::Number(number) => number.as_i64().map(RequestId::Number),
        _ => None,
    }
}

impl Request {
    /// `params._meta`, where it is an object.
    pub(crate) fn meta(&self) -> Option<&Map<String, Value>> {
        meta(self.params.as_ref())
    }

    /// The request without its arguments, as JSON, where it has some: all that whoever routes it has to read.
    pub(crate) fn outline(&self) -> Option<Vec<u8>> {
        #[derive(Serialize)]
        struct Outline<'a> {
            jsonrpc: &'static str,
            id: &'a RequestId,
            method: &'a str,
            params: Map<String, Value>,
        }
        let params = self.params.as_ref()?.as_object().filter(|params| params.contains_key("arguments"))?;
        let others = params.iter().filter(|(name, _)| *name != "arguments");
        let params = others.map(|(name, value)| (name.clone(), value.clone())).collect();
        serde_json::to_vec(&Outline { jsonrpc: "2.0", id: &self.id, method: &self.method, params }).ok()
    }

    /// A member of the parameters that is text.
    pub(crate) fn text(&self, member: &str) -> Option<&str> {
        self.params.as_ref()?.get(member)?.as_str()
    }
}

/// `params._meta`, where it is an object.
pub(crate) fn meta(params: Option<&Value>) -> Option<&Map<String, Value>> {
    params?.get("_meta")?.as_object()
}

/// The request's progress token, as its sender wrote it.
pub(crate) fn progress_token(params: Option<&Value>) -> Option<&Value> {
    meta(params)?.get("progressToken")
}

/// The response to the request of that id, and how large it is.
pub(crate) fn response(id: &RequestId, outcome: Result<Value, ErrorData>) -> (ServerJsonRpcMessage, u64) {
    let message = match outcome {
        Ok(result) => ServerJsonRpcMessage::response(ServerResult::CustomResult(CustomResult(result)), id.clone()),
        Err(error) => ServerJsonRpcMessage::error(error, Some(id.clone())),
    };
    let bytes = size(&message);
    (message, bytes)
}

/// How many bytes `value` has as JSON.
pub(crate) fn size(value: &impl Serialize) -> u64 {
    struct Count(u64);
    impl Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.saturating_add(bytes.len() as u64);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    // Counting cannot fail, and a JSON value has no key that is no string.
    let _ = serde_json::to_writer(&mut count, value);
    count.0
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Malformed, Message, size};

    #[test]
    fn messages_are_told_apart_by_their_members() {
        let parse = |value: serde_json::Value| Message::parse(value.to_string().as_bytes());
        assert!(matches!(parse(json!({"jsonrpc": "2.0", "id": 1, "method": "ping"})), Ok(Message::Request(_))));
        assert!(matches!(parse(json!({"jsonrpc": "2.0", "method": "ping"})), Ok(Message::Notification(_))));
        assert!(matches!(parse(json!({"jsonrpc": "2.0", "id": "a", "result": null})), Ok(Message::Response(_))));
        let error = json!({"jsonrpc": "2.0", "id": null, "error": {"code": -1, "message": "no"}});
        assert!(matches!(parse(error), Ok(Message::Response(_))));
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
            let fault = Message::parse(body.as_bytes()).unwrap_err();
            assert!(!fault.to_string().contains(secret), "{fault}");
        }
        assert_eq!(Message::parse(b"{").unwrap_err(), Malformed::Json { line: 1, column: 1 });
    }

    #[test]
    fn an_outline_has_all_but_the_arguments() {
        let body =
            json!({"jsonrpc": "2.0", "id": "a", "method": "tools/call", "params": {"name": "t", "_meta": {"k": 1}}});
        let mut whole = body.clone();
        whole["params"]["arguments"] = json!({"secret": "hunter2"});
        let parse = |value: &serde_json::Value| match Message::parse(value.to_string().as_bytes()) {
            Ok(Message::Request(request)) => request,
            other => panic!("{other:?}"),
        };
        let outline: serde_json::Value = serde_json::from_slice(&parse(&whole).outline().unwrap()).unwrap();
        assert_eq!(outline, body);
        assert!(parse(&body).outline().is_none(), "it is one already");
    }

    #[test]
    fn debug_shows_no_payload() {
        let body = br#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"arguments":{"password":"hunter2"}}}"#;
        assert!(!format!("{:?}", Message::parse(body).unwrap()).contains("hunter2"));
    }

    #[test]
    fn a_size_is_that_of_the_json() {
        let value = json!({"a": [1, 2, "três"]});
        assert_eq!(size(&value), value.to_string().len() as u64);
    }
}
