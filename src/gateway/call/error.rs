//! Why a request has no result, and the error that each generation of clients gets for it.
//!
//! The gateway's own errors have codes of JSON-RPC's range for implementations to clients of old versions, and the same
//! plus 1000 to modern ones, to which that range is closed; `data.code` is the same in both. What a server itself says
//! is passed on, translated where the generations have different codes for it.

use serde_json::{Map, Value, json};

use crate::gateway::message::{Json, Object, RpcError};
use crate::gateway::policy::Verdict;
use crate::gateway::protocol::{Generation, TASKS_EXTENSION, code};
use crate::gateway::traces::Failure;
use crate::gateway::upstream::UpstreamError;
use crate::model::Outcome;

/// The gateway's own codes, to old versions.
const UNREACHABLE: i64 = -32001;
const DENIED: i64 = -32003;
const QUOTA: i64 = -32004;
const NOT_RECORDED: i64 = -32005;
/// The code of a call whose payload is not kept.
const NOT_CAPTURED: &str = "CAPTURE_UNAVAILABLE";
/// What is added to them for modern clients: they may not lie in JSON-RPC's range.
const MODERN: i64 = 1000;

/// Codes that the specification keeps for itself.
const RESERVED: std::ops::RangeInclusive<i64> = -32099..=-32020;

/// Why a request has no result.
#[derive(Debug, Clone)]
pub(crate) struct CallError {
    error: RpcError,
    /// Whether it is the gateway's own, and no server's.
    own: bool,
    pub(crate) outcome: Outcome,
    pub(crate) code: &'static str,
    pub(crate) failure: Failure,
}

impl CallError {
    fn own(error: RpcError, outcome: Outcome, code: &'static str) -> Self {
        let failure = Failure::Rpc(error.code);
        Self { error, own: true, outcome, code, failure }
    }

    fn with(rpc: i64, text: impl Into<Box<str>>, outcome: Outcome, code: &'static str, more: Value) -> Self {
        let mut data = Map::from_iter([("code".to_owned(), Value::from(code.to_lowercase()))]);
        if let Value::Object(more) = more {
            data.extend(more);
        }
        Self::own(RpcError::new(rpc, text).with_data(Json::of(&data)), outcome, code)
    }

    /// A request that is wrong in itself.
    pub(crate) fn invalid(text: impl Into<Box<str>>) -> Self {
        Self::own(RpcError::invalid_params(text), Outcome::ClientError, "INVALID_PARAMS")
    }

    /// The same, with data that says more.
    pub(crate) fn invalid_with(text: impl Into<Box<str>>, data: &Value) -> Self {
        let error = RpcError::invalid_params(text).with_data(Json::of(data));
        Self::own(error, Outcome::ClientError, "INVALID_PARAMS")
    }

    pub(crate) fn unknown(what: &str) -> Self {
        let code = if what == "tool" { "UNKNOWN_TOOL" } else { "INVALID_PARAMS" };
        let error = RpcError::invalid_params(format!("there is no such {what}"));
        Self::own(error, Outcome::ClientError, code)
    }

    /// An error that the protocol has words for.
    pub(crate) fn from_rpc(error: RpcError) -> Self {
        Self::own(error, Outcome::ClientError, "INVALID_REQUEST")
    }

    /// A method that is not served to this client.
    pub(crate) fn method_refused(text: &str) -> Self {
        Self::with(code::METHOD_NOT_FOUND, text, Outcome::ClientError, "METHOD_REFUSED", Value::Null)
    }

    /// The client did not declare what the request needs.
    pub(crate) fn missing_capability(text: &str, capabilities: &Value) -> Self {
        let error = RpcError::new(code::MISSING_CAPABILITY, text)
            .with_data(Json::of(&json!({ "requiredCapabilities": capabilities })));
        Self::own(error, Outcome::ClientError, "MISSING_CAPABILITY")
    }

    /// Policy says no. The error names the policies, so that their author can be asked.
    pub(crate) fn denied(verdict: &Verdict) -> Self {
        let text = match &verdict.reason {
            None => "denied by policy".to_owned(),
            Some(reason) => format!("denied by policy: {reason}"),
        };
        let more = json!({ "policy_ids": verdict.policy_ids });
        Self::with(DENIED, text, Outcome::PolicyDenied, "POLICY_DENIED", more)
    }

    /// Whatever the server asks for the sake of this call is denied, so that it cannot go on.
    pub(crate) fn questions_denied() -> Self {
        let text = "denied by policy: what the server asks for the sake of this call";
        Self::with(DENIED, text, Outcome::PolicyDenied, "POLICY_DENIED", json!({ "policy_ids": [] }))
    }

    pub(crate) fn not_recorded() -> Self {
        let text = "the decision on this call could not be recorded, and without a record there is no call; try again";
        Self::with(NOT_RECORDED, text, Outcome::ServerError, "AUDIT_UNAVAILABLE", Value::Null)
    }

    /// A payload that has to be kept is not.
    pub(crate) fn not_captured() -> Self {
        let text =
            "a policy has this call's payloads kept, and they could not be; without that there is no call; try again";
        Self::with(NOT_RECORDED, text, Outcome::ServerError, NOT_CAPTURED, Value::Null)
    }

    /// Whether it is that.
    pub(crate) fn is_not_captured(&self) -> bool {
        self.own && self.code == NOT_CAPTURED
    }

    /// As many calls are under way as the gateway takes.
    pub(crate) fn no_room(most: usize) -> Self {
        let text = format!("{most} calls are under way, as many as the gateway takes; try again later");
        Self::with(QUOTA, text, Outcome::QuotaExceeded, "CALL_LIMIT", json!({ "retry_after_seconds": 1 }))
    }

    /// The memory for requests and answers is used up.
    pub(crate) fn no_memory() -> Self {
        let text = "the memory for requests and answers is used up; try again later";
        Self::with(QUOTA, text, Outcome::QuotaExceeded, "MEMORY_LIMIT", json!({ "retry_after_seconds": 1 }))
    }

    /// A rate of the configuration is used up.
    pub(crate) fn rate(rule: &str, seconds: u64) -> Self {
        let text = format!("the limit `{rule}` is used up; try again in {seconds} s");
        let more = json!({ "limit": rule, "retry_after_seconds": seconds });
        Self::with(QUOTA, text, Outcome::QuotaExceeded, "RATE_LIMIT", more)
    }

    /// The server asked for more than it may, or for ever.
    pub(crate) fn unending(plugin: &str) -> Self {
        let text = format!("plugin {plugin} asks again and again; the call was given up");
        Self::with(UNREACHABLE, text, Outcome::ServerError, "TOO_MANY_ROUNDS", Value::Null)
    }

    /// A retry whose state is not what the gateway gave out, or is not this caller's or this request's.
    pub(crate) fn state(data_code: &str, text: &str) -> Self {
        let error = RpcError::invalid_params(text).with_data(Json::of(&json!({ "code": data_code })));
        Self::own(error, Outcome::ClientError, "STATE_INVALID")
    }

    /// A retry of a call that this gateway does not have any more.
    pub(crate) fn call_lost() -> Self {
        let text = "the call that waited for this answer is lost; it is not run again, since it may have had effects";
        Self::with(UNREACHABLE, text, Outcome::ServerError, "CALL_LOST", Value::Null)
    }

    /// The plugin did not answer with a result.
    pub(crate) fn upstream(error: &UpstreamError, plugin: &str) -> Self {
        match error {
            UpstreamError::Refused(refused) => Self {
                error: refused.clone(),
                own: false,
                outcome: error.outcome(),
                code: error.code(),
                failure: Failure::Rpc(refused.code),
            },
            _ => {
                let text = error.to_error(plugin).message;
                let rpc = if error.outcome() == Outcome::QuotaExceeded { QUOTA } else { UNREACHABLE };
                let mut made = Self::with(rpc, text, error.outcome(), error.code(), Value::Null);
                made.failure = Failure::Kind(error.kind());
                made
            }
        }
    }

    /// The same, without what a server itself says: a policy redacts its results, and an error's text and data could
    /// hold anything of them.
    pub(crate) fn without_words(mut self) -> Self {
        if !self.own {
            let text = "the plugin refused the request; what it says is withheld, as a policy redacts its results";
            self.error = RpcError::new(self.error.code, text);
        }
        self
    }

    /// Whether it is an old server's error that asks its client to open pages.
    pub(crate) fn asks_to_open_pages(&self) -> bool {
        !self.own && self.error.code == code::URL_ELICITATION_REQUIRED
    }

    /// The URL elicitations in it. `None`: it has none, or more than `most`.
    pub(crate) fn elicitations(&self, most: usize) -> Option<Vec<Json>> {
        let asked = self.error.data.as_ref()?.get("elicitations").filter(Json::is_array)?;
        let asked = asked.first_items(most.saturating_add(1));
        (!asked.is_empty() && asked.len() <= most && asked.iter().all(Json::is_object)).then_some(asked)
    }

    /// The same with these in their place, and nothing beside them.
    pub(crate) fn with_elicitations(mut self, elicitations: &Json) -> Self {
        let mut data = Object::default();
        data.add("elicitations", elicitations.clone());
        self.error.data = Some(data.to_json());
        self
    }

    /// The same, asking for none.
    pub(crate) fn without_elicitations(mut self) -> Self {
        if self.asks_to_open_pages() {
            self.error.data = None;
        }
        self
    }

    /// Whether a modern server refused the request since its client did not declare that it takes tasks.
    pub(crate) fn needs_tasks(&self) -> bool {
        let needed = |data: &Json| data.at(&["requiredCapabilities", "extensions", TASKS_EXTENSION]);
        !self.own
            && self.error.code == code::MISSING_CAPABILITY
            && self.error.data.as_ref().and_then(needed).is_some_and(|extension| extension.is_object())
    }

    /// The text, for its hash.
    pub(crate) fn text(&self) -> &str {
        &self.error.message
    }

    /// The error that a client of `client`'s generation gets, of a server of `server`'s (none: the gateway itself).
    /// `uri`: of the resource it asked for.
    pub(crate) fn into_error(self, client: Generation, server: Option<Generation>, uri: Option<&str>) -> RpcError {
        let mut error = self.error;
        if self.own {
            let of_gateway = [UNREACHABLE, DENIED, QUOTA, NOT_RECORDED].contains(&error.code);
            if client == Generation::Modern && of_gateway {
                error.code += MODERN;
            }
            if client == Generation::Old && error.code == code::MISSING_CAPABILITY {
                error.code = code::INTERNAL_ERROR;
            }
            return error;
        }
        match (client, server) {
            (Generation::Modern, Some(Generation::Old)) => {
                if error.code == code::RESOURCE_NOT_FOUND {
                    error.code = code::INVALID_PARAMS;
                    if let Some(uri) = uri {
                        error.data = Some(Json::of(&json!({ "uri": uri })));
                    }
                } else if RESERVED.contains(&error.code) {
                    error.data = Some(Json::of(&json!({ "upstream_code": error.code })));
                    error.code = code::INTERNAL_ERROR;
                }
            }
            (Generation::Old, Some(Generation::Modern)) => {
                if error.code == code::MISSING_CAPABILITY {
                    let needed = error.data.as_ref().and_then(|data| data.get("requiredCapabilities"));
                    let needed = needed
                        .map_or_else(String::new, |needed| format!(": {}", String::from_utf8_lossy(needed.as_bytes())));
                    let text = format!("the server needs capabilities that the client did not declare{needed}");
                    error = RpcError::internal(text);
                } else if error.code == code::INVALID_PARAMS
                    && uri.is_some()
                    && error.data.as_ref().is_some_and(|data| data.get("uri").is_some())
                {
                    error.code = code::RESOURCE_NOT_FOUND;
                }
            }
            _ => {}
        }
        error
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::CallError;
    use crate::gateway::message::{Json, RpcError};
    use crate::gateway::protocol::Generation::{Modern, Old};
    use crate::gateway::upstream::UpstreamError;

    fn refused(code: i64, data: Value) -> CallError {
        let error = RpcError::new(code, "words").with_data(Json::of(&data));
        CallError::upstream(&UpstreamError::Refused(error), "p")
    }

    #[test]
    fn the_gateways_own_codes_lie_outside_the_reserved_range_for_modern_clients() {
        for (error, old) in [(CallError::not_recorded(), -32005), (CallError::no_room(3), -32004)] {
            let data =
                |error: &RpcError| error.data.as_ref().unwrap().get("code").unwrap().as_text().unwrap().into_owned();
            let (to_old, to_modern) = (error.clone().into_error(Old, None, None), error.into_error(Modern, None, None));
            assert_eq!((to_old.code, to_modern.code), (old, old + 1000));
            assert_eq!(data(&to_old), data(&to_modern));
        }
    }

    #[test]
    fn a_missing_resource_has_each_generations_own_code() {
        let to_modern = refused(-32002, json!({})).into_error(Modern, Some(Old), Some("x://y"));
        assert_eq!((to_modern.code, to_modern.data.unwrap().value().unwrap()), (-32602, json!({ "uri": "x://y" })));
        let to_old = refused(-32602, json!({ "uri": "x://y" })).into_error(Old, Some(Modern), Some("x://y"));
        assert_eq!(to_old.code, -32002);
        assert_eq!(refused(-32602, json!({})).into_error(Old, Some(Modern), Some("x://y")).code, -32602);
    }

    #[test]
    fn codes_that_only_one_generation_has_are_none_of_the_others() {
        let to_modern = refused(-32050, json!({})).into_error(Modern, Some(Old), None);
        assert_eq!(
            (to_modern.code, to_modern.data.unwrap().value().unwrap()),
            (-32603, json!({ "upstream_code": -32050 }))
        );
        let needs = json!({ "requiredCapabilities": { "elicitation": {} } });
        let to_old = refused(-32021, needs.clone()).into_error(Old, Some(Modern), None);
        assert!(to_old.code == -32603 && to_old.message.contains("elicitation"));
        assert_eq!(refused(-32021, needs).into_error(Modern, Some(Modern), None).code, -32021);
    }

    #[test]
    fn an_error_that_asks_to_open_pages_asks_for_no_more_than_is_permitted() {
        let asks = |elicitations: Value| refused(-32042, json!({ "elicitations": elicitations, "more": 1 }));
        let one = json!({ "mode": "url", "url": "https://x", "elicitationId": "e" });
        let error = asks(json!([one]));
        assert!(error.asks_to_open_pages());
        assert_eq!(error.elicitations(2).unwrap().len(), 1);
        for odd in [json!([]), json!({ "0": one }), json!([one, one, one]), json!(["x"])] {
            assert!(asks(odd.clone()).elicitations(2).is_none(), "{odd}");
        }
        let worded = error.clone().with_elicitations(&Json::of(&json!([])));
        assert_eq!(
            worded.into_error(Old, Some(Old), None).data.unwrap().value().unwrap(),
            json!({ "elicitations": [] })
        );
        assert!(error.without_elicitations().into_error(Old, Some(Modern), None).data.is_none());
        assert!(refused(-32000, json!(1)).without_elicitations().into_error(Old, Some(Old), None).data.is_some());
    }

    #[test]
    fn without_words_a_servers_error_says_nothing_and_the_gateways_own_stays() {
        let silent = refused(-32000, json!("secret")).without_words().into_error(Old, Some(Old), None);
        assert!(silent.code == -32000 && silent.data.is_none() && !silent.message.contains("words"));
        assert!(CallError::not_recorded().without_words().text().contains("recorded"));
    }
}
