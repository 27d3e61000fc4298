//! `mcpg audit proof`: makes the proof that one entry is in a ledger, and checks one offline.
//!
//! A proof is one JSON object: the entry's canonical bytes, its leaf, the path to the root, the signed checkpoint.
//! Checking it takes the verifier key and nothing else; docs/auditors.md shows how to do so without this program.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;
use tokio::runtime::Handle;

use super::audit::{Place, could_not, vkey};
use super::{CliError, http, output};
use crate::audit::InclusionProof;
use crate::audit::note::VKey;
use crate::audit::verify::{self, VerifyError};
use crate::config::Secret;
use crate::model::OrgName;

/// The longest proof: an entry has some 100 KiB at most, and a path 64 hashes.
const MAX_BYTES: u64 = 1 << 20;

#[derive(Debug, Args)]
pub(super) struct ProofArgs {
    #[command(flatten)]
    place: Place,
    /// The entry to prove.
    #[arg(long, value_name = "N", conflicts_with = "check", required_unless_present = "check", requires = "place")]
    seq: Option<u64>,
    /// Check the proof in this file (`-`: standard input), instead of making one.
    #[arg(long, value_name = "FILE", conflicts_with = "place", requires = "vkeys")]
    check: Option<PathBuf>,
    /// The org whose ledger it is. A proof that is checked must be of it, where it is given.
    #[arg(long, env = "MCPG_ORG", required_unless_present = "check")]
    org: Option<OrgName>,
    /// The verifier key, had from elsewhere than the proof; more than once: any of them.
    #[arg(long = "vkey", value_name = "KEY", id = "vkeys", value_parser = vkey)]
    vkeys: Vec<VKey>,
    /// The file to write the proof to, instead of standard output.
    #[arg(long, value_name = "FILE", conflicts_with = "check")]
    out: Option<PathBuf>,
    /// The API token, with the role `read`.
    #[arg(long, env = "MCPG_TOKEN", hide_env_values = true, value_parser = http::secret)]
    token: Option<Secret>,
    /// Print what was proved as one line of JSON.
    #[arg(long, requires = "check")]
    json: bool,
}

pub(super) fn run(args: &ProofArgs, runtime: Handle) -> Result<(), CliError> {
    match (&args.check, args.seq, &args.org) {
        (Some(file), ..) => check(args, file),
        (None, Some(seq), Some(org)) => make(args, org, seq, runtime),
        _ => Err(CliError::CouldNot("say which entry of which org: --seq and --org, or --check".to_owned())),
    }
}

fn make(args: &ProofArgs, org: &OrgName, seq: u64, runtime: Handle) -> Result<(), CliError> {
    let source = args.place.open(org, args.token.clone(), runtime)?;
    let source = source.map_err(|fault| CliError::No(fault.to_string()))?;
    let proof = match verify::prove(&*source, seq) {
        Ok(Some(proof)) => proof,
        Ok(None) => return Err(CliError::No(format!("no signed checkpoint covers entry {seq} of org {org}"))),
        Err(VerifyError::NotSound(fault)) => {
            return Err(CliError::No(format!("entry {seq} cannot be proved: {fault}")));
        }
        Err(VerifyError::CouldNot(error)) => return Err(could_not(error)),
    };
    if !args.vkeys.is_empty() {
        proof.check(&args.vkeys, Some(org)).map_err(|why| CliError::No(format!("the ledger gives no proof: {why}")))?;
    }
    let text = serde_json::to_string(&proof).map_err(|error| CliError::could_not("the proof", error))?;
    match &args.out {
        None => output::line(&text),
        Some(file) => {
            let written = File::create(file).and_then(|mut file| file.write_all(format!("{text}\n").as_bytes()));
            written.map_err(|error| CliError::could_not(file.display(), error))
        }
    }
}

fn check(args: &ProofArgs, file: &Path) -> Result<(), CliError> {
    let mut text = Vec::new();
    let read = if file == Path::new("-") {
        std::io::stdin().take(MAX_BYTES).read_to_end(&mut text)
    } else {
        File::open(file).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut text))
    };
    read.map_err(|error| CliError::could_not(file.display(), error))?;
    let not = |why: String| {
        if args.json {
            // The answer is no, whether it can be printed or not.
            let _ = output::line(&json!({ "proved": false, "why": why }).to_string());
        }
        CliError::No(format!("not proved: {why}"))
    };
    let proof: InclusionProof =
        serde_json::from_slice(&text).map_err(|error| not(format!("it is no proof: {error}")))?;
    let proved = proof.check(&args.vkeys, args.org.as_ref()).map_err(|why| not(why.to_string()))?;
    let (origin, size) = (&proved.checkpoint.origin, proved.checkpoint.size);
    if args.json {
        return output::line(
            &json!({ "proved": true, "seq": proof.seq, "origin": origin, "size": size, "entry": proved.entry })
                .to_string(),
        );
    }
    output::line(&format!("proved: entry {} of {origin} is under a signed checkpoint of {size} entries", proof.seq))?;
    match &proof.entry {
        Some(entry) => output::line(entry),
        None => output::line(&format!(
            "what it says is not in the proof, since it was removed; its SHA-256 is {}",
            proof.entry_hash
        )),
    }
}
