//! The demo's agents: MCP clients that call tools through the gateway, at a steady rate.
//!
//! Each agent is a caller of its own, with its own token and its own habits, and keeps one session. Calls come at
//! random moments (a Poisson process), without regard to calls that wait for an answer; every answer, also a refusal,
//! is taken as it is. A gateway that is away is tried again with the next call.

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use rmcp::model::{CallToolRequestParams, ClientCapabilities, ClientConfig, Implementation};
use rmcp::service::{Peer, RunningService};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use rmcp::{RoleClient, ServiceExt};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::tools::Tool;

/// How many calls may wait for an answer at once; past it the agents wait too.
const UNDER_WAY: usize = 256;

/// How long a session may take to open, and calls under way to end when the demo stops.
const SESSION_TIMEOUT: Duration = Duration::from_secs(5);

/// The caller that has no token.
const ANONYMOUS: &str = "anonymous";

/// A caller, and how often it calls which tool, relative to all others.
#[derive(Debug, Clone, Copy)]
pub(super) struct Habits {
    /// The name that the gateway knows it by.
    pub(super) caller: &'static str,
    /// Plugin, tool, weight.
    pub(super) tools: &'static [(&'static str, &'static str, u32)],
}

/// All callers.
pub(super) const CALLERS: [Habits; 5] = [
    Habits {
        caller: "service:code-review-bot",
        tools: &[
            ("github", "list_repos", 14),
            ("github", "get_file", 18),
            ("github", "search_code", 8),
            ("github", "merge_pull_request", 4),
        ],
    },
    Habits {
        caller: "service:ci",
        tools: &[
            ("files", "read_file", 22),
            ("files", "list_directory", 12),
            ("files", "write_file", 5),
            ("github", "get_file", 6),
        ],
    },
    Habits {
        caller: "user:alice@acme",
        tools: &[
            ("github", "list_repos", 10),
            ("github", "create_issue", 4),
            ("github", "delete_repo", 2),
            ("jira", "search_issues", 6),
            ("jira", "get_issue", 6),
        ],
    },
    Habits {
        caller: "user:bob@acme",
        tools: &[
            ("jira", "search_issues", 6),
            ("jira", "get_issue", 9),
            ("jira", "export_report", 3),
            ("files", "write_file", 1),
        ],
    },
    Habits {
        caller: ANONYMOUS,
        tools: &[("github", "list_repos", 4), ("files", "read_file", 4), ("files", "write_file", 1)],
    },
];

/// A caller's token for the gateway.
#[derive(Clone)]
pub struct Credentials {
    /// The caller.
    pub caller: &'static str,
    /// Its token.
    pub token: String,
}

impl Credentials {
    /// A token for each caller that has one; the anonymous has none.
    pub fn for_all(mut new_token: impl FnMut() -> String) -> Vec<Self> {
        let known = CALLERS.iter().map(|habits| habits.caller).filter(|caller| *caller != ANONYMOUS);
        known.map(|caller| Self { caller, token: new_token() }).collect()
    }
}

/// Calls tools through the gateway at `url`, `rate` a second of all agents together, until `stop`.
pub async fn call_tools(url: &str, credentials: &[Credentials], rate: f64, seed: u64, stop: CancellationToken) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut agents: Vec<Agent> = CALLERS.iter().map(|habits| Agent::new(habits, url, credentials)).collect();
    let mut calls = JoinSet::new();
    loop {
        let pause = Duration::from_secs_f64(-(1.0 - rng.random::<f64>()).ln() / rate);
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            () = sleep(pause) => {}
        }
        let Some((agent, tool)) = draw(&mut rng) else { continue };
        let arguments = tool.arguments(&mut rng);
        while calls.try_join_next().is_some() {}
        if calls.len() >= UNDER_WAY {
            calls.join_next().await;
        }
        let Some(agent) = agents.get_mut(agent) else { continue };
        let session = tokio::select! {
            () = stop.cancelled() => break,
            session = agent.session() => session,
        };
        let Some(peer) = session else { continue };
        let request = CallToolRequestParams::new(format!("{}__{}", tool.plugin, tool.name)).with_arguments(arguments);
        calls.spawn(async move {
            // The answer is ignored: the gateway reports the call, which is what the demo shows.
            let _ = peer.call_tool(request).await;
        });
    }
    // What takes longer than this is cut off.
    let _ = timeout(SESSION_TIMEOUT, async { while calls.join_next().await.is_some() {} }).await;
    for agent in agents {
        agent.leave().await;
    }
}

/// An agent, by its place in [`CALLERS`], and the tool it calls next.
fn draw(rng: &mut SmallRng) -> Option<(usize, &'static Tool)> {
    let all =
        || CALLERS.iter().enumerate().flat_map(|(agent, habits)| habits.tools.iter().map(move |tool| (agent, tool)));
    let total: u32 = all().map(|(_, (_, _, weight))| weight).sum();
    let mut drawn = rng.random_range(0..total);
    for (agent, (plugin, name, weight)) in all() {
        if drawn < *weight {
            return Some((agent, Tool::find(plugin, name)?));
        }
        drawn -= weight;
    }
    None
}

/// One agent and its session.
struct Agent {
    transport: StreamableHttpClientTransportConfig,
    name: &'static str,
    session: Option<RunningService<RoleClient, Arc<ClientConfig>>>,
}

impl Agent {
    fn new(habits: &Habits, url: &str, credentials: &[Credentials]) -> Self {
        let mut transport = StreamableHttpClientTransportConfig::with_uri(url);
        if let Some(known) = credentials.iter().find(|known| known.caller == habits.caller) {
            transport = transport.auth_header(known.token.clone());
        }
        Self { transport, name: habits.caller, session: None }
    }

    /// Its session, opened if needed; `None` while the gateway does not answer.
    async fn session(&mut self) -> Option<Peer<RoleClient>> {
        if self.session.as_ref().is_none_or(RunningService::is_closed) {
            let who = Implementation::new(self.name, env!("CARGO_PKG_VERSION"));
            let client = Arc::new(ClientConfig::new(ClientCapabilities::default(), who));
            let transport = StreamableHttpClientTransport::from_config(self.transport.clone());
            self.session = timeout(SESSION_TIMEOUT, client.serve(transport)).await.ok()?.ok();
        }
        self.session.as_ref().map(|session| session.peer().clone())
    }

    async fn leave(self) {
        if let Some(session) = self.session {
            // The gateway ends sessions that are left without a word.
            let _ = session.cancel().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::super::tools::TOOLS;
    use super::{CALLERS, Tool, draw};

    #[test]
    fn agents_know_only_tools_that_there_are_and_together_use_all() {
        let used: BTreeSet<_> =
            CALLERS.iter().flat_map(|habits| habits.tools).map(|(plugin, name, _)| (*plugin, *name)).collect();
        assert!(used.iter().all(|(plugin, name)| Tool::find(plugin, name).is_some()));
        assert_eq!(used.len(), TOOLS.len());
    }

    #[test]
    fn calls_are_drawn_by_their_weights() {
        let mut rng = SmallRng::seed_from_u64(1);
        let weights: u32 = CALLERS.iter().flat_map(|habits| habits.tools).map(|(_, _, weight)| weight).sum();
        let denied = (0..weights * 100).filter(|_| draw(&mut rng).unwrap().1.name == "delete_repo").count();
        assert!((140..=260).contains(&denied), "{denied} where 200 are due");
    }
}
