//! A key of AWS KMS: JSON over HTTPS, signed with SigV4, with the org and the epoch as encryption context.
//!
//! KMS keeps the material of every automatic rotation, so those destroy nothing. A rotation here makes a new key behind
//! the alias, wraps all living keys by it, and schedules the old key's deletion, which takes seven days at least: what
//! is destroyed is so when KMS has done that. Without an alias there is nothing to put a new key behind, and rotating
//! is the operator's.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use object_store::aws::{AmazonS3Builder, AwsAuthorizer, AwsCredentialProvider};
use object_store::client::{HttpRequest, HttpRequestBody};
use reqwest::Client;
use serde_json::{Value, json};
use url::Url;
use zeroize::{Zeroize, Zeroizing};

use super::kek::{Before, Kek, KekError, Rotation, Wrapped};
use crate::config::AwsKmsKey;
use crate::model::{OrgName, causes};
use crate::payload::Epoch;

const TIMEOUT: Duration = Duration::from_secs(10);
/// How long KMS keeps a key that is to be deleted: the least that it takes.
const PENDING_DAYS: u32 = 7;

/// A KEK in AWS KMS.
pub(super) struct AwsKmsKek {
    client: Client,
    credentials: AwsCredentialProvider,
    endpoint: Url,
    region: String,
    key_id: String,
}

impl fmt::Debug for AwsKmsKek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AwsKmsKek").field("key_id", &self.key_id).field("region", &self.region).finish_non_exhaustive()
    }
}

impl AwsKmsKek {
    pub(super) fn new(settings: &AwsKmsKey) -> Result<Self, KekError> {
        let unusable = |e: &dyn fmt::Display| KekError::Unusable(format!("payload_keys.aws_kms: {e}"));
        // The client for S3 knows where credentials come from; nothing is asked of S3.
        let s3 = AmazonS3Builder::from_env().with_bucket_name("unused").with_region(&settings.region).build();
        let endpoint = match &settings.endpoint {
            Some(endpoint) => Url::clone(endpoint),
            None => Url::parse(&format!("https://kms.{}.amazonaws.com/", settings.region)).map_err(|e| unusable(&e))?,
        };
        Ok(Self {
            client: Client::builder()
                .timeout(TIMEOUT)
                .redirect(reqwest::redirect::Policy::none())
                .build()
                .map_err(|e| unusable(&e))?,
            credentials: std::sync::Arc::clone(s3.map_err(|e| unusable(&e))?.credentials()),
            endpoint,
            region: settings.region.clone(),
            key_id: settings.key_id.clone(),
        })
    }

    async fn ask(&self, action: &str, body: &Value) -> Result<Value, KekError> {
        let away = |e: &dyn fmt::Display| KekError::Unavailable(format!("AWS KMS, {action}: {e}"));
        let credential = self.credentials.get_credential().await.map_err(|e| away(&e))?;
        let mut bytes = body.to_string().into_bytes();
        let mut request = HttpRequest::new(HttpRequestBody::from(bytes.clone()));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = self.endpoint.as_str().parse().map_err(|e| away(&e))?;
        let headers = request.headers_mut();
        let target = format!("TrentService.{action}").parse().map_err(|e| away(&e))?;
        headers.insert("x-amz-target", target);
        headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/x-amz-json-1.1"));
        AwsAuthorizer::new(&credential, "kms", &self.region).authorize(&mut request, None);
        let signed = request.headers().clone();
        let sent = self.client.post(self.endpoint.clone()).headers(signed).body(bytes.clone()).send().await;
        bytes.zeroize();
        let answer = sent.map_err(|e| away(&causes(&e.without_url())))?;
        let status = answer.status();
        let bytes = Zeroizing::new(answer.bytes().await.map_err(|e| away(&causes(&e.without_url())))?.to_vec());
        let value: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        if status.is_success() {
            return Ok(value);
        }
        let kind = value.get("__type").and_then(Value::as_str).unwrap_or_default();
        let kind: String = kind.rsplit('#').next().unwrap_or_default().chars().take(100).collect();
        let is_refused =
            ["InvalidCiphertextException", "IncorrectKeyException", "NotFoundException", "KMSInvalidStateException"];
        let why = format!("AWS KMS, {action}: {status} {kind}");
        Err(if is_refused.contains(&kind.as_str()) && ["Decrypt", "ReEncrypt"].contains(&action) {
            KekError::Refused(why)
        } else {
            KekError::Unavailable(why)
        })
    }

    async fn described(&self, key: &str) -> Result<String, KekError> {
        let answer = self.ask("DescribeKey", &json!({ "KeyId": key })).await?;
        text(&answer, "/KeyMetadata/Arn")
    }
}

fn text(answer: &Value, at: &str) -> Result<String, KekError> {
    let found = answer.pointer(at).and_then(Value::as_str).map(str::to_owned);
    found.ok_or_else(|| KekError::Unavailable(format!("AWS KMS: the answer has no {at}")))
}

fn blob(answer: &Value, at: &str) -> Result<Vec<u8>, KekError> {
    let text = Zeroizing::new(text(answer, at)?);
    BASE64.decode(text.as_bytes()).map_err(|e| KekError::Unavailable(format!("AWS KMS: {at}: {e}")))
}

fn name(arn: &str) -> String {
    format!("aws_kms:{arn}")
}

fn arn(kek: &str) -> Result<&str, KekError> {
    kek.strip_prefix("aws_kms:")
        .ok_or_else(|| KekError::Refused(format!("it was wrapped by {kek}, which is no key of KMS")))
}

fn context(org: &OrgName, epoch: Epoch) -> Value {
    json!({ "org": org, "epoch": epoch.to_string() })
}

#[async_trait]
impl Kek for AwsKmsKek {
    fn kind(&self) -> &'static str {
        "aws_kms"
    }

    async fn current(&self) -> Result<String, KekError> {
        self.described(&self.key_id).await.map(|arn| name(&arn))
    }

    async fn wrap(&self, org: &OrgName, epoch: Epoch, plain: &[u8]) -> Result<Wrapped, KekError> {
        let plain = Zeroizing::new(BASE64.encode(plain));
        let body = json!({ "KeyId": self.key_id, "Plaintext": *plain, "EncryptionContext": context(org, epoch) });
        let answer = self.ask("Encrypt", &body).await?;
        // The alias may have come to stand for another key since: what wrapped says so itself.
        Ok(Wrapped { kek: name(&text(&answer, "/KeyId")?), bytes: blob(&answer, "/CiphertextBlob")? })
    }

    async fn unwrap(&self, org: &OrgName, epoch: Epoch, wrapped: &Wrapped) -> Result<Zeroizing<Vec<u8>>, KekError> {
        let body = json!({
            "KeyId": arn(&wrapped.kek)?,
            "CiphertextBlob": BASE64.encode(&wrapped.bytes),
            "EncryptionContext": context(org, epoch),
        });
        let answer = self.ask("Decrypt", &body).await?;
        blob(&answer, "/Plaintext").map(Zeroizing::new)
    }

    async fn rewrap(&self, org: &OrgName, epoch: Epoch, wrapped: &Wrapped) -> Result<Wrapped, KekError> {
        let body = json!({
            "SourceKeyId": arn(&wrapped.kek)?,
            "CiphertextBlob": BASE64.encode(&wrapped.bytes),
            "SourceEncryptionContext": context(org, epoch),
            "DestinationKeyId": self.key_id,
            "DestinationEncryptionContext": context(org, epoch),
        });
        let answer = self.ask("ReEncrypt", &body).await?;
        Ok(Wrapped { kek: name(&text(&answer, "/KeyId")?), bytes: blob(&answer, "/CiphertextBlob")? })
    }

    async fn rotate(&self) -> Result<Rotation, KekError> {
        if !self.key_id.starts_with("alias/") && !self.key_id.contains(":alias/") {
            let advice = "payload_keys.aws_kms.key_id is no alias, so no new key can be put behind it";
            return Err(KekError::Unusable(advice.to_owned()));
        }
        let made = self.ask("CreateKey", &json!({ "Description": "wraps the keys of sealed payloads" })).await?;
        let key = text(&made, "/KeyMetadata/KeyId")?;
        let alias =
            self.key_id.rsplit_once(":alias/").map_or(self.key_id.clone(), |(_, alias)| format!("alias/{alias}"));
        self.ask("UpdateAlias", &json!({ "AliasName": alias, "TargetKeyId": key })).await?;
        Ok(Rotation { now: name(&text(&made, "/KeyMetadata/Arn")?), before: Before::Named })
    }

    async fn destroy_older(&self, now: &str) -> Result<Vec<String>, KekError> {
        Err(KekError::Unusable(format!("KMS knows no versions before {now}; each old key is destroyed by its name")))
    }

    async fn destroy(&self, kek: &str) -> Result<(), KekError> {
        // A key is deleted within its own account alone, so its id names it; some servers of the protocol know it by
        // nothing else here.
        let arn = arn(kek)?;
        let id = arn.rsplit_once(":key/").map_or(arn, |(_, id)| id);
        let body = json!({ "KeyId": id, "PendingWindowInDays": PENDING_DAYS });
        self.ask("ScheduleKeyDeletion", &body).await.map(drop)
    }
}
