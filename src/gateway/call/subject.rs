//! What a request is about, where policy has a say in it.

use url::Url;

use super::uri;
use crate::gateway::policy::{Action, SubjectKind};
use crate::gateway::traces::Target;
use crate::gateway::upstream::{ListKind, Plugin};
use crate::model::Decision;

/// What stands where a name would that no plugin lists.
pub(crate) const UNKNOWN: &str = "__unknown__";

/// The longest name of a tool or prompt that is not listed, in characters.
pub(crate) const MAX_NAME: usize = 128;

/// Something of a plugin's, or the plugin itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Subject {
    pub(crate) action: Action,
    pub(crate) kind: SubjectKind,
    /// The plugin's index at the endpoint.
    pub(crate) index: usize,
    /// What the plugin calls it: a tool's or a prompt's name, a resource's URI as it is sent; empty for a plugin.
    pub(crate) name: Box<str>,
    /// What policy decides on and the ledger names: of a resource the canonical form.
    pub(crate) canonical: Box<str>,
    /// Whether the plugin lists it. What it does not list is no label, no span's name and no key.
    pub(crate) listed: bool,
}

impl Subject {
    pub(crate) fn tool(plugin: &Plugin, index: usize, name: &str) -> Self {
        Self::named(plugin, index, name, Action::CallTool, SubjectKind::Tool, ListKind::Tools)
    }

    pub(crate) fn prompt(plugin: &Plugin, index: usize, name: &str, action: Action) -> Self {
        Self::named(plugin, index, name, action, SubjectKind::Prompt, ListKind::Prompts)
    }

    fn named(plugin: &Plugin, index: usize, name: &str, action: Action, kind: SubjectKind, list: ListKind) -> Self {
        let listed = plugin.is_listed(list, name);
        Self { action, kind, index, name: name.into(), canonical: name.into(), listed }
    }

    /// A resource, by its URI.
    pub(crate) fn resource(plugin: &Plugin, index: usize, uri: &str) -> Self {
        Self {
            action: Action::ReadResource,
            kind: SubjectKind::Resource,
            index,
            name: uri.into(),
            canonical: uri::canonical(uri).into(),
            listed: is_of(plugin, uri),
        }
    }

    /// A template of resources, of which an argument is completed.
    pub(crate) fn template(plugin: &Plugin, index: usize, template: &str) -> Self {
        let listed = plugin.is_listed(ListKind::Templates, template);
        let (action, kind) = (Action::Complete, SubjectKind::Resource);
        Self { action, kind, index, name: template.into(), canonical: template.into(), listed }
    }

    /// The plugin itself.
    pub(crate) fn plugin(index: usize, action: Action) -> Self {
        let (name, kind) = (Box::default(), SubjectKind::Plugin);
        Self { action, kind, index, canonical: Box::default(), name, listed: true }
    }

    /// The same, for another action.
    pub(crate) fn asked(&self, action: Action) -> Self {
        Self { action, ..self.clone() }
    }

    /// Its name as a label.
    pub(crate) fn label(&self) -> &str {
        // A server may list a name of any length; it is not offered, and labels nothing.
        if self.listed && self.name.chars().nth(MAX_NAME).is_none() { &self.name } else { UNKNOWN }
    }

    /// As spans say it.
    pub(crate) fn target(&self) -> Target<'_> {
        match self.kind {
            SubjectKind::Tool => Target::Tool(self.label()),
            SubjectKind::Prompt => Target::Prompt(self.label()),
            SubjectKind::Resource | SubjectKind::Plugin => Target::Unnamed,
        }
    }

    /// As the ledger says it.
    pub(crate) fn ledger_target(&self, plugin: &str) -> String {
        match self.kind {
            SubjectKind::Tool | SubjectKind::Prompt => format!("{plugin}/{}", self.name),
            SubjectKind::Resource => format!("{plugin}/{}", place(&self.canonical)),
            SubjectKind::Plugin => plugin.to_owned(),
        }
    }

    /// As captured payloads say it in the clear.
    pub(crate) fn captured_as(&self) -> String {
        match self.kind {
            SubjectKind::Resource => place(&self.canonical),
            SubjectKind::Tool | SubjectKind::Prompt | SubjectKind::Plugin => self.name.to_string(),
        }
    }

    /// The bytes that are sent, where the ledger has to have them beside the canonical form.
    pub(crate) fn sent_as(&self) -> Option<String> {
        (self.kind == SubjectKind::Resource && self.name != self.canonical).then(|| place(&self.name))
    }

    /// The name of a decision on it in the ledger.
    pub(crate) fn ledger_action(&self, decision: Decision) -> String {
        let of = match self.action {
            Action::CallTool => "tool",
            Action::ReadResource => "resource",
            Action::GetPrompt => "prompt",
            Action::Complete => "completion",
            Action::List => "list",
            Action::Sample => "sampling",
            Action::Elicit => "elicitation",
            Action::ListRoots => "roots",
            Action::CallMethod => "method",
        };
        format!("{of}.{}", decision.as_str())
    }
}

/// Whether a plugin lists a URI, or a template that stands for it.
pub(crate) fn is_of(plugin: &Plugin, uri: &str) -> bool {
    plugin.is_listed(ListKind::Resources, uri)
        || plugin
            .listed(ListKind::Templates)
            .iter()
            .any(|listing| listing.items.iter().any(|template| uri::matches(&template.name, uri)))
}

/// Where a resource is, without what its URI may hold beside that: credentials, a query, a fragment.
fn place(uri: &str) -> String {
    let Ok(mut url) = Url::parse(uri) else { return "resource".to_owned() };
    url.set_query(None);
    url.set_fragment(None);
    if !url.username().is_empty() || url.password().is_some() {
        // A URI that cannot have credentials has none to take away.
        let _ = url.set_username("");
        let _ = url.set_password(None);
    }
    url.into()
}
