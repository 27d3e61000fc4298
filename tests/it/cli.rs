//! The command line: what it prints, and the exit codes that scripts rely on: 0 done, 1 the answer is no, 2 wrong use
//! or could not run.

use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{self, Client, Config, Sample, Server, eventually, free_port, ndjson, run, run_with_input};

fn mcpg(arguments: &[&str]) -> Command {
    let mut command = harness::mcpg();
    command.args(arguments).env_remove("MCPG_TOKEN");
    command
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

async fn with_one_sample() -> Server {
    let server = Config::new().start().await;
    server.client().post(ndjson(&[Sample::new("github", "list_repos", 84.5)]), None).await;
    server
}

#[test]
fn help_is_an_answer_and_a_typo_is_wrong_use() {
    let help = run(&mut mcpg(&["--help"]));
    assert_eq!(code(&help), 0);
    for command in ["demo", "control-plane", "sql", "loadgen", "store", "token", "config"] {
        assert!(out(&help).contains(command), "{command}: {}", out(&help));
    }
    for wrong in [&["contrl-plane"][..], &["sql"], &["control-plane", "--nonsense"], &[]] {
        let output = run(&mut mcpg(wrong));
        assert_eq!(code(&output), 2, "{wrong:?}: {}", err(&output));
        assert!(out(&output).is_empty() && !err(&output).is_empty(), "{wrong:?}");
    }
}

#[test]
fn a_config_check_tells_every_fault_with_its_place() {
    let folder = TempDir::new().unwrap();
    let check = |text: &str| {
        let file = folder.path().join("control-plane.yaml");
        std::fs::write(&file, text).unwrap();
        run(&mut mcpg(&["config", "check", file.to_str().unwrap()]))
    };
    let good = check("listen: 127.0.0.1:7843\norgs:\n  - { name: default, tier: enterprise }\n");
    assert_eq!(code(&good), 0, "{}{}", out(&good), err(&good));

    let bad = check(
        "listen: nowhere\nflsh:\n  interval: 1s\norgs:\n  - name: Default\n    tier: platinum\nname: ${MCPG_NOT_SET}\n",
    );
    assert_eq!(code(&bad), 1);
    let told = out(&bad) + &err(&bad);
    for place in [":1:9:", ":2:1:", ":5:11:", ":6:11:", ":7:7:"] {
        assert!(told.contains(&format!("control-plane.yaml{place}")), "no fault at {place} in\n{told}");
    }
    assert!(told.contains("flush"), "the nearest known key is named: {told}");

    let absent = run(&mut mcpg(&["config", "check", "/nonexistent/config.yaml"]));
    assert_eq!(code(&absent), 2, "{}", err(&absent));
}

#[test]
fn the_reference_config_is_sound() {
    let reference = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/control-plane.yaml");
    let output = run(&mut mcpg(&["config", "check", reference]));
    assert_eq!(code(&output), 0, "{}{}", out(&output), err(&output));
}

#[test]
fn a_token_is_hashed_the_same_each_time_and_alone_on_its_line() {
    let hash = |input: &[u8]| run_with_input(&mut mcpg(&["token", "hash"]), input);
    let (one, again, without_newline) = (hash(b"secret-token-1\n"), hash(b"secret-token-1\n"), hash(b"secret-token-1"));
    assert_eq!(code(&one), 0);
    assert_eq!(out(&one), out(&again));
    assert_eq!(out(&one), out(&without_newline), "the newline is the terminal's, not the token's");
    assert_eq!(out(&one).lines().count(), 1);
    assert!(!out(&one).contains("secret"));
    assert_ne!(out(&one), out(&hash(b"secret-token-2\n")));
    assert_ne!(code(&hash(b"\n")), 0, "an empty token is refused");
}

#[test]
fn new_tokens_differ() {
    let (one, other) = (run(&mut mcpg(&["token", "new"])), run(&mut mcpg(&["token", "new"])));
    assert_eq!((code(&one), code(&other)), (0, 0));
    assert_ne!(out(&one), out(&other));
    assert!(out(&one).trim().len() >= 43, "256 bits or more: {}", out(&one));
}

#[tokio::test]
async fn sql_prints_each_format() {
    let server = with_one_sample().await;
    let url = server.url();
    let sql = |format: &[&str]| {
        let mut command = mcpg(&["sql", "--url", &url]);
        let output = run(command.args(format).arg("SELECT plugin, duration_ms FROM tool_invocations"));
        assert_eq!(code(&output), 0, "{}", err(&output));
        output
    };
    let table = out(&sql(&[]));
    assert!(table.contains("github") && table.contains("84.5") && table.contains("duration_ms"), "{table}");
    let json: Value = serde_json::from_str(&out(&sql(&["--format", "json"]))).unwrap();
    assert_eq!(json["rows"][0][0], "github");
    assert_eq!(out(&sql(&["--format", "csv"])).trim().replace("\r\n", "\n"), "plugin,duration_ms\ngithub,84.5");
    let line: Value = serde_json::from_str(&out(&sql(&["--format", "ndjson"]))).unwrap();
    assert_eq!(line["duration_ms"], 84.5);
    assert!(sql(&["--format", "parquet"]).stdout.starts_with(b"PAR1"));
    assert!(sql(&["--format", "arrow"]).stdout.starts_with(b"\xff\xff\xff\xff"));
}

#[tokio::test]
async fn a_refused_query_is_no_and_an_unreachable_server_is_could_not() {
    let server = with_one_sample().await;
    let refused = run(&mut mcpg(&["sql", "--url", &server.url(), "DROP TABLE tool_invocations"]));
    assert_eq!(code(&refused), 1, "{}", err(&refused));
    assert!(!err(&refused).is_empty() && out(&refused).is_empty());
    let typo = run(&mut mcpg(&["sql", "--url", &server.url(), "SELECT durration_ms FROM tool_invocations"]));
    assert_eq!(code(&typo), 1);
    assert!(err(&typo).contains("durration_ms"), "{}", err(&typo));
    let nobody = run(&mut mcpg(&["sql", "--url", &format!("http://127.0.0.1:{}", free_port()), "SELECT 1"]));
    assert_eq!(code(&nobody), 2, "{}", err(&nobody));
}

#[test]
fn without_tokens_it_refuses_to_listen_to_other_machines_and_says_why() {
    let folder = TempDir::new().unwrap();
    let output = run(mcpg(&["control-plane", "--listen", "0.0.0.0:0"]).current_dir(folder.path()));
    assert_eq!(code(&output), 2, "{}", err(&output));
    assert!((out(&output) + &err(&output)).contains("token"), "{}", err(&output));
}

#[test]
fn a_config_that_is_wrong_starts_nothing() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("c.yaml");
    std::fs::write(&file, "listen: 127.0.0.1:0\nstorrage: x\n").unwrap();
    let output = run(mcpg(&["control-plane", "--config", file.to_str().unwrap()]).current_dir(folder.path()));
    assert_eq!(code(&output), 2, "{}", err(&output));
    assert!(err(&output).contains(":2:1:"), "{}", err(&output));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing but the config lies there");
}

#[tokio::test]
async fn without_a_config_it_serves_on_the_port_it_was_given_and_tells_which() {
    let folder = TempDir::new().unwrap();
    let mut child = mcpg(&["control-plane", "--listen", "127.0.0.1:0"])
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (told, mut lines) = tokio::sync::mpsc::unbounded_channel();
    let streams: [Box<dyn std::io::Read + Send>; 2] =
        [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
    for stream in streams {
        let told = told.clone();
        std::thread::spawn(move || {
            BufReader::new(stream).lines().map_while(Result::ok).for_each(|line| drop(told.send(line)));
        });
    }
    drop(told);
    let url = loop {
        let line = lines.recv().await.expect("it ended without telling where it listens");
        if let Some((_, rest)) = line.split_once("http://127.0.0.1:") {
            let port: String = rest.chars().take_while(char::is_ascii_digit).collect();
            break format!("http://127.0.0.1:{port}");
        }
    };
    let client = Client::new(&url);
    eventually("it to be ready", Duration::from_secs(90), async || client.ready().await).await;
    assert_eq!(client.count().await, 0);
    assert!(folder.path().join("mcpg-data/store").is_dir());
    // Ctrl-C on a terminal.
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let status = eventually("it to stop", Duration::from_secs(90), async || child.try_wait().unwrap()).await;
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn a_load_generator_reports_what_was_acknowledged() {
    let server = Config::new().start().await;
    let url = server.url();
    for format in ["ndjson", "json", "arrow"] {
        let before = server.client().count().await;
        let arguments = ["loadgen", "--url", &url, "--total", "2000", "--batch", "500", "--format", format, "--json"];
        let output = run(&mut mcpg(&arguments));
        assert_eq!(code(&output), 0, "{format}: {}", err(&output));
        let report: Value = serde_json::from_str(out(&output).lines().last().unwrap()).unwrap();
        assert!(report.to_string().contains("2000"), "{report}");
        assert_eq!(server.client().count().await - before, 2_000, "{format}");
    }
}

#[tokio::test]
async fn a_reader_that_goes_away_is_no_crash() {
    let server = with_one_sample().await;
    let mut child = mcpg(&["sql", "--url", &server.url(), "--format", "csv", "SELECT * FROM tool_invocations"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(!err(&output).contains("panicked"), "{}", err(&output));
}
