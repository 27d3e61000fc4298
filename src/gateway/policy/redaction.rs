//! Taking values out of arguments and results, by JSON pointer (RFC 6901).
//!
//! A step `*` stands for every item of an array and every member of an object. From arguments a value is removed, so that
//! the upstream never gets it (an array's item becomes null, so that the others keep their places). In a result it is
//! replaced by `"[redacted]"`, so that whoever reads it can tell.
//!
//! Pointers into a result are followed in `structuredContent` and in every text that is a JSON object or array. A text
//! that is not could hold anything and cannot be pointed into, so a result that is redacted keeps none: it is withheld
//! whole, and so are blobs.

use std::fmt;

use serde_json::{Map, Value};

/// What stands in a result where a value was.
const REDACTED: &str = "[redacted]";

/// What stands in a result where a text was that cannot be pointed into.
const WITHHELD: &str = "[withheld: a policy redacts this result, and this part of it is not JSON]";

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

/// Removes what the pointers lead to.
pub(super) fn remove(arguments: &mut Map<String, Value>, pointers: &[Pointer]) {
    for pointer in pointers {
        walk_map(arguments, &pointer.0, &|slot| match slot {
            Slot::Member(map, key) => drop(map.remove(key)),
            Slot::Item(item) => *item = Value::Null,
        });
    }
}

/// Replaces what the pointers lead to in an MCP result: of a tool, a resource or a prompt.
pub(super) fn replace(result: &mut Value, pointers: &[Pointer]) {
    if pointers.is_empty() {
        return;
    }
    let Value::Object(result) = result else { return };
    if let Some(structured) = result.get_mut("structuredContent") {
        redact(structured, pointers);
    }
    for list in ["content", "contents", "messages"] {
        if let Some(Value::Array(parts)) = result.get_mut(list) {
            parts.iter_mut().for_each(|part| redact_part(part, pointers));
        }
    }
}

/// A block of content, the content of a resource, or a prompt's message.
fn redact_part(part: &mut Value, pointers: &[Pointer]) {
    let Value::Object(part) = part else { return };
    for nested in ["content", "resource"] {
        match part.get_mut(nested) {
            Some(Value::Array(parts)) => parts.iter_mut().for_each(|part| redact_part(part, pointers)),
            Some(nested) => redact_part(nested, pointers),
            None => {}
        }
    }
    if let Some(Value::String(text)) = part.get_mut("text") {
        *text = match serde_json::from_str::<Value>(text) {
            Ok(mut json) if json.is_object() || json.is_array() => {
                redact(&mut json, pointers);
                json.to_string()
            }
            _ => WITHHELD.to_owned(),
        };
    }
    if let Some(Value::String(blob)) = part.get_mut("blob") {
        blob.clear();
    }
}

fn redact(value: &mut Value, pointers: &[Pointer]) {
    for pointer in pointers {
        walk(value, &pointer.0, &|slot| {
            let value = match slot {
                Slot::Member(map, key) => match map.get_mut(key) {
                    Some(value) => value,
                    None => return,
                },
                Slot::Item(item) => item,
            };
            *value = Value::String(REDACTED.to_owned());
        });
    }
}

/// Where a pointer leads.
enum Slot<'a> {
    Member(&'a mut Map<String, Value>, &'a str),
    Item(&'a mut Value),
}

fn walk(value: &mut Value, steps: &[Step], act: &impl Fn(Slot<'_>)) {
    match value {
        Value::Object(map) => walk_map(map, steps, act),
        Value::Array(items) => {
            let Some((step, rest)) = steps.split_first() else { return };
            let visit = |item: &mut Value| if rest.is_empty() { act(Slot::Item(item)) } else { walk(item, rest, act) };
            match step {
                Step::Every => items.iter_mut().for_each(visit),
                Step::Key(key) => {
                    if let Some(item) = key.parse::<usize>().ok().and_then(|index| items.get_mut(index)) {
                        visit(item);
                    }
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn walk_map(map: &mut Map<String, Value>, steps: &[Step], act: &impl Fn(Slot<'_>)) {
    let Some((step, rest)) = steps.split_first() else { return };
    match step {
        Step::Key(key) if rest.is_empty() => {
            if map.contains_key(key) {
                act(Slot::Member(map, key));
            }
        }
        Step::Key(key) => {
            if let Some(child) = map.get_mut(key) {
                walk(child, rest, act);
            }
        }
        Step::Every if rest.is_empty() => {
            let keys: Vec<String> = map.keys().cloned().collect();
            keys.iter().for_each(|key| act(Slot::Member(map, key)));
        }
        Step::Every => map.values_mut().for_each(|child| walk(child, rest, act)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Pointer, WITHHELD, remove, replace};

    fn pointers(texts: &[&str]) -> Vec<Pointer> {
        texts.iter().map(|text| Pointer::parse(text).unwrap()).collect()
    }

    #[track_caller]
    fn removed(arguments: Value, texts: &[&str]) -> Value {
        let Value::Object(mut map) = arguments else { panic!("arguments are an object") };
        remove(&mut map, &pointers(texts));
        Value::Object(map)
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
    fn in_a_result_a_value_is_replaced_in_structured_content_and_in_json_texts() {
        let mut result = json!({
            "structuredContent": { "users": [{ "email": "a@b", "id": 1 }] },
            "content": [{ "type": "text", "text": "{\"users\":[{\"email\":\"a@b\",\"id\":1}]}" }],
        });
        replace(&mut result, &pointers(&["/users/*/email"]));
        let redacted = json!({ "users": [{ "email": "[redacted]", "id": 1 }] });
        assert_eq!(result["structuredContent"], redacted);
        assert_eq!(serde_json::from_str::<Value>(result["content"][0]["text"].as_str().unwrap()).unwrap(), redacted);
    }

    #[test]
    fn what_cannot_be_pointed_into_is_withheld() {
        let mut result = json!({ "content": [
            { "type": "text", "text": "the mail is a@b" },
            { "type": "text", "text": "42" },
            { "type": "resource", "resource": { "uri": "x://", "text": "a@b" } },
            { "type": "resource", "resource": { "uri": "x://", "blob": "YUBi" } },
        ] });
        replace(&mut result, &pointers(&["/email"]));
        let texts = ["/content/0/text", "/content/1/text", "/content/2/resource/text"];
        assert!(texts.iter().all(|at| result.pointer(at).unwrap() == WITHHELD), "{result}");
        assert_eq!(result["content"][3]["resource"]["blob"], "");
    }

    #[test]
    fn the_contents_of_resources_and_the_messages_of_prompts_are_results_too() {
        let mut result = json!({
            "contents": [{ "uri": "x://", "text": "{\"key\":\"k\"}" }],
            "messages": [{ "role": "user", "content": { "type": "text", "text": "[{\"key\":\"k\"}]" } }],
        });
        replace(&mut result, &pointers(&["/key", "/*/key"]));
        assert!(!result.to_string().contains(r#"\"k\""#), "{result}");
    }

    #[test]
    fn without_pointers_a_result_is_left_alone() {
        let mut result = json!({ "content": [{ "type": "text", "text": "free" }] });
        let before = result.clone();
        replace(&mut result, &[]);
        assert_eq!(result, before);
    }
}
