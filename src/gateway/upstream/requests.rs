//! Which generation is spoken with a plugin, and requests in the modern one, over either transport.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::http::metadata::{self, ParamHeader};
use super::http::{ExchangeError, Failure};
use super::probe::own_initialize;
use super::{Ask, ListKind, Plugin, Refuses, UpstreamError, modern, next_id};
use crate::config;
use crate::gateway::message::Json;
use crate::gateway::protocol::{Generation, code};

impl Plugin {
    /// The generation to speak with the plugin for a client of this one: the client's own, where the plugin has it.
    /// Waits for the first verdict of the probe.
    pub(crate) async fn generation(
        self: &Arc<Self>,
        client: Generation,
        patience: Duration,
    ) -> Result<Generation, UpstreamError> {
        if let Some(known) = self.generation_known(client) {
            return Ok(known);
        }
        let begun = Instant::now();
        let mut health = self.health().subscribe();
        let verdict = health.wait_for(|health| health.eras.modern().is_some() || health.up == Some(false));
        let verdict = match timeout(patience, verdict).await {
            Ok(health) => health.ok().and_then(|health| health.eras.modern()),
            Err(_) => return Err(UpstreamError::TimedOut { after: patience }),
        };
        match (verdict, client) {
            (None, _) => Err(self.down()),
            (Some(false), _) => Ok(Generation::Old),
            (Some(true), Generation::Modern) => Ok(Generation::Modern),
            (Some(true), Generation::Old) => self.for_old_client(patience.saturating_sub(begun.elapsed())).await,
        }
    }

    /// The generation that a modern server is spoken to in for an old client. A caller whose time is over gets an
    /// error; the server is asked all the same, for the next ones.
    async fn for_old_client(self: &Arc<Self>, patience: Duration) -> Result<Generation, UpstreamError> {
        let mut health = self.health().subscribe();
        let plugin = Arc::clone(self);
        tokio::spawn(async move { plugin.try_old().await });
        let known = health.wait_for(|health| health.eras.old(Instant::now()).is_some());
        match timeout(patience, known).await {
            Ok(Ok(health)) if health.eras.old(Instant::now()) == Some(true) => Ok(Generation::Old),
            Ok(_) => Ok(Generation::Modern),
            Err(_) => Err(UpstreamError::TimedOut { after: patience }),
        }
    }

    /// The same, as far as it is known without asking the server.
    pub(super) fn generation_known(&self, client: Generation) -> Option<Generation> {
        match self.settings().generation {
            config::PluginGeneration::Old => return Some(Generation::Old),
            config::PluginGeneration::Modern => return Some(Generation::Modern),
            config::PluginGeneration::Auto => {}
        }
        let eras = self.health().borrow().eras;
        match (eras.modern()?, client) {
            (false, _) => Some(Generation::Old),
            (true, Generation::Modern) => Some(Generation::Modern),
            (true, Generation::Old) => {
                eras.old(Instant::now()).map(|serves| if serves { Generation::Old } else { Generation::Modern })
            }
        }
    }

    /// Finds out whether a modern server serves the old generation, too: it is asked to `initialize`. Once at a time.
    async fn try_old(self: &Arc<Self>) {
        let Ok(_trying) = self.trying_old.try_lock() else { return };
        if self.health().borrow().eras.old(Instant::now()).is_some() {
            return;
        }
        let outcome = self.open(own_initialize(), (next_id(), Arc::new(Refuses)), None).await;
        let now = Instant::now();
        self.health().send_modify(|health| match outcome {
            Ok(_) => health.eras.set_old(true, now),
            Err(UpstreamError::Refused(_) | UpstreamError::NotMcp | UpstreamError::Status(400..=499)) => {
                health.eras.set_old(false, now);
            }
            // Some programs end at what they do not know, and some do not answer.
            Err(UpstreamError::Broken | UpstreamError::TimedOut { .. }) if self.is_child() => {
                health.eras.set_old(false, now);
            }
            Err(_) => health.eras.doubt_old(now),
        });
    }

    /// One modern request. Dropping the future cancels it.
    pub(crate) async fn request(self: &Arc<Self>, caller: Option<&str>, ask: Ask) -> Result<Json, UpstreamError> {
        let tool = tool_of(&ask);
        let of_tool = tool.as_deref().map(|tool| self.param_headers(tool)).unwrap_or_default();
        let again = tool.as_ref().map(|_| again(&ask));
        let outcome = self.request_plain(caller, ask, &of_tool).await;
        let (Err(UpstreamError::Refused(error)), Some(again), Some(tool)) = (&outcome, again, tool) else {
            return outcome;
        };
        if error.code != code::HEADER_MISMATCH || self.is_child() {
            return outcome;
        }
        // The server refused it unread: its schema has changed since the list was read.
        self.lists().changed(ListKind::Tools);
        self.read_own_list(ListKind::Tools).await;
        let of_tool = self.param_headers(&tool);
        self.request_plain(caller, again, &of_tool).await
    }

    /// One modern request, with the headers of these arguments.
    pub(super) async fn request_plain(
        self: &Arc<Self>,
        caller: Option<&str>,
        ask: Ask,
        of_tool: &[ParamHeader],
    ) -> Result<Json, UpstreamError> {
        let result = match self.http() {
            Some(server) => {
                let headers = metadata::headers(&ask.method, ask.params.as_ref(), of_tool);
                let outcome = modern::exchange(server, &ask, headers).await;
                if let Err(failure) = &outcome
                    && is_not_modern(failure)
                {
                    self.doubt().notify_one();
                }
                outcome?
            }
            None => {
                let caller = match self.settings().share {
                    config::Share::Caller => caller,
                    config::Share::All => None,
                };
                self.process(caller).await?.ask(ask, true).await?
            }
        };
        modern::checked(result)
    }

    /// The arguments of a tool that go into headers, as the newest list that has it says.
    fn param_headers(&self, tool: &str) -> Vec<ParamHeader> {
        let listings = self.listed(ListKind::Tools);
        let item = listings.iter().find_map(|listing| listing.items.iter().find(|item| *item.name == *tool));
        let schema = item.and_then(|item| item.raw.get("inputSchema")?.value());
        schema.and_then(|schema| metadata::param_headers(&schema).ok()).unwrap_or_default()
    }
}

/// The tool that a request calls.
fn tool_of(ask: &Ask) -> Option<Box<str>> {
    if &*ask.method != "tools/call" {
        return None;
    }
    let name = ask.params.as_ref()?.get("name")?;
    name.as_text().map(Into::into)
}

/// The same request once more. It keeps its number, which is its progress token as well: the first was refused unread.
fn again(ask: &Ask) -> Ask {
    Ask {
        id: ask.id,
        method: ask.method.clone(),
        params: ask.params.clone(),
        headers: ask.headers.clone(),
        pass: ask.pass,
        upcalls: Arc::clone(&ask.upcalls),
    }
}

/// Whether a request failed as it would not at a modern server.
fn is_not_modern(failure: &Failure) -> bool {
    match failure {
        Failure::Exchange(ExchangeError::Refused(refusal)) => match &refusal.error {
            Some(error) => error.code == code::UNSUPPORTED_VERSION,
            None => matches!(refusal.status, 400 | 404 | 405),
        },
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::is_not_modern;
    use crate::gateway::message::RpcError;
    use crate::gateway::upstream::http::{ExchangeError, Failure, Refusal};

    #[test]
    fn only_what_no_modern_server_answers_is_a_reason_to_doubt() {
        let doubts = |status, error| {
            is_not_modern(&Failure::Exchange(ExchangeError::Refused(Refusal {
                status,
                error,
                is_about_session: false,
            })))
        };
        assert!(doubts(400, None) && doubts(404, None) && doubts(400, Some(RpcError::new(-32022, ""))));
        assert!(!doubts(404, Some(RpcError::method_not_found(""))) && !doubts(503, None) && !doubts(401, None));
    }
}
