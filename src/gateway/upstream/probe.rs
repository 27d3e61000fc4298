//! Which generation a server speaks: it is asked `server/discover` in the modern way, and its answer is evidence or
//! not.
//!
//! | outcome | verdict |
//! |---|---|
//! | a discovery that has our version | modern |
//! | a result of another shape, or what is no message | old |
//! | -32022 with a list that has our version, even that we sent | asked once more |
//! | -32022, or a discovery, with other modern versions only | modern, of no use |
//! | -32022 with old versions only; any other JSON-RPC error; 400, 404, 405 without one | old: no error code is the one old servers answer with |
//! | 401, 403, 407, 429, 3xx, 5xx, the network, a timeout over HTTP | no evidence: asked again later |
//! | a child that does not answer in time, or ends | old, in a fresh process: some end at any request before `initialize` |

use std::time::Duration;

use serde_json::json;
use tokio::time::timeout;

use super::http::{ExchangeError, Failure, HttpServer, metadata};
use super::stdio::StdioConnection;
use super::{Ask, UpstreamError, modern};
use crate::gateway::message::{Json, RpcError};
use crate::gateway::protocol::{LATEST_OLD, META_CAPABILITIES, META_CLIENT_INFO, META_VERSION, MODERN, OLD, code};

/// How long a server may take to answer.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a child may take at most that failed when it was taken for old: it may be modern, and slow to start.
const SLOW_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a child may take to answer that has failed so often in a row.
pub(super) fn child_timeout(failures: u32) -> Duration {
    PROBE_TIMEOUT.saturating_mul(failures.saturating_add(1)).min(SLOW_TIMEOUT)
}

/// What an answer says of a server.
#[derive(Debug)]
pub(super) enum Verdict {
    /// Modern; with its discovery, if it came to that.
    Modern(Json),
    /// Modern, but of no version that the gateway speaks.
    Unusable(Vec<String>),
    /// Old.
    Old,
    /// Old, and the process that was asked is not to be used any more.
    OldInFreshProcess,
    /// It is not known.
    NoEvidence(UpstreamError),
}

/// Like a [`Verdict`], of one answer.
#[derive(Debug, PartialEq, Eq)]
enum Says {
    Modern,
    AskAgain,
    Unusable(Vec<String>),
    Old,
}

/// Asks a server over HTTP.
pub(super) async fn of_http(server: &HttpServer) -> Verdict {
    let mut again = false;
    loop {
        let ask = discover();
        let headers = metadata::headers(&ask.method, ask.params.as_ref(), &[]);
        let outcome = timeout(PROBE_TIMEOUT, modern::exchange(server, &ask, headers)).await;
        let said = match outcome {
            Err(_) => return Verdict::NoEvidence(UpstreamError::TimedOut { after: PROBE_TIMEOUT }),
            Ok(Ok(result)) => match of_result(&result) {
                Says::Modern => return Verdict::Modern(result),
                said => said,
            },
            Ok(Err(Failure::Upstream(UpstreamError::Refused(error)))) => of_error(&error),
            Ok(Err(Failure::Upstream(UpstreamError::Broken))) => return Verdict::NoEvidence(UpstreamError::Broken),
            Ok(Err(Failure::Upstream(_))) => Says::Old,
            Ok(Err(Failure::Exchange(error))) => match of_exchange(error) {
                Ok(said) => said,
                Err(error) => return Verdict::NoEvidence(error),
            },
        };
        match said {
            Says::AskAgain if !again => again = true,
            // It has our version and refuses it: what it offers is not known.
            Says::AskAgain | Says::Modern => return Verdict::Modern(Json::empty_object()),
            Says::Unusable(versions) => return Verdict::Unusable(versions),
            Says::Old => return Verdict::Old,
        }
    }
}

/// Asks a child over its pipes.
pub(super) async fn of_child(connection: &StdioConnection, patience: Duration) -> Verdict {
    let mut again = false;
    loop {
        let said = match timeout(patience, connection.ask(discover(), false)).await {
            Ok(Ok(result)) => match of_result(&result) {
                Says::Modern => return Verdict::Modern(result),
                said => said,
            },
            Ok(Err(UpstreamError::Refused(error))) => of_error(&error),
            Ok(Err(_)) | Err(_) => return Verdict::OldInFreshProcess,
        };
        match said {
            Says::AskAgain if !again => again = true,
            Says::AskAgain | Says::Modern => return Verdict::Modern(Json::empty_object()),
            Says::Unusable(versions) => return Verdict::Unusable(versions),
            Says::Old => return Verdict::Old,
        }
    }
}

/// `_meta` of the gateway's own modern requests.
pub(super) fn own_meta() -> Json {
    Json::of(&json!({
        META_VERSION: MODERN,
        META_CLIENT_INFO: own_info(),
        META_CAPABILITIES: {},
    }))
}

/// What the gateway says of itself.
pub(super) fn own_info() -> serde_json::Value {
    json!({ "name": "mcpg", "version": env!("CARGO_PKG_VERSION") })
}

/// The gateway's own `initialize`. It offers nothing that a server could ask for.
pub(super) fn own_initialize() -> Json {
    Json::of(&json!({ "protocolVersion": LATEST_OLD, "capabilities": {}, "clientInfo": own_info() }))
}

fn discover() -> Ask {
    let meta = own_meta().value();
    Ask::own("server/discover", Some(Json::of(&json!({ "_meta": meta }))))
}

fn of_result(result: &Json) -> Says {
    match versions(result.get("supportedVersions")) {
        Some(versions) => of_versions(versions).unwrap_or(Says::Modern),
        None => Says::Old,
    }
}

fn of_error(error: &RpcError) -> Says {
    if error.code != code::UNSUPPORTED_VERSION {
        return Says::Old;
    }
    let supported = error.data.as_ref().and_then(|data| versions(data.get("supported")));
    of_versions(supported.unwrap_or_default()).unwrap_or(Says::AskAgain)
}

/// What a list of versions says; `None`: it has ours.
fn of_versions(versions: Vec<String>) -> Option<Says> {
    if versions.iter().any(|version| version == MODERN) {
        return None;
    }
    let is_modern = |version: &String| !OLD.contains(&version.as_str()) && version.as_str() > LATEST_OLD;
    let modern: Vec<_> = versions.into_iter().filter(is_modern).collect();
    Some(if modern.is_empty() { Says::Old } else { Says::Unusable(modern) })
}

/// The texts of an array; `None`: it is no array of texts.
fn versions(json: Option<Json>) -> Option<Vec<String>> {
    json?.read()
}

/// What an exchange that was no success says, or why it says nothing.
fn of_exchange(error: ExchangeError) -> Result<Says, UpstreamError> {
    match error {
        ExchangeError::Refused(refusal) => match (refusal.status, &refusal.error) {
            (300..=399 | 401 | 403 | 407 | 408 | 425 | 429 | 500..=599, _) => {
                Err(ExchangeError::Refused(refusal).into())
            }
            (_, Some(error)) => Ok(of_error(error)),
            (_, None) => Ok(Says::Old),
        },
        error @ (ExchangeError::Unreachable | ExchangeError::Broken | ExchangeError::Upstream(_)) => Err(error.into()),
        ExchangeError::NotMcp | ExchangeError::TooLarge { .. } => Ok(Says::Old),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Says, of_error, of_exchange, of_result};
    use crate::gateway::message::{Json, RpcError};
    use crate::gateway::upstream::http::{ExchangeError, Refusal};

    #[test]
    fn a_result_is_a_discovery_or_an_old_servers() {
        let read = |value| of_result(&Json::of(&value));
        assert_eq!(read(json!({"supportedVersions": ["2025-11-25", "2026-07-28"]})), Says::Modern);
        assert_eq!(read(json!({"supportedVersions": ["2027-01-01"]})), Says::Unusable(vec!["2027-01-01".into()]));
        for old in
            [json!({}), json!([]), json!({"supportedVersions": "x"}), json!({"supportedVersions": ["2025-06-18"]})]
        {
            assert_eq!(read(old.clone()), Says::Old, "{old}");
        }
    }

    #[test]
    fn no_error_but_that_of_versions_is_a_modern_servers() {
        let unsupported = |supported| {
            of_error(&RpcError::new(-32022, "").with_data(Json::of(&json!({"supported": supported, "requested": "x"}))))
        };
        assert_eq!(unsupported(json!(["2026-07-28"])), Says::AskAgain);
        assert_eq!(unsupported(json!(["2026-12-01", "2025-11-25"])), Says::Unusable(vec!["2026-12-01".into()]));
        assert_eq!(unsupported(json!(["2025-11-25", "2024-11-05"])), Says::Old);
        for code in [-32601, -32602, -32600, -32000, -32700, 1] {
            assert_eq!(of_error(&RpcError::new(code, "")), Says::Old, "{code}");
        }
    }

    #[test]
    fn what_says_nothing_of_the_generation_is_no_evidence() {
        let read =
            |status, error| of_exchange(ExchangeError::Refused(Refusal { status, error, is_about_session: false }));
        for status in [301, 307, 401, 403, 429, 500, 502, 503] {
            let error = Some(RpcError::new(-32000, "no"));
            assert!(read(status, None).is_err() && read(status, error).is_err(), "{status}");
        }
        for status in [400, 404, 405, 406, 415] {
            assert_eq!(read(status, None).unwrap(), Says::Old, "{status}");
        }
        assert!(of_exchange(ExchangeError::Unreachable).is_err() && of_exchange(ExchangeError::Broken).is_err());
        assert_eq!(of_exchange(ExchangeError::NotMcp).unwrap(), Says::Old);
    }
}
