//! A real Prometheus, scraping what a test tells it to.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::{Logs, eventually, free_port, tool};

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
        let folder = TempDir::with_prefix("mcpg-prometheus-").unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("prometheus.yml", config);
        files.iter().for_each(|(name, text)| write(name, text));
        let address = format!("127.0.0.1:{}", free_port());
        let mut child = Command::new(tool("prometheus"))
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
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10)).build().unwrap();
        let mut prometheus = Self { http, base: format!("http://{address}"), child, logs, _folder: folder };
        prometheus.wait_until_ready().await;
        prometheus
    }

    async fn wait_until_ready(&mut self) {
        let ready = format!("{}/-/ready", self.base);
        eventually("Prometheus to be ready", Duration::from_secs(30), async || {
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
