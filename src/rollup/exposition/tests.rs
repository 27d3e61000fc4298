//! All three formats over one small set of totals. The protobuf answer is read back by message types of its own.

use prost::Message;

use super::*;
use crate::rollup::testing::{Sample, batch};
use crate::rollup::{Candidates, Digest};

const HOUR: i64 = Granularity::Hour.width();

fn totals(max_series: usize, samples: &[Sample<'_>]) -> RunningTotals {
    let mut totals = RunningTotals::new("default".parse().unwrap(), max_series);
    totals.apply(&Digest::of(&batch(samples)).unwrap(), HOUR);
    totals
}

/// Two tools, one of them in two workspaces, in two hours.
fn two_tools() -> RunningTotals {
    let sample = Sample::default();
    totals(
        10,
        &[
            Sample { started_at: HOUR, ..sample },
            Sample { duration_ms: 312.5, outcome: "timeout", ..sample },
            Sample { workspace: "test", duration_ms: 0.0, outcome: "policy_denied", ..sample },
            Sample { tool: "odd \"name\"\\", duration_ms: 70_000.0, started_at: HOUR, ..sample },
        ],
    )
}

fn text(totals: &RunningTotals, format: Format) -> String {
    String::from_utf8(render(totals, Granularity::Hour, HOUR, format).to_vec()).unwrap()
}

/// The lines of one family, with its comments.
fn family<'a>(page: &'a str, name: &str) -> Vec<&'a str> {
    page.lines()
        .filter(|line| line.trim_start_matches("# HELP ").trim_start_matches("# TYPE ").starts_with(name))
        .collect()
}

#[test]
fn the_families_are_written_as_the_documentation_shows_them() {
    let sample = Sample::default();
    let page = text(&totals(10, &[sample, Sample { outcome: "timeout", ..sample }]), Format::Text004);
    let expected = r#"# HELP mcpg_tool_calls_total Total tool invocations
# TYPE mcpg_tool_calls_total counter
mcpg_tool_calls_total{org="default",workspace="prod",plugin="github",tool="list_repos"} 2
# HELP mcpg_tool_errors_total Total tool errors
# TYPE mcpg_tool_errors_total counter
mcpg_tool_errors_total{org="default",workspace="prod",plugin="github",tool="list_repos"} 1
# HELP mcpg_tool_latency_ms Tool latency quantiles
# TYPE mcpg_tool_latency_ms gauge
mcpg_tool_latency_ms{quantile="0.5",org="default",plugin="github",tool="list_repos"} 84
mcpg_tool_latency_ms{quantile="0.95",org="default",plugin="github",tool="list_repos"} 84
mcpg_tool_latency_ms{quantile="0.99",org="default",plugin="github",tool="list_repos"} 84
# HELP mcpg_tool_denials_total Total tool invocations denied by policy or quota
# TYPE mcpg_tool_denials_total counter
mcpg_tool_denials_total{org="default",workspace="prod",plugin="github",tool="list_repos"} 0
"#;
    assert_eq!(page.split_once("# HELP mcpg_tool_duration_seconds").unwrap().0, expected);
}

#[test]
fn a_histogram_has_cumulative_buckets_that_end_with_all() {
    let page = text(&two_tools(), Format::Text004);
    let labels = r#"org="default",workspace="prod",plugin="github",tool="list_repos""#;
    let lines: Vec<_> = family(&page, "mcpg_tool_duration_seconds")
        .into_iter()
        .filter(|line| line.contains(labels))
        .map(|line| line.replace(labels, "…"))
        .collect();
    let buckets = [
        ("0.00390625", 0),
        ("0.015625", 0),
        ("0.0625", 0),
        ("0.125", 1),
        ("0.25", 1),
        ("0.5", 2),
        ("1", 2),
        ("4", 2),
        ("16", 2),
        ("64", 2),
        ("+Inf", 2),
    ];
    let mut expected: Vec<_> =
        buckets.iter().map(|(le, n)| format!("mcpg_tool_duration_seconds_bucket{{…,le=\"{le}\"}} {n}")).collect();
    expected.push("mcpg_tool_duration_seconds_sum{…} 0.3965".to_owned());
    expected.push("mcpg_tool_duration_seconds_count{…} 2".to_owned());
    assert_eq!(lines, expected);
}

#[test]
fn the_gauge_is_of_the_open_window_and_the_one_before_over_all_workspaces() {
    let gauges = |page: String| -> Vec<String> {
        let lines = page.lines().filter(|line| line.starts_with("mcpg_tool_latency_ms") && line.contains("0.99"));
        lines.map(|line| line.rsplit_once(' ').unwrap().1.to_owned()).collect()
    };
    let totals = two_tools();
    assert_eq!(gauges(text(&totals, Format::Text004)), ["312.5", "70000"]);
    let shown = Shown { histogram: false, created: true };
    let without = render_shown(&totals, None, Granularity::Hour, 2 * HOUR, Format::Text004, shown);
    let without = String::from_utf8(without.to_vec()).unwrap();
    assert!(!without.contains("mcpg_tool_duration_seconds") && without.contains("mcpg_tool_calls_total{"));
    let next_hour = render(&totals, Granularity::Hour, 2 * HOUR, Format::Text004);
    assert_eq!(gauges(String::from_utf8(next_hour.to_vec()).unwrap()), ["84", "70000"]);
    let later = render(&totals, Granularity::Hour, 9 * HOUR, Format::Text004);
    assert!(gauges(String::from_utf8(later.to_vec()).unwrap()).is_empty());
    let day = render(&totals, Granularity::Day, 9 * HOUR, Format::Text004);
    assert_eq!(gauges(String::from_utf8(day.to_vec()).unwrap()), ["312.5", "70000"]);
}

#[test]
fn a_tool_of_any_name_stays_within_its_label() {
    let page = text(&two_tools(), Format::Text004);
    assert!(page.contains(r#"tool="odd \"name\"\\"} 1"#), "{page}");
}

#[test]
fn without_series_every_family_is_still_announced() {
    let nothing = totals(10, &[]);
    let page = text(&nothing, Format::Text004);
    assert_eq!(page.lines().filter(|line| line.starts_with("# TYPE")).count(), 6);
    assert_eq!(
        page.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>(),
        [r#"mcpg_metrics_series_overflowed{org="default"} 0"#]
    );
}

#[test]
fn series_past_the_cap_are_told() {
    let tools = ["a", "b", "c", "d"].map(|tool| Sample { tool, ..Sample::default() });
    let page = text(&totals(2, &tools), Format::Text004);
    assert!(page.contains("mcpg_metrics_series_overflowed{org=\"default\"} 2\n"), "{page}");
    let other = r#"mcpg_tool_calls_total{org="default",workspace="__other__",plugin="__other__",tool="__other__"} 2"#;
    assert!(page.contains(other), "{page}");
}

#[test]
fn openmetrics_names_families_without_their_suffix_and_says_where_it_ends() {
    let page = text(&two_tools(), Format::OpenMetrics);
    assert!(page.starts_with(
        "# HELP mcpg_tool_calls Total tool invocations\n# TYPE mcpg_tool_calls counter\nmcpg_tool_calls_total{"
    ));
    assert!(page.ends_with("} 0\n# EOF\n"));
    assert!(
        page.contains(r#",le="1.0"} 2"#)
            && page.contains(r#",le="0.00390625"} 0"#)
            && page.contains(r#",le="+Inf"} 2"#)
    );
}

#[test]
fn the_two_texts_hold_the_same_samples() {
    let samples = |format| -> Vec<String> {
        let page = text(&two_tools(), format);
        let lines = page.lines().filter(|line| !line.starts_with('#') && !line.contains("_created{"));
        lines.map(|line| line.replace(".0\"}", "\"}")).collect()
    };
    assert_eq!(samples(Format::Text004), samples(Format::OpenMetrics));
}

/// Exemplars of the tool of [`Sample::default`]: a call of two seconds, and one that failed after 80 ms.
fn exemplars() -> Exemplars {
    let at = |trace_id, outcome, duration_ms: f64| Sample {
        trace_id: Some(trace_id),
        outcome,
        duration_ms,
        started_at: HOUR - (duration_ms * 1e3) as i64 - 1,
        ..Sample::default()
    };
    let mut exemplars = Exemplars::default();
    let batch = batch(&[at("aa", "ok", 2_000.0), at("bb", "timeout", 80.0)]);
    exemplars.take(Candidates::of(&batch, HOUR), HOUR, 10);
    exemplars
}

fn open_metrics(exemplars: Option<&Exemplars>, shown: Shown) -> String {
    let page = render_shown(&two_tools(), exemplars, Granularity::Hour, HOUR, Format::OpenMetrics, shown);
    String::from_utf8(page.to_vec()).unwrap()
}

#[test]
fn openmetrics_says_when_each_series_began_and_may_leave_it_out() {
    let page = open_metrics(None, Shown::ALL);
    let labels = r#"org="default",workspace="prod",plugin="github",tool="list_repos""#;
    for family in ["mcpg_tool_calls", "mcpg_tool_errors", "mcpg_tool_denials", "mcpg_tool_duration_seconds"] {
        let line = format!("\n{family}_created{{{labels}}} 3600.000000\n");
        assert!(page.contains(&line), "{line} is not in {page}");
    }
    // Beside the sample that it belongs to.
    assert!(
        page.contains(&format!("mcpg_tool_calls_total{{{labels}}} 2\nmcpg_tool_calls_created{{{labels}}} ")),
        "{page}"
    );
    assert!(!open_metrics(None, Shown { histogram: true, created: false }).contains("_created"));
    assert!(!text(&two_tools(), Format::Text004).contains("_created"));
}

#[test]
fn openmetrics_has_an_exemplar_in_its_bucket_and_one_of_an_error() {
    let page = open_metrics(Some(&exemplars()), Shown::ALL);
    let with: Vec<_> = page.lines().filter(|line| line.contains(" # {")).collect();
    let labels = r#"org="default",workspace="prod",plugin="github",tool="list_repos""#;
    assert_eq!(
        with,
        [
            format!("mcpg_tool_errors_total{{{labels}}} 1 # {{trace_id=\"bb\"}} 1.0 3599.999999"),
            format!("mcpg_tool_duration_seconds_bucket{{{labels},le=\"4.0\"}} 2 # {{trace_id=\"aa\"}} 2.0 3599.999999"),
        ]
    );
    let old = render_shown(&two_tools(), Some(&exemplars()), Granularity::Hour, HOUR, Format::Text004, Shown::ALL);
    assert!(!String::from_utf8(old.to_vec()).unwrap().contains(" # {"), "text 0.0.4 has none");
}

#[test]
fn the_messages_have_the_same_exemplars_and_beginnings() {
    let bytes = render_shown(&two_tools(), Some(&exemplars()), Granularity::Hour, HOUR, Format::Protobuf, Shown::ALL);
    let families = decoded(bytes);
    let of = |name: &str| families.iter().find(|family| family.name == name).unwrap().metric[0].clone();
    let (errors, durations) = (of("mcpg_tool_errors_total").counter.unwrap(), of("mcpg_tool_duration_seconds"));
    let at = |seconds, nanos| Some(client::Timestamp { seconds, nanos });
    assert_eq!(errors.created, at(3_600, 0));
    let error = errors.exemplar.unwrap();
    assert_eq!((error.label[0].value.as_str(), error.value, error.timestamp), ("bb", 1.0, at(3_599, 999_999_000)));
    let histogram = durations.histogram.unwrap();
    assert_eq!(histogram.created, at(3_600, 0));
    let within: Vec<_> =
        histogram.bucket.iter().filter_map(|bucket| Some((bucket.upper_bound, bucket.exemplar.clone()?))).collect();
    assert_eq!(within.len(), 1);
    assert_eq!((within[0].0, within[0].1.value), (4.0, 2.0));
    assert!(histogram.exemplars.is_empty(), "it has its place in a bucket");
}

mod client {
    //! The messages of `io/prometheus/client/metrics.proto`, as far as they are written.

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct MetricFamily {
        #[prost(string, tag = "1")]
        pub(super) name: String,
        #[prost(string, tag = "2")]
        pub(super) help: String,
        #[prost(int32, tag = "3")]
        pub(super) kind: i32,
        #[prost(message, repeated, tag = "4")]
        pub(super) metric: Vec<Metric>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Metric {
        #[prost(message, repeated, tag = "1")]
        pub(super) label: Vec<LabelPair>,
        #[prost(message, optional, tag = "2")]
        pub(super) gauge: Option<Number>,
        #[prost(message, optional, tag = "3")]
        pub(super) counter: Option<Counter>,
        #[prost(message, optional, tag = "7")]
        pub(super) histogram: Option<Histogram>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct LabelPair {
        #[prost(string, tag = "1")]
        pub(super) name: String,
        #[prost(string, tag = "2")]
        pub(super) value: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Number {
        #[prost(double, tag = "1")]
        pub(super) value: f64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Counter {
        #[prost(double, tag = "1")]
        pub(super) value: f64,
        #[prost(message, optional, tag = "2")]
        pub(super) exemplar: Option<Exemplar>,
        #[prost(message, optional, tag = "3")]
        pub(super) created: Option<Timestamp>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Exemplar {
        #[prost(message, repeated, tag = "1")]
        pub(super) label: Vec<LabelPair>,
        #[prost(double, tag = "2")]
        pub(super) value: f64,
        #[prost(message, optional, tag = "3")]
        pub(super) timestamp: Option<Timestamp>,
    }

    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub(super) struct Timestamp {
        #[prost(int64, tag = "1")]
        pub(super) seconds: i64,
        #[prost(int32, tag = "2")]
        pub(super) nanos: i32,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Histogram {
        #[prost(uint64, tag = "1")]
        pub(super) sample_count: u64,
        #[prost(double, tag = "2")]
        pub(super) sample_sum: f64,
        #[prost(message, repeated, tag = "3")]
        pub(super) bucket: Vec<Bucket>,
        #[prost(sint32, tag = "5")]
        pub(super) schema: i32,
        #[prost(double, tag = "6")]
        pub(super) zero_threshold: f64,
        #[prost(uint64, tag = "7")]
        pub(super) zero_count: u64,
        #[prost(message, repeated, tag = "12")]
        pub(super) positive_span: Vec<BucketSpan>,
        #[prost(sint64, repeated, tag = "13")]
        pub(super) positive_delta: Vec<i64>,
        #[prost(message, optional, tag = "15")]
        pub(super) created: Option<Timestamp>,
        #[prost(message, repeated, tag = "16")]
        pub(super) exemplars: Vec<Exemplar>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Bucket {
        #[prost(uint64, tag = "1")]
        pub(super) cumulative_count: u64,
        #[prost(double, tag = "2")]
        pub(super) upper_bound: f64,
        #[prost(message, optional, tag = "3")]
        pub(super) exemplar: Option<Exemplar>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct BucketSpan {
        #[prost(sint32, tag = "1")]
        pub(super) offset: i32,
        #[prost(uint32, tag = "2")]
        pub(super) length: u32,
    }
}

fn messages(totals: &RunningTotals) -> Vec<client::MetricFamily> {
    decoded(render(totals, Granularity::Hour, HOUR, Format::Protobuf))
}

fn decoded(mut bytes: Bytes) -> Vec<client::MetricFamily> {
    let mut families = Vec::new();
    while !bytes.is_empty() {
        families.push(client::MetricFamily::decode_length_delimited(&mut bytes).unwrap());
    }
    families
}

#[test]
fn the_messages_hold_what_the_text_does() {
    assert_messages_are_the_text(&two_tools());
}

#[test]
fn many_series_come_whole_and_in_order_whoever_writes_them() {
    let tools: Vec<String> = (0..2_500).map(|tool| format!("tool-{tool}")).collect();
    let samples: Vec<_> = tools.iter().map(|tool| Sample { tool, ..Sample::default() }).collect();
    assert_messages_are_the_text(&totals(10_000, &samples));
}

fn assert_messages_are_the_text(totals: &RunningTotals) {
    let mut lines = Vec::new();
    for family in messages(totals) {
        for metric in family.metric {
            let labels: Vec<_> = metric.label.iter().map(|l| format!("{}={:?}", l.name, l.value)).collect();
            let mut line = |suffix: &str, more: &str, value: f64| {
                lines.push(format!("{}{suffix}{{{}{more}}} {value}", family.name, labels.join(",")));
            };
            if let Some(value) = metric.gauge.map(|gauge| gauge.value).or(metric.counter.map(|counter| counter.value)) {
                line("", "", value);
            }
            if let Some(histogram) = metric.histogram {
                for bucket in &histogram.bucket {
                    line("_bucket", &format!(",le=\"{}\"", bucket.upper_bound), bucket.cumulative_count as f64);
                }
                line("_bucket", ",le=\"+Inf\"", histogram.sample_count as f64);
                line("_sum", "", histogram.sample_sum);
                line("_count", "", histogram.sample_count as f64);
            }
        }
    }
    let page = text(totals, Format::Text004);
    assert_eq!(lines, page.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>());
}

#[test]
fn native_buckets_are_those_that_are_held() {
    let durations = [0.0, 1.0, 1000.0, 1000.0, 1010.0, 1040.0, 64_000.0];
    let totals = totals(10, &durations.map(|duration_ms| Sample { duration_ms, ..Sample::default() }));
    let families = messages(&totals);
    let histogram = families.iter().find(|family| family.kind == 4).unwrap().metric[0].histogram.clone().unwrap();
    assert_eq!((histogram.schema, histogram.zero_count), (6, 1));
    assert_eq!(histogram.zero_threshold, 2f64.powi(-30));

    let mut read = Vec::new();
    let mut index = 0;
    let mut count = 0;
    let mut deltas = histogram.positive_delta.iter();
    for span in &histogram.positive_span {
        index += span.offset;
        for _ in 0..span.length {
            count += deltas.next().unwrap();
            read.push((index, count));
            index += 1;
        }
    }
    assert!(deltas.next().is_none());
    read.retain(|&(_, count)| count > 0);
    let held: Vec<_> =
        totals.series()[0].latency.buckets().map(|(index, n)| (i32::from(index) + 1, n as i64)).collect();
    assert_eq!(read, held);
    // 1 s is 2^0 and ends Prometheus' bucket 0; 1.01 s lies in the next, 1.04 s three further: one span, its gap
    // filled.
    assert_eq!(histogram.positive_span.len(), 3);
    assert!(held.contains(&(0, 2)) && held.contains(&(1, 1)) && held.contains(&(4, 1)), "{held:?}");
}
