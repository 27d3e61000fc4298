//! Every way to verify: a store, a server, a bundle, an unpacked one, a verifier written from the format's description
//! by somebody else, and implementations of the public formats that are not ours.

use std::fs;
use std::path::Path;
use std::process::Command;

use ed25519_dalek::{Signer, SigningKey};
use mcpg::audit::note::{Algorithm, Note, NoteSignature, VKey};
use mcpg::audit::{Hash, InclusionProof};
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
    crate::harness::eventually("a head", std::time::Duration::from_secs(90), async || {
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

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_from_the_server_holds_its_entry_and_canonical_entries_come_one_a_line() {
    let mut given = Given::of(1_200, 2).await;
    given.server.start().await;
    let client = given.server.client();
    let vkey: VKey = given.vkey.parse().unwrap();
    let fetch = async |query: &str| {
        let text = client.get(&format!("audit/canonical{query}")).await.ok().text();
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let all = [fetch("").await, fetch("?from=1000&limit=10000").await].concat();
    let entries = super::chain::entries(&client, "").await;
    assert!(all.len() > 1_200 && all.len() == entries.len());
    for (line, entry) in all.iter().zip(&entries) {
        assert_eq!(Hash::of(&[line.as_bytes()]).to_string(), entry["entry_hash"], "{line}");
    }
    assert_eq!(fetch("?from=7&limit=2").await, all[7..9]);
    assert_eq!(fetch("?from=1000000").await, Vec::<String>::new());
    for bad in ["?limit=0", "?limit=10001", "?from=x", "?seq=1"] {
        assert_eq!(&*client.get(&format!("audit/canonical{bad}")).await.problem(), "invalid_parameter", "{bad}");
    }
    for seq in [0, 256, 1_199] {
        let proof = client.get(&format!("audit/{seq}/proof")).await.ok().json();
        assert_eq!(proof["entry"], all[seq]);
        let proof: InclusionProof = serde_json::from_value(proof).unwrap();
        proof.check(std::slice::from_ref(&vkey), None).unwrap();
    }
    // An entry that is in no segment yet is there too.
    let before = all.len() as u64;
    post(&client, events(9_000, 9_001), None).await;
    let last = fetch(&format!("?from={before}")).await;
    assert!(last.iter().any(|line| line.contains("\"instance\":\"gw-0\"")), "{last:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proof_of_an_entry_is_made_and_checked_by_the_command_line() {
    let mut given = Given::of(900, 2).await;
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let store = given.server.storage().to_str().unwrap().to_owned();
    let proof = |arguments: &[&str]| {
        let mut command = mcpg();
        command.args(["audit", "proof"]).args(arguments).env_remove("MCPG_TOKEN").env_remove("MCPG_ORG");
        let output = run(&mut command);
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    };
    let vkey = given.vkey.clone();
    let file = path("proof.json");
    let made = proof(&["--org", ORG, "--seq", "500", "--store", &store, "--vkey", &vkey, "--out", &file]);
    assert_eq!(made.0, 0, "{made:?}");
    let (code, told, _) = proof(&["--check", &file, "--vkey", &vkey]);
    let mut lines = told.lines();
    assert!(code == 0 && lines.next().unwrap().starts_with("proved: entry 500 of mcpg.local/orgs/default/audit/1"));
    assert!(lines.next().unwrap().contains("\"seq\":\"500\""), "{told}");
    let (code, told, _) = proof(&["--check", &file, "--vkey", &vkey, "--org", ORG, "--json"]);
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!((code, &told["proved"], &told["entry"]["seq"]), (0, &json!(true), &json!("500")));

    // The same from a bundle and from a server.
    ok(mcpg().args(["audit", "export", "--org", ORG, "--store", &store, "--out", &path("b.tar")]));
    let from_bundle = proof(&["--org", ORG, "--seq", "500", "--bundle", &path("b.tar")]);
    assert_eq!(from_bundle.1, fs::read_to_string(&file).unwrap());
    given.server.start().await;
    let from_server = proof(&["--org", ORG, "--seq", "500", "--url", &given.server.url(), "--out", &path("url.json")]);
    assert_eq!(from_server.0, 0, "{from_server:?}");
    assert_eq!(proof(&["--check", &path("url.json"), "--vkey", &vkey]).0, 0);

    // Not proved.
    let other = Given::of(10, 1).await;
    let whole = fs::read_to_string(&file).unwrap();
    fs::write(path("changed.json"), whole.replacen("github/list_repos", "github/drop_repos", 1)).unwrap();
    fs::write(path("none.json"), "[]").unwrap();
    for (what, arguments) in [
        ("another key", ["--check", &file, "--vkey", &other.vkey].to_vec()),
        ("another org", ["--check", &file, "--vkey", &vkey, "--org", "globex"].to_vec()),
        ("a changed entry", ["--check", &path("changed.json"), "--vkey", &vkey].to_vec()),
        ("no proof", ["--check", &path("none.json"), "--vkey", &vkey].to_vec()),
        ("no such entry", ["--org", ORG, "--seq", "1000000", "--store", &store].to_vec()),
        ("the store of another key", ["--org", ORG, "--seq", "5", "--store", &store, "--vkey", &other.vkey].to_vec()),
    ] {
        let (code, _, stderr) = proof(&arguments);
        assert!(code == 1 && !stderr.is_empty(), "{what}: {code} {stderr}");
    }
    // Could not check.
    for arguments in [
        &["--check", "/nonexistent", "--vkey", &vkey][..],
        &["--check", &file],
        &["--org", ORG, "--seq", "5", "--store", "/nonexistent"],
        &["--org", ORG, "--seq", "5"],
        &["--seq", "5", "--store", &store],
        &["--org", ORG, "--seq", "x", "--store", &store],
        &["--org", ORG, "--store", &store],
    ] {
        assert_eq!(proof(arguments).0, 2, "{arguments:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_says_what_no_ledger_can_show() {
    let given = Given::of(30, 1).await;
    let mut command = mcpg();
    let store = given.server.storage();
    command.args(["audit", "verify", "--org", ORG, "--vkey", &given.vkey, "--store", store.to_str().unwrap()]);
    let told = ok(&mut command);
    for words in [
        "\nthe last entry under it was recorded at 20",
        "not known: whether an older state",
        "--checkpoint",
        "not known: what never reached",
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }
}

/// The commands of docs/auditors.md that need nothing of ours, as one script.
fn commands_of_the_page() -> String {
    let page = include_str!("../../../docs/auditors.md");
    let (_, section) = page.split_once("## Checking with nothing of ours").unwrap();
    let blocks = section.split("```").skip(1).step_by(2).map(|block| block.split_once('\n').unwrap());
    let command = |(language, text): (&str, &str)| match language {
        "python" => {
            let (name, _) = text.strip_prefix("# ").and_then(|text| text.split_once(':')).unwrap();
            format!("cat > {name} <<'PYTHON'\n{text}PYTHON\n")
        }
        "sh" => text.to_owned(),
        other => panic!("a block of {other}"),
    };
    blocks.map(command).collect()
}

/// Runs the page's commands on the ledger in `store`, with this key, and looks at what they print.
fn follow_the_page(store: &Path, vkey: &str) {
    let folder = TempDir::new().unwrap();
    let (store, at) = (store.to_str().unwrap(), |name: &str| folder.path().join(name).to_str().unwrap().to_owned());
    ok(mcpg().args(["audit", "export", "--org", ORG, "--store", store, "--out", &at("acme.tar")]));
    ok(mcpg().args(["audit", "proof", "--org", ORG, "--store", store, "--seq", "700", "--out", &at("proof.json")]));
    let proof: serde_json::Value = serde_json::from_str(&fs::read_to_string(at("proof.json")).unwrap()).unwrap();
    let python = concat!(env!("CARGO_MANIFEST_DIR"), "/.venv/bin");
    let path = format!("{python}:{}", std::env::var("PATH").unwrap());
    let script = format!("set -e\n{}", commands_of_the_page());
    let mut command = Command::new("bash");
    command.args(["-c", &script]).current_dir(folder.path()).env("PATH", path).env("VKEY", vkey);
    let told = ok(&mut command);
    let head = proof["checkpoint"].as_str().unwrap();
    let lines: Vec<_> = head.lines().collect();
    let (origin, size, root) = (lines[0], lines[1], lines[2]);
    assert_eq!(told.matches("Signature Verified Successfully").count(), 2, "{told}");
    assert!(told.contains(&format!("\n{size} {root}\n{size}\n{root}\n")), "{told}");
    let lines: Vec<_> = told.lines().collect();
    let next = lines.iter().position(|line| line.starts_with("\"prev_hash\"")).unwrap();
    assert_eq!(lines[next], format!("\"prev_hash\":\"{}\"", lines[next - 1].split(' ').next().unwrap()), "{told}");
    assert_eq!(lines[next + 1], format!("{}  entry.json", proof["entry_hash"].as_str().unwrap()), "{told}");
    assert_eq!(lines[next + 2], format!("{size} {root} {origin}"), "{told}");
    assert_eq!(lines[next + 4..], [origin, size, root], "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_for_auditors_checks_a_real_ledger_with_nothing_of_ours() {
    let given = Given::of(1_000, 2).await;
    follow_the_page(given.server.storage(), &given.vkey);
}

/// After a change of keys, and with a witness: wherever the auditor's own key stands among the signatures.
#[tokio::test(flavor = "multi_thread")]
async fn the_page_for_auditors_takes_heads_with_several_signatures() {
    let given = Given::of(1_000, 2).await;
    let copy = given.copy();
    let note: Note = String::from_utf8(copy.read("checkpoint")).unwrap().parse().unwrap();
    let origin = given.vkey.split('+').next().unwrap();
    let former = Note::sign(note.text.clone(), origin, &[&SigningKey::from_bytes(&[7; 32])]).unwrap();
    let witness = SigningKey::from_bytes(&[9; 32]);
    let key = VKey::new("witness.example/w1", Algorithm::Cosignature, witness.verifying_key()).unwrap();
    let signed = witness.sign(format!("cosignature/v1\ntime 1790000000\n{}", note.text).as_bytes());
    let bytes = [&1_790_000_000_u64.to_be_bytes()[..], &signed.to_bytes()].concat();
    let cosignature = NoteSignature { name: key.name().to_owned(), id: key.id(), bytes };
    for place in 0..3 {
        let mut signatures = vec![former.signatures[0].clone(), cosignature.clone()];
        signatures.insert(place, note.signatures[0].clone());
        let note = Note { text: note.text.clone(), signatures };
        copy.write("checkpoint", note.to_string().as_bytes());
        follow_the_page(copy.store(), &given.vkey);
    }
}

/// All Rust sources of the project's tests.
fn sources(folder: &Path, out: &mut String) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            out.push_str(&fs::read_to_string(path).unwrap());
        }
    }
}

#[test]
fn every_claim_of_the_page_for_auditors_names_tests_that_there_are() {
    let page = include_str!("../../../docs/auditors.md");
    let (_, table) = page.split_once("## What shows it").unwrap();
    let mut all = String::new();
    ["src", "tests"].iter().for_each(|folder| sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut all));
    let mut rows = 0;
    for row in table.lines().filter(|line| line.starts_with("| ")).skip(1) {
        let tests: Vec<_> = row.rsplit(" | ").next().unwrap().split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty(), "{row}");
        for test in tests {
            assert!(all.contains(&format!("fn {test}()")), "there is no test {test}");
        }
        rows += 1;
    }
    assert!(rows > 15, "{rows}");
}
