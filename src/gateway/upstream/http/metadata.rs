//! The headers of a modern request: what is in its body, for proxies that route it without reading that.
//!
//! | header | holds | of |
//! |---|---|---|
//! | `MCP-Protocol-Version` | the version in `_meta` | every request |
//! | `Mcp-Method` | the method | every request |
//! | `Mcp-Name` | `params.name`, `params.uri` or `params.taskId` | `tools/call`, `prompts/get`; `resources/read`; `tasks/*` |
//! | `Mcp-Param-<name>` | an argument | `tools/call`, where the tool's schema says so with `x-mcp-header` |
//!
//! They are always built from the body that is sent, never taken from a client: so what a policy redacted from the
//! arguments is in no header either. A value that is no plain ASCII goes as `=?base64?…?=`; so does one that looks like
//! that itself.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Map, Value};

use crate::gateway::message::{Json, Object};
use crate::gateway::protocol::{META_VERSION, METHOD_HEADER, MODERN, NAME_HEADER, PARAM_HEADERS, VERSION_HEADER};

/// How deep a schema is walked, and how many of its properties; a tool with more is left out.
const MAX_DEPTH: usize = 16;
const MAX_PROPERTIES: usize = 2_000;

/// The largest integer that every JSON parser keeps.
const SAFE_INTEGER: i64 = (1 << 53) - 1;

/// An argument that goes into a header, too: the header's name and where the argument is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::gateway::upstream) struct ParamHeader {
    name: HeaderName,
    path: Vec<String>,
}

/// Why the annotations of a tool's schema are not valid, for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(in crate::gateway::upstream) enum InvalidSchema {
    #[error("an x-mcp-header is no text, or no name of a header")]
    Name,
    #[error("two x-mcp-header have the same name")]
    Twice,
    #[error("an x-mcp-header stands at a property that is no integer, string or boolean")]
    Type,
    #[error("an x-mcp-header stands where only keywords other than `properties` lead")]
    Unreachable,
    #[error("the schema has too many levels or properties")]
    TooLarge,
}

/// The arguments that the schema of a tool wants in headers.
///
/// # Errors
/// When an annotation is not as the specification has it: such a tool must not be offered.
pub(in crate::gateway::upstream) fn param_headers(schema: &Value) -> Result<Vec<ParamHeader>, InvalidSchema> {
    let mut walk = Walk { found: Vec::new(), seen: 0 };
    walk.schema(schema, &mut Vec::new(), true, 0)?;
    Ok(walk.found)
}

struct Walk {
    found: Vec<ParamHeader>,
    seen: usize,
}

impl Walk {
    /// Walks a schema; `reachable`: only `properties` lead to it.
    fn schema(
        &mut self,
        schema: &Value,
        path: &mut Vec<String>,
        reachable: bool,
        depth: usize,
    ) -> Result<(), InvalidSchema> {
        self.seen += 1;
        if depth > MAX_DEPTH || self.seen > MAX_PROPERTIES {
            return Err(InvalidSchema::TooLarge);
        }
        match schema {
            Value::Object(members) => self.members(members, path, reachable, depth),
            Value::Array(items) => items.iter().try_for_each(|item| self.schema(item, path, false, depth + 1)),
            _ => Ok(()),
        }
    }

    fn members(
        &mut self,
        members: &Map<String, Value>,
        path: &mut Vec<String>,
        reachable: bool,
        depth: usize,
    ) -> Result<(), InvalidSchema> {
        if let Some(name) = members.get("x-mcp-header") {
            if !reachable || path.is_empty() {
                return Err(InvalidSchema::Unreachable);
            }
            self.annotation(name, members.get("type"), path)?;
        }
        for (keyword, value) in members {
            match (keyword.as_str(), value) {
                ("properties", Value::Object(properties)) => {
                    for (property, schema) in properties {
                        path.push(property.clone());
                        let walked = self.schema(schema, path, reachable, depth + 1);
                        path.pop();
                        walked?;
                    }
                }
                // These hold data, not schemas.
                ("default" | "examples" | "enum" | "const" | "x-mcp-header", _) => {}
                (_, value @ (Value::Object(_) | Value::Array(_))) => self.schema(value, path, false, depth + 1)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn annotation(&mut self, name: &Value, of_type: Option<&Value>, path: &[String]) -> Result<(), InvalidSchema> {
        let name = name.as_str().filter(|name| !name.is_empty()).ok_or(InvalidSchema::Name)?;
        let name = HeaderName::from_bytes(format!("{PARAM_HEADERS}{name}").as_bytes());
        let name = name.map_err(|_| InvalidSchema::Name)?;
        if !matches!(of_type.and_then(Value::as_str), Some("integer" | "string" | "boolean")) {
            return Err(InvalidSchema::Type);
        }
        if self.found.iter().any(|found| found.name == name) {
            return Err(InvalidSchema::Twice);
        }
        self.found.push(ParamHeader { name, path: path.to_vec() });
        Ok(())
    }
}

/// The headers of a modern request.
pub(in crate::gateway::upstream) fn headers(method: &str, params: Option<&Json>, of_tool: &[ParamHeader]) -> HeaderMap {
    let params = params.and_then(Json::object).unwrap_or_default();
    let mut headers = HeaderMap::new();
    let version = params.get("_meta").and_then(|meta| meta.get(META_VERSION));
    let version = version.as_ref().and_then(Json::as_text).and_then(|version| HeaderValue::from_str(&version).ok());
    headers.insert(VERSION_HEADER, version.unwrap_or(HeaderValue::from_static(MODERN)));
    headers.insert(METHOD_HEADER, encoded(method));
    if let Some(name) = name_of(method, &params) {
        headers.insert(NAME_HEADER, encoded(&name));
    }
    if let Some(arguments) = params.get("arguments").filter(|_| !of_tool.is_empty()) {
        for param in of_tool {
            let path: Vec<_> = param.path.iter().map(String::as_str).collect();
            if let Some(value) = arguments.at(&path).as_ref().and_then(argument) {
                headers.insert(param.name.clone(), encoded(&value));
            }
        }
    }
    headers
}

fn name_of(method: &str, params: &Object) -> Option<String> {
    let member = match method {
        "tools/call" | "prompts/get" => "name",
        "resources/read" => "uri",
        "tasks/get" | "tasks/update" | "tasks/cancel" => "taskId",
        _ => return None,
    };
    params.text(member).map(Into::into)
}

/// An argument as text; `None`: no header can hold it.
fn argument(value: &Json) -> Option<String> {
    match value.value()? {
        Value::String(text) => Some(text),
        Value::Bool(truth) => Some(truth.to_string()),
        Value::Number(number) => integer(&number).map(|number| number.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// A whole number in the range that the specification allows; `42.0` is one.
fn integer(number: &serde_json::Number) -> Option<i64> {
    let whole = number.as_i64().or_else(|| {
        let float = number.as_f64()?;
        // Beyond this range a float is no exact whole number.
        (float.fract() == 0.0 && float.abs() <= SAFE_INTEGER as f64).then_some(float as i64)
    })?;
    (whole.abs() <= SAFE_INTEGER).then_some(whole)
}

/// A value as a header holds it.
fn encoded(text: &str) -> HeaderValue {
    let is_plain = text.bytes().all(|byte| (0x20..0x7F).contains(&byte))
        && text.trim_matches(' ').len() == text.len()
        && !(text.starts_with("=?base64?") && text.ends_with("?="));
    let plain = is_plain.then(|| HeaderValue::from_str(text).ok()).flatten();
    plain.unwrap_or_else(|| {
        let encoded = format!("=?base64?{}?=", STANDARD.encode(text));
        HeaderValue::from_str(&encoded).unwrap_or(HeaderValue::from_static(""))
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;
    use serde_json::json;

    use super::{InvalidSchema, encoded, headers, param_headers};
    use crate::gateway::message::Json;

    #[test]
    fn values_are_encoded_as_the_specification_shows() {
        for (value, header) in [
            ("us-west1", "us-west1"),
            ("Hello, 世界", "=?base64?SGVsbG8sIOS4lueVjA==?="),
            (" padded ", "=?base64?IHBhZGRlZCA=?="),
            ("line1\nline2", "=?base64?bGluZTEKbGluZTI=?="),
            ("=?base64?literal?=", "=?base64?PT9iYXNlNjQ/bGl0ZXJhbD89?="),
            ("", ""),
        ] {
            assert_eq!(encoded(value), header, "{value}");
        }
    }

    #[test]
    fn headers_say_what_the_body_says() {
        let schema = json!({"type": "object", "properties": {
            "region": {"type": "string", "x-mcp-header": "Region"},
            "limits": {"type": "object", "properties": {"rows": {"type": "integer", "x-mcp-header": "Rows"}}},
            "dry": {"type": "boolean", "x-mcp-header": "Dry"},
            "token": {"type": "string", "x-mcp-header": "Token"},
        }});
        let of_tool = param_headers(&schema).unwrap();
        let params = json!({"name": "q", "_meta": {"io.modelcontextprotocol/protocolVersion": "2026-07-28"},
            "arguments": {"region": "eu", "limits": {"rows": 42.0}, "dry": true, "token": null}});
        let headers = headers("tools/call", Some(&Json::of(&params)), &of_tool);
        let mut found: Vec<_> =
            headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        found.sort();
        assert_eq!(
            found,
            [
                "mcp-method: tools/call",
                "mcp-name: q",
                "mcp-param-dry: true",
                "mcp-param-region: eu",
                "mcp-param-rows: 42",
                "mcp-protocol-version: 2026-07-28",
            ]
        );
    }

    #[test]
    fn a_task_is_named_by_its_id_and_a_list_not_at_all() {
        let params = Json::of(&json!({"taskId": "t-1", "uri": "x:/é", "name": "n"}));
        let name =
            |method| headers(method, Some(&params), &[]).get("mcp-name").map(|name| name.to_str().unwrap().to_owned());
        assert_eq!(name("tasks/get").as_deref(), Some("t-1"));
        assert_eq!(name("resources/read").as_deref(), Some("=?base64?eDovw6k=?="));
        assert_eq!(name("tools/list"), None);
    }

    #[test]
    fn a_schema_that_is_not_as_specified_is_refused() {
        let property = |schema| json!({"properties": {"a": schema}});
        for (schema, why) in [
            (property(json!({"type": "string", "x-mcp-header": ""})), InvalidSchema::Name),
            (property(json!({"type": "string", "x-mcp-header": "a b"})), InvalidSchema::Name),
            (property(json!({"type": "string", "x-mcp-header": "a\r\nb"})), InvalidSchema::Name),
            (property(json!({"type": "number", "x-mcp-header": "A"})), InvalidSchema::Type),
            (
                property(json!({"type": "array", "items": {"type": "string", "x-mcp-header": "A"}})),
                InvalidSchema::Unreachable,
            ),
            (json!({"x-mcp-header": "A", "type": "string"}), InvalidSchema::Unreachable),
            (json!({"anyOf": [property(json!({"type": "string", "x-mcp-header": "A"}))]}), InvalidSchema::Unreachable),
            (
                json!({"properties": {
                    "a": {"type": "string", "x-mcp-header": "A"}, "b": {"type": "string", "x-mcp-header": "a"},
                }}),
                InvalidSchema::Twice,
            ),
        ] {
            assert_eq!(param_headers(&schema), Err(why), "{schema}");
        }
        assert!(param_headers(&property(json!({"type": "string", "default": {"x-mcp-header": 1}}))).is_ok());
        let deep = (0..40).fold(json!({}), |inner, _| property(inner));
        assert_eq!(param_headers(&deep), Err(InvalidSchema::TooLarge));
    }

    proptest! {
        #[test]
        fn every_text_becomes_a_header(text in any::<String>(), argument in any::<String>()) {
            let schema = json!({"properties": {"a": {"type": "string", "x-mcp-header": "A"}}});
            let params = json!({"name": text, "arguments": {"a": argument}});
            let body = Json::parse(&Bytes::from(params.to_string())).unwrap();
            let headers = headers("tools/call", Some(&body), &param_headers(&schema).unwrap());
            for (name, text) in [("mcp-name", &text), ("mcp-param-a", &argument)] {
                let value = headers.get(name).unwrap().to_str().unwrap();
                let read = match value.strip_prefix("=?base64?").and_then(|rest| rest.strip_suffix("?=")) {
                    Some(inner) => String::from_utf8(super::Engine::decode(&super::STANDARD, inner).unwrap()).unwrap(),
                    None => value.to_owned(),
                };
                prop_assert_eq!(&read, text);
            }
        }
    }
}
