//! A ledger to begin with: made by the real server, copied as often as a test wants to spoil it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Method;
use reqwest::header::{CONTENT_TYPE, HeaderName};
use serde_json::{Value, json};
use tempfile::TempDir;
use uuid::Uuid;

use crate::harness::{Client, Config, Server, eventually, mcpg, run};

/// The org of these ledgers.
pub(crate) const ORG: &str = "default";

/// Events `from` up to and without `to`, in NDJSON; every column of the ledger has a value in some of them and none in
/// others.
pub(crate) fn events(from: u64, to: u64) -> Vec<u8> {
    let event = |n: u64| {
        let (action, decision) =
            [("tool.permit", "permit"), ("tool.deny", "deny"), ("plugin.started", "")][(n % 3) as usize];
        let mut event = json!({
            "event_id": Uuid::from_u128(u128::from(n) | 7 << 76 | 2 << 62).to_string(),
            "actor": format!("user:{}@acme", ["alice", "bob", "carol"][(n % 3) as usize]),
            "action": action,
            "target": "github/list_repos",
            "instance": format!("gw-{}", n % 2),
            "emitter_seq": n / 2,
        });
        if n % 3 < 2 {
            let more = json!({
                "occurred_at": format!("2026-01-02T03:04:{:02}.{:06}Z", n % 60, n % 1_000_000),
                "decision": decision,
                "policy_ids": [format!("policy-{}", n % 7), "base \"quoted\" \\ \u{e9}\u{1f600}"],
                "obligations": ["redact"],
                "reason": "because\nof a rule",
                "workspace": "prod",
                "request_id": format!("r-{n}"),
                "trace_id": format!("{:032x}", n + 1),
                "span_id": format!("{:016x}", n + 1),
                "invocation_id": Uuid::from_u128(u128::from(n) | 7 << 76 | 2 << 62 | 1 << 100).to_string(),
                "detail": { "n": n, "note": "a \"detail\"" },
            });
            event.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        }
        event.to_string()
    };
    let lines: Vec<String> = (from..to).map(event).collect();
    (lines.join("\n") + "\n").into_bytes()
}

/// Posts events and has them acknowledged.
pub(crate) async fn post(client: &Client, body: Vec<u8>, key: Option<&str>) -> u64 {
    let mut headers = vec![(CONTENT_TYPE, "application/x-ndjson")];
    headers.extend(key.map(|key| (HeaderName::from_static("idempotency-key"), key)));
    let answer = client.send(Method::POST, "audit", &headers, body).await.unwrap().ok().json();
    answer["accepted"].as_u64().unwrap()
}

/// What `mcpg audit verify` said, and with which exit code.
#[derive(Debug, Clone)]
pub(crate) struct Verdict {
    pub(crate) code: i32,
    /// Its line of JSON; null when it could not check.
    pub(crate) told: Value,
    pub(crate) stderr: String,
}

impl Verdict {
    /// The report on a ledger that must be sound.
    #[track_caller]
    pub(crate) fn sound(self) -> Value {
        assert_eq!((self.code, &self.told["sound"]), (0, &json!(true)), "{self:?}");
        self.told
    }

    /// What is wrong first, which must be something: its kind, the entry, the file.
    #[track_caller]
    pub(crate) fn not_sound(&self) -> (String, Option<u64>, String) {
        assert_eq!((self.code, &self.told["sound"]), (1, &json!(false)), "{self:?}");
        let text = |name: &str| self.told[name].as_str().unwrap_or_else(|| panic!("no {name}: {self:?}")).to_owned();
        assert!(!text("why").is_empty() && self.stderr.contains(&text("file")), "{self:?}");
        (text("kind"), self.told["seq"].as_u64(), text("file"))
    }
}

/// Runs `mcpg audit verify --json` of [`ORG`]'s ledger with these arguments.
pub(crate) async fn verify(arguments: &[&str]) -> Verdict {
    let mut command = mcpg();
    command.args(["audit", "verify", "--json", "--org", ORG]).args(arguments).env_remove("MCPG_TOKEN");
    let output = tokio::task::spawn_blocking(move || run(&mut command)).await.unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(!stderr.contains("panicked"), "{stderr}");
    let told = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    Verdict { code: output.status.code().unwrap(), told, stderr }
}

/// A ledger of a server that has stopped.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) server: Server,
    pub(crate) vkey: String,
    /// PKCS#8 PEM of the key that signed it.
    pub(crate) key_file: PathBuf,
    folder: TempDir,
}

impl Given {
    /// A ledger with `count` events of [`events`], in several segments under several heads.
    pub(crate) async fn of(count: u64, segments: u64) -> Self {
        let folder = TempDir::with_prefix("mcpg-ledger-").unwrap();
        let key_file = folder.path().join("ledger.key");
        let config = Config::new().with(&format!("audit: {{ key_file: {} }}", key_file.display()));
        let mut server = config.start().await;
        let client = server.client();
        let each = count.div_ceil(segments);
        for from in (0..count).step_by(each as usize) {
            let to = (from + each).min(count);
            for start in (from..to).step_by(1_000) {
                post(&client, events(start, (start + 1_000).min(to)), None).await;
            }
            // A segment ends about once a second; the next part is to be in another one.
            eventually("the part to be under a head", Duration::from_secs(120), async || {
                let answer = client.get("audit/checkpoint").await;
                let size = answer.text().lines().nth(1).and_then(|size| size.parse::<u64>().ok());
                size.filter(|size| *size >= to)
            })
            .await;
        }
        let vkey = client.get("audit/vkey").await.ok().text().trim().to_owned();
        assert!(server.stop().await.success());
        Self { server, vkey, key_file, folder }
    }

    /// The folder of the ledger in the server's store.
    pub(crate) fn ledger(&self) -> PathBuf {
        self.server.storage().join(format!("orgs/{ORG}/audit"))
    }

    /// A copy of the store's ledger, to spoil. Files are linked: spoil one by writing it anew, see [`Copied::write`].
    pub(crate) fn copy(&self) -> Copied {
        let folder = TempDir::with_prefix_in("copy-", self.folder.path()).unwrap();
        let ledger = folder.path().join(format!("orgs/{ORG}/audit"));
        link(&self.ledger(), &ledger);
        Copied { folder, ledger, vkey: self.vkey.clone() }
    }
}

/// A copy of a ledger in a store of its own.
#[derive(Debug)]
pub(crate) struct Copied {
    folder: TempDir,
    pub(crate) ledger: PathBuf,
    pub(crate) vkey: String,
}

impl Copied {
    pub(crate) fn store(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a file of the ledger, whether there is one or not; the one that the copy was made of stays as it is.
    pub(crate) fn write(&self, path: &str, bytes: &[u8]) {
        let path = self.ledger.join(path);
        drop(fs::remove_file(&path));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    pub(crate) fn read(&self, path: &str) -> Vec<u8> {
        fs::read(self.ledger.join(path)).unwrap()
    }

    pub(crate) fn remove(&self, path: &str) {
        fs::remove_file(self.ledger.join(path)).unwrap();
    }

    /// Changes one byte of a file.
    pub(crate) fn flip(&self, path: &str, at: usize) {
        let mut bytes = self.read(path);
        bytes[at] ^= 0x10;
        self.write(path, &bytes);
    }

    /// The names of the files in a folder, in order.
    pub(crate) fn names(&self, folder: &str) -> Vec<String> {
        names(&self.ledger.join(folder))
    }

    pub(crate) async fn verify(&self) -> Verdict {
        verify(&["--store", self.folder.path().to_str().unwrap(), "--vkey", &self.vkey]).await
    }
}

pub(crate) fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// All files under `folder`, by their paths in it.
pub(crate) fn files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for name in names(folder) {
        let path = folder.join(&name);
        if path.is_dir() {
            found.extend(files(&path).into_iter().map(|inner| format!("{name}/{inner}")));
        } else {
            found.push(name);
        }
    }
    found
}

fn link(from: &Path, to: &Path) {
    for path in files(from) {
        let target = to.join(&path);
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::hard_link(from.join(&path), target).unwrap();
    }
}
