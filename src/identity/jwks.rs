//! The public keys of an issuer (RFC 7517), fetched and kept.
//!
//! * Keys are fetched when the program starts, again once they are older than their lifetime, and when a token names a
//!   key that is not known. The last kind anyone can cause, so there is a least interval between two fetches.
//! * A look-up reads a snapshot and does not wait. Only one that needs a key that is not there waits for a fetch, and
//!   one fetch serves all who wait.
//! * While the issuer is away the keys that were fetched last stay in use. Before the first ones are there, a fetch is
//!   tried each second.
//! * An answer is read up to a bound, redirects are not followed, and only keys that can verify a signature count: no
//!   shared secrets, none that is for encryption, no RSA key under 2,048 bits.
//!
//! A *generation* is a number that changes when the set of keys does, and only then.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::Instant;
use url::Url;

/// How long a fetch may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The largest answer, and the most keys, that are looked at.
const MAX_BODY: usize = 256 << 10;
const MAX_KEYS: usize = 64;

/// How long to wait between two fetches as long as there are no keys at all.
const FIRST_FETCH_INTERVAL: Duration = Duration::from_secs(1);

/// The sizes of an RSA key's modulus that are taken, in bytes: 2,048 to 8,192 bits.
const RSA_BYTES: std::ops::RangeInclusive<usize> = 256..=1024;

/// The client that keys are fetched with: no redirects, an answer within seconds.
///
/// # Errors
/// When TLS cannot be set up.
pub fn client() -> Result<reqwest::Client, reqwest::Error> {
    reqwest::Client::builder().timeout(TIMEOUT).redirect(reqwest::redirect::Policy::none()).build()
}

/// Why there is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoKey {
    /// The issuer has no such key.
    Unknown,
    /// No keys could be fetched yet.
    Unavailable,
}

/// A key that verifies signatures.
pub(super) struct Key {
    id: Option<String>,
    family: Family,
    /// The one algorithm that the issuer means it for, if it says so.
    algorithm: Option<Algorithm>,
    key: DecodingKey,
}

/// Which algorithms a key can be used with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Rsa,
    P256,
    P384,
    Ed25519,
}

impl Key {
    /// What the signature is verified with.
    pub(super) fn decoding(&self) -> &DecodingKey {
        &self.key
    }

    fn fits(&self, algorithm: Algorithm) -> bool {
        let family = match algorithm {
            Algorithm::RS256 | Algorithm::RS384 | Algorithm::RS512 => Family::Rsa,
            Algorithm::PS256 | Algorithm::PS384 | Algorithm::PS512 => Family::Rsa,
            Algorithm::ES256 => Family::P256,
            Algorithm::ES384 => Family::P384,
            Algorithm::EdDSA => Family::Ed25519,
            _ => return false,
        };
        self.family == family && self.algorithm.is_none_or(|only| only == algorithm)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("id", &self.id).field("family", &self.family).finish_non_exhaustive()
    }
}

/// The keys of one fetch.
#[derive(Debug, Default)]
struct Keys {
    generation: u64,
    /// What was fetched; `None` before the first fetch that succeeded.
    document: Option<blake3::Hash>,
    keys: Vec<Arc<Key>>,
    fetched: Option<Instant>,
}

impl Keys {
    /// The key that a token names, or, if it names none, the only one that its algorithm fits.
    fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Option<Arc<Key>> {
        let mut fitting = self.keys.iter().filter(|key| key.fits(algorithm));
        match id {
            Some(_) => fitting.find(|key| key.id.as_deref() == id).cloned(),
            None => match (fitting.next(), fitting.next()) {
                (Some(only), None) => Some(Arc::clone(only)),
                _ => None,
            },
        }
    }
}

/// The public keys of an issuer.
#[derive(Debug)]
pub(super) struct Jwks {
    url: Url,
    client: reqwest::Client,
    lifetime: Duration,
    min_interval: Duration,
    keys: RwLock<Arc<Keys>>,
    /// When a fetch was begun last. Held while one is under way.
    attempted: Mutex<Option<Instant>>,
}

impl Jwks {
    /// The keys at `url`, and a first fetch of them under way.
    pub(super) fn start(url: Url, client: reqwest::Client, lifetime: Duration, min_interval: Duration) -> Arc<Self> {
        let jwks = Arc::new(Self {
            url,
            client,
            lifetime,
            min_interval,
            keys: RwLock::default(),
            attempted: Mutex::default(),
        });
        jwks.fetch_soon();
        jwks
    }

    /// The generation of the keys at hand. Where they are too old, they are fetched again in the background.
    pub(super) fn generation(self: &Arc<Self>) -> u64 {
        let keys = self.snapshot();
        if keys.fetched.is_some_and(|at| at.elapsed() >= self.lifetime) {
            self.fetch_soon();
        }
        keys.generation
    }

    /// The key that a token names, or, if it names none, the only one that its algorithm fits; and the generation it is
    /// of.
    pub(super) async fn find(
        self: &Arc<Self>,
        id: Option<&str>,
        algorithm: Algorithm,
    ) -> Result<(Arc<Key>, u64), NoKey> {
        let keys = self.snapshot();
        if let Some(key) = keys.find(id, algorithm) {
            return Ok((key, keys.generation));
        }
        // On a task of its own: a client that goes away must not end the fetch that others wait for.
        let (jwks, seen) = (Arc::clone(self), keys.generation);
        let fetch = tokio::spawn(async move {
            let mut attempted = jwks.attempted.lock().await;
            // The previous holder of the lock may have fetched what is looked for.
            if jwks.snapshot().generation == seen {
                jwks.fetch(&mut attempted).await;
            }
        });
        fetch.await.map_err(|_| NoKey::Unavailable)?;
        let keys = self.snapshot();
        let none = if keys.document.is_some() { NoKey::Unknown } else { NoKey::Unavailable };
        keys.find(id, algorithm).map(|key| (key, keys.generation)).ok_or(none)
    }

    /// Fetches in the background, unless a fetch is under way or was a moment ago.
    fn fetch_soon(self: &Arc<Self>) {
        let due = self.attempted.try_lock().is_ok_and(|attempted| !self.is_recent(*attempted));
        if due {
            let jwks = Arc::clone(self);
            tokio::spawn(async move {
                if let Ok(mut attempted) = jwks.attempted.try_lock() {
                    jwks.fetch(&mut attempted).await;
                }
            });
        }
    }

    /// Whether an attempt is too recent for another.
    fn is_recent(&self, attempted: Option<Instant>) -> bool {
        let known = self.snapshot().document.is_some();
        let wait = if known { self.min_interval } else { FIRST_FETCH_INTERVAL.min(self.min_interval) };
        attempted.is_some_and(|at| at.elapsed() < wait)
    }

    /// Fetches, unless the last attempt is too recent. A failure leaves the keys as they are.
    async fn fetch(&self, attempted: &mut MutexGuard<'_, Option<Instant>>) {
        if self.is_recent(**attempted) {
            return;
        }
        let keys = self.snapshot();
        **attempted = Some(Instant::now());
        let host = self.url.host_str().unwrap_or_default();
        match self.download().await {
            Err(why) => tracing::warn!(host, why, "the keys of an issuer cannot be fetched; those at hand stay in use"),
            Ok(document) => {
                let hash = blake3::hash(&document);
                let fetched = Some(Instant::now());
                let next = if keys.document == Some(hash) {
                    Keys { generation: keys.generation, document: keys.document, keys: keys.keys.clone(), fetched }
                } else {
                    match parse(&document) {
                        Err(why) => {
                            tracing::warn!(
                                host,
                                why,
                                "the keys of an issuer cannot be used; those at hand stay in use"
                            );
                            return;
                        }
                        Ok(found) => {
                            tracing::info!(host, keys = found.len(), "fetched the keys of an issuer");
                            Keys { generation: keys.generation + 1, document: Some(hash), keys: found, fetched }
                        }
                    }
                };
                *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
            }
        }
    }

    fn snapshot(&self) -> Arc<Keys> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The document at the URL, or why it could not be had, in words that hold nothing of the answer.
    async fn download(&self) -> Result<Vec<u8>, &'static str> {
        let request = self.client.get(self.url.clone()).header(http::header::ACCEPT, "application/json");
        let mut response = request
            .send()
            .await
            .map_err(|error| if error.is_timeout() { "no answer in time" } else { "no connection" })?;
        if response.status() != http::StatusCode::OK {
            return Err("the answer is not 200");
        }
        let mut document = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|_| "the answer broke off")? {
            if document.len() + chunk.len() > MAX_BODY {
                return Err("the answer is larger than 256 KiB");
            }
            document.extend_from_slice(&chunk);
        }
        Ok(document)
    }
}

/// The usable keys of a key set.
fn parse(document: &[u8]) -> Result<Vec<Arc<Key>>, &'static str> {
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<serde_json::Value>,
    }
    let set: Set = serde_json::from_slice(document).map_err(|_| "it is no JSON Web Key Set")?;
    let keys: Vec<_> = set.keys.into_iter().take(MAX_KEYS).filter_map(usable).map(Arc::new).collect();
    if keys.is_empty() { Err("it holds no key that verifies signatures") } else { Ok(keys) }
}

/// The key, if it can be used to verify a signature that it alone can have made.
fn usable(jwk: serde_json::Value) -> Option<Key> {
    let jwk: Jwk = serde_json::from_value(jwk).ok()?;
    if jwk.common.public_key_use.as_ref().is_some_and(|purpose| *purpose != PublicKeyUse::Signature) {
        return None;
    }
    let family = match &jwk.algorithm {
        AlgorithmParameters::RSA(rsa) => {
            let modulus = URL_SAFE_NO_PAD.decode(&rsa.n).ok()?;
            let leading_zeros = modulus.iter().take_while(|byte| **byte == 0).count();
            RSA_BYTES.contains(&(modulus.len() - leading_zeros)).then_some(Family::Rsa)?
        }
        AlgorithmParameters::EllipticCurve(ec) => match ec.curve {
            EllipticCurve::P256 => Family::P256,
            EllipticCurve::P384 => Family::P384,
            _ => return None,
        },
        AlgorithmParameters::OctetKeyPair(okp) if okp.curve == EllipticCurve::Ed25519 => Family::Ed25519,
        _ => return None,
    };
    let algorithm = match jwk.common.key_algorithm {
        None => None,
        // A key that is meant for an algorithm that is not known here is not used with another.
        Some(algorithm) => Some(algorithm.to_string().parse().ok()?),
    };
    let key = DecodingKey::from_jwk(&jwk).ok()?;
    Some(Key { id: jwk.common.key_id, family, algorithm, key })
}
