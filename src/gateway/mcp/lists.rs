//! The lists of all plugins as one, and what a caller may see of them.
//!
//! At the endpoint of all plugins a list has every plugin's entries, in the order of the configuration, names of tools and
//! prompts with their plugin's in front, all on one page. A plugin that cannot be asked is left out, with a line in the log;
//! only when none could be asked is the list an error. At the endpoint of one plugin the list is that plugin's page, as it
//! is.

use futures::future::join_all;
use rmcp::model::ErrorData;
use serde_json::{Map, Value, json};
use tokio::time::timeout;

use super::names;
use crate::gateway::call::{Calls, Work};
use crate::gateway::policy::Action;
use crate::gateway::traces::Target;
use crate::gateway::upstream::UpstreamFault;

/// Pages that are fetched of one plugin's list; a server that never ends is cut off.
const PAGES: usize = 100;

/// A kind of list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum List {
    Tools,
    Prompts,
    Resources,
    ResourceTemplates,
}

impl List {
    pub(super) fn of(method: &str) -> Option<Self> {
        Some(match method {
            "tools/list" => Self::Tools,
            "prompts/list" => Self::Prompts,
            "resources/list" => Self::Resources,
            "resources/templates/list" => Self::ResourceTemplates,
            _ => return None,
        })
    }

    fn method(self) -> &'static str {
        match self {
            Self::Tools => "tools/list",
            Self::Prompts => "prompts/list",
            Self::Resources => "resources/list",
            Self::ResourceTemplates => "resources/templates/list",
        }
    }

    /// The member of the result.
    pub(super) fn member(self) -> &'static str {
        match self {
            Self::Tools => "tools",
            Self::Prompts => "prompts",
            Self::Resources => "resources",
            Self::ResourceTemplates => "resourceTemplates",
        }
    }

    /// The capability of a server that has it.
    fn capability(self) -> &'static str {
        match self {
            Self::Tools => "tools",
            Self::Prompts => "prompts",
            Self::Resources | Self::ResourceTemplates => "resources",
        }
    }

    fn is_named(self) -> bool {
        matches!(self, Self::Tools | Self::Prompts)
    }

    /// What policy is asked before an entry is shown, and the member that names it there. A template stands for no
    /// resource in particular.
    pub(super) fn governed(self) -> Option<(Action, &'static str)> {
        match self {
            Self::Tools => Some((Action::CallTool, "name")),
            Self::Prompts => Some((Action::GetPrompt, "name")),
            Self::Resources => Some((Action::ReadResource, "uri")),
            Self::ResourceTemplates => None,
        }
    }
}

/// The list of all plugins, as far as the caller may see it.
pub(super) async fn joined(work: &Work<'_>, list: List, calls: &Calls) -> Result<Value, ErrorData> {
    let session = work.session;
    let plugins = session.endpoint.plugins.iter().enumerate();
    let asked = join_all(plugins.map(|(index, plugin)| async move {
        let patience = plugin.timeout();
        let entries = timeout(patience, entries(work, index, list)).await;
        entries.unwrap_or(Err(UpstreamFault::TimedOut { after: patience }))
    }))
    .await;
    let (mut all, mut answered, mut first_fault) = (Vec::new(), false, None);
    for (plugin, entries) in session.endpoint.plugins.iter().zip(asked) {
        match entries {
            Ok(entries) => {
                answered = true;
                let mut entries = Value::Array(entries);
                visible(&mut entries, list, plugin.name(), work, calls);
                if list.is_named() {
                    prefix(&mut entries, plugin.name());
                }
                if let Value::Array(entries) = entries {
                    all.extend(entries);
                }
            }
            Err(fault) => {
                tracing::warn!(plugin = plugin.name(), method = list.method(), code = fault.code(), "not listed");
                first_fault.get_or_insert_with(|| fault.to_error(plugin.name()));
            }
        }
    }
    match first_fault {
        Some(error) if !answered => Err(error),
        _ => Ok(json!({ list.member(): all })),
    }
}

/// Every entry of one plugin's list.
async fn entries(work: &Work<'_>, index: usize, list: List) -> Result<Vec<Value>, UpstreamFault> {
    let link = work.session.link(index).await?;
    if link.opened().pointer(&format!("/capabilities/{}", list.capability())).is_none() {
        return Ok(Vec::new());
    }
    let patience = work.plugin(index).map(|plugin| plugin.timeout()).unwrap_or_default();
    let (mut entries, mut cursor) = (Vec::new(), None);
    for _ in 0..PAGES {
        let mut params = Map::new();
        if let Some(cursor) = cursor.take() {
            params.insert("cursor".to_owned(), cursor);
        }
        if let Some(meta) = work.request.meta() {
            params.insert("_meta".to_owned(), Value::Object(meta.clone()));
        }
        let mut page = work.ask(index, Target::Unnamed, Some(Value::Object(params)), patience).await?;
        if let Some(Value::Array(more)) = page.get_mut(list.member()).map(Value::take) {
            entries.extend(more);
        }
        match page.get_mut("nextCursor").map(Value::take) {
            Some(next @ Value::String(_)) => cursor = Some(next),
            _ => return Ok(entries),
        }
    }
    tracing::warn!(method = list.method(), "a list of more than {PAGES} pages was cut off");
    Ok(entries)
}

/// Keeps the entries of a plugin's list that the caller may see.
pub(super) fn visible(entries: &mut Value, list: List, plugin: &str, work: &Work<'_>, calls: &Calls) {
    if let Some((action, member)) = list.governed() {
        retain(entries, member, |name| calls.may_list(work.inbound, action, plugin, name));
    }
}

/// Keeps the entries that `keep` says yes to, by their `member`.
fn retain(entries: &mut Value, member: &str, keep: impl Fn(&str) -> bool) {
    if let Value::Array(entries) = entries {
        entries.retain(|entry| entry.get(member).and_then(Value::as_str).is_none_or(&keep));
    }
}

fn prefix(entries: &mut Value, plugin: &str) {
    let entries = entries.as_array_mut().map(Vec::as_mut_slice).unwrap_or_default();
    for name in entries.iter_mut().filter_map(|entry| entry.get_mut("name")) {
        if let Value::String(own) = name {
            *own = names::join(plugin, own);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{prefix, retain};

    #[test]
    fn entries_keep_all_but_their_name() {
        let mut entries = json!([{"name": "a", "x": {"y": [1]}}, {"name": "b"}, {"other": 1}]);
        retain(&mut entries, "name", |name| name != "b");
        prefix(&mut entries, "p");
        assert_eq!(entries, json!([{"name": "p__a", "x": {"y": [1]}}, {"other": 1}]));
    }
}
