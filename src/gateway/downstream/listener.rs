//! What a plugin says to a session that belongs to no call of it, on its way to the client.
//!
//! Changed lists, updates of resources the client is subscribed to, the end of elicitations by URL and the state of
//! tasks are passed on: on the stream of the only request under way, if there is one, else on the standalone stream. A
//! log message that could be of a call whose result is redacted loses its words. A question is decided on with the
//! plugin itself as its resource. Everything else is dropped, and counted.

use std::sync::{Arc, Weak};

use async_trait::async_trait;

use super::relay::Relay;
use super::session::{Listener, Session, no_request};
use crate::gateway::call::client::Inbound;
use crate::gateway::call::scope::{Leg, Scope, ScopeOf};
use crate::gateway::call::subject::Subject;
use crate::gateway::call::table::{self, ServerNote};
use crate::gateway::call::tasks::Owner;
use crate::gateway::call::telemetry::Ties;
use crate::gateway::message::{Json, Notification, Object, Request, RpcError};
use crate::gateway::policy::redaction::WITHHELD;
use crate::gateway::policy::{Action, Verdict};
use crate::gateway::upstream::{Upcalls, next_id};
use crate::model::Decision;

/// Makes the other end of upstream sessions.
pub(super) struct FromPlugins {
    pub(super) relay: Weak<Relay>,
}

impl Listener for FromPlugins {
    fn upcalls(&self, session: &Arc<Session>, index: usize) -> Arc<dyn Upcalls> {
        Arc::new(FromPlugin { session: Arc::downgrade(session), index, relay: Weak::clone(&self.relay) })
    }
}

struct FromPlugin {
    session: Weak<Session>,
    index: usize,
    relay: Weak<Relay>,
}

impl FromPlugin {
    fn updated(&self, relay: &Relay, session: &Session, params: Object) -> Option<Json> {
        let plugin = session.endpoint.plugins.get(self.index)?;
        relay.dispatcher.calls.updated(&session.caller, plugin.name(), params)
    }

    /// Whether what the plugin says may hold something of a result that is redacted: of a call under way, or a task.
    fn is_redacting(&self, relay: &Relay, session: &Session) -> bool {
        session.is_redacting(self.index) || relay.dispatcher.tasks.is_redacting(owner(session), self.index)
    }

    fn task(&self, relay: &Relay, session: &Session, mut params: Object) -> Option<Json> {
        let id = params.text("taskId").map(std::borrow::Cow::into_owned)?;
        let owner = owner(session);
        let task = relay.dispatcher.tasks.find_by_server(owner, self.index, &id)?;
        task.rename(&mut params);
        if task.verdict.obligations.redacts_result() {
            params.take("statusMessage");
        }
        relay.dispatcher.tasks.update(owner, &task.client_id, &params);
        Some(params.to_json())
    }
}

/// Whose tasks are the session's.
fn owner(session: &Session) -> Owner<'_> {
    Owner { caller: &session.owner, session: Some(&session.id), endpoint: session.endpoint.name() }
}

#[async_trait]
impl Upcalls for FromPlugin {
    async fn asked(&self, request: Request) -> Result<Json, RpcError> {
        let gone = || RpcError::internal("the client's session ended");
        let (Some(session), Some(relay)) = (self.session.upgrade(), self.relay.upgrade()) else { return Err(gone()) };
        let plugin = session.endpoint.plugins.get(self.index).cloned().ok_or_else(gone)?;
        let calls = Arc::clone(&relay.dispatcher.calls);
        let invocation_id = calls.telemetry.id();
        let request_id: Arc<str> = invocation_id.to_string().into();
        let inbound = Inbound {
            caller: session.caller.clone(),
            owner: Arc::clone(&session.owner),
            known: session.known,
            arrived_at: calls.telemetry.now(),
            identity_us: 0,
            bytes: 0,
            request_id: Arc::clone(&request_id),
            invocation_id,
        };
        let ties = Ties {
            request_id,
            trace_id: opentelemetry::trace::TraceId::INVALID,
            span_id: opentelemetry::trace::SpanId::INVALID,
            invocation_id,
            first_invocation_id: None,
        };
        let question = table::server_request(&request.method);
        if self.is_redacting(&relay, &session)
            && question.is_some_and(|question| !calls.policy.names(question.action()))
        {
            // It may be for the sake of the call whose result is redacted, and hold anything of it.
            calls.refused("question");
            return Err(RpcError::method_not_found("the result of a call under way is redacted, so nothing is asked"));
        }
        // The session itself follows from what its caller is permitted at the plugin.
        let verdict =
            Verdict { decision: Decision::Permit, policy_ids: Vec::new(), obligations: Arc::default(), reason: None };
        let of = ScopeOf {
            calls,
            inbound: Arc::new(inbound),
            client: Arc::clone(&session.client),
            plugin,
            subject: Subject::plugin(self.index, Action::CallMethod),
            namespaced: session.endpoint.namespaced,
        };
        let leg = Leg { outlet: no_request(&session), token: None, level: None, ties, verdict };
        let (scope, _) = Scope::new(of, leg, (next_id(), None), false);
        scope.asked(request).await
    }

    async fn notified(&self, notification: Notification) {
        let (Some(session), Some(relay)) = (self.session.upgrade(), self.relay.upgrade()) else { return };
        let Notification { method, params } = notification;
        let mut object = params.as_ref().and_then(Json::object).unwrap_or_default();
        let params = match table::server_notification(&method) {
            Some(ServerNote::ListChanged(_)) => None,
            Some(ServerNote::Updated) => match self.updated(&relay, &session, object) {
                Some(params) => Some(params),
                None => return,
            },
            Some(ServerNote::Message) => {
                if self.is_redacting(&relay, &session) {
                    object.retain(|name, _| name == "level");
                    object.set("data", Json::text(WITHHELD));
                }
                Some(object.to_json())
            }
            Some(ServerNote::ElicitationComplete) => {
                if !object.text("elicitationId").is_some_and(|id| session.was_given(&id)) {
                    return;
                }
                Some(object.to_json())
            }
            Some(ServerNote::Task) => match self.task(&relay, &session, object) {
                Some(params) => Some(params),
                None => return,
            },
            // Progress that belongs to no request is nobody's.
            Some(ServerNote::Progress) | None => return relay.dispatcher.calls.refused("notification"),
        };
        session.notify(&Notification { method, params }, session.streams.only());
    }
}
