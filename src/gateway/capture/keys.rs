//! The note of public keys: got from the control plane, verified, kept beside the spool.
//!
//! ```text
//! <spool>/payload-keys.note    the last good note, with its signatures
//! <spool>/payload-keys.vkey    the verifier key that was first seen, where the settings name none
//! ```
//!
//! It is verified by `control_plane.vkey`. Without that the first key that is seen is kept, which the log says at each
//! start; another is taken only if the note is signed by both. Where the settings name a recipient, a note with another
//! or none is refused: an attacker who holds the control plane then cannot have payloads sealed to himself alone.
//!
//! The gateway's own date decides which key a payload is sealed to. A clock that is wrong by more than the note reaches
//! finds none.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use parking_lot::RwLock;
use reqwest::StatusCode;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use url::Url;

use crate::audit::note::{Note, VKey};
use crate::config::{self, Secret};
use crate::gateway::control_plane::HttpClient;
use crate::gateway::policy::{Abilities, Policy};
use crate::model::{Clock, OrgName, causes};
use crate::payload::note::KeyNote;
use crate::payload::{Epoch, PublicKey, Recipients};

/// How long one attempt may take.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);
/// How long a start waits for the first one.
const FIRST_KEYS_TIMEOUT: Duration = Duration::from_secs(3);
/// How often a note is got anew, and how soon after a failure.
const FRESH: Duration = Duration::from_secs(600);
const RETRY: Duration = Duration::from_secs(5);
/// How often it is looked whether a policy captures.
const IDLE: Duration = Duration::from_secs(2);
/// The most of an answer that is read.
const MAX_ANSWER: usize = 1 << 20;

/// How a gateway stands with its keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeyState {
    /// Nothing is known: no note was ever got.
    Unknown,
    /// The control plane says that the org is not entitled.
    NotEntitled,
    /// There is a note.
    Known,
}

#[derive(Debug, Clone)]
enum State {
    Unknown,
    NotEntitled,
    Known(Arc<Known>),
}

/// A note that was verified.
#[derive(Debug)]
pub(super) struct Known {
    note: KeyNote,
    /// Whether the control plane lets payloads be compressed.
    pub(super) compress: bool,
}

/// Why a note is not taken.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("the org is not entitled")]
    NotEntitled,
    #[error("{0}")]
    Other(String),
}

fn other(e: impl std::fmt::Display) -> Refused {
    Refused::Other(e.to_string())
}

/// The newest verified note of public keys, and how it is renewed.
#[derive(Debug)]
pub(super) struct Keys {
    client: HttpClient,
    url: Url,
    token: Option<Secret>,
    org: OrgName,
    vkey: Option<String>,
    recipient: Option<PublicKey>,
    folder: PathBuf,
    abilities: Abilities,
    clock: Arc<dyn Clock>,
    state: RwLock<State>,
    /// Notified when a payload found no key.
    wanted: Notify,
}

/// An epoch for a header that gets its own when it is sealed.
pub(super) fn any_epoch(at: DateTime<Utc>) -> Epoch {
    Epoch::new(at.date_naive(), 1).unwrap_or(Epoch::FIRST)
}

impl Keys {
    pub(super) fn open(
        settings: &config::Gateway,
        client: HttpClient,
        abilities: Abilities,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let keys = Self {
            client,
            url: (*settings.control_plane.url).clone(),
            token: settings.control_plane.token.clone(),
            org: settings.org.clone(),
            vkey: settings.control_plane.vkey.clone(),
            recipient: settings.payloads.recipient.clone(),
            folder: settings.control_plane.spool.path.clone(),
            abilities,
            clock,
            state: RwLock::new(State::Unknown),
            wanted: Notify::new(),
        };
        if let Ok(kept) = fs::read_to_string(keys.note_path()) {
            match keys.verified(&kept, None) {
                Ok(note) => keys.adopt(note, true),
                Err(error) => tracing::warn!(%error, "the note of payload keys that was kept is not taken"),
            }
        }
        keys
    }

    fn note_path(&self) -> PathBuf {
        self.folder.join("payload-keys.note")
    }

    fn vkey_path(&self) -> PathBuf {
        self.folder.join("payload-keys.vkey")
    }

    pub(super) fn state(&self) -> KeyState {
        match &*self.state.read() {
            State::Unknown => KeyState::Unknown,
            State::NotEntitled => KeyState::NotEntitled,
            State::Known(_) => KeyState::Known,
        }
    }

    fn adopt(&self, note: KeyNote, compress: bool) {
        *self.state.write() = State::Known(Arc::new(Known { note, compress }));
        self.abilities.set_capture_payload(true);
    }

    /// What a payload of a call is sealed to: its epoch, whose keys, and whether it may be compressed. None if no key
    /// of its day is known.
    pub(super) fn sealed_to(&self, started_at: DateTime<Utc>, plugin: &str) -> Option<(Epoch, Recipients, bool)> {
        let found = (|| {
            let State::Known(known) = self.state.read().clone() else { return None };
            let note = &known.note;
            let epoch = note.epoch(started_at.date_naive(), plugin)?;
            let key = note.epochs.get(&epoch)?.clone();
            (self.clock.now() < note.expires).then_some(())?;
            Some((epoch, Recipients { epoch: key, tenant: note.recipient.clone() }, known.compress))
        })();
        if found.is_none() {
            self.wanted.notify_one();
        }
        found
    }

    /// Looks once, and not for long.
    pub(super) async fn look(&self) {
        match timeout(FIRST_KEYS_TIMEOUT, self.fetch()).await {
            Ok(outcome) => {
                self.took(outcome);
            }
            Err(_) => tracing::warn!("the control plane has not given the note of payload keys yet"),
        }
    }

    fn took(&self, outcome: Result<(KeyNote, bool), Refused>) -> bool {
        match outcome {
            Ok((note, compress)) => {
                self.adopt(note, compress);
                true
            }
            Err(Refused::NotEntitled) => {
                *self.state.write() = State::NotEntitled;
                self.abilities.set_capture_payload(false);
                tracing::warn!(org = %self.org, "the org is not entitled to payload_capture: what policies capture is denied");
                true
            }
            Err(Refused::Other(error)) => {
                tracing::warn!(error, "no note of payload keys");
                false
            }
        }
    }

    /// Keeps the note fresh while a policy captures.
    pub(super) async fn follow(&self, policy: &Arc<Policy>) {
        let mut is_fresh = self.state() != KeyState::Unknown;
        loop {
            let pause = match (policy.captures(), is_fresh) {
                (false, _) => IDLE,
                (true, true) => FRESH,
                (true, false) => RETRY,
            };
            tokio::select! {
                () = sleep(pause) => {}
                () = self.wanted.notified() => {
                    // A payload found no key: the day may have come to its end.
                    sleep(RETRY).await;
                }
            }
            if policy.captures() {
                let outcome = self.fetch().await;
                is_fresh = self.took(outcome);
            }
        }
    }

    async fn fetch(&self) -> Result<(KeyNote, bool), Refused> {
        let mut url = self.url.clone();
        url.set_path(&format!("{}/v1/orgs/{}/payload-keys", url.path().trim_end_matches('/'), self.org));
        let mut request = self.client.get().get(url);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.expose());
        }
        let mut answer = request.send().await.map_err(|e| other(causes(&e.without_url())))?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|e| other(causes(&e.without_url())))? {
            if bytes.len() + chunk.len() > MAX_ANSWER {
                return Err(other("the answer is too long"));
            }
            bytes.extend_from_slice(&chunk);
        }
        if status == StatusCode::FORBIDDEN && String::from_utf8_lossy(&bytes).contains("\"not_entitled\"") {
            return Err(Refused::NotEntitled);
        }
        if status != StatusCode::OK {
            return Err(other(status));
        }
        let note = String::from_utf8(bytes).map_err(other)?;
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let read = self.verified(&note, header("mcpg-ledger-vkey"))?;
        if let Err(error) = write(&self.note_path(), &note) {
            tracing::warn!(%error, "the note of payload keys could not be kept");
        }
        Ok((read, header("mcpg-payload-compress") != Some("no")))
    }

    /// Verifies a note and reads it. `offered` is the verifier key that came with it.
    fn verified(&self, text: &str, offered: Option<&str>) -> Result<KeyNote, Refused> {
        let note: Note = text.parse().map_err(other)?;
        match &self.vkey {
            Some(vkey) => {
                let vkey: VKey = vkey.parse().map_err(other)?;
                vkey.verify(&note).map_err(other)?;
            }
            None => self.verify_by_first_seen(&note, offered)?,
        }
        let read = KeyNote::read(&note.text).map_err(other)?;
        if read.org != self.org {
            return Err(other(format!("the note is of org {}", read.org)));
        }
        if self.recipient.is_some() && read.recipient != self.recipient {
            return Err(other("the note names another recipient than payloads.recipient, or none"));
        }
        Ok(read)
    }

    fn verify_by_first_seen(&self, note: &Note, offered: Option<&str>) -> Result<(), Refused> {
        let kept = fs::read_to_string(self.vkey_path()).ok();
        let offered = offered.map(str::parse::<VKey>).transpose().map_err(other)?;
        let Some(kept) = kept else {
            let first = offered.ok_or_else(|| other("no verifier key is known; set control_plane.vkey"))?;
            first.verify(note).map_err(other)?;
            tracing::warn!(vkey = %first, "payload keys are verified by the first key that was seen; set control_plane.vkey");
            return write(&self.vkey_path(), &first.to_string()).map_err(other);
        };
        let kept: VKey = kept.parse().map_err(other)?;
        kept.verify(note).map_err(other)?;
        match offered.filter(|offered| offered.to_string() != kept.to_string()) {
            // Signed by both: the control plane's key is being changed.
            Some(new) if new.verify(note).is_ok() => {
                tracing::warn!(vkey = %new, "payload keys are verified by another key from now on");
                write(&self.vkey_path(), &new.to_string()).map_err(other)
            }
            _ => {
                tracing::info!(vkey = %kept, "payload keys are verified by the key that was first seen");
                Ok(())
            }
        }
    }
}

/// Replaces a file whole.
fn write(path: &std::path::Path, text: &str) -> std::io::Result<()> {
    let new = path.with_extension("new");
    let mut file = fs::File::create(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(new, path)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use chrono::{DateTime, TimeDelta, Utc};
    use ed25519_dalek::SigningKey;

    use super::{KeyState, Keys};
    use crate::audit::SigningKeys;
    use crate::config::Gateway;
    use crate::gateway::control_plane::HttpClient;
    use crate::gateway::policy::Abilities;
    use crate::model::{Clock, SystemClock};
    use crate::payload::note::KeyNote;
    use crate::payload::{Epoch, KeyPair, PublicKey, Suite};

    const ORIGIN: &str = "mcpg.local/orgs/default/audit/1";

    fn signing(seed: u8) -> SigningKeys {
        SigningKeys::new(SigningKey::from_bytes(&[seed; 32]))
    }

    fn vkey(seed: u8) -> String {
        signing(seed).vkey(ORIGIN).unwrap().to_string()
    }

    fn note(org: &str, recipient: Option<PublicKey>) -> KeyNote {
        let now = SystemClock.now();
        let key = KeyPair::random(Suite::X25519).unwrap();
        KeyNote {
            name: "mcpg.local".to_owned(),
            org: org.parse().unwrap(),
            issued: now,
            expires: now + TimeDelta::days(8),
            period: 30,
            plugins: [("github".to_owned(), 7)].into(),
            epochs: [30, 7].map(|days| (Epoch::new(now.date_naive(), days).unwrap(), key.public().clone())).into(),
            recipient,
        }
    }

    fn signed(note: &KeyNote, keys: &SigningKeys) -> String {
        keys.sign(note.text(), ORIGIN).unwrap().to_string()
    }

    struct Bench {
        folder: tempfile::TempDir,
    }

    impl Bench {
        fn keys(&self, extra: &str) -> Keys {
            let text = format!(
                "plugins: [{{name: github, url: 'http://h/'}}]\nidentity: {{anonymous: true}}\n\
                 control_plane: {{spool: {{path: {}}}{extra}",
                self.folder.path().display()
            );
            let settings = Gateway::parse("f", &text, &|_| None).unwrap();
            let client = HttpClient::of_another(Duration::from_secs(5), Duration::from_secs(1)).unwrap();
            Keys::open(&settings, client, Abilities::default(), Arc::new(SystemClock))
        }
    }

    fn bench() -> Bench {
        Bench { folder: tempfile::tempdir().unwrap() }
    }

    fn today() -> DateTime<Utc> {
        SystemClock.now()
    }

    #[test]
    fn a_note_is_verified_by_the_key_of_the_settings_alone() {
        let bench = bench();
        let keys = bench.keys(&format!(", vkey: '{}'}}", vkey(1)));
        let note = note("default", None);
        assert!(keys.verified(&signed(&note, &signing(1)), Some(&vkey(2))).is_ok());
        assert!(keys.verified(&signed(&note, &signing(2)), Some(&vkey(2))).is_err());
        assert!(keys.verified(&signed(&super::tests::note("globex", None), &signing(1)), None).is_err());
    }

    #[test]
    fn without_one_the_first_that_is_seen_is_kept_and_another_taken_if_both_sign() {
        let (bench, note) = (bench(), note("default", None));
        let keys = bench.keys("}");
        assert!(keys.verified(&signed(&note, &signing(1)), None).is_err(), "nothing to verify by");
        keys.verified(&signed(&note, &signing(1)), Some(&vkey(1))).unwrap();
        assert!(keys.verified(&signed(&note, &signing(2)), Some(&vkey(2))).is_err(), "another key");
        let both = signing(2).with_previous(SigningKey::from_bytes(&[1; 32]));
        keys.verified(&signed(&note, &both), Some(&vkey(2))).unwrap();
        keys.verified(&signed(&note, &signing(2)), Some(&vkey(2))).unwrap();
        assert!(
            keys.verified(&signed(&note, &signing(1)), Some(&vkey(1))).is_err(),
            "the old key is not taken any more"
        );
    }

    #[test]
    fn a_note_without_the_recipient_of_the_settings_is_refused() {
        let bench = bench();
        let (ours, theirs) = (KeyPair::random(Suite::X25519).unwrap(), KeyPair::random(Suite::X25519).unwrap());
        let keys = bench.keys(&format!(", vkey: '{}'}}\npayloads: {{recipient: '{}'}}", vkey(1), ours.public()));
        let verify = |recipient| keys.verified(&signed(&note("default", recipient), &signing(1)), None);
        assert!(verify(Some(ours.public().clone())).is_ok());
        assert!(verify(Some(theirs.public().clone())).is_err() && verify(None).is_err());
    }

    #[test]
    fn the_last_good_note_is_there_after_a_restart_and_says_whose_keys_are_whose() {
        let (bench, note) = (bench(), note("default", None));
        let vkey = format!(", vkey: '{}'}}", vkey(1));
        assert_eq!(bench.keys(&vkey).state(), KeyState::Unknown);
        super::write(&bench.keys(&vkey).note_path(), &signed(&note, &signing(1))).unwrap();
        let keys = bench.keys(&vkey);
        assert_eq!(keys.state(), KeyState::Known);
        let days = |plugin: &str| keys.sealed_to(today(), plugin).unwrap().0.days();
        assert_eq!((days("github"), days("files")), (7, 30));
        assert!(keys.sealed_to(today() + TimeDelta::days(1), "files").is_none(), "the note does not reach there");
        super::write(&keys.note_path(), &signed(&note, &signing(2))).unwrap();
        assert_eq!(bench.keys(&vkey).state(), KeyState::Unknown);
    }
}
