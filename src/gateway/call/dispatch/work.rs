//! A request, whose it is, and what is to be done with it.

use std::sync::Arc;

use http::HeaderMap;

use crate::gateway::call::bridge;
use crate::gateway::call::client::{Client, ClientSession, Endpoint, Inbound, Outlet};
use crate::gateway::call::error::CallError;
use crate::gateway::call::outgoing;
use crate::gateway::call::scope::{Leg, severity};
use crate::gateway::call::subject::{MAX_NAME, Subject};
use crate::gateway::call::tasks::Owner;
use crate::gateway::call::telemetry::Ties;
use crate::gateway::message::{Json, Object, Request};
use crate::gateway::policy::Verdict;
use crate::gateway::protocol::{LATEST_OLD, META_LOG_LEVEL, PROGRESS_TOKEN};
use crate::gateway::traces::RequestSpans;
use crate::gateway::upstream::{Plugin, PoolKey, View};

/// A request, and whose it is.
pub(crate) struct Work {
    pub(crate) inbound: Arc<Inbound>,
    pub(crate) client: Arc<Client>,
    pub(crate) endpoint: Endpoint,
    /// The session of a client of an old version.
    pub(crate) session: Option<Arc<dyn ClientSession>>,
    pub(crate) request: Request,
    /// Its parameters.
    pub(crate) params: Object,
    /// Where what comes before its answer goes.
    pub(crate) outlet: Arc<dyn Outlet>,
    pub(crate) spans: RequestSpans,
}

impl Work {
    pub(crate) fn plugin(&self, index: usize) -> Result<&Arc<Plugin>, CallError> {
        self.endpoint.plugins.get(index).ok_or_else(|| CallError::unknown("plugin"))
    }

    /// What ties its records together.
    pub(crate) fn ties(&self) -> Ties {
        Ties {
            request_id: Arc::clone(&self.inbound.request_id),
            trace_id: self.spans.trace_id(),
            span_id: self.spans.span_id(),
            invocation_id: self.inbound.invocation_id,
            first_invocation_id: None,
        }
    }

    /// The caller, where it is known by name: what is kept by caller is kept for nobody else.
    pub(crate) fn known_caller(&self) -> Option<Arc<str>> {
        self.inbound.known.then(|| Arc::clone(&self.inbound.owner))
    }

    /// Whose tasks it may ask for.
    pub(crate) fn owner(&self) -> Owner<'_> {
        let session = self.session.as_ref().map(|session| session.id());
        Owner { caller: &self.inbound.owner, session, endpoint: self.endpoint.name() }
    }

    /// Which sessions with an old server are this client's, where it has none of its own.
    pub(crate) fn pool_key(&self) -> PoolKey {
        PoolKey {
            caller: self.known_caller(),
            version: LATEST_OLD.into(),
            capabilities: outgoing::old_capabilities(&self.client),
            client_info: outgoing::client_info(&self.client),
        }
    }

    /// What the lists of a plugin may depend on, for this client.
    pub(crate) fn view(&self, index: usize) -> View {
        View {
            client: self.client.generation,
            version: self.client.version.clone(),
            capabilities: self.client.capabilities.clone(),
            client_info: self.client.info.clone(),
            caller: self.known_caller(),
            session: self.session.as_ref().and_then(|session| session.open_upstream(index)),
            pool_key: self.client.is_modern().then(|| self.pool_key()),
            meta: Json::empty_object(),
            headers: HeaderMap::new(),
        }
    }

    /// Where what belongs to the request goes, and under which permit.
    pub(super) fn leg(&self, ties: Ties, verdict: Verdict) -> Leg {
        let meta = self.params.get("_meta").and_then(Json::object).unwrap_or_default();
        let level = self.client.is_modern().then(|| {
            let level = meta.text(META_LOG_LEVEL).and_then(|level| severity(&level));
            // Without a level no log message is wanted.
            level.unwrap_or(usize::MAX)
        });
        Leg { outlet: Arc::clone(&self.outlet), token: meta.get(PROGRESS_TOKEN).cloned(), level, ties, verdict }
    }
}

/// What a request does, as far as its way depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum JobKind {
    Call,
    Prompt,
    Read,
    Subscribe,
    Complete,
    Method,
}

impl JobKind {
    /// Whether its result may ask for more.
    pub(super) fn may_ask(self) -> bool {
        matches!(self, Self::Call | Self::Prompt | Self::Read)
    }

    pub(super) fn shape(self) -> bridge::Kind {
        if self == Self::Read { bridge::Kind::Cacheable } else { bridge::Kind::Plain }
    }
}

/// What is to be done with a request.
pub(crate) struct Job {
    pub(crate) kind: JobKind,
    pub(crate) subject: Subject,
    /// The parameters, with the plugin's own names.
    pub(crate) params: Object,
    /// The arguments, an object.
    pub(crate) arguments: Option<Json>,
    pub(crate) details: Vec<(&'static str, String)>,
}

/// Whether a name of a tool or a prompt may be looked at: no longer than a name may be, unless the plugin lists it.
pub(crate) fn is_name(subject: &Subject) -> bool {
    subject.listed || subject.name.chars().nth(MAX_NAME).is_none()
}
