//! What does not belong to a store, and one org whose data is corrupt: neither keeps the control plane from starting
//! nor hurts the other orgs.

use super::outcome::{Found, Lived};
use crate::harness::Started;

/// Names that people, editors, NFS and file managers leave behind.
const STRAYS: [&str; 9] = [
    "wal/README",
    "wal/.nfs000000000001",
    "wal/backup/00000000000000000003",
    "wal/00000000000000000003.bak",
    "wal/floor/notes.txt",
    "orgs/.DS_Store",
    "orgs/notes.txt",
    "orgs/Not An Org/state/00000000000000000001",
    "lost+found/x",
];

#[tokio::test(flavor = "multi_thread")]
async fn stray_files_keep_no_control_plane_from_starting_and_hurt_no_org() {
    let lived = Lived::of("flush: { interval: 300ms }", false).await;
    let store = lived.cluster.store();
    for stray in STRAYS {
        store.write(stray, b"stray");
    }
    let mut look = lived.look().await;
    assert_eq!(look.started, Started::Ready, "{}", look.server.logs());
    for org in look.lived.orgs.clone() {
        assert_eq!(look.found_well(&org).await, Found::Whole, "org {org}");
    }
    // What is not its own it leaves alone.
    for stray in STRAYS {
        assert_eq!(store.read(stray), b"stray", "{stray}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stray_files_within_an_org_hurt_no_other_org() {
    let lived = Lived::of("flush: { interval: 300ms }", false).await;
    let strays =
        ["state/notes.txt", "keys/x", "audit/segments/.nfs01", "audit/checkpoints/latest", "parked/x", "totals/x"];
    for stray in strays {
        lived.cluster.store().write(&format!("orgs/org-001/{stray}"), b"stray");
    }
    let mut look = lived.look().await;
    assert_eq!(look.started, Started::Ready, "{}", look.server.logs());
    for org in ["org-000", "org-002"] {
        assert_eq!(look.found_well(org).await, Found::Whole, "org {org}");
    }
    if let Found::Refused(why) = look.settled("org-001", |why| why.contains("orgs/org-001/")).await {
        assert!(why.contains("orgs/org-001/"), "the stray file is not named: {why}");
    }
}

/// Every kind of corruption of one org at once.
#[tokio::test(flavor = "multi_thread")]
async fn an_org_whose_data_is_garbage_hurts_no_other_org() {
    let lived = Lived::of("flush: { interval: 300ms }", false).await;
    let store = lived.cluster.store();
    for object in store.list("orgs/org-001/") {
        store.write(&object, b"garbage");
    }
    let mut look = lived.look().await;
    assert_eq!(look.started, Started::Ready, "{}", look.server.logs());
    for org in ["org-000", "org-002"] {
        assert_eq!(look.found_well(org).await, Found::Whole, "org {org}");
    }
    let Found::Refused(why) = look.settled("org-001", |why| why.contains("orgs/org-001/")).await else {
        panic!("garbage is served")
    };
    assert!(why.contains("orgs/org-001/"), "no object is named: {why}");
    // Others' data goes on to be flushed, sealed and signed.
    assert!(look.server.stop().await.success() || look.server.logs().contains("org-001"));
}
