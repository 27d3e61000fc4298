//! One sound version of the policies, and decisions by it.
//!
//! A decision without arguments and time in it is a function of the caller and what is called, and is made once for
//! each pair. Others are made each time, with the parties' entities kept. Both are forgotten with the version, and all
//! at once when there are too many.

use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use cedar_policy::{AuthorizationError, Authorizer, Decision as Cedar, Effect, PolicyId, PolicySet, Request, Response};
use hashbrown::Equivalent;

use super::arguments::{self, TooMany};
use super::entities::{Inexpressible, Names, Parties};
use super::outline::Looks;
use super::{Action, Context, Listing, Obligations, Question, SubjectKind, Verdict, Version};
use crate::gateway::identity::Caller;

/// How many pairs of a caller and what it calls are kept, and the longest name of what is called, in bytes, that is.
/// URIs are clients' own, and may be as long as a request.
const MAX_KEPT: usize = 10_000;
const MAX_NAME: usize = 512;

/// One sound version of the policies.
pub(super) struct Rules {
    version: Version,
    kind: Kind,
}

enum Kind {
    Nothing,
    Everything,
    Cedar(Box<Loaded>),
}

/// Policies that were loaded from files.
pub(super) struct Loaded {
    /// The policies.
    pub(super) policies: PolicySet,
    /// Their outlines, for listing.
    pub(super) outlines: PolicySet,
    /// What each policy is, besides what Cedar knows of it.
    pub(super) facts: HashMap<PolicyId, Facts>,
    /// What they look at, all together.
    pub(super) looks: Looks,
    /// The actions that they name.
    pub(super) named: HashSet<Action>,
    /// The schema's names.
    pub(super) names: Names,
    /// What was worked out before.
    pub(super) kept: RwLock<hashbrown::HashMap<Key, Arc<Kept>>>,
}

/// What a policy is, besides what Cedar knows of it.
#[derive(Debug)]
pub(super) struct Facts {
    /// What it obliges to, if it permits.
    pub(super) obligations: Obligations,
    /// Whether it permits or forbids.
    pub(super) effect: Effect,
    /// Whether it decides without looking at arguments.
    pub(super) certain: bool,
}

/// A caller and what it calls.
#[derive(Hash, PartialEq, Eq)]
pub(super) struct Key {
    caller: Caller,
    action: Action,
    subject: SubjectKind,
    plugin: String,
    name: String,
}

impl Hash for Question<'_> {
    /// As `Key` does.
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.caller, self.action, self.subject, self.plugin, self.name).hash(state);
    }
}

impl Equivalent<Key> for Question<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        *self.caller == key.caller
            && (self.action, self.subject) == (key.action, key.subject)
            && self.plugin == key.plugin
            && self.name == key.name
    }
}

/// What was worked out for a caller and what it calls.
pub(super) struct Kept {
    parties: Parties,
    verdict: OnceLock<Verdict>,
    /// What is listed where payloads can be captured, and whether it is nowhere else.
    listed: OnceLock<(Listing, bool)>,
}

impl Rules {
    pub(super) fn allow_all() -> Self {
        Self { version: Version::without_files("allow_all"), kind: Kind::Everything }
    }

    pub(super) fn deny_all() -> Self {
        Self { version: Version::without_files("deny_all"), kind: Kind::Nothing }
    }

    pub(super) fn loaded(version: Version, loaded: Loaded) -> Self {
        Self { version, kind: Kind::Cedar(Box::new(loaded)) }
    }

    pub(super) fn version(&self) -> &Version {
        &self.version
    }

    pub(super) fn decide(&self, question: &Question<'_>, context: &Context) -> Verdict {
        if !self.names(question.action) {
            match question.action {
                // What is listed is what may be called, item by item; and the call that a server asks for is permitted.
                Action::List | Action::Sample | Action::Elicit | Action::ListRoots => {
                    return Verdict::permit(Vec::new(), Arc::default());
                }
                Action::Complete => {
                    let action = match question.subject {
                        SubjectKind::Resource => Action::ReadResource,
                        _ => Action::GetPrompt,
                    };
                    return self.decide(&Question { action, details: &[], ..*question }, context);
                }
                Action::CallTool | Action::ReadResource | Action::GetPrompt | Action::CallMethod => {}
            }
        }
        match &self.kind {
            Kind::Nothing => Verdict::deny(Vec::new(), "there are no policies here, so nothing is allowed"),
            Kind::Everything => Verdict::permit(Vec::new(), Arc::default()),
            Kind::Cedar(loaded) => met(loaded.decide(question, context), question.action, context),
        }
    }

    /// Whether any policy obliges to capture payloads.
    pub(super) fn captures(&self) -> bool {
        match &self.kind {
            Kind::Nothing | Kind::Everything => false,
            Kind::Cedar(loaded) => loaded.facts.values().any(|facts| facts.obligations.capture_payload()),
        }
    }

    pub(super) fn listing(&self, question: &Question<'_>, context: &Context) -> Listing {
        match &self.kind {
            Kind::Nothing => Listing::default(),
            Kind::Everything => Listing { visible: true, redacted: false },
            Kind::Cedar(loaded) => loaded.listing(question, context),
        }
    }

    /// Whether policies look at arguments at all.
    pub(super) fn looks_at_arguments(&self) -> bool {
        match &self.kind {
            Kind::Nothing | Kind::Everything => false,
            Kind::Cedar(loaded) => !loaded.looks.arguments.is_none(),
        }
    }

    /// Whether a policy names the action.
    pub(super) fn names(&self, action: Action) -> bool {
        match &self.kind {
            Kind::Nothing | Kind::Everything => false,
            Kind::Cedar(loaded) => loaded.named.contains(&action),
        }
    }
}

impl Version {
    fn without_files(word: &str) -> Self {
        Self { digest: word.to_owned(), files: 0, policies: 0 }
    }
}

impl Loaded {
    fn decide(&self, question: &Question<'_>, context: &Context) -> Verdict {
        let Ok(kept) = self.kept(question) else { return inexpressible() };
        if self.looks.time || self.looks.details || !self.looks.arguments.is_none() {
            return self.judge(&kept.parties, question, context);
        }
        kept.verdict.get_or_init(|| self.judge(&kept.parties, question, context)).clone()
    }

    fn judge(&self, parties: &Parties, question: &Question<'_>, context: &Context) -> Verdict {
        let response = match self.ask(&self.policies, parties, Some(question), context) {
            Ok(response) => response,
            Err(Refused::Inexpressible) => return inexpressible(),
            Err(Refused::TooMany) => {
                return Verdict::deny(Vec::new(), "the arguments hold more than policies can look at");
            }
        };
        let (reasons, failed) = (response.diagnostics().reason(), self.failed_to_forbid(&response));
        if !failed.is_empty() {
            let reason = format!("{} could not be evaluated, which counts as forbidding", failed.join(", "));
            return Verdict::deny(failed, reason);
        }
        let mut ids: Vec<String> = reasons.map(ToString::to_string).collect();
        ids.sort();
        if response.decision() == Cedar::Deny {
            let reason = if ids.is_empty() {
                "no policy permits it".to_owned()
            } else {
                format!("forbidden by {}", ids.join(", "))
            };
            return Verdict::deny(ids, reason);
        }
        let mut obligations = Obligations::default();
        for id in response.diagnostics().reason() {
            if let Some(facts) = self.facts.get(id) {
                obligations.add(&facts.obligations);
            }
        }
        Verdict::permit(ids, Arc::new(obligations))
    }

    fn listing(&self, question: &Question<'_>, context: &Context) -> Listing {
        let Ok(kept) = self.kept(question) else { return Listing::default() };
        let judge = || {
            let Ok(response) = self.ask(&self.outlines, &kept.parties, None, context) else {
                return (Listing::default(), false);
            };
            let unmet = |id: &PolicyId| {
                let facts = self.facts.get(id);
                facts.is_some_and(|facts| facts.certain && facts.obligations.capture_payload())
            };
            let visible = response.decision() == Cedar::Allow && self.failed_to_forbid(&response).is_empty();
            let redacts = |id: &PolicyId| self.facts.get(id).is_some_and(|facts| facts.obligations.redacts_result());
            let listing = Listing { visible, redacted: visible && response.diagnostics().reason().any(redacts) };
            (listing, response.diagnostics().reason().any(unmet))
        };
        let (listing, captures) = if self.looks.time { judge() } else { *kept.listed.get_or_init(judge) };
        if captures && !context.abilities.captures_payloads() { Listing::default() } else { listing }
    }

    /// Asks Cedar. Without a question there are no arguments to look at.
    fn ask(
        &self,
        policies: &PolicySet,
        parties: &Parties,
        question: Option<&Question<'_>>,
        context: &Context,
    ) -> Result<Response, Refused> {
        let time = self.looks.time.then(|| context.clock.now());
        let details = question.map_or(&[][..], |question| question.details);
        let question = question.filter(|_| !self.looks.arguments.is_none());
        let facts = self.names.context(&context.workspace, time, question.is_some(), details)?;
        let request =
            Request::new(parties.principal.clone(), parties.action.clone(), parties.resource.clone(), facts, None)
                .map_err(|_| Refused::Inexpressible)?;
        let authorizer = Authorizer::new();
        let Some(question) = question else {
            return Ok(authorizer.is_authorized(&request, policies, &parties.entities));
        };
        let arguments = arguments::entities(&self.names.arguments, question.arguments, &self.looks.arguments)?;
        let entities = parties.entities.clone().add_entities(arguments, None).map_err(|_| Refused::Inexpressible)?;
        Ok(authorizer.is_authorized(&request, policies, &entities))
    }

    /// The policies that forbid and could not be evaluated, sorted.
    fn failed_to_forbid(&self, response: &Response) -> Vec<String> {
        let forbids = |id: &&PolicyId| self.facts.get(*id).is_none_or(|facts| facts.effect == Effect::Forbid);
        let failed = response.diagnostics().errors().map(|error| match error {
            AuthorizationError::PolicyEvaluationError(error) => error.policy_id(),
        });
        let mut failed: Vec<String> = failed.filter(forbids).map(ToString::to_string).collect();
        failed.sort();
        failed
    }

    fn kept(&self, question: &Question<'_>) -> Result<Arc<Kept>, Inexpressible> {
        if let Some(kept) = self.kept.read().unwrap_or_else(PoisonError::into_inner).get(question) {
            return Ok(Arc::clone(kept));
        }
        let parties = self.names.parties(question)?;
        let kept = Arc::new(Kept { parties, verdict: OnceLock::new(), listed: OnceLock::new() });
        if question.name.len() > MAX_NAME || !question.keep {
            return Ok(kept);
        }
        let key = Key {
            caller: question.caller.clone(),
            action: question.action,
            subject: question.subject,
            plugin: question.plugin.to_owned(),
            name: question.name.to_owned(),
        };
        let mut all = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MAX_KEPT {
            all.clear();
        }
        all.insert(key, Arc::clone(&kept));
        Ok(kept)
    }
}

/// A permit whose obligations cannot be met now is a denial. What is kept of a decision does not know of that: it may
/// change.
fn met(verdict: Verdict, action: Action, context: &Context) -> Verdict {
    if !verdict.is_permit() || !verdict.obligations.capture_payload() {
        return verdict;
    }
    let reason = match action {
        // Of a list nothing is kept: it holds nothing of a call.
        Action::List => return verdict,
        Action::Sample | Action::Elicit | Action::ListRoots | Action::CallMethod => {
            "the obligation capture_payload cannot be met: what servers ask and methods beside MCP's are not captured"
        }
        Action::CallTool | Action::ReadResource | Action::GetPrompt | Action::Complete => {
            if context.abilities.captures_payloads() {
                return verdict;
            }
            "the obligation capture_payload cannot be met: this gateway captures no payloads"
        }
    };
    Verdict { obligations: verdict.obligations, ..Verdict::deny(verdict.policy_ids, reason) }
}

/// Why Cedar cannot be asked.
enum Refused {
    Inexpressible,
    TooMany,
}

impl From<Inexpressible> for Refused {
    fn from(_: Inexpressible) -> Self {
        Self::Inexpressible
    }
}

impl From<TooMany> for Refused {
    fn from(_: TooMany) -> Self {
        Self::TooMany
    }
}

fn inexpressible() -> Verdict {
    Verdict::deny(Vec::new(), "the call cannot be put in terms that policies understand")
}
