//! What a permit obliges to: annotations of the policies that permit.
//!
//! | annotation | obliges to |
//! |---|---|
//! | `@redact("/token, result:/users/*/email")` | take these values out of the arguments, or (`result:`) the result |
//! | `@max_result_bytes("64KiB")` | pass on no larger result |
//! | `@timeout_ms("2000")` | wait no longer for the result |
//! | `@capture_payload("true")` | keep the request and the response, sealed; `"request"`, `"response"`: one of the two |
//! | `@notify("security")` | tell these people |
//!
//! `@id` and `@description` are no obligations. Any other annotation is a fault: a misspelt obligation must not pass
//! for none. So is an obligation on a policy that forbids.

use std::num::NonZeroU64;
use std::time::Duration;

use super::redaction::{self, Pointer};
use crate::config::ByteSize;
use crate::gateway::capture::Captures;
use crate::gateway::message::Json;
use crate::payload::Direction;

/// The longest name of whom to notify, in characters.
const MAX_CHANNEL: usize = 128;

/// The longest timeout: a day.
const MAX_TIMEOUT_MS: u64 = 86_400_000;

/// What a permit obliges to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Obligations {
    arguments: Vec<Pointer>,
    result: Vec<Pointer>,
    max_result_bytes: Option<u64>,
    timeout: Option<Duration>,
    captures: Captures,
    notify: Vec<String>,
}

impl Obligations {
    /// Whether it obliges to nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The arguments without what the upstream must not get.
    pub(in crate::gateway) fn redact_arguments(&self, arguments: &Json) -> Json {
        redaction::remove(arguments, &self.arguments)
    }

    /// Whether `Obligations::redact_arguments` does anything.
    pub fn redacts_arguments(&self) -> bool {
        !self.arguments.is_empty()
    }

    /// What the caller may get of a result.
    pub(in crate::gateway) fn redact_result(&self, result: &Json) -> Json {
        redaction::replace(result, &self.result)
    }

    /// Whether `Obligations::redact_result` does anything.
    pub fn redacts_result(&self) -> bool {
        !self.result.is_empty()
    }

    /// The largest result that may be passed on.
    pub fn max_result_bytes(&self) -> Option<u64> {
        self.max_result_bytes
    }

    /// The longest that the result may be waited for.
    pub fn timeout(&self) -> Option<Duration> {
        self.timeout
    }

    /// Whether anything of the call is to be kept, sealed.
    pub fn capture_payload(&self) -> bool {
        !self.captures.is_none()
    }

    /// What of the call is to be kept, sealed.
    pub fn captures(&self) -> Captures {
        self.captures
    }

    /// What is taken out of a direction before it is kept, as JSON pointers.
    pub fn redactions(&self, direction: Direction) -> Vec<String> {
        let pointers = if direction == Direction::Request { &self.arguments } else { &self.result };
        pointers.iter().map(ToString::to_string).collect()
    }

    /// Whom to notify of the call.
    pub fn notify(&self) -> &[String] {
        &self.notify
    }

    /// The obligations as they stand in the audit ledger: like the annotations, each by itself.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.arguments.iter().map(|pointer| format!("redact:{pointer}")).collect();
        names.extend(self.result.iter().map(|pointer| format!("redact:result:{pointer}")));
        names.extend(self.max_result_bytes.map(|bytes| format!("max_result_bytes:{bytes}")));
        names.extend(self.timeout.map(|timeout| format!("timeout_ms:{}", timeout.as_millis())));
        names.extend(match self.captures {
            Captures { request: true, response: true } => Some("capture_payload".to_owned()),
            Captures { request: true, .. } => Some("capture_payload:request".to_owned()),
            Captures { response: true, .. } => Some("capture_payload:response".to_owned()),
            Captures { .. } => None,
        });
        names.extend(self.notify.iter().map(|channel| format!("notify:{channel}")));
        names
    }

    /// Adds what an annotation obliges to.
    ///
    /// # Errors
    /// What is wrong with the annotation.
    pub(in crate::gateway) fn annotate(&mut self, name: &str, value: &str) -> Result<(), String> {
        match name {
            "redact" => {
                let places = value.split(|c: char| c == ',' || c.is_whitespace()).filter(|place| !place.is_empty());
                let before = self.arguments.len() + self.result.len();
                for place in places {
                    match place.strip_prefix("result:") {
                        Some(place) => self.result.push(Pointer::parse(place)?),
                        None => self.arguments.push(Pointer::parse(place)?),
                    }
                }
                if self.arguments.len() + self.result.len() == before {
                    return Err(
                        "names nothing to redact; write JSON pointers, like \"/token, result:/email\"".to_owned()
                    );
                }
            }
            "max_result_bytes" => {
                let size: ByteSize = value.parse().map_err(|error| format!("{error}"))?;
                let size = NonZeroU64::new(size.as_u64()).ok_or("is 0; forbid the call instead")?;
                self.max_result_bytes = Some(size.get());
            }
            "timeout_ms" => {
                let millis = value.parse().ok().filter(|millis| (1..=MAX_TIMEOUT_MS).contains(millis));
                let millis = millis.ok_or_else(|| {
                    format!("`{value}` is no timeout; write whole milliseconds, 1 to {MAX_TIMEOUT_MS}")
                })?;
                self.timeout = Some(Duration::from_millis(millis));
            }
            "capture_payload" => {
                let (request, response) = match value {
                    "true" => (true, true),
                    "request" => (true, false),
                    "response" => (false, true),
                    "false" => (false, false),
                    _ => return Err(format!("`{value}` is none of \"true\", \"request\", \"response\", \"false\"")),
                };
                self.captures = Captures { request, response };
            }
            "notify" => {
                let channels = value.split(',').map(str::trim).filter(|channel| !channel.is_empty());
                let before = self.notify.len();
                for channel in channels {
                    if channel.chars().count() > MAX_CHANNEL || channel.chars().any(char::is_control) {
                        return Err(
                            "names whom to notify in at most 128 characters without control characters".to_owned()
                        );
                    }
                    self.notify.push(channel.to_owned());
                }
                if self.notify.len() == before {
                    return Err("names nobody; write whom to notify, like \"security\"".to_owned());
                }
            }
            _ => {
                let known = "id, description, redact, max_result_bytes, timeout_ms, capture_payload, notify";
                return Err(format!("is no annotation that is known here; known: {known}"));
            }
        }
        self.tidy();
        Ok(())
    }

    /// Adds what another policy obliges to: all that either does, and of numbers the strictest.
    pub(super) fn add(&mut self, other: &Self) {
        self.arguments.extend(other.arguments.iter().cloned());
        self.result.extend(other.result.iter().cloned());
        self.max_result_bytes = strictest(self.max_result_bytes, other.max_result_bytes);
        self.timeout = strictest(self.timeout, other.timeout);
        self.captures.request |= other.captures.request;
        self.captures.response |= other.captures.response;
        self.notify.extend(other.notify.iter().cloned());
        self.tidy();
    }

    fn tidy(&mut self) {
        self.arguments.sort();
        self.arguments.dedup();
        self.result.sort();
        self.result.dedup();
        self.notify.sort();
        self.notify.dedup();
    }
}

fn strictest<T: Ord>(one: Option<T>, other: Option<T>) -> Option<T> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
mod tests {
    use super::Obligations;

    fn of(annotations: &[(&str, &str)]) -> Obligations {
        let mut obligations = Obligations::default();
        for (name, value) in annotations {
            obligations.annotate(name, value).unwrap();
        }
        obligations
    }

    #[test]
    fn each_annotation_is_named_as_it_is_recorded() {
        let all = of(&[
            ("redact", "/token, result:/users/*/email"),
            ("max_result_bytes", "64KiB"),
            ("timeout_ms", "2000"),
            ("capture_payload", "true"),
            ("notify", "security, on-call"),
        ]);
        let names = [
            "redact:/token",
            "redact:result:/users/*/email",
            "max_result_bytes:65536",
            "timeout_ms:2000",
            "capture_payload",
            "notify:on-call",
            "notify:security",
        ];
        assert_eq!(all.names(), names);
    }

    #[test]
    fn of_several_the_strictest_number_and_all_places_count() {
        let mut one = of(&[("redact", "/a"), ("timeout_ms", "100"), ("max_result_bytes", "10")]);
        one.add(&of(&[("redact", "/b /a"), ("timeout_ms", "50"), ("capture_payload", "true")]));
        assert_eq!(one.names(), ["redact:/a", "redact:/b", "max_result_bytes:10", "timeout_ms:50", "capture_payload"]);
    }

    #[test]
    fn an_annotation_that_is_unknown_or_malformed_is_a_fault() {
        for (name, value) in [
            ("redcat", "/a"),
            ("redact", ""),
            ("redact", "token"),
            ("redact", "results:/a"),
            ("max_result_bytes", "0"),
            ("max_result_bytes", "many"),
            ("timeout_ms", "0"),
            ("timeout_ms", "2s"),
            ("timeout_ms", "-1"),
            ("capture_payload", "yes"),
            ("notify", " , "),
            ("notify", "a\nb"),
        ] {
            assert!(Obligations::default().annotate(name, value).is_err(), "@{name}({value:?})");
        }
    }

    #[test]
    fn of_several_that_capture_a_direction_each_both_are_kept() {
        let mut one = of(&[("capture_payload", "request")]);
        assert_eq!(one.names(), ["capture_payload:request"]);
        one.add(&of(&[("capture_payload", "response")]));
        assert_eq!(one.names(), ["capture_payload"]);
    }

    #[test]
    fn what_is_said_not_to_be_captured_is_no_obligation() {
        assert!(of(&[("capture_payload", "false")]).is_empty());
    }
}
