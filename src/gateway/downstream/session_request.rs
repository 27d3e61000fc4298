//! Requests of clients of old versions, within a session or to open one.
//!
//! Each request runs in a task of its own, which ends its stream: with a response, or without one when the client has
//! cancelled it. A client whose connection breaks off has not cancelled: the response waits for it on the stream.
//!
//! An answer that is there before anything else was sent is one JSON text, where the client takes that; when a moment
//! has passed, or something comes before it, it is an event stream that can be resumed.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::future::join_all;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};
use tokio::time::timeout;

use super::endpoints::{Downstream, Route};
use super::entry::{Accept, Entered, answer as refusal, json, not_allowed, refuse, session_id};
use super::session::{Session, SessionParts};
use super::streams::{Event, Streams};
use super::{offer, sessions, sse};
use crate::gateway::call::client::{Client, ClientSession, Inbound};
use crate::gateway::call::dispatch::Work;
use crate::gateway::call::error::CallError;
use crate::gateway::call::table::{self, ClientNote};
use crate::gateway::call::telemetry::Reply;
use crate::gateway::message::{self, Id, Json, Malformed, Message, Notification, Object, RpcError};
use crate::gateway::protocol::{Generation, LAST_EVENT_HEADER, LATEST_OLD, OLD, SESSION_HEADER, VERSION_HEADER};
use crate::gateway::traces::RequestSpans;

/// How long an answer is waited for before an event stream begins.
const WHOLE_ANSWER_TIMEOUT: Duration = Duration::from_millis(5);

/// The largest parameters of `initialize`: they are kept for as long as the session.
const MAX_INITIALIZE: usize = 16 << 10;

/// Messages of one array.
pub(super) const MAX_BATCH: usize = 64;

/// The first version that is primed: before it an empty event is one that clients do not expect.
const PRIMED: &str = "2025-11-25";

/// A request, and what came with it.
pub(super) struct Incoming {
    pub(super) request: message::Request,
    pub(super) params: Object,
    pub(super) bytes: usize,
}

/// The version that a request's header names, if it is one that is served.
fn check_version(entered: &Entered, id: Option<&Id>) -> Result<(), Response> {
    match entered.parts.headers.get(VERSION_HEADER) {
        None => Ok(()),
        Some(version) if version.to_str().is_ok_and(|version| OLD.contains(&version)) => Ok(()),
        Some(_) => {
            let text = format!("MCP-Protocol-Version is none that is served with sessions: {}", OLD.join(", "));
            Err(refuse(StatusCode::BAD_REQUEST, id, text))
        }
    }
}

/// The session that a request is of.
fn session(route: &Route, entered: &Entered, id: Option<&Id>) -> Result<Arc<Session>, Response> {
    let Some(named) = session_id(&entered.parts) else {
        let text = "send Mcp-Session-Id, as the answer to initialize has it";
        return Err(refuse(StatusCode::BAD_REQUEST, id, text));
    };
    let unknown = || refuse(StatusCode::NOT_FOUND, id, "there is no such session; initialize another");
    route.sessions.get(named, &entered.caller).ok_or_else(unknown)
}

/// Answers a request.
pub(super) async fn answer(
    downstream: &Arc<Downstream>,
    route: &Arc<Route>,
    entered: Entered,
    accept: Accept,
    incoming: Incoming,
) -> Result<Response, Response> {
    let is_initialize = &*incoming.request.method == "initialize";
    if is_initialize && session_id(&entered.parts).is_none() {
        return initialize(downstream, route, entered, accept, incoming).await;
    }
    check_version(&entered, Some(&incoming.request.id))?;
    let session = session(route, &entered, Some(&incoming.request.id))?;
    let (number, mut events) = session.streams.open(!accept.events);
    let Incoming { request, params, bytes } = incoming;
    let (inbound, spans) =
        downstream.begin(&entered, &request, &params, (Some(&session.id), &session.client.version, bytes));
    serve(downstream, &session, (request, params), (inbound, spans), number);
    if !accept.events {
        // Whatever comes before the answer has been dropped, or went elsewhere.
        while let Some(event) = events.recv().await {
            if event.is_last {
                session.streams.forget(number);
                return Ok(json(StatusCode::OK, event.data));
            }
        }
        return Ok(StatusCode::ACCEPTED.into_response());
    }
    let primed = *session.client.version >= *PRIMED;
    let mut first = Vec::new();
    match timeout(WHOLE_ANSWER_TIMEOUT, events.recv()).await {
        Ok(Some(event)) if event.is_last && accept.json => {
            session.streams.forget(number);
            return Ok(json(StatusCode::OK, event.data));
        }
        Ok(event) => first.extend(event),
        Err(_) => {}
    }
    if primed {
        first.insert(0, Streams::priming(number));
    }
    Ok(sse::events(first, events))
}

/// Serves a request in a task of its own.
fn serve(
    downstream: &Arc<Downstream>,
    session: &Arc<Session>,
    (request, params): (message::Request, Object),
    (inbound, spans): (Arc<Inbound>, RequestSpans),
    number: u64,
) {
    let (relay, budget) = (Arc::clone(&downstream.relay), Arc::clone(&downstream.budget));
    let session = Arc::clone(session);
    downstream.requests.spawn(async move {
        let id = request.id.clone();
        let Some(cancelled) = session.begin(&id) else {
            let error = RpcError::invalid_request("Invalid Request: a request with this id is under way");
            let reply = Reply::new(&id, &Err(error));
            spans.end(reply.as_answer());
            session.streams.end(number, Some(reply.body));
            return;
        };
        let mut work = work(&session, (request, params), (inbound, spans), number);
        let reply = tokio::select! {
            reply = relay.answer(&mut work) => Some(reply),
            () = cancelled.cancelled() => None,
        };
        let body = reply.map(|reply| {
            work.spans.end(reply.as_answer());
            match budget.charge(&session.owner, reply.body.len()) {
                Ok(charge) => charge.hold(one_line(&reply.body)),
                Err(_) => {
                    let error = CallError::no_memory().into_error(Generation::Old, None, None);
                    Reply::new(&id, &Err(error)).body
                }
            }
        });
        session.streams.end(number, body);
        session.finish(&id);
    });
}

/// A message without line breaks.
fn one_line(message: &Bytes) -> Vec<u8> {
    message.iter().copied().filter(|byte| !matches!(byte, b'\n' | b'\r')).collect()
}

fn work(
    session: &Arc<Session>,
    (request, params): (message::Request, Object),
    (inbound, spans): (Arc<Inbound>, RequestSpans),
    number: u64,
) -> Work {
    Work {
        inbound,
        client: Arc::clone(&session.client),
        endpoint: session.endpoint.clone(),
        session: Some(Arc::clone(session) as Arc<dyn ClientSession>),
        request,
        params,
        outlet: session.outlet(number),
        spans,
    }
}

/// Opens a session.
async fn initialize(
    downstream: &Arc<Downstream>,
    route: &Arc<Route>,
    entered: Entered,
    accept: Accept,
    incoming: Incoming,
) -> Result<Response, Response> {
    let Incoming { request, mut params, bytes } = incoming;
    if request.params.as_ref().map_or(0, Json::len) > MAX_INITIALIZE {
        let error = RpcError::invalid_params("the parameters of initialize are larger than 16 KiB");
        return Err(refusal(StatusCode::BAD_REQUEST, Some(&request.id), error));
    }
    let asked = params.text("protocolVersion").map(std::borrow::Cow::into_owned).unwrap_or_default();
    let version = OLD.into_iter().find(|version| *version == asked).unwrap_or(LATEST_OLD);
    params.set("protocolVersion", Json::text(version));
    // Bytes of its own, charged for as long as the session is there: it does not keep the request's.
    let initialize = params.to_json();
    let charge = downstream.budget.charge(&entered.owner, initialize.len());
    let initialize = charge.ok().and_then(|charge| Json::parse(&charge.hold(initialize.as_bytes().to_vec())));
    let Some(initialize) = initialize else {
        let text = "the memory for requests and answers is used up; try again later";
        return Err(refuse(StatusCode::SERVICE_UNAVAILABLE, Some(&request.id), text));
    };
    let capabilities = initialize.get("capabilities").filter(Json::is_object).unwrap_or_else(Json::empty_object);
    let client = Arc::new(Client::new(Generation::Old, version, capabilities, initialize.get("clientInfo")));
    let calls = &downstream.relay.dispatcher.calls;
    let id: Arc<str> = calls.telemetry.random.uuid().simple().to_string().into();
    let session = Session::new(SessionParts {
        id: Arc::clone(&id),
        caller: entered.caller.clone(),
        owner: Arc::clone(&entered.owner),
        known: entered.known,
        endpoint: route.endpoint.clone(),
        client: Arc::clone(&client),
        initialize,
        budget: Arc::clone(&downstream.budget),
        resume: downstream.limits.resume.as_duration(),
        listener: Arc::clone(&downstream.listener) as Arc<dyn super::session::Listener>,
    });
    let (inbound, spans) = downstream.begin(&entered, &request, &params, (Some(&id), version, bytes));
    let work = work(&session, (request, params), (inbound, spans), 0);
    let opened = offer::initialized(&work, &calls.policy).await;
    let is_open = opened.is_ok();
    // Only now: who waits for a plugin to be up has no session yet, and takes nobody's place.
    if is_open && sessions::make_room(&downstream.all, &downstream.counts, &entered.owner).await.is_err() {
        let most = downstream.counts.most;
        let text = format!("the gateway has {most} sessions, as many as it may; try again when one has ended");
        return Err(refuse(StatusCode::SERVICE_UNAVAILABLE, Some(&work.request.id), text));
    }
    let opened = opened.map_err(|error| error.into_error(Generation::Old, None, None));
    let reply = Reply::new(&work.request.id, &opened);
    work.spans.end(reply.as_answer());
    let mut response = if accept.json {
        json(StatusCode::OK, reply.body)
    } else {
        let event = Event { id: String::new(), data: one_line(&reply.body).into(), retry_ms: None, is_last: true };
        let pieces = sse::pieces(&event);
        sse::response(futures::stream::iter(pieces))
    };
    if is_open {
        route.sessions.insert(&session);
        if let Ok(id) = HeaderValue::from_str(&id) {
            response.headers_mut().insert(SESSION_HEADER, id);
        }
    }
    Ok(response)
}

/// Takes a message that expects no response.
pub(super) async fn accept(
    downstream: &Arc<Downstream>,
    route: &Arc<Route>,
    entered: &Entered,
    message: Message,
) -> Result<Response, Response> {
    check_version(entered, None)?;
    let session = session(route, entered, None)?;
    take(downstream, &session, message).await;
    Ok(StatusCode::ACCEPTED.into_response())
}

async fn take(downstream: &Arc<Downstream>, session: &Arc<Session>, message: Message) {
    match message {
        Message::Response(response) => session.answered(response),
        Message::Notification(notification) => notified(downstream, session, notification).await,
        Message::Request(_) => {}
    }
}

async fn notified(downstream: &Arc<Downstream>, session: &Arc<Session>, notification: Notification) {
    let params = notification.params.as_ref();
    match table::client_notification(&notification.method) {
        // Each plugin hears it when its own session opens.
        Some((ClientNote::Initialized, _)) => {}
        Some((ClientNote::Cancelled, _)) => {
            if let Some(id) = params.and_then(|params| Id::read(&params.get("requestId")?)) {
                session.cancel(&id);
            }
        }
        Some((ClientNote::RootsChanged, _)) => {
            let notification = Notification { method: notification.method, params: None };
            if session.client.declares(&["roots", "listChanged"]) {
                for (_, upstream) in session.open_upstreams() {
                    upstream.notify(notification.clone()).await;
                }
            }
        }
        // Of a question, to the plugin that asked it and gave a token for it; of anything else it is dropped.
        Some((ClientNote::Progress, _)) => {
            let params = params.and_then(Json::object);
            let progress = params.and_then(|params| session.progress(&params));
            let upstream = progress.and_then(|(index, params)| Some((session.open_upstream(index)?, params)));
            match upstream {
                Some((upstream, params)) => {
                    upstream.notify(Notification { method: notification.method, params: Some(params) }).await;
                }
                None => downstream.relay.dispatcher.calls.refused("notification"),
            }
        }
        Some((ClientNote::TaskStatus, _)) | None => downstream.relay.dispatcher.calls.refused("notification"),
    }
}

/// Takes an array of messages, as the version 2025-03-26 has them.
pub(super) async fn batch(
    downstream: &Arc<Downstream>,
    route: &Arc<Route>,
    entered: Entered,
    batch: Vec<Result<Message, Malformed>>,
    bytes: usize,
) -> Result<Response, Response> {
    let none = || refuse(StatusCode::BAD_REQUEST, None, "this version of the protocol has no arrays of messages");
    if super::modern::header_is_modern(&entered.parts.headers) || session_id(&entered.parts).is_none() {
        return Err(none());
    }
    check_version(&entered, None)?;
    let session = session(route, &entered, None)?;
    if session.client.knows("2025-06-18") {
        return Err(none());
    }
    let is_modern = |message: &Result<Message, Malformed>| match message {
        Ok(Message::Request(message::Request { params, .. }) | Message::Notification(Notification { params, .. })) => {
            params.as_ref().and_then(Json::object).is_some_and(|params| super::modern::claim(&params).is_some())
        }
        _ => false,
    };
    if batch.iter().any(is_modern) {
        return Err(refuse(StatusCode::BAD_REQUEST, None, "the messages of an array are of the session's version"));
    }
    let mut answers = Vec::new();
    let mut malformed = Vec::new();
    for message in batch {
        match message {
            Ok(Message::Request(request)) if &*request.method == "initialize" => {
                let error = RpcError::invalid_request("Invalid Request: initialize stands alone");
                malformed.push(Reply::new(&request.id, &Err(error)).body);
            }
            Ok(Message::Request(request)) => {
                let params = request.params.as_ref().and_then(Json::object).unwrap_or_default();
                let length = request.params.as_ref().map_or(0, Json::len);
                let of = (Some(&*session.id), &*session.client.version, length.min(bytes));
                let (inbound, spans) = downstream.begin(&entered, &request, &params, of);
                let (number, mut events) = session.streams.open(true);
                serve(downstream, &session, (request, params), (inbound, spans), number);
                let session = Arc::clone(&session);
                answers.push(async move {
                    let answer = events.recv().await.filter(|event| event.is_last).map(|event| event.data);
                    session.streams.forget(number);
                    answer
                });
            }
            Ok(message) => take(downstream, &session, message).await,
            Err(error) => malformed.push(message::encode_response(None, &Err(error.to_error()))),
        }
    }
    let answers: Vec<Bytes> = join_all(answers).await.into_iter().flatten().chain(malformed).collect();
    if answers.is_empty() {
        return Ok(StatusCode::ACCEPTED.into_response());
    }
    let body = Body::from_stream(futures::stream::iter(array(answers).into_iter().map(Ok::<_, Infallible>)));
    Ok(([(CONTENT_TYPE, "application/json")], body).into_response())
}

/// The pieces of an array of answers, none of them copied: each is charged to its caller until it was sent.
fn array(answers: Vec<Bytes>) -> Vec<Bytes> {
    let mut pieces = Vec::with_capacity(answers.len() * 2 + 1);
    for answer in answers {
        pieces.push(Bytes::from_static(if pieces.is_empty() { b"[" } else { b"," }));
        pieces.push(answer);
    }
    pieces.push(Bytes::from_static(b"]"));
    pieces
}

/// Opens the stream of what belongs to no request, or a stream that broke off.
pub(super) fn get(downstream: &Arc<Downstream>, route: &Arc<Route>, entered: &Entered) -> Result<Response, Response> {
    if session_id(&entered.parts).is_none() || super::modern::header_is_modern(&entered.parts.headers) {
        return Err(not_allowed());
    }
    check_version(entered, None)?;
    let session = session(route, entered, None)?;
    let last = entered.parts.headers.get(LAST_EVENT_HEADER).and_then(|last| last.to_str().ok());
    let (number, events) = match last {
        None => (super::streams::STANDALONE, session.streams.standalone()),
        Some(last) => session
            .streams
            .resume(last)
            .ok_or_else(|| refuse(StatusCode::BAD_REQUEST, None, "the event is of no stream that can be resumed"))?,
    };
    if number == super::streams::STANDALONE {
        session.listens(true);
    }
    // Streams end with the gateway, so that connections do.
    let stop = downstream.stop.clone().cancelled_owned();
    Ok(sse::until(sse::events(Vec::new(), events), stop))
}

/// Ends a session.
pub(super) async fn delete(route: &Arc<Route>, entered: &Entered) -> Result<Response, Response> {
    if session_id(&entered.parts).is_none() || super::modern::header_is_modern(&entered.parts.headers) {
        return Err(not_allowed());
    }
    let session = session(route, entered, None)?;
    route.sessions.end(&session.id).await;
    Ok(StatusCode::NO_CONTENT.into_response())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::array;

    #[test]
    fn an_array_of_answers_copies_none_of_them() {
        let answers = [Bytes::from("{\"a\":1}"), Bytes::from("{}")];
        let pieces = array(answers.to_vec());
        assert_eq!(pieces.concat(), br#"[{"a":1},{}]"#);
        assert!(answers.iter().all(|answer| pieces.iter().any(|piece| piece.as_ptr() == answer.as_ptr())));
    }
}
