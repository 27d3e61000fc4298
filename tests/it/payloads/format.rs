//! The format, by the page alone: another program, in Python, opens the vector and what the product itself has sealed.

use mcpg::payload::{Direction, KeyPair, Suite};
use serde_json::json;
use uuid::Uuid;

use super::{body, config, note};
use crate::harness::{mcpg, python, run};

#[tokio::test]
async fn python_opens_the_vector_and_refuses_every_changed_byte() {
    let vector = concat!(env!("CARGO_MANIFEST_DIR"), "/schemas/payload-vector.txt");
    let found = python("payload_open.py", &["vector", vector]).await;
    assert_eq!(
        (&found["opened"], &found["sound"], &found["alone"]),
        (&json!(true), &json!(0), &json!("stanza")),
        "{found}"
    );
    let refused = &found["refused"];
    for reason in ["format", "suite", "envelope", "commitment", "tag"] {
        assert!(refused[reason].as_u64().is_some_and(|count| count > 0), "{refused}");
    }
}

/// What the product seals, opened by the page alone: for an epoch's key of the product's own, and a tenant's.
#[tokio::test]
async fn python_opens_a_live_record() {
    let folder = tempfile::tempdir().unwrap();
    for suite in [Suite::XWing, Suite::X25519] {
        let (epoch, tenant) = (KeyPair::random(suite).unwrap(), KeyPair::random(suite).unwrap());
        let mut note = note_of(&epoch);
        note.recipient = Some(tenant.public().clone());
        let sealed = body(&note, &[(Uuid::now_v7(), Direction::Request, "{\"q\":\"nädel\"}")]);
        let frames = mcpg::payload::frames::read(&sealed.clone().into()).unwrap();
        let (envelope, record) = (folder.path().join("envelope"), folder.path().join("record"));
        std::fs::write(&envelope, &sealed[4..frames[1].at - 4]).unwrap();
        std::fs::write(&record, &sealed[frames[1].at..]).unwrap();
        let seeds = [&epoch, &tenant].map(|key| mcpg::payload::Digest(*key.seed().expose()).to_string());
        let paths = [&envelope, &record].map(|path| path.to_str().unwrap().to_owned());
        let found = python("payload_open.py", &["open", &paths[0], &paths[1], &seeds[0], &seeds[1]]).await;
        assert_eq!(found["text"], "{\"q\":\"nädel\"}", "{found}");
        let swapped = python("payload_open.py", &["open", &paths[0], &paths[1], &seeds[1], &seeds[0]]).await;
        assert_eq!(swapped["refused"], "stanza");
    }
}

fn note_of(key: &KeyPair) -> mcpg::payload::note::KeyNote {
    let today = super::now();
    mcpg::payload::note::KeyNote {
        name: "mcpg.local".to_owned(),
        org: "default".parse().unwrap(),
        issued: today,
        expires: today + chrono::TimeDelta::days(1),
        period: 30,
        plugins: std::collections::BTreeMap::new(),
        epochs: [(mcpg::payload::Epoch::new(today.date_naive(), 30).unwrap(), key.public().clone())].into(),
        recipient: None,
    }
}

/// With a tenant's own key the control plane alone opens nothing; the tenant opens an export offline.
#[tokio::test]
async fn a_tenant_opens_an_export_offline_and_the_control_plane_alone_opens_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("tenant.key");
    let made = run(mcpg().args(["payload", "keygen", "--out"]).arg(&key));
    let public = String::from_utf8(made.stdout).unwrap().trim().to_owned();
    let server = config(&format!(", payloads: {{ recipient: \"{public}\" }}")).start().await;
    assert_eq!(note(&server).await.recipient.unwrap().to_string(), public);
    let call = super::stored(&server, "{\"secret\":\"for two\"}", "{}").await;
    super::refused(&super::view(&server.client(), call, "looking").await, 409, "sealed_for_tenant");
    let (out, from) = (folder.path().join("export.tar"), (super::now() - chrono::TimeDelta::hours(1)).to_rfc3339());
    let to = (super::now() + chrono::TimeDelta::hours(1)).to_rfc3339();
    let url = server.url();
    let args = [
        "payload",
        "export",
        "--url",
        &url,
        "--token",
        super::ALICE,
        "--from",
        &from,
        "--to",
        &to,
        "--reason",
        "audit",
    ];
    let exported = run(mcpg().args(args).arg("--out").arg(&out));
    assert!(exported.status.success(), "{}", String::from_utf8_lossy(&exported.stderr));
    let entry = &super::entries(&server, "payload.exported").await[0];
    assert_eq!((&entry["actor"], &entry["reason"]), (&json!("user:alice@acme"), &json!("audit")));
    let alone = run(mcpg().args(["payload", "open"]).arg(&out));
    assert_eq!(alone.status.code(), Some(1), "nothing opens without the tenant's key");
    assert!(!String::from_utf8_lossy(&alone.stdout).contains("for two"));
    let opened = run(mcpg().args(["payload", "open", "--key"]).arg(&key).arg(&out));
    assert!(opened.status.success(), "{}", String::from_utf8_lossy(&opened.stdout));
    assert!(String::from_utf8_lossy(&opened.stdout).contains("for two"));
}
