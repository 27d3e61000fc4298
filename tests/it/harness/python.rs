//! What comes from Python, in the environment `.venv`: other readers of our tables, and OpenTelemetry's own SDK.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::run;

/// A command that runs a script of `tests/it/py`.
pub(crate) fn python_command(script: &str) -> Command {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let interpreter: PathBuf = root.join(".venv/bin/python");
    assert!(interpreter.exists(), "no Python environment .venv: run `make test` or tests/setup.sh");
    let mut command = Command::new(interpreter);
    command.arg(root.join("tests/it/py").join(script));
    command
}

/// Runs a script of `tests/it/py` and reads the JSON it prints.
pub(crate) async fn python(script: &str, args: &[&str]) -> Value {
    let mut command = python_command(script);
    command.args(args);
    let output = tokio::task::spawn_blocking(move || run(&mut command)).await.unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{script}: {complaint}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{script} printed no JSON: {e}: {complaint}"))
}
