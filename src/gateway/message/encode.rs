//! Messages as bytes.

use bytes::{BufMut, Bytes, BytesMut};

use super::{Id, Json, RpcError};

/// A request, or without an id a notification, as bytes.
pub(crate) fn encode(id: Option<&Id>, method: &str, params: Option<&Json>) -> Bytes {
    let length = params.map_or(0, Json::len) + method.len() + 64;
    let mut text = BytesMut::with_capacity(length);
    text.extend_from_slice(b"{\"jsonrpc\":\"2.0\"");
    if let Some(id) = id {
        text.extend_from_slice(b",\"id\":");
        text.extend_from_slice(id.to_json().as_bytes());
    }
    text.extend_from_slice(b",\"method\":");
    text.extend_from_slice(Json::text(method).as_bytes());
    if let Some(params) = params {
        text.extend_from_slice(b",\"params\":");
        text.extend_from_slice(params.as_bytes());
    }
    text.put_u8(b'}');
    text.freeze()
}

/// A response as bytes. One without an id has none on the wire either.
pub(crate) fn encode_response(id: Option<&Id>, outcome: &Result<Json, RpcError>) -> Bytes {
    let mut text = BytesMut::with_capacity(outcome.as_ref().map_or(128, Json::len) + 64);
    text.extend_from_slice(b"{\"jsonrpc\":\"2.0\"");
    if let Some(id) = id {
        text.extend_from_slice(b",\"id\":");
        text.extend_from_slice(id.to_json().as_bytes());
    }
    match outcome {
        Ok(result) => {
            text.extend_from_slice(b",\"result\":");
            text.extend_from_slice(result.as_bytes());
        }
        Err(error) => {
            text.extend_from_slice(b",\"error\":");
            error.put(&mut text);
        }
    }
    text.put_u8(b'}');
    text.freeze()
}
