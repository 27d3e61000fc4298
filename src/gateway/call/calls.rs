//! What all calls share: policy, the record, turns, rates, limits.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::time::{Instant, timeout};

use super::client::{Client, Inbound};
use super::error::CallError;
use super::rates::{Called, Rates, Running};
use super::seal::Sealer;
use super::subject::Subject;
use super::telemetry::{CallTelemetry, Ties};
use super::turns::{Held, Turns};
use super::uri::canonical;
use crate::gateway::identity::Caller;
use crate::gateway::message::{Json, Object};
use crate::gateway::pass::{Pass, Recorded};
use crate::gateway::policy::{Action, Policy, Question, Verdict};
use crate::gateway::upstream::{Plugin, UpstreamError};

/// Bounds of calls.
#[derive(Debug, Clone)]
pub(crate) struct CallLimits {
    /// How long a person may take to answer what a server asks.
    pub(crate) answer: Duration,
    /// How many calls of one caller may wait for a person at once.
    pub(crate) parked: usize,
}

/// What all calls of a gateway share.
pub(crate) struct Calls {
    pub(crate) policy: Arc<Policy>,
    pub(crate) telemetry: CallTelemetry,
    pub(crate) rates: Rates,
    pub(crate) limits: CallLimits,
    pub(crate) sealer: Sealer,
    /// Calls that may be under way at once.
    all: Arc<Turns>,
    /// The same, at each plugin.
    plugins: HashMap<String, Arc<Turns>>,
}

/// A permit that is on the record.
pub(crate) struct Permit {
    pub(crate) verdict: Verdict,
    recorded: Recorded,
}

impl Permit {
    /// That a message may be sent by it.
    pub(crate) fn pass(&self) -> Pass {
        Pass::permitted(self.recorded)
    }
}

/// Who asks to do something, and what ties the records of it together.
#[derive(Clone, Copy)]
pub(crate) struct By<'a> {
    pub(crate) inbound: &'a Inbound,
    pub(crate) client: &'a Client,
    pub(crate) ties: &'a Ties,
}

impl Calls {
    pub(crate) fn new(
        policy: Arc<Policy>,
        telemetry: CallTelemetry,
        rates: Rates,
        limits: CallLimits,
        sealer: Sealer,
        (most, plugins): (u64, &[Arc<Plugin>]),
    ) -> Self {
        let turns = |plugin: &Arc<Plugin>| (plugin.name().to_owned(), Turns::new(plugin.settings().max_concurrency));
        let plugins = plugins.iter().map(turns).collect();
        Self { policy, telemetry, rates, limits, sealer, all: Turns::new(most), plugins }
    }

    /// A message is refused, or dropped: a `request`, a `notification` or a `question`.
    pub(crate) fn refused(&self, kind: &'static str) {
        self.telemetry.metrics.refused(kind);
    }

    /// What policy says, without putting it on the record.
    pub(crate) fn decide(
        &self,
        by: By<'_>,
        plugin: &str,
        subject: &Subject,
        arguments: Option<&Map<String, Value>>,
        details: &[(&'static str, &str)],
    ) -> (Verdict, Duration) {
        let begun = Instant::now();
        let verdict = self.policy.decide(&Question {
            subject: subject.kind,
            arguments,
            details,
            keep: subject.listed,
            ..Question::new(&by.inbound.caller, subject.action, plugin, &subject.canonical)
        });
        let took = begun.elapsed();
        self.telemetry.decided(verdict.decision, took);
        (verdict, took)
    }

    /// An update of a resource as this caller may hear of it: it may name a part of what was subscribed to. `None`: the
    /// caller may not read that.
    pub(crate) fn updated(&self, caller: &Caller, plugin: &str, mut params: Object) -> Option<Json> {
        let canonical = canonical(&params.text("uri")?);
        let question = Question::new(caller, Action::ReadResource, plugin, &canonical);
        let verdict = self.policy.decide(&Question { keep: false, ..question });
        if verdict.obligations.redacts_result() {
            params.retain(|name, _| name == "uri");
        }
        params.take("_meta");
        verdict.is_permit().then(|| params.to_json())
    }

    /// Puts a decision on the record. What is not permitted ends here.
    ///
    /// # Errors
    /// When it is denied, or not on the record although it has to be.
    pub(crate) async fn permit(
        &self,
        by: By<'_>,
        plugin: &str,
        subject: &Subject,
        verdict: Verdict,
        details: &[(&'static str, &str)],
    ) -> Result<Permit, CallError> {
        let recorded =
            self.telemetry.record((&by.inbound.caller, by.client, by.ties), plugin, subject, &verdict, details).await;
        let Ok(recorded) = recorded else { return Err(CallError::not_recorded()) };
        if !verdict.is_permit() {
            return Err(CallError::denied(&verdict));
        }
        self.telemetry.notify(&by.inbound.caller, by.ties, plugin, subject, &verdict);
        Ok(Permit { verdict, recorded })
    }

    /// Takes a call off the rates that hold for it. `goes_on`: it was taken off before, and is only under way again.
    ///
    /// # Errors
    /// When one of them is used up.
    pub(crate) fn rate(
        &self,
        inbound: &Inbound,
        plugin: &str,
        subject: &Subject,
        goes_on: bool,
    ) -> Result<Running, CallError> {
        let called = Called { plugin, tool: &subject.name, label: subject.label(), goes_on };
        self.rates.take(&inbound.caller, called).map_err(|used| CallError::rate(&used.rule, used.seconds))
    }

    /// The turns for a request to a plugin: at the plugin first, so that who waits for a slow one holds nothing of the
    /// others.
    pub(crate) async fn turns(&self, plugin: &Plugin, owner: &Arc<str>, again: bool) -> Held {
        let at_plugin = match self.plugins.get(plugin.name()) {
            Some(turns) => turns.take(owner, again).await,
            None => self.all.take(owner, again).await,
        };
        let at_all = self.all.take(owner, again).await;
        Held::new(at_plugin, at_all, plugin.running())
    }

    /// The same, within `patience`.
    ///
    /// # Errors
    /// When none came in time: which of the two did not.
    pub(crate) async fn turns_within(
        &self,
        plugin: &Plugin,
        owner: &Arc<str>,
        patience: Duration,
    ) -> Result<Held, CallError> {
        let begun = Instant::now();
        let busy = |turns: &Turns| CallError::upstream(&UpstreamError::Busy { limit: turns.most() }, plugin.name());
        let at_plugin = match self.plugins.get(plugin.name()) {
            Some(turns) => timeout(patience, turns.take(owner, false)).await.map_err(|_| busy(turns))?,
            None => return Err(CallError::unknown("plugin")),
        };
        let left = patience.saturating_sub(begun.elapsed());
        let at_all = timeout(left, self.all.take(owner, false)).await;
        let at_all = at_all.map_err(|_| CallError::no_room(self.all.most()))?;
        Ok(Held::new(at_plugin, at_all, plugin.running()))
    }
}

/// The arguments that a policy looks at, as a tree.
///
/// # Errors
/// When they are no object, or nested too deeply.
pub(crate) fn tree(arguments: Option<&Json>) -> Result<Option<Map<String, Value>>, CallError> {
    match arguments {
        None => Ok(None),
        Some(arguments) => match arguments.read() {
            Some(tree) => Ok(Some(tree)),
            None => Err(CallError::invalid("the arguments are an object, not nested too deeply")),
        },
    }
}
