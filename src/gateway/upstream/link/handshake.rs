//! The handshake that opens a session: `initialize`, its answer, `notifications/initialized`.
//!
//! What the client wrote in `initialize` reaches the upstream as it was written, and what the upstream answered is kept as it
//! came: neither goes through a model that might lose a field. Whatever else an upstream sends before its answer is dropped;
//! there is no session yet that it could belong to.

use http::HeaderMap;
use rmcp::model::{
    ClientJsonRpcMessage, ClientNotification, ClientRequest, ErrorData, InitializeRequest, InitializeRequestParams,
    InitializedNotification, RequestId,
};
use rmcp::service::RoleClient;
use rmcp::transport::Transport;
use serde_json::Value;

use crate::gateway::message::{Message, Response};
use crate::gateway::upstream::envelope::{self, Outbound};
use crate::gateway::upstream::fault::UpstreamFault;

/// The id of `initialize`; every later request has a greater one.
pub(super) const ID: i64 = 0;

/// `initialize`, its answer, `notifications/initialized`.
pub(super) async fn shake_hands<T>(transport: &mut T, hello: &Value) -> Result<Value, UpstreamFault>
where
    T: Transport<RoleClient>,
    UpstreamFault: From<T::Error>,
{
    let id = RequestId::Number(ID);
    let body = envelope::encode(Some(&id), "initialize", Some(hello)).map_err(|_| UpstreamFault::NotMcp)?;
    // The transport reads the model, the upstream the raw parameters. A client's own were read by the model before.
    let params: InitializeRequestParams =
        serde_json::from_value(hello.clone()).map_err(|_| UpstreamFault::Refused(bad_hello()))?;
    let mut request = InitializeRequest::new(params);
    request.extensions.insert(Outbound { body, headers: HeaderMap::new() });
    transport.send(ClientJsonRpcMessage::request(ClientRequest::InitializeRequest(request), id)).await?;
    let opened = loop {
        let message = transport.receive().await.ok_or(UpstreamFault::Broken)?;
        match envelope::open(message).map(|inbound| inbound.message) {
            Some(Message::Response(Response { outcome: Ok(opened), .. })) => break opened,
            Some(Message::Response(Response { outcome: Err(error), .. })) => {
                return Err(envelope::fault(&error).unwrap_or(UpstreamFault::Refused(error)));
            }
            // Nothing else is of use before the session is open.
            Some(Message::Request(_) | Message::Notification(_)) | None => {}
        }
    };
    let initialized = ClientNotification::InitializedNotification(InitializedNotification::default());
    transport.send(ClientJsonRpcMessage::notification(initialized)).await?;
    Ok(opened)
}

fn bad_hello() -> ErrorData {
    ErrorData::invalid_params("the parameters of initialize are not as MCP says", None)
}
