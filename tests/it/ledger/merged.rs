//! Small segments become one while the ledger grows: it stays sound at any moment, and what was proved before still
//! holds.

use std::collections::BTreeSet;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use mcpg::audit::{Checkpoint, Hash, tree};
use serde_json::Value;

use super::given::{ORG, events, names, post, verify};
use crate::harness::{Config, alone, eventually};

/// More segments than are merged at once.
const SEGMENTS: u64 = 34;

fn bytes(text: &Value) -> Vec<u8> {
    BASE64_STANDARD.decode(text.as_str().unwrap()).unwrap()
}

/// Whether a proof, as the server gave it, shows that its leaf is under the head that came with it.
fn holds(proof: &Value) -> bool {
    let hashes: Vec<_> =
        proof["hashes"].as_array().unwrap().iter().map(|hash| Hash(bytes(hash).try_into().unwrap())).collect();
    let head: Checkpoint = proof["checkpoint"].as_str().unwrap().split("\n\n").next().unwrap().parse().unwrap();
    let leaf = tree::leaf_hash(&bytes(&proof["leaf"]));
    tree::verify_inclusion(proof["seq"].as_u64().unwrap(), head.size, leaf, &hashes, &head.root)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merged_ledger_verifies_and_old_proofs_still_hold() {
    let _alone = alone().await;
    // The parts of a merged segment stay for as long as a query may read them.
    let mut server = Config::new().with("limits: { sql: { timeout: 10s } }").start().await;
    let client = server.client();
    let vkey = client.get("audit/vkey").await.ok().text().trim().to_owned();
    let (store, url) = (server.storage().to_str().unwrap().to_owned(), server.url());
    let folder = server.storage().join(format!("orgs/{ORG}/audit/segments"));
    let (mut proofs, mut seen) = (Vec::new(), BTreeSet::new());
    for n in 0..SEGMENTS {
        post(&client, events(n * 10, n * 10 + 10), None).await;
        let wanted = n * 10 + 10;
        eventually("a head", Duration::from_secs(90), async || {
            let head = client.get("audit/checkpoint").await.text();
            let size: u64 = head.lines().nth(1)?.parse().ok()?;
            (size >= wanted).then_some(())
        })
        .await;
        seen.extend(names(&folder));
        if n % 8 == 3 {
            let proof = client.get(&format!("audit/{}/proof", n * 10)).await.ok().json();
            assert!(holds(&proof), "{proof}");
            proofs.push(proof);
            verify(&["--url", &url, "--vkey", &vkey]).await.sound();
        }
    }
    eventually("small segments to be merged", Duration::from_secs(120), async || {
        let left = names(&folder);
        (left.len() < seen.len() / 2).then_some(())
    })
    .await;
    verify(&["--url", &url, "--vkey", &vkey]).await.sound();
    assert!(server.stop().await.success());
    // Every head that a proof came with is among those that were found consistent with the newest.
    let told = verify(&["--store", &store, "--vkey", &vkey]).await.sound();
    assert!(told["heads"].as_u64().unwrap() >= SEGMENTS, "{told}");
    for proof in &proofs {
        let kept = format!("orgs/{ORG}/audit/checkpoints/{:020}", proof["size"].as_u64().unwrap());
        assert_eq!(
            std::fs::read_to_string(server.storage().join(kept)).unwrap(),
            proof["checkpoint"].as_str().unwrap()
        );
    }
    server.start().await;
    let again = server.client().get(&format!("audit/{}/proof", proofs[0]["seq"])).await.ok().json();
    assert_eq!((&again["leaf"], holds(&again)), (&proofs[0]["leaf"], true));
}
