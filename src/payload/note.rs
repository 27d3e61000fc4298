//! The key note: which public keys to seal to, signed by the ledger's key (C2SP signed-note).
//!
//! ```text
//! <name>/orgs/<org>/payload-keys
//! mcpg.payload-keys/1
//! issued 2026-11-26T00:00:05Z
//! expires 2026-12-04T00:00:00Z
//! period * 30
//! period github 7
//! epoch 2026-11-26.30d 1 <base64 public key>
//! recipient 1 <base64 public key>
//! ```
//!
//! Its first line and its number of lines keep it from being taken for a checkpoint, which the same key signs.

use std::collections::BTreeMap;
use std::fmt::Write;

use chrono::{DateTime, NaiveDate, Utc};

use super::{Epoch, PublicKey};
use crate::model::OrgName;

const VERSION: &str = "mcpg.payload-keys/1";
/// The plugin of the period that holds for all others.
const ANY: &str = "*";
const TIME: &str = "%Y-%m-%dT%H:%M:%SZ";

/// A key note.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyNote {
    /// The deployment's name, and the org: what its first line says.
    pub name: String,
    /// Whose keys.
    pub org: OrgName,
    /// When it was made.
    pub issued: DateTime<Utc>,
    /// From when on it is not to be used.
    pub expires: DateTime<Utc>,
    /// How many days payloads are kept, unless the plugin has a period of its own.
    pub period: u32,
    /// Periods of plugins.
    pub plugins: BTreeMap<String, u32>,
    /// The keys of today and the days after it.
    pub epochs: BTreeMap<Epoch, PublicKey>,
    /// The tenant's own key: without it nothing that is sealed opens.
    pub recipient: Option<PublicKey>,
}

/// Why a text is no key note.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this is no note of payload keys: {0}")]
pub struct NoteError(String);

/// The first line of an org's note.
pub fn title(name: &str, org: &OrgName) -> String {
    format!("{name}/orgs/{org}/payload-keys")
}

impl KeyNote {
    /// The epoch of a call that began on `date` at `plugin`.
    ///
    /// # Errors
    /// Never of a note that was read.
    pub fn epoch(&self, date: NaiveDate, plugin: &str) -> Option<Epoch> {
        Epoch::new(date, self.plugins.get(plugin).copied().unwrap_or(self.period)).ok()
    }

    /// The text that is signed.
    pub fn text(&self) -> String {
        let mut text = format!("{}\n{VERSION}\n", title(&self.name, &self.org));
        // Writing to a string does not fail.
        let _ = writeln!(text, "issued {}", self.issued.format(TIME));
        let _ = writeln!(text, "expires {}", self.expires.format(TIME));
        let _ = writeln!(text, "period {ANY} {}", self.period);
        for (plugin, days) in &self.plugins {
            let _ = writeln!(text, "period {plugin} {days}");
        }
        for (epoch, key) in &self.epochs {
            let _ = writeln!(text, "epoch {epoch} {key}");
        }
        if let Some(key) = &self.recipient {
            let _ = writeln!(text, "recipient {key}");
        }
        text
    }

    /// Reads the text of a note whose signature was verified.
    ///
    /// # Errors
    /// What is not of its form.
    pub fn read(text: &str) -> Result<Self, NoteError> {
        let fault = |what: &str| NoteError(what.to_owned());
        let mut lines =
            text.strip_suffix('\n').ok_or_else(|| fault("it does not end in a newline"))?.split('\n').peekable();
        let title = lines.next().unwrap_or_default();
        let (name, org) = title
            .strip_suffix("/payload-keys")
            .and_then(|rest| rest.rsplit_once("/orgs/"))
            .ok_or_else(|| fault("its first line is not <name>/orgs/<org>/payload-keys"))?;
        let org = org.parse().map_err(|_| fault("its first line names no org"))?;
        if lines.next() != Some(VERSION) {
            return Err(fault("its second line is not mcpg.payload-keys/1"));
        }
        let mut time = |word: &str| {
            let line = lines.next().and_then(|line| line.strip_prefix(word)?.strip_prefix(' '));
            let time = line.and_then(|time| chrono::NaiveDateTime::parse_from_str(time, TIME).ok());
            time.map(|time| time.and_utc()).ok_or_else(|| fault(&format!("no line `{word} <time>` where one must be")))
        };
        let (issued, expires) = (time("issued")?, time("expires")?);
        let (mut period, mut plugins) = (None, BTreeMap::new());
        while let Some(line) = lines.next_if(|line| line.starts_with("period ")) {
            let mut words = line.split(' ').skip(1);
            let (Some(plugin), Some(days), None) = (words.next(), words.next(), words.next()) else {
                return Err(fault("a line `period` is not `period <plugin> <days>`"));
            };
            let days = days.parse::<u32>().ok().filter(|days| (1..=super::MAX_DAYS).contains(days));
            let days = days.ok_or_else(|| fault("a period is not 1 to 3650 days"))?;
            let is_first = if plugin == ANY {
                period.replace(days).is_none()
            } else {
                plugins.insert(plugin.to_owned(), days).is_none()
            };
            if !is_first {
                return Err(fault("a period stands twice"));
            }
        }
        let mut epochs = BTreeMap::new();
        while let Some(line) = lines.next_if(|line| line.starts_with("epoch ")) {
            let (epoch, key) = line.strip_prefix("epoch ").and_then(|line| line.split_once(' ')).unwrap_or_default();
            let epoch: Epoch = epoch.parse().map_err(|_| fault("a line `epoch` names none"))?;
            let key = key.parse().map_err(|e: String| fault(&e))?;
            if epochs.insert(epoch, key).is_some() {
                return Err(fault("an epoch stands twice"));
            }
        }
        let recipient = lines.next_if(|line| line.starts_with("recipient "));
        let recipient = recipient.and_then(|line| line.strip_prefix("recipient ")).map(str::parse);
        let recipient = recipient.transpose().map_err(|e: String| fault(&e))?;
        if lines.next().is_some() {
            return Err(fault("there is a line that does not belong there"));
        }
        let period = period.ok_or_else(|| fault("no line `period * <days>`"))?;
        Ok(Self { name: name.to_owned(), org, issued, expires, period, plugins, epochs, recipient })
    }
}
