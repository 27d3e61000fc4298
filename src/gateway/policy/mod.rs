//! What a caller may do: Cedar policies, asked once a call.
//!
//! The schema is `schemas/policy.cedarschema`. Policy files are read and validated when the gateway starts, every fault
//! with its file, line and column, and looked at again each second: a new version that is sound replaces the old one
//! between two calls, and one that is not leaves the old one in force ([`Policy::watch`]).
//!
//! * Nothing is allowed that no policy permits, and a policy that forbids wins, as Cedar has it.
//! * A policy that forbids and cannot be evaluated counts as forbidding. (Cedar would pass over it.)
//! * A permit may come with obligations, given as annotations ([`Obligations`]). Those of all policies that permit a call
//!   apply together, and of numbers the strictest. One that cannot be met turns the permit into a denial.
//! * What is not allowed whatever the arguments is not listed either ([`Policy::may_list`]).
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
mod redaction;
mod rules;
#[cfg(test)]
mod tests;

use std::fmt;
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
    /// The arguments, where there are some.
    pub arguments: Option<&'a Map<String, Value>>,
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
#[derive(Debug, Clone, Copy, Default)]
pub struct Abilities {
    /// Whether payloads can be captured, sealed.
    pub capture_payload: bool,
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
            PolicySource::Files(patterns) => load::rules(&Sources::read(patterns)?, &context)?,
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
        let question = Question { caller, action, plugin, name, arguments: None };
        self.rules().may_list(&question, &self.context)
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
        let rules = load::rules(sources, &self.context)?;
        let version = rules.version().clone();
        *self.rules.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
        Ok(Some(version))
    }

    /// Looks at the files each second, for ever, and reports each change once. A change is taken when it has stayed as it
    /// is from one look to the next: half of a file that is being written may be sound and permit what all of it forbids.
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
