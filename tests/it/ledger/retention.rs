//! Retention of the ledger: what is too old goes, the ledger says so itself and still verifies; a hold stops it.

use std::path::Path;
use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::chain::{SOON, column, emit, entries, folder, post, sealed, segments, size, verify, vkey};
use crate::harness::{Client, Config, Server, eventually, mcpg, python, run};

/// Entries are kept for two seconds; deleted segments may be read by queries for ten more.
const SHORT: &str =
    "orgs: [{ name: default, tier: enterprise, retention: { ledger: 2s } }]\nlimits: { sql: { timeout: 10s } }";

async fn prune(client: &Client, query: &str) -> Value {
    client.send(Method::POST, &format!("audit/prune{query}"), &[], Vec::new()).await.unwrap().ok().json()
}

/// What `mcpg audit …` says of the org `default`.
fn audit(server: &Server, args: &[&str]) -> String {
    let output = run(mcpg().arg("audit").args(args).args(["--org", "default", "--url", &server.url()]));
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Five segments that are too old to be kept, and a newer one.
async fn aged(server: &Server) -> u64 {
    let client = server.client();
    for _ in 0..5 {
        emit(&client, 10).await;
        sealed(&client).await;
    }
    tokio::time::sleep(Duration::from_millis(2_200)).await;
    emit(&client, 1).await;
    sealed(&client).await;
    size(&client).await
}

async fn pruned(server: &Server, first_kept: u64) {
    eventually("the pruned segments to be deleted", SOON, async || {
        let gone = segments(server, "default").iter().all(|name| name[..20].parse::<u64>().unwrap() >= first_kept);
        gone.then_some(())
    })
    .await;
}

fn digest(file: &Path) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(std::fs::read(file).unwrap()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn old_segments_go_the_ledger_says_which_and_old_proofs_still_hold() {
    let mut server = Config::new().with(SHORT).start().await;
    let size_before = aged(&server).await;
    let client = server.client();
    let (key, head) = (vkey(&client).await, sealed(&client).await);

    let planned = prune(&client, "?dry_run=true").await;
    let first_kept = planned["first_kept"].as_u64().unwrap();
    assert!(first_kept > 40 && first_kept < size_before, "{planned}");
    assert_eq!(planned["rule"], "2s (retention.ledger)");
    assert_eq!(size(&client).await, size_before, "a dry run changes nothing");
    for segment in planned["segments"].as_array().unwrap() {
        let file = folder(&server, "default").join("segments").join(segment["name"].as_str().unwrap());
        assert_eq!(digest(&file), segment["sha256"].as_str().unwrap());
    }

    let done = prune(&client, "").await;
    assert_eq!((&done["first_kept"], &done["segments"]), (&planned["first_kept"], &planned["segments"]));
    let visible = entries(&client, "").await;
    assert_eq!(visible[0]["seq"].as_u64().unwrap(), first_kept, "what is pruned is seen no more");
    let entry = &entries(&client, "action=ledger.prune").await[0];
    assert_eq!(entry["detail"]["first_kept"], first_kept.to_string());
    assert_eq!(entry["detail"]["segments"].as_array().unwrap().len(), planned["segments"].as_array().unwrap().len());
    pruned(&server, first_kept).await;
    sealed(&client).await;
    let verdict = verify(&server, "default", &[&key]).await;
    assert_eq!(verdict["first_kept"].as_u64().unwrap(), first_kept);
    let proof = client.get("audit/3/proof").await.ok().json();
    assert_eq!(proof["seq"], 3, "an entry that is gone is still proved to have been there");
    let kept = format!("audit/checkpoints/{size_before}");
    assert_eq!(client.get(&kept).await.ok().text(), head);

    assert!(server.stop().await.success());
    server.start().await;
    emit(&client, 5).await;
    sealed(&client).await;
    verify(&server, "default", &[&key]).await;
    let own = entries(&client, "action_prefix=operator.").await;
    assert!(!column(&own, "action").contains(&"operator.org_made"), "the configuration was forgotten: {own:?}");
}

#[tokio::test]
async fn a_hold_stops_it_and_is_an_entry_itself() {
    let server = Config::new().with(SHORT).start().await;
    aged(&server).await;
    let client = server.client();
    let refused = post(&client, "audit/hold", &json!({})).await;
    assert_eq!((refused.status, &*refused.problem()), (StatusCode::BAD_REQUEST, "reason_missing"));
    assert!(audit(&server, &["prune", "--dry-run"]).contains(" entries would be removed, kept from entry "));
    assert!(audit(&server, &["hold", "--reason", "case 4711"]).contains("is on hold since entry "));
    assert!(client.get("audit/retention").await.ok().json()["hold"].is_u64());
    assert!(audit(&server, &["prune"]).contains("nothing is removed"));
    assert!(audit(&server, &["release", "--reason", "case closed"]).contains("is not on hold"));
    let done: Value = serde_json::from_str(&audit(&server, &["prune", "--json"])).unwrap();
    assert!(done["entries"].as_u64().unwrap() > 40 && done["hold"].is_null(), "{done}");
    let told = entries(&client, "action_prefix=ledger.").await;
    assert_eq!(column(&told, "action"), ["ledger.hold", "ledger.release", "ledger.prune"]);
    assert_eq!(column(&told, "reason")[..2], ["case 4711", "case closed"]);
}

#[tokio::test]
async fn a_kill_between_the_entry_and_the_deletion_is_made_good() {
    let mut server = Config::new().with(SHORT).start().await;
    aged(&server).await;
    let client = server.client();
    let key = vkey(&client).await;
    let first_kept = prune(&client, "").await["first_kept"].as_u64().unwrap();
    server.kill();
    assert!(segments(&server, "default")[0].starts_with(&"0".repeat(20)), "it was deleted too early");
    server.start().await;
    pruned(&server, first_kept).await;
    sealed(&client).await;
    assert_eq!(entries(&client, "").await[0]["seq"], first_kept);
    verify(&server, "default", &[&key]).await;
}

#[tokio::test]
async fn two_nodes_prune_by_themselves_and_agree() {
    let config = format!("{SHORT}\naudit: {{ prune_interval: 1s, key_file: KEYS/ledger.key }}");
    let keys = tempfile::TempDir::new().unwrap();
    let config = config.replace("KEYS", keys.path().to_str().unwrap());
    let mut first = Config::new().with(&config).start().await;
    let second = Config::on(first.storage()).with(&config).start().await;
    let (one, two) = (first.client(), second.client());
    for round in 0..8 {
        emit(if round % 2 == 0 { &one } else { &two }, 5).await;
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
    let first_kept = async |client: &Client| client.get("audit/retention").await.ok().json()["first_kept"].clone();
    eventually("a prune by itself", SOON, async || (first_kept(&one).await.as_u64()? > 10).then_some(())).await;
    let key = vkey(&one).await;
    eventually("both nodes to agree, and the ledger to be sound", SOON, async || {
        sealed(&one).await;
        (first_kept(&one).await == first_kept(&two).await).then_some(())
    })
    .await;
    let everywhere = "action=tool.permit";
    assert_eq!(entries(&one, everywhere).await.last(), entries(&two, everywhere).await.last());
    drop(second);
    sealed(&one).await;
    // A node that runs goes on to prune and to delete, under whoever reads its files.
    assert!(first.stop().await.success());
    verify(&first, "default", &[&key]).await;
}

#[tokio::test]
async fn what_does_not_verify_is_not_pruned_and_the_ledger_says_so() {
    let mut server = Config::new().with(SHORT).start().await;
    aged(&server).await;
    let client = server.client();
    assert!(server.stop().await.success());
    let victim = segments(&server, "default")[1].clone();
    let file = folder(&server, "default").join("segments").join(&victim);
    python("tamper_segment.py", &[file.to_str().unwrap(), "target", "github/delete_repo"]).await;
    server.start().await;
    tokio::time::sleep(Duration::from_millis(2_200)).await;
    let refused = client.send(Method::POST, "audit/prune", &[], Vec::new()).await.unwrap();
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE, "{}", refused.text());
    assert!(
        refused.text().contains(&victim) && refused.text().contains("not what its hash was made of"),
        "{}",
        refused.text()
    );
    // A query that needs the file is refused by its name; one that does not, by the entries' numbers, is answered.
    let all = client.get("audit?action=ledger.verification_failed").await;
    assert_eq!((all.status, all.problem().as_str()), (StatusCode::SERVICE_UNAVAILABLE, "storage_damaged"));
    assert!(all.text().contains(&victim), "{}", all.text());
    let after: u64 = victim.trim_end_matches(".parquet").rsplit('-').next().unwrap().parse().unwrap();
    let query = format!("SELECT action, detail FROM audit_log WHERE seq > {after} AND starts_with(action, 'ledger.')");
    let told = client.sql(&query).await;
    let told: Vec<_> = told.iter().filter(|row| row[0] != "ledger.rule").collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0][0], "ledger.verification_failed");
    assert!(told[0][1].as_str().unwrap().contains(&victim), "{told:?}");
    assert!(segments(&server, "default").contains(&victim));
}
