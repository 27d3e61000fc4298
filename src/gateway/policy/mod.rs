//! What a caller may do: Cedar policies, asked once a call.
//!
//! The schema is `schemas/policy.cedarschema`. Policy files are read and validated when the gateway starts, every fault
//! with its file, line and column, and looked at again each second: a new version that is sound replaces the old one
//! between two calls, and one that is not leaves the old one in force ([`Policy::watch`]).
//!
//! * Nothing is allowed that no policy permits, and a policy that forbids wins, as Cedar has it.
//! * A policy that forbids and cannot be evaluated counts as forbidding. (Cedar would pass over it.)
//! * A permit may come with obligations, given as annotations ([`Obligations`]). Those of all policies that permit a
//!   call apply together, and of numbers the strictest. One that cannot be met turns the permit into a denial.
//! * What is not allowed whatever the arguments is not listed either ([`Policy::may_list`]).
//! * An action that no policy names follows its parent ([`Policy::names`]), so that policies that were written before
//!   there was that action mean what they meant.
//!
//! No verdict, event or fault holds anything of a call's arguments or result (invariant I6).
//!
//! | module | holds |
//! |---|---|
//! | `files` | reading the files and parting them into policies |
//! | `load` | parsing, validation, what the policies look at |
//! | `rules` | one sound version of the policies, and decisions by it |
//! | `entities` | callers, tools and arguments in Cedar's terms |
//! | `outline` | what of a policy holds whatever the arguments |
//! | `obligations` | annotations to obligations |
//! | `redaction` | taking values out of arguments and results |

mod arguments;
mod entities;
mod files;
mod load;
mod obligations;
mod outline;
pub(in crate::gateway) mod redaction;
mod rules;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::time::{MissedTickBehavior, interval};

use self::files::Sources;
pub use self::obligations::Obligations;
use self::rules::Rules;
use super::identity::Caller;
use crate::config::{Faults, PolicySource};
use crate::model::{Clock, Decision};

/// How often the files are looked at.
const POLL: Duration = Duration::from_secs(1);

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Call a tool.
    CallTool,
    /// Read a resource, or subscribe to it.
    ReadResource,
    /// Get a prompt.
    GetPrompt,
    /// Have an argument of a prompt or of a resource template completed.
    Complete,
    /// See what a plugin has: its tools, prompts, resources or templates.
    List,
    /// A server asks the caller's model for text, for the sake of a call.
    Sample,
    /// A server asks the person behind the caller.
    Elicit,
    /// A server asks for the caller's folders.
    ListRoots,
    /// Send a method that MCP does not have, or not in this version.
    CallMethod,
}

impl Action {
    /// All of them, in the order of their declaration.
    pub const ALL: [Self; 9] = [
        Self::CallTool,
        Self::ReadResource,
        Self::GetPrompt,
        Self::Complete,
        Self::List,
        Self::Sample,
        Self::Elicit,
        Self::ListRoots,
        Self::CallMethod,
    ];

    /// Its name in policies.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CallTool => "call_tool",
            Self::ReadResource => "read_resource",
            Self::GetPrompt => "get_prompt",
            Self::Complete => "complete",
            Self::List => "list",
            Self::Sample => "sample",
            Self::Elicit => "elicit",
            Self::ListRoots => "list_roots",
            Self::CallMethod => "call_method",
        }
    }
}

/// What something is done to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SubjectKind {
    /// A tool of the plugin.
    Tool,
    /// A resource of the plugin, or a template of resources.
    Resource,
    /// A prompt of the plugin.
    Prompt,
    /// The plugin itself.
    Plugin,
}

/// What policy is asked.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// Who calls.
    pub caller: &'a Caller,
    /// What is to be done.
    pub action: Action,
    /// The plugin it is done at.
    pub plugin: &'a str,
    /// The tool's or the prompt's own name there, or the resource's URI.
    pub name: &'a str,
    /// What it is done to there.
    pub subject: SubjectKind,
    /// The arguments, where there are some.
    pub arguments: Option<&'a Map<String, Value>>,
    /// More that the context of the action has: `kind`, `method`, `mode`, `url_host`, `argument`.
    pub details: &'a [(&'static str, &'a str)],
    /// Whether what was worked out may be kept for the next time. Not for names that clients make up.
    pub keep: bool,
}

impl<'a> Question<'a> {
    /// Whether `caller` may do this to something of that name, without arguments.
    pub fn new(caller: &'a Caller, action: Action, plugin: &'a str, name: &'a str) -> Self {
        let subject = match action {
            Action::CallTool => SubjectKind::Tool,
            Action::ReadResource => SubjectKind::Resource,
            Action::GetPrompt | Action::Complete => SubjectKind::Prompt,
            _ => SubjectKind::Plugin,
        };
        Self { caller, action, plugin, name, subject, arguments: None, details: &[], keep: true }
    }
}

/// What a caller gets to see of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Listing {
    /// It is listed.
    pub visible: bool,
    /// A permit may redact its result, so that it cannot promise a schema of it.
    pub redacted: bool,
}

/// What policy says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The decision.
    pub decision: Decision,
    /// The policies that made it, sorted.
    pub policy_ids: Vec<String>,
    /// What a permit obliges to. Of a denial, those that it had come with.
    pub obligations: Arc<Obligations>,
    /// Why it was denied, in words that hold nothing of the call.
    pub reason: Option<String>,
}

impl Verdict {
    /// Whether the call may go on.
    pub fn is_permit(&self) -> bool {
        self.decision != Decision::Deny
    }

    /// That of something that follows from what this verdict permits: by the same policies, with no obligations of its
    /// own.
    pub(in crate::gateway) fn follow(&self) -> Self {
        Self::permit(self.policy_ids.clone(), Arc::default())
    }

    /// A denial, by no policy.
    pub(in crate::gateway) fn denied(&self) -> Self {
        Self::deny(Vec::new(), String::new())
    }

    fn permit(policy_ids: Vec<String>, obligations: Arc<Obligations>) -> Self {
        let decision = if obligations.is_empty() { Decision::Permit } else { Decision::PermitWithObligations };
        Self { decision, policy_ids, obligations, reason: None }
    }

    fn deny(policy_ids: Vec<String>, reason: impl Into<String>) -> Self {
        let reason = Some(reason.into());
        Self { decision: Decision::Deny, policy_ids, obligations: Arc::default(), reason }
    }
}

/// What of the obligations this gateway can meet beside those that it always can.
#[derive(Debug, Clone, Default)]
pub struct Abilities {
    capture_payload: Arc<AtomicBool>,
}

impl Abilities {
    /// Whether payloads can be captured, sealed: it may change while the gateway runs.
    pub fn captures_payloads(&self) -> bool {
        self.capture_payload.load(Ordering::Relaxed)
    }

    /// Says whether payloads can be captured, sealed.
    pub fn set_capture_payload(&self, can: bool) {
        self.capture_payload.store(can, Ordering::Relaxed);
    }
}

/// What became of a change of the policy files.
#[derive(Debug, Clone)]
pub enum Change {
    /// The new version is in force.
    Reloaded(Version),
    /// The new version has faults; the old one stays in force.
    Rejected(Faults),
}

/// One version of the policies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// The BLAKE3 hash of the files' names and contents, as hex.
    pub digest: String,
    /// How many files and policies there are.
    pub files: usize,
    /// How many policies there are.
    pub policies: usize,
}

/// The policy stage.
pub struct Policy {
    source: PolicySource,
    rules: RwLock<Arc<Rules>>,
    context: Context,
}

/// What every version of the policies is loaded for.
#[derive(Debug, Clone)]
struct Context {
    workspace: String,
    abilities: Abilities,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy").field("source", &self.source).finish_non_exhaustive()
    }
}

impl Policy {
    /// Reads and validates the policies. Reads files.
    ///
    /// # Errors
    /// Every fault of every file.
    pub fn start(
        source: &PolicySource,
        workspace: &str,
        abilities: Abilities,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, Faults> {
        let context = Context { workspace: workspace.to_owned(), abilities, clock };
        let rules = match source {
            PolicySource::AllowAll => Rules::allow_all(),
            PolicySource::DenyAll => Rules::deny_all(),
            PolicySource::Files(patterns) => load::rules(&Sources::read(patterns)?)?,
        };
        Ok(Self { source: source.clone(), rules: RwLock::new(Arc::new(rules)), context })
    }

    /// Decides.
    pub fn decide(&self, question: &Question<'_>) -> Verdict {
        self.rules().decide(question, &self.context)
    }

    /// Whether a caller gets to see that there is a tool, a resource or a prompt: not if every call of it would be
    /// denied, whatever its arguments.
    pub fn may_list(&self, caller: &Caller, action: Action, plugin: &str, name: &str) -> bool {
        self.listing(caller, action, plugin, name).visible
    }

    /// What a caller gets to see of a tool, a resource or a prompt.
    pub fn listing(&self, caller: &Caller, action: Action, plugin: &str, name: &str) -> Listing {
        self.rules().listing(&Question::new(caller, action, plugin, name), &self.context)
    }

    /// Whether a policy in force names the action. One that none names follows its parent: what is listed follows from
    /// what may be called, completion from what is completed, and what a server asks follows from the call it asks for.
    pub fn names(&self, action: Action) -> bool {
        self.rules().names(action)
    }

    /// Whether policies look at arguments at all.
    pub(in crate::gateway) fn looks_at_arguments(&self) -> bool {
        self.rules().looks_at_arguments()
    }

    /// Whether any policy in force obliges to capture payloads.
    pub fn captures(&self) -> bool {
        self.rules().captures()
    }

    /// The version in force.
    pub fn version(&self) -> Version {
        self.rules().version().clone()
    }

    /// Reads the files again, and puts them in force if they are sound. `None`: they are the version in force. Reads
    /// files.
    ///
    /// # Errors
    /// Every fault of every file; the old version stays in force.
    pub fn reload(&self) -> Result<Option<Version>, Faults> {
        let PolicySource::Files(patterns) = &self.source else { return Ok(None) };
        self.adopt(&Sources::read(patterns)?)
    }

    fn adopt(&self, sources: &Sources) -> Result<Option<Version>, Faults> {
        if sources.digest() == self.rules().version().digest {
            return Ok(None);
        }
        let rules = load::rules(sources)?;
        let version = rules.version().clone();
        *self.rules.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
        Ok(Some(version))
    }

    /// Looks at the files each second, for ever, and reports each change once. A change is taken when it has stayed as
    /// it is from one look to the next: half of a file that is being written may be sound and permit what all of it
    /// forbids.
    pub async fn watch(self: Arc<Self>, report: impl Fn(Change) + Send) {
        let PolicySource::Files(patterns) = self.source.clone() else { return };
        let mut ticks = interval(POLL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // What was seen at the last look, and what was judged last; by their digests, a fault of reading by its text.
        let (mut last, mut judged) = (self.version().digest, self.version().digest);
        loop {
            ticks.tick().await;
            let patterns = patterns.clone();
            let Ok(read) = tokio::task::spawn_blocking(move || Sources::read(&patterns)).await else { continue };
            let seen = match &read {
                Ok(sources) => sources.digest().to_owned(),
                Err(faults) => faults.to_string(),
            };
            if seen == last && seen != judged {
                judged.clone_from(&seen);
                match read.and_then(|sources| self.adopt(&sources)) {
                    Ok(None) => {}
                    Ok(Some(version)) => {
                        tracing::info!(policies = version.policies, digest = version.digest, "policies reloaded");
                        report(Change::Reloaded(version));
                    }
                    Err(faults) => {
                        tracing::error!(%faults, "changed policies have faults; the old ones stay in force");
                        report(Change::Rejected(faults));
                    }
                }
            }
            last = seen;
        }
    }

    fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.rules.read().unwrap_or_else(PoisonError::into_inner))
    }
}
