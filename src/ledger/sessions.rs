//! Sessions of browsers that are over before their time: which were ended, and up to when all of a caller's, or all,
//! are.
//!
//! Folded out of the ledger's entries with the rest of its [`Status`](super::status::Status), so every node knows the
//! same, and knows it as soon as it has applied the log. A session's cookie holds the time of the log when it began:
//! that and not a clock says whether it began before an entry.
//!
//! | action | `detail` |
//! |---|---|
//! | `operator.session_ended` | `session`, its id; `begun`, µs; `until`, in seconds, when it would have ended anyway; `at`, µs |
//! | `operator.sessions_revoked` | `not_before`, µs: those that began then or before are over; `caller`, if only theirs; `at`, µs |
//!
//! It is bounded: what would have ended anyway is forgotten at the next such entry, and past [`MOST`] sessions or
//! callers all that began up to the last of them have ended, of any caller.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A session was ended by whose it is.
pub(crate) const SESSION_ENDED: &str = "operator.session_ended";
/// Sessions were ended by an operator.
pub(crate) const SESSIONS_REVOKED: &str = "operator.sessions_revoked";

/// How many sessions, and how many callers, are remembered.
const MOST: usize = 2_000;
/// How long a session lasts at most, whatever is configured, in µs.
const LONGEST: i64 = 7 * 86_400 * 1_000_000;

/// The sessions of browsers that ended early.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Sessions {
    /// All that began then or before are over, µs.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_before: Option<i64>,
    /// The same of one caller.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    callers: BTreeMap<String, i64>,
    /// Sessions that were ended: when each began, and when it would have ended anyway (s).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    ended: BTreeMap<String, (i64, i64)>,
}

impl Sessions {
    /// Whether nothing is known.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a session of this id was ended.
    pub(crate) fn has_ended(&self, id: &str) -> bool {
        self.ended.contains_key(id)
    }

    /// Whether a caller's session that began then is over.
    pub(crate) fn is_revoked(&self, caller: &str, begun: i64) -> bool {
        let bounds = [self.not_before, self.callers.get(caller).copied()];
        bounds.into_iter().flatten().any(|not_before| begun <= not_before)
    }

    /// Takes in an entry. One whose detail is not of the form says nothing.
    pub(super) fn fold(&mut self, action: &str, detail: &Value) {
        let number = |name: &str| detail.get(name).and_then(Value::as_i64);
        let text = |name: &str| detail.get(name).and_then(Value::as_str).map(str::to_owned);
        // What an emitter sent in does not count.
        let Some(at) = number("at").filter(|_| detail.get("submitted_by").is_none()) else { return };
        self.ended.retain(|_, (_, until)| *until > at / 1_000_000);
        self.callers.retain(|_, not_before| *not_before > at.saturating_sub(LONGEST));
        match action {
            SESSION_ENDED => {
                if let (Some(id), Some(begun), Some(until)) = (text("session"), number("begun"), number("until")) {
                    self.ended.insert(id, (begun, until));
                }
            }
            SESSIONS_REVOKED => match (text("caller"), number("not_before")) {
                (Some(caller), Some(not_before)) => {
                    let known = self.callers.entry(caller).or_insert(not_before);
                    *known = not_before.max(*known);
                }
                (None, Some(not_before)) => self.revoke(not_before),
                (_, None) => {}
            },
            _ => {}
        }
        if self.ended.len() > MOST || self.callers.len() > MOST {
            let begun = self.ended.values().map(|(begun, _)| *begun).chain(self.callers.values().copied()).max();
            self.revoke(begun.unwrap_or(at));
        }
    }

    /// All that began then or before are over: what is known of them apart is not needed any more.
    fn revoke(&mut self, not_before: i64) {
        let not_before = self.not_before.map_or(not_before, |known| known.max(not_before));
        self.not_before = Some(not_before);
        self.callers.retain(|_, own| *own > not_before);
        self.ended.retain(|_, (begun, _)| *begun > not_before);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{MOST, SESSION_ENDED, SESSIONS_REVOKED, Sessions};

    fn folded(entries: &[(&str, Value)]) -> Sessions {
        let mut sessions = Sessions::default();
        entries.iter().for_each(|(action, detail)| sessions.fold(action, detail));
        sessions
    }

    fn ended(id: &str, begun: i64, until: i64, at: i64) -> (&'static str, Value) {
        (SESSION_ENDED, json!({ "session": id, "begun": begun, "until": until, "at": at }))
    }

    #[test]
    fn a_session_that_was_ended_is_over_until_it_would_have_ended_anyway() {
        let one = folded(&[ended("a", 1, 100, 5)]);
        assert!(one.has_ended("a") && !one.has_ended("b"));
        let later = folded(&[ended("a", 1, 100, 5), ended("b", 1, 300, 200_000_000)]);
        assert!(!later.has_ended("a") && later.has_ended("b"));
    }

    #[test]
    fn what_began_before_a_revocation_is_over_and_what_begins_after_it_is_not() {
        let all = folded(&[(SESSIONS_REVOKED, json!({ "not_before": 50, "at": 50 }))]);
        assert!(all.is_revoked("user:a", 50) && !all.is_revoked("user:a", 51));
        let one = folded(&[
            (SESSIONS_REVOKED, json!({ "not_before": 50, "at": 50, "caller": "user:a" })),
            (SESSIONS_REVOKED, json!({ "not_before": 40, "at": 60, "caller": "user:a" })),
        ]);
        assert!(one.is_revoked("user:a", 50) && !one.is_revoked("user:b", 50), "a bound never falls");
    }

    #[test]
    fn past_what_is_remembered_all_that_began_so_far_are_over() {
        let entries: Vec<_> = (0..=MOST as i64).map(|n| ended(&n.to_string(), n, i64::MAX, 0)).collect();
        let sessions = folded(&entries);
        assert!(
            sessions.is_revoked("user:anyone", MOST as i64) && !sessions.is_revoked("user:anyone", MOST as i64 + 1)
        );
        assert!(sessions.ended.is_empty());
    }

    #[test]
    fn what_an_emitter_sent_or_what_is_of_another_form_says_nothing() {
        let forged = json!({ "not_before": 50, "at": 50, "submitted_by": "ci" });
        assert!(
            folded(&[(SESSIONS_REVOKED, forged), (SESSION_ENDED, json!({ "at": 1 })), (SESSION_ENDED, json!([]))])
                .is_empty()
        );
    }
}
