//! Results from one generation to the other, and the questions that a modern result holds.

use serde_json::json;

use super::client::Client;
use crate::gateway::message::{Json, Object};
use crate::gateway::protocol::Generation;

/// The longest that a client may keep an answer that policy had a say in: a reload can take away what it shows.
pub(crate) const MAX_TTL_MS: u64 = 30_000;

/// Questions that one result may hold.
pub(crate) const MAX_INPUTS: usize = 32;

/// A result that asks for more.
pub(crate) struct InputRequired {
    /// What is asked, by key, in the order it came.
    pub(crate) requests: Vec<Input>,
    /// The server's state.
    pub(crate) state: Option<String>,
}

/// One of the questions in a result.
#[derive(Debug)]
pub(crate) struct Input {
    pub(crate) key: Box<str>,
    pub(crate) method: Box<str>,
    pub(crate) params: Option<Json>,
}

impl InputRequired {
    /// Reads a result that asks for more. `None`: it asks for nothing, against the specification, or for too much.
    pub(crate) fn read(result: &Json) -> Option<Self> {
        let result = result.object()?;
        let state = match result.get("requestState") {
            None => None,
            Some(state) => Some(state.as_text()?.into_owned()),
        };
        let inputs = match result.get("inputRequests") {
            None => None,
            Some(inputs) if inputs.has_at_most(MAX_INPUTS) => Some(inputs.object()?),
            Some(_) => return None,
        };
        if state.is_none() && inputs.is_none() {
            return None;
        }
        let input = |(key, request): (&str, &Json)| {
            let request = request.object()?;
            Some(Input {
                key: key.into(),
                method: request.text("method")?.into(),
                params: request.get("params").cloned(),
            })
        };
        let requests = inputs.unwrap_or_default().iter().map(input).collect::<Option<Vec<_>>>()?;
        Some(Self { requests, state })
    }
}

/// A result that asks a modern client these questions.
pub(crate) fn input_required(inputs: &[Input], state: Option<&str>) -> Json {
    let mut requests = Object::default();
    for input in inputs {
        let mut request = Object::default();
        request.add("method", Json::text(&input.method));
        if let Some(params) = &input.params {
            request.add("params", params.clone());
        }
        requests.set(&input.key, request.to_json());
    }
    let mut result = Object::default();
    result.add("resultType", Json::text("input_required"));
    if !requests.is_empty() {
        result.add("inputRequests", requests.to_json());
    }
    if let Some(state) = state {
        result.add("requestState", Json::text(state));
    }
    result.to_json()
}

/// What a result is of, as far as its shape depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Of anything.
    Plain,
    /// One that clients may keep for a while: lists, resources, what a server offers.
    Cacheable,
}

/// A result of a server of `server`'s generation, as the client can read it.
pub(crate) fn result(result: Json, client: &Client, server: Generation, kind: Kind) -> Json {
    match (client.generation, server) {
        (Generation::Old, Generation::Old) => result,
        (Generation::Old, Generation::Modern) => to_old(result, client),
        (Generation::Modern, server) => to_modern(result, server, kind),
    }
}

fn to_modern(result: Json, server: Generation, kind: Kind) -> Json {
    let Some(mut object) = result.object() else { return result };
    if server == Generation::Old {
        // What an old server means by it is not what a modern client reads: it could ask past what is permitted.
        for name in ["resultType", "inputRequests", "requestState"] {
            object.take(name);
        }
    }
    let result_type = object.text("resultType").map(std::borrow::Cow::into_owned);
    if result_type.is_none() {
        object.set("resultType", Json::text("complete"));
    }
    // A result that asks for more is never kept.
    let is_complete = result_type.is_none_or(|kind| kind == "complete");
    if kind == Kind::Cacheable && is_complete {
        let ttl: u64 = object.get("ttlMs").and_then(Json::read).unwrap_or(0);
        object.set("ttlMs", Json::of(&ttl.min(MAX_TTL_MS)));
        // Policy decides by the caller.
        object.set("cacheScope", Json::text("private"));
    }
    object.to_json()
}

fn to_old(result: Json, client: &Client) -> Json {
    let Some(mut object) = result.object() else { return result };
    for name in ["resultType", "ttlMs", "cacheScope"] {
        object.take(name);
    }
    if let Some(structured) = object.get("structuredContent").cloned()
        && !structured.is_object()
    {
        // Only an object is one in the old versions.
        object.take("structuredContent");
        let has_content = object.get("content").and_then(Json::items).is_some_and(|blocks| !blocks.is_empty());
        if !has_content {
            let text = String::from_utf8_lossy(structured.as_bytes()).into_owned();
            object.set("content", Json::of(&json!([{ "type": "text", "text": text }])));
        }
    }
    if let Some(blocks) = object.get("content").and_then(Json::items) {
        let blocks: Vec<Json> = blocks.iter().map(|block| block_for(block, client)).collect();
        object.set("content", Json::array(&blocks));
    }
    object.to_json()
}

/// A block of content as a client of this version can read it.
fn block_for(block: &Json, client: &Client) -> Json {
    let text = |text: &str| Json::of(&json!({ "type": "text", "text": text }));
    let kind = block.get("type");
    match kind.as_ref().and_then(Json::as_text).as_deref() {
        Some("resource_link") if !client.knows("2025-06-18") => {
            let uri = block.get("uri");
            text(uri.as_ref().and_then(Json::as_text).as_deref().unwrap_or_default())
        }
        Some("audio") if !client.knows("2025-03-26") => {
            text("[audio, which this version of the protocol cannot carry]")
        }
        _ => block.clone(),
    }
}

/// The links to resources in a result.
pub(crate) fn links(result: &Json) -> Vec<String> {
    let is_there = result.as_bytes().windows(b"resource_link".len()).any(|window| window == b"resource_link");
    if !is_there {
        return Vec::new();
    }
    let blocks = result.get("content").and_then(|content| content.items()).unwrap_or_default();
    let is_link =
        |block: &&Json| block.get("type").is_some_and(|kind| kind.as_text().as_deref() == Some("resource_link"));
    let uri = |block: &Json| Some(block.get("uri")?.as_text()?.into_owned());
    blocks.iter().filter(is_link).filter_map(uri).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{InputRequired, Kind, input_required, links, result};
    use crate::gateway::call::client::Client;
    use crate::gateway::message::Json;
    use crate::gateway::protocol::Generation::{Modern, Old};

    fn old(version: &str) -> Client {
        Client::new(Old, version, Json::empty_object(), None)
    }

    fn shaped(value: Value, client: &Client, server: crate::gateway::protocol::Generation, kind: Kind) -> Value {
        result(Json::of(&value), client, server, kind).value().unwrap()
    }

    #[test]
    fn a_modern_client_gets_what_every_modern_result_has() {
        let modern = Client::new(Modern, "2026-07-28", Json::empty_object(), None);
        assert_eq!(shaped(json!({ "a": 1 }), &modern, Old, Kind::Plain), json!({ "a": 1, "resultType": "complete" }));
        let kept = shaped(json!({ "contents": [] }), &modern, Old, Kind::Cacheable);
        assert_eq!(kept, json!({ "contents": [], "resultType": "complete", "ttlMs": 0, "cacheScope": "private" }));
        let long = json!({ "resultType": "complete", "ttlMs": 3_600_000, "cacheScope": "public" });
        let capped = json!({ "resultType": "complete", "ttlMs": 30_000, "cacheScope": "private" });
        assert_eq!(shaped(long, &modern, Modern, Kind::Cacheable), capped);
        let asks = json!({ "resultType": "input_required", "requestState": "s" });
        assert_eq!(shaped(asks.clone(), &modern, Modern, Kind::Cacheable), asks);
        assert_eq!(
            shaped(asks, &modern, Old, Kind::Plain),
            json!({ "resultType": "complete" }),
            "an old server asks otherwise"
        );
    }

    #[test]
    fn an_old_client_gets_what_its_version_has() {
        let content =
            json!([{ "type": "resource_link", "uri": "x://y", "name": "n" }, { "type": "audio", "data": "" }]);
        let value = json!({ "resultType": "complete", "ttlMs": 1, "cacheScope": "public", "content": content });
        assert_eq!(shaped(value.clone(), &old("2025-11-25"), Modern, Kind::Plain), json!({ "content": content }));
        let oldest = shaped(value, &old("2024-11-05"), Modern, Kind::Plain);
        assert_eq!(oldest["content"][0], json!({ "type": "text", "text": "x://y" }));
        assert_eq!(oldest["content"][1]["type"], "text");
        let scalar = shaped(json!({ "structuredContent": 7, "content": [] }), &old("2025-11-25"), Modern, Kind::Plain);
        assert_eq!(scalar, json!({ "content": [{ "type": "text", "text": "7" }] }));
    }

    #[test]
    fn what_is_asked_is_read_and_written_alike() {
        let asks = json!({
            "resultType": "input_required", "requestState": "s",
            "inputRequests": { "k": { "method": "elicitation/create", "params": { "message": "m" } }, "r": { "method": "roots/list" } },
        });
        let read = InputRequired::read(&Json::of(&asks)).unwrap();
        assert_eq!((read.requests.len(), read.state.as_deref()), (2, Some("s")));
        assert_eq!(input_required(&read.requests, read.state.as_deref()).value().unwrap(), asks);
        assert!(InputRequired::read(&Json::of(&json!({ "resultType": "input_required" }))).is_none());
        let many: serde_json::Map<_, _> =
            (0..33).map(|n| (format!("k{n}"), json!({ "method": "roots/list", "params": { "n": n } }))).collect();
        let asks = json!({ "resultType": "input_required", "requestState": "s", "inputRequests": many });
        assert!(InputRequired::read(&Json::of(&asks)).is_none(), "a result without end of questions");
    }

    #[test]
    fn links_are_found_in_the_content() {
        let value = json!({ "content": [{ "type": "text", "text": "resource_link" }, { "type": "resource_link", "uri": "x://y" }] });
        assert_eq!(links(&Json::of(&value)), ["x://y"]);
        assert!(links(&Json::of(&json!({ "content": [] }))).is_empty());
    }
}
