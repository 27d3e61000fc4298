//! OpenID Connect: the authorization code flow with PKCE (RFC 7636), over the verifier of JSON Web Tokens that is
//! there.
//!
//! What is to be known of the provider is at `<issuer>/.well-known/openid-configuration`: read when someone logs in,
//! kept for an hour, and the last answer stays in use while the provider is away. What comes back with the code must be
//! of the provider (`iss`, RFC 9207). The ID token is checked as any token is (signature, `iss`, `aud`, `exp`), and
//! then its `nonce`, `azp`, and, where a fresh login was asked for, `auth_time`. `email` counts only with
//! `email_verified`. Nothing that the provider sends is shown or logged but error codes.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use rand::Rng;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::sync::Mutex;
use tokio::time::Instant;
use url::Url;
use url::form_urlencoded::{Serializer, byte_serialize};

use crate::config::{self, Endpoint, JwtKind, Period};
use crate::identity::{Caller, Claims, IdentityError, Issuer, Unidentified, client};

/// How long what a provider says of itself is used.
const LIFETIME: Duration = Duration::from_secs(3_600);
/// How old a login at the provider may be, in seconds: a year.
const MAX_AGE: &str = "31536000";
/// The largest answer that is looked at.
const MAX_BODY: usize = 256 << 10;
/// How long keys are used, and how long to wait between two fetches because of a key that is not known.
const KEYS_LIFETIME: Period = Period::new(Duration::from_secs(600));
const KEYS_MIN_INTERVAL: Period = Period::new(Duration::from_secs(5));

/// A login that has begun, as its cookie holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Login {
    /// What comes back with the code.
    pub(super) state: String,
    /// What stands in the ID token.
    nonce: String,
    /// The PKCE verifier.
    verifier: String,
    /// The path to go to afterwards.
    pub(super) return_to: String,
    /// How the provider is to ask.
    pub(super) prompt: Prompt,
    /// When it began, in seconds since the epoch.
    pub(super) begun: i64,
}

/// How the provider is to ask people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Prompt {
    /// As it likes.
    Any,
    /// Not at all: a person who is not logged in there comes back with an error.
    None,
    /// In any case, even if someone is logged in there.
    Login,
}

/// Who logged in.
#[derive(Debug)]
pub(super) struct Person {
    pub(super) caller: Caller,
    pub(super) claims: Claims,
    pub(super) subject: String,
    pub(super) auth_time: Option<i64>,
}

/// Why a login failed; each with the code that the page gets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum OidcError {
    /// The provider does not answer, or not as one does.
    #[error("the provider {0}")]
    Provider(&'static str),
    /// What came back is of another provider, or of no login that began here.
    #[error("what came back {0}")]
    Mismatch(&'static str),
    /// The provider answered with an error of its own.
    #[error("the provider answered `{0}`")]
    Refused(String),
    /// The ID token is no good.
    #[error("the ID token: {0}")]
    Token(&'static str),
}

impl OidcError {
    /// A stable word for it.
    pub(super) const fn code(&self) -> &'static str {
        match self {
            Self::Provider(_) => "provider_unavailable",
            Self::Mismatch(_) => "login_mismatch",
            Self::Refused(_) => "login_refused",
            Self::Token(_) => "login_invalid",
        }
    }

    /// Whether the provider would have had to ask, and was asked not to.
    pub(super) fn wants_to_ask(&self) -> bool {
        let asks = ["login_required", "interaction_required", "consent_required", "account_selection_required"];
        matches!(self, Self::Refused(code) if asks.contains(&code.as_str()))
    }
}

/// What comes back from a provider.
#[derive(Debug, Default)]
pub(super) struct Returned {
    pub(super) code: Option<String>,
    pub(super) state: Option<String>,
    pub(super) issuer: Option<String>,
    pub(super) error: Option<String>,
}

impl Returned {
    /// Reads a query. What stands twice counts as not there.
    pub(super) fn parse(query: &str) -> Self {
        let mut returned = Self::default();
        let mut seen = std::collections::HashSet::new();
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            let place = match &*name {
                "code" => &mut returned.code,
                "state" => &mut returned.state,
                "iss" => &mut returned.issuer,
                "error" => &mut returned.error,
                _ => continue,
            };
            *place = seen.insert(name.clone().into_owned()).then(|| value.into_owned());
        }
        returned
    }
}

/// What a provider says of itself.
#[derive(Debug, Deserialize)]
struct Document {
    issuer: String,
    authorization_endpoint: Url,
    token_endpoint: Url,
    jwks_uri: Url,
    #[serde(default)]
    token_endpoint_auth_methods_supported: Option<Vec<String>>,
    #[serde(default)]
    authorization_response_iss_parameter_supported: bool,
}

/// What is known of the provider.
#[derive(Debug)]
struct Known {
    document: Document,
    issuer: Issuer,
    read: Instant,
}

/// The provider.
#[derive(Debug)]
pub(super) struct Provider {
    settings: config::Oidc,
    client: reqwest::Client,
    /// Held while it is read.
    known: Mutex<Option<Arc<Known>>>,
}

impl Provider {
    /// The provider of these settings; nothing is asked of it yet.
    pub(super) fn new(settings: &config::Oidc) -> Result<Self, IdentityError> {
        Ok(Self { settings: settings.clone(), client: client()?, known: Mutex::default() })
    }

    /// The issuer of its ID tokens.
    pub(super) fn issuer(&self) -> &str {
        &self.settings.issuer
    }

    /// Begins a login: what its cookie is to hold, and where the browser is to go.
    pub(super) async fn begin(
        &self,
        redirect_uri: &str,
        return_to: String,
        prompt: Prompt,
        now: i64,
    ) -> Result<(Login, Url), OidcError> {
        let known = self.known().await?;
        let login = Login { state: random(), nonce: random(), verifier: random(), return_to, prompt, begun: now };
        let challenge = BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(login.verifier.as_bytes()));
        let mut url = known.document.authorization_endpoint.clone();
        {
            let mut query = url.query_pairs_mut();
            query
                .append_pair("response_type", "code")
                .append_pair("response_mode", "query")
                .append_pair("client_id", &self.settings.client_id)
                .append_pair("redirect_uri", redirect_uri)
                .append_pair("scope", &self.settings.scopes.join(" "))
                .append_pair("state", &login.state)
                .append_pair("nonce", &login.nonce)
                .append_pair("code_challenge", &challenge)
                .append_pair("code_challenge_method", "S256");
            // By this the provider tells when they logged in. For how long that counts is its own affair.
            query.append_pair("max_age", if prompt == Prompt::Login { "0" } else { MAX_AGE });
            match prompt {
                Prompt::Any => {}
                Prompt::None => {
                    query.append_pair("prompt", "none");
                }
                Prompt::Login => {
                    query.append_pair("prompt", "login");
                }
            }
        }
        Ok((login, url))
    }

    /// Ends a login with what came back: who logged in.
    pub(super) async fn finish(
        &self,
        login: &Login,
        returned: &Returned,
        redirect_uri: &str,
        now: i64,
    ) -> Result<Person, OidcError> {
        let known = self.known().await?;
        match &returned.issuer {
            Some(issuer) if *issuer != self.settings.issuer => {
                return Err(OidcError::Mismatch("names another provider"));
            }
            None if known.document.authorization_response_iss_parameter_supported => {
                return Err(OidcError::Mismatch("does not name its provider, which says that it does"));
            }
            _ => {}
        }
        if let Some(error) = &returned.error {
            // Codes of the standards alone: anyone can make such a link.
            let sane = error.len() <= 64 && error.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
            return Err(OidcError::Refused(if sane { error.clone() } else { "unknown_error".to_owned() }));
        }
        let code = returned.code.as_deref().ok_or(OidcError::Mismatch("has no code"))?;
        let token = self.exchange(&known, code, &login.verifier, redirect_uri).await?;
        let checked = known.issuer.verify(&token, now).await.map_err(|unidentified| match unidentified {
            Unidentified::Unavailable => OidcError::Provider("does not give its keys"),
            Unidentified::Invalid(why) => OidcError::Token(why),
            Unidentified::Missing => OidcError::Token("it is empty"),
        })?;
        self.person(login, checked.claims, &known.issuer)
    }

    fn person(&self, login: &Login, claims: Claims, issuer: &Issuer) -> Result<Person, OidcError> {
        let invalid = OidcError::Token;
        if claims.text("nonce") != Some(&login.nonce) {
            return Err(invalid("it is of another login"));
        }
        let several = matches!(claims.get("aud"), Some(Value::Array(audiences)) if audiences.len() > 1);
        match claims.get("azp") {
            Some(party) if party.as_str() != Some(&self.settings.client_id) => {
                return Err(invalid("it was issued to another client"));
            }
            None if several => return Err(invalid("it is for several, and does not say to whom it was issued")),
            _ => {}
        }
        let subject = claims.text("sub").ok_or(invalid("it has no subject"))?.to_owned();
        let verified = matches!(claims.get("email_verified"), Some(Value::Bool(true)));
        let claims = if verified { claims } else { claims.without("email") };
        if !verified && self.settings.caller_claim == "email" {
            return Err(invalid("the provider has not verified the address"));
        }
        let auth_time = claims.time("auth_time");
        let leeway = i64::try_from(self.settings.leeway.as_duration().as_secs()).unwrap_or(0);
        if login.prompt == Prompt::Login && auth_time.is_none_or(|at| at.saturating_add(leeway) < login.begun) {
            return Err(invalid("they were to log in afresh, and the provider does not say that they did"));
        }
        let caller =
            issuer.caller(&claims).map_err(|_| invalid("it does not name its person as a caller can be named"))?;
        Ok(Person { caller, claims, subject, auth_time })
    }

    /// The ID token for a code.
    async fn exchange(
        &self,
        known: &Known,
        code: &str,
        verifier: &str,
        redirect_uri: &str,
    ) -> Result<String, OidcError> {
        #[derive(Deserialize)]
        struct Tokens {
            id_token: String,
        }
        #[derive(Deserialize)]
        struct Refusal {
            error: String,
        }
        let mut request = self.client.post(known.document.token_endpoint.clone());
        let id = &self.settings.client_id;
        let methods = known.document.token_endpoint_auth_methods_supported.as_deref();
        let takes = |method: &str| methods.is_none_or(|methods| methods.iter().any(|known| known == method));
        let form = {
            let mut form = Serializer::new(String::new());
            form.append_pair("grant_type", "authorization_code")
                .append_pair("code", code)
                .append_pair("redirect_uri", redirect_uri)
                .append_pair("code_verifier", verifier);
            match &self.settings.client_secret {
                None => {
                    form.append_pair("client_id", id);
                }
                Some(secret) if takes("client_secret_basic") => {
                    let encoded = |text: &str| byte_serialize(text.as_bytes()).collect::<String>();
                    let pair = BASE64_STANDARD.encode(format!("{}:{}", encoded(id), encoded(secret.expose())));
                    request = request.header(AUTHORIZATION, format!("Basic {pair}"));
                }
                Some(secret) => {
                    form.append_pair("client_id", id).append_pair("client_secret", secret.expose());
                }
            }
            form.finish()
        };
        let request =
            request.header(ACCEPT, "application/json").header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        let (status, body) = read(request.body(form)).await?;
        if !status.is_success() {
            let refusal = serde_json::from_slice::<Refusal>(&body).map(|refusal| refusal.error).unwrap_or_default();
            let sane = !refusal.is_empty()
                && refusal.len() <= 64
                && refusal.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
            return Err(OidcError::Refused(if sane { refusal } else { format!("status {}", status.as_u16()) }));
        }
        let tokens: Tokens =
            serde_json::from_slice(&body).map_err(|_| OidcError::Provider("gives no ID token for the code"))?;
        Ok(tokens.id_token)
    }

    /// What is known of the provider, read where it is too old.
    async fn known(&self) -> Result<Arc<Known>, OidcError> {
        let mut known = self.known.lock().await;
        if let Some(known) = known.as_ref().filter(|known| known.read.elapsed() < LIFETIME) {
            return Ok(Arc::clone(known));
        }
        let found = self.discover(known.as_deref()).await;
        match found {
            Ok(found) => Ok(Arc::clone(known.insert(found))),
            Err(error) => match known.as_ref() {
                Some(known) => {
                    tracing::warn!(%error, "what the provider says of itself cannot be read again; the last answer stays in use");
                    Ok(Arc::clone(known))
                }
                None => Err(error),
            },
        }
    }

    async fn discover(&self, before: Option<&Known>) -> Result<Arc<Known>, OidcError> {
        let url = format!("{}/.well-known/openid-configuration", self.settings.issuer.trim_end_matches('/'));
        let (status, body) = read(self.client.get(url).header(ACCEPT, "application/json")).await?;
        if !status.is_success() {
            return Err(OidcError::Provider("does not say what there is to know of it: the answer is not 200"));
        }
        let document: Document = serde_json::from_slice(&body)
            .map_err(|_| OidcError::Provider("does not say what there is to know of it: no OpenID configuration"))?;
        if document.issuer != self.settings.issuer {
            return Err(OidcError::Provider("calls itself otherwise than identity.oidc.issuer"));
        }
        let urls = [&document.authorization_endpoint, &document.token_endpoint, &document.jwks_uri];
        if !urls.into_iter().all(|url| Endpoint::from(url.clone()).is_confidential()) {
            return Err(OidcError::Provider("has endpoints that are not https://"));
        }
        // The keys are fetched anew only where they are elsewhere.
        let issuer = match before {
            Some(before) if before.document.jwks_uri == document.jwks_uri => before.issuer.clone(),
            _ => Issuer::new(&self.verification(&document), self.client.clone()),
        };
        Ok(Arc::new(Known { document, issuer, read: Instant::now() }))
    }

    /// How its ID tokens are verified.
    fn verification(&self, document: &Document) -> config::Jwt {
        config::Jwt {
            issuer: self.settings.issuer.clone(),
            audience: self.settings.client_id.clone(),
            jwks_url: document.jwks_uri.clone().into(),
            algorithms: self.settings.algorithms.clone(),
            kind: JwtKind::User,
            caller_claim: self.settings.caller_claim.clone(),
            caller_prefix: self.settings.caller_prefix.clone(),
            groups_claim: "groups".to_owned(),
            leeway: self.settings.leeway,
            jwks_lifetime: KEYS_LIFETIME,
            jwks_min_interval: KEYS_MIN_INTERVAL,
        }
    }
}

/// 256 random bits, as base64url: a state, a nonce or a PKCE verifier.
pub(super) fn random() -> String {
    let mut bytes = [0; 32];
    rand::rng().fill_bytes(&mut bytes);
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

/// An answer, read up to a bound.
async fn read(request: reqwest::RequestBuilder) -> Result<(http::StatusCode, Vec<u8>), OidcError> {
    let away = |error: reqwest::Error| {
        OidcError::Provider(if error.is_timeout() { "does not answer in time" } else { "cannot be reached" })
    };
    let mut response = request.send().await.map_err(away)?;
    let (status, mut body) = (response.status(), Vec::new());
    while let Some(chunk) = response.chunk().await.map_err(away)? {
        if body.len() + chunk.len() > MAX_BODY {
            return Err(OidcError::Provider("answers with more than 256 KiB"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok((status, body))
}
