//! Sessions of browsers, as far as the log has a part in them: that one begins, ends, or is over with others, is an
//! entry of the ledger, and which are over is a function of the log (`ledger::sessions`).
//!
//! No clock orders them. A session begins at the time of the log when its entry is there, and a revocation is of all
//! that began at or before the time of the log when it is asked for: whichever node did either, what began before is
//! over.

use chrono::{DateTime, Utc};
use futures::StreamExt;
use serde_json::{Map, Value, json};

use super::{Plane, PlaneError, SystemEvent};
use crate::ledger::sessions::{SESSION_ENDED, SESSIONS_REVOKED};
use crate::model::{OrgName, micros};

/// Orgs whose ledgers are written to at once.
const AT_ONCE: usize = 64;
/// The entry of a session that begins.
const SESSION_STARTED: &str = "operator.session_started";

/// What is asked of a session.
#[derive(Debug, Clone, Copy)]
pub struct SessionMark<'a> {
    /// Its id.
    pub id: &'a str,
    /// Whose it is.
    pub caller: &'a str,
    /// The org whose ledger says that it began.
    pub home: &'a OrgName,
    /// The time of the log when it began, µs.
    pub begun: i64,
}

impl Plane {
    /// Says in the ledgers of `home` and `orgs` that a session begins; gives the time of the log when it does.
    ///
    /// # Errors
    /// See [`PlaneError`]; then there must be no session.
    pub async fn begin_session(
        &self,
        home: &OrgName,
        orgs: &[OrgName],
        caller: &str,
        detail: Map<String, Value>,
    ) -> Result<i64, PlaneError> {
        let event = SystemEvent::new(caller, SESSION_STARTED).target(caller).detail(Value::Object(detail));
        let others: Vec<_> =
            orgs.iter().filter(|org| *org != home).map(|org| self.record(org, vec![event.clone()])).collect();
        let mut recording = futures::stream::iter(others).buffer_unordered(AT_ONCE);
        while let Some(recorded) = recording.next().await {
            match recorded {
                // Its ledger takes nothing, for it is damaged or the org is removed: what else the session opens is no
                // less sound for it.
                Err(PlaneError::OrgStopped { .. } | PlaneError::OrgRemoved(_)) => {}
                recorded => recorded?,
            }
        }
        self.record(home, vec![event]).await?;
        let begun = self.org(home).await?.state.read().time;
        Ok(begun)
    }

    /// Says in the ledger of its home that a session is ended by whose it is: from then on it is over on every node.
    ///
    /// # Errors
    /// See [`PlaneError`].
    pub async fn end_session(&self, mark: SessionMark<'_>, until: i64) -> Result<(), PlaneError> {
        let detail = json!({ "session": mark.id, "begun": mark.begun, "until": until, "at": self.log_time().await });
        let event = SystemEvent::new(mark.caller, SESSION_ENDED).target(mark.caller).detail(detail);
        self.record(mark.home, vec![event]).await
    }

    /// Ends all sessions in an org, or those of one caller there; says up to when they began.
    ///
    /// # Errors
    /// See [`PlaneError`].
    pub async fn revoke_sessions(
        &self,
        org: &OrgName,
        actor: &str,
        caller: Option<&str>,
    ) -> Result<DateTime<Utc>, PlaneError> {
        self.caught_up(org).await?;
        let not_before = self.log_time().await;
        let mut detail =
            Map::from_iter([("not_before".to_owned(), json!(not_before)), ("at".to_owned(), json!(not_before))]);
        detail.extend(caller.map(|caller| ("caller".to_owned(), Value::from(caller))));
        let event =
            SystemEvent::new(actor, SESSIONS_REVOKED).target(caller.unwrap_or("*")).detail(Value::Object(detail));
        self.record(org, vec![event]).await?;
        DateTime::from_timestamp_micros(not_before)
            .ok_or_else(|| PlaneError::Internal("the log's time is outside the calendar".to_owned()))
    }

    /// In which of these orgs a session stands; none where it is over altogether. All that any node has in the log
    /// counts.
    ///
    /// # Errors
    /// See [`PlaneError`].
    pub async fn session_stands(
        &self,
        mark: SessionMark<'_>,
        orgs: &[OrgName],
    ) -> Result<Option<Vec<OrgName>>, PlaneError> {
        let home = match self.caught_up(mark.home).await {
            // With its home goes what is known of it.
            Err(PlaneError::OrgRemoved(_)) => return Ok(None),
            home => home?,
        };
        if home.ledger.read().status().sessions.has_ended(mark.id) {
            return Ok(None);
        }
        let mut standing = Vec::with_capacity(orgs.len());
        for name in orgs {
            let revoked = match self.org(name).await {
                Ok(org) => org.ledger.read().status().sessions.is_revoked(mark.caller, mark.begun),
                // A request for the org gets the error.
                Err(PlaneError::OrgRemoved(_)) => false,
                Err(e) => return Err(e),
            };
            if !revoked {
                standing.push(name.clone());
            }
        }
        Ok(Some(standing))
    }

    /// The time of the log, µs: never less than that of any object which this node knows.
    async fn log_time(&self) -> i64 {
        let newest = self.follower.cursor.lock().await.time;
        newest.max(micros(self.node.clock.now()))
    }
}
