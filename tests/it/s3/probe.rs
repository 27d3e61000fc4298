//! The probe of a start: services that keep their word pass, and those that do not are refused with what they lack.

use std::sync::atomic::{AtomicUsize, Ordering};

use mcpg::config::Secret;
use mcpg::model::SystemClock;
use mcpg::storage::{Created, StorageError, Store};
use object_store::UpdateVersion;
use object_store::path::Path;

use crate::harness::proxy::{Fault, Proxy, Seen};
use crate::harness::s3::{Bucket, Seaweed, Service};
use crate::harness::{Config, Program, mcpg};

async fn probe(store: &Store) -> Result<(), StorageError> {
    store.probe(&SystemClock).await
}

async fn refusal(store: &Store) -> String {
    match probe(store).await.unwrap_err() {
        StorageError::Unusable { url, reason } => format!("{url}: {reason}"),
        e => panic!("not refused, but {e:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn seaweedfs_passes_in_few_requests_and_nothing_is_left() {
    let seaweed = Seaweed::shared().await;
    let store = seaweed.bucket().await.store("a");
    probe(&store).await.unwrap();
    let counts = store.requests().unwrap();
    // Two creates, a late one, and two swaps; beside these 16 a race, of which there is another where a racer was not
    // answered.
    let races = (counts.conditional_puts - 5) / 16;
    assert!((1..=3).contains(&races) && counts.conditional_puts == 5 + races * 16, "{counts:?}");
    assert_eq!((counts.gets, counts.heads, counts.lists, counts.puts, counts.deletes), (2, 0, 1, 0, 2), "{counts:?}");
    assert!(store.list(&Path::from(".probe")).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn moto_passes_and_its_404_to_a_swap_of_what_is_absent_is_no_win() {
    let moto = Service::moto().await;
    let store = moto.bucket().store("a");
    probe(&store).await.unwrap();
    let version = UpdateVersion { e_tag: Some("\"0123\"".to_owned()), version: None };
    let swapped = store.swap(&Path::from("absent"), Some(version), "x".into()).await;
    assert!(matches!(swapped, Created::Exists), "{swapped:?}");
    assert_eq!(store.get(&Path::from("absent")).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_is_not_there_or_not_ours_is_refused_by_name() {
    let moto = Service::moto().await;
    let absent = Bucket { name: "no-such-bucket".to_owned(), ..moto.bucket().clone() };
    let refused = refusal(&absent.store("")).await;
    assert!(refused.contains("s3://no-such-bucket") && refused.contains("there is no such bucket"), "{refused}");

    let seaweed = Seaweed::shared().await;
    let mut settings = seaweed.bucket().await.settings("");
    settings.secret_access_key = Some(Secret::new("a-wrong-secret"));
    let refused = refusal(&Store::open_with(&settings).unwrap()).await;
    assert!(refused.contains("not permitted with these credentials"), "{refused}");
    assert!(!refused.contains("a-wrong-secret"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn services_that_ignore_if_none_match_are_refused() {
    for service in [Service::s3rver().await, Service::rclone().await] {
        let refused = refusal(&service.bucket().store("a")).await;
        assert!(refused.contains("of 16 racing creates of one object won"), "{refused}");
        assert!(refused.contains("If-None-Match"), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_writes_nothing_to_a_service_that_lies() {
    let service = Service::s3rver().await;
    let bucket = service.bucket();
    let folder = tempfile::tempdir().unwrap();
    let mut program = Program::new("the control plane");
    let mut command = mcpg();
    command.args(["control-plane", "--listen", "127.0.0.1:0", "--storage", &bucket.url("a")]);
    program.spawn(command.envs(bucket.environment()).current_dir(folder.path()));
    let status = program.ended().await;
    assert_eq!(status.code(), Some(2), "{}", program.logs());
    assert!(program.logs().contains("racing creates of one object won"), "{}", program.logs());
    let store = bucket.store("a");
    assert!(store.list(&Path::from("wal")).await.unwrap().is_empty());
    assert!(store.list(&Path::from("orgs")).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_does_not_answer_is_a_failure_and_no_lie() {
    let seaweed = Seaweed::shared().await;
    let bucket = seaweed.bucket().await;
    let proxy = Proxy::start(&bucket.endpoint).await;
    let store = bucket.at(proxy.endpoint()).store("a");
    // Once, as a service does that throttles writes of one object: another race tells.
    proxy.on(1, Fault::Answered(503), |request| request.puts("/race-0"));
    probe(&store).await.unwrap();
    for race in ["/race-0", "/race-1", "/race-2"] {
        proxy.on(1, Fault::Answered(503), move |request| request.puts(race));
    }
    let failed = probe(&store).await.unwrap_err();
    assert!(matches!(failed, StorageError::Failed { .. }), "{failed:?}");
}

/// A proxy gives each false answer that no service at hand gives.
#[tokio::test(flavor = "multi_thread")]
async fn each_thing_that_a_store_may_lack_is_named() {
    let seaweed = Seaweed::shared().await;
    let swaps = |request: &Seen| request.header("if-match").is_some();
    let stale = |request: &Seen| request.method == "DELETE" || request.target.contains("delete");
    let lacks = async |words: &str, prepare: &dyn Fn(&Proxy)| {
        // A race of which a busy service has left a racer without an answer is run again by another name, and of that
        // one the answers are true: then the probe passes, and is asked once more.
        for _ in 0..3 {
            let bucket = seaweed.bucket().await;
            let proxy = Proxy::start(&bucket.endpoint).await;
            prepare(&proxy);
            match probe(&bucket.at(proxy.endpoint()).store("a")).await {
                Err(StorageError::Unusable { reason, .. }) => {
                    assert!(reason.contains(words), "{reason}");
                    return;
                }
                Err(e) => panic!("not refused, but {e:?}"),
                Ok(()) => {}
            }
        }
        panic!("three probes passed a store that lacks this: {words}");
    };
    lacks("none of 16 racing creates", &|proxy| proxy.on(16, Fault::Answered(409), |request| request.puts("/race-0")))
        .await;
    lacks("refuses to create an object that is absent", &|proxy| {
        proxy.on(1, Fault::Answered(409), |request| request.puts("/again"));
    })
    .await;
    lacks("a read right after a create", &|proxy| {
        proxy.on(1, Fault::Answered(404), |request| request.method == "GET" && request.target.ends_with("/race-0"));
    })
    .await;
    lacks("a listing right after a create", &|proxy| {
        proxy.on(1, Fault::EmptyListing, |request| request.target.contains("list-type"));
    })
    .await;
    lacks("a create of an object that is there won", &|proxy| {
        let nth = AtomicUsize::new(0);
        proxy.on(1, Fault::Answered(200), move |request| {
            request.puts("/race-0") && nth.fetch_add(1, Ordering::Relaxed) == 16
        });
    })
    .await;
    lacks("refuses to swap an object that has not changed", &move |proxy| {
        proxy.on(1, Fault::Answered(412), move |request| swaps(request));
    })
    .await;
    lacks("ignores If-Match with a stale ETag", &move |proxy| {
        let nth = AtomicUsize::new(0);
        proxy.on(1, Fault::Answered(200), move |request| swaps(request) && nth.fetch_add(1, Ordering::Relaxed) == 1);
    })
    .await;
    lacks("create an object again that was deleted", &move |proxy| {
        proxy.on(1, Fault::DeletesNothing, move |request| stale(request));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_is_probed_too_at_each_start() {
    let mut server = Config::new().start().await;
    assert_eq!(std::fs::read_dir(server.storage().join(".probe")).unwrap().count(), 0);
    assert!(server.stop().await.success());
}
