//! `deploy/prometheus` and `deploy/grafana`: each rule is seen to fire and to stay silent by Prometheus' own tester,
//! every metric, label and value that a rule or a dashboard names is in a real scrape, dashboards are read by Grafana's
//! own models, and a real Prometheus and Alertmanager fire an alert whose link has the filters of what fired.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use mcpg::model::Outcome;
use regex::Regex;
use serde_json::{Value, json};

use crate::harness::{
    Alertmanager, Client, Config, GatewayConfig, Prometheus, Sample, Upstream, eventually, ndjson, newest, python,
    run_with_input, tool, yaml,
};

const RULES: [&str; 3] = ["mcpg-fleet.rules.yml", "mcpg-control-plane.rules.yml", "mcpg-gateway.rules.yml"];
const TESTS: [&str; 3] = ["mcpg-fleet.test.yml", "mcpg-control-plane.test.yml", "mcpg-gateway.test.yml"];
const DASHBOARDS: [&str; 3] = ["mcpg-tool-activity.json", "mcpg-status.json", "mcpg-gateways.json"];

/// How long Prometheus may take to see something: several scrapes, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn prometheus(file: &str) -> PathBuf {
    root().join("deploy/prometheus").join(file)
}

fn text(file: &Path) -> String {
    std::fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

fn document(file: &Path) -> Value {
    yaml(&file.display().to_string(), &text(file)).remove(0)
}

fn strings<'a>(value: &'a Value, member: &str) -> &'a str {
    value[member].as_str().unwrap_or_else(|| panic!("no {member}: {value}"))
}

/// Every alert of every file of rules.
fn alerts() -> Vec<Value> {
    let groups = RULES.iter().flat_map(|file| document(&prometheus(file))["groups"].as_array().unwrap().clone());
    groups.flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
}

#[track_caller]
fn succeeds(program: &Path, arguments: &[&str]) {
    let folder = root().join("deploy/prometheus/tests");
    let output = run_with_input(Command::new(program).args(arguments).current_dir(folder), b"");
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&said));
}

#[test]
fn every_rule_passes_prometheus_own_checks_and_tests() {
    for (rules, tests) in RULES.iter().zip(TESTS) {
        let rules = prometheus(rules).display().to_string();
        for promtool in [tool("promtool"), newest("promtool")] {
            succeeds(&promtool, &["check", "rules", &rules]);
        }
        // Debian 12's promtool knows no native histograms.
        succeeds(&newest("promtool"), &["test", "rules", tests]);
    }
}

#[test]
fn every_rule_is_seen_to_fire_and_to_stay_silent() {
    let (mut fires, mut silent) = (BTreeSet::new(), BTreeSet::new());
    for file in TESTS {
        for test in document(&prometheus("tests").join(file))["tests"].as_array().unwrap() {
            for case in test["alert_rule_test"].as_array().unwrap() {
                let name = strings(case, "alertname").to_owned();
                let expected = case["exp_alerts"].as_array().unwrap();
                if expected.is_empty() {
                    silent.insert(name)
                } else {
                    fires.insert(name)
                };
            }
        }
    }
    for alert in alerts() {
        let name = strings(&alert, "alert");
        assert!(fires.contains(name), "no test has {name} fire");
        assert!(silent.contains(name), "no test has {name} stay silent");
    }
}

/// The anchor that a heading gets.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase();
    kept.chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

#[test]
fn every_alert_says_how_bad_it_is_links_into_the_dashboard_and_its_runbook_is_there() {
    for alert in alerts() {
        let name = strings(&alert, "alert");
        let severity = strings(&alert["labels"], "severity");
        assert!(["critical", "warning", "info"].contains(&severity), "{name}: {severity}");
        let link = strings(&alert["annotations"], "link");
        let path = link.strip_prefix("{{ $externalLabels.public_url }}").unwrap_or_else(|| panic!("{name}: {link}"));
        let page = path.split('?').next().unwrap();
        assert!(["/", "/lag", "/ledger", "/status"].contains(&page), "{name}: {link}");
        if let Some(runbook) = alert["annotations"]["runbook"].as_str() {
            let (file, section) = runbook.split_once('#').unwrap_or((runbook, ""));
            let page = text(&root().join(file));
            let headings = page
                .lines()
                .filter(|line| line.starts_with('#'))
                .map(|line| anchor(line.trim_start_matches(['#', ' '])));
            assert!(
                section.is_empty() || headings.into_iter().any(|found| found == section),
                "{name}: there is no {runbook}"
            );
        }
    }
}

/// One expression of a rule or a panel, with where it stands.
#[derive(Debug)]
struct Expression {
    place: String,
    text: String,
}

/// Every expression of rules and dashboards.
fn expressions() -> Vec<Expression> {
    let rules = alerts().into_iter().map(|alert| Expression {
        place: strings(&alert, "alert").to_owned(),
        text: strings(&alert, "expr").to_owned(),
    });
    let mut all: Vec<_> = rules.collect();
    for file in DASHBOARDS {
        let board: Value = serde_json::from_str(&text(&root().join("deploy/grafana").join(file))).unwrap();
        for panel in board["panels"].as_array().unwrap() {
            let place = format!("{file}: {}", strings(panel, "title"));
            for target in panel["targets"].as_array().into_iter().flatten() {
                all.push(Expression { place: place.clone(), text: strings(target, "expr").to_owned() });
            }
        }
        for variable in board["templating"]["list"].as_array().unwrap() {
            if let Some(query) = variable["query"]["query"].as_str() {
                all.push(Expression {
                    place: format!("{file}: {}", strings(variable, "name")),
                    text: query.to_owned(),
                });
            }
        }
    }
    assert!(all.len() > 100, "only {} expressions were found", all.len());
    all
}

/// For each metric of a scrape, the values of each of its labels.
type Scrape = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

/// A scrape as Prometheus keeps it: with its job and instance, and with what it adds itself.
fn scrape(page: &str, job: &str, into: &mut BTreeMap<String, Scrape>) {
    let scrape = into.entry(job.to_owned()).or_default();
    let label = Regex::new(r#"([a-z_]+)="((?:[^"\\]|\\.)*)""#).unwrap();
    for line in page.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).chain(["up 1"]) {
        let name = line.split(['{', ' ']).next().unwrap();
        let mut names = vec![name.to_owned()];
        // By its own name a histogram is there where native ones are scraped.
        names.extend(name.strip_suffix("_bucket").map(str::to_owned));
        for name in names {
            let labels = scrape.entry(name.clone()).or_default();
            labels.entry("job".to_owned()).or_default().insert(job.to_owned());
            labels.entry("instance".to_owned()).or_default();
            for found in label.captures_iter(line) {
                labels.entry(found[1].to_owned()).or_default().insert(found[2].to_owned());
            }
        }
    }
}

/// What a control plane and a gateway before a real MCP server serve once a tool was called and another was denied: by
/// job, the page.
pub(crate) async fn pages() -> [(&'static str, String); 3] {
    let upstream = Upstream::fixture().await;
    let token = "0123456789abcdef0123456789abcdef";
    let hash = hash_of(token);
    let server = Config::new()
        .with(&format!("tokens: [{{ name: all, hash: {hash}, org: default, roles: [ingest, read, operator] }}]"))
        // So few that the alert names their callers too.
        .with("limits: { series: 1 }")
        .token(token)
        .start()
        .await;
    let policy = r#"permit(principal, action, resource);
forbid(principal, action, resource == Tool::"fixture/count");"#;
    let collector = json!({ "otlp": { "endpoint": "http://127.0.0.1:9" } });
    let gateway = GatewayConfig::new()
        .http("fixture", &upstream.url())
        .control_plane(&server)
        .with(json!({ "control_plane": { "token": token }, "observability": collector }))
        .policy(policy)
        .start()
        .await;
    let mcp = gateway.plugin_client("fixture").await;
    mcp.call("echo", json!({ "message": "hi" })).await;
    mcp.call("count", json!({ "text": "abc" })).await;
    let client = server.client();
    let fleet = eventually("both of the gateway's samples in the fleet's metrics", PATIENCE, async || {
        let page = client.get("metrics").await.ok().text();
        // The call and the denial may come one after the other: only with both is a series past the cap.
        let families = ["mcpg_tool_calls_total", "mcpg_tool_latency_ms", "mcpg_metrics_series_overflowed_by_plugin"];
        families.iter().all(|family| page.contains(&format!("{family}{{"))).then_some(page)
    })
    .await;
    let own = Client::new(&format!("http://{}", gateway.metrics_authority()));
    let (control_plane, gateway) = (client.get("/metrics").await.ok().text(), own.get("/metrics").await.ok().text());
    [("mcpg-fleet", fleet), ("mcpg-control-plane", control_plane), ("mcpg-gateway", gateway)]
}

fn hash_of(token: &str) -> String {
    let mut command = crate::harness::mcpg();
    let output = run_with_input(command.args(["token", "hash"]), token.as_bytes());
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_label_and_value_of_a_rule_or_dashboard_is_in_a_real_scrape() {
    let mut scrapes = BTreeMap::new();
    pages().await.iter().for_each(|(job, page)| scrape(page, job, &mut scrapes));
    let selector = Regex::new(r"\b((?:mcpg|process)_[a-z_0-9]+|up)\{([^}]*)\}").unwrap();
    let bare = Regex::new(r"\b(?:mcpg|process)_[a-z_0-9]+\b(?:[^{a-z_0-9]|$)").unwrap();
    let matcher = Regex::new(r#"([a-z_]+)\s*(=~|=|!=)\s*"([^"]*)""#).unwrap();
    let grouping = Regex::new(r"\b(?:by|on)\s*\(([^)]*)\)").unwrap();
    for Expression { place, text } in expressions() {
        assert!(!bare.is_match(&text), "{place}: a metric without its job: {text}");
        let mut labels = BTreeSet::from(["le".to_owned()]);
        let mut metrics = 0;
        for found in selector.captures_iter(&text) {
            metrics += 1;
            let name = &found[1];
            let matchers: Vec<_> = matcher.captures_iter(&found[2]).collect();
            let job =
                matchers.iter().find(|one| &one[1] == "job").unwrap_or_else(|| panic!("{place}: {name} names no job"));
            let scrape = scrapes.get(&job[3]).unwrap_or_else(|| panic!("{place}: no job {}", &job[3]));
            let known = scrape.get(name).unwrap_or_else(|| panic!("{place}: {} has no {name}", &job[3]));
            labels.extend(known.keys().cloned());
            for one in matchers {
                let (label, value) = (&one[1], &one[3]);
                let values = known.get(label).unwrap_or_else(|| panic!("{place}: {name} has no label {label}"));
                if label == "job" || value.contains(['$', '.', '*']) {
                    continue;
                }
                for value in value.split('|') {
                    assert!(
                        values.contains(value),
                        "{place}: no {name} with {label}=\"{value}\" from the start: {values:?}"
                    );
                }
            }
        }
        assert!(metrics > 0, "{place}: no metric: {text}");
        // `label_replace` makes one label of another.
        if text.contains("label_replace") {
            labels.insert("code".to_owned());
        }
        for found in grouping.captures_iter(&text) {
            for label in found[1].split(',').map(str::trim) {
                assert!(labels.contains(label), "{place}: nothing has the label {label}: {text}");
            }
        }
    }
}

#[tokio::test]
async fn grafanas_own_models_know_all_that_is_in_the_dashboards() {
    let files: Vec<_> =
        DASHBOARDS.iter().map(|file| root().join("deploy/grafana").join(file).display().to_string()).collect();
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    let unknown = python("grafana_schema.py", &files).await;
    for file in DASHBOARDS {
        assert_eq!(unknown[file], json!([]), "{file}");
    }
    let mut uids = BTreeSet::new();
    for file in DASHBOARDS {
        let board: Value = serde_json::from_str(&text(&root().join("deploy/grafana").join(file))).unwrap();
        assert!(uids.insert(strings(&board, "uid").to_owned()), "{file}: a uid of its own");
        let ids: BTreeSet<_> =
            board["panels"].as_array().unwrap().iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
        assert_eq!(ids.len(), board["panels"].as_array().unwrap().len(), "{file}: ids of panels");
    }
}

/// The shipped configuration with its targets replaced, and its times so short that a test sees the end of them.
fn shipped(server: &str, gateway: &str, alertmanager: &str) -> String {
    let config = text(&prometheus("prometheus.yml"));
    let replaced = [
        ("mcpg.example.com:7843", server),
        ("mcpg-0.example.com:7843", server),
        ("gw-1.example.com:9090", gateway),
        ("alertmanager.example.com:9093", alertmanager),
        ("_interval: 30s", "_interval: 1s"),
        ("    authorization: { credentials_file: mcpg.token }\n", ""),
    ];
    replaced.iter().fold(config, |config, (from, to)| {
        assert!(config.contains(from), "{from} is not in prometheus.yml");
        config.replace(from, to)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_prometheus_and_alertmanager_fire_the_customers_alert_and_its_link_has_the_filters() {
    let server = Config::new().start().await;
    let gateway =
        GatewayConfig::new().stdio("fixture", &crate::harness::fixture_command()).control_plane(&server).start().await;
    let alertmanager = Alertmanager::start().await;
    let rules: Vec<_> = RULES
        .iter()
        .map(|file| {
            (
                *file,
                text(&prometheus(file))
                    .replace("[5m]", "[20s]")
                    .replace("for: 5m", "for: 2s")
                    .replace("for: 2m", "for: 2s"),
            )
        })
        .collect();
    let files: Vec<_> = rules.iter().map(|(name, text)| (*name, text.as_str())).collect();
    let config = shipped(&server.authority(), &gateway.metrics_authority(), &alertmanager.authority());
    let prometheus = Prometheus::start_newest(&config, &files, &[]).await;
    let client = server.client();
    let notified = eventually("Alertmanager's notification", PATIENCE, async || {
        let fails = |n: u32| if n.is_multiple_of(2) { Outcome::ServerError } else { Outcome::Ok };
        let mut samples: Vec<_> =
            (0..10).map(|n| Sample::new("github", "search & code", 20.0).outcome(fails(n))).collect();
        samples.extend((0..10).map(|_| Sample::new("github", "list_repos", 20.0)));
        client.post(ndjson(&samples), None).await;
        alertmanager.notified("MCPGToolErrorRate").pop()
    })
    .await;
    assert_eq!(notified["status"], "firing");
    assert_eq!(notified["labels"]["tool"], "search & code");
    assert_eq!(notified["annotations"]["summary"], "High error rate on github.search & code");
    let link = url::Url::parse(strings(&notified["annotations"], "link")).unwrap();
    assert_eq!((link.host_str(), link.path()), (Some("mcpg.example.com"), "/"));
    let filters: BTreeMap<_, _> = link.query_pairs().into_owned().collect();
    for (name, value) in [
        ("org", "default"),
        ("plugin", "github"),
        ("tool", "search & code"),
        ("outcome", "client_error,server_error,timeout"),
    ] {
        assert_eq!(filters.get(name).map(String::as_str), Some(value), "{link}");
    }
    let time = |name: &str| {
        chrono::DateTime::parse_from_rfc3339(&filters[name]).unwrap_or_else(|e| panic!("{name}: {e}: {link}"))
    };
    assert_eq!((time("to") - time("from")).num_minutes(), 30);
    for alert in alertmanager.notified("MCPGToolErrorRate") {
        assert_eq!(alert["labels"]["tool"], "search & code", "{alert}");
    }
    // All three jobs are scraped, and no rule is at fault.
    let up = eventually("every target to be up", PATIENCE, async || {
        let up = prometheus.query("up").await;
        (up.len() == 3 && up.iter().all(|(_, value)| *value == 1.0)).then_some(up)
    });
    up.await;
    let groups = prometheus.api("rules", &[]).await;
    for rule in groups["groups"].as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap()) {
        assert!(rule["health"] != "err", "{}: {}", rule["name"], rule["lastError"]);
    }
    assert!(!alertmanager.logs().contains("level=error"), "{}", alertmanager.logs());
}
