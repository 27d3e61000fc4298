//! Policy as a specification: the cases of `tests/policy`, reloading, and what only code can say.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

use super::{Abilities, Action, Change, Policy, Question, SubjectKind, Verdict};
use crate::config::{Faults, PolicySource};
use crate::gateway::identity::Caller;
use crate::model::{Clock, Decision};

#[derive(Debug)]
struct Wednesday;

impl Clock for Wednesday {
    fn now(&self) -> DateTime<Utc> {
        "2026-11-25T12:00:00Z".parse().unwrap()
    }
}

fn start(source: &PolicySource) -> Result<Policy, Faults> {
    Policy::start(source, "prod", Abilities::default(), Arc::new(Wednesday))
}

fn files(pattern: impl AsRef<Path>) -> PolicySource {
    PolicySource::Files(vec![pattern.as_ref().display().to_string()])
}

/// The policy of a text.
fn of(text: &str) -> Policy {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("p.cedar"), text).unwrap();
    start(&files(folder.path().join("*.cedar"))).unwrap()
}

fn caller(name: &str, groups: &[&str]) -> Caller {
    Caller::new(name.parse().unwrap(), groups.iter().map(|group| (*group).to_owned()).collect())
}

/// The case files of a folder of `tests/policy`.
fn case_files(folder: &str) -> Vec<(PathBuf, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/policy").join(folder);
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.into_iter().map(|path| (path.clone(), std::fs::read_to_string(path).unwrap())).collect()
}

/// What became of a case, in the words of the case.
fn outcome(policy: &Policy, case: &str) -> String {
    let (who, what) = case.split_once(' ').unwrap();
    let (groups, what) = match what.strip_prefix("in ") {
        Some(rest) => rest.split_once(' ').unwrap(),
        None => ("", what),
    };
    let groups: Vec<_> = groups.split(',').filter(|group| !group.is_empty()).collect();
    let caller = caller(who, &groups);
    let mut words = what.splitn(3, ' ');
    let (verb, target) = (words.next().unwrap(), words.next().unwrap());
    let arguments: Option<Map<String, Value>> = words.next().map(|text| serde_json::from_str(text).unwrap());
    let (plugin, name) = target.split_once('/').unwrap();
    let action = match verb {
        "sees" => {
            let listed = policy.may_list(&caller, Action::CallTool, plugin, name);
            return if listed { "listed" } else { "hidden" }.to_owned();
        }
        "calls" => Action::CallTool,
        "reads" => Action::ReadResource,
        "gets" => Action::GetPrompt,
        verb => panic!("{verb} is no verb of cases"),
    };
    let verdict =
        policy.decide(&Question { arguments: arguments.as_ref(), ..Question::new(&caller, action, plugin, name) });
    assert_eq!(verdict.is_permit(), verdict.reason.is_none(), "a denial, and it alone, has a reason: {verdict:?}");
    if verdict.is_permit() {
        let with = verdict.decision == Decision::PermitWithObligations;
        assert_eq!(with, !verdict.obligations.is_empty(), "{verdict:?}");
    }
    let mut words = vec![if verdict.is_permit() { "permit" } else { "deny" }.to_owned()];
    if !verdict.policy_ids.is_empty() {
        words.push(format!("by {}", verdict.policy_ids.join(",")));
    }
    if !verdict.obligations.is_empty() {
        words.push(format!("with {}", verdict.obligations.names().join(" ")));
    }
    words.join(" ")
}

#[test]
fn the_cases_of_sound_policies_come_out_as_they_say() {
    let mut wrong = Vec::new();
    for (path, text) in case_files("sound") {
        let policy = start(&files(&path)).unwrap_or_else(|faults| panic!("{faults}"));
        let cases: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("//? ")).collect();
        assert!(!cases.is_empty(), "{path:?} has no cases");
        // Twice, since the second time much of it is remembered.
        for case in cases.iter().chain(&cases) {
            let (question, expected) = case.split_once(" => ").unwrap();
            let found = outcome(&policy, question);
            if found != expected {
                wrong.push(format!("{}: {question} => {found}, not {expected}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_fault_of_a_faulty_policy_is_found_with_its_place() {
    let mut wrong = Vec::new();
    for (path, text) in case_files("faulty") {
        let found = start(&files(&path)).expect_err("it has faults").to_string();
        let place = format!("{}:", path.display());
        let found: Vec<_> = found.lines().map(|line| line.strip_prefix(&place).unwrap_or(line)).collect();
        let expected: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("//! ")).collect();
        let as_expected = found.len() == expected.len() && found.iter().zip(&expected).all(|(a, b)| a.starts_with(b));
        if !as_expected {
            wrong.push(format!("{}: found\n{}\nnot\n{}", path.display(), found.join("\n"), expected.join("\n")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn nothing_is_allowed_or_listed_where_there_are_no_policies() {
    let (nobody, arguments) = (Caller::anonymous(), Map::new());
    let question = Question { arguments: Some(&arguments), ..Question::new(&nobody, Action::CallTool, "a", "b") };
    let policy = start(&PolicySource::DenyAll).unwrap();
    assert_eq!(policy.decide(&question).decision, Decision::Deny);
    assert!(!policy.may_list(&nobody, Action::CallTool, "a", "b"));
    let policy = start(&PolicySource::AllowAll).unwrap();
    assert_eq!(policy.decide(&question).decision, Decision::Permit);
    assert!(policy.may_list(&nobody, Action::CallTool, "a", "b"));
}

#[test]
fn a_pattern_that_matches_no_file_is_a_fault() {
    let folder = tempfile::tempdir().unwrap();
    let faults = start(&files(folder.path().join("*.cedar"))).unwrap_err().to_string();
    assert!(faults.contains("no policy file matches"), "{faults}");
}

#[test]
fn obligations_of_a_gateway_that_captures_payloads_can_be_met() {
    let source = files(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/policy/sound/obligations.cedar"));
    let abilities = Abilities::default();
    abilities.set_capture_payload(true);
    let policy = Policy::start(&source, "prod", abilities, Arc::new(Wednesday)).unwrap();
    assert_eq!(outcome(&policy, "user:ann calls bank/transfer"), "permit by captured with capture_payload");
    assert_eq!(outcome(&policy, "user:ann sees bank/transfer"), "listed");
}

#[test]
fn what_is_never_captured_is_denied_where_it_would_have_to_be() {
    let folder = tempfile::tempdir().unwrap();
    let text = r#"@id("all") @capture_payload("true") permit(principal, action, resource);
        @id("list") permit(principal, action == Action::"list", resource);
        @id("sample") permit(principal, action == Action::"sample", resource);"#;
    std::fs::write(folder.path().join("p.cedar"), text).unwrap();
    let abilities = Abilities::default();
    abilities.set_capture_payload(true);
    let source = files(folder.path().join("*.cedar"));
    let policy = Policy::start(&source, "prod", abilities, Arc::new(Wednesday)).unwrap();
    let ann = caller("user:ann", &[]);
    for action in [Action::CallTool, Action::ReadResource, Action::GetPrompt, Action::Complete, Action::List] {
        let details: &[(&'static str, &str)] = if action == Action::List { &[("kind", "tools")] } else { &[] };
        let verdict = policy.decide(&Question { details, ..Question::new(&ann, action, "a", "b") });
        assert!(verdict.is_permit(), "{action:?}: {verdict:?}");
    }
    for (action, subject) in [(Action::Sample, SubjectKind::Tool), (Action::CallMethod, SubjectKind::Plugin)] {
        let verdict = policy.decide(&Question {
            subject,
            details: &[("method", "x/y")],
            ..Question::new(&ann, action, "a", "b")
        });
        let reason = verdict.reason.unwrap_or_default();
        assert!(reason.contains("capture_payload cannot be met"), "{action:?}: {reason}");
    }
}

#[test]
fn arguments_without_end_are_denied_where_policies_look_at_all_of_them() {
    let policy = of(r#"permit(principal, action == Action::"call_tool", resource)
                       unless { context.arguments.text.hasTag(principal.name) };"#);
    let many: Map<String, Value> = (0..20_000).map(|n| (n.to_string(), json!(n))).collect();
    let ann = caller("user:ann", &[]);
    let ask = |arguments: &Map<String, Value>| {
        policy.decide(&Question { arguments: Some(arguments), ..Question::new(&ann, Action::CallTool, "a", "b") })
    };
    assert!(ask(&Map::new()).is_permit());
    assert_eq!(ask(&many).reason.unwrap(), "the arguments hold more than policies can look at");
    let deep = (0..100).fold(json!(1), |inner, _| json!([inner]));
    assert!(!ask(&Map::from_iter([("deep".to_owned(), deep)])).is_permit());
}

#[test]
fn a_verdict_holds_nothing_of_the_arguments() {
    let policy = of(r#"@id("text") forbid(principal, action == Action::"call_tool", resource)
                       when { context.arguments.text.hasTag("/x") && context.arguments.text.getTag("/x") == "canary" };
                       @id("sum") forbid(principal, action == Action::"call_tool", resource)
                       when { context.arguments.number.hasTag("/x") && context.arguments.number.getTag("/x") + 8 > 0 };"#);
    let ann = caller("user:ann", &[]);
    for (value, by) in [(json!("canary"), "text"), (json!(9_223_372_036_854_775_801_i64), "sum")] {
        let arguments = Map::from_iter([("x".to_owned(), value)]);
        let question = Question { arguments: Some(&arguments), ..Question::new(&ann, Action::CallTool, "a", "b") };
        let verdict = policy.decide(&question);
        assert_eq!(verdict.policy_ids, [by]);
        let shown = format!("{verdict:?}");
        assert!(!shown.contains("canary") && !shown.contains("922337203685477580"), "{shown}");
    }
}

/// A folder with one policy file that is being watched.
struct Watched {
    folder: tempfile::TempDir,
    policy: Arc<Policy>,
    changes: mpsc::UnboundedReceiver<Change>,
}

impl Watched {
    fn start(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("p.cedar"), text).unwrap();
        let policy = Arc::new(start(&files(folder.path().join("*.cedar"))).unwrap());
        let (sender, changes) = mpsc::unbounded_channel();
        tokio::spawn(Arc::clone(&policy).watch(move |change| drop(sender.send(change))));
        Self { folder, policy, changes }
    }

    fn write(&self, text: &str) {
        std::fs::write(self.folder.path().join("p.cedar"), text).unwrap();
    }

    fn decide(&self) -> Verdict {
        let ann = caller("user:ann", &[]);
        self.policy.decide(&Question::new(&ann, Action::CallTool, "a", "b"))
    }
}

const PERMIT: &str = "@id(\"all\") permit(principal, action, resource);";
const FORBID: &str = "@id(\"none\") forbid(principal, action, resource);";

#[tokio::test(start_paused = true)]
async fn a_changed_file_is_in_force_without_a_restart() {
    let mut watched = Watched::start(PERMIT);
    assert!(watched.decide().is_permit());
    watched.write(FORBID);
    let Some(Change::Reloaded(version)) = watched.changes.recv().await else { panic!("it was not reloaded") };
    assert_eq!((version.policies, version.files), (1, 1));
    assert_eq!(watched.decide().policy_ids, ["none"]);
}

#[tokio::test(start_paused = true)]
async fn a_faulty_version_leaves_the_old_one_in_force_and_is_reported_once() {
    let mut watched = Watched::start(PERMIT);
    watched.write("permit(principal, action, resource) when { nonsense };");
    let Some(Change::Rejected(faults)) = watched.changes.recv().await else { panic!("it was not rejected") };
    assert!(faults.to_string().contains("p.cedar:1:"), "{faults}");
    assert!(watched.decide().is_permit());
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(watched.changes.try_recv().is_err(), "one report is enough");
    watched.write(PERMIT);
    tokio::time::sleep(Duration::from_secs(10)).await;
    watched.write(FORBID);
    assert!(matches!(watched.changes.recv().await, Some(Change::Reloaded(_))));
}

#[tokio::test(start_paused = true)]
async fn files_that_are_gone_leave_the_old_version_in_force() {
    let mut watched = Watched::start(FORBID);
    std::fs::remove_file(watched.folder.path().join("p.cedar")).unwrap();
    assert!(matches!(watched.changes.recv().await, Some(Change::Rejected(_))));
    assert_eq!(watched.decide().policy_ids, ["none"]);
}

#[test]
fn reading_again_what_is_in_force_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("p.cedar");
    std::fs::write(&file, PERMIT).unwrap();
    let policy = start(&files(&file)).unwrap();
    let version = policy.version();
    assert_eq!(policy.reload().unwrap(), None);
    std::fs::write(&file, FORBID).unwrap();
    assert_ne!(policy.reload().unwrap().unwrap().digest, version.digest);
}

#[test]
fn an_action_that_no_policy_names_follows_its_parent() {
    let policy = of(r#"@id("t") permit(principal, action == Action::"call_tool", resource == Tool::"a/b");
                       @id("p") permit(principal, action == Action::"get_prompt", resource == Prompt::"a/p");"#);
    let ann = caller("user:ann", &[]);
    for action in [Action::List, Action::Sample, Action::Elicit, Action::ListRoots] {
        assert!(policy.decide(&Question::new(&ann, action, "a", "")).is_permit(), "{action:?}");
    }
    assert!(policy.decide(&Question::new(&ann, Action::Complete, "a", "p")).is_permit());
    assert!(!policy.decide(&Question::new(&ann, Action::Complete, "a", "q")).is_permit());
    assert!(!policy.decide(&Question::new(&ann, Action::CallMethod, "a", "")).is_permit(), "it has no parent");
}

#[test]
fn an_action_that_a_policy_names_is_decided_by_policies_alone() {
    let policy = of(r#"@id("t") permit(principal, action == Action::"call_tool", resource);
                       @id("l") permit(principal, action == Action::"list", resource == Plugin::"a")
                       when { context.kind == "tools" };
                       @id("e") permit(principal, action in [Action::"elicit", Action::"sample"], resource)
                       when { context.method == "elicitation/create" };
                       @id("c") permit(principal, action == Action::"call_method", resource)
                       when { resource.plugin == "a" && context.method == "x/y" };"#);
    let ann = caller("user:ann", &[]);
    let ask = |action, plugin, details: &[(&'static str, &str)]| {
        let verdict = policy.decide(&Question { details, ..Question::new(&ann, action, plugin, "t") });
        (verdict.is_permit(), verdict.policy_ids)
    };
    assert_eq!(ask(Action::List, "a", &[("kind", "tools")]), (true, vec!["l".to_owned()]));
    assert!(!ask(Action::List, "a", &[("kind", "prompts")]).0);
    assert!(!ask(Action::List, "b", &[("kind", "tools")]).0);
    assert!(ask(Action::Elicit, "a", &[("method", "elicitation/create"), ("mode", "form")]).0);
    assert!(!ask(Action::Sample, "a", &[("method", "sampling/createMessage")]).0);
    assert!(ask(Action::ListRoots, "a", &[("method", "roots/list")]).0, "no policy names it");
    assert!(ask(Action::CallMethod, "a", &[("method", "x/y")]).0);
    assert!(!ask(Action::CallMethod, "b", &[("method", "x/y")]).0);
}

#[test]
fn a_policy_of_all_actions_is_valid_as_it_was_before_there_were_more() {
    for text in [
        r#"permit(principal, action, resource) when { resource.plugin == "a" };"#,
        r#"forbid(principal, action, resource) unless { resource in Plugin::"a" && context.workspace == "prod" };"#,
        r#"permit(principal, action, resource) when { resource is Tool && resource.name == "b" };"#,
    ] {
        of(text);
    }
}

#[test]
fn a_tool_whose_result_may_be_redacted_says_so() {
    let policy = of(r#"@redact("result:/x") permit(principal, action, resource == Tool::"a/b");
                       permit(principal, action, resource == Tool::"a/c");"#);
    let ann = caller("user:ann", &[]);
    let listing = |name| policy.listing(&ann, Action::CallTool, "a", name);
    assert_eq!((listing("b").visible, listing("b").redacted), (true, true));
    assert_eq!((listing("c").visible, listing("c").redacted), (true, false));
    assert!(!listing("d").visible);
}
