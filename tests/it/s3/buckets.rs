//! A store in a bucket: prefixes, listings, deletions, large objects, and what a request says.

use bytes::Bytes;
use mcpg::config::{Secret, ServerSideEncryption, Storage};
use mcpg::storage::Store;
use object_store::path::Path;

use crate::harness::proxy::{Fault, Proxy};
use crate::harness::s3::Seaweed;

#[tokio::test(flavor = "multi_thread")]
async fn stores_under_two_prefixes_of_a_bucket_know_nothing_of_each_other() {
    let seaweed = Seaweed::shared().await;
    let bucket = seaweed.bucket().await;
    let (one, two, whole) = (bucket.store("prod/one"), bucket.store("prod/two"), bucket.store(""));
    let names: Vec<_> = (0..30).rev().map(|n| Path::from(format!("wal/{n:020}"))).collect();
    one.put_all(names.iter().map(|name| (name.clone(), Bytes::from(name.to_string()))).collect()).await.unwrap();
    two.put(&names[0], "other".into()).await.unwrap();

    let listed: Vec<_> = one.list(&Path::from("wal")).await.unwrap().into_iter().map(|meta| meta.location).collect();
    assert!(listed.is_sorted() && listed.len() == 30, "{listed:?}");
    let all = whole.list(&Path::from("prod")).await.unwrap();
    assert_eq!(all.len(), 31);
    assert_eq!(all[0].location, Path::from("prod/one/wal/00000000000000000000"));

    one.delete_all(names.clone()).await.unwrap();
    one.delete_all(names.clone()).await.unwrap();
    assert!(one.list(&Path::from("wal")).await.unwrap().is_empty());
    assert_eq!(one.head(&names[0]).await.unwrap(), None);
    assert_eq!(two.get(&names[0]).await.unwrap().unwrap(), "other");
    let counts = one.requests().unwrap();
    assert_eq!((counts.puts, counts.deletes, counts.lists, counts.heads), (30, 2, 2, 1), "{counts:?}");
    assert_eq!(whole.requests().unwrap().puts, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_object_above_64_mib_is_written_in_parts() {
    let seaweed = Seaweed::shared().await;
    let store = seaweed.bucket().await.store("large");
    let bytes = |length: usize| Bytes::from((0..length).map(|at| (at / 251) as u8).collect::<Vec<_>>());
    for (length, puts, others) in [(64 << 20, 1, 0), ((64 << 20) + 1, 5, 2)] {
        let before = store.requests().unwrap();
        let path = Path::from(format!("{length}"));
        store.put(&path, bytes(length)).await.unwrap();
        let after = store.requests().unwrap();
        assert_eq!((after.puts - before.puts, after.others - before.others), (puts, others), "{length} bytes");
        assert!(store.get(&path).await.unwrap().unwrap() == bytes(length), "{length} bytes");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_whose_end_was_not_answered_are_put_together_all_the_same() {
    let seaweed = Seaweed::shared().await;
    let bucket = seaweed.bucket().await;
    let proxy = Proxy::start(&bucket.endpoint).await;
    let store = bucket.at(proxy.endpoint()).store("");
    proxy.on(1, Fault::Cut, |request| request.method == "POST" && request.target.contains("uploadId"));
    let bytes = Bytes::from(vec![7; (64 << 20) + 1]);
    store.put(&Path::from("large"), bytes.clone()).await.unwrap();
    assert!(store.get(&Path::from("large")).await.unwrap().unwrap() == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_has_a_checksum_the_encryption_that_is_asked_for_and_no_secret() {
    let seaweed = Seaweed::shared().await;
    let bucket = seaweed.bucket().await;
    let proxy = Proxy::start(&bucket.endpoint).await;
    // Only what is asked is looked at: what the service would make of it is its own matter.
    proxy.on(usize::MAX, Fault::Answered(400), |_| true);
    let seen = async |settings: Storage| {
        let store = Store::open_with(&settings).unwrap();
        drop(store.create(&Path::from("x"), "x".into()).await);
        drop(store.put(&Path::from("x"), "x".into()).await);
        proxy.take_seen()
    };
    let plain = bucket.at(proxy.endpoint()).settings("p");
    let encryption = "x-amz-server-side-encryption";
    let requests = seen(plain.clone()).await;
    assert_eq!(requests.len(), 2);
    for request in &requests {
        assert!(request.target.ends_with("/p/x"), "{}", request.target);
        assert_eq!(request.header("x-amz-checksum-sha256"), Some("LXEWQrcmsEQBYnyp+6wy9chTD7GQPMTbAiWHF5IaSIE="));
        assert_eq!(request.header(encryption), None);
        assert!(!format!("{request:?}").contains(&bucket.secret_access_key));
    }
    assert_eq!(requests[0].header("if-none-match"), Some("*"));
    assert_eq!(requests[1].header("if-none-match"), None);

    let own_keys = seen(Storage { sse: Some(ServerSideEncryption::Aes256), ..plain.clone() }).await;
    assert!(own_keys.iter().all(|request| request.header(encryption) == Some("AES256")));
    let kms = Storage { sse: Some(ServerSideEncryption::Kms), ..plain.clone() };
    let default_key = seen(kms.clone()).await;
    let key_id = format!("{encryption}-aws-kms-key-id");
    assert!(default_key.iter().all(|request| request.header(encryption) == Some("aws:kms")));
    assert!(default_key.iter().all(|request| request.header(&key_id).is_none()));
    let own_key = seen(Storage { sse_kms_key_id: Some("alias/mcpg".to_owned()), ..kms }).await;
    assert!(own_key.iter().all(|request| request.header(&key_id) == Some("alias/mcpg")));

    let session = seen(Storage { session_token: Some(Secret::new("the-session")), ..plain }).await;
    assert!(session.iter().all(|request| request.header("x-amz-security-token") == Some("the-session")));
}
