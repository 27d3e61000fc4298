//! What a record says of itself in the clear, bound to its ciphertext: RFC 8785 JSON.

use chrono::{DateTime, NaiveDateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::jcs::{Member, Object};
use super::{Epoch, Refusal};
use crate::model::OrgName;

/// The most bytes of a header.
pub const MAX_HEADER: usize = 8_192;

const VERSION: &str = "mcpg.payload/1";
/// The longest text of a label, in characters, as everywhere.
const MAX_LABEL: usize = 128;
/// The longest of the others.
const MAX_TEXT: usize = 1_024;

/// What was called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "named as in MCP")]
pub enum Kind {
    Tool,
    Resource,
    Prompt,
    Task,
}

impl Kind {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tool => "tool",
            Self::Resource => "resource",
            Self::Prompt => "prompt",
            Self::Task => "task",
        }
    }

    fn of(text: &str) -> Result<Self, Refusal> {
        let all = [Self::Tool, Self::Resource, Self::Prompt, Self::Task];
        all.into_iter().find(|kind| kind.as_str() == text).ok_or(Refusal::Format)
    }
}

/// Which half of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// The `params` that went to the plugin.
    Request,
    /// The `result` or `error` that went to the caller.
    Response,
}

impl Direction {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Response => "response",
        }
    }

    /// The direction that a text names.
    ///
    /// # Errors
    /// [`Refusal::Format`] when it names none.
    pub fn of(text: &str) -> Result<Self, Refusal> {
        [Self::Request, Self::Response].into_iter().find(|of| of.as_str() == text).ok_or(Refusal::Format)
    }
}

/// The header of a record. Members that this version does not know are passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "documented in schemas/payload.md")]
pub struct Header {
    pub org: OrgName,
    pub workspace: String,
    pub instance: String,
    pub plugin: String,
    pub kind: Kind,
    pub tool: String,
    pub invocation_id: Uuid,
    pub direction: Direction,
    pub epoch: Epoch,
    pub started_at: DateTime<Utc>,
    pub content_type: String,
    pub redactions: Vec<String>,
    /// Bytes of the whole, where only the beginning was kept.
    pub truncated_from: Option<u64>,
}

fn label(object: &Object, name: &str, most: usize) -> Result<String, Refusal> {
    let text = object.get(name)?;
    let is_sane = (1..=most).contains(&text.chars().count()) && !text.chars().any(char::is_control);
    if is_sane { Ok(text.to_owned()) } else { Err(Refusal::Format) }
}

fn list(object: &Object, name: &str) -> Result<Vec<String>, Refusal> {
    match object.find(name) {
        None => Ok(Vec::new()),
        Some(Member::List(items)) => Ok(items.clone()),
        Some(Member::Text(_)) => Err(Refusal::Format),
    }
}

/// RFC 3339 in UTC with six digits, as it is written everywhere.
pub(super) fn time_text(time: DateTime<Utc>) -> String {
    time.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

fn time(text: &str) -> Result<DateTime<Utc>, Refusal> {
    let read = NaiveDateTime::parse_from_str(text, "%Y-%m-%dT%H:%M:%S%.6fZ").map_err(|_| Refusal::Format)?.and_utc();
    // One form for each time.
    if time_text(read) == text { Ok(read) } else { Err(Refusal::Format) }
}

impl Header {
    /// Its bytes.
    ///
    /// # Errors
    /// [`Refusal::Format`] when they are more than [`MAX_HEADER`].
    pub fn write(&self) -> Result<Vec<u8>, Refusal> {
        let mut object = Object::default();
        object.text("v", VERSION);
        object.text("org", self.org.as_str());
        object.text("workspace", &self.workspace);
        object.text("instance", &self.instance);
        object.text("plugin", &self.plugin);
        object.text("kind", self.kind.as_str());
        object.text("tool", &self.tool);
        object.text("invocation_id", self.invocation_id.hyphenated().to_string());
        object.text("direction", self.direction.as_str());
        object.text("epoch", self.epoch.to_string());
        object.text("started_at", time_text(self.started_at));
        object.text("content_type", &self.content_type);
        if !self.redactions.is_empty() {
            object.list("redactions", &self.redactions);
        }
        if let Some(bytes) = self.truncated_from {
            object.text("truncated_from", bytes.to_string());
        }
        let bytes = object.write();
        if bytes.len() <= MAX_HEADER { Ok(bytes) } else { Err(Refusal::Format) }
    }

    /// Reads a header. An epoch's date is that of `started_at`.
    ///
    /// # Errors
    /// [`Refusal::Format`].
    pub fn read(bytes: &[u8]) -> Result<Self, Refusal> {
        if bytes.len() > MAX_HEADER {
            return Err(Refusal::Format);
        }
        let object = Object::read(bytes)?;
        if object.get("v")? != VERSION {
            return Err(Refusal::Format);
        }
        let id = object.get("invocation_id")?;
        let invocation_id = Uuid::try_parse(id).map_err(|_| Refusal::Format)?;
        if invocation_id.hyphenated().to_string() != id {
            return Err(Refusal::Format);
        }
        let truncated_from = match object.find("truncated_from") {
            None => None,
            Some(Member::Text(digits)) => {
                let bytes = digits.parse::<u64>().map_err(|_| Refusal::Format)?;
                Some(bytes).filter(|bytes| bytes.to_string() == *digits).ok_or(Refusal::Format).map(Some)?
            }
            Some(Member::List(_)) => return Err(Refusal::Format),
        };
        let header = Self {
            org: object.get("org")?.parse().map_err(|_| Refusal::Format)?,
            workspace: label(&object, "workspace", MAX_LABEL)?,
            instance: label(&object, "instance", MAX_LABEL)?,
            plugin: label(&object, "plugin", MAX_LABEL)?,
            kind: Kind::of(object.get("kind")?)?,
            tool: label(&object, "tool", MAX_TEXT)?,
            invocation_id,
            direction: Direction::of(object.get("direction")?)?,
            epoch: object.get("epoch")?.parse().map_err(|_| Refusal::Format)?,
            started_at: time(object.get("started_at")?)?,
            content_type: label(&object, "content_type", MAX_LABEL)?,
            redactions: list(&object, "redactions")?,
            truncated_from,
        };
        if header.started_at.date_naive() == header.epoch.date() { Ok(header) } else { Err(Refusal::Format) }
    }
}
