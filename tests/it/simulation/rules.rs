//! The rules that the log's protocol stands on, each switched off in turn: then some life must come to a bad end, or
//! some restored store must be served wrongly. That is what shows that the simulation looks.

use mcpg::plane::Parts;

use super::apart::live_apart;
use super::hanging::hang_while_parked;
use super::life::Plan;
use super::tamper::{wrong_restore, wrong_theft};

/// A rule's name, and what switches it off in a node's parts.
type Rule = (&'static str, fn(&mut Parts));

/// The rules without which a life comes to a bad end. That an org ignores what is not newer than it (L6) is shown where
/// it is applied: under the other rules no object comes twice. What the chain (L4) and Delta's own positions (L5) are
/// for, restored stores show; what MACs are for (L8), changed ones; what parking is for (L10), an org that hangs. What
/// a ledger is held against before it goes on (L7), and versions (L11), are tested where they are.
pub(super) const RULES: &[Rule] = &[
    ("L1, reading back", |parts| parts.rules.read_back = false),
    ("L2, the floor first", |parts| parts.rules.floor_first = false),
    ("L3, confirmation", |parts| parts.rules.confirm = false),
    ("L9, hiccups", |parts| parts.rules.hiccups = false),
];

/// Lives that came to a bad end without a rule when this was written: they are tried first.
const KNOWN: &[(&str, Plan, u64)] = &[
    ("L1, reading back", Plan::Liar, 1_000),
    ("L1, reading back", Plan::Liar, 1_001),
    ("L2, the floor first", Plan::Restless, 1_006),
    ("L2, the floor first", Plan::Restless, 1_017),
    ("L3, confirmation", Plan::Restless, 1_010),
    ("L3, confirmation", Plan::Wild, 1_010),
    // Whatever life it is, in foul weather some read of some org's load fails.
    ("L9, hiccups", Plan::Wild, 1_000),
    ("L9, hiccups", Plan::Wild, 1_001),
];
/// Lives that are tried then, until one comes to a bad end.
const SEEDS: std::ops::Range<u64> = 1_000..1_060;

#[test]
fn without_any_one_rule_some_life_comes_to_a_bad_end() {
    for (rule, _) in RULES {
        let known = KNOWN.iter().filter(|(of, ..)| of == rule).map(|(_, plan, seed)| (*plan, *seed));
        let others =
            SEEDS.flat_map(|seed| [Plan::Liar, Plan::Restless, Plan::Single, Plan::Wild].map(|plan| (plan, seed)));
        let found = known.chain(others).find_map(|(plan, seed)| {
            let told = live_apart(plan, seed, Some(*rule));
            told.outcome.err().map(|reason| format!("{} {seed}: {reason}", plan.name()))
        });
        match found {
            Some(found) => eprintln!("without {rule}: {}", found.lines().next().unwrap_or_default()),
            None => panic!("without {rule} every life ends well: nothing shows that the rule is needed"),
        }
    }
}

#[test]
fn without_the_chain_some_restored_store_is_served_wrongly() {
    let found = wrong_restore(|parts| parts.rules.chain = false);
    eprintln!("without L4, the chain: {}", found.as_deref().unwrap_or("nothing"));
    assert!(found.is_some(), "without the chain every restore comes out right: nothing shows that it is needed");
}

#[test]
fn without_replay_some_restored_store_is_served_wrongly() {
    let found = wrong_restore(|parts| parts.rules.replay = false);
    eprintln!("without L5, rows from the log: {}", found.as_deref().unwrap_or("nothing"));
    assert!(found.is_some(), "a table that is behind its state comes out right: nothing shows that the log is needed");
}

#[test]
fn without_macs_some_changed_store_is_served_wrongly() {
    let found = wrong_theft(|parts| parts.rules.authentic = false);
    eprintln!("without L8, MACs: {}", found.as_deref().unwrap_or("nothing"));
    assert!(found.is_some(), "without MACs every change comes out right: nothing shows that they are needed");
}

#[test]
fn without_parking_first_an_org_that_hangs_loses_what_was_acknowledged() {
    let (outcome, _) = hang_while_parked(|parts| parts.rules.parked_first = false);
    let reason = outcome.expect_err("nothing shows that an org must be parked before the floor passes what it needs");
    eprintln!("without L10, parking first: {}", reason.lines().next().unwrap_or_default());
}
