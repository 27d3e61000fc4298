//! Both memories against naive ones that remember everything, over stores and loads at any place.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;
use uuid::Uuid;

use super::keys::{HOUR, KEPT, SLICE};
use super::lanes::{MARK_LIFE, REMEMBERED};
use super::{Decision, Dedup, Limits, Run, Stored};
use crate::ingest::{BatchId, Fingerprint, IdempotencyKey, Lane, RowKind};

fn key(n: u64) -> IdempotencyKey {
    IdempotencyKey::new(RowKind::Sample, n.to_string().as_bytes()).unwrap()
}

fn keyed(n: u64, body: u64) -> BatchId {
    BatchId::Key { key: key(n), body: Fingerprint(body) }
}

fn lane(n: u16) -> Lane {
    Lane { emitter: Uuid::from_u128(u128::from(n % 3)), lane: n / 3 }
}

fn numbered(n: u16, number: u64, after: u64, body: u64) -> BatchId {
    BatchId::Sequence { lane: lane(n), number, after, body: Fingerprint(body) }
}

/// The store's runs by name, and a memory that went through it.
fn stored_and_loaded(dedup: &Dedup, store: &mut BTreeMap<String, Vec<u8>>, base: Option<&Dedup>) -> Dedup {
    for run in dedup.keys().runs().filter(|run| !run.is_stored()) {
        let bytes = run.encode();
        let before = store.insert(run.reference().name(), bytes.clone());
        assert!(before.is_none_or(|before| before == bytes), "one name, one run");
        run.set_stored();
    }
    let stored = Stored::decode(&dedup.encode(base.map(|base| base.lanes().time()))).unwrap();
    let marks = Stored::decode(&dedup.encode(None)).unwrap().complete_lanes(None).unwrap();
    assert_eq!(marks.lanes(), dedup.lanes(), "without its keys too");
    let runs = stored.runs().iter().map(|run| run.decode(&store[&run.name()]).unwrap()).collect();
    stored.complete(runs, base).unwrap()
}

#[test]
fn a_retry_is_a_duplicate_and_the_next_number_is_fresh() {
    let mut dedup = Dedup::default();
    assert_eq!(dedup.decide(&numbered(0, 1, 0, 7)), Decision::Fresh);
    dedup.apply(&numbered(0, 1, 0, 7), 1, 0);
    assert_eq!(dedup.decide(&numbered(0, 1, 0, 7)), Decision::Duplicate);
    assert_eq!(dedup.decide(&numbered(0, 2, 1, 7)), Decision::Fresh);
    assert_eq!(dedup.decide(&numbered(1, 1, 0, 7)), Decision::Fresh, "another lane");
}

#[test]
fn a_batch_whose_answer_never_came_may_be_given_up() {
    let mut dedup = Dedup::default();
    dedup.apply(&numbered(0, 5, 0, 7), 1, 0);
    assert_eq!(dedup.decide(&numbered(0, 6, 4, 8)), Decision::Fresh, "5 was stored and not answered");
    assert_eq!(dedup.decide(&numbered(0, 9, 5, 8)), Decision::Fresh, "6 to 8 were given up");
    assert_eq!((dedup.lanes().last(&lane(0)), dedup.lanes().last(&lane(1))), (Some(5), None));
}

#[test]
fn an_emitter_that_was_answered_for_more_than_is_stored_is_stored_and_said() {
    let mut dedup = Dedup::default();
    dedup.apply(&numbered(0, 5, 4, 7), 1, 0);
    assert_eq!(dedup.decide(&numbered(0, 8, 7, 8)), Decision::FreshAfterGap);
    dedup.apply(&numbered(0, 8, 7, 8), 2, 0);
    assert_eq!(
        dedup.decide(&numbered(0, 7, 6, 9)),
        Decision::Conflict,
        "what was lost cannot be told from a repetition"
    );
}

#[test]
fn what_cannot_be_compared_is_a_conflict_and_never_a_duplicate() {
    let mut dedup = Dedup::default();
    let count = REMEMBERED as u64 + 1;
    for n in 1..=count {
        dedup.apply(&numbered(0, n, n - 1, n * 10), n, 0);
    }
    assert_eq!(dedup.decide(&numbered(0, 1, 0, 10)), Decision::Conflict, "it is 16 batches ago");
    assert_eq!(dedup.decide(&numbered(0, 2, 1, 20)), Decision::Duplicate);
    assert_eq!(dedup.decide(&numbered(0, 2, 1, 30)), Decision::Conflict, "another batch's body");
    assert_eq!(dedup.decide(&numbered(0, count, count - 1, 1)), Decision::Conflict, "the last number, another body");
}

#[test]
fn a_mark_lives_thirty_days_after_its_last_batch() {
    let mut dedup = Dedup::default();
    dedup.apply(&numbered(0, 3, 2, 7), 1, 0);
    dedup.advance(2, MARK_LIFE - 1);
    assert_eq!(dedup.decide(&numbered(0, 3, 2, 7)), Decision::Duplicate);
    dedup.advance(3, MARK_LIFE);
    assert_eq!(dedup.decide(&numbered(0, 3, 2, 7)), Decision::Fresh);
    assert_eq!(dedup.lanes().len(), 0);
}

#[test]
fn a_new_lane_past_the_bound_is_refused_and_no_old_one_goes() {
    let mut dedup = Dedup::new(Limits { max_lanes: 2, ..Limits::default() });
    dedup.apply(&numbered(0, 1, 0, 7), 1, 0);
    dedup.apply(&numbered(1, 1, 0, 7), 1, 0);
    assert_eq!(dedup.decide(&numbered(2, 1, 0, 7)), Decision::TooManyLanes);
    assert_eq!(dedup.decide(&numbered(0, 1, 0, 7)), Decision::Duplicate);
    assert_eq!(dedup.decide(&numbered(1, 2, 1, 8)), Decision::Fresh);
    dedup.set_limits(Limits { max_lanes: 1, ..Limits::default() });
    assert_eq!(dedup.lanes().len(), 2, "a lower bound takes none away");
    dedup.set_limits(Limits { max_lanes: 3, ..Limits::default() });
    assert_eq!(dedup.decide(&numbered(2, 1, 0, 7)), Decision::Fresh);
}

#[test]
fn a_key_with_another_body_is_reused_and_with_the_same_a_duplicate() {
    let mut dedup = Dedup::default();
    assert_eq!(dedup.decide(&keyed(1, 7)), Decision::Fresh);
    dedup.apply(&keyed(1, 7), 1, 0);
    for position in 2..4 {
        assert_eq!(dedup.decide(&keyed(1, 7)), Decision::Duplicate);
        assert_eq!(dedup.decide(&keyed(1, 8)), Decision::Reused);
        dedup.advance(position, SLICE * 2);
    }
    assert_eq!(dedup.keys().runs().len(), 1, "looked up in a run as well");
}

/// Keys of an hour and more, merged; the moments before and after a day has passed.
#[test]
fn a_merged_run_is_known_at_23_59_and_gone_an_hour_after_24() {
    let mut dedup = Dedup::default();
    let minute = HOUR / 60;
    for n in 0..120 {
        dedup.apply(&keyed(n, n), n, n as i64 * minute);
    }
    assert!((1..12).contains(&dedup.keys().runs().len()), "{} runs", dedup.keys().runs().len());
    dedup.advance(200, KEPT - minute);
    assert_eq!(dedup.decide(&keyed(0, 0)), Decision::Duplicate, "23 h 59");
    dedup.advance(201, KEPT + HOUR + SLICE);
    assert_eq!(dedup.decide(&keyed(0, 0)), Decision::Fresh, "25 h 05");
    assert_eq!(dedup.decide(&keyed(119, 119)), Decision::Duplicate);
    assert_eq!(dedup.keys_since(), None);
    assert_eq!(dedup.keys().evicted_early(), 0, "its time had come");
}

#[test]
fn past_the_bound_the_oldest_go_early_and_it_is_said_since_when_all_are_known() {
    let mut dedup = Dedup::new(Limits { max_key_bytes: 24 * 1000, ..Limits::default() });
    for n in 0..1000 {
        dedup.apply(&keyed(n, n), n, n as i64);
    }
    assert_eq!((dedup.keys_since(), dedup.keys().evicted_early()), (None, 0));
    dedup.apply(&keyed(1000, 0), 1000, 1000);
    let since = dedup.keys_since().unwrap();
    assert!((1..=63).contains(&since), "{since}");
    assert_eq!(dedup.keys().evicted_early(), since as u64);
    assert_eq!(dedup.decide(&keyed(0, 0)), Decision::Fresh);
    assert_eq!(dedup.decide(&keyed(since as u64, since as u64)), Decision::Duplicate);
    dedup.advance(1001, KEPT + since);
    assert_eq!(dedup.keys_since(), None, "24 hours are known again");
}

#[test]
fn many_keys_of_one_object_stay_in_one_run() {
    let mut dedup = Dedup::default();
    for n in 0..10_000 {
        dedup.apply(&keyed(n, n), 7, 0);
    }
    assert_eq!(dedup.keys().runs().len(), 0);
    dedup.advance(8, 0);
    let runs: Vec<_> = dedup.keys().runs().map(|run| (run.reference().name(), run.len())).collect();
    assert_eq!(runs, [("00000000000000000007-00000000000000000007".to_owned(), 10_000)]);
}

/// What the first design wrote: 16 bytes a key, and its own hash.
fn run_of_the_first_design(keys: &mut [IdempotencyKey], times: (i64, i64)) -> Vec<u8> {
    keys.sort_unstable();
    let mut bytes = b"MCPGKEY1".to_vec();
    bytes.extend_from_slice(&times.0.to_le_bytes());
    bytes.extend_from_slice(&times.1.to_le_bytes());
    keys.iter().for_each(|key| bytes.extend_from_slice(key.as_bytes()));
    let hash = blake3::hash(&bytes);
    bytes.extend_from_slice(hash.as_bytes());
    bytes
}

#[test]
fn a_key_of_the_first_design_is_a_duplicate_with_any_body() {
    let bytes = run_of_the_first_design(&mut [key(1), key(2)], (0, 10));
    let run = Run::decode_v1((0, 9), &bytes).unwrap();
    let mut dedup = Stored::from_v1(vec![run], Limits::default(), 9, 10);
    dedup.apply(&keyed(3, 7), 10, 20);
    dedup.apply(&keyed(4, 7), 11, SLICE * 3);
    assert_eq!(dedup.keys().runs().len(), 2, "not merged with keys that have bodies");
    let mut store = BTreeMap::new();
    for dedup in [dedup.clone(), stored_and_loaded(&dedup, &mut store, None)] {
        assert_eq!(dedup.decide(&keyed(1, 7)), Decision::Duplicate);
        assert_eq!(dedup.decide(&keyed(2, 8)), Decision::Duplicate);
        assert_eq!(dedup.decide(&keyed(3, 8)), Decision::Reused);
    }
    dedup.advance(12, KEPT + 10);
    assert_eq!(dedup.decide(&keyed(1, 7)), Decision::Fresh);
}

/// An object of the log: how much later than the one before, and its batches.
#[derive(Debug, Clone)]
struct Object {
    later: i64,
    keys: Vec<(u64, u64)>,
    numbers: Vec<(u16, u64, u64, u64)>,
    /// The state is stored and loaded after it; `true` on what the last state holds of marks.
    loaded: Option<bool>,
}

fn object() -> impl Strategy<Value = Object> {
    let later = prop_oneof![4 => 0..SLICE, 2 => 0..HOUR, 1 => 0..KEPT, 1 => 0..MARK_LIFE];
    let keys = prop::collection::vec((0u64..300, 0u64..2), 0..40);
    let numbers = prop::collection::vec((0u16..6, 0u64..4, 0u64..5, 0u64..2), 0..6);
    let loaded = prop_oneof![2 => Just(None), 1 => any::<bool>().prop_map(Some)];
    (later, keys, numbers, loaded).prop_map(|(later, keys, numbers, loaded)| Object { later, keys, numbers, loaded })
}

/// A memory of everything: each batch of each lane, in order, with its time.
#[derive(Debug, Default)]
struct NaiveLanes(HashMap<u16, Vec<(u64, u64, i64)>>);

impl NaiveLanes {
    fn decide(&self, now: i64, most: usize, (lane, number, after, body): (u16, u64, u64, u64)) -> Decision {
        let alive = |batches: &&Vec<(u64, u64, i64)>| batches.last().is_some_and(|(_, _, at)| at + MARK_LIFE > now);
        let Some(batches) = self.0.get(&lane).filter(alive) else {
            let full = self.0.values().filter(alive).count() >= most;
            return if full { Decision::TooManyLanes } else { Decision::Fresh };
        };
        let mark = batches.last().unwrap().0;
        match number > mark {
            true if after > mark => Decision::FreshAfterGap,
            true => Decision::Fresh,
            false => {
                let recent = batches.iter().rev().take(REMEMBERED);
                let there = recent.map(|(n, b, _)| (*n, *b)).any(|batch| batch == (number, body));
                if there { Decision::Duplicate } else { Decision::Conflict }
            }
        }
    }

    fn apply(&mut self, now: i64, (lane, number, _, body): (u16, u64, u64, u64)) {
        let batches = self.0.entry(lane).or_default();
        if batches.last().is_some_and(|(_, _, at)| at + MARK_LIFE <= now) {
            batches.clear();
        }
        batches.push((number, body, now));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// The same log leads to the same bytes, however often and where the state was stored and loaded; lanes do exactly
    /// what a memory of everything does; keys are never forgotten too early and never kept past the bound.
    #[test]
    fn both_memories_do_what_naive_ones_do_wherever_they_were_stored(
        objects in prop::collection::vec(object(), 1..60), max_keys in prop_oneof![1u64..200, Just(1 << 22)],
    ) {
        let limits = Limits { max_lanes: 4, max_key_bytes: max_keys * 24 };
        let (mut loaded, mut untouched) = (Dedup::new(limits), Dedup::new(limits));
        let (mut base, mut store) = (None::<Dedup>, BTreeMap::new());
        let (mut naive, mut keys) = (NaiveLanes::default(), BTreeMap::<u64, (u64, i64)>::new());
        let (mut now, mut applied, mut reapplied) = (0_i64, 0, 0);
        for (position, object) in (1u64..).zip(&objects) {
            now += object.later;
            loaded.advance(position, now);
            untouched.advance(position, now);
            for (n, body) in &object.keys {
                let (id, decision) = (keyed(*n, *body), loaded.decide(&keyed(*n, *body)));
                let since = loaded.keys_since().unwrap_or(i64::MIN);
                match keys.get(n) {
                    None => prop_assert_eq!(decision, Decision::Fresh),
                    Some((stored, at)) => {
                        let known = if stored == body { Decision::Duplicate } else { Decision::Reused };
                        if at + KEPT > now && *at >= since {
                            prop_assert_eq!(decision, known, "key {} is known for a day", n);
                        } else {
                            prop_assert!(decision == known || decision == Decision::Fresh);
                        }
                        if at + KEPT + HOUR + SLICE <= now {
                            prop_assert_eq!(decision, Decision::Fresh, "key {} is forgotten", n);
                        }
                    }
                }
                if decision.stores() {
                    loaded.apply(&id, position, now);
                    untouched.apply(&id, position, now);
                    applied += 1;
                    reapplied += u64::from(keys.insert(*n, (*body, now)).is_some());
                    prop_assert!(loaded.keys().bytes() <= loaded.keys().max_bytes());
                }
            }
            for (n, up, after, body) in &object.numbers {
                // Around the lane's last number, so that each case comes up.
                let last = naive.0.get(n).and_then(|batches| batches.last()).map_or(0, |(number, _, _)| *number);
                let number = (last + up).saturating_sub(1).max(1);
                let batch = (*n, number, after.saturating_sub(2).saturating_add(last).min(number - 1), *body);
                let id = numbered(batch.0, batch.1, batch.2, batch.3);
                let decision = loaded.decide(&id);
                prop_assert_eq!(decision, naive.decide(now, 4, batch), "{:?}", batch);
                if decision.stores() {
                    loaded.apply(&id, position, now);
                    untouched.apply(&id, position, now);
                    naive.apply(now, batch);
                }
            }
            if let Some(partly) = object.loaded {
                loaded = stored_and_loaded(&loaded, &mut store, base.as_ref().filter(|_| partly));
                base = Some(loaded.clone());
            }
            prop_assert!(loaded.keys().runs().len() < 200);
        }
        let gone = applied - loaded.keys().len();
        prop_assert!(loaded.keys().evicted_early() <= gone && reapplied <= gone);
        prop_assert_eq!(loaded.encode(None), untouched.encode(None));
    }

    /// Of the state's own bytes the caller's MAC takes care; still, none leads to a panic or to memory without bound,
    /// and what is read is what encodes to those bytes.
    #[test]
    fn a_changed_state_is_refused_or_is_another_state(at in any::<prop::sample::Index>(), flip in 1u8..) {
        let (dedup, _) = sample();
        let mut bytes = dedup.encode(None);
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        if let Ok(stored) = Stored::decode(&bytes) {
            let runs: Vec<_> = dedup.keys().runs().cloned().collect();
            if let Ok(other) = stored.complete(runs, None) {
                prop_assert_eq!(other.encode(None), bytes);
            }
        }
    }

    #[test]
    fn a_cut_or_longer_state_is_refused(at in any::<prop::sample::Index>()) {
        let (dedup, _) = sample();
        let mut bytes = dedup.encode(None);
        prop_assert!(Stored::decode(&bytes[..at.index(bytes.len())]).is_err());
        bytes.push(0);
        prop_assert!(Stored::decode(&bytes).is_err());
    }

    #[test]
    fn a_changed_byte_of_a_run_is_noticed(at in any::<prop::sample::Index>(), flip in 1u8..) {
        let (dedup, runs) = sample();
        let stored = Stored::decode(&dedup.encode(None)).unwrap();
        let mut bytes = runs[0].clone();
        prop_assert!(stored.runs()[0].decode(&bytes).is_ok());
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert!(stored.runs()[0].decode(&bytes).is_err());
    }

    #[test]
    fn a_changed_byte_of_a_run_of_the_first_design_is_noticed(at in any::<prop::sample::Index>(), flip in 1u8..) {
        let mut bytes = run_of_the_first_design(&mut [key(1), key(2), key(3)], (0, 10));
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert!(Run::decode_v1((0, 9), &bytes).is_err());
    }
}

/// Runs, open keys and marks.
fn sample() -> (Dedup, Vec<Vec<u8>>) {
    let mut dedup = Dedup::default();
    for n in 0..60 {
        dedup.apply(&keyed(n, n), n, n as i64 * HOUR / 20);
        dedup.apply(&numbered(n as u16 % 6, n + 1, n, n), n, n as i64 * HOUR / 20);
    }
    let runs = dedup.keys().runs().map(Run::encode).collect();
    (dedup, runs)
}

#[test]
fn a_state_that_builds_on_another_one_is_refused_without_it() {
    let (mut dedup, _) = sample();
    let base = dedup.clone();
    dedup.apply(&numbered(0, 100, 99, 1), 100, 10 * HOUR);
    let bytes = dedup.encode(Some(base.lanes().time()));
    assert!(bytes.len() < dedup.encode(None).len());
    let runs = || dedup.keys().runs().cloned().collect::<Vec<_>>();
    let stored = || Stored::decode(&bytes).unwrap();
    assert_eq!(stored().base(), Some(base.lanes().time()));
    assert!(stored().complete(runs(), None).is_err());
    assert!(stored().complete(runs(), Some(&dedup)).is_err(), "a later one");
    assert!(stored().complete(Vec::new(), Some(&base)).is_err(), "without its runs");
    assert_eq!(stored().complete(runs(), Some(&base)).unwrap().encode(None), dedup.encode(None));
}
