//! Requests of the modern generation, as they come over HTTP: which generation a message is of, and whether its headers
//! say what its body says.
//!
//! A message is modern if it says so in `_meta`; the header alone makes none. What the headers mirror of the body
//! (`MCP-Protocol-Version`, `Mcp-Method`, `Mcp-Name`, `Mcp-Param-*`) must be the same there, since a proxy in between
//! may have decided by it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName, StatusCode};
use serde_json::{Value, json};

use crate::gateway::message::{Json, Object, RpcError};
use crate::gateway::protocol::{
    META_CAPABILITIES, META_VERSION, METHOD_HEADER, MODERN, NAME_HEADER, PARAM_HEADERS, VERSION_HEADER, code,
};

/// `Mcp-Param-*` headers of one request, and their bytes.
const MAX_PARAMS: usize = 16;
const MAX_PARAM_BYTES: usize = 8 << 10;

/// How deep a tool's schema is walked for the parameters that headers carry.
const MAX_DEPTH: usize = 16;

/// What a modern request says in its `_meta`.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) version: String,
    pub(super) capabilities: Option<Json>,
}

/// What a message says of its generation. `None`: it claims none.
pub(super) fn claim(params: &Object) -> Option<Claim> {
    let meta = params.get("_meta")?.object()?;
    let version = meta.get(META_VERSION)?;
    // A claim of no text is a version that is not served.
    let version = version.as_text().map(std::borrow::Cow::into_owned).unwrap_or_default();
    Some(Claim { version, capabilities: meta.get(META_CAPABILITIES).cloned() })
}

/// Whether the header says that the message is modern.
pub(super) fn header_is_modern(headers: &HeaderMap) -> bool {
    headers.get(VERSION_HEADER).and_then(|value| value.to_str().ok()).is_some_and(|version| version >= MODERN)
}

/// Checks a modern request's claim and headers, in the order that the specification has.
///
/// # Errors
/// What it is refused with.
pub(super) fn check(claim: &Claim, headers: &HeaderMap, method: &str, params: &Object) -> Result<(), RpcError> {
    if !claim.capabilities.as_ref().is_some_and(Json::is_object) {
        let text = format!("Invalid params: _meta has no {META_CAPABILITIES}, an object");
        return Err(RpcError::invalid_params(text));
    }
    if one(headers, &VERSION_HEADER)? != Some(&*claim.version) {
        return Err(mismatch("MCP-Protocol-Version is not the version of _meta"));
    }
    if claim.version != MODERN {
        let data = json!({ "supported": [MODERN], "requested": claim.version });
        let error = RpcError::new(code::UNSUPPORTED_VERSION, "Unsupported protocol version");
        return Err(error.with_data(Json::of(&data)));
    }
    if one(headers, &METHOD_HEADER)? != Some(method) {
        return Err(mismatch("Mcp-Method is not the method of the body"));
    }
    let named = match method {
        "tools/call" | "prompts/get" => Some("name"),
        "resources/read" => Some("uri"),
        "tasks/get" | "tasks/update" | "tasks/cancel" => Some("taskId"),
        _ => None,
    };
    if let Some(member) = named {
        let header = one(headers, &NAME_HEADER)?.map(decoded).transpose()?;
        if header.is_none() || header.as_deref() != params.text(member).as_deref() {
            return Err(mismatch("Mcp-Name is not the name of the body"));
        }
    }
    let params = headers.iter().filter(|(name, _)| name.as_str().starts_with(PARAM_HEADERS));
    let (mut count, mut bytes) = (0, 0);
    for (name, value) in params {
        count += 1;
        bytes += name.as_str().len() + value.len();
        if count > MAX_PARAMS || bytes > MAX_PARAM_BYTES {
            return Err(mismatch("there are too many Mcp-Param headers"));
        }
        let value = value.to_str().map_err(|_| mismatch("an Mcp-Param header has invalid characters"))?;
        decoded(value)?;
    }
    Ok(())
}

/// Checks the headers that carry arguments against the arguments, by the schema that the plugin lists of the tool.
///
/// # Errors
/// When a header is missing, or says something else.
pub(super) fn check_params(headers: &HeaderMap, schema: &Json, arguments: Option<&Json>) -> Result<(), RpcError> {
    let Some(schema) = schema.value() else { return Ok(()) };
    let mut annotated = Vec::new();
    collect(&schema, &mut Vec::new(), &mut annotated);
    for (header, path) in annotated {
        let Ok(name) = HeaderName::try_from(format!("{PARAM_HEADERS}{}", header.to_lowercase())) else { continue };
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        let value = arguments.and_then(|arguments| arguments.at(&path)).filter(|value| !value.is_null());
        let header = one(headers, &name)?.map(decoded).transpose()?;
        let same = match (&header, &value) {
            (None, None) => true,
            (Some(header), Some(value)) => is_same(header, value),
            _ => false,
        };
        if !same {
            return Err(mismatch("an Mcp-Param header is not the argument of the body"));
        }
    }
    Ok(())
}

/// The annotated properties of a schema: header, path.
fn collect(schema: &Value, path: &mut Vec<String>, found: &mut Vec<(String, Vec<String>)>) {
    if path.len() >= MAX_DEPTH || found.len() > MAX_PARAMS {
        return;
    }
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else { return };
    for (name, property) in properties {
        path.push(name.clone());
        if let Some(header) = property.get("x-mcp-header").and_then(Value::as_str) {
            found.push((header.to_owned(), path.clone()));
        }
        collect(property, path, found);
        path.pop();
    }
}

/// Whether a header's text is an argument.
fn is_same(header: &str, value: &Json) -> bool {
    match value.value() {
        Some(Value::String(text)) => text == header,
        Some(Value::Bool(flag)) => header == if flag { "true" } else { "false" },
        // `42.0` and `42` are the same.
        Some(Value::Number(number)) => header.parse::<f64>().ok() == number.as_f64(),
        _ => false,
    }
}

/// The one header of that name.
fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, RpcError> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(_), Some(_)) => Err(mismatch("a header that stands for a part of the body is there twice")),
        (Some(value), None) => {
            let text = value.to_str().map_err(|_| mismatch("a header has invalid characters"))?;
            Ok(Some(text))
        }
    }
}

/// What a header's value stands for.
fn decoded(value: &str) -> Result<String, RpcError> {
    let invalid = || mismatch("a header's base64 is invalid");
    match value.strip_prefix("=?base64?").and_then(|rest| rest.strip_suffix("?=")) {
        None => Ok(value.to_owned()),
        Some(encoded) => {
            let bytes = STANDARD.decode(encoded).map_err(|_| invalid())?;
            String::from_utf8(bytes).map_err(|_| invalid())
        }
    }
}

fn mismatch(text: &str) -> RpcError {
    RpcError::new(code::HEADER_MISMATCH, format!("Header mismatch: {text}"))
}

/// The HTTP status of a modern response.
pub(super) fn status(code: Option<i64>) -> StatusCode {
    match code {
        Some(code::METHOD_NOT_FOUND) => StatusCode::NOT_FOUND,
        Some(code::HEADER_MISMATCH | code::MISSING_CAPABILITY | code::UNSUPPORTED_VERSION) => StatusCode::BAD_REQUEST,
        _ => StatusCode::OK,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::{HeaderMap, HeaderName, HeaderValue};
    use serde_json::{Value, json};

    use super::{Claim, check, check_params, claim};
    use crate::gateway::message::{Json, Object};

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn params(value: &Value) -> Object {
        Json::parse(&Bytes::from(value.to_string())).unwrap().object().unwrap()
    }

    fn call(version: &str) -> Object {
        params(&json!({ "name": "grüße", "_meta": {
            "io.modelcontextprotocol/protocolVersion": version, "io.modelcontextprotocol/clientCapabilities": {} } }))
    }

    const NAME: (&str, &str) = ("mcp-name", "=?base64?Z3LDvMOfZQ==?=");
    const VERSION: (&str, &str) = ("mcp-protocol-version", "2026-07-28");
    const METHOD: (&str, &str) = ("mcp-method", "tools/call");

    fn code(params: &Object, fields: &[(&'static str, &str)]) -> Option<i64> {
        let claim = claim(params).unwrap();
        check(&claim, &headers(fields), "tools/call", params).err().map(|error| error.code)
    }

    #[test]
    fn a_request_whose_headers_say_what_its_body_says_is_taken() {
        assert_eq!(code(&call("2026-07-28"), &[VERSION, METHOD, NAME]), None);
        assert!(claim(&params(&json!({ "name": "a" }))).is_none());
    }

    #[test]
    fn what_differs_is_told_in_the_order_of_the_specification() {
        let call = call("2026-07-28");
        for fields in [
            &[METHOD, NAME][..],
            &[("mcp-protocol-version", "2025-11-25"), METHOD, NAME],
            &[VERSION, NAME],
            &[VERSION, ("mcp-method", "tools/list"), NAME],
            &[VERSION, METHOD],
            &[VERSION, METHOD, ("mcp-name", "other")],
            &[VERSION, METHOD, ("mcp-name", "=?base64?%%?=")],
            &[VERSION, METHOD, NAME, NAME],
            &[VERSION, VERSION, METHOD, NAME],
        ] {
            assert_eq!(code(&call, fields), Some(-32020), "{fields:?}");
        }
        let unknown = self::call("v999");
        assert_eq!(code(&unknown, &[VERSION, METHOD, NAME]), Some(-32020));
        assert_eq!(code(&unknown, &[("mcp-protocol-version", "v999"), METHOD, NAME]), Some(-32022));
        let bare =
            params(&json!({ "name": "a", "_meta": { "io.modelcontextprotocol/protocolVersion": "2026-07-28" } }));
        assert_eq!(code(&bare, &[VERSION, METHOD, NAME]), Some(-32602));
        assert!(matches!(claim(&bare), Some(Claim { capabilities: None, .. })));
    }

    #[test]
    fn a_header_that_carries_an_argument_is_the_argument() {
        let schema = Json::of(&json!({ "properties": {
            "region": { "type": "string", "x-mcp-header": "Region" },
            "deep": { "properties": { "n": { "type": "integer", "x-mcp-header": "N" } } } } }));
        let check = |arguments: Value, fields: &[(&'static str, &str)]| {
            check_params(&headers(fields), &schema, Some(&Json::of(&arguments))).is_ok()
        };
        assert!(check(
            json!({ "region": "a", "deep": { "n": 42 } }),
            &[("mcp-param-region", "a"), ("mcp-param-n", "42.0")]
        ));
        assert!(check(json!({ "region": null }), &[]));
        assert!(!check(json!({ "region": "a" }), &[]));
        assert!(!check(json!({ "region": "a" }), &[("mcp-param-region", "b")]));
        assert!(!check(json!({}), &[("mcp-param-region", "b")]));
    }
}
