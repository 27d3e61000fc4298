//! Lives that are known to come to a bad end, until what they show is mended: plan, seed, and what the reason holds.

use super::life::Plan;

/// Lives that are known to end badly.
pub(super) const EXPECTED: &[(Plan, u64, &str)] = &[];

/// What is known of a life's end.
pub(super) fn expected(plan: Plan, seed: u64) -> Option<&'static str> {
    EXPECTED.iter().find(|(of, number, _)| (*of, *number) == (plan, seed)).map(|(_, _, reason)| *reason)
}

/// Restores that come out wrong, by what their names hold.
pub(super) const RESTORES: &[&str] = &[];

/// Changes without the key that come out wrong, by what their names hold.
pub(super) const THEFTS: &[&str] = &[];
