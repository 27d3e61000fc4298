//! A real Alertmanager, and the receiver that it notifies.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use parking_lot::Mutex;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::{Program, free_port, plain_http, tool};

/// How long a start may take before it is a failure.
const START: Duration = Duration::from_secs(60);

/// An Alertmanager that notifies at once; ended when dropped.
#[derive(Debug)]
pub(crate) struct Alertmanager {
    port: u16,
    program: Program,
    received: Arc<Mutex<Vec<Value>>>,
    receiver: JoinHandle<()>,
    _folder: TempDir,
}

impl Alertmanager {
    /// Starts it and its receiver.
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/notify", listener.local_addr().unwrap());
        let received = Arc::<Mutex<Vec<Value>>>::default();
        let router = Router::new().route("/notify", post(notify)).with_state(Arc::clone(&received));
        let receiver = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let folder = TempDir::with_prefix("mcpg-alertmanager-").unwrap();
        let config = format!(
            "route: {{ receiver: test, group_by: ['...'], group_wait: 0s, group_interval: 1s, repeat_interval: 1h }}\n\
             receivers: [{{ name: test, webhook_configs: [{{ url: '{url}' }}] }}]\n"
        );
        let file = folder.path().join("alertmanager.yml");
        std::fs::write(&file, config).unwrap();
        let port = free_port();
        let mut program = Program::new("Alertmanager");
        let mut command = std::process::Command::new(tool("prometheus-alertmanager"));
        command.arg(format!("--config.file={}", file.display()));
        command.arg(format!("--storage.path={}", folder.path().join("data").display()));
        command.arg(format!("--web.listen-address=127.0.0.1:{port}")).arg("--cluster.listen-address=");
        program.spawn(&mut command);
        let client = plain_http().build().unwrap();
        let ready = format!("http://127.0.0.1:{port}/-/ready");
        program
            .ready(START, async || client.get(&ready).send().await.is_ok_and(|answer| answer.status().is_success()))
            .await;
        Self { port, program, received, receiver, _folder: folder }
    }

    /// Its address, as Prometheus takes it.
    pub(crate) fn authority(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The alerts of this name that its receiver was notified of, as they stand in the notifications.
    pub(crate) fn notified(&self, alert: &str) -> Vec<Value> {
        let received = self.received.lock();
        let alerts = received.iter().filter_map(|message| message["alerts"].as_array()).flatten();
        alerts.filter(|found| found["labels"]["alertname"] == alert).cloned().collect()
    }

    /// What it logged.
    pub(crate) fn logs(&self) -> String {
        self.program.logs()
    }
}

impl Drop for Alertmanager {
    fn drop(&mut self) {
        self.receiver.abort();
    }
}

async fn notify(State(received): State<Arc<Mutex<Vec<Value>>>>, axum::Json(message): axum::Json<Value>) {
    received.lock().push(message);
}
