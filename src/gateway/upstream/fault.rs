//! Why an upstream did not answer a request with a result.
//!
//! Each kind has a stable code, which goes into samples, and a text for the caller, which names the plugin and what was
//! seen, and nothing that either side wrote. What an upstream itself says in a JSON-RPC error is passed on to the
//! caller as it is, and to nobody else.

use std::time::Duration;

use rmcp::model::{ErrorCode, ErrorData};
use rmcp::transport::streamable_http_client::StreamableHttpError;

use super::sse::StreamFault;
use crate::model::Outcome;

/// JSON-RPC's code for a fault of an upstream; of the range that the standard leaves to implementations.
const UPSTREAM: ErrorCode = ErrorCode(-32001);

/// Why an upstream did not answer a request with a result.
#[derive(Debug, Clone)]
pub(crate) enum UpstreamFault {
    /// It answered with a JSON-RPC error, which is the caller's.
    Refused(ErrorData),
    /// It cannot be reached, or not be started.
    Unreachable,
    /// It answered over HTTP, but not with a message.
    Status(u16),
    /// It went away before it answered.
    Broken,
    /// It sent more than may be passed on.
    TooLarge { limit: u64 },
    /// It sent something that is no message.
    NotMcp,
    /// It did not answer in time.
    TimedOut { after: Duration },
    /// It has as many sessions as it may have.
    Full { limit: usize },
    /// It has as many requests under way as it may have, and none ended in time.
    Busy { limit: usize },
}

impl UpstreamFault {
    /// The same, without what the upstream itself says: a policy redacts its results, and an error's text and data could
    /// hold anything of them.
    pub(crate) fn without_words(self) -> Self {
        match self {
            Self::Refused(error) => {
                let text = "the plugin refused the request; what it says is withheld, as a policy redacts its results";
                Self::Refused(ErrorData::new(error.code, text, None))
            }
            fault => fault,
        }
    }

    /// A code for samples and metrics.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Refused(error) => match error.code {
                ErrorCode::INVALID_PARAMS => "INVALID_PARAMS",
                ErrorCode::METHOD_NOT_FOUND => "METHOD_NOT_FOUND",
                ErrorCode::INVALID_REQUEST => "INVALID_REQUEST",
                ErrorCode::RESOURCE_NOT_FOUND => "RESOURCE_NOT_FOUND",
                ErrorCode::INTERNAL_ERROR => "UPSTREAM_INTERNAL_ERROR",
                _ => "UPSTREAM_ERROR",
            },
            Self::Unreachable => "UPSTREAM_UNREACHABLE",
            Self::Status(400..=499) => "UPSTREAM_4XX",
            Self::Status(_) => "UPSTREAM_5XX",
            Self::Broken => "UPSTREAM_DIED",
            Self::TooLarge { .. } => "RESULT_TOO_LARGE",
            Self::NotMcp => "UPSTREAM_NOT_MCP",
            Self::TimedOut { .. } => "TIMEOUT",
            Self::Full { .. } => "SESSION_LIMIT",
            Self::Busy { .. } => "CONCURRENCY_LIMIT",
        }
    }

    /// A word of a small set, for spans.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Refused(_) => "refused",
            Self::Unreachable => "unreachable",
            Self::Status(_) => "http_status",
            Self::Broken => "connection_lost",
            Self::TooLarge { .. } => "too_large",
            Self::NotMcp => "malformed",
            Self::TimedOut { .. } => "timeout",
            Self::Full { .. } | Self::Busy { .. } => "quota_exceeded",
        }
    }

    /// What it makes of the call. An error that says the request was wrong is the client's; every other is the server's.
    pub(crate) fn outcome(&self) -> Outcome {
        match self {
            Self::Refused(error) => match error.code {
                ErrorCode::INVALID_PARAMS
                | ErrorCode::METHOD_NOT_FOUND
                | ErrorCode::INVALID_REQUEST
                | ErrorCode::RESOURCE_NOT_FOUND => Outcome::ClientError,
                _ => Outcome::ServerError,
            },
            Self::TimedOut { .. } => Outcome::Timeout,
            Self::Full { .. } | Self::Busy { .. } => Outcome::QuotaExceeded,
            Self::Unreachable | Self::Status(_) | Self::Broken | Self::TooLarge { .. } | Self::NotMcp => {
                Outcome::ServerError
            }
        }
    }

    /// Whether the upstream itself is to blame, so that it counts as failing.
    pub(crate) fn is_of_the_connection(&self) -> bool {
        matches!(self, Self::Unreachable | Self::Broken | Self::NotMcp | Self::Status(500..))
    }

    /// What the caller is told.
    pub(crate) fn to_error(&self, plugin: &str) -> ErrorData {
        let text = match self {
            Self::Refused(error) => return error.clone(),
            Self::Unreachable => format!("the MCP server of plugin {plugin} cannot be reached; try again later"),
            Self::Status(status) => format!("the MCP server of plugin {plugin} answered with HTTP status {status}"),
            Self::Broken => format!("the MCP server of plugin {plugin} went away before it answered"),
            Self::TooLarge { limit } => {
                format!("the answer of plugin {plugin} is larger than the {limit} bytes that are passed on")
            }
            Self::NotMcp => format!("the MCP server of plugin {plugin} sent something that is no MCP message"),
            Self::TimedOut { after } => {
                format!("plugin {plugin} did not answer within {} ms", after.as_millis())
            }
            Self::Full { limit } => {
                format!("plugin {plugin} has {limit} sessions, as many as it may; try again when one has ended")
            }
            Self::Busy { limit } => {
                format!("plugin {plugin} has {limit} requests under way, as many as it may; try again later")
            }
        };
        ErrorData::new(UPSTREAM, text, None)
    }
}

/// What went wrong on the wire to an HTTP upstream, without anything of what was said on it.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum WireFault {
    #[error("it cannot be reached")]
    Unreachable,
    #[error("the connection broke off")]
    Broken,
    #[error("it answered with status {0}")]
    Status(u16),
    #[error("it sent more than {limit} bytes")]
    TooLarge { limit: u64 },
    #[error("it sent something that is no MCP message")]
    NotMcp,
}

impl From<reqwest::Error> for WireFault {
    fn from(error: reqwest::Error) -> Self {
        if error.is_connect() { Self::Unreachable } else { Self::Broken }
    }
}

impl From<WireFault> for UpstreamFault {
    fn from(fault: WireFault) -> Self {
        match fault {
            WireFault::Unreachable => Self::Unreachable,
            WireFault::Broken => Self::Broken,
            WireFault::Status(status) => Self::Status(status),
            WireFault::TooLarge { limit } => Self::TooLarge { limit },
            WireFault::NotMcp => Self::NotMcp,
        }
    }
}

impl From<StreamFault> for WireFault {
    fn from(fault: StreamFault) -> Self {
        match fault {
            StreamFault::Broken => Self::Broken,
            StreamFault::TooLarge { limit } => Self::TooLarge { limit: limit as u64 },
        }
    }
}

impl From<StreamableHttpError<WireFault>> for UpstreamFault {
    fn from(error: StreamableHttpError<WireFault>) -> Self {
        match error {
            StreamableHttpError::Client(fault) => fault.into(),
            StreamableHttpError::HttpStatus(status) => Self::Status(status.status),
            StreamableHttpError::SessionExpired => Self::Status(404),
            StreamableHttpError::ReinitializationFailed(error) => Self::Refused(error),
            StreamableHttpError::Deserialize(_) | StreamableHttpError::UnexpectedContentType(_) => Self::NotMcp,
            StreamableHttpError::UnexpectedServerResponse(_) => Self::NotMcp,
            _ => Self::Broken,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rmcp::model::ErrorData;

    use super::UpstreamFault;
    use crate::model::Outcome;

    #[test]
    fn a_wrong_request_is_the_clients_error_and_every_other_the_servers() {
        let refused = |error| UpstreamFault::Refused(error).outcome();
        assert_eq!(refused(ErrorData::invalid_params("", None)), Outcome::ClientError);
        assert_eq!(refused(ErrorData::internal_error("", None)), Outcome::ServerError);
        assert_eq!(UpstreamFault::Broken.outcome(), Outcome::ServerError);
        assert_eq!(UpstreamFault::TimedOut { after: Duration::ZERO }.outcome(), Outcome::Timeout);
        assert_eq!(UpstreamFault::Busy { limit: 1 }.outcome(), Outcome::QuotaExceeded);
    }

    #[test]
    fn what_the_upstream_says_reaches_the_caller_only() {
        let fault = UpstreamFault::Refused(ErrorData::invalid_params("secret", None));
        assert_eq!(fault.to_error("p").message, "secret");
        assert!(!fault.code().contains("secret"));
    }
}
