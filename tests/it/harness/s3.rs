//! Services that speak S3's protocol: SeaweedFS, which does what it must, moto, and two that ignore conditions in
//! silence.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use http::Method;
use mcpg::config::{Secret, Storage, StorageUrl};
use mcpg::storage::Store;
use object_store::aws::AmazonS3Builder;
use object_store::signer::Signer;
use tempfile::TempDir;
use tokio::sync::Mutex;

use super::{Program, free_port, node, npm};

/// How long a start may take before it is a failure.
const START: Duration = Duration::from_secs(60);
const REGION: &str = "us-east-1";
/// The key that the services know.
const ACCESS_KEY_ID: &str = "mcpgtest";
const SECRET_ACCESS_KEY: &str = "mcpg-test-secret";

/// A bucket of a service, and what opens it.
#[derive(Debug, Clone)]
pub(crate) struct Bucket {
    pub(crate) endpoint: String,
    pub(crate) name: String,
    pub(crate) access_key_id: String,
    pub(crate) secret_access_key: String,
}

impl Bucket {
    /// The same bucket, reached at another endpoint: a proxy's.
    pub(crate) fn at(&self, endpoint: &str) -> Self {
        Self { endpoint: endpoint.to_owned(), ..self.clone() }
    }

    /// The URL of what is under `prefix`.
    pub(crate) fn url(&self, prefix: &str) -> String {
        format!("s3://{}/{prefix}", self.name)
    }

    /// The settings of a store under `prefix`.
    pub(crate) fn settings(&self, prefix: &str) -> Storage {
        Storage {
            url: StorageUrl::S3 { bucket: self.name.clone(), prefix: prefix.to_owned() },
            endpoint: Some(url::Url::parse(&self.endpoint).unwrap().into()),
            region: Some(REGION.to_owned()),
            allow_http: self.endpoint.starts_with("http://").then_some(true),
            access_key_id: Some(self.access_key_id.clone()),
            secret_access_key: Some(Secret::new(&self.secret_access_key)),
            ..Storage::default()
        }
    }

    /// The store under `prefix`.
    pub(crate) fn store(&self, prefix: &str) -> Store {
        Store::open_with(&self.settings(prefix)).unwrap()
    }

    /// The setting `storage` of a configuration file, in one line.
    pub(crate) fn yaml(&self, prefix: &str) -> String {
        format!(
            "{{ url: \"{}\", endpoint: \"{}\", region: {REGION}, allow_http: true, access_key_id: \"{}\", \
             secret_access_key: \"{}\" }}",
            self.url(prefix),
            self.endpoint,
            self.access_key_id,
            self.secret_access_key
        )
    }

    /// The environment that opens it for a program that is given only its URL.
    pub(crate) fn environment(&self) -> [(&'static str, String); 5] {
        [
            ("AWS_ENDPOINT_URL", self.endpoint.clone()),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
            ("AWS_REGION", REGION.to_owned()),
            ("AWS_ACCESS_KEY_ID", self.access_key_id.clone()),
            ("AWS_SECRET_ACCESS_KEY", self.secret_access_key.clone()),
        ]
    }

    /// Makes it; whether the service did.
    async fn make(&self) -> bool {
        let client = AmazonS3Builder::new()
            .with_endpoint(&self.endpoint)
            .with_allow_http(true)
            .with_region(REGION)
            .with_bucket_name(&self.name)
            .with_access_key_id(&self.access_key_id)
            .with_secret_access_key(&self.secret_access_key)
            .build()
            .unwrap();
        let url = client.signed_url(Method::PUT, &object_store::path::Path::default(), START).await.unwrap();
        let http = reqwest::Client::builder().no_proxy().danger_accept_invalid_certs(true).build().unwrap();
        http.put(url.as_str())
            .header("content-length", "0")
            .send()
            .await
            .is_ok_and(|answer| answer.status().is_success())
    }
}

/// A program that `tests/setup.sh` installed from PyPI.
fn pypi(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin").join(name);
    assert!(path.exists(), "{name} is not installed: run `make test` or tests/setup.sh");
    path
}

/// A SeaweedFS server with all its parts in one process. It is stopped when it is dropped, and so is its data.
#[derive(Debug)]
pub(crate) struct Seaweed {
    endpoint: String,
    buckets: AtomicUsize,
    _program: Program,
    _folder: TempDir,
}

impl Seaweed {
    /// Starts one of its own and waits until it takes writes.
    pub(crate) async fn start() -> Self {
        let folder = TempDir::with_prefix("mcpg-seaweed-").unwrap();
        let identity = serde_json::json!({ "identities": [{
            "name": "test",
            "credentials": [{ "accessKey": ACCESS_KEY_ID, "secretKey": SECRET_ACCESS_KEY }],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }] });
        let (identities, data) = (folder.path().join("identities.json"), folder.path().join("data"));
        std::fs::write(&identities, identity.to_string()).unwrap();
        std::fs::create_dir(&data).unwrap();
        let port = free_port();
        let mut command = std::process::Command::new(pypi("weed"));
        command.arg("server").arg(format!("-dir={}", data.display()));
        command.args(["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", "-volume.max=700", "-master.volumeSizeLimitMB=64"]);
        command.args([format!("-s3.port={port}"), format!("-s3.config={}", identities.display())]);
        command.args(["-s3.port.iceberg=0", "-s3.port.lance=0", "-metricsPort=0", "-master.telemetry=false"]);
        for part in ["master", "volume", "filer"] {
            command.arg(format!("-{part}.port={}", free_port()));
        }
        for part in ["master", "volume", "filer", "s3"] {
            command.arg(format!("-{part}.port.grpc={}", free_port()));
        }
        command.current_dir(folder.path());
        let mut program = Program::new("SeaweedFS");
        program.spawn(&mut command);
        let endpoint = format!("http://127.0.0.1:{port}");
        let first = Bucket { endpoint: endpoint.clone(), ..bucket("ready") };
        program.ready(START, async || first.make().await && writes(&first).await).await;
        Self { endpoint, buckets: AtomicUsize::new(0), _program: program, _folder: folder }
    }

    /// The one that tests which run at the same time share; it is stopped with the last of them. Buckets keep them
    /// apart.
    pub(crate) async fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Seaweed>> = Mutex::const_new(Weak::new());
        let mut shared = SHARED.lock().await;
        if let Some(running) = shared.upgrade() {
            return running;
        }
        let started = Arc::new(Self::start().await);
        *shared = Arc::downgrade(&started);
        started
    }

    /// A new bucket. A server has room for about a hundred.
    pub(crate) async fn bucket(&self) -> Bucket {
        let number = self.buckets.fetch_add(1, Ordering::Relaxed);
        let made = Bucket { endpoint: self.endpoint.clone(), ..bucket(&format!("test-{number}")) };
        assert!(made.make().await, "SeaweedFS makes no bucket");
        made
    }
}

/// Whether an object can be written: SeaweedFS answers before it has room for one.
async fn writes(bucket: &Bucket) -> bool {
    bucket.store("").put(&"ready".into(), "x".into()).await.is_ok()
}

fn bucket(name: &str) -> Bucket {
    Bucket {
        endpoint: String::new(),
        name: name.to_owned(),
        access_key_id: ACCESS_KEY_ID.to_owned(),
        secret_access_key: SECRET_ACCESS_KEY.to_owned(),
    }
}

/// Another service than SeaweedFS, with one bucket.
#[derive(Debug)]
pub(crate) struct Service {
    bucket: Bucket,
    _program: Program,
    _folder: TempDir,
}

impl Service {
    /// moto: in memory, does all that it should. An update of what is absent is answered 404.
    pub(crate) async fn moto() -> Self {
        Self::run("moto", |command, port, _| {
            command.args(["-H", "127.0.0.1", "-p", port]);
        })
        .await
    }

    /// `rclone serve s3`, which ignores If-None-Match.
    pub(crate) async fn rclone() -> Self {
        Self::run("rclone", |command, port, folder| {
            std::fs::create_dir(folder.join("mcpg")).unwrap();
            command.args(["serve", "s3", "--addr", &format!("127.0.0.1:{port}")]);
            command.arg(format!("--auth-key={ACCESS_KEY_ID},{SECRET_ACCESS_KEY}")).arg(folder);
        })
        .await
    }

    /// `s3rver`, which ignores If-None-Match.
    pub(crate) async fn s3rver() -> Self {
        Self::run("s3rver", |command, port, folder| {
            command.arg("-d").arg(folder).args(["-a", "127.0.0.1", "-p", port, "--configure-bucket", "mcpg"]);
        })
        .await
    }

    async fn run(name: &'static str, configure: impl Fn(&mut std::process::Command, &str, &Path)) -> Self {
        let folder = TempDir::with_prefix("mcpg-s3-").unwrap();
        let port = free_port();
        let mut command = match name {
            "s3rver" => node(&npm("s3rver")),
            "moto" => std::process::Command::new(pypi("moto_server")),
            name => std::process::Command::new(pypi(name)),
        };
        configure(&mut command, &port.to_string(), folder.path());
        let mut program = Program::new(name);
        program.spawn(command.current_dir(folder.path()));
        let mut bucket = Bucket { endpoint: format!("http://127.0.0.1:{port}"), ..bucket("mcpg") };
        if name == "s3rver" {
            bucket.access_key_id = "S3RVER".to_owned();
            bucket.secret_access_key = "S3RVER".to_owned();
        }
        let makes = name == "moto";
        program.ready(START, async || (!makes || bucket.make().await) && writes(&bucket).await).await;
        Self { bucket, _program: program, _folder: folder }
    }

    /// Its bucket.
    pub(crate) fn bucket(&self) -> &Bucket {
        &self.bucket
    }
}
