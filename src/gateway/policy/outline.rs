//! What a policy looks at, and what of it holds whatever the arguments.
//!
//! A tool is listed unless every call of it would be denied. That cannot be known by evaluating policies that look at
//! arguments, which are not known yet. So for listing, each policy stands in its *outline*:
//!
//! * a policy that permits keeps its scope and those of its conditions' parts, joined by `&&` (in `unless` by `||`),
//!   that do not look at arguments. It then permits at least all that it did;
//! * a policy that forbids and looks at arguments is left out: some call may escape it.
//!
//! Both work on Cedar's JSON form of a policy.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::arguments::Wanted;

/// What a policy looks at beside who calls and what is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Looks {
    /// Which arguments.
    pub(super) arguments: Wanted,
    /// Whether at the time.
    pub(super) time: bool,
    /// Whether at what an action's context has beside arguments: its method, its mode, its kind.
    pub(super) details: bool,
}

/// What an action's context may have beside workspace, time and arguments.
const DETAILS: [&str; 5] = ["kind", "method", "mode", "url_host", "argument"];

impl Looks {
    /// At nothing.
    pub(super) fn nowhere() -> Self {
        Self { arguments: Wanted::At(BTreeSet::new()), time: false, details: false }
    }

    /// Also at what `other` looks at.
    pub(super) fn add(&mut self, other: Self) {
        self.time |= other.time;
        self.details |= other.details;
        match (&mut self.arguments, other.arguments) {
            (Wanted::At(these), Wanted::At(those)) => these.extend(those),
            (arguments, Wanted::All) => *arguments = Wanted::All,
            (Wanted::All, Wanted::At(_)) => {}
        }
    }

    /// What an expression, or a whole policy, looks at.
    pub(super) fn of(expression: &Value) -> Self {
        let mut looks = Self::nowhere();
        looks.walk(expression);
        looks
    }

    fn walk(&mut self, expression: &Value) {
        match expression {
            Value::Object(map) => {
                if self.by_key(map) {
                    return;
                }
                if map.get("Var").is_some_and(|name| name == "context") {
                    // The context as a whole.
                    self.add(Self { arguments: Wanted::All, time: true, details: true });
                }
                map.values().for_each(|part| self.walk(part));
            }
            Value::Array(items) => items.iter().for_each(|part| self.walk(part)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    /// Whether it is the look-up of one attribute of the context, or of one argument by a literal key.
    fn by_key(&mut self, map: &Map<String, Value>) -> bool {
        if let Some(tag) = map.get("getTag").or_else(|| map.get("hasTag")) {
            let kind = tag.get("left").and_then(|left| left.get("."));
            let of = kind.and_then(|kind| kind.get("left")).and_then(Value::as_object).and_then(attribute);
            let key = tag.get("right").and_then(|right| right.get("Value")).and_then(Value::as_str);
            if let (Some("arguments"), Some(key)) = (of, key) {
                self.add(Self { arguments: Wanted::At([key.to_owned()].into()), ..Self::nowhere() });
                return true;
            }
        }
        match attribute(map) {
            None => false,
            Some("workspace") => true,
            Some("time") => {
                self.time = true;
                true
            }
            Some(detail) if DETAILS.contains(&detail) => {
                self.details = true;
                true
            }
            Some(_) => {
                self.add(Self { arguments: Wanted::All, ..Self::nowhere() });
                true
            }
        }
    }
}

/// The attribute of the context that an expression looks up.
fn attribute(expression: &Map<String, Value>) -> Option<&str> {
    let lookup = expression.get(".").or_else(|| expression.get("has"))?;
    let is_context = lookup.get("left")?.get("Var")? == "context";
    if is_context { lookup.get("attr")?.as_str() } else { None }
}

/// The outline of a policy in its JSON form. `None`: it has none, and is left out.
pub(super) fn outline(policy: &Value) -> Option<Value> {
    if Looks::of(policy).arguments.is_none() {
        return Some(policy.clone());
    }
    if policy.get("effect").is_some_and(|effect| effect != "permit") {
        return None;
    }
    let mut outline = policy.clone();
    let conditions = policy.get("conditions").and_then(Value::as_array)?;
    let kept = conditions.iter().filter_map(|condition| {
        let kind = condition.get("kind")?;
        let joint = if kind == "unless" { "||" } else { "&&" };
        let body = without_arguments(condition.get("body")?, joint)?;
        Some(json!({ "kind": kind, "body": body }))
    });
    *outline.get_mut("conditions")? = kept.collect();
    Some(outline)
}

/// The parts of an expression, joined by `joint`, that do not look at arguments.
fn without_arguments(expression: &Value, joint: &str) -> Option<Value> {
    if Looks::of(expression).arguments.is_none() {
        return Some(expression.clone());
    }
    let sides = expression.get(joint)?;
    let side = |name| sides.get(name).and_then(|side| without_arguments(side, joint));
    match (side("left"), side("right")) {
        (Some(left), Some(right)) => Some(json!({ joint: { "left": left, "right": right } })),
        (left, right) => left.or(right),
    }
}

#[cfg(test)]
mod tests {
    use cedar_policy::Policy;
    use serde_json::Value;

    use super::{Looks, Wanted, outline};

    fn json(conditions: &str) -> Value {
        policy("permit", conditions)
    }

    fn policy(effect: &str, conditions: &str) -> Value {
        let text = format!("{effect}(principal, action, resource) {conditions};");
        Policy::parse(None, text).unwrap().to_json().unwrap()
    }

    fn at(pointers: &[&str]) -> Wanted {
        Wanted::At(pointers.iter().map(|pointer| (*pointer).to_owned()).collect())
    }

    #[test]
    fn the_arguments_that_are_asked_for_by_name_are_known() {
        let looks = Looks::of(&json(
            r#"when { context.arguments.text.hasTag("/a") && context.arguments.text.getTag("/a") == "x" }
               unless { context.arguments.number.getTag("/b/c") > 1 || context.workspace == "w" }"#,
        ));
        assert_eq!(looks, Looks { arguments: at(&["/a", "/b/c"]), ..Looks::nowhere() });
    }

    #[test]
    fn a_policy_that_looks_at_none_is_known_to() {
        assert_eq!(Looks::of(&json("when { context.workspace == \"arguments\" }")), Looks::nowhere());
        assert!(Looks::of(&json("when { context.time > datetime(\"2026-01-01\") }")).time);
    }

    #[test]
    fn a_look_at_a_detail_is_none_at_the_arguments() {
        let looks = Looks::of(&json(r#"when { context.mode == "form" && context has url_host }"#));
        assert_eq!(looks, Looks { details: true, ..Looks::nowhere() });
    }

    #[test]
    fn a_computed_key_or_the_whole_context_asks_for_all() {
        for conditions in [
            "when { context.arguments.text.hasTag(principal.name) }",
            "when { context.arguments.text == context.arguments.text }",
            "when { context == {} }",
            "when { [context].contains(resource) }",
        ] {
            assert_eq!(Looks::of(&json(conditions)).arguments, Wanted::All, "{conditions}");
        }
    }

    #[test]
    fn an_outline_keeps_what_does_not_look_at_arguments() {
        let look = r#"context.arguments.flag.hasTag("/x")"#;
        for (full, kept) in [
            (
                format!("when {{ principal.name == \"a\" && {look} && resource.name == \"t\" }}"),
                "when { principal.name == \"a\" && resource.name == \"t\" }",
            ),
            (format!("unless {{ principal.name == \"a\" || {look} }}"), "unless { principal.name == \"a\" }"),
            (format!("when {{ principal.name == \"a\" || {look} }}"), ""),
            (format!("when {{ {look} }} when {{ resource.name == \"t\" }}"), "when { resource.name == \"t\" }"),
        ] {
            assert_eq!(outline(&json(&full)), Some(json(kept)), "{full}");
        }
    }

    #[test]
    fn a_policy_that_forbids_some_arguments_has_no_outline() {
        assert_eq!(outline(&policy("forbid", r#"when { context.arguments.flag.hasTag("/x") }"#)), None);
        assert!(outline(&policy("forbid", "when { principal.name == \"a\" }")).is_some());
    }
}
