//! Requests of the modern generation over HTTP: each an exchange of its own, with everything the server needs in it.
//!
//! What the server tells before it answers comes on the exchange's stream. Dropping the future closes that, which is
//! how such a request is cancelled. A stream that breaks off is not resumed and the request is not sent again: it may
//! have had effects.

use http::HeaderMap;

use super::http::{Content, ExchangeError, Failure, HttpServer};
use super::{Ask, UpstreamError};
use crate::gateway::message::{Id, Json, Message, encode};

/// What the results of a modern server may be.
const RESULT_TYPES: [&str; 3] = ["complete", "input_required", "task"];

/// Sends a request with these headers, and waits for its answer.
pub(super) async fn exchange(server: &HttpServer, ask: &Ask, mut headers: HeaderMap) -> Result<Json, Failure> {
    headers.extend(ask.headers.clone());
    let body = encode(Some(&Id::Number(ask.id)), &ask.method, ask.params.as_ref());
    let reply = server.post(headers, body).await.map_err(Failure::Exchange)?;
    match reply.content {
        Content::Nothing => Err(Failure::Upstream(UpstreamError::NotMcp)),
        Content::Messages(messages) => {
            for message in messages {
                if let Some(outcome) = take(server, ask, message).await {
                    return outcome.map_err(Failure::Upstream);
                }
            }
            Err(Failure::Upstream(UpstreamError::NotMcp))
        }
        Content::Events(mut events) => {
            while let Some(arrived) = events.next().await {
                match arrived.messages {
                    Ok(messages) => {
                        for message in messages {
                            if let Some(outcome) = take(server, ask, message).await {
                                events.drain();
                                return outcome.map_err(Failure::Upstream);
                            }
                        }
                    }
                    Err(error @ (ExchangeError::TooLarge { .. } | ExchangeError::Upstream(_))) => {
                        return Err(Failure::Upstream(error.into()));
                    }
                    Err(_) => tracing::debug!(plugin = &**server.plugin(), "an event is no MCP message"),
                }
            }
            Err(Failure::Upstream(UpstreamError::Broken))
        }
    }
}

/// Takes a message in; gives the outcome, if that is what it is.
async fn take(server: &HttpServer, ask: &Ask, message: Message) -> Option<Result<Json, UpstreamError>> {
    match message {
        Message::Response(response) => {
            let is_ours = response.id.as_ref().is_some_and(|id| id.is(ask.id));
            match response.outcome {
                Ok(result) if is_ours => Some(Ok(result)),
                // The answer to another request is not the answer.
                Ok(_) => Some(Err(UpstreamError::NotMcp)),
                // A server that cannot read a request cannot name it in its error.
                Err(error) => Some(Err(UpstreamError::Refused(error))),
            }
        }
        Message::Notification(notification) => {
            ask.upcalls.notified(notification).await;
            None
        }
        Message::Request(_) => {
            server.log_question();
            None
        }
    }
}

/// Checks what kind of result it is. A server may leave it out: then it is complete.
pub(super) fn checked(result: Json) -> Result<Json, UpstreamError> {
    if !result.is_object() {
        return Err(UpstreamError::NotMcp);
    }
    match result.get("resultType") {
        None => Ok(result),
        Some(kind) if kind.as_text().is_some_and(|kind| RESULT_TYPES.contains(&&*kind)) => Ok(result),
        Some(_) => Err(UpstreamError::NotMcp),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::checked;
    use crate::gateway::message::Json;

    #[test]
    fn a_result_of_an_unknown_type_is_not_taken() {
        for known in [json!({}), json!({"resultType": "complete"}), json!({"resultType": "input_required"})] {
            assert!(checked(Json::of(&known)).is_ok(), "{known}");
        }
        for unknown in [json!({"resultType": "later"}), json!({"resultType": 1}), json!([1])] {
            assert!(checked(Json::of(&unknown)).is_err(), "{unknown}");
        }
    }
}
