//! What becomes of a conditional write when its answer is lost, wrong or late: never a second request, and never "won"
//! or "lost" where that is not known.

use std::time::Duration;

use mcpg::storage::{Created, Ensured, Store};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode};

use crate::harness::eventually;
use crate::harness::proxy::{Fault, Proxy};
use crate::harness::s3::{Bucket, Seaweed};

const NAME: &str = "wal/00000000000000000001";

/// A bucket, the store in it through a proxy, and the same without.
async fn through_a_proxy(seaweed: &Seaweed) -> (Bucket, Proxy, Store, Store) {
    let bucket = seaweed.bucket().await;
    let proxy = Proxy::start(&bucket.endpoint).await;
    let (store, plain) = (bucket.at(proxy.endpoint()).store("a/b"), bucket.store("a/b"));
    (bucket, proxy, store, plain)
}

fn path() -> Path {
    Path::from(NAME)
}

fn word(created: &Created) -> &'static str {
    match created {
        Created::Won => "won",
        Created::Exists => "exists",
        Created::Unknown(e) => {
            assert!(!e.is_damage() && !e.to_string().is_empty());
            "unknown"
        }
    }
}

/// What is done to the request, what a create says of it, whether the object is there then, and what `ensure` says of
/// it.
const FATES: [(Fault, &str, bool, bool); 6] = [
    (Fault::Cut, "unknown", true, true),
    (Fault::AnsweredAfter(503), "unknown", true, true),
    (Fault::AnsweredAfter(409), "exists", true, true),
    (Fault::Answered(503), "unknown", false, false),
    (Fault::Answered(409), "exists", false, false),
    (Fault::Dropped, "unknown", false, false),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_create_is_sent_once_and_says_what_is_known_of_it() {
    let seaweed = Seaweed::shared().await;
    let (_, proxy, store, plain) = through_a_proxy(&seaweed).await;
    for (fault, expected, is_there, _) in FATES {
        proxy.on(1, fault, |request| request.puts(NAME));
        let created = store.create(&path(), "mine".into()).await;
        assert_eq!(word(&created), expected, "{fault:?}: {created:?}");
        let puts = proxy.take_seen().into_iter().filter(|request| request.puts(NAME)).count();
        assert_eq!(puts, 1, "{fault:?}: it was sent again");
        assert_eq!(plain.get(&path()).await.unwrap().is_some(), is_there, "{fault:?}");
        // With the object there, another create gets that answer; the same bytes make no difference.
        if is_there {
            assert_eq!(word(&store.create(&path(), "mine".into()).await), "exists");
        }
        plain.delete(&path()).await.unwrap();
        proxy.take_seen();
    }
    assert_eq!(proxy.withheld(), [200, 200, 200], "the service had done what no client knew of");
    assert_eq!(word(&store.create(&path(), "mine".into()).await), "won");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_libraries_create_is_sent_once_as_well() {
    let seaweed = Seaweed::shared().await;
    let (_, proxy, store, plain) = through_a_proxy(&seaweed).await;
    for (fault, ..) in FATES {
        proxy.on(1, fault, |request| request.puts(NAME));
        store.objects().put_opts(&path(), "mine".into(), PutMode::Create.into()).await.unwrap_err();
        let puts = proxy.take_seen().into_iter().filter(|request| request.puts(NAME)).count();
        assert_eq!(puts, 1, "{fault:?}: it was sent again");
        plain.delete(&path()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ensure_reads_back_what_it_cannot_know() {
    let seaweed = Seaweed::shared().await;
    let (_, proxy, store, plain) = through_a_proxy(&seaweed).await;
    for (fault, _, _, is_same) in FATES {
        proxy.on(1, fault, |request| request.puts(NAME));
        let ensured = store.ensure(&path(), "mine".into()).await;
        match is_same {
            true => assert!(matches!(ensured, Ok(Ensured::Same)), "{fault:?}: {ensured:?}"),
            false => assert!(ensured.is_err(), "{fault:?}: {ensured:?}"),
        }
        // Trying again is safe, and tells.
        assert!(matches!(store.ensure(&path(), "mine".into()).await, Ok(Ensured::Same)), "{fault:?}");
        assert!(matches!(store.ensure(&path(), "other".into()).await, Ok(Ensured::Other(found)) if found == "mine"));
        plain.delete(&path()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swap_is_sent_once_and_needs_the_version_that_was_read() {
    let seaweed = Seaweed::shared().await;
    let (_, proxy, store, plain) = through_a_proxy(&seaweed).await;
    assert!(store.can_swap() && store.is_remote());
    assert_eq!(word(&store.swap(&path(), None, "0".into()).await), "won");
    assert_eq!(word(&store.swap(&path(), None, "0".into()).await), "exists");
    for (fault, expected, is_there, _) in FATES {
        let (before, version) = plain.get_versioned(&path()).await.unwrap().unwrap();
        let next = format!("{fault:?}");
        proxy.take_seen();
        proxy.on(1, fault, |request| request.puts(NAME));
        let swapped = store.swap(&path(), Some(version.clone()), next.clone().into()).await;
        assert_eq!(word(&swapped), expected, "{fault:?}: {swapped:?}");
        let seen = proxy.take_seen();
        assert_eq!(seen.len(), 1, "{fault:?}: it was sent again");
        assert_eq!(seen[0].header("if-match"), version.e_tag.as_deref());
        let now = plain.get(&path()).await.unwrap().unwrap();
        assert_eq!(now, if is_there { next.into() } else { before }, "{fault:?}");
        if is_there {
            assert_eq!(word(&store.swap(&path(), Some(version), "stale".into()).await), "exists");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_that_hangs_is_given_up_and_may_land_later() {
    let seaweed = Seaweed::shared().await;
    let (_, proxy, store, plain) = through_a_proxy(&seaweed).await;
    proxy.on(1, Fault::Late(Duration::from_secs(25)), |request| request.puts(NAME));
    let created = store.create(&path(), "late".into()).await;
    assert_eq!(word(&created), "unknown", "{created:?}");
    // Given up after 10 s of 25: it has not been written yet, and nothing can stop that it will be.
    assert_eq!(plain.get(&path()).await.unwrap(), None);
    eventually("the write to land", Duration::from_secs(90), async || plain.get(&path()).await.unwrap()).await;
    assert_eq!(proxy.seen().into_iter().filter(|request| request.puts(NAME)).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_idempotent_is_repeated_until_it_is_done() {
    let seaweed = Seaweed::shared().await;
    let (_, proxy, store, _) = through_a_proxy(&seaweed).await;
    for fault in [Fault::Cut, Fault::Dropped, Fault::Answered(503), Fault::AnsweredAfter(500)] {
        proxy.on(2, fault, |request| request.method == "PUT");
        store.put(&path(), "x".into()).await.unwrap();
        proxy.on(1, fault, |request| request.method == "GET" && !request.target.contains("list-type"));
        assert_eq!(store.get(&path()).await.unwrap().unwrap(), "x");
        proxy.on(1, fault, |request| request.target.contains("list-type"));
        assert_eq!(store.list(&Path::from("wal")).await.unwrap().len(), 1);
        let seen = proxy.take_seen();
        assert_eq!(seen.len(), 3 + 2 + 2, "{fault:?}: {seen:?}");
    }
    // An answer that there is no such object is no failure, and is not asked for twice.
    assert_eq!(store.get(&Path::from("absent")).await.unwrap(), None);
    assert_eq!(proxy.seen().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_sixteen_nodes_that_create_one_object_one_wins_each_time() {
    let seaweed = Seaweed::shared().await;
    let bucket = seaweed.bucket().await;
    let nodes: Vec<_> = (0..16).map(|_| bucket.store("race")).collect();
    let mut told = 0;
    for round in 0..24 {
        if told == 8 {
            break;
        }
        let path = Path::from(format!("wal/{round:020}"));
        let bodies: Vec<_> = (0..nodes.len()).map(|node| format!("node {node}")).collect();
        let creates = nodes.iter().zip(&bodies).map(|(node, body)| node.create(&path, body.clone().into()));
        let created = futures::future::join_all(creates).await;
        let winners: Vec<_> =
            created.iter().zip(&bodies).filter(|(created, _)| word(created) == "won").map(|(_, body)| body).collect();
        let found = nodes[0].objects().get(&path).await.unwrap().bytes().await.unwrap();
        assert!(winners.len() <= 1 && winners.iter().all(|winner| found == winner.as_bytes()), "{created:?}");
        // A race of which a busy service has left a racer without an answer is run again.
        if created.iter().all(|created| word(created) != "unknown") {
            assert_eq!(winners.len(), 1, "{created:?}");
            told += 1;
        }
    }
    assert_eq!(told, 8, "a service that answers hardly any race");
}
