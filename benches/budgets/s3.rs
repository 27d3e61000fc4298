//! A bucket to measure with: SeaweedFS, and before it a proxy that takes a while for each request, as a remote store
//! does, and counts.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::{Method, StatusCode, header};
use object_store::ObjectStoreExt;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::signer::Signer;
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::Result;

const BUCKET: &str = "mcpg";
const REGION: &str = "us-east-1";
const ACCESS_KEY_ID: &str = "mcpgbench";
const SECRET_ACCESS_KEY: &str = "mcpg-bench-secret";
const START: Duration = Duration::from_secs(60);
/// The largest body that passes: the largest object is written in parts of less.
const LARGEST: usize = 256 << 20;

/// Requests of one kind: how many, and their bodies' bytes there and back.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Count {
    pub(crate) requests: u64,
    pub(crate) sent: u64,
    pub(crate) received: u64,
}

/// A running service with one empty bucket, behind the proxy.
#[derive(Debug)]
pub(crate) struct Remote {
    endpoint: String,
    counts: Arc<Mutex<BTreeMap<String, Count>>>,
    serving: JoinHandle<()>,
    _service: Child,
    _folder: TempDir,
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Remote {
    /// Starts it; each request takes `delay` longer than the service does.
    ///
    /// # Errors
    /// When the service is not installed or does not come up.
    pub(crate) async fn start(delay: Duration) -> Result<Self> {
        let folder = TempDir::with_prefix("mcpg-budgets-bucket-")?;
        let ports = ports(9)?;
        let [s3, rest @ ..] = ports.as_slice() else { return Err("no ports".into()) };
        let identities = serde_json::json!({ "identities": [{
            "name": "bench", "credentials": [{ "accessKey": ACCESS_KEY_ID, "secretKey": SECRET_ACCESS_KEY }],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }] });
        let (file, data) = (folder.path().join("identities.json"), folder.path().join("data"));
        std::fs::write(&file, identities.to_string())?;
        std::fs::create_dir(&data)?;
        let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/weed"));
        command.arg("server").arg(format!("-dir={}", data.display()));
        command.args(["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", "-volume.max=100", "-master.volumeSizeLimitMB=64"]);
        command.args([format!("-s3.port={s3}"), format!("-s3.config={}", file.display())]);
        command.args(["-s3.port.iceberg=0", "-s3.port.lance=0", "-metricsPort=0", "-master.telemetry=false"]);
        let names = [
            "master.port",
            "volume.port",
            "filer.port",
            "master.port.grpc",
            "volume.port.grpc",
            "filer.port.grpc",
            "s3.port.grpc",
        ];
        for (name, port) in names.into_iter().zip(rest) {
            command.arg(format!("-{name}={port}"));
        }
        let service =
            command.current_dir(folder.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let service = service.kill_on_drop(true).spawn()?;
        let upstream = format!("127.0.0.1:{s3}");
        make(&format!("http://{upstream}")).await?;
        let counts = Arc::new(Mutex::new(BTreeMap::new()));
        let passing = Passing {
            upstream,
            delay,
            http: reqwest::Client::builder().no_proxy().build()?,
            counts: Arc::clone(&counts),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let router = Router::new().fallback(pass).with_state(passing);
        let serving = tokio::spawn(async move {
            // It ends with the runtime or the `Remote`.
            drop(axum::serve(listener, router).await);
        });
        Ok(Self { endpoint, counts, serving, _service: service, _folder: folder })
    }

    /// The setting `storage` of a control plane on it, under `prefix`.
    pub(crate) fn storage(&self, prefix: &str) -> String {
        format!(
            "{{ url: \"s3://{BUCKET}/{prefix}\", endpoint: \"{}\", region: {REGION}, allow_http: true, access_key_id: \
             \"{ACCESS_KEY_ID}\", secret_access_key: \"{SECRET_ACCESS_KEY}\" }}",
            self.endpoint
        )
    }

    /// What came through since this was asked last, by method and kind.
    pub(crate) fn take(&self) -> BTreeMap<String, Count> {
        std::mem::take(&mut *self.counts.lock())
    }
}

#[derive(Debug, Clone)]
struct Passing {
    upstream: String,
    delay: Duration,
    http: reqwest::Client,
    counts: Arc<Mutex<BTreeMap<String, Count>>>,
}

async fn pass(State(passing): State<Passing>, request: Request) -> Response {
    match try_pass(&passing, request).await {
        Ok(answer) => answer,
        Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    }
}

async fn try_pass(passing: &Passing, request: Request) -> Result<Response> {
    let (parts, body) = request.into_parts();
    let sent = to_bytes(body, LARGEST).await?;
    sleep(passing.delay).await;
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    let kind =
        if parts.method == Method::GET && target.contains("list-type=") { "LIST" } else { parts.method.as_str() };
    let url = format!("http://{}{target}", passing.upstream);
    let (kind, sent_bytes) = (kind.to_owned(), sent.len() as u64);
    // The signature is over the headers that came, the host among them.
    let answer = passing.http.request(parts.method, url).headers(parts.headers).body(sent).send().await?;
    let (status, mut headers) = (answer.status(), answer.headers().clone());
    headers.remove(header::TRANSFER_ENCODING);
    headers.remove(header::CONNECTION);
    let received = answer.bytes().await?;
    {
        let mut counts = passing.counts.lock();
        let count: &mut Count = counts.entry(kind).or_default();
        count.requests += 1;
        count.sent += sent_bytes;
        count.received += received.len() as u64;
    }
    let mut response = Response::new(Body::from(received));
    (*response.status_mut(), *response.headers_mut()) = (status, headers);
    Ok(response)
}

/// Free ports, all different. Another program may take one before it is used; then the start fails and says so.
fn ports(count: usize) -> Result<Vec<u16>> {
    let taken: Vec<_> = (0..count).map(|_| std::net::TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    Ok(taken.iter().map(|listener| Ok(listener.local_addr()?.port())).collect::<Result<_, std::io::Error>>()?)
}

fn client(endpoint: &str) -> Result<AmazonS3> {
    let builder = AmazonS3Builder::new().with_endpoint(endpoint).with_allow_http(true).with_region(REGION);
    let builder = builder.with_bucket_name(BUCKET).with_access_key_id(ACCESS_KEY_ID);
    Ok(builder.with_secret_access_key(SECRET_ACCESS_KEY).build()?)
}

/// Waits for the service, makes the bucket, and waits until it takes an object.
async fn make(endpoint: &str) -> Result<()> {
    let (client, http, began) = (client(endpoint)?, reqwest::Client::builder().no_proxy().build()?, Instant::now());
    let url = client.signed_url(Method::PUT, &object_store::path::Path::default(), START).await?;
    while began.elapsed() < START {
        let made = http.put(url.as_str()).header("content-length", "0").send().await;
        if made.is_ok_and(|answer| answer.status().is_success())
            && client.put(&"ready".into(), "x".into()).await.is_ok()
            && client.delete(&"ready".into()).await.is_ok()
        {
            return Ok(());
        }
        sleep(Duration::from_millis(200)).await;
    }
    Err("SeaweedFS does not come up; `make setup` installs it".into())
}
