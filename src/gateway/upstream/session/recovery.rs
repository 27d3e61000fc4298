//! A server that has forgotten a session: how that is noticed, and what is done.
//!
//! The specification says 404. In the wild it is 400 with one text or another, 500, or a JSON-RPC error with status
//! 200. So any refusal of a request in a session, except those that are certainly about something else, is checked with
//! a `ping`: if the server refuses that in the same way, it has forgotten the session. Then a new one is opened, in
//! which is said again what the client had said in the old one (log level, subscriptions), and used from then on.
//!
//! The request itself is sent again only if the server refused it unread: with a status of 4xx, or with an error that
//! speaks of a session. Whatever else happened may have had effects.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::http::{Established, HttpSession, about_resource, ping};
use crate::gateway::message::{Id, Json, Message, RpcError, encode};
use crate::gateway::protocol::code;
use crate::gateway::upstream::http::{Content, ExchangeError, Failure, Refusal, is_about_session};
use crate::gateway::upstream::{UpstreamError, next_id};

/// How long the check may take, and opening anew.
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);
const REOPEN_TIMEOUT: Duration = Duration::from_secs(20);

/// What a refusal says of the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Suspicion {
    /// The session is forgotten.
    Certain,
    /// It may be.
    Possible,
    /// It has to do with something else.
    None,
}

impl HttpSession {
    /// Whether the server has forgotten the session, and if so, whether it refused the request unread.
    pub(super) async fn forgotten(&self, established: &Established, failure: &Failure) -> Option<bool> {
        if !established.has_session() || self.is_closed() {
            return None;
        }
        let (suspicion, is_unread) = match failure {
            Failure::Exchange(ExchangeError::Refused(refusal)) => {
                (suspicion(refusal), refusal.status < 500 || refusal.is_about_session)
            }
            Failure::Upstream(UpstreamError::Refused(error)) if may_be_about_session(error) => {
                (Suspicion::Possible, true)
            }
            _ => return None,
        };
        match suspicion {
            Suspicion::Certain => Some(is_unread),
            Suspicion::Possible if !self.is_known(established).await => Some(is_unread),
            Suspicion::Possible | Suspicion::None => None,
        }
    }

    /// Whether the server still knows the session. If it cannot be asked, it is taken to.
    async fn is_known(&self, established: &Established) -> bool {
        let pinged = timeout(CHECK_TIMEOUT, self.server.post(established.headers.clone(), ping())).await;
        match pinged {
            Ok(Ok(reply)) => match reply.content {
                Content::Messages(messages) => !messages.iter().any(|message| {
                    matches!(message, Message::Response(response)
                        if response.outcome.as_ref().is_err_and(may_be_about_session))
                }),
                Content::Nothing | Content::Events(_) => true,
            },
            Ok(Err(ExchangeError::Refused(refusal))) => suspicion(&refusal) == Suspicion::None,
            Ok(Err(_)) | Err(_) => true,
        }
    }

    /// Opens a new session in place of that with this number, unless another task has done so already.
    pub(super) async fn reopen(self: &Arc<Self>, number: u64) -> Result<(), UpstreamError> {
        let _reopening = self.reopening.lock().await;
        if self.established().number != number {
            return Ok(());
        }
        if self.is_closed() {
            return Err(UpstreamError::Broken);
        }
        let opened = timeout(REOPEN_TIMEOUT, self.establish()).await;
        opened.unwrap_or(Err(UpstreamError::TimedOut { after: REOPEN_TIMEOUT }))?;
        self.server.log_forgotten();
        self.say_again().await;
        Ok(())
    }

    /// Says in the new session what the client had said in the old one.
    async fn say_again(&self) {
        let (level, subscriptions) = {
            let remembered = self.remembered.lock();
            (remembered.level.clone(), remembered.subscriptions.clone())
        };
        let headers = self.established().headers;
        let level = level.map(|params| ("logging/setLevel", params));
        let subscriptions = subscriptions.iter().map(|uri| ("resources/subscribe", about_resource(uri)));
        for (method, params) in level.into_iter().chain(subscriptions) {
            let message = request(method, &params);
            self.post_quietly(headers.clone(), message).await;
        }
    }
}

fn request(method: &str, params: &Json) -> bytes::Bytes {
    encode(Some(&Id::Number(next_id())), method, Some(params))
}

fn suspicion(refusal: &Refusal) -> Suspicion {
    match refusal.status {
        // A server of both generations has 404 for an unknown method as well.
        404 if refusal.error.as_ref().is_some_and(|error| error.code == code::METHOD_NOT_FOUND) => Suspicion::None,
        404 => Suspicion::Certain,
        // Credentials, methods, sizes, types, rates, and servers in front of the server.
        300..=399 | 401 | 403 | 405 | 407 | 408 | 413 | 415 | 429 | 502..=504 => Suspicion::None,
        _ => Suspicion::Possible,
    }
}

/// Whether an error may say that the session is not known. What is about parameters or methods is not.
fn may_be_about_session(error: &RpcError) -> bool {
    !matches!(error.code, code::INVALID_PARAMS | code::METHOD_NOT_FOUND) && is_about_session(&error.message)
}

#[cfg(test)]
mod tests {
    use super::{Refusal, Suspicion, may_be_about_session, suspicion};
    use crate::gateway::message::RpcError;

    #[test]
    fn what_may_mean_a_forgotten_session_is_told_from_what_cannot() {
        let read = |status, error| suspicion(&Refusal { status, error, is_about_session: false });
        assert_eq!(read(404, None), Suspicion::Certain);
        assert_eq!(read(404, Some(RpcError::method_not_found("no"))), Suspicion::None);
        for status in [400, 410, 422, 500] {
            assert_eq!(read(status, None), Suspicion::Possible, "{status}");
        }
        for status in [307, 401, 403, 405, 429, 502, 503] {
            assert_eq!(read(status, None), Suspicion::None, "{status}");
        }
        assert!(may_be_about_session(&RpcError::new(-32000, "Bad Request: No valid session ID provided")));
        assert!(!may_be_about_session(&RpcError::invalid_params("unknown session_id")));
        assert!(!may_be_about_session(&RpcError::new(-32000, "disk full")));
    }
}
