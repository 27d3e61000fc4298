//! How a call ended, and what policy said of it.

use serde::{Deserialize, Serialize};

/// How a tool call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It answered.
    Ok,
    /// The caller's fault.
    ClientError,
    /// The upstream's fault.
    ServerError,
    /// No answer in time.
    Timeout,
    /// Policy said no.
    PolicyDenied,
    /// The caller's quota was used up.
    QuotaExceeded,
}

impl Outcome {
    /// Every outcome, in the contract's order.
    pub const ALL: [Self; 6] =
        [Self::Ok, Self::ClientError, Self::ServerError, Self::Timeout, Self::PolicyDenied, Self::QuotaExceeded];

    /// The word that stands for it in JSON, SQL and labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::ClientError => "client_error",
            Self::ServerError => "server_error",
            Self::Timeout => "timeout",
            Self::PolicyDenied => "policy_denied",
            Self::QuotaExceeded => "quota_exceeded",
        }
    }

    /// The outcome that `word` stands for.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.as_str() == word)
    }

    /// Whether it counts in `mcpg_tool_errors_total`. A denied call is no error.
    pub const fn is_error(self) -> bool {
        matches!(self, Self::ClientError | Self::ServerError | Self::Timeout)
    }

    /// Whether it counts in `mcpg_tool_denials_total`.
    pub const fn is_denial(self) -> bool {
        matches!(self, Self::PolicyDenied | Self::QuotaExceeded)
    }
}

/// What policy decided on a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// Let through.
    Permit,
    /// Refused.
    Deny,
    /// Let through, and something must be done for it.
    PermitWithObligations,
}

impl Decision {
    /// Every decision, in the contract's order.
    pub const ALL: [Self; 3] = [Self::Permit, Self::Deny, Self::PermitWithObligations];

    /// The word that stands for it in JSON and SQL.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Permit => "permit",
            Self::Deny => "deny",
            Self::PermitWithObligations => "permit_with_obligations",
        }
    }
}
