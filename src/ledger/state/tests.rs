//! A ledger as the log makes it: segments that are cut, merged, pruned, and placed on the store.

use std::sync::Arc;

use super::{LedgerEnd, LedgerState, SegmentName};
use crate::ledger::status::{Pruned, Status};
use crate::model::schema::schemas;

fn name(first: u64) -> SegmentName {
    SegmentName { first, last: first + 9 }
}

fn restore(end: &LedgerEnd) -> Option<LedgerState> {
    LedgerState::restore("o".to_owned(), Arc::clone(&schemas().unwrap().audit_log), end)
}

/// A ledger of three stored segments of ten entries each.
fn ledger() -> LedgerState {
    let end = LedgerEnd {
        size: 30,
        hash: "0".repeat(64),
        first: 0,
        segments: vec![10, 10, 10],
        times: vec![Some((1, 5)), None, Some((6, 9))],
        status: Status::default(),
    };
    let mut ledger = restore(&end).unwrap();
    ledger.place(&[0, 10, 20].map(|first| (name(first), 100)), 30).unwrap();
    ledger
}

fn prune(ledger: &mut LedgerState, first_kept: u64, named: &[SegmentName]) -> u64 {
    ledger.prune(40, first_kept, &named.iter().copied().collect());
    ledger.first_kept()
}

#[test]
fn what_is_pruned_is_gone_for_queries_and_is_to_be_deleted() {
    let mut ledger = ledger();
    assert_eq!(prune(&mut ledger, 20, &[name(0), name(10)]), 20);
    assert_eq!(ledger.status().pruned, Some(Pruned { entry: 40, first_kept: 20 }));
    assert_eq!(ledger.removal().unwrap().first_kept, 20);
    assert_eq!((ledger.first_kept(), ledger.size()), (20, 30));
}

#[test]
fn a_prune_that_does_not_name_every_segment_is_of_no_effect() {
    assert_eq!(prune(&mut ledger(), 20, &[name(0)]), 0);
    let mut merged = ledger();
    merged.merge(SegmentName { first: 0, last: 19 }, true);
    assert_eq!(prune(&mut merged, 20, &[name(0), name(10)]), 0);
    assert!(merged.removal().is_none());
}

#[test]
fn the_newest_segment_is_never_pruned() {
    assert_eq!(prune(&mut ledger(), 30, &[name(0), name(10), name(20)]), 0);
}

#[test]
fn it_is_restored_as_it_stood() {
    let mut ledger = ledger();
    ledger.merge(SegmentName { first: 0, last: 19 }, true);
    let end = ledger.end();
    assert_eq!((end.segments.as_slice(), restore(&end).unwrap().end()), ([20, 10].as_slice(), end.clone()));
    let overlong = LedgerEnd { segments: vec![31], ..end };
    assert!(restore(&overlong).is_none());
}

#[test]
fn a_merged_segment_of_which_a_checkpoint_covers_a_part_keeps_its_parts() {
    let mut end = ledger().end();
    (end.segments, end.times) = (vec![30], vec![None]);
    let mut ledger = restore(&end).unwrap();
    // The last ten are under no checkpoint: what lies there of them is not believed, and what is before is.
    let files = [0, 10, 20].map(|first| (name(first), 100));
    assert_eq!(ledger.place(&files, 20), Ok(Vec::new()));
    assert_eq!(ledger.next_cut().unwrap().name, name(20));
    assert!(ledger.next_merge().is_none());
    ledger.store(name(20), 100);
    assert_eq!(ledger.next_merge().unwrap().from, [name(0), name(10), name(20)]);
}

#[test]
fn only_what_a_checkpoint_covers_is_merged() {
    let mut ledger = restore(&ledger().end()).unwrap();
    ledger.place(&[0, 10, 20].map(|first| (name(first), 100)), 20).unwrap();
    ledger.store(name(20), 100);
    assert_eq!(ledger.runs(), [vec![name(0), name(10)], vec![]]);
    ledger.cover(30);
    assert_eq!(ledger.runs(), [[name(0), name(10), name(20)]]);
}

/// By which files are pruned: they come with the state, and need no file to be opened.
#[test]
fn times_of_segments_outlive_a_load_and_join_where_all_are_known() {
    let mut end = ledger().end();
    end.times = vec![Some((3, 5)), Some((1, 4)), None];
    let restored = restore(&end).unwrap();
    assert_eq!(restored.end().times, end.times);
    let mut merged = restore(&end).unwrap();
    merged.merge(SegmentName { first: 0, last: 19 }, true);
    assert_eq!(merged.end().times, [Some((1, 5)), None]);
    merged.merge(SegmentName { first: 0, last: 29 }, true);
    assert_eq!(merged.end().times, [None]);
}

#[test]
fn a_merged_segment_that_is_not_stored_yet_is_made_of_its_parts() {
    let mut end = ledger().end();
    (end.segments, end.times) = (vec![20, 10], vec![None; 2]);
    let mut ledger = restore(&end).unwrap();
    assert_eq!(ledger.place(&[0, 10, 20].map(|first| (name(first), 100)), 30), Ok(Vec::new()));
    assert_eq!(ledger.next_merge().unwrap().from, [name(0), name(10)]);
    let both = [(SegmentName { first: 0, last: 19 }, 7), (name(0), 1), (name(10), 1), (name(20), 1)];
    assert_eq!(restore(&end).unwrap().place(&both, 30), Ok(vec![name(0), name(10)]));
    assert_eq!(restore(&end).unwrap().place(&[(name(0), 1), (name(20), 1)], 30), Err(10));
}

#[test]
fn only_what_a_checkpoint_covers_may_be_pruned() {
    let mut ledger = restore(&ledger().end()).unwrap();
    ledger.place(&[0, 10, 20].map(|first| (name(first), 100)), 30).unwrap();
    let prunable = |signed| ledger.prunable(signed).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    assert_eq!(prunable(30), [name(0), name(10)]);
    // Another node has stored the second one, and came to no checkpoint over it.
    assert_eq!(prunable(19), [name(0)]);
    assert_eq!(prunable(0), []);
}

#[test]
fn a_file_that_no_checkpoint_covers_is_not_believed() {
    let mut ledger = restore(&ledger().end()).unwrap();
    ledger.place(&[0, 10, 20].map(|first| (name(first), 100)), 20).unwrap();
    assert_eq!(ledger.next_cut().unwrap().name, name(20));
}
