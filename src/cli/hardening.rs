//! What neither program allows: core dumps, which would hold keys and payloads, and other processes that read its
//! memory.

use rlimit::Resource;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

/// Forbids core dumps and ptrace to this process. Where the system does not let it, the log says so.
pub(super) fn harden() {
    // Not dumpable: no core, and only root may attach to it or read /proc/<pid>/mem.
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "other processes of this user may read this one's memory");
    }
    if let Err(error) = Resource::CORE.set(0, 0) {
        tracing::warn!(%error, "core dumps could not be forbidden");
    }
}
