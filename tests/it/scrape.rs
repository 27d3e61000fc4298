//! The metrics of an org, as a customer's own Prometheus sees them: their scrape job, their alert rule, the text of
//! their page (`tests/it/customer/`), and the native histograms of the protobuf format.

use std::process::Command;
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use mcpg::model::Outcome;
use reqwest::header::ACCEPT;
use reqwest::{Method, StatusCode};
use tempfile::TempDir;

use crate::harness::{
    Client, Config, Exposition, Prometheus, Sample, Server, alone, assert_close, eventually, exact_quantile, ndjson,
    now, run_with_input, tool, with_native_histograms,
};

const SCRAPE_JOB: &str = include_str!("customer/scrape_job.yml");
const ALERT_RULE: &str = include_str!("customer/alert_rule.yml");
const EXPOSITION: &str = include_str!("customer/exposition.txt");
const ALERT_TEST: &str = include_str!("customer/alert_test.yml");

/// How long Prometheus may take to see something: several scrapes, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// What Prometheus 2.42 asks for when native histograms are off.
const OPENMETRICS_FIRST: &str = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";

#[tokio::test]
async fn the_three_families_read_exactly_as_the_customers_page_shows_them() {
    let server = Config::new().start().await;
    let mut samples = Vec::new();
    for number in 0..4827 {
        let duration = match number {
            0..3000 => 84.0,
            3000..4700 => 312.0,
            _ => 891.0,
        };
        let outcome = if number % 402 == 0 && number / 402 < 12 { Outcome::ServerError } else { Outcome::Ok };
        samples.push(Sample::new("github", "list_repos", duration).outcome(outcome));
    }
    assert_eq!(samples.iter().filter(|sample| sample.outcome == Outcome::ServerError).count(), 12);
    server.client().post(ndjson(&samples), None).await;

    let answer = server.client().get("metrics?granularity=hour").await.ok();
    assert!(
        answer.header("content-type").starts_with("text/plain; version=0.0.4"),
        "{}",
        answer.header("content-type")
    );
    let text = answer.text();
    let mut lines = text.lines();
    for expected in EXPOSITION.lines() {
        let got = lines.next().unwrap();
        if expected.starts_with("mcpg_tool_latency_ms{") {
            let ((name, quantile), (expected_name, expected)) = (split(got), split(expected));
            assert_eq!(name, expected_name);
            assert_close(quantile, expected, 0.01, name);
        } else {
            assert_eq!(got, expected);
        }
    }
}

fn split(line: &str) -> (&str, f64) {
    let (series, value) = line.rsplit_once(' ').unwrap();
    (series, value.parse().unwrap())
}

#[tokio::test]
async fn promtool_complains_of_nothing_but_what_the_customers_page_fixes() {
    let server = Config::new().start().await;
    server.client().post(ndjson(&[Sample::new("github", "list_repos", 12.5)]), None).await;
    let lint = |text: Vec<u8>| {
        let output = run_with_input(Command::new(tool("promtool")).args(["check", "metrics"]), &text);
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    };
    let org = lint(server.client().get("metrics").await.ok().body);
    for complaint in org.lines() {
        let fixed = complaint.contains("\"quantile\" label") || complaint.contains("unit");
        assert!(complaint.starts_with("mcpg_tool_latency_ms ") && fixed, "{org}");
    }
    let own = lint(server.client().get("/metrics").await.ok().body);
    assert_eq!(own, "", "the control plane's own metrics");
}

#[tokio::test]
async fn each_format_is_given_to_whoever_asks_for_it() {
    let server = Config::new().start().await;
    let client = server.client();
    client.post(ndjson(&[Sample::new("github", "list_repos", 12.5)]), None).await;
    let content_type =
        async |accept: &str| client.get_as("metrics", accept).await.ok().header("content-type").to_owned();

    let open = client.get_as("metrics", OPENMETRICS_FIRST).await.ok();
    assert!(open.header("content-type").starts_with("application/openmetrics-text; version=1.0.0"));
    assert!(open.text().ends_with("# EOF\n"));
    assert!(open.text().contains("# TYPE mcpg_tool_calls counter\n"));
    assert!(content_type("text/plain").await.starts_with("text/plain; version=0.0.4"));
    let protobuf = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited";
    assert!(content_type(protobuf).await.starts_with("application/vnd.google.protobuf"));
}

#[tokio::test]
async fn a_wrong_granularity_is_told_and_a_day_is_served() {
    let server = Config::new().start().await;
    let client = server.client();
    client.post(ndjson(&[Sample::new("github", "list_repos", 12.5)]), None).await;
    assert_eq!(client.get("metrics?granularity=day").await.status, StatusCode::OK);
    let answer = client.get("metrics?granularity=minute").await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    answer.problem();
}

#[tokio::test]
async fn a_day_holds_samples_that_the_hour_no_longer_does() {
    let server = Config::new().start().await;
    let client = server.client();
    let early = Sample::new("github", "list_repos", 7.0).started_at(now() - TimeDelta::hours(20));
    client.post(ndjson(&[early]), None).await;
    let gauge = async |granularity: &str| {
        let text = client.get(&format!("metrics?granularity={granularity}")).await.ok().text();
        Exposition::parse(&text).sum_by("mcpg_tool_latency_ms", &["quantile"])
    };
    assert!(gauge("hour").await.is_empty());
    assert_close(gauge("day").await[&vec!["0.99".to_owned()]], 7.0, 0.01, "the day's p99");
    let scrape = client.metrics().await;
    assert_eq!(scrape.total("mcpg_tool_calls_total"), 1.0, "a counter counts every sample, however late");
}

#[tokio::test]
async fn series_past_the_cap_are_counted_together_and_a_metric_says_so() {
    let server = Config::new().with("limits: { series: 10 }").start().await;
    let client = server.client();
    let samples: Vec<_> = (0..25).map(|n| Sample::new("github", &format!("tool_{n}"), 5.0)).collect();
    client.post(ndjson(&samples), None).await;
    let scrape = client.metrics().await;
    let series = scrape.sum_by("mcpg_tool_calls_total", &["plugin", "tool"]);
    assert_eq!(scrape.total("mcpg_tool_calls_total"), 25.0);
    assert!(series.len() <= 11, "{series:?}");
    assert_eq!(series[&vec!["__other__".to_owned(), "__other__".to_owned()]], 15.0);
    let text = client.get("metrics").await.ok().text();
    let said = text.lines().find(|line| line.starts_with("mcpg_") && line.contains("overflow")).unwrap();
    assert!(split(said).1 > 0.0, "{said}");
}

#[tokio::test]
async fn the_customers_alert_rule_fires_after_five_minutes_of_errors_above_five_percent() {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("rules.yml"), group(ALERT_RULE)).unwrap();
    std::fs::write(folder.path().join("test.yml"), ALERT_TEST).unwrap();
    for arguments in [["check", "rules", "rules.yml"], ["test", "rules", "test.yml"]] {
        let mut command = Command::new(tool("promtool"));
        let output = run_with_input(command.args(arguments).current_dir(folder.path()), b"");
        assert!(
            output.status.success(),
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

/// A rule file that holds one rule, given as a list item.
fn group(rule: &str) -> String {
    format!("groups:\n- name: customer\n  interval: 1s\n  rules:\n{}", indented(rule, 2))
}

fn indented(text: &str, by: usize) -> String {
    text.lines().map(|line| format!("{}{line}\n", " ".repeat(by))).collect()
}

/// The customer's job with its target replaced, and the same once a second, so that a test sees many scrapes.
fn jobs(authority: &str) -> String {
    let job = SCRAPE_JOB.replace("mcpg-cp.svc.cluster.local:7843", authority);
    assert_ne!(job, SCRAPE_JOB);
    let fast = job.replace("mcpg-fleet", "mcpg-fast").replace("30s", "1s");
    format!("{job}{fast}")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_customers_prometheus_scrapes_rates_and_alerts() {
    let _alone = alone().await;
    let server = Config::new().start().await;
    let client = server.client();
    // The rule as it stands, and the same without its five minutes of waiting, so that it can be seen to fire.
    let at_once = ALERT_RULE.replace("MCPGToolErrorRate", "AtOnce").replace("for: 5m", "for: 0s");
    let rules = group(&format!("{ALERT_RULE}{at_once}"));
    let config = format!(
        "global: {{ evaluation_interval: 1s }}\nrule_files: [rules.yml]\nscrape_configs:\n{}",
        jobs(&server.authority())
    );
    let prometheus = Prometheus::start(&config, &[("rules.yml", &rules)], &[]).await;

    // The first sample of each series comes before the first scrape that is looked at: a rate needs two points. A machine
    // that stalls makes the load and its scrapes uneven for a while; then rates are looked at again after more of it.
    let mut acknowledged = Acknowledged(vec![(Instant::now(), 0)]);
    let calling = "sum by (tool) (rate(mcpg_tool_calls_total{job=\"mcpg-fast\"}[15s]))";
    let failing = "sum(rate(mcpg_tool_errors_total{job=\"mcpg-fast\",tool=\"failing\"}[15s]))";
    eventually("the rates to be those of the load", PATIENCE, async || {
        steady_load(&client, Duration::from_secs(30), &mut acknowledged).await;
        let (calls, errors) = (prometheus.query(calling).await, prometheus.query(failing).await);
        let expected = acknowledged.rate_over(Duration::from_secs(15));
        let is_close = |rate: f64, expected: f64| (rate - expected).abs() <= expected * 0.1;
        let are_right = calls.len() == 2
            && calls.iter().all(|(_, rate)| is_close(*rate, expected))
            && errors.first().is_some_and(|(_, rate)| is_close(*rate, expected / 5.0));
        eprintln!("acknowledged a second: {expected}; calls: {calls:?}; errors: {errors:?}");
        are_right.then_some(())
    })
    .await;

    let up = eventually("both jobs' targets to be up", PATIENCE, async || {
        let up = prometheus.query("up").await;
        (up.len() == 2 && up.iter().all(|(_, value)| *value == 1.0)).then_some(up)
    });
    up.await;
    eventually("every target's last scrape to be without an error", PATIENCE, async || {
        let targets = prometheus.api("targets", &[("state", "active")]).await;
        let targets = targets["activeTargets"].as_array().unwrap();
        (targets.len() == 2 && targets.iter().all(|target| target["lastError"] == "")).then_some(())
    })
    .await;

    let firing = eventually("the alert to fire", PATIENCE, async || {
        let alerts = prometheus.api("alerts", &[]).await["alerts"].as_array().unwrap().clone();
        alerts.into_iter().find(|alert| alert["labels"]["alertname"] == "AtOnce" && alert["state"] == "firing")
    });
    let firing = firing.await;
    assert_eq!(firing["labels"]["tool"], "failing");
    assert_eq!(firing["annotations"]["summary"], "High error rate on github.failing");
    let alerts = prometheus.api("alerts", &[]).await;
    for alert in alerts["alerts"].as_array().unwrap() {
        assert_eq!(alert["labels"]["tool"], "failing", "only the tool with 20 % errors: {alert}");
    }
    let pending = alerts["alerts"].as_array().unwrap().iter().find(|a| a["labels"]["alertname"] == "MCPGToolErrorRate");
    assert_eq!(pending.unwrap()["state"], "pending", "the customer's own waits its five minutes");
    assert!(!prometheus.logs().contains("err="), "{}", prometheus.logs());
}

/// When how many samples of each tool had been acknowledged.
struct Acknowledged(Vec<(Instant, u64)>);

impl Acknowledged {
    /// Samples a second over the last `window`.
    fn rate_over(&self, window: Duration) -> f64 {
        let (end, last) = *self.0.last().unwrap();
        let (start, first) = *self.0.iter().rev().find(|(at, _)| end - *at >= window).unwrap();
        (last - first) as f64 / (end - start).as_secs_f64()
    }
}

/// Twenty batches a second for two tools: `steady` has 2 % errors, `failing` 20 %.
async fn steady_load(client: &Client, length: Duration, acknowledged: &mut Acknowledged) {
    let mut tick = tokio::time::interval(Duration::from_millis(50));
    let began = Instant::now();
    while began.elapsed() < length {
        tick.tick().await;
        let mut samples = Vec::new();
        for number in 0..50 {
            let fails = |one_in: u32| if number % one_in == 0 { Outcome::ServerError } else { Outcome::Ok };
            samples.push(Sample::new("github", "steady", 20.0).outcome(fails(50)));
            samples.push(Sample::new("github", "failing", 20.0).outcome(fails(5)));
        }
        client.post(ndjson(&samples), None).await;
        let last = acknowledged.0.last().unwrap().1;
        acknowledged.0.push((Instant::now(), last + 50));
    }
}

/// The value of an expression, once it has one: of a scrape that a busy machine was too slow for there is none.
async fn value_of(prometheus: &Prometheus, expression: &str) -> f64 {
    eventually(expression, PATIENCE, async || prometheus.query(expression).await.pop()).await.1
}

#[tokio::test]
async fn native_histograms_give_prometheus_quantiles_within_one_percent() {
    let server = Config::new().start().await;
    // A heavy tail over four decades, without chance: the quantile function of a log-normal-like curve at 20,000 even
    // steps.
    let durations: Vec<f64> = (0..20_000).map(|n| (f64::from(n) / 20_000.0).powi(4).mul_add(20_000.0, 2.0)).collect();
    for part in durations.chunks(2_000) {
        let samples: Vec<_> = part.iter().map(|duration| Sample::new("github", "list_repos", *duration)).collect();
        server.client().post(ndjson(&samples), None).await;
    }
    let config = format!("scrape_configs:\n{}", jobs(&server.authority()));
    let flags = ["--enable-feature=native-histograms"];
    let told = with_native_histograms(&config);
    let (oldest, newest) =
        tokio::join!(Prometheus::start(&config, &[], &flags), Prometheus::start_newest(&told, &[], &flags));
    for prometheus in [oldest, newest] {
        for q in [0.5, 0.95, 0.99] {
            let query = format!("histogram_quantile({q}, sum(mcpg_tool_duration_seconds{{job=\"mcpg-fast\"}}))");
            let seconds = value_of(&prometheus, &query).await;
            assert_close(seconds * 1000.0, exact_quantile(&durations, q), 0.01, &query);
        }
        let count = "histogram_count(sum(mcpg_tool_duration_seconds{job=\"mcpg-fast\"}))";
        assert_eq!(value_of(&prometheus, count).await, 20_000.0);
        let counter = "mcpg_tool_calls_total{job=\"mcpg-fast\"}";
        assert_eq!(value_of(&prometheus, counter).await, 20_000.0, "the other families come through protobuf too");
        value_of(&prometheus, "up{job=\"mcpg-fast\"} == 1").await;
    }
}

#[tokio::test]
async fn the_newest_prometheus_takes_exemplars_and_begins_counters_where_they_began() {
    let server = Config::new().start().await;
    let client = server.client();
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    // For the second native histogram of a family Prometheus looks for an exemplar where its search for the first one's
    // has ended, and finds none, unless it reads the classic buckets in between.
    let fast = "job_name: mcpg-fast\n";
    let both = format!("{fast}  always_scrape_classic_histograms: true\n");
    let config = format!("scrape_configs:\n{}", jobs(&server.authority()).replace(fast, &both));
    let flags = ["--enable-feature=native-histograms,exemplar-storage,created-timestamp-zero-ingestion"];
    let prometheus = Prometheus::start_newest(&with_native_histograms(&config), &[], &flags).await;
    eventually("a first scrape", PATIENCE, async || {
        prometheus.query("up{job=\"mcpg-fast\"}").await.pop().filter(|(_, up)| *up == 1.0)
    })
    .await;
    // All calls of a new series come at once: without its beginning Prometheus would see no increase at all.
    let mut samples = Vec::new();
    for tool in ["list_repos", "get_issue"] {
        let call = |took: f64| {
            Sample::new("github", tool, took).with("trace_id", trace).started_at(now() - TimeDelta::seconds(3))
        };
        samples.extend((0..4).map(|_| call(2_000.0)));
        samples.push(call(80.0).outcome(Outcome::Timeout));
    }
    client.post(ndjson(&samples), None).await;
    for counter in ["mcpg_tool_calls_total", "mcpg_tool_errors_total"] {
        let query = format!("increase({counter}{{job=\"mcpg-fast\"}}[10m]) >= 1");
        eventually("an increase of each new series", PATIENCE, async || {
            Some(prometheus.query(&query).await).filter(|increases| increases.len() == 2)
        })
        .await;
    }
    for family in ["mcpg_tool_duration_seconds", "mcpg_tool_errors_total"] {
        let query = format!("{family}{{job=\"mcpg-fast\"}}");
        let found = eventually("an exemplar of each series", PATIENCE, async || {
            let (start, end) = ((now().timestamp() - 600).to_string(), now().timestamp().to_string());
            let data = prometheus.api("query_exemplars", &[("query", &query), ("start", &start), ("end", &end)]).await;
            data.as_array().filter(|series| series.len() == 2).cloned()
        })
        .await;
        for series in found {
            assert_eq!(series["exemplars"][0]["labels"]["trace_id"], trace, "{series}");
        }
    }
}

#[tokio::test]
async fn openmetrics_has_exemplars_and_beginnings_which_outlast_a_restart() {
    let mut server = Config::new().start().await;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let call = Sample::new("github", "list_repos", 12.5).with("trace_id", trace);
    server.client().post(ndjson(&[call]), None).await;
    let page = async |server: &Server, path: &str| server.client().get_as(path, OPENMETRICS_FIRST).await.ok().text();
    let beginnings = |page: &str| -> Vec<String> {
        page.lines().filter(|line| line.contains("_created{")).map(str::to_owned).collect()
    };
    let before = page(&server, "metrics").await;
    assert!(before.contains(&format!("# {{trace_id=\"{trace}\"}} 0.0125 ")), "{before}");
    let began = beginnings(&before);
    assert_eq!(began.len(), 4, "{before}");
    let seconds: f64 = began[0].rsplit_once(' ').unwrap().1.parse().unwrap();
    assert!((seconds - now().timestamp() as f64).abs() < 600.0, "{began:?}");
    assert_eq!(beginnings(&page(&server, "metrics?created=off").await), [""; 0]);
    // Once by the state, once by the log: a series' beginning is part of both, exemplars of neither.
    assert!(server.stop().await.success());
    server.start().await;
    let after = page(&server, "metrics").await;
    assert_eq!(beginnings(&after), began);
    assert!(!after.contains("trace_id"), "{after}");
    server.kill();
    server.start().await;
    assert_eq!(beginnings(&page(&server, "metrics").await), began);
}

#[tokio::test]
async fn late_samples_are_counted_as_such() {
    let server = Config::new().start().await;
    let client = server.client();
    let late = Sample::new("github", "list_repos", 7.0).started_at(now() - TimeDelta::hours(3));
    client.post(ndjson(&[late.clone(), late, Sample::new("github", "list_repos", 7.0)]), Some("once")).await;
    let own = Exposition::parse(&client.get("/metrics").await.ok().text());
    assert_eq!(own.total("mcpg_cp_ingest_late_samples_total"), 2.0);
    assert_eq!(own.total("mcpg_cp_ingest_samples_total"), 3.0);
}

#[tokio::test]
async fn every_scrape_format_says_the_same() {
    let server = Config::new().start().await;
    let client = server.client();
    let hostile = "back\\slash \"quoted\" ünïcode {}=,";
    client.post(ndjson(&[Sample::new(hostile, "list_repos", 12.5).workspace("a b")]), None).await;
    let text = client.metrics().await;
    let open =
        client.send(Method::GET, "metrics", &[(ACCEPT, OPENMETRICS_FIRST)], Vec::new()).await.unwrap().ok().text();
    let open: String = open.lines().map(|line| format!("{}\n", line.split(" # {").next().unwrap())).collect();
    let open = Exposition::parse(&open);
    for family in ["mcpg_tool_calls_total", "mcpg_tool_errors_total", "mcpg_tool_duration_seconds_count"] {
        let by = ["org", "workspace", "plugin", "tool"];
        assert_eq!(text.sum_by(family, &by), open.sum_by(family, &by), "{family}");
        assert_eq!(text.sum_by(family, &by).keys().next().unwrap()[2], hostile);
    }
}
