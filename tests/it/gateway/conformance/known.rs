//! Checks that come to something else through the gateway than directly, each with its reason. None of them is
//! `SUCCESS` directly and less through it, unless it is among what the gateway does not serve yet: such an entry fails
//! its test as soon as the gateway serves it.

/// A check that differs.
#[derive(Debug)]
pub(super) struct Differs {
    /// `scenario/check`.
    pub(super) check: &'static str,
    pub(super) directly: &'static str,
    /// What it may come to; more than one where that is a matter of how soon the upstream answers.
    pub(super) through: &'static [&'static str],
    /// Why it does.
    #[expect(dead_code, reason = "read by people")]
    pub(super) why: &'static str,
}

/// Servers of 2025-11-25 and before.
pub(super) const OLD_SERVER: &[Differs] = &[
    Differs {
        check: "server-sse-multiple-streams/server-sse-streams-functional",
        directly: "SUCCESS",
        through: &["absent", "SUCCESS"],
        why: "answers that are whole at once are JSON, as the transport allows, and the suite then has no streams to \
          count; what takes longer is a stream",
    },
    Differs {
        check: "server-sse-polling/server-sse-disconnect-resume",
        directly: "SUCCESS",
        through: &["absent"],
        why: "the fixture closes the stream it is asked on; the gateway takes the answer from the next one and keeps its client's open, so that there is nothing \
          to resume, and the suite only says so",
    },
];

/// Servers of 2026-07-28.
pub(super) const MODERN_SERVER: &[Differs] = &[];

/// Clients of 2025-11-25.
pub(super) const OLD_CLIENT: &[Differs] = &[];

/// Clients of 2026-07-28.
pub(super) const MODERN_CLIENT: &[Differs] = &[
    Differs {
        check: "http-standard-headers/sep-2243-client-includes-standard-headers#10",
        directly: "SKIPPED",
        through: &["SUCCESS"],
        why: "the gateway reads a server's templates of resources by itself, which the client does not ask for: one more method is \
          seen",
    },
    Differs {
        check: "http-standard-headers/sep-2243-client-includes-standard-headers#12",
        directly: "absent",
        through: &["SKIPPED"],
        why: "and those that are seen by nobody come after it",
    },
];
