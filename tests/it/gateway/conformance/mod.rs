//! The official conformance suites of MCP: 0.1.16 with all its scenarios for servers, and the newest with what it
//! requires of 2025-11-25 and of 2026-07-28, servers and clients. Each is run directly, against the fixtures
//! themselves, and with the gateway between.
//!
//! The rule: no check that is `SUCCESS` directly is anything else through the gateway, whether the suite scores it or
//! not. What differs otherwise is in `known`, each with its reason. Scenarios named `auth/*` judge a client's own
//! OAuth, and the gateway is no OAuth client: they are left out.

mod client;
mod known;
mod server;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use self::known::Differs;
use crate::harness::{node, npm, run};

/// The revisions whose requirements the newest suite has.
const OLD: &str = "2025-11-25";
const MODERN: &str = "2026-07-28";

/// What the suite said of each check: `scenario/check`, further ones of that name with `#2` and so on, and `SUCCESS`,
/// `WARNING`, `SKIPPED` or `FAILURE`, with the reason.
type Verdicts = BTreeMap<String, String>;

/// A command of the suite that has the requirements of both generations.
fn newest() -> Command {
    let modules = npm("node").parent().unwrap().parent().unwrap().to_owned();
    node(&modules.join("conformance-of-2026-07-28/dist/index.js"))
}

/// Runs a command of the suite to its end; what it wrote is then in its folder, whatever it thinks of it.
async fn ran(mut command: Command) -> String {
    let output = tokio::task::spawn_blocking(move || run(&mut command)).await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    format!("{said}\n{}", String::from_utf8_lossy(&output.stderr))
}

/// What is in an output folder of the suite: a folder for each scenario, `<prefix><scenario>-<time>`.
fn read(folder: &Path, prefix: &str) -> Verdicts {
    let mut folders: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    folders.iter().flat_map(|scenario| verdicts(scenario, prefix)).collect()
}

/// The verdicts of one scenario.
fn verdicts(folder: &Path, prefix: &str) -> Vec<(String, String)> {
    let name = folder.file_name().unwrap().to_str().unwrap().strip_prefix(prefix).unwrap();
    let scenario = &name[..name.len() - "-2026-01-01T00-00-00-000Z".len()];
    let checks: Vec<Value> = serde_json::from_slice(&std::fs::read(folder.join("checks.json")).unwrap()).unwrap();
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let judged = checks.iter().filter(|check| check["status"] != "INFO");
    judged
        .map(|check| {
            let id = check["id"].as_str().unwrap();
            let count = seen.entry(id).and_modify(|count| *count += 1).or_insert(1);
            let nth = if *count == 1 { String::new() } else { format!("#{count}") };
            let status = check["status"].as_str().unwrap();
            let why = check["errorMessage"].as_str().map(|why| format!(": {why}")).unwrap_or_default();
            (format!("{scenario}/{id}{nth}"), format!("{status}{why}"))
        })
        .collect()
}

/// The word that a verdict begins with.
fn status(verdict: &str) -> &str {
    verdict.split(':').next().unwrap_or_default()
}

/// Fails unless the suite found at least so many checks and nothing wrong with any.
#[track_caller]
fn assert_all_passed(verdicts: &Verdicts, checks: usize) {
    let failed: Vec<_> = verdicts.iter().filter(|(_, verdict)| status(verdict) == "FAILURE").collect();
    assert!(failed.is_empty(), "{failed:#?}");
    let passed = verdicts.values().filter(|verdict| status(verdict) == "SUCCESS").count();
    assert!(passed >= checks, "{passed} checks of {checks} passed: {verdicts:#?}");
}

/// Fails unless each check came to the same through the gateway as directly, but for what is known to differ, which
/// must differ.
#[track_caller]
fn assert_same(through: &Verdicts, directly: &Verdicts, known: &[Differs]) {
    let mut wrong = Vec::new();
    for check in directly.keys().chain(through.keys().filter(|check| !directly.contains_key(*check))) {
        let (direct, through) = (directly.get(check).map(String::as_str), through.get(check).map(String::as_str));
        let (was, is) = (direct.map_or("absent", status), through.map_or("absent", status));
        match known.iter().find(|differs| differs.check == check) {
            Some(differs) if differs.directly == was && differs.through.contains(&is) => {}
            Some(_) => wrong.push(format!("{check}: {was} directly, {is} through the gateway, not as is known")),
            None if was == is => {}
            None => wrong.push(format!("{check}: {was} directly, through the gateway {}", through.unwrap_or(is))),
        }
    }
    let gone =
        known.iter().filter(|differs| !directly.contains_key(differs.check) && !through.contains_key(differs.check));
    wrong.extend(gone.map(|differs| format!("{}: known to differ, and there is no such check", differs.check)));
    assert!(wrong.is_empty(), "{} checks:\n{}", wrong.len(), wrong.join("\n"));
}
