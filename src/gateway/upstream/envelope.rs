//! How raw JSON travels through the SDK's client transport.
//!
//! The SDK's transports carry messages as its own models, and a model drops every member it does not know. A relay must
//! not. So what an upstream sends is put into an envelope that only the SDK's catch-all types match, with the raw
//! message inside, and taken out of it on the other side; what is sent carries its raw body beside the model, as an
//! extension that never reaches the wire by itself.
//!
//! | from the upstream | in the envelope |
//! |---|---|
//! | a result | a custom result `{"mcpg": <the result>}` |
//! | the result of `initialize` | the SDK's own model, since its transport reads the version; the raw one in its `_meta` |
//! | a notification, a request | a custom one named `mcpg`, with the raw `method`, `params`, and the request whose stream brought it |
//! | an error | as it is: the model of an error is complete |
//! | more than may be passed on | an error of the request that asked, whose `data` is `{"mcpg": <the limit>}` |

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::HeaderMap;
use rmcp::model::{
    ClientJsonRpcMessage, CustomNotification, CustomRequest, CustomResult, ErrorData, GetExtensions, InitializeResult,
    JsonRpcMessage, RequestId, ServerJsonRpcMessage, ServerNotification, ServerRequest, ServerResult,
};
use rmcp::service::InboundStreamOrigin;
use rmcp::transport::common::client_side_sse::BoxedSseResponse;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::fault::UpstreamFault;
use crate::gateway::message::{Message, Notification, Request, Response};

/// The envelope's name: a method, and a member of a result, that no upstream's own message can be mistaken for, since
/// every message goes through here.
const NAME: &str = "mcpg";

/// How the SDK's transport marks the error that it puts in place of an answer that will not come.
const TRANSPORT_CLOSED: &str = "io.modelcontextprotocol/transportClosed";

/// What a request or notification to an upstream carries beside the SDK's model.
#[derive(Clone)]
pub(super) struct Outbound {
    /// The whole message as JSON.
    pub(super) body: Bytes,
    /// Headers of this message alone (trace context), where the transport has headers.
    pub(super) headers: HeaderMap,
    /// What has been received for it already, if it was sent past the transport. Taken once.
    events: Arc<Mutex<Option<BoxedSseResponse>>>,
}

impl Outbound {
    /// A message that is to be sent.
    pub(super) fn new(body: Bytes, headers: HeaderMap) -> Self {
        Self { body, headers, events: Arc::default() }
    }

    /// The same, sent already: these events are its answer.
    pub(super) fn answered_by(self, events: BoxedSseResponse) -> Self {
        Self { events: Arc::new(Mutex::new(Some(events))), ..self }
    }

    /// The events of its answer, the first time it is asked for.
    pub(super) fn take_events(&self) -> Option<BoxedSseResponse> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A message that came out of its envelope.
pub(super) struct Inbound {
    pub(super) message: Message,
    /// The request of ours on whose stream it came, where the transport can tell.
    pub(super) origin: Option<i64>,
}

/// The bytes to send for `message`.
pub(super) fn body(message: &ClientJsonRpcMessage) -> Result<Bytes, serde_json::Error> {
    if let Some(outbound) = outbound(message) {
        return Ok(outbound.body.clone());
    }
    serde_json::to_vec(message).map(Bytes::from)
}

/// What goes with `message`, where it is a request or notification that was made by [`encode`].
pub(super) fn outbound(message: &ClientJsonRpcMessage) -> Option<&Outbound> {
    match message {
        JsonRpcMessage::Request(request) => request.request.extensions().get(),
        JsonRpcMessage::Notification(notification) => notification.notification.extensions().get(),
        JsonRpcMessage::Response(_) | JsonRpcMessage::Error(_) => None,
    }
}

/// A message as JSON.
pub(super) fn encode(id: Option<&RequestId>, method: &str, params: Option<&Value>) -> Result<Bytes, serde_json::Error> {
    #[derive(Serialize)]
    struct Wire<'a> {
        jsonrpc: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a RequestId>,
        method: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        params: Option<&'a Value>,
    }
    serde_json::to_vec(&Wire { jsonrpc: "2.0", id, method, params }).map(Bytes::from)
}

/// Puts a message from an upstream into its envelope. `origin` is the request on whose stream it came.
pub(super) fn seal(message: Message, origin: Option<i64>) -> ServerJsonRpcMessage {
    match message {
        Message::Request(Request { id, method, params }) => {
            let request = CustomRequest::new(NAME, Some(inner(method, params, origin)));
            ServerJsonRpcMessage::request(ServerRequest::CustomRequest(request), id)
        }
        Message::Notification(Notification { method, params }) => {
            let notification = CustomNotification::new(NAME, Some(inner(method, params, origin)));
            ServerJsonRpcMessage::notification(ServerNotification::CustomNotification(notification))
        }
        Message::Response(Response { id: Some(id), outcome: Ok(result) }) => {
            ServerJsonRpcMessage::response(ServerResult::CustomResult(CustomResult(json!({ NAME: result }))), id)
        }
        Message::Response(Response { outcome: Err(error), id }) => ServerJsonRpcMessage::error(error, id),
        // A result without an id is not parsed as a message.
        Message::Response(Response { id: None, outcome: Ok(_) }) => ServerJsonRpcMessage::error(
            ErrorData::invalid_request("Invalid Request: a result without an id", None),
            None,
        ),
    }
}

/// The same for what answers `initialize`, which the SDK's transport must be able to read.
///
/// # Errors
/// When the result is none of `initialize`.
pub(super) fn seal_initialize(message: Message) -> Result<ServerJsonRpcMessage, serde_json::Error> {
    let Message::Response(Response { id: Some(id), outcome: Ok(mut raw) }) = message else {
        return Ok(seal(message, None));
    };
    let kept = raw.clone();
    if let Some(result) = raw.as_object_mut() {
        let meta = result.entry("_meta").or_insert_with(|| Value::Object(Map::new()));
        if let Some(meta) = meta.as_object_mut() {
            meta.insert(NAME.to_owned(), kept);
        }
    }
    let model: InitializeResult = serde_json::from_value(raw)?;
    Ok(ServerJsonRpcMessage::response(ServerResult::InitializeResult(model), id))
}

fn inner(method: String, params: Option<Value>, origin: Option<i64>) -> Value {
    let mut inner = Map::new();
    inner.insert("method".to_owned(), Value::String(method));
    if let Some(params) = params {
        inner.insert("params".to_owned(), params);
    }
    if let Some(origin) = origin {
        inner.insert("origin".to_owned(), Value::from(origin));
    }
    Value::Object(inner)
}

/// What stands for an answer that is larger than `limit`.
pub(super) fn seal_too_large(id: i64, limit: u64) -> ServerJsonRpcMessage {
    let error = ErrorData::internal_error("", Some(json!({ NAME: limit })));
    ServerJsonRpcMessage::error(error, Some(RequestId::Number(id)))
}

/// The same where it cannot be told whose answer it is.
pub(super) fn seal_unread(limit: u64) -> ServerJsonRpcMessage {
    ServerJsonRpcMessage::error(ErrorData::internal_error("", Some(json!({ NAME: limit }))), None)
}

/// What an error that the transport put in an answer's place stands for; `None`: it is the upstream's own.
pub(super) fn fault(error: &ErrorData) -> Option<UpstreamFault> {
    let data = error.data.as_ref()?.as_object()?;
    if let Some(limit) = data.get(NAME).and_then(Value::as_u64) {
        return Some(UpstreamFault::TooLarge { limit });
    }
    data.contains_key(TRANSPORT_CLOSED).then_some(UpstreamFault::Broken)
}

/// Takes a message out of its envelope. `None` for one that was never in one: the SDK makes up a few itself, none of
/// which a relay has a use for.
pub(super) fn open(message: ServerJsonRpcMessage) -> Option<Inbound> {
    match message {
        JsonRpcMessage::Request(request) => {
            let ServerRequest::CustomRequest(custom) = request.request else { return None };
            // The envelope's origin is that of the stream; after a resumed stream only the SDK knows it.
            let resumed = match custom.extensions.get::<InboundStreamOrigin>() {
                Some(InboundStreamOrigin::OutboundRequest(RequestId::Number(id))) => Some(*id),
                _ => None,
            };
            let (method, params, origin) = parts(custom.params)?;
            let message = Message::Request(Request { id: request.id, method, params });
            Some(Inbound { message, origin: origin.or(resumed) })
        }
        JsonRpcMessage::Notification(notification) => {
            let ServerNotification::CustomNotification(custom) = notification.notification else { return None };
            let (method, params, origin) = parts(custom.params)?;
            Some(Inbound { message: Message::Notification(Notification { method, params }), origin })
        }
        JsonRpcMessage::Response(response) => {
            let result = match response.result {
                ServerResult::CustomResult(CustomResult(Value::Object(mut envelope))) => envelope.remove(NAME)?,
                ServerResult::InitializeResult(model) => {
                    let mut model = serde_json::to_value(model).ok()?;
                    model.get_mut("_meta")?.as_object_mut()?.remove(NAME)?
                }
                _ => return None,
            };
            let message = Message::Response(Response { id: Some(response.id), outcome: Ok(result) });
            Some(Inbound { message, origin: None })
        }
        JsonRpcMessage::Error(error) => {
            let message = Message::Response(Response { id: error.id, outcome: Err(error.error) });
            Some(Inbound { message, origin: None })
        }
    }
}

fn parts(params: Option<Value>) -> Option<(String, Option<Value>, Option<i64>)> {
    let Some(Value::Object(mut inner)) = params else { return None };
    let Some(Value::String(method)) = inner.remove("method") else { return None };
    Some((method, inner.remove("params"), inner.remove("origin").and_then(|origin| origin.as_i64())))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{open, seal, seal_initialize};
    use crate::gateway::message::{Message, Response};

    /// Through the envelope, its JSON, and the SDK's models, as the transport does it.
    fn through(raw: &Value, origin: Option<i64>) -> (Message, Option<i64>) {
        let sealed = seal(Message::parse(raw.to_string().as_bytes()).unwrap(), origin);
        let carried = serde_json::from_str(&serde_json::to_string(&sealed).unwrap()).unwrap();
        let opened = open(carried).unwrap();
        (opened.message, opened.origin)
    }

    #[test]
    fn nothing_an_upstream_wrote_is_lost() {
        let result =
            json!({"content": [{"type": "text", "text": "a", "x": 1}], "_meta": {"k": [1]}, "unknown": {"y": 2.5}});
        let (message, _) = through(&json!({"jsonrpc": "2.0", "id": 7, "result": result}), None);
        let Message::Response(Response { outcome: Ok(relayed), .. }) = message else { panic!("{message:?}") };
        assert_eq!(relayed, result);

        let params = json!({"level": "info", "data": {"deep": [null]}, "_meta": {"k": 1}, "unknown": true});
        let raw = json!({"jsonrpc": "2.0", "method": "notifications/message", "params": params});
        let (message, origin) = through(&raw, Some(3));
        let Message::Notification(notification) = message else { panic!("{message:?}") };
        assert_eq!(
            (notification.method.as_str(), notification.params, origin),
            ("notifications/message", Some(params), Some(3))
        );
    }

    #[test]
    fn an_empty_result_and_an_error_stay_what_they_are() {
        let (message, _) = through(&json!({"jsonrpc": "2.0", "id": 1, "result": {}}), None);
        assert!(matches!(message, Message::Response(Response { outcome: Ok(Value::Object(o)), .. }) if o.is_empty()));
        let error = json!({"code": -32602, "message": "no", "data": {"a": 1}});
        let (message, _) = through(&json!({"jsonrpc": "2.0", "id": 1, "error": error}), None);
        let Message::Response(Response { outcome: Err(relayed), .. }) = message else { panic!("{message:?}") };
        assert_eq!(serde_json::to_value(relayed).unwrap(), error);
    }

    #[test]
    fn the_answer_to_initialize_is_read_by_the_transport_and_still_raw() {
        let result = json!({
            "protocolVersion": "2025-06-18", "capabilities": {"tools": {}, "brandNew": {"a": 1}},
            "serverInfo": {"name": "s", "version": "1", "colour": "red"}, "_meta": {"own": 1},
        });
        let raw = json!({"jsonrpc": "2.0", "id": 0, "result": result});
        let sealed = seal_initialize(Message::parse(raw.to_string().as_bytes()).unwrap()).unwrap();
        let Message::Response(Response { outcome: Ok(relayed), .. }) = open(sealed).unwrap().message else { panic!() };
        assert_eq!(relayed, result);
    }
}
