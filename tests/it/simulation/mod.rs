//! The write path played deterministically: two control-plane nodes on one store, in virtual time, with a fault at every
//! single write in turn. Whatever happens, after recovery each acknowledged sample is in the samples, in both rollups and
//! in the counters exactly once, and each other one at most once (invariant I1). The same holds of events in the ledger, which is
//! one chain without a fork, under a head that verifies and that every older head is consistent with (I5).

mod ledger;
mod store;
mod world;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use object_store::path::Path;

use ledger::events;
use store::{Fault, FaultyStore};
use world::{Node, World, batch, run};

/// One life of two nodes: the script is the same each time, the order of what runs at once is drawn from `seed`.
fn life(seed: u64, fault: Option<(usize, Fault)>) -> (usize, World) {
    run(async move {
        let objects = Arc::new(InMemory::new());
        let mut world = World::new(seed);
        let one = Node::start(FaultyStore::new(&objects, fault)).await;
        let two = Node::start(FaultyStore::new(&objects, None)).await;
        for round in 0..3 {
            world.round(&one, &two, round).await;
        }
        world.rest().await;
        world.round(&one, &two, 3).await;
        one.stop().await;
        let writes = one.store.writes();
        // What the first did not get acknowledged is sent again, under the same keys, to the second.
        world.retry(&two).await;
        two.stop().await;
        let after = Node::start(FaultyStore::new(&objects, None)).await;
        world.check(&after).await;
        (writes, world)
    })
}

/// At every write of the script in turn the fault loses nothing and counts nothing twice.
fn at_any_write(fault: Fault) {
    let (writes, world) = life(1, None);
    assert!(writes > 20, "the script writes {writes} times, too few to mean anything");
    assert!(world.acknowledged() > 10 && world.acknowledged_events() > 5);
    for at in 0..writes {
        let (_, world) = life(1, Some((at, fault)));
        assert!(world.acknowledged() > 8, "{fault:?} at write {at}: hardly anything was acknowledged");
    }
}

#[test]
fn a_refused_write_loses_nothing_and_counts_nothing_twice() {
    at_any_write(Fault::Refused);
}

#[test]
fn a_write_whose_answer_is_lost_loses_nothing_and_counts_nothing_twice() {
    at_any_write(Fault::AnswerLost);
}

#[test]
fn a_torn_write_loses_nothing_and_counts_nothing_twice() {
    at_any_write(Fault::Torn);
}

#[test]
fn a_slow_write_loses_nothing_and_counts_nothing_twice() {
    at_any_write(Fault::Slow);
}

#[test]
fn a_death_before_a_write_loses_nothing_and_counts_nothing_twice() {
    at_any_write(Fault::DiesBefore);
}

#[test]
fn a_death_after_a_write_loses_nothing_and_counts_nothing_twice() {
    at_any_write(Fault::DiesAfter);
}

#[test]
fn faults_under_many_schedules_lose_nothing() {
    for seed in 2..26 {
        let fault = Fault::ALL[seed as usize % Fault::ALL.len()];
        life(seed, Some((seed as usize * 7 % 40, fault)));
    }
}

/// Entries are old after a second. They are looked for every third second, so that what a prune says of itself is signed, and
/// what it removed is gone, before the next one.
const SHORT_LIVED: &str = "
orgs: [{ name: acme, retention: { ledger: 1s } }]
audit: { prune_interval: 3s }
limits: { sql: { timeout: 500ms } }
";

/// A ledger that is pruned while it grows, by two nodes, the first of which meets a fault. Gives the writes of that one.
fn pruned_life(fault: Option<(usize, Fault)>) -> usize {
    run(async move {
        let objects = Arc::new(InMemory::new());
        let start = async |fault| Node::try_start_with(FaultyStore::new(&objects, fault), SHORT_LIVED).await.unwrap();
        let one = start(fault).await;
        for key in 0..12 {
            // What is not acknowledged is not looked for.
            drop(one.emit("acme", key, events(key, 3)).await);
            tokio::time::sleep(Duration::from_millis(400)).await;
        }
        let writes = one.store.writes();
        one.store.die();
        let two = start(None).await;
        for key in 100..112 {
            two.emit("acme", key, events(key, 3)).await.unwrap();
            tokio::time::sleep(Duration::from_millis(400)).await;
        }
        two.stop().await;
        let after = start(None).await;
        tokio::time::sleep(Duration::from_millis(700)).await;
        after.emit("acme", 1_000, events(1_000, 2)).await.unwrap();
        // It goes on pruning what it says of its pruning: there are moments between.
        let mut state = String::new();
        for _ in 0..300 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let shown = ledger::check(&after, "acme").await;
            if shown.first > 20 && shown.leftovers == 0 && shown.signed == shown.size {
                return writes;
            }
            let ledger::Shown { first, size, signed, leftovers, .. } = shown;
            state = format!("{size} entries, {signed} signed, kept from {first}, {leftovers} segments left over");
        }
        panic!("{fault:?}: the ledger was never pruned, signed and tidy: {state}");
    })
}

#[test]
fn a_fault_at_any_write_of_a_ledger_that_is_being_pruned_is_made_good() {
    let writes = pruned_life(None);
    assert!(writes > 40, "the script writes {writes} times, too few to mean anything");
    for at in 0..writes {
        for fault in Fault::ALL {
            pruned_life(Some((at, fault)));
        }
    }
}

#[test]
fn a_key_sent_to_both_nodes_at_once_is_stored_once() {
    run(async {
        let objects = Arc::new(InMemory::new());
        let one = Node::start(FaultyStore::new(&objects, None)).await;
        let two = Node::start(FaultyStore::new(&objects, None)).await;
        for n in 0..20u64 {
            let samples = batch(n, 3);
            let (a, b) = tokio::join!(one.send("acme", n, samples.clone()), two.send("acme", n, samples));
            assert_eq!([a.unwrap(), b.unwrap()].iter().filter(|ack| ack.duplicate).count(), 1, "key {n}");
        }
        assert_eq!(
            one.count("acme").await,
            BTreeMap::from([("samples", 60), ("hourly", 60), ("daily", 60), ("totals", 60)])
        );
    });
}

#[test]
fn what_one_node_acknowledged_the_other_shows_at_once() {
    run(async {
        let objects = Arc::new(InMemory::new());
        let one = Node::start(FaultyStore::new(&objects, None)).await;
        let two = Node::start(FaultyStore::new(&objects, None)).await;
        for n in 0..30u64 {
            one.send("acme", n, batch(n, 2)).await.unwrap();
            assert_eq!(two.count("acme").await["totals"], 2 * (n as i64 + 1));
        }
    });
}

#[test]
fn a_damaged_object_is_named_and_never_skipped() {
    run(async {
        let objects = Arc::new(InMemory::new());
        let one = Node::start(FaultyStore::new(&objects, None)).await;
        for n in 0..3u64 {
            one.send("acme", n, batch(n, 2)).await.unwrap();
            one.send("other", 100 + n, batch(n, 2)).await.unwrap();
        }
        one.store.die();
        let path = Path::from(format!("wal/{:020}", 4));
        let mut bytes = objects.get(&path).await.unwrap().bytes().await.unwrap().to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        objects.put(&path, bytes.into()).await.unwrap();

        let after = Node::start(FaultyStore::new(&objects, None)).await;
        let refused = after.send("acme", 9, batch(9, 1)).await.unwrap_err().to_string();
        assert!(refused.contains("org acme is stopped") && refused.contains("wal/00000000000000000004"), "{refused}");
        assert_eq!(after.count("other").await["totals"], 6);
    });
}

#[test]
fn a_missing_object_stops_the_start_and_is_named() {
    run(async {
        let objects = Arc::new(InMemory::new());
        let one = Node::start(FaultyStore::new(&objects, None)).await;
        for n in 0..3u64 {
            one.send("acme", n, batch(n, 2)).await.unwrap();
        }
        one.store.die();
        objects.delete(&Path::from(format!("wal/{:020}", 2))).await.unwrap();
        let refused = Node::try_start(FaultyStore::new(&objects, None)).await.unwrap_err().to_string();
        assert!(refused.contains("wal/00000000000000000002"), "{refused}");
    });
}

#[test]
fn a_node_that_slept_through_trimming_catches_up_and_loses_nothing() {
    run(async {
        let objects = Arc::new(InMemory::new());
        let one = Node::start(FaultyStore::new(&objects, None)).await;
        let sleeper = Node::start(FaultyStore::new(&objects, None)).await;
        sleeper.store.freeze();
        for n in 0..60u64 {
            one.send("acme", n, batch(n, 1)).await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
        assert!(objects.head(&Path::from(format!("wal/{:020}", 1))).await.is_err(), "the log was not trimmed");
        sleeper.store.thaw();
        let mut tries = 0;
        while sleeper.send("acme", 1000, batch(1000, 1)).await.is_err() {
            tries += 1;
            assert!(tries < 5, "it never caught up");
        }
        for node in [&one, &sleeper] {
            assert_eq!(node.count("acme").await["totals"], 61);
            assert_eq!(node.count("acme").await["samples"], 61);
        }
    });
}
