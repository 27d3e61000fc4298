//! Taking values out of arguments and results, by JSON pointer (RFC 6901).
//!
//! A step `*` stands for every item of an array and every member of an object. From arguments a value is removed, so
//! that the upstream never gets it (an array's item becomes null, so that the others keep their places). In a result it
//! is replaced by `"[redacted]"`, so that a reader sees it. All else keeps the bytes it was written in: no number
//! changes.
//!
//! Pointers into a result are followed in `structuredContent` and in every text that is a JSON object or array. What
//! cannot be pointed into could hold anything, so of a result that is redacted only what this page names passes:
//!
//! | of | passes |
//! |---|---|
//! | a result | the protocol's own members ([`OWN`]); of `_meta` the protocol's own ([`OWN_META`]); `structuredContent` that is an object or array, `content`, `contents`, `messages` and a task's `result`, each as below |
//! | a block of content | text that is JSON, redacted; every other block is a text that says it is withheld |
//! | an embedded resource, the contents of a resource | its media type, its text as above; its `uri` only where it was asked for; no blob |
//! | a prompt's message | its `role`, its content as above |

use std::fmt;

use bytes::Bytes;

use crate::gateway::message::{Json, Object};
use crate::gateway::protocol::{META_SERVER_INFO, META_SUBSCRIPTION};

/// What stands in a result where a value was.
const REDACTED: &str = "[redacted]";

/// What stands in a result where something was that cannot be pointed into.
pub(in crate::gateway) const WITHHELD: &str =
    "[withheld: a policy redacts this result, and this part of it is not JSON]";

/// The URI of an embedded resource that is withheld.
const WITHHELD_URI: &str = "mcpg:withheld";

/// The longest member of the protocol's own that passes, in bytes: ids of tasks are servers' own.
const MAX_WORD: usize = 1_024;

/// Members of a result that are the protocol's own, and say nothing in a server's words.
const OWN: [&str; 11] = [
    "resultType",
    "ttlMs",
    "cacheScope",
    "isError",
    "taskId",
    "status",
    "createdAt",
    "lastUpdatedAt",
    "ttl",
    "pollInterval",
    "pollIntervalMs",
];

/// Members of `_meta` that are the protocol's own.
const OWN_META: [&str; 3] = [META_SERVER_INFO, META_SUBSCRIPTION, "io.modelcontextprotocol/related-task"];

/// One place, or several by `*`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pointer(Vec<Step>);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Every,
    Key(String),
}

impl Pointer {
    /// The pointer that `text` is.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let Some(rest) = text.strip_prefix('/') else {
            return Err(format!("`{text}` is no JSON pointer; it starts with a slash, like /users/*/email"));
        };
        let mut steps = Vec::new();
        for token in rest.split('/') {
            let unescaped = token.replace("~1", "/").replace("~0", "~");
            if token.replace("~1", "").replace("~0", "").contains('~') {
                return Err(format!("`{text}` is no JSON pointer; write ~0 for ~ and ~1 for /"));
            }
            steps.push(if token == "*" { Step::Every } else { Step::Key(unescaped) });
        }
        Ok(Self(steps))
    }
}

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.0 {
            match step {
                Step::Every => f.write_str("/*")?,
                Step::Key(key) => write!(f, "/{}", key.replace('~', "~0").replace('/', "~1"))?,
            }
        }
        Ok(())
    }
}

/// The rest of some pointers, from a place on.
type Rest<'a> = Vec<&'a [Step]>;

fn rests(pointers: &[Pointer]) -> Rest<'_> {
    pointers.iter().map(|pointer| &*pointer.0).collect()
}

/// What the pointers have left after a step to a member or an item.
fn after<'a>(rest: &Rest<'a>, leads: impl Fn(&str) -> bool) -> Rest<'a> {
    let mut after = Vec::new();
    for steps in rest {
        if let Some((step, more)) = steps.split_first()
            && match step {
                Step::Every => true,
                Step::Key(key) => leads(key),
            }
        {
            after.push(more);
        }
    }
    after
}

/// What becomes of a value that a pointer leads to.
#[derive(Clone, Copy)]
enum Act {
    Remove,
    Replace,
}

/// The value, without what the pointers lead to within it.
fn walk(value: &Json, rest: &Rest<'_>, act: Act) -> Json {
    if let Some(object) = value.object() {
        let mut kept = Object::default();
        for (name, member) in object.iter() {
            let after = after(rest, |key| key == name);
            if after.is_empty() {
                kept.add(name, member.clone());
            } else if !after.iter().any(|steps| steps.is_empty()) {
                kept.add(name, walk(member, &after, act));
            } else if matches!(act, Act::Replace) {
                kept.add(name, Json::text(REDACTED));
            }
        }
        return kept.to_json();
    }
    let Some(items) = value.every_item() else {
        // What cannot be taken apart is withheld whole.
        return if value.is_object() { Json::text(REDACTED) } else { value.clone() };
    };
    let items = items.into_iter().enumerate().map(|(index, item)| {
        let after = after(rest, |key| key.parse() == Ok(index));
        if after.is_empty() {
            item
        } else if !after.iter().any(|steps| steps.is_empty()) {
            walk(&item, &after, act)
        } else {
            match act {
                Act::Remove => Json::of(&()),
                Act::Replace => Json::text(REDACTED),
            }
        }
    });
    Json::array(&items.collect::<Vec<_>>())
}

/// Removes what the pointers lead to.
pub(super) fn remove(arguments: &Json, pointers: &[Pointer]) -> Json {
    if pointers.is_empty() { arguments.clone() } else { walk(arguments, &rests(pointers), Act::Remove) }
}

/// Keeps of an MCP result, of a tool, a resource or a prompt, what may pass, without what the pointers lead to.
pub(super) fn replace(result: &Json, pointers: &[Pointer]) -> Json {
    if pointers.is_empty() { result.clone() } else { kept(result, pointers, true) }
}

/// What of a result may pass. `of_task`: it may be a task, which holds a result; that one holds no other, however
/// deeply a server nests them.
fn kept(result: &Json, pointers: &[Pointer], of_task: bool) -> Json {
    let (rest, mut passed) = (rests(pointers), Object::default());
    for (name, value) in result.object().unwrap_or_default().iter() {
        let kept_value = match name {
            own if OWN.contains(&own) => is_word(value).then(|| value.clone()),
            "_meta" => own_meta(value),
            "structuredContent" if value.is_object() || value.is_array() => Some(walk(value, &rest, Act::Replace)),
            "content" => Some(parts(value, |part| block(part, &rest))),
            "contents" => Some(parts(value, |part| contents(part, &rest, true))),
            "messages" => Some(parts(value, |part| message(part, &rest))),
            "task" => value.object().map(|mut task| {
                task.retain(|name, _| OWN.contains(&name));
                task.to_json()
            }),
            "result" if of_task => Some(kept(value, pointers, false)),
            _ => None,
        };
        if let Some(value) = kept_value {
            passed.add(name, value);
        }
    }
    passed.to_json()
}

/// Whether a member of the protocol's own holds no more than such a member may: no object, no array, no long text.
fn is_word(value: &Json) -> bool {
    !value.is_object() && !value.is_array() && value.len() <= MAX_WORD
}

fn own_meta(meta: &Json) -> Option<Json> {
    let mut meta = meta.object()?;
    meta.retain(|name, _| OWN_META.contains(&name));
    (!meta.is_empty()).then(|| meta.to_json())
}

fn parts(list: &Json, part: impl Fn(&Json) -> Json) -> Json {
    let parts: Vec<Json> = list.every_item().unwrap_or_default().iter().map(part).collect();
    Json::array(&parts)
}

/// A text, if it is JSON that can be pointed into.
fn text(text: Option<&Json>, rest: &Rest<'_>) -> Json {
    let json = text.and_then(Json::as_text).and_then(|text| Json::parse(&Bytes::from(text.into_owned())));
    match json {
        Some(json) if json.is_object() || json.is_array() => {
            let redacted = walk(&json, rest, Act::Replace);
            Json::text(&String::from_utf8_lossy(redacted.as_bytes()))
        }
        _ => Json::text(WITHHELD),
    }
}

/// A block of content.
fn block(block: &Json, rest: &Rest<'_>) -> Json {
    let block = block.object().unwrap_or_default();
    let mut kept = Object::default();
    match block.text("type").as_deref() {
        Some("resource") => {
            kept.add("type", Json::text("resource"));
            let resource = block.get("resource").cloned().unwrap_or_else(Json::empty_object);
            kept.add("resource", contents(&resource, rest, false));
        }
        Some("text") => {
            kept.add("type", Json::text("text"));
            kept.add("text", text(block.get("text"), rest));
        }
        _ => {
            kept.add("type", Json::text("text"));
            kept.add("text", Json::text(WITHHELD));
        }
    }
    kept.to_json()
}

/// The contents of a resource. `asked`: its URI was asked for, so that it tells nothing.
fn contents(contents: &Json, rest: &Rest<'_>, asked: bool) -> Json {
    let contents = contents.object().unwrap_or_default();
    let mut kept = Object::default();
    match contents.get("uri").filter(|_| asked) {
        Some(uri) => kept.add("uri", uri.clone()),
        None => kept.add("uri", Json::text(WITHHELD_URI)),
    }
    if let Some(media_type) = contents.get("mimeType").filter(|media_type| is_media_type(media_type)) {
        kept.add("mimeType", media_type.clone());
    }
    kept.add("text", text(contents.get("text"), rest));
    kept.to_json()
}

/// Whether some JSON is a media type, and no words that stand where one should.
fn is_media_type(json: &Json) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/.+-_".contains(&byte);
    json.as_text().is_some_and(|text| text.len() <= 127 && text.contains('/') && text.bytes().all(plain))
}

/// A prompt's message.
fn message(message: &Json, rest: &Rest<'_>) -> Json {
    let message = message.object().unwrap_or_default();
    let mut kept = Object::default();
    let role = message.text("role").filter(|role| matches!(&**role, "user" | "assistant"));
    kept.add("role", Json::text(role.as_deref().unwrap_or("user")));
    let content = message.get("content").cloned().unwrap_or_else(Json::empty_object);
    kept.add(
        "content",
        if content.is_array() { parts(&content, |part| block(part, rest)) } else { block(&content, rest) },
    );
    kept.to_json()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::{Value, json};

    use super::{Pointer, WITHHELD, WITHHELD_URI, remove, replace};
    use crate::gateway::message::Json;

    fn pointers(texts: &[&str]) -> Vec<Pointer> {
        texts.iter().map(|text| Pointer::parse(text).unwrap()).collect()
    }

    #[track_caller]
    fn removed(arguments: Value, texts: &[&str]) -> Value {
        remove(&Json::of(&arguments), &pointers(texts)).value().unwrap()
    }

    #[track_caller]
    fn replaced(result: Value, texts: &[&str]) -> Value {
        replace(&Json::of(&result), &pointers(texts)).value().unwrap()
    }

    #[test]
    fn results_within_results_are_looked_into_once() {
        let nested = json!({ "taskId": "t", "result": { "content": [], "result": { "content": [] } } });
        assert_eq!(replaced(nested, &["/a"]), json!({ "taskId": "t", "result": { "content": [] } }));
        let deep = format!("{}{{}}{}", r#"{"result":"#.repeat(200_000), "}".repeat(200_000));
        let deep = Json::parse(&Bytes::from(deep)).unwrap();
        assert_eq!(replace(&deep, &pointers(&["/a"])).as_bytes(), br#"{"result":{}}"#, "however deep they are");
    }

    #[test]
    fn members_of_the_protocols_own_hold_no_more_than_words() {
        let smuggled =
            json!({ "status": { "token": "s" }, "ttl": ["s"], "createdAt": "s".repeat(2_000), "isError": true });
        assert_eq!(replaced(smuggled, &["/token"]), json!({ "isError": true }));
    }

    #[test]
    fn a_pointer_starts_with_a_slash_and_escapes_by_tildes() {
        for good in ["/a", "/a~1b/c~0d", "/users/*/email", "/0", "/"] {
            assert_eq!(Pointer::parse(good).unwrap().to_string(), good);
        }
        for bad in ["", "a", "a/b", "/a~2", "/~"] {
            assert!(Pointer::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn from_arguments_a_value_is_removed_and_an_item_becomes_null() {
        let arguments = json!({ "token": "s", "users": [{ "email": "a", "id": 1 }, { "id": 2 }], "tags": ["x", "y"] });
        assert_eq!(
            removed(arguments, &["/token", "/users/*/email", "/tags/0", "/absent/x"]),
            json!({ "users": [{ "id": 1 }, { "id": 2 }], "tags": [null, "y"] })
        );
    }

    #[test]
    fn a_star_stands_for_every_member_too() {
        assert_eq!(
            removed(json!({ "a": { "x": 1 }, "b": { "x": 2, "y": 3 } }), &["/*/x"]),
            json!({ "a": {}, "b": { "y": 3 } })
        );
        assert_eq!(removed(json!({ "a": 1, "b": 2 }), &["/*"]), json!({}));
        assert_eq!(removed(json!({ "a/b": 1, "c~d": 2, "e": 3 }), &["/a~1b", "/c~0d"]), json!({ "e": 3 }));
    }

    #[test]
    fn what_is_not_redacted_keeps_its_bytes() {
        let raw = r#"{"a":{"wei":1000000000000000000001,"x":1},"b":1.50}"#;
        let arguments = Json::parse(&Bytes::from_static(raw.as_bytes())).unwrap();
        let sent = remove(&arguments, &pointers(&["/a/x"]));
        assert_eq!(sent.as_bytes(), br#"{"a":{"wei":1000000000000000000001},"b":1.50}"#);
    }

    #[test]
    fn in_a_result_a_value_is_replaced_in_structured_content_and_in_json_texts() {
        let result = json!({
            "structuredContent": { "users": [{ "email": "a@b", "id": 1 }] },
            "content": [{ "type": "text", "text": "{\"users\":[{\"email\":\"a@b\",\"id\":1}]}" }],
        });
        let result = replaced(result, &["/users/*/email"]);
        let redacted = json!({ "users": [{ "email": "[redacted]", "id": 1 }] });
        assert_eq!(result["structuredContent"], redacted);
        assert_eq!(serde_json::from_str::<Value>(result["content"][0]["text"].as_str().unwrap()).unwrap(), redacted);
    }

    #[test]
    fn what_cannot_be_pointed_into_is_withheld() {
        let result = json!({ "content": [
            { "type": "text", "text": "the mail is a@b" },
            { "type": "text", "text": "42" },
            { "type": "resource", "resource": { "uri": "x://a@b", "text": "a@b" } },
            { "type": "resource", "resource": { "uri": "x://", "blob": "YUBi", "mimeType": "a@b" } },
            { "type": "image", "data": "YUBi", "mimeType": "image/png" },
            { "type": "audio", "data": "YUBi", "mimeType": "audio/wav" },
            { "type": "resource_link", "uri": "mail://a@b", "name": "a@b" },
            { "type": "text", "text": "{}", "annotations": { "x": "a@b" }, "_meta": { "m": "a@b" }, "more": "a@b" },
            { "type": "unheard-of", "said": "a@b" },
        ], "structuredContent": "a@b", "_meta": { "m": "a@b", "io.modelcontextprotocol/serverInfo": { "name": "s" } }, "more": "a@b" });
        let result = replaced(result, &["/email"]);
        let text = result.to_string();
        assert!(!text.contains("a@b") && !text.contains("YUBi"), "{text}");
        let texts =
            ["/content/0/text", "/content/1/text", "/content/2/resource/text", "/content/4/text", "/content/8/text"];
        assert!(texts.iter().all(|at| result.pointer(at).unwrap() == WITHHELD), "{result}");
        assert_eq!(result["content"][2]["resource"]["uri"], WITHHELD_URI);
        assert_eq!(result["_meta"], json!({ "io.modelcontextprotocol/serverInfo": { "name": "s" } }));
    }

    #[test]
    fn the_protocols_own_members_pass() {
        let own = json!({ "resultType": "complete", "ttlMs": 0, "cacheScope": "private", "isError": true });
        assert_eq!(replaced(own.clone(), &["/email"]), own);
        let task = json!({ "task": { "taskId": "t", "status": "working", "statusMessage": "a@b" } });
        assert_eq!(replaced(task, &["/email"]), json!({ "task": { "taskId": "t", "status": "working" } }));
        let done = json!({ "taskId": "t", "result": { "structuredContent": { "email": "a@b" } } });
        assert_eq!(replaced(done, &["/email"])["result"]["structuredContent"]["email"], "[redacted]");
    }

    #[test]
    fn the_contents_of_resources_and_the_messages_of_prompts_are_results_too() {
        let result = json!({
            "contents": [{ "uri": "x://", "text": "{\"key\":\"k\"}" }],
            "messages": [{ "role": "user", "content": { "type": "text", "text": "[{\"key\":\"k\"}]" } }],
        });
        let result = replaced(result, &["/key", "/*/key"]);
        assert!(!result.to_string().contains(r#"\"k\""#), "{result}");
        assert_eq!(result["contents"][0]["uri"], "x://", "it was asked for");
    }

    #[test]
    fn without_pointers_a_result_is_left_alone() {
        let result = json!({ "content": [{ "type": "text", "text": "free" }], "more": 1 });
        assert_eq!(replaced(result.clone(), &[]), result);
    }
}
