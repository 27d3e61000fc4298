//! What a session's cookie says.
//!
//! A person's session holds what the provider said at the login, the rights included: until it ends, whatever becomes
//! of them there. A token's session holds the token's hash alone, and is looked up with each request: it ends with the
//! token, and does what the token does.

use serde::{Deserialize, Serialize};

use crate::api::who::Granted;
use crate::config::{OrgScope, TokenHash};
use crate::model::{OrgName, Role};

/// The most bytes of rights, as JSON: a browser keeps 4 KB of a cookie.
pub(super) const MOST_GRANTS: usize = 2 << 10;

/// The content of a session's cookie.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Session {
    /// By which it is known: 32 hex digits.
    pub(crate) id: String,
    /// Whose.
    pub(crate) caller: String,
    #[serde(flatten)]
    pub(super) by: By,
    /// The org whose ledger says that it began, and that it ended.
    pub(crate) home: OrgName,
    /// When they said who they are, in seconds since the epoch, if the provider said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) auth_time: Option<i64>,
    /// The time of the log when it began, µs since the epoch.
    pub(crate) begun: i64,
    /// When it ends unless it is used, and when it ends in any case; seconds since the epoch.
    pub(crate) expires: i64,
    pub(crate) ends: i64,
}

/// By which way it began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case")]
pub(super) enum By {
    /// By what a provider said.
    Oidc { issuer: String, subject: String, grants: Vec<(OrgScope, Vec<Role>)> },
    /// By a token.
    Token { hash: TokenHash },
}

/// How long sessions last, in seconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lifetimes {
    pub(super) idle: i64,
    pub(super) absolute: i64,
}

/// How a session is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Age {
    /// It was renewed a moment ago.
    Fresh,
    /// It is good, and to be renewed.
    Aged,
    /// Nobody used it for too long.
    Idle,
    /// It lasted as long as one may, in use to the end.
    Spent,
}

impl Session {
    /// How it is doing.
    pub(super) fn age(&self, now: i64, lifetimes: Lifetimes) -> Age {
        if now >= self.ends {
            return if self.expires >= self.ends { Age::Spent } else { Age::Idle };
        }
        if now >= self.expires {
            return Age::Idle;
        }
        let renewed = self.expires - lifetimes.idle;
        let due = now >= renewed + (lifetimes.idle / 5).min(60) && self.expires < self.ends;
        if due { Age::Aged } else { Age::Fresh }
    }

    /// The same, used now.
    pub(super) fn renewed(&self, now: i64, lifetimes: Lifetimes) -> Self {
        Self { expires: (now + lifetimes.idle).min(self.ends), ..self.clone() }
    }
}

/// Rights as a cookie holds them; none if they are too many.
pub(super) fn stored(grants: &[Granted]) -> Option<Vec<(OrgScope, Vec<Role>)>> {
    let stored: Vec<_> = grants.iter().map(|granted| (granted.org.clone(), granted.roles.clone())).collect();
    (serde_json::to_vec(&stored).ok()?.len() <= MOST_GRANTS).then_some(stored)
}

#[cfg(test)]
mod tests {
    use super::{Age, By, Lifetimes, Session, stored};
    use crate::api::who::Granted;
    use crate::config::{OrgScope, TokenHash};
    use crate::model::Role;

    const LIFETIMES: Lifetimes = Lifetimes { idle: 900, absolute: 28_800 };

    fn session(begun: i64) -> Session {
        Session {
            id: "1".to_owned(),
            caller: "user:alice".to_owned(),
            by: By::Token { hash: TokenHash::of("t") },
            home: "acme".parse().unwrap(),
            auth_time: None,
            begun: begun * 1_000_000,
            expires: begun + LIFETIMES.idle,
            ends: begun + LIFETIMES.absolute,
        }
    }

    #[test]
    fn a_session_lasts_while_it_is_used_and_never_longer_than_one_may() {
        let mut session = session(0);
        assert_eq!(session.age(59, LIFETIMES), Age::Fresh);
        assert_eq!(session.age(60, LIFETIMES), Age::Aged);
        assert_eq!(session.age(900, LIFETIMES), Age::Idle);
        for now in (0..28_800).step_by(600) {
            assert!(matches!(session.age(now, LIFETIMES), Age::Fresh | Age::Aged), "{now}");
            session = session.renewed(now, LIFETIMES);
        }
        assert_eq!((session.expires, session.ends), (28_800, 28_800));
        assert_eq!(session.age(28_799, LIFETIMES), Age::Fresh, "it cannot be renewed any more");
        assert_eq!(session.age(28_800, LIFETIMES), Age::Spent);
    }

    #[test]
    fn a_session_that_was_left_idle_is_not_spent_later() {
        assert_eq!(session(0).age(30_000, LIFETIMES), Age::Idle);
    }

    #[test]
    fn rights_that_no_cookie_holds_are_too_many() {
        let granted =
            |n: usize| Granted { org: OrgScope::One(format!("org-{n}").parse().unwrap()), roles: vec![Role::Read] };
        assert!(stored(&(0..50).map(granted).collect::<Vec<_>>()).is_some());
        assert!(stored(&(0..200).map(granted).collect::<Vec<_>>()).is_none());
    }

    #[test]
    fn it_is_read_back_as_it_was_written() {
        let text = serde_json::to_string(&session(7)).unwrap();
        assert_eq!(serde_json::from_str::<Session>(&text).unwrap(), session(7));
    }
}
