//! What wraps keys: a file, Vault's transit protocol, AWS KMS; rotated, away, and destroyed.

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use super::{ALICE, OPERATOR, PATIENCE, config, entries, flushed, not_at_midnight, note, refused, stored, view};
use crate::harness::s3::Service;
use crate::harness::{Program, Server, eventually, free_port, mcpg, plain_http, python_command, run};

const START: Duration = Duration::from_secs(60);

/// `mcpg payload kek rotate`.
fn rotate(server: &Server) -> Value {
    let mut command = mcpg();
    command.args(["payload", "kek", "rotate", "--url", &server.url(), "--token", OPERATOR]);
    let output = run(&mut command);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test]
async fn a_kek_in_a_file_is_rotated_and_what_was_sealed_before_opens_after() {
    not_at_midnight().await;
    let mut server = config("").start().await;
    let call = stored(&server, "{\"q\":1}", "{}").await;
    let kek = server.storage().parent().unwrap().join("mcpg-data/keys/payload.kek");
    let before = std::fs::read_to_string(&kek).unwrap();
    let rotated = rotate(&server);
    assert_eq!(
        (&rotated["kek"], &rotated["rewrapped"], &rotated["destroyed"]),
        (&json!("file:2"), &json!(8), &json!(["file:1"]))
    );
    assert!(!std::fs::read_to_string(&kek).unwrap().contains(before.trim()));
    let told = entries(&server, "payload.kek_destroyed").await;
    assert_eq!((&told[0]["detail"]["kind"], &told[0]["detail"]["version"]), (&json!("file"), &json!("file:1")));
    server.kill();
    server.start().await;
    assert_eq!(view(&server.client(), call, "after a rotation").await.ok().json()["request"]["text"], "{\"q\":1}");
    // A copy of the store and of its keys opens nothing with the KEK of before, nor without any.
    server.kill();
    std::fs::write(&kek, before).unwrap();
    server.start().await;
    refused(&view(&server.client(), call, "with the old KEK").await, 500, "record_damaged");
}

/// A faithful server of the transit protocol, of the tests' own.
struct Transit {
    program: Program,
    port: u16,
}

impl Transit {
    async fn start() -> Self {
        let mut transit = Self { program: Program::new("the transit server"), port: free_port() };
        transit.again().await;
        transit
    }

    async fn again(&mut self) {
        let mut command: Command = python_command("transit.py");
        command.arg(self.port.to_string());
        self.program.spawn(&mut command);
        let (client, url) = (plain_http().build().unwrap(), self.url());
        let health = format!("{url}/v1/sys/health");
        self.program
            .ready(START, async || client.get(&health).send().await.is_ok_and(|a| a.status().is_success()))
            .await;
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

#[tokio::test]
async fn a_kek_in_vault_is_rotated_trimmed_and_waited_for_when_it_is_away() {
    not_at_midnight().await;
    let transit = Transit::start().await;
    let keys = format!(
        "payload_keys: {{ vault: {{ url: \"{}\", key: mcpg, auth: {{ role_id: the-role, secret_id: the-secret }} }} }}",
        transit.url()
    );
    let mut server = config("").with(&keys).start().await;
    let call = stored(&server, "{\"q\":\"in a vault\"}", "{}").await;
    let rotated = rotate(&server);
    assert_eq!(
        (&rotated["kek"], &rotated["destroyed"]),
        (&json!("vault:transit/mcpg:2"), &json!(["vault:transit/mcpg:1"])),
        "{rotated}"
    );
    assert_eq!(rotated["rewrapped"], 8);
    view(&server.client(), call, "after a rotation").await.ok();
    flushed(&server, 2).await;
    // Away: nothing unwraps, which the ledger says; what was sealed before opens when it is back.
    server.kill();
    transit.program.pause();
    server.start().await;
    let answer = view(&server.client(), call, "while it is away").await;
    refused(&answer, 503, "key_service_unavailable");
    assert!(!answer.header("retry-after").is_empty());
    assert_eq!(entries(&server, "payload.view_failed").await.len(), 1);
    // The note of the keys that are made goes on.
    assert_eq!(note(&server).await.epochs.len(), 8);
    transit.program.resume();
    eventually("it to be back", PATIENCE, async || {
        let answer = view(&server.client(), call, "it is back").await;
        if answer.status.is_success() {
            return Some(());
        }
        refused(&answer, 503, "key_service_unavailable");
        None
    })
    .await;
}

/// moto's server speaks KMS as it does S3.
#[tokio::test]
async fn a_kek_in_aws_kms_is_put_behind_its_alias_anew() {
    not_at_midnight().await;
    let moto = Service::moto().await;
    let endpoint = &moto.bucket().endpoint;
    let kms = python_command("kms_key.py").arg(endpoint).arg("make").output().unwrap();
    assert!(kms.status.success(), "{}", String::from_utf8_lossy(&kms.stderr));
    let keys =
        format!("payload_keys: {{ aws_kms: {{ key_id: alias/mcpg, region: us-east-1, endpoint: \"{endpoint}\" }} }}");
    let environment = [("AWS_ACCESS_KEY_ID", "mcpgtest"), ("AWS_SECRET_ACCESS_KEY", "mcpg-test-secret")];
    let environment = environment.map(|(name, value)| (name, value.into())).to_vec();
    let server = config("").with(&keys).environment(environment).start().await;
    let call = stored(&server, "{\"q\":\"in kms\"}", "{}").await;
    let rotated = rotate(&server);
    assert!(rotated["kek"].as_str().unwrap().starts_with("aws_kms:arn:aws:kms:us-east-1:"), "{rotated}");
    assert_eq!(
        (rotated["rewrapped"].as_u64(), rotated["destroyed"].as_array().map(Vec::len)),
        (Some(8), Some(1)),
        "{rotated}"
    );
    let old = rotated["destroyed"][0].as_str().unwrap().strip_prefix("aws_kms:").unwrap();
    let state = python_command("kms_key.py").arg(endpoint).arg(old).output().unwrap();
    assert_eq!(String::from_utf8(state.stdout).unwrap().trim(), "PendingDeletion");
    view(&server.client().with_token(ALICE), call, "after a rotation").await.ok();
}
