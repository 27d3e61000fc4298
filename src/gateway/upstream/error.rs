//! Why an upstream did not answer a request with a result.
//!
//! Each kind has a stable code, which goes into samples, and a text for the caller, which names the plugin and what was
//! seen, and nothing that either side wrote. What an upstream itself says in a JSON-RPC error is passed on to the
//! caller as it is, and nowhere else.

use std::time::Duration;

use serde_json::json;

use crate::gateway::message::{Json, RpcError};
use crate::gateway::protocol::code;
use crate::model::Outcome;

/// JSON-RPC's code for an error of an upstream; of the range that the standard leaves to implementations.
const UPSTREAM: i64 = -32001;

/// Why an upstream did not answer a request with a result.
#[derive(Debug, Clone)]
pub(crate) enum UpstreamError {
    /// It answered with a JSON-RPC error, which is the caller's.
    Refused(RpcError),
    /// It cannot be reached, or not be started.
    Unreachable,
    /// It answered over HTTP, but not with a message.
    Status(u16),
    /// It redirects to another address, which is not followed.
    Redirected(u16),
    /// It went away before it answered.
    Broken,
    /// It sent more than may be passed on.
    TooLarge { limit: u64 },
    /// It sent something that is no message.
    NotMcp,
    /// It speaks no version of MCP that the gateway speaks.
    NoCommonVersion,
    /// It did not answer in time.
    TimedOut { after: Duration },
    /// There is no memory left for what it sends.
    Memory,
    /// It has as many sessions as it may have.
    Full { limit: usize },
    /// It has as many requests under way as it may have, and none ended in time.
    Busy { limit: usize },
}

impl UpstreamError {
    /// A code for samples and metrics.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Refused(error) => match error.code {
                code::INVALID_PARAMS => "INVALID_PARAMS",
                code::METHOD_NOT_FOUND => "METHOD_NOT_FOUND",
                code::INVALID_REQUEST => "INVALID_REQUEST",
                code::RESOURCE_NOT_FOUND => "RESOURCE_NOT_FOUND",
                code::INTERNAL_ERROR => "UPSTREAM_INTERNAL_ERROR",
                _ => "UPSTREAM_ERROR",
            },
            Self::Unreachable => "UPSTREAM_UNREACHABLE",
            Self::Redirected(_) => "UPSTREAM_REDIRECT",
            Self::Status(400..=499) => "UPSTREAM_4XX",
            Self::Status(_) => "UPSTREAM_5XX",
            Self::Broken => "UPSTREAM_DIED",
            Self::TooLarge { .. } => "RESULT_TOO_LARGE",
            Self::NotMcp => "UPSTREAM_NOT_MCP",
            Self::NoCommonVersion => "UPSTREAM_VERSION",
            Self::TimedOut { .. } => "TIMEOUT",
            Self::Memory => "MEMORY_LIMIT",
            Self::Full { .. } => "SESSION_LIMIT",
            Self::Busy { .. } => "CONCURRENCY_LIMIT",
        }
    }

    /// A word of a small set, for spans.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Refused(_) => "refused",
            Self::Unreachable => "unreachable",
            Self::Status(_) | Self::Redirected(_) => "http_status",
            Self::Broken => "connection_lost",
            Self::TooLarge { .. } => "too_large",
            Self::NotMcp | Self::NoCommonVersion => "malformed",
            Self::TimedOut { .. } => "timeout",
            Self::Memory | Self::Full { .. } | Self::Busy { .. } => "quota_exceeded",
        }
    }

    /// What it makes of the call. An error that says the request was wrong is the client's; every other is the
    /// server's.
    pub(crate) fn outcome(&self) -> Outcome {
        match self {
            Self::Refused(error) => match error.code {
                code::INVALID_PARAMS | code::METHOD_NOT_FOUND | code::INVALID_REQUEST | code::RESOURCE_NOT_FOUND => {
                    Outcome::ClientError
                }
                _ => Outcome::ServerError,
            },
            Self::TimedOut { .. } => Outcome::Timeout,
            Self::Memory | Self::Full { .. } | Self::Busy { .. } => Outcome::QuotaExceeded,
            Self::Unreachable
            | Self::Status(_)
            | Self::Redirected(_)
            | Self::Broken
            | Self::TooLarge { .. }
            | Self::NotMcp
            | Self::NoCommonVersion => Outcome::ServerError,
        }
    }

    /// Whether the upstream itself is to blame, so that it counts as failing.
    pub(crate) fn is_of_the_connection(&self) -> bool {
        matches!(self, Self::Unreachable | Self::Broken | Self::NotMcp | Self::Redirected(_) | Self::Status(500..))
    }

    /// The error for the caller.
    pub(crate) fn to_error(&self, plugin: &str) -> RpcError {
        let text = match self {
            Self::Refused(error) => return error.clone(),
            Self::Unreachable => format!("the MCP server of plugin {plugin} cannot be reached; try again later"),
            Self::Status(status) => format!("the MCP server of plugin {plugin} answered with HTTP status {status}"),
            Self::Redirected(status) => format!(
                "the MCP server of plugin {plugin} redirects (HTTP status {status}), which is not followed; the \
                 gateway's log says where to, and its operator can set the plugin's url to that"
            ),
            Self::Broken => format!("the MCP server of plugin {plugin} went away before it answered"),
            Self::TooLarge { limit } => {
                format!("the answer of plugin {plugin} is larger than the {limit} bytes that are passed on")
            }
            Self::NotMcp => format!("the MCP server of plugin {plugin} sent something that is no MCP message"),
            Self::NoCommonVersion => {
                format!("the MCP server of plugin {plugin} speaks no version of MCP that the gateway speaks")
            }
            Self::TimedOut { after } => {
                format!("plugin {plugin} did not answer within {} ms", after.as_millis())
            }
            Self::Memory => {
                format!("the gateway has no memory left for the answer of plugin {plugin}; try again later")
            }
            Self::Full { limit } => {
                format!("plugin {plugin} has {limit} sessions, as many as it may; try again when one has ended")
            }
            Self::Busy { limit } => {
                format!("plugin {plugin} has {limit} requests under way, as many as it may; try again later")
            }
        };
        RpcError::new(UPSTREAM, text).with_data(Json::of(&json!({ "code": self.code() })))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::UpstreamError;
    use crate::gateway::message::RpcError;
    use crate::model::Outcome;

    #[test]
    fn a_wrong_request_is_the_clients_error_and_every_other_the_servers() {
        let refused = |error| UpstreamError::Refused(error).outcome();
        assert_eq!(refused(RpcError::invalid_params("")), Outcome::ClientError);
        assert_eq!(refused(RpcError::internal("")), Outcome::ServerError);
        assert_eq!(UpstreamError::Broken.outcome(), Outcome::ServerError);
        assert_eq!(UpstreamError::TimedOut { after: Duration::ZERO }.outcome(), Outcome::Timeout);
        assert_eq!(UpstreamError::Busy { limit: 1 }.outcome(), Outcome::QuotaExceeded);
    }

    #[test]
    fn what_the_upstream_says_reaches_the_caller_only() {
        let error = UpstreamError::Refused(RpcError::invalid_params("secret"));
        assert_eq!(&*error.to_error("p").message, "secret");
        assert!(!error.code().contains("secret") && !format!("{error:?}").contains("secret"));
    }

    #[test]
    fn a_redirect_is_called_one() {
        assert_eq!(UpstreamError::Redirected(307).code(), "UPSTREAM_REDIRECT");
        assert!(UpstreamError::Redirected(307).to_error("p").message.contains("307"));
    }
}
