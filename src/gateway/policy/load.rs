//! From files to a sound version of the policies, or to every fault of theirs.
//!
//! Each file is parsed by itself, so that a fault in one does not hide those of another; then all policies are
//! validated against the schema, strictly. A policy is known by its `@id`, which is unique, or by its file's name and
//! its line. Templates are refused: nothing here would ever fill their slots.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::str::FromStr;
use std::sync::RwLock;

use cedar_policy::ffi::DetailedError;
use cedar_policy::{
    ActionConstraint, Effect, EntityUid, Policy, PolicyId, PolicySet, Schema, ValidationMode, Validator,
};

use super::entities::Names;
use super::files::{Source, Sources};
use super::obligations::Obligations;
use super::outline::{Looks, outline};
use super::rules::{Facts, Loaded, Rules};
use super::{Action, Version};
use crate::config::{Fault, Faults};

/// What policies can speak of.
const SCHEMA: &str = include_str!("../../../schemas/policy.cedarschema");

/// A policy, and where it stands.
struct Placed<'a> {
    policy: Policy,
    id: String,
    source: &'a Source,
    start: usize,
    text: String,
}

/// The policies of these files.
pub(super) fn rules(sources: &Sources) -> Result<Rules, Faults> {
    let own_fault = |what: &str, why: &dyn std::fmt::Display| {
        let (file, message) = ("schemas/policy.cedarschema".to_owned(), format!("{what}: {why}"));
        Fault { file, line: 1, column: 1, path: String::new(), message }
    };
    let mut faults = Vec::new();
    let mut placed: Vec<Placed<'_>> = Vec::new();
    for source in sources.files() {
        placed.extend(parse(source, &mut faults));
    }
    let mut loaded = Loading::default();
    for place in &placed {
        loaded.add(place, &mut faults);
    }
    match Schema::from_cedarschema_str(SCHEMA) {
        Err(error) => faults.push(own_fault("the schema", &error)),
        Ok((schema, _)) => validate(schema, &placed, &loaded.policies, &mut faults),
    }
    let names = Names::new().map_err(|error| faults.push(own_fault("the schema's names", &error))).ok();
    faults.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
    // Cedar says of one place the same for each kind of caller.
    faults.dedup_by(|a, b| (&a.file, a.line, a.column, &a.path) == (&b.file, b.line, b.column, &b.path));
    match (Faults::of(faults), names) {
        (None, Some(names)) => {
            let version =
                Version { digest: sources.digest().to_owned(), files: sources.files().len(), policies: placed.len() };
            let Loading { policies, outlines, facts, looks, named } = loaded;
            let loaded = Loaded { policies, outlines, facts, looks, named, names, kept: RwLock::default() };
            Ok(Rules::loaded(version, loaded))
        }
        (Some(faults), _) => Err(faults),
        (None, None) => Err(Faults::one(own_fault("the schema", &"its names cannot be read"))),
    }
}

/// The policies of a file, in its order.
fn parse<'a>(source: &'a Source, faults: &mut Vec<Fault>) -> Vec<Placed<'a>> {
    let policies = match PolicySet::from_str(&source.text) {
        Ok(policies) => policies,
        Err(errors) => {
            faults.extend(errors.iter().map(|error| detailed(source, "", DetailedError::from(error))));
            return Vec::new();
        }
    };
    for template in policies.templates() {
        let start = source.text.find("?principal").or_else(|| source.text.find("?resource")).unwrap_or(0);
        let message = "a template, whose slots nothing here fills; write the policy out";
        faults.push(source.fault(start, template.id().as_ref(), message));
    }
    // Cedar counts the policies of a text: policy0, policy1, …; and keeps the text of each.
    let mut found: Vec<(usize, &Policy)> = policies
        .policies()
        .filter_map(|policy| Some((policy.id().to_string().strip_prefix("policy")?.parse().ok()?, policy)))
        .collect();
    found.sort_by_key(|(number, _)| *number);
    let mut end = 0;
    let mut placed = Vec::with_capacity(found.len());
    for (_, policy) in found {
        let text = policy.to_cedar().unwrap_or_default();
        let start = source.text.get(end..).and_then(|rest| rest.find(&text)).map_or(end, |start| end + start);
        end = start + text.len();
        let id = policy.annotation("id").filter(|id| !id.is_empty()).map_or_else(
            || {
                let name = Path::new(&source.file).file_name().map(|name| name.to_string_lossy().into_owned());
                format!("{}:{}", name.unwrap_or_default(), source.line(start))
            },
            str::to_owned,
        );
        placed.push(Placed { policy: policy.new_id(PolicyId::new(&id)), id, source, start, text });
    }
    placed
}

impl Placed<'_> {
    /// A fault of one of its annotations.
    fn fault(&self, annotation: &str, message: impl Into<String>) -> Fault {
        let within = self.text.find(&format!("@{annotation}")).unwrap_or(0);
        self.source.fault(self.start + within, &self.id, message)
    }
}

/// A version that is being put together.
struct Loading {
    policies: PolicySet,
    outlines: PolicySet,
    facts: HashMap<PolicyId, Facts>,
    looks: Looks,
    named: HashSet<Action>,
}

impl Default for Loading {
    fn default() -> Self {
        let (policies, outlines) = (PolicySet::new(), PolicySet::new());
        Self { policies, outlines, facts: HashMap::new(), looks: Looks::nowhere(), named: HashSet::new() }
    }
}

impl Loading {
    fn add(&mut self, placed: &Placed<'_>, faults: &mut Vec<Fault>) {
        let Placed { policy, id, .. } = placed;
        if id.chars().count() > 128 || id.chars().any(char::is_control) {
            faults.push(placed.fault("id", "@id: at most 128 characters, no control characters"));
        }
        if self.policies.add(policy.clone()).is_err() {
            faults.push(placed.fault("id", format!("another policy has the id `{id}`; each needs its own")));
            return;
        }
        match policy.action_constraint() {
            ActionConstraint::Any => {}
            ActionConstraint::Eq(action) => self.named.extend(named(&action)),
            ActionConstraint::In(actions) => self.named.extend(actions.iter().filter_map(named)),
        }
        let mut obligations = Obligations::default();
        let mut annotations: Vec<_> = policy.annotations().collect();
        annotations.sort_unstable();
        for (name, value) in annotations.into_iter().filter(|(name, _)| !matches!(*name, "id" | "description")) {
            if let Err(why) = obligations.annotate(name, value) {
                faults.push(placed.fault(name, format!("@{name}: {why}")));
            } else if policy.effect() == Effect::Forbid {
                let why = "an obligation of a permit, on a policy that forbids; remove it";
                faults.push(placed.fault(name, format!("@{name}: {why}")));
            }
        }
        let looks = match policy.to_json() {
            Err(error) => {
                faults.push(placed.source.fault(placed.start, id, error.to_string()));
                return;
            }
            Ok(json) => {
                let added = match outline(&json) {
                    None => Ok(()),
                    Some(outlined) => Policy::from_json(Some(PolicyId::new(id)), outlined)
                        .map_err(|error| error.to_string())
                        .and_then(|outlined| self.outlines.add(outlined).map_err(|error| error.to_string())),
                };
                if let Err(why) = added {
                    faults.push(placed.source.fault(placed.start, id, why));
                }
                Looks::of(&json)
            }
        };
        if let super::arguments::Wanted::At(pointers) = &looks.arguments {
            for pointer in pointers.iter().filter(|pointer| !pointer.starts_with('/')) {
                let within = placed.text.find(&format!("\"{pointer}\"")).unwrap_or(0);
                let message =
                    format!("\"{pointer}\" is no JSON pointer, so no argument is there; write \"/{pointer}\"");
                faults.push(placed.source.fault(placed.start + within, id, message));
            }
        }
        let certain = looks.arguments.is_none();
        self.looks.add(looks);
        self.facts.insert(policy.id().clone(), Facts { obligations, effect: policy.effect(), certain });
    }
}

/// The action of a name.
fn named(action: &EntityUid) -> Option<Action> {
    let id: &str = action.id().as_ref();
    Action::ALL.into_iter().find(|known| known.as_str() == id)
}

/// Validates all policies together.
fn validate(schema: Schema, placed: &[Placed<'_>], policies: &PolicySet, faults: &mut Vec<Fault>) {
    let result = Validator::new(schema).validate(policies, ValidationMode::Strict);
    let place = |id: &PolicyId| placed.iter().find(|placed| placed.policy.id() == id);
    for error in result.validation_errors() {
        if let Some(placed) = place(error.policy_id()) {
            faults.push(detailed(placed.source, &placed.id, DetailedError::from(error)));
        }
    }
    for warning in result.validation_warnings() {
        if let Some(placed) = place(warning.policy_id()) {
            let fault = detailed(placed.source, &placed.id, DetailedError::from(warning));
            tracing::warn!(policy = placed.id, "{fault}");
        }
    }
}

/// What Cedar says of a place in a file.
fn detailed(source: &Source, policy: &str, error: DetailedError) -> Fault {
    let start = error.source_locations.first().map_or(0, |label| label.loc.start);
    let message = match error.help {
        Some(help) => format!("{}; {help}", error.message),
        None => error.message,
    };
    // The fault names the policy already.
    source.fault(start, policy, message.replace(&format!("for policy `{policy}`, "), ""))
}
