//! The settings of one plugin: an MCP server that the gateway puts its callers through to.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{ByteSize, Endpoint, Period, Secret};

/// The longest plugin's name. With a tool's name behind it, it should still fit where clients allow 64 characters.
const MAX_NAME: usize = 48;

/// How many sessions a server that is reached over HTTP may have, and how many processes a `command`, unless it is
/// said.
const HTTP_SESSIONS: u64 = 20_000;
const PROCESSES: u64 = 64;

/// An MCP server that the gateway puts its callers through to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Plugin {
    /// What it is called in tool names, labels and policies; unique.
    pub name: PluginName,
    /// How it is reached.
    pub transport: Transport,
    /// How long one request to it may take, unless a policy says less.
    pub timeout: Period,
    /// The largest result that is passed on, unless a policy says less.
    pub max_result_bytes: ByteSize,
    /// How many requests to it may be under way at once; more wait for their turn within their timeout.
    pub max_concurrency: u64,
    /// How many sessions it may have at once: one for each client's session that uses it, and so, for a `command`, how
    /// many processes. Past it, a client that needs another is refused. See [`Plugin::sessions`].
    pub max_sessions: Option<u64>,
    /// How it is started again after it ended or was lost.
    pub restart: Restart,
    /// Which generation of MCP is spoken with it.
    pub generation: PluginGeneration,
    /// Who shares a process of a `command` that speaks the modern generation.
    pub share: Share,
    /// Whose lists a client sees.
    pub lists: ListsOf,
    /// Methods that MCP does not have, and that are let through at the plugin's own endpoint where policy permits it.
    pub pass_methods: Vec<String>,
}

/// Which generation of MCP is spoken with a plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PluginGeneration {
    /// The client's own, where the server has it. The server is asked what it speaks.
    #[default]
    Auto,
    /// That with sessions, up to 2025-11-25.
    Old,
    /// 2026-07-28.
    Modern,
}

/// Who shares a process of a `command` that speaks the modern generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Share {
    /// The requests of one caller.
    #[default]
    Caller,
    /// Those of all callers.
    All,
}

/// Whose lists a client sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ListsOf {
    /// Those that the gateway keeps, for all clients of the same capabilities.
    #[default]
    Shared,
    /// Those of the client's own session with the server, where it has one.
    Session,
}

impl Plugin {
    /// How many sessions it may have at once.
    pub fn sessions(&self) -> u64 {
        self.max_sessions.unwrap_or(match self.transport {
            Transport::Http { .. } => HTTP_SESSIONS,
            Transport::Child { .. } => PROCESSES,
        })
    }
}

/// How a plugin is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    /// Over Streamable HTTP.
    Http {
        /// Its MCP endpoint.
        url: Endpoint,
        /// Headers that are sent with every request, like `authorization`.
        headers: BTreeMap<String, Secret>,
    },
    /// As a child process of the gateway, over its standard input and output.
    Child {
        /// The program.
        command: String,
        /// Its arguments; they may hold secrets.
        args: Vec<Secret>,
        /// Variables that it gets beside a few like `PATH`; it does not get the gateway's own environment.
        env: BTreeMap<String, Secret>,
        /// The folder it runs in; none: the gateway's.
        folder: Option<PathBuf>,
    },
}

/// How a plugin is started again: after twice as long each time it fails, up to a longest wait.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Restart {
    /// The wait after the first failure.
    pub first_wait: Period,
    /// The longest wait.
    pub longest_wait: Period,
}

impl Default for Restart {
    fn default() -> Self {
        Self { first_wait: Period::new(Duration::from_millis(500)), longest_wait: Period::new(Duration::from_secs(30)) }
    }
}

/// The name of a plugin: 1 to 48 of letters, digits, `-` and `_`, starting and ending with a letter or a digit, no two
/// `_` in a row, since `__` parts it from the tool's name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PluginName(String);

/// Why a text is no plugin's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a plugin's name is 1 to 48 of letters, digits, '-' and '_', starting and ending with a letter or a digit, without \
     '__', which parts it from a tool's name"
)]
pub struct PluginNameError;

impl PluginName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for PluginName {
    type Error = PluginNameError;

    fn try_from(text: String) -> Result<Self, PluginNameError> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        let ends_well = |c: char| c.is_ascii_alphanumeric();
        let sound = text.len() <= MAX_NAME
            && text.bytes().all(allowed)
            && text.starts_with(ends_well)
            && text.ends_with(ends_well)
            && !text.contains("__");
        if sound { Ok(Self(text)) } else { Err(PluginNameError) }
    }
}

impl From<PluginName> for String {
    fn from(name: PluginName) -> Self {
        name.0
    }
}

impl fmt::Display for PluginName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PluginName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A plugin as it stands in the file: one flat mapping, in which `url` or `command` says what it is.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: PluginName,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    url: Option<Endpoint>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    headers: Option<BTreeMap<String, Secret>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    command: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    args: Option<Vec<Secret>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    env: Option<BTreeMap<String, Secret>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    folder: Option<PathBuf>,
    #[serde(default = "default_timeout")]
    timeout: Period,
    #[serde(default = "default_max_result_bytes")]
    max_result_bytes: ByteSize,
    #[serde(default = "default_max_concurrency")]
    max_concurrency: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_sessions: Option<u64>,
    #[serde(default)]
    restart: Restart,
    #[serde(default)]
    generation: PluginGeneration,
    #[serde(default)]
    share: Share,
    #[serde(default)]
    lists: ListsOf,
    #[serde(default)]
    pass_methods: Vec<String>,
}

const fn default_timeout() -> Period {
    Period::new(Duration::from_secs(60))
}

const fn default_max_result_bytes() -> ByteSize {
    ByteSize::mib(16)
}

const fn default_max_concurrency() -> u64 {
    64
}

impl TryFrom<Written> for Plugin {
    type Error = &'static str;

    fn try_from(written: Written) -> Result<Self, &'static str> {
        let of_child = written.args.is_some() || written.env.is_some() || written.folder.is_some();
        let transport = match (written.url, written.command) {
            (Some(_), Some(_)) => return Err("has both `url` and `command`; keep the one it is reached by"),
            (None, None) => return Err("has neither `url` nor `command`; say how it is reached"),
            (Some(_), None) if of_child => {
                return Err("`args`, `env` and `folder` are for a `command`; remove them, or the `url`");
            }
            (None, Some(_)) if written.headers.is_some() => {
                return Err("`headers` are for a `url`; remove them, or the `command`");
            }
            (Some(url), None) => Transport::Http { url, headers: written.headers.unwrap_or_default() },
            (None, Some(command)) => Transport::Child {
                command,
                args: written.args.unwrap_or_default(),
                env: written.env.unwrap_or_default(),
                folder: written.folder,
            },
        };
        Ok(Self {
            name: written.name,
            transport,
            timeout: written.timeout,
            max_result_bytes: written.max_result_bytes,
            max_concurrency: written.max_concurrency,
            max_sessions: written.max_sessions,
            restart: written.restart,
            generation: written.generation,
            share: written.share,
            lists: written.lists,
            pass_methods: written.pass_methods,
        })
    }
}

impl From<Plugin> for Written {
    fn from(plugin: Plugin) -> Self {
        let mut written = Self {
            name: plugin.name,
            url: None,
            headers: None,
            command: None,
            args: None,
            env: None,
            folder: None,
            timeout: plugin.timeout,
            max_result_bytes: plugin.max_result_bytes,
            max_concurrency: plugin.max_concurrency,
            max_sessions: plugin.max_sessions,
            restart: plugin.restart,
            generation: plugin.generation,
            share: plugin.share,
            lists: plugin.lists,
            pass_methods: plugin.pass_methods,
        };
        match plugin.transport {
            Transport::Http { url, headers } => {
                written.url = Some(url);
                written.headers = Some(headers);
            }
            Transport::Child { command, args, env, folder } => {
                written.command = Some(command);
                written.args = Some(args);
                written.env = Some(env);
                written.folder = folder;
            }
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use super::PluginName;

    #[test]
    fn a_name_that_would_blur_where_the_tools_name_starts_is_refused() {
        for good in ["github", "a", "x-1", "my_files", "A9"] {
            assert!(PluginName::try_from(good.to_owned()).is_ok(), "{good}");
        }
        for bad in ["", "a__b", "_a", "a_", "-a", "a b", "a/b", "ä", &"a".repeat(49)] {
            assert!(PluginName::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }
}
