//! The state of a call that waits for its client, sealed into the `requestState` that the client brings back.
//!
//! What goes through a client may be changed by it, replayed, or brought by another: so the state is sealed
//! (AES-256-GCM) and says whose it is, for which plugin, method and parameters, and until when; all of that is checked
//! before anything of it counts.
//!
//! ```text
//! base64url( length of the key's id (1) ‖ the key's id ‖ nonce (12) ‖ ciphertext and tag )     the id is authenticated too
//! ```
//!
//! The first configured key seals, all of them open, so that keys can be exchanged under running gateways, and gateways
//! behind one balancer open each other's. Without a configured key each start makes one of its own.
//!
//! The digest of the parameters is over their canonical form (members sorted, numbers by their value), since a client
//! may write them anew.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{Aead, Generate, Key, KeyInit, Nonce, Payload};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;
use zeroize::Zeroize;

use super::error::CallError;
use crate::config::StateKey;
use crate::gateway::message::Object;
use crate::model::Clock;

/// The longest state that is looked at, and the longest that a server may have kept in it.
const MAX_SEALED: usize = 96 << 10;
const MAX_SERVER_STATE: usize = 48 << 10;

const NONCE: usize = 12;

/// Seals and opens states.
pub(crate) struct Sealer {
    keys: Vec<(Box<str>, Aes256Gcm)>,
    clock: Arc<dyn Clock>,
    /// Which gateway this is: calls wait in its memory.
    node: Uuid,
}

/// Why the keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read.
    #[error("state_keys: {}: {error}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why not.
        error: std::io::Error,
    },
    /// It does not hold a key.
    #[error("state_keys: {}: not 64 hexadecimal digits; make a key with: openssl rand -hex 32", file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
    },
}

/// What a state is bound to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Binding {
    pub(crate) caller: String,
    pub(crate) plugin: String,
    pub(crate) method: String,
    /// Of the parameters; see [`digest`].
    pub(crate) params: String,
}

/// What waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Waiting {
    /// Nothing: the server keeps no call, and goes on by its own state.
    Server {
        /// The state as the server gave it, if it gave one.
        state: Option<String>,
        /// The keys that the client was asked.
        asked: Vec<String>,
        /// The keys of elicitations that policy declines in its place.
        declined: Vec<String>,
    },
    /// A call under way in the memory of a gateway.
    Parked {
        /// Which gateway.
        node: Uuid,
        /// Which call.
        park: Uuid,
    },
}

/// What a client brings back.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct State {
    v: u8,
    issued_at: i64,
    expires_at: i64,
    binding: Binding,
    pub(crate) round: u32,
    /// The id of the first leg of the call.
    pub(crate) first: Uuid,
    pub(crate) waiting: Waiting,
}

impl Sealer {
    /// The configured keys, or one of its own. Reads files.
    ///
    /// # Errors
    /// When a file cannot be read, or holds no key.
    pub(crate) fn start(keys: &[StateKey], clock: Arc<dyn Clock>, node: Uuid) -> Result<Self, KeyError> {
        let mut made = Vec::with_capacity(keys.len().max(1));
        for key in keys {
            made.push((key.id.as_str().into(), read(&key.file)?));
        }
        if made.is_empty() {
            made.push(("own".into(), Aes256Gcm::new(&Key::<Aes256Gcm>::generate())));
        }
        Ok(Self { keys: made, clock, node })
    }

    /// Which gateway this is.
    pub(crate) fn node(&self) -> Uuid {
        self.node
    }

    /// Seals what waits, for as long as `lifetime`. `None`: the server's own state is larger than a client may have to
    /// carry.
    pub(crate) fn seal(
        &self,
        binding: Binding,
        waiting: Waiting,
        (round, first): (u32, Uuid),
        lifetime: std::time::Duration,
    ) -> Option<String> {
        if let Waiting::Server { state: Some(state), .. } = &waiting
            && state.len() > MAX_SERVER_STATE
        {
            return None;
        }
        let issued_at = self.clock.now().timestamp_millis();
        let lifetime = i64::try_from(lifetime.as_millis()).unwrap_or(i64::MAX);
        let expires_at = issued_at.saturating_add(lifetime);
        let state = State { v: 1, issued_at, expires_at, binding, round, first, waiting };
        let plain = serde_json::to_vec(&state).ok()?;
        let (id, cipher) = self.keys.first()?;
        let nonce = Nonce::<Aes256Gcm>::generate();
        let sealed = cipher.encrypt(&nonce, Payload { msg: &plain, aad: id.as_bytes() }).ok()?;
        let mut bytes = vec![u8::try_from(id.len()).ok()?];
        bytes.extend_from_slice(id.as_bytes());
        bytes.extend_from_slice(&nonce);
        bytes.extend_from_slice(&sealed);
        Some(URL_SAFE_NO_PAD.encode(bytes))
    }

    /// Opens a state that a client brought, for what it is bound to.
    ///
    /// # Errors
    /// When it is not the gateway's, is of another request, or is too old.
    pub(crate) fn open(&self, sealed: &str, binding: &Binding) -> Result<State, CallError> {
        let invalid = || CallError::state("state_invalid", "the requestState is not of this request");
        let state = self.decrypt(sealed).ok_or_else(invalid)?;
        if state.v != 1 || state.binding != *binding {
            return Err(invalid());
        }
        if self.clock.now().timestamp_millis() >= state.expires_at {
            return Err(CallError::state("state_expired", "the requestState has expired; send the request anew"));
        }
        Ok(state)
    }

    fn decrypt(&self, sealed: &str) -> Option<State> {
        if sealed.len() > MAX_SEALED {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(sealed).ok()?;
        let (length, rest) = bytes.split_first()?;
        let (id, rest) = rest.split_at_checked(usize::from(*length))?;
        let (nonce, sealed) = rest.split_at_checked(NONCE)?;
        let (id, cipher) = self.keys.iter().find(|(known, _)| known.as_bytes() == id)?;
        let nonce = Nonce::<Aes256Gcm>::try_from(nonce).ok()?;
        let plain = cipher.decrypt(&nonce, Payload { msg: sealed, aad: id.as_bytes() }).ok()?;
        serde_json::from_slice(&plain).ok()
    }
}

fn read(file: &std::path::Path) -> Result<Aes256Gcm, KeyError> {
    let malformed = || KeyError::Malformed { file: file.to_owned() };
    let mut text = std::fs::read_to_string(file).map_err(|error| KeyError::Read { file: file.to_owned(), error })?;
    let mut bytes = Vec::with_capacity(32);
    let digits = text.trim();
    for index in (0..digits.len()).step_by(2) {
        let pair = digits.get(index..index + 2).ok_or_else(malformed)?;
        bytes.push(u8::from_str_radix(pair, 16).map_err(|_| malformed())?);
    }
    let key = Key::<Aes256Gcm>::try_from(&bytes[..]).map_err(|_| malformed());
    let cipher = key.map(|key| Aes256Gcm::new(&key));
    bytes.zeroize();
    text.zeroize();
    cipher
}

/// The digest of a request's parameters, without what differs between the legs of one call.
///
/// # Errors
/// When they are nested too deeply.
pub(crate) fn digest(params: &Object) -> Result<String, CallError> {
    let mut params = params.clone();
    params.retain(|name, _| !matches!(name, "inputResponses" | "requestState" | "_meta"));
    let value = params.to_json().value().ok_or_else(|| CallError::invalid("the parameters are nested too deeply"))?;
    let mut text = String::new();
    write(&value, &mut text);
    Ok(blake3::hash(text.as_bytes()).to_hex().to_string())
}

/// Writes a value in its canonical form.
fn write(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            let mut names: Vec<&String> = map.keys().collect();
            names.sort_unstable();
            out.push('{');
            for name in names {
                out.push_str(&Value::from(name.as_str()).to_string());
                out.push(':');
                if let Some(value) = map.get(name) {
                    write(value, out);
                }
                out.push(',');
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for item in items {
                write(item, out);
                out.push(',');
            }
            out.push(']');
        }
        Value::Number(number) => {
            let whole = number.as_f64().filter(|number| number.fract() == 0.0 && number.abs() < 9.007e15);
            // Writing into memory does not fail.
            let _ = match whole {
                Some(whole) => write!(out, "{whole:.0}"),
                None => write!(out, "{number}"),
            };
        }
        Value::Null | Value::Bool(_) | Value::String(_) => out.push_str(&value.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use bytes::Bytes;
    use chrono::{DateTime, Utc};
    use parking_lot::Mutex;
    use uuid::Uuid;

    use super::{Binding, Sealer, Waiting, digest};
    use crate::config::StateKey;
    use crate::gateway::message::Json;
    use crate::model::Clock;

    #[derive(Debug)]
    struct Hands(Mutex<DateTime<Utc>>);

    impl Clock for Hands {
        fn now(&self) -> DateTime<Utc> {
            *self.0.lock()
        }
    }

    fn clock() -> Arc<Hands> {
        Arc::new(Hands(Mutex::new(DateTime::UNIX_EPOCH)))
    }

    fn binding() -> Binding {
        let text = |text: &str| text.to_owned();
        Binding { caller: text("user:ann"), plugin: text("p"), method: text("tools/call"), params: text("d") }
    }

    fn server(state: Option<&str>) -> Waiting {
        Waiting::Server { state: state.map(str::to_owned), asked: vec!["k".to_owned()], declined: Vec::new() }
    }

    const LIFETIME: Duration = Duration::from_secs(300);

    #[test]
    fn a_state_comes_back_as_it_was_to_whom_it_was_given() {
        let sealer = Sealer::start(&[], clock(), Uuid::nil()).unwrap();
        let sealed = sealer.seal(binding(), server(Some("s")), (2, Uuid::from_u128(7)), LIFETIME).unwrap();
        let state = sealer.open(&sealed, &binding()).unwrap();
        assert_eq!((state.round, state.first, state.waiting), (2, Uuid::from_u128(7), server(Some("s"))));
        assert!(!sealed.contains("user:ann"));
        for other in [
            Binding { caller: "user:eve".to_owned(), ..binding() },
            Binding { plugin: "q".to_owned(), ..binding() },
            Binding { method: "prompts/get".to_owned(), ..binding() },
            Binding { params: "e".to_owned(), ..binding() },
        ] {
            assert!(sealer.open(&sealed, &other).is_err(), "{other:?}");
        }
    }

    #[test]
    fn a_state_that_was_changed_or_is_anothers_is_none() {
        let sealer = Sealer::start(&[], clock(), Uuid::nil()).unwrap();
        let sealed = sealer.seal(binding(), server(None), (0, Uuid::nil()), LIFETIME).unwrap();
        for at in [0, 5, 20, sealed.len() - 1] {
            let mut changed = sealed.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            assert!(sealer.open(std::str::from_utf8(&changed).unwrap(), &binding()).is_err(), "{at}");
        }
        for garbage in ["", "x", "////", &"A".repeat(200_000)] {
            assert!(sealer.open(garbage, &binding()).is_err());
        }
        let other = Sealer::start(&[], clock(), Uuid::nil()).unwrap();
        assert!(other.open(&sealed, &binding()).is_err());
    }

    #[test]
    fn a_state_expires() {
        let clock = clock();
        let sealer = Sealer::start(&[], Arc::clone(&clock) as Arc<dyn Clock>, Uuid::nil()).unwrap();
        let sealed = sealer.seal(binding(), server(None), (0, Uuid::nil()), LIFETIME).unwrap();
        *clock.0.lock() += chrono::TimeDelta::seconds(299);
        assert!(sealer.open(&sealed, &binding()).is_ok());
        *clock.0.lock() += chrono::TimeDelta::seconds(1);
        assert!(sealer.open(&sealed, &binding()).is_err());
    }

    #[test]
    fn a_new_key_seals_and_the_old_one_still_opens() {
        let folder = tempfile::tempdir().unwrap();
        let key = |id: &str, digit: &str| {
            let file = folder.path().join(id);
            std::fs::write(&file, format!("{}\n", digit.repeat(64))).unwrap();
            StateKey { id: id.to_owned(), file }
        };
        let (old, new) = (key("old", "1"), key("new", "2"));
        let before = Sealer::start(std::slice::from_ref(&old), clock(), Uuid::nil()).unwrap();
        let sealed = before.seal(binding(), server(None), (0, Uuid::nil()), LIFETIME).unwrap();
        let after = Sealer::start(&[new, old], clock(), Uuid::nil()).unwrap();
        assert!(after.open(&sealed, &binding()).is_ok());
        let newer = after.seal(binding(), server(None), (0, Uuid::nil()), LIFETIME).unwrap();
        assert!(before.open(&newer, &binding()).is_err());
        std::fs::write(folder.path().join("bad"), "zz").unwrap();
        let bad = StateKey { id: "bad".to_owned(), file: folder.path().join("bad") };
        assert!(Sealer::start(&[bad], clock(), Uuid::nil()).is_err());
    }

    #[test]
    fn a_digest_is_that_of_the_values_however_they_are_written() {
        let of = |text: &str| {
            digest(&Json::parse(&Bytes::copy_from_slice(text.as_bytes())).unwrap().object().unwrap()).unwrap()
        };
        let one = of(r#"{"name":"t","arguments":{"b":1.0,"a":[1,"x"]},"_meta":{"progressToken":1}}"#);
        let other =
            of(r#"{ "arguments": {"a":[1,"\u0078"], "b":1}, "name":"t", "requestState":"s", "inputResponses":{} }"#);
        assert_eq!(one, other);
        assert_ne!(one, of(r#"{"name":"t","arguments":{"b":2,"a":[1,"x"]}}"#));
        assert_ne!(one, of(r#"{"name":"t","arguments":{"b":1,"a":["x",1]}}"#));
    }
}
