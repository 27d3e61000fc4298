//! The lists of all plugins as one, and what a caller may see of them.
//!
//! At the endpoint of all plugins a list has every plugin's entries, in the order of the configuration, names of tools
//! and prompts with their plugin's in front, all on one page; at the endpoint of one plugin, that plugin's. A plugin
//! that cannot be asked is left out, with a line in the log; only when none could be asked is the list an error.
//!
//! `list` is decided on for each plugin and put on the record once for a request: what is permitted in one entry, what
//! is denied in another. Which entries a caller sees follows from what it may call, read or get.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::time::timeout;

use super::names;
use crate::gateway::call::bridge::{self, Kind};
use crate::gateway::call::calls::{By, Calls};
use crate::gateway::call::client::Client;
use crate::gateway::call::dispatch::Work;
use crate::gateway::call::error::CallError;
use crate::gateway::call::subject::{MAX_NAME, Subject};
use crate::gateway::call::uri::canonical;
use crate::gateway::message::{Json, Object};
use crate::gateway::policy::{Action, Listing as Shown, Policy, Verdict};
use crate::gateway::protocol::Generation;
use crate::gateway::upstream::{Item, ListKind, Listing, Plugin, UpstreamError};

/// How long a plugin is waited for, where others have lists too.
const LIST_TIMEOUT: Duration = Duration::from_secs(3);

/// The target of an entry that is about all plugins.
const ALL: &str = "*";

/// A list, as far as the caller may see it.
pub(super) async fn list(work: &mut Work, calls: &Arc<Calls>, kind: ListKind) -> Result<Json, CallError> {
    if work.params.get("cursor").is_some_and(|cursor| !cursor.is_null()) {
        // All of a list is on its first page, so no cursor was given out.
        return Err(CallError::invalid("the cursor is none of this list's"));
    }
    let allowed = decide(work, calls, kind).await?;
    let asked = join_all(allowed.iter().map(|index| entries(work, calls, *index, kind))).await;
    let (mut all, mut answered, mut first_error, mut ttl) = (Vec::new(), allowed.is_empty(), None, u64::MAX);
    for (index, listing) in allowed.iter().zip(asked) {
        let plugin = work.plugin(*index)?;
        match listing {
            Ok(listing) => {
                answered = true;
                ttl = ttl.min(listing.ttl_ms.unwrap_or(0));
                let items = listing.items.iter().filter_map(|item| entry(work, calls, plugin, kind, item));
                all.extend(items);
            }
            Err(error) => {
                tracing::warn!(plugin = plugin.name(), method = kind.method(), code = error.code(), "not listed");
                ttl = 0;
                first_error.get_or_insert_with(|| CallError::upstream(&error, plugin.name()));
            }
        }
    }
    if let Some(error) = first_error.filter(|_| !answered) {
        return Err(error);
    }
    let mut result = Object::default();
    result.add(kind.member(), Json::array(&all));
    if work.client.is_modern() {
        result.add("ttlMs", Json::of(&if ttl == u64::MAX { 0 } else { ttl }));
    }
    Ok(bridge::result(result.to_json(), &work.client, work.client.generation, Kind::Cacheable))
}

/// The plugins whose list the caller may see; what was decided is on the record.
async fn decide(work: &mut Work, calls: &Arc<Calls>, kind: ListKind) -> Result<Vec<usize>, CallError> {
    let word = word(kind);
    let ties = work.ties();
    let by = By { inbound: &work.inbound, client: &work.client, ties: &ties };
    let (mut allowed, mut denied) = (Vec::new(), Vec::new());
    let mut verdicts: [Option<Verdict>; 2] = [None, None];
    let span = work.spans.policy();
    for (index, plugin) in work.endpoint.plugins.iter().enumerate() {
        let subject = Subject::plugin(index, Action::List);
        let (verdict, _) = calls.decide(by, plugin.name(), &subject, None, &[("kind", word)]);
        let (list, slot) = if verdict.is_permit() { (&mut allowed, 0) } else { (&mut denied, 1) };
        list.push(index);
        if let Some(slot) = verdicts.get_mut(slot) {
            slot.get_or_insert(verdict);
        }
    }
    let shown = verdicts.iter().flatten().next();
    if let Some(verdict) = shown {
        span.decided(verdict.decision, &verdict.policy_ids, &verdict.obligations.names());
    }
    let name = |index: &usize| work.endpoint.plugins.get(*index).map_or("", |plugin| plugin.name());
    let mut refused = None;
    for (verdict, of) in verdicts.into_iter().flatten().zip([&allowed, &denied].into_iter().filter(|of| !of.is_empty()))
    {
        let plugins = of.iter().map(name).collect::<Vec<_>>().join(", ");
        let target = if work.endpoint.namespaced { ALL } else { &*plugins };
        let mut details = vec![("kind", word)];
        if work.endpoint.namespaced {
            details.push(("plugins", &*plugins));
        }
        let subject = Subject::plugin(0, Action::List);
        match calls.permit(by, target, &subject, verdict, &details).await {
            Ok(_) => {}
            Err(error) if error.code == "POLICY_DENIED" => refused = Some(error),
            Err(error) => return Err(error),
        }
    }
    match refused {
        Some(error) if allowed.is_empty() => Err(error),
        _ => Ok(allowed),
    }
}

/// A kind of list in the words of policies.
pub(super) fn word(kind: ListKind) -> &'static str {
    match kind {
        ListKind::Tools => "tools",
        ListKind::Prompts => "prompts",
        ListKind::Resources => "resources",
        ListKind::Templates => "templates",
    }
}

/// What policy is asked of an entry of a list: the action, and the name it is decided on by.
fn subject_of(kind: ListKind, name: &str) -> (Action, String) {
    match kind {
        ListKind::Tools => (Action::CallTool, name.to_owned()),
        ListKind::Prompts => (Action::GetPrompt, name.to_owned()),
        ListKind::Resources => (Action::ReadResource, canonical(name)),
        ListKind::Templates => (Action::ReadResource, name.to_owned()),
    }
}

/// Whether a caller may use something of a plugin: what it may not use at all is not asked for its sake.
pub(super) fn may_use(policy: &Policy, work: &Work, plugin: &Plugin) -> bool {
    let caller = &work.inbound.caller;
    let sees = |kind: ListKind, name: &str| {
        let (action, name) = subject_of(kind, name);
        policy.may_list(caller, action, plugin.name(), &name)
    };
    // A permit for whatever there is needs no list.
    let actions = [Action::CallTool, Action::GetPrompt, Action::ReadResource];
    actions.into_iter().any(|action| policy.may_list(caller, action, plugin.name(), ""))
        || ListKind::ALL.into_iter().any(|kind| {
            plugin.listed(kind).iter().any(|listing| listing.items.iter().any(|item| sees(kind, &item.name)))
        })
}

/// Every entry of one plugin's list.
async fn entries(work: &Work, calls: &Arc<Calls>, index: usize, kind: ListKind) -> Result<Arc<Listing>, UpstreamError> {
    let Some(plugin) = work.endpoint.plugins.get(index) else { return Err(UpstreamError::Unreachable) };
    let lacks = plugin.offer().is_some_and(|offer| offer.capabilities.get(kind.capability()).is_none());
    let kept = plugin.listed(kind);
    // Of what is kept the caller may see nothing: nothing is opened for it.
    let is_stranger = !kept.is_empty() && !may_use(&calls.policy, work, plugin);
    if lacks || is_stranger {
        return Ok(Arc::new(Listing { items: Vec::new(), ttl_ms: None, public: false }));
    }
    let patience = if work.endpoint.namespaced { LIST_TIMEOUT } else { plugin.timeout() };
    let listed = timeout(patience, plugin.list(kind, &work.view(index))).await;
    match (listed, kept.into_iter().next()) {
        (Ok(Ok(listing)), _) => Ok(listing),
        // What it had last is better than nothing, for a client that sees many plugins.
        (_, Some(kept)) if work.endpoint.namespaced => Ok(kept),
        (Ok(Err(error)), _) => Err(error),
        (Err(_), _) => Err(UpstreamError::TimedOut { after: patience }),
    }
}

/// An entry as the caller sees it. `None`: it does not.
fn entry(work: &Work, calls: &Calls, plugin: &Plugin, kind: ListKind, item: &Item) -> Option<Json> {
    let (action, name) = subject_of(kind, &item.name);
    let shown = calls.policy.listing(&work.inbound.caller, action, plugin.name(), &name);
    if !shown.visible {
        return None;
    }
    let named = matches!(kind, ListKind::Tools | ListKind::Prompts);
    if named && item.name.chars().nth(MAX_NAME).is_some() {
        tracing::warn!(plugin = plugin.name(), "a name of more than {MAX_NAME} characters is not offered");
        return None;
    }
    let prefix = (named && work.endpoint.namespaced).then(|| plugin.name());
    let server = plugin.offer().map_or(work.client.generation, |offer| offer.generation);
    Some(written(&work.client, server, kind, item, shown, prefix))
}

/// An entry as a client of this generation can read it.
fn written(
    client: &Client,
    server: Generation,
    kind: ListKind,
    item: &Item,
    shown: Shown,
    prefix: Option<&str>,
) -> Json {
    let Some(mut object) = item.raw.object() else { return item.raw.clone() };
    let mut changed = false;
    if let Some(prefix) = prefix {
        object.set("name", Json::text(&names::join(prefix, &item.name)));
        changed = true;
    }
    if kind == ListKind::Tools {
        // A result that may be redacted cannot promise its schema; and before the modern versions a schema is of an
        // object.
        let of_object = object
            .get("outputSchema")
            .is_none_or(|schema| schema.get("type").is_some_and(|kind| kind.as_text().as_deref() == Some("object")));
        if shown.redacted || (!client.is_modern() && !of_object) {
            changed |= object.take("outputSchema").is_some();
        }
        if client.is_modern() && server == Generation::Old {
            changed |= object.take("execution").is_some();
        }
    }
    if changed { object.to_json() } else { item.raw.clone() }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Shown, written};
    use crate::gateway::call::client::Client;
    use crate::gateway::message::Json;
    use crate::gateway::protocol::Generation::{self, Modern, Old};
    use crate::gateway::upstream::{Item, ListKind};

    fn shown(client: Generation, server: Generation, raw: Value, redacted: bool, prefix: Option<&str>) -> Value {
        let client = Client::new(client, "2025-11-25", Json::empty_object(), None);
        let item = Item { name: raw["name"].as_str().unwrap().into(), raw: Json::of(&raw) };
        written(&client, server, ListKind::Tools, &item, Shown { visible: true, redacted }, prefix).value().unwrap()
    }

    #[test]
    fn an_entry_keeps_all_but_its_name() {
        let tool = json!({ "x": { "y": [1] }, "name": "a", "outputSchema": { "type": "object" } });
        let mut named = tool.clone();
        named["name"] = json!("p__a");
        assert_eq!(shown(Old, Old, tool.clone(), false, Some("p")), named);
        assert_eq!(shown(Old, Old, tool.clone(), false, None), tool);
    }

    #[test]
    fn a_tool_whose_result_may_be_redacted_promises_no_schema() {
        let tool = json!({ "name": "a", "outputSchema": { "type": "object" } });
        assert_eq!(shown(Old, Old, tool, true, None), json!({ "name": "a" }));
    }

    #[test]
    fn what_one_generation_does_not_have_is_left_out() {
        let tool = json!({ "name": "a", "outputSchema": { "type": "array" } });
        assert_eq!(shown(Old, Modern, tool.clone(), false, None), json!({ "name": "a" }));
        assert_eq!(shown(Modern, Modern, tool.clone(), false, None), tool);
        let tool = json!({ "name": "a", "execution": { "taskSupport": "optional" } });
        assert_eq!(shown(Modern, Old, tool.clone(), false, None), json!({ "name": "a" }));
        assert_eq!(shown(Old, Old, tool.clone(), false, None), tool);
    }
}
