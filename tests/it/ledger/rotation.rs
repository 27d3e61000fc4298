//! The ledger's key: without the right one nothing starts; with the one before beside it, it can be changed.

use super::chain::{column, emit, entries, sealed, verify, vkey};
use crate::harness::{Config, Server};

fn signatures(head: &str) -> usize {
    head.lines().filter(|line| line.starts_with('\u{2014}')).count()
}

async fn refused(server: &mut Server) -> String {
    server.spawn();
    assert_eq!(server.ended().await.code(), Some(2), "{}", server.logs());
    server.logs()
}

#[tokio::test]
async fn a_key_is_changed_with_an_overlap_and_both_keys_verify() {
    let mut server = Config::new().with("audit: { key_file: one.key }").start().await;
    let client = server.client();
    emit(&client, 5).await;
    let old = vkey(&client).await;
    assert_eq!(signatures(&sealed(&client).await), 1);
    assert!(server.stop().await.success());

    for _ in 0..2 {
        server.reconfigure(&["audit: { key_file: two.key, previous_key_file: one.key }"]);
        server.start().await;
        emit(&client, 5).await;
        assert_eq!(signatures(&sealed(&client).await), 2);
        let new = vkey(&client).await;
        assert_ne!(new, old);
        let told = entries(&client, "action=ledger.key").await;
        assert_eq!(told.len(), 1, "the change is recorded once, however often it starts: {told:?}");
        assert_eq!(told[0]["detail"]["vkey"], new);
        assert!(column(&told, "actor")[0].starts_with("system:control-plane@"));
        verify(&server, "default", &[&new, &old]).await;
        verify(&server, "default", &[&new]).await;
        verify(&server, "default", &[&old]).await;
        assert!(server.stop().await.success());
    }

    server.reconfigure(&["audit: { key_file: two.key }"]);
    server.start().await;
    emit(&client, 5).await;
    assert_eq!(signatures(&sealed(&client).await), 1);
    verify(&server, "default", &[&vkey(&client).await]).await;
}

/// With so many orgs a start loads none. Their ledgers come under the new key all the same: once the one before is taken
/// out, nothing could be told of a checkpoint that it alone has signed.
#[tokio::test]
async fn a_key_is_changed_of_orgs_that_rest_too_however_many_there_are() {
    let names: Vec<_> = (0..101).map(|number| format!("{{ name: org-{number} }}")).collect();
    let orgs = format!("orgs: [{}]", names.join(", "));
    let mut server = Config::new().with(&orgs).with("audit: { key_file: one.key }").start().await;
    let resting = server.client().with_org("org-7");
    emit(&resting, 5).await;
    sealed(&resting).await;
    assert!(server.stop().await.success());

    for audit in ["audit: { key_file: two.key, previous_key_file: one.key }"; 2] {
        server.reconfigure(&[&orgs, audit]);
        server.start().await;
        assert!(server.stop().await.success());
    }
    server.reconfigure(&[&orgs, "audit: { key_file: two.key }"]);
    server.start().await;
    assert_eq!(entries(&resting, "action=ledger.key").await.len(), 1);
    emit(&resting, 5).await;
    sealed(&resting).await;
    assert_eq!(entries(&resting, "action=tool.permit").await.len(), 10);
    verify(&server, "org-7", &[&vkey(&resting).await]).await;
}

#[tokio::test]
async fn without_the_right_key_it_does_not_start_and_says_why() {
    let mut server = Config::new().with("audit: { key_file: one.key }").start().await;
    emit(&server.client(), 5).await;
    sealed(&server.client()).await;
    assert!(server.stop().await.success());

    server.reconfigure(&["audit: { key_file: another.key }"]);
    let said = refused(&mut server).await;
    assert!(said.contains("which this node lacks") && said.contains("audit.key_file"), "{said}");
    server.reconfigure(&["audit: { key_file: one.key, previous_key_file: gone.key }"]);
    let said = refused(&mut server).await;
    assert!(said.contains("gone.key, audit.previous_key_file, is not there"), "{said}");
    server.reconfigure(&["name: another.example\naudit: { key_file: one.key }"]);
    assert!(refused(&mut server).await.contains("`name`"));

    server.reconfigure(&["audit: { key_file: one.key }"]);
    server.start().await;
    assert_eq!(entries(&server.client(), "action=tool.permit").await.len(), 5);
}
