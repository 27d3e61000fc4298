//! A key of the transit engine of Vault or OpenBao: `encrypt`, `decrypt`, `rewrap`, `rotate`, `config`, `trim`.
//!
//! Ciphertexts are `vault:v<n>:…`; what wraps is named `vault:<mount>/<key>:<n>`. No `associated_data` is given, since
//! `rewrap` refuses what was made with it: what is wrapped says itself whose it is.
//!
//! Destroying a version is raising `min_decryption_version` and then `trim`, which deletes all versions before
//! `min_available_version` for good. Both may be kept from the control plane's role: then they are the operator's.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use tokio::sync::Mutex;
use url::Url;
use zeroize::{Zeroize, Zeroizing};

use super::kek::{Before, Kek, KekError, Rotation, Wrapped};
use crate::config::{VaultAuth, VaultKey};
use crate::model::{OrgName, causes};
use crate::payload::Epoch;

const TIMEOUT: Duration = Duration::from_secs(5);
/// Where a pod's own token lies.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// A KEK in the transit engine of Vault or OpenBao.
pub(super) struct VaultKek {
    client: Client,
    url: Url,
    mount: String,
    key: String,
    auth: VaultAuth,
    namespace: Option<String>,
    /// The token that was got by logging in.
    token: Mutex<Option<Zeroizing<String>>>,
}

impl fmt::Debug for VaultKek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VaultKek").field("url", &self.url.as_str()).field("key", &self.key).finish_non_exhaustive()
    }
}

impl VaultKek {
    pub(super) fn new(settings: &VaultKey) -> Result<Self, KekError> {
        let unusable = |e: &dyn fmt::Display| KekError::Unusable(format!("payload_keys.vault: {e}"));
        let mut client = Client::builder().timeout(TIMEOUT).redirect(reqwest::redirect::Policy::none());
        if let Some(file) = &settings.ca_file {
            let pem = crate::telemetry::collector::authorities(file).map_err(|e| unusable(&e))?;
            let authorities = reqwest::Certificate::from_pem_bundle(&pem).map_err(|e| unusable(&e))?;
            client = client.tls_certs_only(authorities);
        }
        Ok(Self {
            client: client.build().map_err(|e| unusable(&e))?,
            url: (*settings.url).clone(),
            mount: settings.mount.trim_matches('/').to_owned(),
            key: settings.key.clone(),
            auth: settings.auth.clone(),
            namespace: settings.namespace.clone(),
            token: Mutex::new(None),
        })
    }

    fn name(&self, version: u64) -> String {
        format!("vault:{}/{}:{version}", self.mount, self.key)
    }

    fn at(&self, path: &str) -> Url {
        let mut url = self.url.clone();
        let base = url.path().trim_end_matches('/').to_owned();
        url.set_path(&format!("{base}/v1/{path}"));
        url
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: Option<Value>,
    ) -> Result<Value, Failed> {
        let mut request = self.client.request(method, self.at(path)).header("X-Vault-Request", "true");
        if let Some(namespace) = &self.namespace {
            request = request.header("X-Vault-Namespace", namespace);
        }
        if let Some(token) = token {
            request = request.header("X-Vault-Token", token);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let away = |e: reqwest::Error| Failed::Away(causes(&e.without_url()));
        let answer = request.send().await.map_err(away)?;
        let status = answer.status();
        let bytes = Zeroizing::new(answer.bytes().await.map_err(away)?.to_vec());
        let value: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        if status.is_success() {
            return Ok(value);
        }
        let errors = value.get("errors").and_then(Value::as_array).cloned().unwrap_or_default();
        let errors: Vec<_> =
            errors.iter().filter_map(Value::as_str).map(|e| e.chars().take(200).collect::<String>()).collect();
        let why = format!("{status} {}", errors.join("; "));
        Err(match status {
            StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => Failed::Denied(why),
            StatusCode::BAD_REQUEST => Failed::Refused(why),
            _ => Failed::Away(why),
        })
    }

    /// Logs in, unless the token is given.
    async fn login(&self) -> Result<Zeroizing<String>, KekError> {
        if let Some(token) = &self.auth.token {
            return Ok(Zeroizing::new(token.expose().to_owned()));
        }
        let read = |path: PathBuf| {
            let text = std::fs::read_to_string(&path);
            let text = text.map_err(|e| KekError::Unavailable(format!("{}: {e}", path.display())))?;
            Ok::<_, KekError>(Zeroizing::new(text.trim().to_owned()))
        };
        if let Some(path) = &self.auth.token_file {
            return read(path.clone());
        }
        let (path, body) = match (&self.auth.role_id, &self.auth.secret_id, &self.auth.kubernetes_role) {
            (Some(role), Some(secret), _) => {
                ("auth/approle/login", json!({ "role_id": role, "secret_id": secret.expose() }))
            }
            (.., Some(role)) => {
                let jwt = read(PathBuf::from(SERVICE_ACCOUNT))?;
                ("auth/kubernetes/login", json!({ "role": role, "jwt": jwt.as_str() }))
            }
            _ => return Err(KekError::Unusable("payload_keys.vault.auth names no way to log in".to_owned())),
        };
        let answer = self.send(Method::POST, path, None, Some(body)).await.map_err(|e| e.into_error("login"))?;
        let token = answer.pointer("/auth/client_token").and_then(Value::as_str);
        token
            .map(|token| Zeroizing::new(token.to_owned()))
            .ok_or_else(|| KekError::Unavailable("login gave no token".to_owned()))
    }

    /// Asks under the token that is held, and once more under a new one where that is not taken any more.
    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value, KekError> {
        let (mut held, mut is_fresh) = (self.token.lock().await.clone(), false);
        loop {
            let token = match held.take() {
                Some(token) => token,
                None => {
                    is_fresh = true;
                    let token = self.login().await?;
                    *self.token.lock().await = Some(token.clone());
                    token
                }
            };
            match self.send(method.clone(), path, Some(&token), body.clone()).await {
                Ok(answer) => return Ok(answer),
                // A token that expired is refused like one that lacks a right.
                Err(Failed::Denied(_)) if !is_fresh => {}
                Err(e) => return Err(e.into_error(path)),
            }
        }
    }

    async fn transit(&self, action: &str, body: Value) -> Result<Value, KekError> {
        self.ask(Method::POST, &format!("{}/{action}/{}", self.mount, self.key), Some(body)).await
    }

    fn wrapped(&self, answer: &Value) -> Result<Wrapped, KekError> {
        let fault = || KekError::Unavailable("the answer holds no ciphertext".to_owned());
        let ciphertext = answer.pointer("/data/ciphertext").and_then(Value::as_str).ok_or_else(fault)?;
        let version = ciphertext.strip_prefix("vault:v").and_then(|rest| rest.split(':').next()?.parse().ok());
        Ok(Wrapped { kek: self.name(version.ok_or_else(fault)?), bytes: ciphertext.as_bytes().to_vec() })
    }

    fn ciphertext(&self, wrapped: &Wrapped) -> Result<String, KekError> {
        let ours = wrapped.kek.starts_with(&format!("vault:{}/{}:", self.mount, self.key));
        let text = String::from_utf8(wrapped.bytes.clone()).ok().filter(|_| ours);
        text.ok_or_else(|| KekError::Refused(format!("it was wrapped by {}, which is another key", wrapped.kek)))
    }

    async fn latest(&self) -> Result<u64, KekError> {
        let answer = self.ask(Method::GET, &format!("{}/keys/{}", self.mount, self.key), None).await?;
        let version = answer.pointer("/data/latest_version").and_then(Value::as_u64);
        version.ok_or_else(|| KekError::Unavailable("the answer holds no latest_version".to_owned()))
    }
}

enum Failed {
    Away(String),
    Denied(String),
    Refused(String),
}

impl Failed {
    fn into_error(self, what: &str) -> KekError {
        match self {
            Self::Away(why) | Self::Denied(why) => KekError::Unavailable(format!("Vault, {what}: {why}")),
            Self::Refused(why) => KekError::Refused(format!("Vault, {what}: {why}")),
        }
    }
}

#[async_trait]
impl Kek for VaultKek {
    fn kind(&self) -> &'static str {
        "vault"
    }

    async fn current(&self) -> Result<String, KekError> {
        self.latest().await.map(|version| self.name(version))
    }

    async fn wrap(&self, _: &OrgName, _: Epoch, plain: &[u8]) -> Result<Wrapped, KekError> {
        let mut text = BASE64.encode(plain);
        let answer = self.transit("encrypt", json!({ "plaintext": text })).await;
        text.zeroize();
        self.wrapped(&answer?)
    }

    async fn unwrap(&self, _: &OrgName, _: Epoch, wrapped: &Wrapped) -> Result<Zeroizing<Vec<u8>>, KekError> {
        let answer = self.transit("decrypt", json!({ "ciphertext": self.ciphertext(wrapped)? })).await?;
        let plain = answer.pointer("/data/plaintext").and_then(Value::as_str).and_then(|text| BASE64.decode(text).ok());
        plain.map(Zeroizing::new).ok_or_else(|| KekError::Unavailable("the answer holds no plaintext".to_owned()))
    }

    async fn rewrap(&self, _: &OrgName, _: Epoch, wrapped: &Wrapped) -> Result<Wrapped, KekError> {
        let answer = self.transit("rewrap", json!({ "ciphertext": self.ciphertext(wrapped)? })).await?;
        self.wrapped(&answer)
    }

    async fn rotate(&self) -> Result<Rotation, KekError> {
        self.ask(Method::POST, &format!("{}/keys/{}/rotate", self.mount, self.key), None).await?;
        Ok(Rotation { now: self.current().await?, before: Before::Older })
    }

    async fn destroy_older(&self, now: &str) -> Result<Vec<String>, KekError> {
        let keys = format!("{}/keys/{}", self.mount, self.key);
        let version: Option<u64> = now.rsplit(':').next().and_then(|version| version.parse().ok());
        let version = version.ok_or_else(|| KekError::Unusable(format!("{now} is no version")))?;
        let answer = self.ask(Method::GET, &keys, None).await?;
        let lowest = answer.pointer("/data/min_available_version").and_then(Value::as_u64).unwrap_or(0).max(1);
        let least = json!({ "min_decryption_version": version, "min_encryption_version": version });
        self.ask(Method::POST, &format!("{keys}/config"), Some(least)).await?;
        self.ask(Method::POST, &format!("{keys}/trim"), Some(json!({ "min_available_version": version }))).await?;
        Ok((lowest..version).map(|version| self.name(version)).collect())
    }
}
