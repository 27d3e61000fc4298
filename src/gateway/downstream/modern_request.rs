//! Requests of modern clients: each by itself, without a session.
//!
//! The request runs in a task of its own, so that a client that does not read keeps nobody's turn, and ends with its
//! response, so that a client that closes the stream cancels it. No event stream begins before the first message is
//! known: if that is the answer, it is one JSON text with the HTTP status that its error has.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream;
use http::StatusCode;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Interval;

use super::endpoints::{Downstream, Route};
use super::entry::{Accept, Entered, answer as refusal, json, refuse};
use super::modern::{self, Claim};
use super::outlet::ModernOutlet;
use super::streams::Event;
use super::{listen, names, sse};
use crate::gateway::call::client::Client;
use crate::gateway::call::dispatch::Work;
use crate::gateway::call::error::CallError;
use crate::gateway::call::telemetry::Reply;
use crate::gateway::message::{self, Id, Json, Notification, Object, RpcError, encode_response};
use crate::gateway::protocol::{Generation, META_CLIENT_INFO, MODERN};
use crate::gateway::upstream::ListKind;

/// A request, and what came with it.
pub(super) struct Incoming {
    pub(super) request: message::Request,
    pub(super) params: Object,
    pub(super) claim: Claim,
    pub(super) bytes: usize,
}

/// Answers a request.
pub(super) async fn answer(
    downstream: &Arc<Downstream>,
    route: &Arc<Route>,
    entered: Entered,
    accept: Accept,
    incoming: Incoming,
) -> Result<Response, Response> {
    let Incoming { request, params, claim, bytes } = incoming;
    let bad = |error: RpcError| refusal(StatusCode::BAD_REQUEST, Some(&request.id), error);
    modern::check(&claim, &entered.parts.headers, &request.method, &params).map_err(bad)?;
    if &*request.method == "tools/call"
        && let Some(schema) = schema(route, &params)
    {
        let arguments = params.get("arguments");
        modern::check_params(&entered.parts.headers, &schema, arguments).map_err(bad)?;
    }
    let listens = &*request.method == "subscriptions/listen";
    if listens && !accept.events {
        let text = "what is heard of comes as text/event-stream";
        return Err(refuse(StatusCode::NOT_ACCEPTABLE, Some(&request.id), text));
    }
    let info = params.get("_meta").and_then(|meta| meta.get(META_CLIENT_INFO));
    let capabilities = claim.capabilities.unwrap_or_else(Json::empty_object);
    let client = Arc::new(Client::new(Generation::Modern, MODERN, capabilities, info));
    let (inbound, spans) = downstream.begin(&entered, &request, &params, (None, MODERN, bytes));
    let (outlet, mut messages) = ModernOutlet::open(&downstream.budget, &entered.owner);
    let endpoint = route.endpoint.clone();
    let mut work = Work { inbound, client, endpoint, session: None, request, params, outlet, spans };
    let (downstream, owner) = (Arc::clone(downstream), Arc::clone(&entered.owner));
    let under_way = downstream.requests.token();
    let mut answering = Answering::start(async move {
        let _under_way = under_way;
        let reply = if listens {
            let changes = downstream.changes.subscribe();
            let heard = listen::listen(&downstream.relay, &mut work, changes, &downstream.stop_listening).await;
            let heard = heard.map_err(|error| error.into_error(Generation::Modern, None, None));
            Reply::new(&work.request.id, &heard)
        } else {
            downstream.relay.answer(&mut work).await
        };
        work.spans.end(reply.as_answer());
        match downstream.budget.charge(&owner, reply.body.len()) {
            Ok(charge) => Answer { status: modern::status(reply.code), body: charge.hold(one_line(&reply.body)) },
            Err(_) => no_memory(&work.request.id),
        }
    });
    let first = tokio::select! {
        biased;
        Some(message) = messages.recv() => Some(message),
        answer = &mut answering => {
            // What was sent before the answer goes before it.
            match messages.try_recv() {
                Err(_) if accept.json => return Ok(json(answer.status, answer.body)),
                Err(_) => return Ok(sse::response(stream::iter(event(answer.body)))),
                Ok(message) => {
                    answering = Answering::start(std::future::ready(answer));
                    Some(message)
                }
            }
        }
    };
    if !accept.events {
        // Whatever comes before the answer is dropped.
        drop(messages);
        let answer = answering.await;
        return Ok(json(answer.status, answer.body));
    }
    let running = Running { answering: Some(answering), messages, tick: sse::keep_alive() };
    let rest = stream::unfold(running, next);
    let first = stream::iter(first.into_iter().flat_map(event));
    Ok(sse::response(futures::StreamExt::chain(first, rest)))
}

/// An answer as it goes out.
struct Answer {
    status: StatusCode,
    body: Bytes,
}

fn no_memory(id: &Id) -> Answer {
    let error = CallError::no_memory().into_error(Generation::Modern, None, None);
    Answer { status: StatusCode::OK, body: Reply::new(id, &Err(error)).body }
}

/// An answer that is being made, in a task that ends with this.
struct Answering(JoinHandle<Answer>);

impl Answering {
    fn start(answering: impl Future<Output = Answer> + Send + 'static) -> Self {
        Self(tokio::spawn(answering))
    }
}

impl Future for Answering {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Answer> {
        // Its task is ended by nothing but its drop; one that panicked has no answer.
        Pin::new(&mut self.0).poll(context).map(|answer| answer.unwrap_or_else(|_| lost()))
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What is left to say where the gateway itself failed.
fn lost() -> Answer {
    let body = encode_response(None, &Err(RpcError::internal("internal error")));
    Answer { status: StatusCode::INTERNAL_SERVER_ERROR, body }
}

/// A message without line breaks.
fn one_line(message: &Bytes) -> Vec<u8> {
    message.iter().copied().filter(|byte| !matches!(byte, b'\n' | b'\r')).collect()
}

/// A message as the text of an event; there is nothing to resume it by.
fn event(data: Bytes) -> [Bytes; 3] {
    sse::pieces(&Event { id: String::new(), data, retry_ms: None, is_last: false })
}

/// A request whose response is a stream. Dropped, it is cancelled.
struct Running {
    answering: Option<Answering>,
    messages: mpsc::Receiver<Bytes>,
    tick: Interval,
}

async fn next(mut running: Running) -> Option<(Bytes, Running)> {
    let Some(answering) = &mut running.answering else { return None };
    let text = tokio::select! {
        biased;
        Some(message) = running.messages.recv() => event(message).concat().into(),
        answer = answering => {
            running.answering = None;
            let mut text = Vec::new();
            while let Ok(message) = running.messages.try_recv() {
                text.extend_from_slice(&event(message).concat());
            }
            text.extend_from_slice(&event(answer.body).concat());
            text.into()
        }
        _ = running.tick.tick() => sse::COMMENT,
    };
    Some((text, running))
}

/// What the plugin lists as the schema of the tool's arguments.
fn schema(route: &Route, params: &Object) -> Option<Json> {
    let name = params.text("name")?;
    let (index, own) = names::resolve(&route.endpoint, &name)?;
    let listings = route.endpoint.plugins.get(index)?.listed(ListKind::Tools);
    let item = listings.iter().flat_map(|listing| &listing.items).find(|item| *item.name == *own)?;
    item.raw.get("inputSchema")
}

/// Takes a notification: there is none over HTTP that does anything.
pub(super) fn notified(downstream: &Downstream, notification: &Notification) -> Result<Response, Response> {
    if &*notification.method == "notifications/cancelled" {
        // Closing the response stream is what cancels.
        return Ok(StatusCode::ACCEPTED.into_response());
    }
    downstream.relay.dispatcher.calls.refused("notification");
    Err(refuse(StatusCode::BAD_REQUEST, None, "a client of this version sends no such notification"))
}
