//! A real Prometheus, scraping what a test tells it to.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::{Logs, eventually, free_port, plain_http, run, tool};

/// A program of the newest Prometheus that `tests/setup.sh` installs: `prometheus` or `promtool`.
pub(crate) fn newest(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/share/prometheus").join(name);
    assert!(path.is_file(), "there is no {}: run `make test` or tests/setup.sh", path.display());
    path
}

/// A config of the newest Prometheus that has it scrape native histograms: by a setting where it knows that, from 3.8
/// on. Before, the flag `--enable-feature=native-histograms` does it, which does nothing any more from 3.9 on.
pub(crate) fn with_native_histograms(config: &str) -> String {
    let folder = TempDir::with_prefix("mcpg-promtool-").unwrap();
    let file = folder.path().join("prometheus.yml");
    let told = format!("global: {{ scrape_native_histograms: true }}\n{config}");
    std::fs::write(&file, &told).unwrap();
    let output = run(Command::new(newest("promtool")).args(["check", "config"]).arg(&file));
    if output.status.success() { told } else { config.to_owned() }
}

/// A Prometheus server with a database of its own; ended when dropped.
#[derive(Debug)]
pub(crate) struct Prometheus {
    http: reqwest::Client,
    base: String,
    child: Child,
    logs: Logs,
    _folder: TempDir,
}

impl Prometheus {
    /// Starts it with a config; `files` are put beside the config, which may name them.
    pub(crate) async fn start(config: &str, files: &[(&str, &str)], flags: &[&str]) -> Self {
        Self::start_with(tool("prometheus"), config, files, flags).await
    }

    /// The same with the newest Prometheus that `tests/setup.sh` installs, in place of Debian 12's.
    pub(crate) async fn start_newest(config: &str, files: &[(&str, &str)], flags: &[&str]) -> Self {
        Self::start_with(newest("prometheus"), config, files, flags).await
    }

    async fn start_with(program: PathBuf, config: &str, files: &[(&str, &str)], flags: &[&str]) -> Self {
        let folder = TempDir::with_prefix("mcpg-prometheus-").unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("prometheus.yml", config);
        files.iter().for_each(|(name, text)| write(name, text));
        let address = format!("127.0.0.1:{}", free_port());
        let mut child = Command::new(program)
            .arg(format!("--config.file={}", Path::new("prometheus.yml").display()))
            .arg("--storage.tsdb.path=data")
            .arg(format!("--web.listen-address={address}"))
            .args(flags)
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let logs = Logs::default();
        logs.follow(child.stderr.take().unwrap());
        let http = plain_http().timeout(Duration::from_secs(60)).build().unwrap();
        let mut prometheus = Self { http, base: format!("http://{address}"), child, logs, _folder: folder };
        prometheus.wait_until_ready().await;
        prometheus
    }

    async fn wait_until_ready(&mut self) {
        let ready = format!("{}/-/ready", self.base);
        eventually("Prometheus to be ready", Duration::from_secs(90), async || {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "Prometheus refused its config:\n{}", self.logs.tail());
            self.http.get(&ready).send().await.ok().filter(|answer| answer.status().is_success())
        })
        .await;
    }

    /// The `data` of an answer of its HTTP API.
    pub(crate) async fn api(&self, path: &str, query: &[(&str, &str)]) -> Value {
        let url = url::Url::parse_with_params(&format!("{}/api/v1/{path}", self.base), query).unwrap();
        let answer: Value = self.http.get(url).send().await.unwrap().json().await.unwrap();
        assert_eq!(answer["status"], "success", "{answer}");
        answer["data"].clone()
    }

    /// The vector that an expression gives now: labels and value.
    pub(crate) async fn query(&self, expression: &str) -> Vec<(Value, f64)> {
        let data = self.api("query", &[("query", expression)]).await;
        let vector = data["result"].as_array().unwrap_or_else(|| panic!("{expression}: {data}"));
        let value = |sample: &Value| sample["value"][1].as_str().unwrap().parse().unwrap();
        vector.iter().map(|sample| (sample["metric"].clone(), value(sample))).collect()
    }

    /// What it logged, to look for complaints.
    pub(crate) fn logs(&self) -> String {
        self.logs.text()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            eprintln!("--- Prometheus' last lines ---\n{}", self.logs.tail());
        }
    }
}
