//! The tokens of a running control plane follow its file: one that is added, changed or removed there is so within
//! seconds, without a restart, and the ledgers of the orgs that it opens say so.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::sleep;

use super::CliError;
use super::config::load;
use crate::api::Tokens;
use crate::plane::Plane;

/// How often the file is looked at.
const RELOAD_INTERVAL: Duration = Duration::from_secs(2);

/// What tells a file from what it was.
type Stamp = Option<(SystemTime, u64)>;

fn stamp(file: &PathBuf) -> Stamp {
    let read = std::fs::metadata(file).ok()?;
    Some((read.modified().ok()?, read.len()))
}

/// Watches a file until it is dropped. A file that is faulty changes nothing; what else than tokens changed in it waits
/// for a restart.
pub(super) async fn follow(file: PathBuf, tokens: Tokens, plane: Arc<Plane>) {
    // The first look reads it in any case: it may have changed since the start read it.
    let mut seen = None;
    loop {
        sleep(RELOAD_INTERVAL).await;
        let now = stamp(&file);
        if now == seen || now.is_none() {
            continue;
        }
        seen = now;
        match load(&file).map_err(CliError::from) {
            Ok(settings) => match tokens.replace(&settings) {
                Ok(true) => {
                    tracing::info!(tokens = settings.tokens.len(), "the tokens were read again");
                    if let Err(error) = plane.reload_tokens(&settings.tokens).await {
                        tracing::error!(%error, "the ledgers do not say that tokens changed; they do at the next start");
                    }
                }
                Ok(false) => {}
                Err(why) => tracing::error!(why, "the tokens in the file are not taken"),
            },
            Err(error) => tracing::error!(%error, "the configuration is faulty; the tokens stay as they are"),
        }
    }
}
