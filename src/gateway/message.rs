//! JSON-RPC messages as a relay carries them: the method, the id, and everything else as the bytes it was written in.
//!
//! Parameters and results are [`Json`]: slices of the body they came in, checked to be JSON and never parsed into a tree on
//! their way. So a number, the order of members, an unknown member or an escape arrives as its sender wrote it. What a relay
//! has to replace (a name's prefix, `_meta`, a progress token) it replaces member by member ([`Object`]); all other members keep
//! their bytes. White space between the members of an object that is rewritten goes, and line breaks go on the way to a pipe or
//! an event stream, where they would end a message ([`Json::one_line`]).
//!
//! On the wire a message is one JSON object, told apart by its members as JSON-RPC 2.0 says: `method` and `id` make a request,
//! `method` alone a notification, `result` or `error` a response.
//!
//! Two parsers may read an object that names a member twice differently, so that one of them decides on what the other does not
//! see. Whoever decides asks [`Json::is_unambiguous`] first.
//!
//! Parameters and results are payload: no type here shows them in its `Debug` (invariant I6).

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::protocol::code;

/// How deep a text may be nested that a decision is made on; parsers into trees stop there as well.
const MAX_DEPTH: usize = 127;

/// The text of one JSON value, without white space around it. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Json(Bytes);

impl Json {
    /// The value that `bytes` is; `None`: it is no JSON.
    pub(crate) fn parse(bytes: &Bytes) -> Option<Self> {
        let raw: &RawValue = serde_json::from_slice(bytes).ok()?;
        Some(Self::within(bytes, raw))
    }

    /// A value of the gateway's own making.
    pub(crate) fn of(value: &impl Serialize) -> Self {
        // What is serialised here has text for keys, and writing into memory does not fail.
        Self(serde_json::to_vec(value).map_or_else(|_| Bytes::from_static(b"null"), Bytes::from))
    }

    /// `{}`.
    pub(crate) const fn empty_object() -> Self {
        Self(Bytes::from_static(b"{}"))
    }

    /// A text as JSON.
    pub(crate) fn text(text: &str) -> Self {
        Self::of(&text)
    }

    /// `raw`, which lies within `body`.
    fn within(body: &Bytes, raw: &RawValue) -> Self {
        Self(body.slice_ref(raw.get().as_bytes()))
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes, shared.
    pub(crate) fn bytes(&self) -> Bytes {
        self.0.clone()
    }

    /// How many bytes it has.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Reads it as `T`, which may borrow from it. `None`: it has another shape.
    pub(crate) fn read<'a, T: Deserialize<'a>>(&'a self) -> Option<T> {
        serde_json::from_slice(&self.0).ok()
    }

    /// Parses it into a tree. `None`: it is nested too deeply.
    pub(crate) fn value(&self) -> Option<Value> {
        self.read()
    }

    /// The text that it is.
    pub(crate) fn as_text(&self) -> Option<Cow<'_, str>> {
        text_of(&self.0)
    }

    pub(crate) fn is_object(&self) -> bool {
        self.0.first() == Some(&b'{')
    }

    pub(crate) fn is_array(&self) -> bool {
        self.0.first() == Some(&b'[')
    }

    pub(crate) fn is_null(&self) -> bool {
        &self.0[..] == b"null"
    }

    /// `true`, exactly.
    pub(crate) fn is_true(&self) -> bool {
        &self.0[..] == b"true"
    }

    /// Its members. `None`: it is no object.
    pub(crate) fn object(&self) -> Option<Object> {
        if !self.is_object() {
            return None;
        }
        let members: Members<'_> = serde_json::from_slice(&self.0).ok()?;
        let members = members.0.into_iter().map(|(name, value)| {
            let key = Self::within(&self.0, name);
            let name = text_of(name.get().as_bytes()).unwrap_or_default().into();
            Member { name, key, value: Self::within(&self.0, value) }
        });
        Some(Object(members.collect()))
    }

    /// Its items. `None`: it is no array.
    pub(crate) fn items(&self) -> Option<Vec<Self>> {
        if !self.is_array() {
            return None;
        }
        let items: Vec<&RawValue> = serde_json::from_slice(&self.0).ok()?;
        Some(items.into_iter().map(|item| Self::within(&self.0, item)).collect())
    }

    /// An array of these.
    pub(crate) fn array<'a>(items: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut text = BytesMut::from(&b"["[..]);
        for (index, item) in items.into_iter().enumerate() {
            if index > 0 {
                text.put_u8(b',');
            }
            text.extend_from_slice(&item.0);
        }
        text.put_u8(b']');
        Self(text.freeze())
    }

    /// The member of that name, where it is an object that has it.
    pub(crate) fn get(&self, name: &str) -> Option<Self> {
        self.object()?.take(name)
    }

    /// What lies at a path of members.
    pub(crate) fn at(&self, path: &[&str]) -> Option<Self> {
        let (first, rest) = path.split_first()?;
        let member = self.get(first)?;
        if rest.is_empty() { Some(member) } else { member.at(rest) }
    }

    /// Whether no object in it names a member twice, and it is not nested too deeply to say. Only its structure is looked at: a
    /// number that no parser holds is sound JSON.
    pub(crate) fn is_unambiguous(&self) -> bool {
        // The names of each object that is open so far; none: it is an array.
        let mut open: Vec<Option<HashSet<Cow<'_, str>>>> = Vec::new();
        let (mut at, mut expects_name) = (0, false);
        while let Some(byte) = self.0.get(at) {
            match byte {
                b'"' => {
                    let end = string_end(&self.0, at);
                    if expects_name && let Some(Some(names)) = open.last_mut() {
                        let name = self.0.get(at..end).and_then(text_of);
                        if !name.is_some_and(|name| names.insert(name)) {
                            return false;
                        }
                    }
                    (at, expects_name) = (end, false);
                    continue;
                }
                b'{' | b'[' => {
                    if open.len() >= MAX_DEPTH {
                        return false;
                    }
                    expects_name = *byte == b'{';
                    open.push(expects_name.then(HashSet::new));
                }
                b'}' | b']' => {
                    open.pop();
                    expects_name = false;
                }
                b',' => expects_name = matches!(open.last(), Some(Some(_))),
                _ => {}
            }
            at += 1;
        }
        true
    }

    /// The same without line breaks: all of them lie between tokens, since a string holds none.
    pub(crate) fn one_line(&self) -> Self {
        let is_break = |byte: &u8| matches!(byte, b'\n' | b'\r');
        if !self.0.iter().any(is_break) {
            return self.clone();
        }
        Self(self.0.iter().copied().filter(|byte| !is_break(byte)).collect())
    }
}

/// The text that some JSON is.
fn text_of(json: &[u8]) -> Option<Cow<'_, str>> {
    struct Text;
    impl<'de> Visitor<'de> for Text {
        type Value = Cow<'de, str>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string")
        }
        fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
            Ok(Cow::Borrowed(text))
        }
        fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
            Ok(Cow::Owned(text.to_owned()))
        }
    }
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    deserializer.deserialize_str(Text).ok()
}

/// The members of an object, in their order, each as it was written.
struct Members<'a>(Vec<(&'a RawValue, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Each)
    }
}

/// Where the string ends that begins at `start`: after its closing quote.
fn string_end(text: &[u8], start: usize) -> usize {
    let mut escaped = false;
    let inside = text.iter().enumerate().skip(start + 1);
    for (index, byte) in inside {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return index + 1,
            _ => {}
        }
    }
    text.len()
}

/// The members of an object: their names read, the rest as it was written.
#[derive(Clone, Default)]
pub(crate) struct Object(Vec<Member>);

#[derive(Clone)]
struct Member {
    name: Box<str>,
    /// The name as it was written.
    key: Json,
    value: Json,
}

impl Object {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// The member of that name; the last, where there are several.
    pub(crate) fn get(&self, name: &str) -> Option<&Json> {
        self.0.iter().rev().find(|member| *member.name == *name).map(|member| &member.value)
    }

    /// The member of that name that is text.
    pub(crate) fn text(&self, name: &str) -> Option<Cow<'_, str>> {
        self.get(name)?.as_text()
    }

    /// The members' names and values.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Json)> {
        self.0.iter().map(|member| (&*member.name, &member.value))
    }

    /// Sets a member, in its place if there is one.
    pub(crate) fn set(&mut self, name: &str, value: Json) {
        match self.0.iter().position(|member| *member.name == *name) {
            Some(place) => {
                let mut index = 0;
                // Whoever named it twice gets one.
                self.0.retain(|member| {
                    index += 1;
                    index - 1 <= place || *member.name != *name
                });
                if let Some(member) = self.0.get_mut(place) {
                    member.value = value;
                }
            }
            None => self.0.push(Member { name: name.into(), key: Json::text(name), value }),
        }
    }

    /// Adds a member at the end.
    pub(crate) fn add(&mut self, name: &str, value: Json) {
        self.0.push(Member { name: name.into(), key: Json::text(name), value });
    }

    /// Removes a member, and gives it.
    pub(crate) fn take(&mut self, name: &str) -> Option<Json> {
        let found = self.get(name).cloned();
        if found.is_some() {
            self.0.retain(|member| *member.name != *name);
        }
        found
    }

    /// Keeps the members that `keep` says yes to.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&str, &Json) -> bool) {
        self.0.retain(|member| keep(&member.name, &member.value));
    }

    pub(crate) fn to_json(&self) -> Json {
        let length: usize = self.0.iter().map(|member| member.key.len() + member.value.len() + 2).sum();
        let mut text = BytesMut::with_capacity(length + 2);
        text.put_u8(b'{');
        for (index, member) in self.0.iter().enumerate() {
            if index > 0 {
                text.put_u8(b',');
            }
            text.extend_from_slice(&member.key.0);
            text.put_u8(b':');
            text.extend_from_slice(&member.value.0);
        }
        text.put_u8(b'}');
        Json(text.freeze())
    }
}

/// The id of a request.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) enum Id {
    Number(i64),
    Text(Box<str>),
}

impl Id {
    /// The id that some JSON is: text, or a whole number.
    pub(crate) fn read(json: &Json) -> Option<Self> {
        Self::from_slice(&json.0)
    }

    fn from_slice(json: &[u8]) -> Option<Self> {
        if json.first() == Some(&b'"') {
            return text_of(json).map(|text| Self::Text(text.into()));
        }
        serde_json::from_slice(json).ok().map(Self::Number)
    }

    pub(crate) fn to_json(&self) -> Json {
        Json::of(self)
    }

    /// Whether it is this number. Some servers write a number as text.
    pub(crate) fn is(&self, number: i64) -> bool {
        self.as_number() == Some(number)
    }

    /// The number it is. Some servers write a number as text.
    pub(crate) fn as_number(&self) -> Option<i64> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Text(text) => text.parse().ok(),
        }
    }
}

impl Serialize for Id {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Number(number) => serializer.serialize_i64(*number),
            Self::Text(text) => serializer.serialize_str(text),
        }
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => fmt::Display::fmt(number, f),
            Self::Text(text) => f.write_str(text),
        }
    }
}

/// Any message.
#[derive(Debug)]
pub(crate) enum Message {
    /// It expects a response.
    Request(Request),
    /// It expects none.
    Notification(Notification),
    /// The answer to a request.
    Response(Response),
}

/// A request.
#[derive(Clone)]
pub(crate) struct Request {
    pub(crate) id: Id,
    pub(crate) method: Box<str>,
    pub(crate) params: Option<Json>,
}

/// A notification.
#[derive(Clone)]
pub(crate) struct Notification {
    pub(crate) method: Box<str>,
    pub(crate) params: Option<Json>,
}

/// The answer to the request of the same id. An error may have none, when the request's could not be read.
#[derive(Clone)]
pub(crate) struct Response {
    pub(crate) id: Option<Id>,
    pub(crate) outcome: Result<Json, RpcError>,
}

/// The error of a response.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct RpcError {
    pub(crate) code: i64,
    pub(crate) message: Box<str>,
    pub(crate) data: Option<Json>,
}

impl RpcError {
    pub(crate) fn new(code: i64, message: impl Into<Box<str>>) -> Self {
        Self { code, message: message.into(), data: None }
    }

    pub(crate) fn with_data(mut self, data: Json) -> Self {
        self.data = Some(data);
        self
    }

    pub(crate) fn invalid_request(message: impl Into<Box<str>>) -> Self {
        Self::new(code::INVALID_REQUEST, message)
    }

    pub(crate) fn invalid_params(message: impl Into<Box<str>>) -> Self {
        Self::new(code::INVALID_PARAMS, message)
    }

    pub(crate) fn method_not_found(message: impl Into<Box<str>>) -> Self {
        Self::new(code::METHOD_NOT_FOUND, message)
    }

    pub(crate) fn internal(message: impl Into<Box<str>>) -> Self {
        Self::new(code::INTERNAL_ERROR, message)
    }

    /// As it stands in a response.
    pub(crate) fn to_json(&self) -> Json {
        let mut text = BytesMut::new();
        self.put(&mut text);
        Json(text.freeze())
    }

    fn put(&self, text: &mut BytesMut) {
        text.extend_from_slice(b"{\"code\":");
        text.extend_from_slice(itoa::Buffer::new().format(self.code).as_bytes());
        text.extend_from_slice(b",\"message\":");
        text.extend_from_slice(&Json::text(&self.message).0);
        if let Some(data) = &self.data {
            text.extend_from_slice(b",\"data\":");
            text.extend_from_slice(&data.0);
        }
        text.put_u8(b'}');
    }
}

/// Why bytes are no message. Says nothing of what they hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    /// No JSON at all.
    #[error("Parse error: the body is not JSON (line {line}, column {column})")]
    Json { line: usize, column: usize },
    /// JSON, but no message.
    #[error("Invalid Request: {0}")]
    Shape(&'static str),
}

impl Malformed {
    /// The error of JSON-RPC for it.
    pub(crate) fn to_error(self) -> RpcError {
        let code = match self {
            Self::Json { .. } => code::PARSE_ERROR,
            Self::Shape(_) => code::INVALID_REQUEST,
        };
        RpcError::new(code, self.to_string())
    }
}

/// A message as it is on the wire. A member that is `null` is told apart from one that is absent.
#[derive(Deserialize)]
struct Wire<'a> {
    jsonrpc: Option<String>,
    #[serde(borrow, default, deserialize_with = "present")]
    id: Option<&'a RawValue>,
    method: Option<Box<str>>,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    result: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<WireError<'a>>,
}

#[derive(Deserialize)]
struct WireError<'a> {
    code: i64,
    #[serde(default)]
    message: Box<str>,
    #[serde(borrow, default, deserialize_with = "present")]
    data: Option<&'a RawValue>,
}

fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

impl Message {
    /// Reads one message.
    ///
    /// # Errors
    /// When it is none.
    pub(crate) fn parse(body: &Bytes) -> Result<Self, Malformed> {
        let text = std::str::from_utf8(body).map_err(|_| Malformed::Json { line: 1, column: 1 })?;
        let wire: Wire<'_> = serde_json::from_str(text).map_err(|error| {
            // Whether it is JSON at all is what tells the two codes apart.
            if error.is_data() && serde_json::from_str::<IgnoredAny>(text).is_ok() {
                Malformed::Shape("the body is not one JSON-RPC message")
            } else {
                Malformed::Json { line: error.line(), column: error.column() }
            }
        })?;
        if wire.jsonrpc.as_deref() != Some("2.0") {
            return Err(Malformed::Shape("jsonrpc must be \"2.0\""));
        }
        let id = match wire.id.map(RawValue::get) {
            None | Some("null") => None,
            Some(id) => {
                let id = Id::from_slice(id.as_bytes());
                Some(id.ok_or(Malformed::Shape("id must be a string or a whole number"))?)
            }
        };
        let params = wire.params.map(|raw| Json::within(body, raw));
        if params.as_ref().is_some_and(Json::is_array) {
            return Err(Malformed::Shape("params must be an object"));
        }
        match (wire.method, id, wire.result, wire.error) {
            (Some(method), Some(id), None, None) => Ok(Self::Request(Request { id, method, params })),
            (Some(method), None, None, None) if wire.id.is_none() => {
                Ok(Self::Notification(Notification { method, params }))
            }
            (None, Some(id), Some(result), None) => {
                Ok(Self::Response(Response { id: Some(id), outcome: Ok(Json::within(body, result)) }))
            }
            (None, id, None, Some(error)) => {
                let data = error.data.map(|raw| Json::within(body, raw));
                let error = RpcError { code: error.code, message: error.message, data };
                Ok(Self::Response(Response { id, outcome: Err(error) }))
            }
            _ => Err(Malformed::Shape("a message is a request, a notification or a response")),
        }
    }

    /// The messages of a body that may be an array of them (JSON-RPC batches), and whether it is one.
    ///
    /// # Errors
    /// When the body is neither a message nor an array with anything in it. Items that are no messages are errors of
    /// their own.
    pub(crate) fn parse_batch(body: &Bytes) -> Result<Option<Vec<Result<Self, Malformed>>>, Malformed> {
        if body.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'[') {
            return Ok(None);
        }
        let text = std::str::from_utf8(body).map_err(|_| Malformed::Json { line: 1, column: 1 })?;
        let items: Vec<&RawValue> = serde_json::from_str(text)
            .map_err(|error| Malformed::Json { line: error.line(), column: error.column() })?;
        if items.is_empty() {
            return Err(Malformed::Shape("an array without any message"));
        }
        Ok(Some(items.into_iter().map(|raw| Self::parse(&Json::within(body, raw).0)).collect()))
    }
}

/// A request, or without an id a notification, as bytes.
pub(crate) fn encode(id: Option<&Id>, method: &str, params: Option<&Json>) -> Bytes {
    let length = params.map_or(0, Json::len) + method.len() + 64;
    let mut text = BytesMut::with_capacity(length);
    text.extend_from_slice(b"{\"jsonrpc\":\"2.0\"");
    if let Some(id) = id {
        text.extend_from_slice(b",\"id\":");
        text.extend_from_slice(&id.to_json().0);
    }
    text.extend_from_slice(b",\"method\":");
    text.extend_from_slice(&Json::text(method).0);
    if let Some(params) = params {
        text.extend_from_slice(b",\"params\":");
        text.extend_from_slice(&params.0);
    }
    text.put_u8(b'}');
    text.freeze()
}

/// A response as bytes. One without an id has none on the wire either.
pub(crate) fn encode_response(id: Option<&Id>, outcome: &Result<Json, RpcError>) -> Bytes {
    let mut text = BytesMut::with_capacity(outcome.as_ref().map_or(128, Json::len) + 64);
    text.extend_from_slice(b"{\"jsonrpc\":\"2.0\"");
    if let Some(id) = id {
        text.extend_from_slice(b",\"id\":");
        text.extend_from_slice(&id.to_json().0);
    }
    match outcome {
        Ok(result) => {
            text.extend_from_slice(b",\"result\":");
            text.extend_from_slice(&result.0);
        }
        Err(error) => {
            text.extend_from_slice(b",\"error\":");
            error.put(&mut text);
        }
    }
    text.put_u8(b'}');
    text.freeze()
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Json({} bytes)", self.0.len())
    }
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Object({} members)", self.0.len())
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Number(_) => "Id(number)",
            Self::Text(_) => "Id(text)",
        })
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").field("method", &self.method).finish_non_exhaustive()
    }
}

impl fmt::Debug for Notification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notification").field("method", &self.method).finish_non_exhaustive()
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Response").field("ok", &self.outcome.is_ok()).finish_non_exhaustive()
    }
}

impl fmt::Debug for RpcError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RpcError").field("code", &self.code).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::json;

    use super::{Id, Json, Malformed, Message, RpcError, encode, encode_response};

    fn raw(text: &str) -> Json {
        Json::parse(&Bytes::copy_from_slice(text.as_bytes())).unwrap()
    }

    fn parse(text: &str) -> Result<Message, Malformed> {
        Message::parse(&Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn messages_are_told_apart_by_their_members() {
        let parse = |value: serde_json::Value| parse(&value.to_string());
        assert!(matches!(parse(json!({"jsonrpc": "2.0", "id": 1, "method": "ping"})), Ok(Message::Request(_))));
        assert!(matches!(parse(json!({"jsonrpc": "2.0", "method": "ping"})), Ok(Message::Notification(_))));
        assert!(matches!(parse(json!({"jsonrpc": "2.0", "id": "a", "result": null})), Ok(Message::Response(_))));
        let error = json!({"jsonrpc": "2.0", "id": null, "error": {"code": -1, "message": "no"}});
        assert!(matches!(parse(error), Ok(Message::Response(_))));
        assert!(parse(json!({"jsonrpc": "2.0", "id": null, "method": "ping"})).is_err(), "an id that is none");
        assert!(parse(json!({"jsonrpc": "2.0", "id": 1, "method": "ping", "params": [1]})).is_err());
    }

    #[test]
    fn params_are_the_bytes_they_were_written_in() {
        let params = r#"{ "wei":1000000000000000000001, "b" : "\u00e9", "a":1.50 }"#;
        let Ok(Message::Request(request)) =
            parse(&format!(r#"{{"jsonrpc":"2.0","id":7,"method":"m","params": {params} }}"#))
        else {
            panic!("a request")
        };
        assert_eq!(request.params.as_ref().unwrap().as_bytes(), params.as_bytes());
        let again = encode(Some(&request.id), &request.method, request.params.as_ref());
        assert_eq!(again, format!(r#"{{"jsonrpc":"2.0","id":7,"method":"m","params":{params}}}"#));
    }

    #[test]
    fn what_is_no_message_is_refused_without_an_echo() {
        let secret = "hunter2";
        for body in [
            format!("{{\"{secret}\""),
            format!("[\"{secret}\"]"),
            format!("{{\"jsonrpc\": \"2.0\", \"id\": {{\"a\": \"{secret}\"}}, \"method\": \"x\"}}"),
            format!("{{\"jsonrpc\": \"{secret}\", \"method\": \"x\"}}"),
        ] {
            let fault = parse(&body).unwrap_err();
            assert!(!fault.to_string().contains(secret), "{fault}");
        }
        assert_eq!(parse("{").unwrap_err(), Malformed::Json { line: 1, column: 1 });
        let twice = parse(r#"{"jsonrpc":"2.0","id":1,"method":"a","method":"b"}"#);
        assert!(matches!(twice, Err(Malformed::Shape(_))), "a method that is named twice");
    }

    #[test]
    fn a_member_is_replaced_in_its_place_and_the_others_keep_their_bytes() {
        let mut object = raw(r#"{ "z": 1e400, "n\u0061me": "x", "y": [1, 2] }"#).object().unwrap();
        assert_eq!(object.text("name").unwrap(), "x");
        object.set("name", Json::text("y"));
        object.set("new", Json::of(&1));
        assert_eq!(object.take("y").unwrap().as_bytes(), b"[1, 2]");
        assert_eq!(object.to_json().as_bytes(), br#"{"z":1e400,"n\u0061me":"y","new":1}"#);
    }

    #[test]
    fn a_member_that_is_named_twice_is_seen_at_any_depth() {
        assert!(raw(r#"{"a": [{"b": 1}, {"b": 2}], "b": null}"#).is_unambiguous());
        assert!(raw(r#"{"n": 1E400, "m": "\"n\":", "s": ["n", "n"]}"#).is_unambiguous());
        for twice in [r#"{"a":1,"a":2}"#, r#"[{"x":{"a":1,"\u0061":2}}]"#, r#"{"a":[{},{"b":"\\","b":1}]}"#] {
            assert!(!raw(twice).is_unambiguous(), "{twice}");
        }
        assert!(!raw(&format!("{}{}", "[".repeat(500), "]".repeat(500))).is_unambiguous());
    }

    #[test]
    fn a_member_set_anew_is_there_once() {
        let mut object = raw(r#"{"a":1,"b":2,"a":3}"#).object().unwrap();
        assert_eq!(object.get("a").unwrap().as_bytes(), b"3");
        object.set("a", Json::of(&4));
        assert_eq!(object.to_json().as_bytes(), br#"{"a":4,"b":2}"#);
    }

    #[test]
    fn line_breaks_go_and_nothing_else() {
        assert_eq!(raw("{\r\n  \"a\": \"b\\nc\"\n}").one_line().as_bytes(), br#"{  "a": "b\nc"}"#);
    }

    #[test]
    fn an_array_is_as_many_messages() {
        let body = Bytes::from_static(br#" [{"jsonrpc":"2.0","id":1,"method":"a"}, 7]"#);
        let items = Message::parse_batch(&body).unwrap().unwrap();
        assert!(matches!(&items[..], [Ok(Message::Request(_)), Err(Malformed::Shape(_))]));
        assert!(Message::parse_batch(&Bytes::from_static(b"{}")).unwrap().is_none());
        assert!(Message::parse_batch(&Bytes::from_static(b"[]")).is_err());
    }

    #[test]
    fn a_response_has_its_id_as_it_came() {
        let text = encode_response(Some(&Id::Text("a\"b".into())), &Ok(raw("{ }")));
        assert_eq!(text, r#"{"jsonrpc":"2.0","id":"a\"b","result":{ }}"#);
        let error = RpcError::invalid_params("no").with_data(raw("[1]"));
        let text = encode_response(None, &Err(error));
        assert_eq!(text, r#"{"jsonrpc":"2.0","error":{"code":-32602,"message":"no","data":[1]}}"#);
    }

    #[test]
    fn debug_shows_no_payload() {
        let body =
            r#"{"jsonrpc":"2.0","id":"hunter2","method":"tools/call","params":{"arguments":{"password":"hunter2"}}}"#;
        assert!(!format!("{:?}", parse(body).unwrap()).contains("hunter2"));
    }
}
