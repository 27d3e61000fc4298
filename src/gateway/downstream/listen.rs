//! `subscriptions/listen`: one stream of what a modern client wants to hear of, for as long as it is connected.
//!
//! The first message says what is granted: of the lists those that the caller may list, of the resources those that it
//! may read and whose server grants a subscription, of the tasks its own. Every message carries the id of the client's
//! request. Changes of lists come from the gateway, which hears of them from its own sessions with plugins, and makes
//! one when the policies change; updates of resources come from the plugins. When the gateway ends, the request is
//! answered with a result.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Map, Value, json};
use tokio::sync::{broadcast, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::lists::word;
use super::relay::Relay;
use crate::gateway::call::calls::By;
use crate::gateway::call::dispatch::{Work, own_ask};
use crate::gateway::call::error::CallError;
use crate::gateway::call::outgoing::Meta;
use crate::gateway::call::subject::Subject;
use crate::gateway::message::{Json, Notification, Object, Request, RpcError};
use crate::gateway::policy::Action;
use crate::gateway::protocol::{Generation, META_SUBSCRIPTION};
use crate::gateway::upstream::{Lease, ListKind, Listening, StreamGuard, Upcalls};
use crate::telemetry::w3c;

/// Resources that one stream may be subscribed to.
const MAX_RESOURCES: usize = 64;

/// Updates of a plugin that may wait to be sent on.
const QUEUE: usize = 256;

/// The lists of a filter, and what they are called there.
const LISTS: [(&str, ListKind); 3] = [
    ("toolsListChanged", ListKind::Tools),
    ("promptsListChanged", ListKind::Prompts),
    ("resourcesListChanged", ListKind::Resources),
];

/// That a list changed.
#[derive(Debug, Clone)]
pub(super) struct ListChange {
    /// The plugin whose it is; none: lists of all.
    pub(super) plugin: Option<Arc<str>>,
    pub(super) kind: ListKind,
    /// For whom it changed; none: for everybody.
    pub(super) caller: Option<Arc<str>>,
}

/// Where updates come from, for as long as this is there.
enum Source {
    Modern { _listening: Listening },
    Old { lease: Lease, uris: Vec<String>, _stream: StreamGuard },
}

/// Serves one stream until its client is gone or the gateway stops; then gives the result that ends it.
pub(super) async fn listen(
    relay: &Relay,
    work: &mut Work,
    mut changes: broadcast::Receiver<ListChange>,
    stop: &CancellationToken,
) -> Result<Json, CallError> {
    let filter = work.params.get("notifications").and_then(Json::object);
    let filter = filter.ok_or_else(|| CallError::invalid("`notifications` is missing: what is to be heard of"))?;
    let (updates, mut updated) = mpsc::channel(QUEUE);
    let mut granted = Map::new();
    let mut lists = Vec::new();
    for (name, kind) in LISTS {
        if filter.get(name).is_some_and(Json::is_true) && may_list(relay, work, kind).await? {
            lists.push(kind);
            granted.insert(name.to_owned(), Value::Bool(true));
        }
    }
    let uris: Vec<String> = filter.get("resourceSubscriptions").and_then(Json::read).unwrap_or_default();
    if uris.len() > MAX_RESOURCES {
        return Err(CallError::invalid(format!("at most {MAX_RESOURCES} resources on one stream")));
    }
    let (sources, heard) = subscribe(relay, work, &uris, &updates).await?;
    if filter.has("resourceSubscriptions") && !heard.is_empty() {
        granted.insert("resourceSubscriptions".to_owned(), json!(heard));
    }
    let id = work.request.id.to_json();
    let tagged = |params: Option<Json>| {
        let mut params = params.and_then(|params| params.object()).unwrap_or_default();
        let mut meta = params.get("_meta").and_then(Json::object).unwrap_or_default();
        meta.set(META_SUBSCRIPTION, id.clone());
        params.set("_meta", meta.to_json());
        Some(params.to_json())
    };
    let acknowledged = Json::of(&json!({ "notifications": granted }));
    let tell = |method: &str, params: Option<Json>| {
        work.outlet.notify(Notification { method: method.into(), params: tagged(params) });
    };
    tell("notifications/subscriptions/acknowledged", Some(acknowledged));
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            change = changes.recv() => match change {
                Ok(change) => {
                    let is_here = change.plugin.is_none_or(|name| {
                        work.endpoint.plugins.iter().any(|plugin| *plugin.name() == *name)
                    });
                    let is_ours = change.caller.is_none_or(|caller| caller == work.inbound.owner);
                    if is_here && is_ours && lists.contains(&change.kind) {
                        tell(change.kind.notification(), None);
                    }
                }
                // Whatever was missed, its lists may have changed.
                Err(broadcast::error::RecvError::Lagged(_)) => {
                    lists.iter().for_each(|kind| tell(kind.notification(), None));
                }
                Err(broadcast::error::RecvError::Closed) => break,
            },
            Some((plugin, params)) = updated.recv() => {
                if let Some(params) = as_heard(relay, work, plugin, &params) {
                    tell("notifications/resources/updated", Some(params));
                }
            }
        }
    }
    drop(sources);
    let mut meta = Object::default();
    meta.add(META_SUBSCRIPTION, id);
    let mut result = Object::default();
    result.add("resultType", Json::text("complete"));
    result.add("_meta", meta.to_json());
    Ok(result.to_json())
}

/// Whether the caller may list this kind at some plugin here; on the record.
async fn may_list(relay: &Relay, work: &Work, kind: ListKind) -> Result<bool, CallError> {
    let calls = &relay.dispatcher.calls;
    let ties = work.ties();
    let by = By { inbound: &work.inbound, client: &work.client, ties: &ties };
    let details = [("kind", word(kind))];
    let mut denied = None;
    for (index, plugin) in work.endpoint.plugins.iter().enumerate() {
        let subject = Subject::plugin(index, Action::List);
        let (verdict, _) = calls.decide(by, plugin.name(), &subject, None, &details);
        if verdict.is_permit() {
            return calls.permit(by, plugin.name(), &subject, verdict, &details).await.map(|_| true);
        }
        denied.get_or_insert((plugin.name(), subject, verdict));
    }
    match denied {
        Some((plugin, subject, verdict)) => match calls.permit(by, plugin, &subject, verdict, &details).await {
            Err(error) if error.code != "POLICY_DENIED" => Err(error),
            _ => Ok(false),
        },
        None => Ok(false),
    }
}

/// Subscribes to resources at their plugins: what they send, and the URIs that were granted.
async fn subscribe(
    relay: &Relay,
    work: &Work,
    uris: &[String],
    updates: &mpsc::Sender<(usize, Json)>,
) -> Result<(Vec<Source>, Vec<String>), CallError> {
    let calls = &relay.dispatcher.calls;
    let ties = work.ties();
    let by = By { inbound: &work.inbound, client: &work.client, ties: &ties };
    let mut of_plugins: HashMap<usize, Vec<String>> = HashMap::new();
    for uri in uris {
        // A resource that no plugin has, or that may not be read, is left out of what is granted.
        let Ok(subject) = relay.route(work, uri).await else { continue };
        let plugin = work.plugin(subject.index)?;
        let (verdict, _) = calls.decide(by, plugin.name(), &subject, None, &[]);
        match calls.permit(by, plugin.name(), &subject, verdict, &[]).await {
            Ok(_) => of_plugins.entry(subject.index).or_default().push(uri.clone()),
            Err(error) if error.code == "POLICY_DENIED" => {}
            Err(error) => return Err(error),
        }
    }
    let (mut sources, mut heard) = (Vec::new(), Vec::new());
    for (index, uris) in of_plugins {
        let plugin = work.plugin(index)?;
        let upcalls: Arc<dyn Upcalls> = Arc::new(Updates { index, updates: updates.clone() });
        match plugin.generation(work.client.generation, plugin.timeout()).await {
            Ok(Generation::Modern) => {
                let filter = Json::of(&json!({ "resourceSubscriptions": uris }));
                let trace = w3c::Outbound::default();
                let meta = Meta {
                    client: &work.client,
                    server: Generation::Modern,
                    trace: &trace,
                    progress: None,
                    log_level: None,
                    tasks: false,
                };
                let mut params = Object::default();
                if let Some(own) = work.params.get("_meta") {
                    params.set("_meta", own.clone());
                }
                meta.put(&mut params);
                let meta = params.take("_meta").unwrap_or_else(Json::empty_object);
                let caller = work.known_caller();
                match plugin.listen(caller.as_deref(), filter, meta, upcalls).await {
                    Ok(listening) => {
                        let granted: Vec<String> = listening
                            .granted()
                            .get("resourceSubscriptions")
                            .and_then(|all| all.read())
                            .unwrap_or_default();
                        heard.extend(granted.into_iter().filter(|uri| uris.contains(uri)));
                        sources.push(Source::Modern { _listening: listening });
                    }
                    Err(error) => tracing::debug!(plugin = plugin.name(), code = error.code(), "no subscription"),
                }
            }
            Ok(Generation::Old) => {
                let Ok(mut lease) = plugin.lease(work.pool_key(), Arc::clone(&upcalls)).await else { continue };
                let stream = lease.want_stream();
                let mut granted = Vec::new();
                for uri in uris {
                    let ask = own_ask("resources/subscribe", Json::of(&json!({ "uri": uri })), Arc::clone(&upcalls));
                    if matches!(timeout(plugin.timeout(), lease.ask(ask)).await, Ok(Ok(_))) {
                        granted.push(uri);
                    }
                }
                lease.share();
                heard.extend(granted.iter().cloned());
                sources.push(Source::Old { lease, uris: granted, _stream: stream });
            }
            Err(error) => tracing::debug!(plugin = plugin.name(), code = error.code(), "no subscription"),
        }
    }
    // In the order in which they were asked for.
    let heard = uris.iter().filter(|uri| heard.contains(uri)).cloned().collect();
    Ok((sources, heard))
}

/// An update as the caller may hear of it.
fn as_heard(relay: &Relay, work: &Work, index: usize, params: &Json) -> Option<Json> {
    let plugin = work.endpoint.plugins.get(index)?;
    relay.dispatcher.calls.updated(&work.inbound.caller, plugin.name(), params.object()?)
}

impl Drop for Source {
    fn drop(&mut self) {
        match self {
            // It ends with itself.
            Self::Modern { .. } => {}
            Self::Old { lease, uris, .. } => {
                if tokio::runtime::Handle::try_current().is_ok() {
                    tokio::spawn(lease.unsubscribe(std::mem::take(uris)));
                }
            }
        }
    }
}

/// What a plugin says of resources, on its way to the stream.
struct Updates {
    index: usize,
    updates: mpsc::Sender<(usize, Json)>,
}

#[async_trait]
impl Upcalls for Updates {
    async fn asked(&self, _: Request) -> Result<Json, RpcError> {
        Err(RpcError::method_not_found("the client can be asked within a call only"))
    }

    async fn notified(&self, notification: Notification) {
        if let Some(params) = notification.params.filter(|_| &*notification.method == "notifications/resources/updated")
        {
            // A client that does not read its stream misses updates.
            let _ = self.updates.try_send((self.index, params));
        }
    }
}
