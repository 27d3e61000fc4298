//! What a ledger's entries say of the org's payload keys: which epochs have one and which one, which are being
//! destroyed, who viewed how much.
//!
//! | action | says |
//! |---|---|
//! | `payload.key_created` | the epoch's key, by its id and its public key |
//! | `payload.key_destroying` | from here on nothing is sealed to it, opened by it, or made in its place |
//! | `payload.key_destroyed` | it is gone, as far as the key store goes |
//! | `payload.kek_destroyed` | what wrapped it is gone too |
//! | `payload.recipient_changed` | the tenant's own key is another |
//! | `payload.viewed`, `payload.exported` | a caller is about to view a payload, or to export many |
//!
//! It is folded out of the entries as they are numbered, and is a part of the org's state: so it is the same on every
//! node, and carries the state's MAC. A public key is taken from here alone, never from an object that merely lies in
//! the store. Only the control plane makes such entries.
//!
//! What wrapped each key is known from the entries of its making and of every destroyed version since, each of which
//! names the version that took its keys over.
//!
//! Public keys are kept for as long as something may be sealed to them. Of a destroyed epoch nothing is kept once its
//! date is past: no key of a day that is past is ever made.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::node::PlaneError;
use crate::payload::{Epoch, KeyId, PublicKey};

/// The prefix of the actions that concern keys.
pub(crate) const PAYLOAD: &str = "payload.";
pub(crate) const KEY_CREATED: &str = "payload.key_created";
pub(crate) const KEY_DESTROYING: &str = "payload.key_destroying";
pub(crate) const KEY_DESTROYED: &str = "payload.key_destroyed";
pub(crate) const KEK_DESTROYED: &str = "payload.kek_destroyed";
pub(crate) const RECIPIENT_CHANGED: &str = "payload.recipient_changed";
pub(crate) const VIEWED: &str = "payload.viewed";
pub(crate) const EXPORTED: &str = "payload.exported";

/// Views of one actor in a minute, and in a day.
const VIEWS_A_MINUTE: u32 = 30;
const VIEWS_A_DAY: u32 = 500;
/// Rotations of the KEK that are remembered: one a day over the longest period of an epoch, and some.
const MOST_ROTATIONS: usize = 4_096;

/// The key of an epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EpochKey {
    pub(crate) key_id: KeyId,
    /// While something may be sealed to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) public: Option<PublicKey>,
    /// Whether it is being destroyed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) destroying: bool,
    /// The version of the KEK that wrapped it first, where its entry says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kek: Option<String>,
}

/// A version of the KEK that was destroyed, and the one that wraps since.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Rotation {
    version: String,
    now: String,
}

/// What an actor viewed of late.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Views {
    minute: i64,
    in_minute: u32,
    in_day: u32,
}

/// An org's payload keys, as its ledger has them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct PayloadKeys {
    pub(crate) epochs: BTreeMap<Epoch, EpochKey>,
    /// Epochs whose keys are destroyed, of days that are not past yet.
    gone: BTreeSet<Epoch>,
    pub(crate) recipient: Option<KeyId>,
    /// When a KEK was last destroyed, in µs.
    pub(crate) kek_destroyed_at: Option<i64>,
    /// Since the oldest living epoch's key was made.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rotations: Vec<Rotation>,
    /// The day that `views` are of, in days since the epoch.
    day: i64,
    views: BTreeMap<String, Views>,
}

impl PayloadKeys {
    /// Whether there is nothing to tell.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Takes in an entry. `time` is the ledger's, in µs.
    pub(super) fn fold(&mut self, action: &str, actor: &str, time: i64, detail: Option<&Value>) {
        let text = |name: &str| detail.and_then(|detail| detail.get(name)?.as_str());
        let epoch = || text("epoch").and_then(|epoch| epoch.parse::<Epoch>().ok());
        match action {
            KEY_CREATED => {
                let key = text("public_key").and_then(|key| key.parse::<PublicKey>().ok());
                if let (Some(epoch), Some(public)) = (epoch(), key) {
                    self.created(epoch, public, text("kek").map(str::to_owned), time);
                }
            }
            KEY_DESTROYING => {
                if let Some(key) = epoch().and_then(|epoch| self.epochs.get_mut(&epoch)) {
                    key.destroying = true;
                    key.public = None;
                }
            }
            KEY_DESTROYED => {
                if let Some(epoch) = epoch() {
                    self.epochs.remove(&epoch);
                    self.gone.insert(epoch);
                    if self.epochs.is_empty() {
                        self.rotations.clear();
                    }
                }
            }
            KEK_DESTROYED => {
                self.kek_destroyed_at = Some(time);
                if let (Some(version), Some(now)) = (text("version"), text("now")) {
                    self.rotated(Rotation { version: version.to_owned(), now: now.to_owned() });
                }
            }
            RECIPIENT_CHANGED => {
                self.recipient = text("key_id").and_then(|id| KeyId::try_from(id.to_owned()).ok());
            }
            VIEWED | EXPORTED => self.viewed(actor, time),
            _ => {}
        }
    }

    fn rotated(&mut self, rotation: Rotation) {
        if self.epochs.is_empty() || self.rotations.contains(&rotation) {
            return;
        }
        if self.rotations.len() == MOST_ROTATIONS {
            self.rotations.remove(0);
        }
        self.rotations.push(rotation);
    }

    /// The versions of the KEK that wrapped the key of an epoch, as far as the ledger says, the first one first.
    pub(crate) fn wrapped_by(&self, epoch: Epoch) -> Vec<String> {
        let mut versions: Vec<String> = self.epochs.get(&epoch).and_then(|key| key.kek.clone()).into_iter().collect();
        for rotation in &self.rotations {
            if versions.last() == Some(&rotation.version) {
                versions.push(rotation.now.clone());
            }
        }
        versions
    }

    fn created(&mut self, epoch: Epoch, public: PublicKey, kek: Option<String>, time: i64) {
        // The first one counts; and what is gone does not come again.
        if self.gone.contains(&epoch) || self.epochs.contains_key(&epoch) {
            return;
        }
        self.epochs.insert(epoch, EpochKey { key_id: public.id(), public: Some(public), destroying: false, kek });
        let Some(today) = DateTime::from_timestamp_micros(time).map(|time| time.date_naive()) else { return };
        let yesterday = today.checked_sub_signed(TimeDelta::days(1)).unwrap_or(today);
        self.gone.retain(|epoch| epoch.date() >= yesterday);
        for (epoch, key) in &mut self.epochs {
            if epoch.date() < yesterday {
                key.public = None;
            }
        }
    }

    fn viewed(&mut self, actor: &str, time: i64) {
        let (minute, day) = (time.div_euclid(60_000_000), time.div_euclid(86_400_000_000));
        if day > self.day {
            self.day = day;
            self.views.clear();
        }
        let views = self.views.entry(actor.to_owned()).or_default();
        if minute > views.minute {
            (views.minute, views.in_minute) = (minute, 0);
        }
        views.in_minute += 1;
        views.in_day += 1;
    }

    /// Whether an actor has viewed as much as may be, at this time in µs.
    pub(crate) fn is_exhausted(&self, actor: &str, time: i64) -> bool {
        let Some(views) = self.views.get(actor) else { return false };
        let (minute, day) = (time.div_euclid(60_000_000), time.div_euclid(86_400_000_000));
        day == self.day && (views.in_day >= VIEWS_A_DAY || minute == views.minute && views.in_minute >= VIEWS_A_MINUTE)
    }

    /// Whether the views that are entered of an actor are more than may be: other nodes entered some at the same time.
    pub(crate) fn is_exceeded(&self, actor: &str) -> bool {
        let views = self.views.get(actor);
        views.is_some_and(|views| views.in_day > VIEWS_A_DAY || views.in_minute > VIEWS_A_MINUTE)
    }

    /// Why payloads of an epoch are not taken that are sealed to this key.
    pub(crate) fn refusal(&self, epoch: Epoch, sealed_to: &KeyId) -> Option<PlaneError> {
        let refused = |code, reason| Some(PlaneError::PayloadRefused { code, reason });
        match self.epochs.get(&epoch) {
            Some(key) if key.destroying => refused("key_destroyed", format!("the key of {epoch} is destroyed")),
            Some(key) if key.key_id == *sealed_to => None,
            Some(_) => refused("epoch_unknown", format!("it is sealed to another key than that of {epoch}")),
            None if self.gone.contains(&epoch) => refused("key_destroyed", format!("the key of {epoch} is destroyed")),
            None => refused("epoch_unknown", format!("there is no key of {epoch} here; take one from payload-keys")),
        }
    }

    /// Whether the epoch has a key, which is not being destroyed.
    pub(crate) fn is_living(&self, epoch: Epoch) -> bool {
        self.epochs.get(&epoch).is_some_and(|key| !key.destroying)
    }

    /// Whether a key of the epoch may be made: it has no key, never had one, and its day is not past.
    pub(crate) fn may_make(&self, epoch: Epoch, today: NaiveDate) -> bool {
        epoch.date() >= today && !self.epochs.contains_key(&epoch) && !self.gone.contains(&epoch)
    }

    /// Whether the key of an epoch is to be destroyed: its time is over, or payloads are kept for a shorter time now.
    pub(crate) fn is_over(epoch: Epoch, longest: u32, now: DateTime<Utc>) -> bool {
        let shorter = Epoch::new(epoch.date(), epoch.days().min(longest));
        shorter.map_or(epoch, |shorter| shorter).ends_at() <= now
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{EXPORTED, KEK_DESTROYED, KEY_CREATED, KEY_DESTROYED, KEY_DESTROYING, PayloadKeys, VIEWED};
    use crate::payload::{Epoch, KeyPair, Suite};

    const DAY: i64 = 86_400_000_000;

    fn epoch(text: &str) -> Epoch {
        text.parse().unwrap()
    }

    /// Midnight of 2026-11-26.
    fn now() -> i64 {
        epoch("2026-11-26.1d").date().and_hms_opt(0, 0, 0).unwrap().and_utc().timestamp_micros()
    }

    fn create(keys: &mut PayloadKeys, of: &str, time: i64) -> KeyPair {
        let key = KeyPair::random(Suite::X25519).unwrap();
        let detail = json!({ "epoch": of, "public_key": key.public().to_string() });
        keys.fold(KEY_CREATED, "system:control-plane", time, Some(&detail));
        key
    }

    #[test]
    fn the_first_key_of_an_epoch_counts_and_a_destroyed_one_never_comes_again() {
        let (mut keys, of) = (PayloadKeys::default(), epoch("2026-11-26.30d"));
        assert!(keys.may_make(of, of.date()));
        assert!(!keys.may_make(of, of.date().succ_opt().unwrap()), "no key of a day that is past");
        let first = create(&mut keys, "2026-11-26.30d", now());
        create(&mut keys, "2026-11-26.30d", now());
        assert_eq!(keys.epochs[&of].public.as_ref(), Some(first.public()));
        assert!(keys.refusal(of, &first.public().id()).is_none());
        let other = KeyPair::random(Suite::X25519).unwrap().public().id();
        assert!(keys.refusal(of, &other).unwrap().to_string().contains("another key"));
        let detail = json!({ "epoch": "2026-11-26.30d" });
        keys.fold(KEY_DESTROYING, "", now(), Some(&detail));
        assert!(keys.refusal(of, &first.public().id()).unwrap().to_string().contains("destroyed"));
        keys.fold(KEY_DESTROYED, "", now(), Some(&detail));
        create(&mut keys, "2026-11-26.30d", now());
        assert!(keys.epochs.is_empty() && !keys.may_make(of, of.date()));
    }

    #[test]
    fn what_wrapped_a_key_is_known_from_its_making_to_its_end() {
        let mut keys = PayloadKeys::default();
        let made = |keys: &mut PayloadKeys, of: &str, kek: &str| {
            let public = KeyPair::random(Suite::X25519).unwrap().public().to_string();
            let detail = json!({ "epoch": of, "public_key": public, "kek": kek });
            keys.fold(KEY_CREATED, "", now(), Some(&detail));
        };
        let rotated = |keys: &mut PayloadKeys, version: &str, to: &str| {
            keys.fold(KEK_DESTROYED, "", now(), Some(&json!({ "kind": "file", "version": version, "now": to })));
        };
        rotated(&mut keys, "file:1", "file:2");
        made(&mut keys, "2026-11-26.30d", "file:2");
        rotated(&mut keys, "file:2", "file:3");
        made(&mut keys, "2026-11-27.30d", "file:3");
        // Two versions at once: what was cut short before is destroyed with the next rotation.
        rotated(&mut keys, "file:3", "file:5");
        rotated(&mut keys, "file:4", "file:5");
        let state = serde_json::to_string(&keys).unwrap();
        let keys: PayloadKeys = serde_json::from_str(&state).unwrap();
        assert_eq!(keys.wrapped_by(epoch("2026-11-26.30d")), ["file:2", "file:3", "file:5"]);
        assert_eq!(keys.wrapped_by(epoch("2026-11-27.30d")), ["file:3", "file:5"]);
        assert!(keys.wrapped_by(epoch("2026-11-28.30d")).is_empty());
    }

    #[test]
    fn public_keys_of_days_that_are_past_are_not_kept() {
        let mut keys = PayloadKeys::default();
        create(&mut keys, "2026-11-26.30d", now());
        create(&mut keys, "2026-11-29.30d", now() + 3 * DAY);
        assert!(keys.epochs[&epoch("2026-11-26.30d")].public.is_none());
        assert!(keys.epochs[&epoch("2026-11-29.30d")].public.is_some());
    }

    #[test]
    fn an_actor_views_so_many_a_minute_and_a_day() {
        let (mut keys, alice) = (PayloadKeys::default(), "user:alice");
        for view in 0..30 {
            assert!(!keys.is_exhausted(alice, now()));
            // An export is a view of many, and one of these at least.
            keys.fold(if view % 2 == 0 { VIEWED } else { EXPORTED }, alice, now(), None);
        }
        assert!(keys.is_exhausted(alice, now()) && !keys.is_exhausted("user:bob", now()));
        assert!(!keys.is_exceeded(alice), "the thirtieth is seen");
        let mut more = keys.clone();
        more.fold(VIEWED, alice, now(), None);
        assert!(more.is_exceeded(alice) && !more.is_exceeded("user:bob"), "one that another node entered meanwhile");
        assert!(!keys.is_exhausted(alice, now() + 60_000_000));
        for minute in 1..=47 {
            (0..10).for_each(|_| keys.fold(VIEWED, alice, now() + minute * 60_000_000, None));
        }
        assert!(keys.is_exhausted(alice, now() + 100 * 60_000_000));
        assert!(!keys.is_exhausted(alice, now() + DAY));
    }

    #[test]
    fn a_shorter_period_ends_epochs_early_and_a_longer_one_never_later() {
        let of = epoch("2026-11-26.30d");
        let at = |days: i64| chrono::DateTime::from_timestamp_micros(now() + days * DAY).unwrap();
        assert!(PayloadKeys::is_over(of, 30, at(31)) && !PayloadKeys::is_over(of, 30, at(30)));
        assert!(PayloadKeys::is_over(of, 7, at(8)) && !PayloadKeys::is_over(of, 7, at(7)));
        assert!(PayloadKeys::is_over(of, 365, at(31)));
    }
}
