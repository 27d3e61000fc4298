//! What is expected of each cell: `ok`, but for those that an SDK or the specification makes impossible.

/// The most characters of an error that are shown: an SDK may print all it knows.
const TOLD: usize = 240;

/// The heading in `docs/gateway.md` under which the exceptions are named.
pub(super) const SECTION: &str = "\n### What no bridge can do\n";

/// What is expected of a cell.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Expected {
    /// All of it.
    Ok,
    /// The tool that works as a task answers, and no task is seen.
    WithoutATask,
    /// It cannot be had.
    Impossible,
}

impl Expected {
    /// Whether a client's verdict is as expected, or how it is not.
    pub(super) fn holds(self, verdict: &str) -> Result<(), String> {
        match (self, verdict) {
            (Self::Ok, "ok") | (Self::WithoutATask, "without a task") => Ok(()),
            (Self::Impossible, "ok" | "without a task") => {
                Err(format!("{verdict}, but {self:?}: it has begun to work"))
            }
            (Self::Impossible, _) => Ok(()),
            (expected, verdict) => {
                let told: String = verdict.chars().take(TOLD).collect();
                Err(format!("{told}, not {expected:?}"))
            }
        }
    }
}

/// Cells that cannot be had, or not as elsewhere.
#[derive(Debug)]
pub(super) struct Exception {
    /// The SDK, or `any`.
    sdk: &'static str,
    modes: &'static [&'static str],
    upstreams: &'static [&'static str],
    scenario: &'static str,
    expected: Expected,
    /// What the row of the page says of the client, the plugin and the feature.
    named: [&'static str; 3],
    /// What happens.
    happens: &'static str,
    /// The sentence of the specification, or the SDK and version that lacks it.
    why: &'static str,
}

/// All exceptions, in the order of the page.
pub(super) const EXCEPTIONS: &[Exception] = &[
    Exception {
        sdk: "any",
        modes: &["old"],
        upstreams: &["modern-http", "modern-stdio"],
        scenario: "task",
        expected: Expected::WithoutATask,
        named: ["up to 2025-11-25", "2026-07-28", "tasks"],
        happens: "the client sees no task: the gateway waits for it within the call",
        why: "2025-11-25, Tasks: receivers \"**MUST** transition the task to `cancelled` status before sending the response\" to `tasks/cancel`; \
              the extension of 2026-07-28: \"Eventual transition to `cancelled` is not guaranteed\". So tasks of the older kind cannot be promised for such \
              a plugin",
    },
    Exception {
        sdk: "any",
        modes: &["modern", "auto"],
        upstreams: &["old-http", "old-stdio"],
        scenario: "task",
        expected: Expected::WithoutATask,
        named: ["2026-07-28", "up to 2025-11-25", "tasks"],
        happens: "the client sees no task: the gateway waits for it within the call",
        why: "a task of 2025-11-25 is its session's, and a client of 2026-07-28 has none; whether a call becomes a task the extension leaves \
              to the server",
    },
    Exception {
        sdk: "Rust",
        modes: &["old"],
        upstreams: &["old-http", "old-stdio"],
        scenario: "task",
        expected: Expected::Impossible,
        named: ["the Rust SDK, up to 2025-11-25", "up to 2025-11-25", "tasks"],
        happens: "the plugin refuses the call: its tool can only run as a task",
        why: "rmcp 3.11.0 has the extension of 2026-07-28, and not the tasks of 2025-11-25",
    },
];

impl Exception {
    /// The row of the page.
    pub(super) fn row(&self) -> String {
        let [client, plugin, feature] = self.named;
        format!("| {client} | {plugin} | {feature} | {} | {} |", self.happens, self.why)
    }

    /// Whether a cell is among those that it is about.
    pub(super) fn covers(&self, sdk: &str, mode: &str, upstream: &str, scenario: &str) -> bool {
        let of_client = (self.sdk == "any" || self.sdk == sdk) && self.modes.contains(&mode);
        of_client && self.upstreams.contains(&upstream) && self.scenario == scenario
    }
}

/// What is expected of a cell.
pub(super) fn expected(sdk: &str, mode: &str, upstream: &str, scenario: &str) -> Expected {
    let exception = EXCEPTIONS.iter().find(|exception| exception.covers(sdk, mode, upstream, scenario));
    exception.map_or(Expected::Ok, |exception| exception.expected)
}
