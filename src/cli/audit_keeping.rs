//! `mcpg audit prune`, `hold` and `release`: how long a ledger is kept, asked of a control plane as its operator.

use clap::Args;
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use url::Url;

use super::{CliError, http, output};
use crate::config::Secret;
use crate::model::OrgName;

/// Whom to ask, and about which ledger.
#[derive(Debug, Args)]
struct Asked {
    /// The control plane.
    #[arg(long, env = "MCPG_URL", value_name = "URL", default_value = "http://127.0.0.1:7843")]
    url: Url,
    /// The org whose ledger it is.
    #[arg(long, env = "MCPG_ORG")]
    org: OrgName,
    /// The API token, with the role `operator`.
    #[arg(long, env = "MCPG_TOKEN", hide_env_values = true, value_parser = http::secret)]
    token: Option<Secret>,
}

#[derive(Debug, Args)]
pub(super) struct PruneArgs {
    #[command(flatten)]
    asked: Asked,
    /// Only say what would be removed.
    #[arg(long)]
    dry_run: bool,
    /// Print the answer as one line of JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct HoldArgs {
    #[command(flatten)]
    asked: Asked,
    /// Why: it stands in the ledger.
    #[arg(long)]
    reason: String,
}

/// What a prune answers, as far as it is printed.
#[derive(Debug, Deserialize)]
struct Pruned {
    rule: String,
    hold: Option<u64>,
    first_kept: u64,
    entries: u64,
    segments: Vec<Segment>,
}

#[derive(Debug, Deserialize)]
struct Segment {
    name: String,
    bytes: u64,
}

/// Removes old entries, or says which would go.
pub(super) async fn prune(args: PruneArgs) -> Result<(), CliError> {
    let query = args.dry_run.then_some("dry_run=true");
    let answer = ask(&args.asked, "prune", query, None).await?;
    if args.json {
        return output::line(&answer.to_string());
    }
    let pruned: Pruned = serde_json::from_value(answer).map_err(not_understood)?;
    for segment in &pruned.segments {
        output::line(&format!("{}  {} bytes", segment.name, segment.bytes))?;
    }
    output::line(&told(&args.asked.org, &pruned, args.dry_run))
}

fn told(org: &OrgName, pruned: &Pruned, dry_run: bool) -> String {
    let Pruned { rule, hold, first_kept, entries, .. } = pruned;
    match (hold, entries) {
        (Some(hold), _) => format!("the ledger of org {org} is on hold since entry {hold}: nothing is removed"),
        (None, 0) => format!("nothing in the ledger of org {org} is older than it is kept: {rule}"),
        (None, entries) => {
            let verb = if dry_run { "would be removed" } else { "are removed" };
            format!("{entries} entries {verb}, kept from entry {first_kept} on: {rule}")
        }
    }
}

/// Puts a ledger on hold.
pub(super) async fn hold(args: HoldArgs) -> Result<(), CliError> {
    let answer = ask(&args.asked, "hold", None, Some(json!({ "reason": args.reason }))).await?;
    let entry = answer.get("hold").and_then(Value::as_u64).ok_or_else(|| not_understood("no hold is in force"))?;
    output::line(&format!("the ledger of org {} is on hold since entry {entry}", args.asked.org))
}

/// Ends the hold of a ledger.
pub(super) async fn release(args: HoldArgs) -> Result<(), CliError> {
    ask(&args.asked, "release", None, Some(json!({ "reason": args.reason }))).await?;
    output::line(&format!("the ledger of org {} is not on hold", args.asked.org))
}

async fn ask(asked: &Asked, what: &str, query: Option<&str>, body: Option<Value>) -> Result<Value, CliError> {
    let mut url = http::path(&asked.url, &["v1", "orgs", asked.org.as_str(), "audit", what])?;
    url.set_query(query);
    let mut request = http::client(&asked.url)?.request(Method::POST, url);
    if let Some(token) = &asked.token {
        request = request.bearer_auth(token.expose());
    }
    if let Some(body) = body {
        request = request.json(&body);
    }
    let response = request.send().await.map_err(|error| http::not_reached(&asked.url, &error))?;
    let status = response.status();
    let text = response.text().await.map_err(|error| http::not_reached(&asked.url, &error))?;
    if status.is_success() {
        return serde_json::from_str(&text).map_err(not_understood);
    }
    let problem = serde_json::from_str::<Value>(&text).ok();
    let detail = problem.as_ref().and_then(|problem| problem.get("detail")?.as_str()).unwrap_or_else(|| text.trim());
    if status.is_client_error() {
        return Err(CliError::No(format!("refused: {detail}")));
    }
    Err(CliError::CouldNot(format!("{status}: {detail}")))
}

fn not_understood(why: impl std::fmt::Display) -> CliError {
    CliError::could_not("the answer is none of a control plane's", why)
}

#[cfg(test)]
mod tests {
    use super::{Pruned, told};

    fn pruned(hold: Option<u64>, entries: u64) -> Pruned {
        Pruned { rule: "30d (tier community)".to_owned(), hold, first_kept: 7, entries, segments: Vec::new() }
    }

    #[test]
    fn it_says_whether_entries_go_would_go_or_may_not() {
        let told = |pruned, dry_run| told(&"acme".parse().unwrap(), &pruned, dry_run);
        assert!(told(pruned(None, 7), true).starts_with("7 entries would be removed, kept from entry 7 on"));
        assert!(told(pruned(None, 7), false).starts_with("7 entries are removed"));
        assert!(told(pruned(None, 0), false).starts_with("nothing"));
        assert!(told(pruned(Some(3), 0), false).contains("on hold since entry 3"));
    }
}
