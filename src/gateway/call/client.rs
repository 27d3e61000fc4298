//! Whose a request is, and how its client is notified and asked: what `call` knows of the side that clients see.

use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::gateway::identity::Caller;
use crate::gateway::message::{Json, Notification, RpcError};
use crate::gateway::protocol::{Generation, OLD};
use crate::gateway::upstream::{Plugin, UpstreamError, UpstreamSession};

/// The longest name or version of a client that is kept, in characters.
const MAX_NAME: usize = 128;

/// What came with an HTTP request.
#[derive(Debug)]
pub(crate) struct Inbound {
    /// Who sent it.
    pub(crate) caller: Caller,
    /// The caller's name, shared.
    pub(crate) owner: Arc<str>,
    /// Whether the caller is known by a token, and not anonymous.
    pub(crate) known: bool,
    /// When it was there, before anything was done with it.
    pub(crate) arrived_at: DateTime<Utc>,
    /// How long finding out who sent it took, in microseconds.
    pub(crate) identity_us: u64,
    /// How large the message is.
    pub(crate) bytes: u64,
    /// The gateway's own id of it: in the answer's headers, and in all that is recorded of it.
    pub(crate) request_id: Arc<str>,
    /// The id of the call, where it is one.
    pub(crate) invocation_id: Uuid,
}

/// A client, as it says of itself: nothing here is verified, and nothing is decided by it.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) generation: Generation,
    pub(crate) version: Box<str>,
    /// An object.
    pub(crate) capabilities: Json,
    pub(crate) info: Option<Json>,
    /// Its name and version, cut short.
    pub(crate) name: Option<Box<str>>,
    pub(crate) software: Option<Box<str>>,
}

impl Client {
    pub(crate) fn new(generation: Generation, version: &str, capabilities: Json, info: Option<Json>) -> Self {
        let member = |name: &str| {
            let text = info.as_ref()?.get(name)?;
            let text = text.as_text()?.chars().filter(|c| !c.is_control()).take(MAX_NAME).collect::<String>();
            (!text.is_empty()).then(|| text.into_boxed_str())
        };
        let (name, software) = (member("name"), member("version"));
        Self { generation, version: version.into(), capabilities, info, name, software }
    }

    pub(crate) fn is_modern(&self) -> bool {
        self.generation == Generation::Modern
    }

    /// Whether it declared a capability.
    pub(crate) fn declares(&self, path: &[&str]) -> bool {
        self.capabilities.at(path).is_some_and(|value| !value.is_null())
    }

    /// Whether it declared anything that a server may ask for.
    pub(crate) fn answers_questions(&self) -> bool {
        ["sampling", "elicitation", "roots"].into_iter().any(|capability| self.declares(&[capability]))
    }

    /// Whether it speaks this old version or a newer one.
    pub(crate) fn knows(&self, version: &str) -> bool {
        let age = |version: &str| OLD.into_iter().position(|known| known == version);
        self.is_modern() || age(&self.version) >= age(version)
    }
}

/// Which plugins an endpoint reaches.
#[derive(Clone)]
pub(crate) struct Endpoint {
    pub(crate) plugins: Arc<[Arc<Plugin>]>,
    /// Whether names of tools and prompts start with their plugin's.
    pub(crate) namespaced: bool,
}

impl Endpoint {
    /// Which of the endpoints it is: the plugin's name, or nothing for that of all plugins.
    pub(crate) fn name(&self) -> &str {
        if self.namespaced { "" } else { self.plugins.first().map_or("", |plugin| plugin.name()) }
    }
}

/// Where what belongs to one request goes.
#[async_trait]
pub(crate) trait Outlet: Send + Sync + 'static {
    /// Notifies the client, in order, without waiting.
    fn notify(&self, notification: Notification);

    /// Asks the client on behalf of the plugin at `index`. Dropping the future withdraws the question. Only clients of
    /// old versions can be asked; for all others this is an error.
    async fn ask(&self, index: usize, method: &str, params: Option<Json>) -> Result<Json, RpcError>;

    /// The client was given an elicitation by URL, of this id: it is notified when it is complete.
    fn gave_elicitation(&self, id: &str) {
        // Modern clients have no such notification.
        let _ = id;
    }

    /// Whether the client was given this elicitation.
    fn was_given(&self, id: &str) -> bool {
        let _ = id;
        false
    }
}

/// What a client of an old version has between its requests.
#[async_trait]
pub(crate) trait ClientSession: Send + Sync + 'static {
    fn id(&self) -> &Arc<str>;

    /// The session with the plugin at `index`, opened if it is not open or has ended.
    async fn upstream(&self, index: usize) -> Result<Arc<UpstreamSession>, UpstreamError>;

    /// The same, if it is open.
    fn open_upstream(&self, index: usize) -> Option<Arc<UpstreamSession>>;

    /// Subscribes to a resource of a modern server; whether it is granted.
    async fn listen(&self, index: usize, uri: &str) -> Result<bool, UpstreamError>;

    /// Ends a subscription to a resource of a modern server.
    async fn unlisten(&self, index: usize, uri: &str) -> Result<(), UpstreamError>;

    /// The level of the log that the client asked for, as it wrote it.
    fn log_level(&self) -> Option<Json>;

    /// Remembers what it asks for.
    fn set_log_level(&self, level: &str);

    /// Remembers that the plugin at `index` gave the caller a link to a resource.
    fn remember_link(&self, index: usize, uri: &str);

    /// Which plugin gave the caller a link to a resource.
    fn linked(&self, uri: &str) -> Option<usize>;

    /// A subscription is there, or is gone.
    fn subscribed(&self, index: usize, uri: &str, there: bool);

    /// Which plugin a subscription is with.
    fn subscription(&self, uri: &str) -> Option<usize>;

    /// A call whose result is redacted begins at the plugin at `index`, or ends: what the plugin says meanwhile may
    /// hold what is redacted.
    fn redacting(&self, index: usize, begins: bool);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::Client;
    use crate::gateway::message::Json;
    use crate::gateway::protocol::Generation;

    #[test]
    fn what_a_client_says_of_itself_is_cut_short() {
        let info = Json::of(&json!({ "name": "n\u{7}ame".repeat(100), "version": 7 }));
        let client = Client::new(Generation::Old, "2025-06-18", Json::of(&json!({ "roots": {} })), Some(info));
        assert_eq!(client.name.as_deref().map(|name| name.chars().count()), Some(128));
        assert!(!client.name.unwrap().contains('\u{7}') && client.software.is_none());
    }

    #[test]
    fn a_capability_is_declared_by_being_there() {
        let client =
            Client::new(Generation::Old, "2025-06-18", Json::of(&json!({ "elicitation": {}, "roots": null })), None);
        assert!(
            client.declares(&["elicitation"])
                && !client.declares(&["roots"])
                && !client.declares(&["elicitation", "url"])
        );
        assert!(client.answers_questions() && client.knows("2025-03-26") && !client.knows("2025-11-25"));
    }
}
