//! The tools of the demo's MCP servers: a dozen, of three plugins, and how each behaves.
//!
//! Latencies are lognormal, and one call in a hundred falls into a Pareto tail (α = 1.5), so that p99 is many times
//! p50, as with real tools. Some fail now and then; what policy says of them is in `policy.cedar`, not here.

use rand::RngExt;
use rand::rngs::SmallRng;
use serde_json::{Value, json};

/// Share of calls in the tail, the tail's exponent, and the longest that a call takes, ms.
const TAIL_SHARE: f64 = 0.01;
const TAIL_ALPHA: f64 = 1.5;
const LONGEST_MS: f64 = 20_000.0;

/// The plugins, by name.
pub(super) const PLUGINS: [&str; 3] = ["github", "jira", "files"];

/// One tool and its habits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tool {
    /// The plugin that has it.
    pub(super) plugin: &'static str,
    /// Its name.
    pub(super) name: &'static str,
    /// What it says of itself.
    pub(super) description: &'static str,
    /// What it must be given: a text each.
    pub(super) parameters: &'static [&'static str],
    /// Median latency, ms.
    median_ms: f64,
    /// Spread of the latency: standard deviation of its logarithm.
    sigma: f64,
    /// How it fails, and how often.
    fault: Option<(Fault, f64)>,
}

/// How a tool fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// It says so itself.
    Refuses,
    /// Its server has a fault.
    Breaks,
}

/// All tools.
pub(super) const TOOLS: [Tool; 12] = [
    Tool {
        plugin: "github",
        name: "list_repos",
        description: "Lists the repositories of an owner.",
        parameters: &["owner"],
        median_ms: 84.0,
        sigma: 0.55,
        fault: None,
    },
    Tool {
        plugin: "github",
        name: "get_file",
        description: "Reads a file of a repository.",
        parameters: &["repo", "path"],
        median_ms: 62.0,
        sigma: 0.50,
        fault: Some((Fault::Refuses, 0.02)),
    },
    Tool {
        plugin: "github",
        name: "search_code",
        description: "Searches the code of all repositories.",
        parameters: &["query"],
        median_ms: 310.0,
        sigma: 0.70,
        fault: Some((Fault::Breaks, 0.03)),
    },
    Tool {
        plugin: "github",
        name: "create_issue",
        description: "Opens an issue.",
        parameters: &["repo", "title", "body"],
        median_ms: 290.0,
        sigma: 0.45,
        fault: None,
    },
    Tool {
        plugin: "github",
        name: "merge_pull_request",
        description: "Merges a pull request whose checks are green.",
        parameters: &["repo", "number"],
        median_ms: 480.0,
        sigma: 0.50,
        fault: Some((Fault::Refuses, 0.25)),
    },
    Tool {
        plugin: "github",
        name: "delete_repo",
        description: "Deletes a repository for good.",
        parameters: &["repo"],
        median_ms: 500.0,
        sigma: 0.40,
        fault: None,
    },
    Tool {
        plugin: "jira",
        name: "search_issues",
        description: "Searches issues.",
        parameters: &["query"],
        median_ms: 240.0,
        sigma: 0.65,
        fault: None,
    },
    Tool {
        plugin: "jira",
        name: "get_issue",
        description: "Reads an issue, with who reported it.",
        parameters: &["key"],
        median_ms: 95.0,
        sigma: 0.45,
        fault: None,
    },
    Tool {
        plugin: "jira",
        name: "export_report",
        description: "Exports a project's report; that takes its time.",
        parameters: &["project"],
        median_ms: 1_400.0,
        sigma: 0.40,
        fault: None,
    },
    Tool {
        plugin: "files",
        name: "read_file",
        description: "Reads a file.",
        parameters: &["path"],
        median_ms: 2.1,
        sigma: 0.70,
        fault: Some((Fault::Refuses, 0.01)),
    },
    Tool {
        plugin: "files",
        name: "list_directory",
        description: "Lists a folder.",
        parameters: &["path"],
        median_ms: 1.2,
        sigma: 0.50,
        fault: None,
    },
    Tool {
        plugin: "files",
        name: "write_file",
        description: "Writes a file.",
        parameters: &["path", "content"],
        median_ms: 3.4,
        sigma: 0.60,
        fault: None,
    },
];

impl Tool {
    /// The tool of this name, if the plugin has it.
    pub(super) fn find(plugin: &str, name: &str) -> Option<&'static Self> {
        TOOLS.iter().find(|tool| (tool.plugin, tool.name) == (plugin, name))
    }

    /// How long a call takes, ms.
    pub(super) fn latency_ms(&self, rng: &mut SmallRng) -> f64 {
        let mut latency = self.median_ms * (self.sigma * normal(rng)).exp();
        if rng.random::<f64>() < TAIL_SHARE {
            latency *= 4.0 * (1.0 - rng.random::<f64>()).powf(-1.0 / TAIL_ALPHA);
        }
        latency.min(LONGEST_MS)
    }

    /// Whether and how a call fails.
    pub(super) fn fault(&self, rng: &mut SmallRng) -> Option<Fault> {
        let (fault, share) = self.fault?;
        (rng.random::<f64>() < share).then_some(fault)
    }

    /// What a call answers.
    pub(super) fn answer(&self, rng: &mut SmallRng) -> Value {
        match self.name {
            "list_repos" => json!({ "repos": REPOS }),
            "search_code" => {
                json!({ "matches": REPOS.map(|repo| json!({ "repo": repo, "path": "src/main.rs", "line": 42 })) })
            }
            "create_issue" => json!({ "number": rng.random_range(100..10_000) }),
            "merge_pull_request" => json!({ "merged": true }),
            "delete_repo" => json!({ "deleted": true }),
            "search_issues" => json!({ "keys": ["OPS-17", "OPS-212", "WEB-9"] }),
            "get_issue" => json!({
                "key": "OPS-17",
                "summary": "The nightly export is late",
                "reporter": { "name": "Dana", "email": "dana@acme.example" },
            }),
            "export_report" => json!({ "rows": rng.random_range(50..5_000) }),
            "list_directory" => json!({ "entries": ["Cargo.toml", "README.md", "src"] }),
            "write_file" => json!({ "written": true }),
            // Files: mostly a few kilobytes, a few of them large.
            _ => {
                let bytes = (3_000.0 * (1.3 * normal(rng)).exp()).min(400_000.0) as usize;
                json!({ "content": "fn main() {}\n".repeat(bytes / 13 + 1) })
            }
        }
    }

    /// What an agent might give it.
    pub(super) fn arguments(&self, rng: &mut SmallRng) -> serde_json::Map<String, Value> {
        let repo = REPOS.get(rng.random_range(0..REPOS.len())).copied().unwrap_or_default();
        let value = |parameter: &str| match parameter {
            "owner" => "acme",
            "repo" => repo,
            "path" => "src/main.rs",
            "query" => "export",
            "key" => "OPS-17",
            "project" => "OPS",
            "number" => "7",
            "title" => "The nightly export is late",
            _ => "It was due at six.",
        };
        self.parameters.iter().map(|parameter| ((*parameter).to_owned(), Value::from(value(parameter)))).collect()
    }
}

const REPOS: [&str; 5] = ["acme/web", "acme/api", "acme/infra", "acme/mobile", "acme/docs"];

/// A number of the standard normal distribution (Box and Muller's way).
fn normal(rng: &mut SmallRng) -> f64 {
    let (radius, angle) = (1.0 - rng.random::<f64>(), rng.random::<f64>());
    (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::{LONGEST_MS, PLUGINS, TOOLS, Tool};

    #[test]
    fn every_tool_is_one_of_a_known_plugin_under_a_name_of_its_own() {
        let mut names: Vec<_> = TOOLS.iter().map(|tool| (tool.plugin, tool.name)).collect();
        assert!(names.iter().all(|(plugin, _)| PLUGINS.contains(plugin)));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), TOOLS.len());
    }

    #[test]
    fn latencies_have_a_heavy_tail_with_an_end() {
        let mut rng = SmallRng::seed_from_u64(1);
        let tool = Tool::find("github", "list_repos").unwrap();
        let mut latencies: Vec<f64> = (0..20_000).map(|_| tool.latency_ms(&mut rng)).collect();
        latencies.sort_unstable_by(f64::total_cmp);
        let at = |q: f64| latencies[(q * latencies.len() as f64) as usize];
        assert!((70.0..100.0).contains(&at(0.5)), "median {}", at(0.5));
        assert!(at(0.99) > 3.0 * at(0.5) && at(0.9999) > 20.0 * at(0.5), "p99 {}, p99.99 {}", at(0.99), at(0.9999));
        assert!(*latencies.last().unwrap() <= LONGEST_MS);
    }

    #[test]
    fn a_call_is_given_all_that_its_tool_asks_for() {
        let mut rng = SmallRng::seed_from_u64(1);
        for tool in &TOOLS {
            let arguments = tool.arguments(&mut rng);
            assert!(tool.parameters.iter().all(|parameter| arguments.contains_key(*parameter)), "{}", tool.name);
        }
    }
}
