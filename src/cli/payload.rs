//! `mcpg payload`: sees what was captured of a call, exports many, opens an export offline, makes a tenant's key,
//! rotates the KEK.
//!
//! `view` and `export` ask the control plane, which puts them on the ledger before it opens anything. `open` needs no
//! network: an export holds what the control plane can open of each envelope, and a tenant's key opens the rest.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};
use reqwest::Response;
use serde_json::{Value, json};
use url::Url;
use zeroize::{Zeroize, Zeroizing};

use super::{CliError, http, output};
use crate::config::Secret as Token;
use crate::model::{OrgName, causes};
use crate::payload::{Digest, Envelope, KeyPair, MAX_CAP, Record, Refusal, Secret, Suite};

#[derive(Debug, Subcommand)]
pub(super) enum PayloadCommand {
    /// See what was captured of a call; it is put on the ledger, with the reason.
    View(ViewArgs),
    /// Export what was captured in a time, sealed as it is, with what the control plane opens of it.
    Export(ExportArgs),
    /// Open an export offline, with the tenant's key where it was sealed for that too.
    Open(OpenArgs),
    /// Make a tenant's own key: the private key into a file, the public one, for the configuration, on standard output.
    Keygen(KeygenArgs),
    /// What wraps the keys of payloads.
    Kek {
        #[command(subcommand)]
        command: KekCommand,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum KekCommand {
    /// Rotate the KEK: living keys are wrapped anew, and what wraps none any more is destroyed.
    Rotate(Place),
}

/// Which control plane and org.
#[derive(Debug, Args)]
pub(super) struct Place {
    /// The control plane.
    #[arg(long, env = "MCPG_URL", default_value = "http://127.0.0.1:7843")]
    url: Url,
    /// The org.
    #[arg(long, env = "MCPG_ORG", default_value = "default")]
    org: OrgName,
    /// The API token, or a JSON Web Token.
    #[arg(long, env = "MCPG_TOKEN", hide_env_values = true, value_parser = http::secret)]
    token: Option<Token>,
}

#[derive(Debug, Args)]
pub(super) struct ViewArgs {
    #[command(flatten)]
    place: Place,
    /// The call.
    invocation_id: uuid::Uuid,
    /// Why, for the ledger: 3 to 500 characters.
    #[arg(long)]
    reason: String,
}

#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    #[command(flatten)]
    place: Place,
    /// Calls that began at or after this time (RFC 3339).
    #[arg(long)]
    from: DateTime<Utc>,
    /// Calls that began before this time (RFC 3339).
    #[arg(long)]
    to: DateTime<Utc>,
    /// Why, for the ledger: 3 to 500 characters.
    #[arg(long)]
    reason: String,
    /// The file to write; it must not be there yet.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct OpenArgs {
    /// An export.
    file: PathBuf,
    /// The file of the tenant's private key: 64 hex digits.
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// One call alone.
    #[arg(long)]
    invocation_id: Option<uuid::Uuid>,
}

#[derive(Debug, Args)]
pub(super) struct KeygenArgs {
    /// The file to write the private key to; it must not be there yet.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

pub(super) async fn run(command: PayloadCommand) -> Result<(), CliError> {
    match command {
        PayloadCommand::View(args) => view(&args).await,
        PayloadCommand::Export(args) => export(&args).await,
        PayloadCommand::Open(args) => open(&args),
        PayloadCommand::Keygen(args) => keygen(&args),
        PayloadCommand::Kek { command: KekCommand::Rotate(place) } => rotate(&place).await,
    }
}

impl Place {
    async fn send(&self, request: reqwest::RequestBuilder, url: &Url) -> Result<Response, CliError> {
        let request = match &self.token {
            Some(token) => request.bearer_auth(token.expose()),
            None => request,
        };
        let answer = request.send().await.map_err(|error| http::not_reached(url, &error))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status();
        let problem: Value = answer.json().await.unwrap_or(Value::Null);
        let text = |name: &str| problem.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        Err(CliError::No(format!("{status} {}: {}", text("code"), text("detail"))))
    }

    fn at(&self, segments: &[&str]) -> Result<Url, CliError> {
        let all: Vec<&str> = ["v1", "orgs", self.org.as_str()].into_iter().chain(segments.iter().copied()).collect();
        http::path(&self.url, &all)
    }
}

async fn view(args: &ViewArgs) -> Result<(), CliError> {
    let url = args.place.at(&["invocations", &args.invocation_id.to_string(), "payloads", "view"])?;
    let request = http::client(&url)?.post(url.clone()).json(&json!({ "reason": args.reason }));
    let answer = args.place.send(request, &url).await?;
    let text = answer.text().await.map_err(|error| CliError::could_not("the answer broke off", causes(&error)))?;
    output::line(&text)
}

async fn export(args: &ExportArgs) -> Result<(), CliError> {
    let mut url = args.place.at(&["payloads", "export"])?;
    url.query_pairs_mut()
        .append_pair("from", &args.from.to_rfc3339())
        .append_pair("to", &args.to.to_rfc3339())
        .append_pair("reason", &args.reason);
    let answer = args.place.send(http::client(&url)?.get(url.clone()), &url).await?;
    let bytes = answer.bytes().await.map_err(|error| CliError::could_not("the answer broke off", causes(&error)))?;
    write_new(&args.out, &bytes)
}

async fn rotate(place: &Place) -> Result<(), CliError> {
    let url = place.at(&["payload-keys", "rotate"])?;
    let answer = place.send(http::client(&url)?.post(url.clone()), &url).await?;
    let text = answer.text().await.map_err(|error| CliError::could_not("the answer broke off", causes(&error)))?;
    output::line(&text)
}

/// Writes a file that its owner alone may read, and none that is there.
fn write_new(path: &Path, bytes: &[u8]) -> Result<(), CliError> {
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    })();
    written.map_err(|error| CliError::could_not(format!("{} is not written", path.display()), error))
}

fn keygen(args: &KeygenArgs) -> Result<(), CliError> {
    let key = KeyPair::random(Suite::XWing).map_err(|refusal| CliError::could_not("no key was made", refusal))?;
    let text = Zeroizing::new(format!("{}\n", Digest(*key.seed().expose())));
    write_new(&args.out, text.as_bytes())?;
    output::line(&key.public().to_string())
}

/// The tenant's key; its suite is that of the envelopes.
fn tenants_seed(path: &Path) -> Result<Secret, CliError> {
    let text = fs::read_to_string(path).map(Zeroizing::new);
    let text = text.map_err(|error| CliError::could_not(format!("{} is not read", path.display()), error))?;
    let mut seed = Digest::from_hex(text.trim())
        .ok_or_else(|| CliError::CouldNot(format!("{} holds no 64 hex digits", path.display())))?
        .0;
    let secret = Secret::new(&seed);
    seed.zeroize();
    Ok(secret)
}

fn open(args: &OpenArgs) -> Result<(), CliError> {
    let unread = |error: std::io::Error| CliError::could_not(format!("{} is not read", args.file.display()), error);
    let seed = args.key.as_deref().map(tenants_seed).transpose()?;
    let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut archive = tar::Archive::new(File::open(&args.file).map_err(unread)?);
    for entry in archive.entries().map_err(unread)? {
        let mut entry = entry.map_err(unread)?;
        let name = entry.path().map_err(unread)?.to_string_lossy().into_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).map_err(unread)?;
        files.insert(name, bytes);
    }
    let mut refused = 0;
    for (name, bytes) in files.iter().filter_map(|(name, bytes)| Some((name.strip_prefix("records/")?, bytes))) {
        if args.invocation_id.is_some_and(|id| !name.starts_with(&id.to_string())) {
            continue;
        }
        let line = match opened(&files, bytes, seed.as_ref()) {
            Ok(line) => line,
            Err(refusal) => {
                refused += 1;
                json!({ "record": name, "refused": refusal })
            }
        };
        output::line(&line.to_string())?;
    }
    if refused == 0 { Ok(()) } else { Err(CliError::No(format!("{refused} records did not open"))) }
}

/// A record of an export, opened.
fn opened(files: &BTreeMap<String, Vec<u8>>, record: &[u8], seed: Option<&Secret>) -> Result<Value, Refusal> {
    let record = Record::parse(Bytes::copy_from_slice(record))?;
    let id = record.envelope();
    let envelope = files.get(&format!("envelopes/{id}")).ok_or(Refusal::Envelope)?;
    let envelope = Envelope::parse(Bytes::copy_from_slice(envelope))?;
    let share: &[u8; 32] =
        files.get(&format!("shares/{id}")).and_then(|share| share.as_slice().try_into().ok()).ok_or(Refusal::Stanza)?;
    let first = Secret::new(share);
    let second = match (envelope.tenant_key(), seed) {
        (None, _) => None,
        (Some(_), None) => return Err(Refusal::Stanza),
        (Some(_), Some(seed)) => Some(envelope.share(1, &KeyPair::of(envelope.suite(), seed.clone())?)?),
    };
    let shares: Vec<&Secret> = [Some(&first), second.as_ref()].into_iter().flatten().collect();
    let content = record.open(&envelope, &envelope.content_key(&shares)?, MAX_CAP)?;
    let header = record.header();
    Ok(json!({
        "invocation_id": header.invocation_id,
        "direction": header.direction,
        "plugin": header.plugin,
        "tool": header.tool,
        "started_at": header.started_at.to_rfc3339(),
        "content_type": header.content_type,
        "text": String::from_utf8_lossy(content.expose()),
        "truncated": header.truncated_from.is_some(),
        "redactions": header.redactions,
        "record_hash": record.hash().to_string(),
    }))
}
