//! Clients under the newest suite: the fixture client itself, and with a gateway between it and the suite's servers, so
//! that it is the gateway's own requests that are judged.

use std::path::Path;

use tempfile::TempDir;

use super::known::{Differs, MODERN_CLIENT, OLD_CLIENT};
use super::{MODERN, OLD, Verdicts, assert_all_passed, assert_same, newest, ran, read};
use crate::harness::{alone, client_script, mcpg, npm};

/// What the suite requires of a client of a revision beside `auth/*`, and what it runs without scoring it.
const OLD_SCENARIOS: [&str; 5] = [
    "initialize",
    "tools_call",
    "elicitation-sep1034-client-defaults",
    "sse-retry",
    "json-schema-2020-12-preservation",
];
const MODERN_SCENARIOS: [&str; 8] = [
    "tools_call",
    "request-metadata",
    "sep-2322-client-request-state",
    "http-standard-headers",
    "http-custom-headers",
    "http-invalid-tool-headers",
    "json-schema-ref-no-deref",
    "json-schema-2020-12-preservation",
];
/// The checks in them.
const OLD_CHECKS: usize = 20;
const MODERN_CHECKS: usize = 64;

/// Runs scenarios one by one: the suite would run all at once, and judges by the clock.
async fn suite(command: &str, revision: &str, scenarios: &[&str]) -> (Verdicts, String) {
    let folder = TempDir::with_prefix("mcpg-conformance-").unwrap();
    let mut said = String::new();
    for scenario in scenarios {
        let mut suite = newest();
        suite.args(["client", "--command", command, "--scenario", scenario, "--spec-version", revision]);
        suite.arg("--output-dir").arg(folder.path());
        said.push_str(&ran(suite).await);
    }
    (read(folder.path(), ""), said)
}

/// The suite splits a command at its spaces.
fn command(script: &str, arg: Option<&Path>) -> String {
    let script = client_script(script);
    let words = [Some(npm("node")), Some(script), arg.map(Path::to_owned)];
    let words: Vec<_> = words.into_iter().flatten().map(|word| word.display().to_string()).collect();
    assert!(
        words.iter().all(|word| !word.contains(' ')),
        "the suite cannot start what lies in a folder with a space: {words:?}"
    );
    words.join(" ")
}

/// Runs a revision's scenarios both ways and compares.
async fn assert_same_of(revision: &str, scenarios: &[&str], checks: usize, known: &[Differs]) {
    // Scenarios measure how long a client waits.
    let _alone = alone().await;
    let (directly, _) = suite(&command("conformance.mjs", None), revision, scenarios).await;
    assert_all_passed(&directly, checks);
    let program = mcpg();
    let (through, said) =
        suite(&command("through.mjs", Some(program.get_program().as_ref())), revision, scenarios).await;
    eprintln!("{said}");
    assert_same(&through, &directly, known);
}

#[tokio::test]
#[ignore = "mended, and not yet run twice since: cargo test --test it -- --ignored the_gateway_is_the_client_of_2025_11_25_that_the_suite_wants"]
async fn the_gateway_is_the_client_of_2025_11_25_that_the_suite_wants() {
    assert_same_of(OLD, &OLD_SCENARIOS, OLD_CHECKS, OLD_CLIENT).await;
}

#[tokio::test]
#[ignore = "mended, and not yet run twice since: cargo test --test it -- --ignored the_gateway_is_the_client_of_2026_07_28_that_the_suite_wants"]
async fn the_gateway_is_the_client_of_2026_07_28_that_the_suite_wants() {
    assert_same_of(MODERN, &MODERN_SCENARIOS, MODERN_CHECKS, MODERN_CLIENT).await;
}
