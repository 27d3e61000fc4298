//! Faults of every kind that can be named, on the real program: what was acknowledged is counted once on every node,
//! ledgers stay sound, and no org is stopped that nothing is wrong with. Damage and tampering are reported exactly, and
//! never skipped.
//!
//! Each scenario asserts outcomes, never how long something takes. `MCPG_SOAK=1` makes the long ones as long as they
//! should be.

mod answers;
mod clocks;
mod floor;
mod full;
mod growth;
mod half_applied;
mod hang;
mod hiccups;
mod neighbours;
mod objects;
mod other_key;
mod outcome;
mod quiet;
mod restarts;
mod restores;
mod sleepers;
mod strays;
mod thief;
mod thief_ledger;

use std::sync::OnceLock;

use crate::harness::{mcpg, run};

/// Has the log trimmed as soon as it may be; see [`log_settings`].
fn trimmed_at_once() -> String {
    log_settings(None)
}

/// Settings of the log, one of a test's own among them: that it is trimmed as soon as it may be. How long more is kept
/// than must be is a setting once the program has one; today it is a small number of objects.
fn log_settings(own: Option<&str>) -> String {
    static HAS_KEEP: OnceLock<bool> = OnceLock::new();
    let keep = HAS_KEEP.get_or_init(|| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "log: { keep: 0s }").unwrap();
        run(mcpg().args(["config", "check"]).arg(file.path())).status.success()
    });
    let settings: Vec<_> = own.into_iter().chain(keep.then_some("keep: 0s")).collect();
    if settings.is_empty() { String::new() } else { format!("log: {{ {} }}", settings.join(", ")) }
}
