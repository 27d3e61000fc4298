//! What the gateway says of itself: the answers to `initialize` and `server/discover`.
//!
//! At the endpoint of one plugin that is what the plugin says, in the words of the client's generation; at that of all
//! plugins the gateway itself, with all that any plugin has that the caller may use. Lists can always change, since a
//! reload of the policies changes what a caller sees. What a plugin says of how it is to be used is shown to those who
//! may use it.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::lists::may_use;
use crate::gateway::call::bridge::{self, Kind};
use crate::gateway::call::calls::Calls;
use crate::gateway::call::client::Client;
use crate::gateway::call::dispatch::Work;
use crate::gateway::call::error::CallError;
use crate::gateway::message::{Json, Object};
use crate::gateway::policy::Policy;
use crate::gateway::protocol::{Generation, META_SERVER_INFO, MODERN, TASKS_EXTENSION};
use crate::gateway::upstream::{Offer, UpstreamError};

/// How long a plugin that was never up is waited for.
const OFFER_TIMEOUT: Duration = Duration::from_secs(20);

/// Capabilities of servers that both generations have.
const COMMON: [&str; 6] = ["tools", "prompts", "resources", "completions", "logging", "experimental"];

/// The answer to `initialize`, in the version that was agreed on.
pub(super) async fn initialized(work: &Work, policy: &Policy) -> Result<Json, CallError> {
    let version = Json::text(&work.client.version);
    let mut result = Object::default();
    result.add("protocolVersion", version.clone());
    if work.endpoint.namespaced {
        let (capabilities, instructions) = together(work, policy);
        result.add("capabilities", Json::of(&capabilities));
        result.add("serverInfo", own_info());
        if let Some(instructions) = instructions {
            result.add("instructions", Json::text(&instructions));
        }
        return Ok(result.to_json());
    }
    let plugin = work.plugin(0)?;
    let unreachable = || CallError::upstream(&UpstreamError::Unreachable, plugin.name());
    let offer = plugin.offered(OFFER_TIMEOUT).await.ok_or_else(unreachable)?;
    if offer.generation == Generation::Old {
        // As the server wrote it.
        let mut result = offer.raw.object().unwrap_or_default();
        result.set("protocolVersion", version);
        result.set("capabilities", Json::of(&capabilities(&offer, &work.client)));
        if !may_use(policy, work, plugin) {
            result.take("instructions");
        }
        return Ok(result.to_json());
    }
    result.add("capabilities", Json::of(&capabilities(&offer, &work.client)));
    result.add("serverInfo", offer.server_info.clone().unwrap_or_else(own_info));
    if let Some(instructions) = offer.instructions.clone().filter(|_| may_use(policy, work, plugin)) {
        result.add("instructions", instructions);
    }
    Ok(result.to_json())
}

/// The answer to `server/discover`.
pub(super) async fn discovered(work: &mut Work, calls: &Arc<Calls>) -> Result<Json, CallError> {
    let policy = &calls.policy;
    let mut result = Object::default();
    result.add("supportedVersions", Json::of(&[MODERN]));
    let info = if work.endpoint.namespaced {
        let (capabilities, instructions) = together(work, policy);
        result.add("capabilities", Json::of(&capabilities));
        if let Some(instructions) = instructions {
            result.add("instructions", Json::text(&instructions));
        }
        let known = work.endpoint.plugins.iter().all(|plugin| plugin.offer().is_some());
        // There is no notification for a plugin that was not known yet.
        result.add("ttlMs", Json::of(&if known { bridge::MAX_TTL_MS } else { 0 }));
        own_info()
    } else {
        let plugin = work.plugin(0)?;
        let unreachable = || CallError::upstream(&UpstreamError::Unreachable, plugin.name());
        let offer = plugin.offered(OFFER_TIMEOUT).await.ok_or_else(unreachable)?;
        result.add("capabilities", Json::of(&capabilities(&offer, &work.client)));
        if let Some(instructions) = offer.instructions.clone().filter(|_| may_use(policy, work, plugin)) {
            result.add("instructions", instructions);
        }
        offer.server_info.clone().unwrap_or_else(own_info)
    };
    let mut meta = Object::default();
    meta.add(META_SERVER_INFO, info);
    result.add("_meta", meta.to_json());
    Ok(bridge::result(result.to_json(), &work.client, Generation::Modern, Kind::Cacheable))
}

/// What the gateway is.
pub(super) fn own_info() -> Json {
    Json::of(&json!({ "name": "mcpg", "version": env!("CARGO_PKG_VERSION") }))
}

/// What all plugins have that the caller may use, and how they are to be used.
fn together(work: &Work, policy: &Policy) -> (Value, Option<String>) {
    let mut all = Map::new();
    let mut instructions = Vec::new();
    let usable = work.endpoint.plugins.iter().filter(|plugin| may_use(policy, work, plugin));
    let offers: Vec<_> = usable.filter_map(|plugin| Some((plugin.name(), plugin.offer()?))).collect();
    for (name, offer) in &offers {
        if let Value::Object(mut own) = capabilities(offer, &work.client) {
            // What one server tries out is nothing of the gateway's.
            own.remove("experimental");
            if offers.len() > 1
                && let Some(Value::Object(extensions)) = own.get_mut("extensions")
            {
                extensions.retain(|name, _| name == TASKS_EXTENSION);
            }
            join(&mut all, &own);
        }
        if let Some(own) = offer.instructions.as_ref().and_then(Json::as_text) {
            instructions.push(format!("{name}: {own}"));
        }
    }
    // A plugin that is not up yet may have tools, and says so when it is.
    join(&mut all, &Map::from_iter([("tools".to_owned(), json!({ "listChanged": true }))]));
    (Value::Object(all), (!instructions.is_empty()).then(|| instructions.join("\n\n")))
}

/// What a plugin has, as a client of this generation may use it through the gateway.
fn capabilities(offer: &Offer, client: &Client) -> Value {
    let Some(Value::Object(mut own)) = offer.capabilities.value() else { return json!({}) };
    if client.generation != offer.generation {
        own.retain(|name, _| COMMON.contains(&name.as_str()));
    }
    if client.is_modern() {
        own.remove("tasks");
    } else if !client.knows("2025-11-25") {
        own.remove("tasks");
        own.remove("extensions");
    }
    for list in ["tools", "prompts", "resources"] {
        if let Some(Value::Object(list)) = own.get_mut(list) {
            list.insert("listChanged".to_owned(), Value::Bool(true));
        }
    }
    Value::Object(own)
}

/// Adds capabilities: what one has, all together have.
fn join(all: &mut Map<String, Value>, more: &Map<String, Value>) {
    for (name, value) in more {
        match (all.get_mut(name), value) {
            (Some(Value::Object(has)), Value::Object(more)) => join(has, more),
            (Some(has @ Value::Bool(false)), Value::Bool(true)) => *has = Value::Bool(true),
            (Some(_), _) => {}
            (None, value) => {
                all.insert(name.clone(), value.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::capabilities;
    use crate::gateway::call::client::Client;
    use crate::gateway::message::Json;
    use crate::gateway::protocol::Generation::{self, Modern, Old};
    use crate::gateway::upstream::Offer;

    fn offered(server: Generation, client: Generation, own: Value) -> Value {
        let own = Json::of(&own);
        let offer =
            Offer { generation: server, capabilities: own.clone(), instructions: None, server_info: None, raw: own };
        capabilities(&offer, &Client::new(client, "2025-11-25", Json::empty_object(), None))
    }

    #[test]
    fn a_client_is_offered_what_its_generation_has_and_lists_that_can_change() {
        let old = json!({ "tools": {}, "resources": { "subscribe": true }, "tasks": { "list": {} }, "brandNew": {} });
        let same = offered(Old, Old, old.clone());
        assert_eq!(
            same,
            json!({ "tools": { "listChanged": true }, "resources": { "subscribe": true, "listChanged": true },
            "tasks": { "list": {} }, "brandNew": {} })
        );
        assert_eq!(
            offered(Old, Modern, old),
            json!({ "tools": { "listChanged": true },
            "resources": { "subscribe": true, "listChanged": true } })
        );
        let modern = json!({ "tools": {}, "extensions": { "x/y": {} } });
        assert_eq!(offered(Modern, Modern, modern.clone())["extensions"], json!({ "x/y": {} }));
        assert_eq!(offered(Modern, Old, modern), json!({ "tools": { "listChanged": true } }));
    }
}
