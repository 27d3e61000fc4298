//! The control plane under measurement: the real program as a child process, with its defaults unless a section says
//! otherwise.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use super::process::{self, Memory};
use super::{Error, Result};

/// How long a start, a drain or a flush may take before it is a failure.
const PATIENCE: Duration = Duration::from_secs(180);
/// How often a server that starts is asked whether it is ready.
const START_POLL: Duration = Duration::from_millis(2);
/// How often a server at work is asked how far it is: seldom enough to cost nothing.
const WORK_POLL: Duration = Duration::from_millis(250);

/// A folder with a control plane's configuration, log and store; removed when dropped.
#[derive(Debug)]
pub(crate) struct Home {
    folder: TempDir,
}

impl Home {
    /// A new one, with `yaml` added to the configuration.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub(crate) fn new(yaml: &str) -> Result<Self> {
        let folder = TempDir::with_prefix("mcpg-budgets-")?;
        let storage = format!("{{ url: \"file://{}\" }}", folder.path().join("store").display());
        Self::written(folder, &storage, yaml)
    }

    /// One whose store is elsewhere: `storage` is the setting of that name. It shares the ledger's key with others that
    /// do.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub(crate) fn sharing(storage: &str, key: &Path, yaml: &str) -> Result<Self> {
        let yaml = format!("audit: {{ key_file: {} }}\n{yaml}", key.display());
        Self::written(TempDir::with_prefix("mcpg-budgets-")?, storage, &yaml)
    }

    fn written(folder: TempDir, storage: &str, yaml: &str) -> Result<Self> {
        let text = format!("listen: 127.0.0.1:0\nstorage: {storage}\n{yaml}\n");
        std::fs::write(folder.path().join("control-plane.yaml"), text)?;
        Ok(Self { folder })
    }

    /// The folder of the store.
    pub(crate) fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    /// Starts the program and waits until it is ready.
    ///
    /// # Errors
    /// When it ends or is not ready in time.
    pub(crate) async fn start(&self) -> Result<Server> {
        self.start_in(&[]).await
    }

    /// The same, with these variables in the program's environment.
    ///
    /// # Errors
    /// When it ends or is not ready in time.
    pub(crate) async fn start_in(&self, environment: &[(&'static str, OsString)]) -> Result<Server> {
        let folder = self.folder.path();
        let log = folder.join("log");
        let began = Instant::now();
        let mut child = Command::new(env!("CARGO_BIN_EXE_mcpg"))
            .args(["control-plane", "--config"])
            .arg(folder.join("control-plane.yaml"))
            .current_dir(folder)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::options().create(true).append(true).open(&log)?)
            .kill_on_drop(true)
            .spawn()?;
        let stdout = child.stdout.take().ok_or("no standard output")?;
        let mut lines = BufReader::new(stdout).lines();
        let url = loop {
            let line =
                timeout(PATIENCE, lines.next_line()).await??.ok_or_else(|| complaint("ended at its start", &log))?;
            if let Some(url) = line.trim().strip_prefix("listening on ") {
                break url.to_owned();
            }
        };
        // A client of its own: a kept-alive connection to the process before must not be tried.
        let http = Client::builder().no_proxy().build()?;
        let ready = format!("{url}/readyz");
        while !http.get(&ready).send().await.is_ok_and(|answer| answer.status() == StatusCode::OK) {
            if child.try_wait()?.is_some() {
                return Err(complaint("ended before it was ready", &log));
            }
            if began.elapsed() > PATIENCE {
                return Err(complaint("is not ready in time", &log));
            }
            sleep(START_POLL).await;
        }
        Ok(Server { ready_after: began.elapsed(), child, log, url, http })
    }
}

/// What is wrong, with the last lines of the log.
fn complaint(what: &str, log: &Path) -> Error {
    let log = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    let tail = lines.get(lines.len().saturating_sub(10)..).unwrap_or_default().join("\n");
    format!("the control plane {what}; its log ends with\n{tail}").into()
}

/// A control plane that runs.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    log: PathBuf,
    http: Client,
    url: String,
    /// How long it took from the start of the process until it was ready.
    pub(crate) ready_after: Duration,
}

impl Server {
    /// Its base URL.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// A client that keeps connections to it alive.
    pub(crate) fn http(&self) -> &Client {
        &self.http
    }

    fn pid(&self) -> Result<u32> {
        self.child.id().ok_or_else(|| complaint("has ended", &self.log))
    }

    /// Seconds of processor time it took so far.
    ///
    /// # Errors
    /// When it has ended.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        process::cpu_seconds(self.pid()?)
    }

    /// The memory it holds.
    ///
    /// # Errors
    /// When it has ended.
    pub(crate) fn memory(&self) -> Result<Memory> {
        process::memory(self.pid()?)
    }

    /// The sum of all series of one of its own metrics.
    ///
    /// # Errors
    /// When it has no such metric.
    pub(crate) async fn metric(&self, name: &str) -> Result<f64> {
        let text = self.http.get(format!("{}/metrics", self.url)).send().await?.error_for_status()?.text().await?;
        let values = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            rest.starts_with([' ', '{']).then(|| rest.rsplit(' ').next()).flatten()?.parse::<f64>().ok()
        });
        let values: Vec<f64> = values.collect();
        if values.is_empty() { Err(format!("no metric {name}").into()) } else { Ok(values.iter().sum()) }
    }

    /// Waits until every acknowledged sample is in the tables.
    ///
    /// # Errors
    /// When that takes too long.
    pub(crate) async fn flushed(&self) -> Result<()> {
        let began = Instant::now();
        while self.metric("mcpg_cp_buffer_rows").await? > 0.0 {
            if began.elapsed() > PATIENCE {
                return Err("the samples are not flushed in time".into());
            }
            sleep(WORK_POLL).await;
        }
        Ok(())
    }

    /// Runs a query of the org `default`; gives the rows, and the time from sending to the last byte of the answer.
    ///
    /// # Errors
    /// When it is refused.
    pub(crate) async fn sql(&self, query: &str) -> Result<(Vec<Vec<Value>>, Duration)> {
        let body = serde_json::to_vec(&json!({ "query": query }))?;
        let request =
            self.http.post(format!("{}/v1/orgs/default/sql", self.url)).header(CONTENT_TYPE, "application/json");
        let began = Instant::now();
        let answer = request.body(body).send().await?;
        let status = answer.status();
        let bytes = answer.bytes().await?;
        let took = began.elapsed();
        if status != StatusCode::OK {
            return Err(format!("{query}\n{status}: {}", String::from_utf8_lossy(&bytes)).into());
        }
        let mut document: Value = serde_json::from_slice(&bytes)?;
        let rows = document.get_mut("rows").map(Value::take).ok_or("an answer without rows")?;
        Ok((serde_json::from_value(rows)?, took))
    }

    /// The one number that a query answers with.
    ///
    /// # Errors
    /// When it is refused, or answers otherwise.
    pub(crate) async fn number(&self, query: &str) -> Result<u64> {
        let (rows, _) = self.sql(query).await?;
        let cell = rows.first().and_then(|row| row.first()).and_then(Value::as_u64);
        cell.ok_or_else(|| format!("{query}: no whole number: {rows:?}").into())
    }

    /// Posts a body of samples until it is taken.
    ///
    /// # Errors
    /// When it is refused for good.
    pub(crate) async fn post(&self, org: &str, media: &str, key: &str, body: bytes::Bytes) -> Result<()> {
        self.poster(org, "invocations").post(media, key, body).await
    }

    /// What posts to a resource of an org, `invocations` or `audit`.
    pub(crate) fn poster(&self, org: &str, resource: &str) -> Poster {
        Poster { http: self.http.clone(), url: format!("{}/v1/orgs/{org}/{resource}", self.url) }
    }

    /// Has an org's tables looked after until nothing is due. Gives the processor time that it took, in seconds.
    ///
    /// # Errors
    /// When it is refused.
    pub(crate) async fn compact(&self, org: &str) -> Result<f64> {
        let before = self.cpu_seconds()?;
        loop {
            let request = self.http.post(format!("{}/v1/orgs/{org}/storage/compact", self.url));
            let done: Value = serde_json::from_slice(&request.send().await?.error_for_status()?.bytes().await?)?;
            if done.get("merges").and_then(Value::as_u64).ok_or("no merges are told of")? == 0 {
                return Ok(self.cpu_seconds()? - before);
            }
        }
    }

    /// A document that the server gives.
    ///
    /// # Errors
    /// When it gives another answer than 200.
    pub(crate) async fn json(&self, path: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.text(path).await?)?)
    }

    /// A text that the server gives.
    ///
    /// # Errors
    /// When it gives another answer than 200.
    pub(crate) async fn text(&self, path: &str) -> Result<String> {
        Ok(self.http.get(format!("{}{path}", self.url)).send().await?.error_for_status()?.text().await?)
    }

    /// Ends it at once, as `kill -9` does.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub(crate) async fn kill(mut self) -> Result<()> {
        Ok(self.child.kill().await?)
    }

    /// Asks it to stop, and waits until it has flushed everything.
    ///
    /// # Errors
    /// When it does not end well or in time.
    pub(crate) async fn drain(mut self) -> Result<()> {
        let asked = Command::new("kill").args(["-TERM", &self.pid()?.to_string()]).status().await?;
        let ended = timeout(PATIENCE, self.child.wait()).await??;
        if asked.success() && ended.success() {
            return Ok(());
        }
        Err(complaint(&format!("ended with {ended}"), &self.log))
    }
}

/// Posts bodies to one resource, on any task.
#[derive(Debug, Clone)]
pub(crate) struct Poster {
    http: Client,
    url: String,
}

impl Poster {
    /// Posts a body until it is taken.
    ///
    /// # Errors
    /// When it is refused for good.
    pub(crate) async fn post(&self, media: &str, key: &str, body: bytes::Bytes) -> Result<()> {
        loop {
            let request = self.http.post(&self.url).header(CONTENT_TYPE, media).header("Idempotency-Key", key);
            let answer = request.body(body.clone()).send().await?;
            match answer.status() {
                StatusCode::OK => return Ok(()),
                StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                    let wait = answer.headers().get(RETRY_AFTER).and_then(|seconds| seconds.to_str().ok());
                    sleep(Duration::from_secs(wait.and_then(|seconds| seconds.parse().ok()).unwrap_or(1))).await;
                }
                status => return Err(format!("a body was refused: {status}: {}", answer.text().await?).into()),
            }
        }
    }
}

/// Bytes of all files in a folder, however deep.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn folder_bytes(folder: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        sum += if kind.is_dir() { folder_bytes(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(sum)
}
