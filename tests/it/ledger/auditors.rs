//! Every way to verify: a store, a server, a bundle, an unpacked one, a verifier written from the format's description by somebody
//! else, and implementations of the public formats that are not ours.

use std::fs;
use std::process::Command;

use serde_json::json;
use tempfile::TempDir;

use super::given::{Given, ORG, events, names, post, verify};
use crate::harness::{Config, alone, mcpg, python, run};

fn ok(command: &mut Command) -> String {
    let output = run(command);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_a_server_and_a_bundle_give_the_same_verdict() {
    let _alone = alone().await;
    let mut given = Given::of(3_000, 2).await;
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let vkey = given.vkey.clone();
    let store = given.server.storage().to_str().unwrap().to_owned();
    let expected = verify(&["--store", &store, "--vkey", &vkey]).await.sound();
    assert_eq!(verify(&["--store", &format!("file://{store}"), "--vkey", &vkey]).await.sound(), expected);

    ok(mcpg().args(["audit", "export", "--org", ORG, "--store", &store, "--out", &path("store.tar")]));
    let bundle = path("store.tar");
    assert_eq!(verify(&["--bundle", &bundle, "--vkey", &vkey]).await.sound(), expected);
    assert!(names(folder.path()) == ["store.tar"], "no half of a bundle is left");
    ok(Command::new("tar").args(["-xf", &bundle, "-C", folder.path().to_str().unwrap()]));
    fs::rename(folder.path().join("store.tar"), folder.path().join("moved.tar")).unwrap();
    let unpacked = folder.path().to_str().unwrap();
    assert_eq!(verify(&["--bundle", unpacked, "--vkey", &vkey]).await.sound(), expected);
    assert_eq!(python("ledger_verify.py", &[&path("moved.tar"), ORG, &vkey]).await["root"], expected["root"]);

    // A server hands out the same; it has entries of its own by now, from its start.
    given.server.start().await;
    let url = given.server.url();
    let told = verify(&["--url", &url, "--vkey", &vkey]).await.sound();
    assert!(told["size"].as_u64() >= expected["size"].as_u64(), "{told}");
    ok(mcpg().args(["audit", "export", "--org", ORG, "--url", &url, "--out", &path("url.tar")]));
    assert_eq!(verify(&["--bundle", &path("url.tar"), "--vkey", &vkey]).await.sound()["origin"], told["origin"]);
    assert_eq!(ok(mcpg().args(["audit", "vkey", "--org", ORG, "--url", &url])).trim(), vkey);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spoiled_bundle_is_not_sound() {
    let given = Given::of(300, 1).await;
    let folder = TempDir::new().unwrap();
    let (store, bundle) = (given.server.storage().to_str().unwrap(), folder.path().join("b.tar"));
    let file = bundle.to_str().unwrap();
    ok(mcpg().args(["audit", "export", "--org", ORG, "--store", store, "--out", file]));
    let whole = fs::read(&bundle).unwrap();
    let mut step = 0;
    for at in (0..whole.len()).step_by(whole.len() / 60) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        fs::write(&bundle, &bytes).unwrap();
        let verdict = verify(&["--bundle", file, "--vkey", &given.vkey]).await;
        // Padding, and what a tar header says of owners and times, claims nothing.
        step += u32::from(verdict.code == 1);
        assert!(matches!(verdict.code, 0 | 1), "byte {at}: {verdict:?}");
    }
    assert!(step > 30, "{step} of 60 changes were found");
    for cut in [0, 100, 512, whole.len() / 2] {
        fs::write(&bundle, &whole[..cut]).unwrap();
        let verdict = verify(&["--bundle", file, "--vkey", &given.vkey]).await;
        assert!(matches!(verdict.code, 1 | 2), "cut at {cut}: {verdict:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_checked_is_neither_sound_nor_unsound() {
    let given = Given::of(10, 1).await;
    let (vkey, empty) = (given.vkey.as_str(), TempDir::new().unwrap());
    let empty = empty.path().to_str().unwrap();
    for arguments in [
        &["--store", empty, "--vkey", vkey][..],
        &["--store", "/nonexistent", "--vkey", vkey],
        &["--bundle", "/nonexistent.tar", "--vkey", vkey],
        &["--url", "http://127.0.0.1:1", "--vkey", vkey],
        &["--store", empty, "--vkey", "no+key"],
        &["--store", empty],
        &["--vkey", vkey],
        &["--store", empty, "--url", "http://127.0.0.1:1", "--vkey", vkey],
    ] {
        let verdict = verify(arguments).await;
        assert_eq!(verdict.code, 2, "{arguments:?}: {verdict:?}");
        assert!(!verdict.stderr.is_empty(), "{arguments:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn verifying_needs_a_right_to_read_and_no_other() {
    let token = ok(mcpg().args(["token", "new"])).trim().to_owned();
    let hash = run_hash(&token);
    let config = format!("tokens:\n  - {{ name: auditor, hash: \"{hash}\", org: {ORG}, roles: [read, ingest] }}");
    let server = Config::new().with(&config).token(&token).start().await;
    post(&server.client(), events(0, 50), None).await;
    crate::harness::eventually("a head", std::time::Duration::from_secs(20), async || {
        let answer = server.client().get("audit/checkpoint").await;
        answer.status.is_success().then_some(())
    })
    .await;
    let vkey = server.client().get("audit/vkey").await.ok().text().trim().to_owned();
    let url = server.url();
    verify(&["--url", &url, "--vkey", &vkey, "--token", &token]).await.sound();
    assert_eq!(verify(&["--url", &url, "--vkey", &vkey]).await.code, 2);
    assert_eq!(verify(&["--url", &url, "--vkey", &vkey, "--token", "wrong"]).await.code, 2);
}

fn run_hash(token: &str) -> String {
    let output = crate::harness::run_with_input(mcpg().args(["token", "hash"]), token.as_bytes());
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn verifiers_that_are_not_ours_accept_our_ledgers() {
    let given = Given::of(5_000, 3).await;
    let folder = given.ledger();
    let ledger = folder.to_str().unwrap();
    let ours = verify(&["--store", given.server.storage().to_str().unwrap(), "--vkey", &given.vkey]).await.sound();
    let theirs = python("ledger_verify.py", &[ledger, ORG, &given.vkey]).await;
    for member in ["size", "root", "first_kept", "not_signed", "heads"] {
        assert_eq!(ours[member], theirs[member], "{member}");
    }
    let public = python("ledger_thirdparty.py", &[ledger, &given.vkey]).await;
    assert_eq!(public["size"], ours["size"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn our_proofs_are_accepted_by_implementations_that_are_not_ours() {
    let mut given = Given::of(2_000, 2).await;
    given.server.start().await;
    let client = given.server.client();
    let (folder, mut proofs, mut entries) = (TempDir::new().unwrap(), String::new(), String::new());
    for seq in [0, 1, 255, 256, 1_023, 1_024, 1_999] {
        let proof = client.get(&format!("audit/{seq}/proof")).await.ok().json();
        let head = proof["checkpoint"].as_str().unwrap();
        let root = head.lines().nth(2).unwrap();
        proofs += &json!({
            "leaf_index": seq, "tree_size": proof["size"], "leaf": proof["leaf"], "hashes": proof["hashes"], "root": root,
        })
        .to_string();
        proofs += "\n";
        let page = client.get(&format!("audit?order=asc&limit=1{}", after(seq))).await.ok().json();
        entries += &canonical(&page["entries"][0], &given.vkey);
    }
    let (proof_file, entry_file) = (folder.path().join("proofs"), folder.path().join("entries"));
    fs::write(&proof_file, proofs).unwrap();
    fs::write(&entry_file, entries).unwrap();
    let ledger = given.ledger();
    let arguments = [
        ledger.to_str().unwrap(),
        given.vkey.as_str(),
        "--proof",
        proof_file.to_str().unwrap(),
        "--entry",
        entry_file.to_str().unwrap(),
    ];
    let checked = python("ledger_thirdparty.py", &arguments).await;
    assert_eq!((&checked["proofs"], &checked["entries"]), (&json!(7), &json!(7)), "{checked}");
}

/// The cursor after the entry before `seq`.
fn after(seq: u64) -> String {
    use base64::Engine;
    match seq.checked_sub(1) {
        None => String::new(),
        Some(before) => {
            let cursor = base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(format!("asc:{before}"));
            format!("&cursor={cursor}")
        }
    }
}

/// An entry of the query API as the members that its hash is of, after the hash: numbers as strings, `detail` as text.
fn canonical(entry: &serde_json::Value, vkey: &str) -> String {
    let mut members = entry.as_object().unwrap().clone();
    let hash = members.remove("entry_hash").unwrap();
    for name in ["seq", "emitter_seq"] {
        if let Some(number) = members.get(name).map(ToString::to_string) {
            members.insert(name.to_owned(), number.into());
        }
    }
    if let Some(detail) = members.get("detail").map(ToString::to_string) {
        members.insert("detail".to_owned(), detail.into());
    }
    members.insert("v".to_owned(), "mcpg.audit/1".into());
    members.insert("origin".to_owned(), vkey.split('+').next().unwrap().into());
    format!("{} {}\n", hash.as_str().unwrap(), serde_json::Value::Object(members))
}

/// The commands of docs/auditors.md that need nothing of ours, as one script.
fn commands_of_the_page() -> String {
    let page = include_str!("../../../docs/auditors.md");
    let (_, section) = page.split_once("## Checking with nothing of ours").unwrap();
    let blocks = section.split("```").skip(1).step_by(2).map(|block| block.split_once('\n').unwrap());
    let command = |(language, text): (&str, &str)| match language {
        "python" => format!("cat > entries.py <<'PYTHON'\n{text}PYTHON\n"),
        "sh" => text.to_owned(),
        other => panic!("a block of {other}"),
    };
    blocks.map(command).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_for_auditors_checks_a_real_ledger_with_nothing_of_ours() {
    let given = Given::of(1_000, 2).await;
    let folder = TempDir::new().unwrap();
    let store = given.server.storage().to_str().unwrap();
    let bundle = folder.path().join("acme.tar");
    ok(mcpg().args(["audit", "export", "--org", ORG, "--store", store, "--out", bundle.to_str().unwrap()]));
    let python = concat!(env!("CARGO_MANIFEST_DIR"), "/.venv/bin");
    let path = format!("{python}:{}", std::env::var("PATH").unwrap());
    let script = format!("set -e\n{}", commands_of_the_page());
    let mut command = Command::new("bash");
    command.args(["-c", &script]).current_dir(folder.path()).env("PATH", path).env("VKEY", &given.vkey);
    let told = ok(&mut command);
    let head = String::from_utf8(given.copy().read("checkpoint")).unwrap();
    let (size, root) = (head.lines().nth(1).unwrap(), head.lines().nth(2).unwrap());
    assert!(told.contains("Signature Verified Successfully"), "{told}");
    assert!(told.contains(&format!("\n{size} {root}\n{size}\n{root}\n")), "{told}");
    let lines: Vec<_> = told.lines().collect();
    let [.., hash, next] = lines.as_slice() else { panic!("{told}") };
    assert_eq!(*next, format!("\"prev_hash\":\"{}\"", hash.split(' ').next().unwrap()), "{told}");
}
