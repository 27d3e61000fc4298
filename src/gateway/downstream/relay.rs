//! A client's request, by what the table of methods says of it, to what answers it.
//!
//! | request | answered by |
//! |---|---|
//! | `tools/call`, `prompts/get` | the plugin that the name says |
//! | lists | every plugin that the caller may use, joined ([`lists`]) |
//! | `resources/read`, `…/subscribe`, completion | the plugin that has it ([`Relay::route`]) |
//! | `logging/setLevel` | the gateway, which tells servers of it |
//! | `ping`, `server/discover`, `tasks/list` | the gateway |
//! | of a task | the server that works on it |
//! | named in `pass_methods` | the one plugin, at its own endpoint |
//! | anything else | refused |

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::time::timeout;

use super::{lists, names, offer};
use crate::gateway::call::calls::By;
use crate::gateway::call::dispatch::{Dispatcher, Job, JobKind, Work, is_name, keep_answer, own_ask};
use crate::gateway::call::error::CallError;
use crate::gateway::call::scope::severity;
use crate::gateway::call::subject::{Subject, UNKNOWN, is_of};
use crate::gateway::call::table::{self, Found, Method, Versions};
use crate::gateway::call::tasks::Task;
use crate::gateway::call::telemetry::{CallRecord, Ended, Reply};
use crate::gateway::call::uri::{MAX_URI, canonical};
use crate::gateway::call::{bridge, client::Endpoint};
use crate::gateway::message::{Json, Object, RpcError};
use crate::gateway::policy::Action;
use crate::gateway::protocol::{Generation, META_CAPABILITIES, TASKS_EXTENSION};
use crate::gateway::upstream::{ListKind, Upcalls, UpstreamError};

/// How long a plugin's lists are waited for, to know which has a resource.
const ROUTE_TIMEOUT: Duration = Duration::from_secs(2);

/// Routes requests of clients to what answers them.
pub(crate) struct Relay {
    pub(crate) dispatcher: Dispatcher,
}

impl Relay {
    /// Answers a request.
    pub(super) async fn answer(&self, work: &mut Work) -> Reply {
        let mut server = None;
        if work.request.method.as_ref() == "tools/call" {
            return self.call(work).await;
        }
        let outcome = self.serve(work, &mut server).await;
        let uri = work.params.text("uri").map(std::borrow::Cow::into_owned);
        let outcome = outcome.map_err(|error| error.into_error(work.client.generation, server, uri.as_deref()));
        Reply::new(&work.request.id, &outcome)
    }

    /// A call of a tool: the one request that leaves a sample.
    async fn call(&self, work: &mut Work) -> Reply {
        let telemetry = &self.dispatcher.calls.telemetry;
        let session = work.session.as_ref().map(|session| Arc::clone(session.id()));
        let ties = work.ties();
        // A name that is no text names nothing: what a server would make of it, policy has not decided on.
        let subject = work.params.text("name").and_then(|name| {
            let (index, own) = names::resolve(&work.endpoint, &name)?;
            Some(Subject::tool(work.endpoint.plugins.get(index)?, index, own))
        });
        let plugin = subject.as_ref().and_then(|subject| work.endpoint.plugins.get(subject.index));
        let labels = (plugin.map_or(UNKNOWN, |plugin| plugin.name()), subject.as_ref().map_or(UNKNOWN, Subject::label));
        let by = (&work.inbound, &work.client, session.as_ref());
        let mut record = CallRecord::begin(telemetry, by, &ties, labels.0, labels.1);
        let mut server = None;
        let ended = match subject {
            None => Err(CallError::unknown("tool")),
            Some(subject) => match self.job(work, subject, JobKind::Call) {
                Ok(job) => Box::pin(self.dispatcher.run(work, job, Some(&mut record), &mut server)).await,
                Err(error) => Err(error),
            },
        };
        let how = Ended::of(&ended);
        let outcome = ended.map_err(|error| error.into_error(work.client.generation, server, None));
        let mut reply = Reply::new(&work.request.id, &outcome);
        record.end(how.outcome, how.error_code, how.error, reply.body.len() as u64);
        (reply.outcome, reply.error_code, reply.failure) = (Some(how.outcome), how.error_code, how.failure);
        reply
    }

    /// A job for something named, with its arguments.
    fn job(&self, work: &Work, subject: Subject, kind: JobKind) -> Result<Job, CallError> {
        if !work.request.params.as_ref().is_none_or(|params| params.is_object() && params.is_unambiguous()) {
            return Err(CallError::invalid(
                "the parameters are an object that names no member twice, not nested too deeply",
            ));
        }
        if !is_name(&subject) {
            return Err(CallError::invalid(
                "the name is longer than 128 characters, and the plugin lists no such name",
            ));
        }
        let arguments = match work.params.get("arguments") {
            None => None,
            Some(arguments) if arguments.is_null() => None,
            Some(arguments) if arguments.is_object() => Some(arguments.clone()),
            Some(_) => return Err(CallError::invalid("the arguments are an object")),
        };
        let mut params = work.params.clone();
        if matches!(kind, JobKind::Call | JobKind::Prompt) && work.endpoint.namespaced {
            params.set("name", Json::text(&subject.name));
        }
        Ok(Job { kind, subject, params, arguments, details: Vec::new() })
    }

    async fn serve(&self, work: &mut Work, server: &mut Option<Generation>) -> Result<Json, CallError> {
        let tasks = work.params.get("_meta").is_some_and(|meta| {
            meta.at(&[META_CAPABILITIES, "extensions", TASKS_EXTENSION]).is_some_and(|extension| extension.is_object())
        });
        let version = Versions::of(work.client.generation, &work.client.version, tasks);
        match table::client_request(&work.request.method, version) {
            Found::Served(method, _) => self.served(work, method, server).await,
            Found::NeedsTasks => {
                let needed = json!({ "extensions": { TASKS_EXTENSION: {} } });
                Err(CallError::missing_capability("the request did not declare the extension for tasks", &needed))
            }
            Found::Elsewhere => Err(self.refused("this version of the protocol does not have the method")),
            Found::Unknown => self.passed(work, server).await,
        }
    }

    fn refused(&self, text: &str) -> CallError {
        self.dispatcher.calls.refused("request");
        CallError::method_refused(text)
    }

    async fn served(
        &self,
        work: &mut Work,
        method: Method,
        server: &mut Option<Generation>,
    ) -> Result<Json, CallError> {
        match method {
            Method::Ping => Ok(Json::empty_object()),
            Method::Initialize => {
                Err(CallError::from_rpc(RpcError::invalid_request("Invalid Request: the session is initialized")))
            }
            Method::Discover => offer::discovered(work, &self.dispatcher.calls).await,
            Method::List(kind) => lists::list(work, &self.dispatcher.calls, kind).await,
            Method::CallTool | Method::Listen => Err(self.refused("the method is served elsewhere")),
            Method::GetPrompt => {
                let name = work.params.text("name").map(std::borrow::Cow::into_owned);
                let name = name.ok_or_else(|| CallError::invalid("`name` is missing"))?;
                let (index, own) = names::resolve(&work.endpoint, &name).ok_or_else(|| CallError::unknown("prompt"))?;
                let subject = Subject::prompt(work.plugin(index)?, index, own, Action::GetPrompt);
                let job = self.job(work, subject, JobKind::Prompt)?;
                Box::pin(self.dispatcher.run(work, job, None, server)).await
            }
            Method::ReadResource => self.resource(work, JobKind::Read, server).await,
            Method::Subscribe => self.resource(work, JobKind::Subscribe, server).await,
            Method::Unsubscribe => self.unsubscribe(work).await,
            Method::Complete => self.complete(work, server).await,
            Method::SetLevel => self.set_level(work).await,
            Method::TaskList => Ok(self.task_list(work)),
            Method::TaskGet | Method::TaskResult | Method::TaskCancel | Method::TaskUpdate => {
                self.task(work, method, server).await
            }
        }
    }

    /// A method that MCP does not have, where the configuration lets it through to the one plugin.
    async fn passed(&self, work: &mut Work, server: &mut Option<Generation>) -> Result<Json, CallError> {
        let method = work.request.method.to_string();
        let passes = |endpoint: &Endpoint| {
            let plugin = endpoint.plugins.first().filter(|_| !endpoint.namespaced)?;
            plugin.settings().pass_methods.contains(&method).then_some(())
        };
        if passes(&work.endpoint).is_none() {
            return Err(self.refused("Method not found: the gateway does not let it through"));
        }
        let mut job = self.job(work, Subject::plugin(0, Action::CallMethod), JobKind::Method)?;
        job.details.push(("method", method));
        Box::pin(self.dispatcher.run(work, job, None, server)).await
    }

    /// A resource, at the plugin that has it.
    async fn resource(
        &self,
        work: &mut Work,
        kind: JobKind,
        server: &mut Option<Generation>,
    ) -> Result<Json, CallError> {
        let uri = work.params.text("uri").map(std::borrow::Cow::into_owned);
        let uri = uri.ok_or_else(|| CallError::invalid("`uri` is missing"))?;
        let subject = self.route(work, &uri).await?;
        let job = self.job(work, subject, kind)?;
        Box::pin(self.dispatcher.run(work, job, None, server)).await
    }

    /// Which plugin has a resource: the one whose lists or templates have it, else the one that gave this caller the
    /// link, else the only one that it can be of. Plugins that the caller may not use do not count.
    ///
    /// # Errors
    /// When no plugin has it or several do, or the URI is not in its one form although no plugin lists it so.
    pub(super) async fn route(&self, work: &Work, uri: &str) -> Result<Subject, CallError> {
        if uri.len() > MAX_URI {
            return Err(CallError::invalid("the URI is longer than 8 KiB"));
        }
        let index = if work.endpoint.namespaced { self.owner(work, uri).await? } else { 0 };
        let plugin = work.plugin(index)?;
        let mut subject = Subject::resource(plugin, index, uri);
        if !subject.listed && subject.name != subject.canonical {
            // Its lists may not be known yet.
            self.know(work, index, &[ListKind::Resources, ListKind::Templates]).await;
            subject = Subject::resource(plugin, index, uri);
        }
        if !subject.listed && subject.name != subject.canonical {
            return Err(CallError::invalid("the URI is not in its canonical form, and the plugin lists no such URI"));
        }
        Ok(subject)
    }

    async fn owner(&self, work: &Work, uri: &str) -> Result<usize, CallError> {
        let with_resources: Vec<usize> = having(work, "resources");
        let known =
            with_resources.iter().map(|index| self.know(work, *index, &[ListKind::Resources, ListKind::Templates]));
        futures::future::join_all(known).await;
        let policy = &self.dispatcher.calls.policy;
        let may = |index: &usize| {
            let plugin = work.endpoint.plugins.get(*index);
            plugin.is_some_and(|plugin| {
                policy.may_list(&work.inbound.caller, Action::ReadResource, plugin.name(), &canonical(uri))
            })
        };
        let name = |index: &usize| work.endpoint.plugins.get(*index).map_or("", |plugin| plugin.name());
        let has = |index: &&usize| work.endpoint.plugins.get(**index).is_some_and(|plugin| is_of(plugin, uri));
        let owners: Vec<usize> = with_resources.iter().filter(has).copied().filter(|index| may(index)).collect();
        match owners.as_slice() {
            [only] => return Ok(*only),
            [] => {}
            several => {
                let plugins: Vec<&str> = several.iter().map(name).collect();
                let text = format!("several plugins have this resource: {}", plugins.join(", "));
                return Err(CallError::invalid_with(text, &json!({ "uri": uri, "plugins": plugins })));
            }
        }
        if let Some(index) = work.session.as_ref().and_then(|session| session.linked(uri)).filter(|index| may(index)) {
            return Ok(index);
        }
        // A URI that nobody lists is denied as the only plugin's that it can be of, so that policy says so.
        let candidates: Vec<usize> = with_resources.iter().copied().filter(|index| may(index)).collect();
        match (candidates.as_slice(), with_resources.as_slice()) {
            ([only], _) | ([], [only]) => Ok(*only),
            (several, _) => {
                let plugins: Vec<&str> = several.iter().map(name).collect();
                let data = json!({ "uri": uri, "plugins": plugins });
                Err(CallError::invalid_with("no plugin lists this resource", &data))
            }
        }
    }

    /// Waits a little for lists of a plugin that are not known yet.
    async fn know(&self, work: &Work, index: usize, kinds: &[ListKind]) {
        let Some(plugin) = work.endpoint.plugins.get(index) else { return };
        for kind in kinds.iter().filter(|kind| plugin.listed(**kind).is_empty()) {
            // A plugin whose list cannot be had has nothing that anybody knows of.
            let _ = timeout(ROUTE_TIMEOUT, plugin.list(*kind, &work.view(index))).await;
        }
    }

    async fn unsubscribe(&self, work: &mut Work) -> Result<Json, CallError> {
        let uri = work.params.text("uri").map(std::borrow::Cow::into_owned).unwrap_or_default();
        let Some(session) = work.session.clone() else { return Ok(Json::empty_object()) };
        // Of another's subscription there is nothing to say, nor of none.
        let Some(index) = session.subscription(&uri) else { return Ok(Json::empty_object()) };
        let plugin = Arc::clone(work.plugin(index)?);
        match session.open_upstream(index) {
            Some(upstream) => {
                let upcalls: Arc<dyn Upcalls> = Arc::new(Silent);
                let ask = own_ask("resources/unsubscribe", Json::of(&json!({ "uri": uri })), upcalls);
                let asked = timeout(plugin.timeout(), upstream.ask(ask)).await;
                session.subscribed(index, &uri, false);
                if let Ok(Err(error)) = asked {
                    return Err(CallError::upstream(&error, plugin.name()));
                }
            }
            None => {
                if let Err(error) = session.unlisten(index, &uri).await {
                    return Err(CallError::upstream(&error, plugin.name()));
                }
            }
        }
        Ok(Json::empty_object())
    }

    /// A completion: of a prompt's argument at the plugin that the name says, of a template's at the one that has it.
    async fn complete(&self, work: &mut Work, server: &mut Option<Generation>) -> Result<Json, CallError> {
        let reference = work.params.get("ref").and_then(Json::object).unwrap_or_default();
        let argument = work.params.get("argument").and_then(|argument| argument.get("name"));
        let argument = argument.as_ref().and_then(Json::as_text).map(std::borrow::Cow::into_owned).unwrap_or_default();
        // Nothing else says what is completed: a server could go by a member that nobody has decided on.
        let (of_prompt, of_template) = (!reference.has("uri"), !reference.has("name"));
        let (subject, member) = match (reference.text("type").as_deref(), reference.text("name"), reference.text("uri"))
        {
            (Some("ref/prompt"), Some(name), None) if of_prompt => {
                let (index, own) = names::resolve(&work.endpoint, &name).ok_or_else(|| CallError::unknown("prompt"))?;
                (Subject::prompt(work.plugin(index)?, index, own, Action::Complete), "name")
            }
            (Some("ref/resource"), None, Some(template)) if of_template => {
                (self.template(work, &template).await?, "uri")
            }
            _ => return Err(CallError::invalid("`ref` names a prompt, or a template of resources")),
        };
        let own = Json::text(&subject.name);
        let mut job = self.job(work, subject, JobKind::Complete)?;
        if work.endpoint.namespaced {
            let mut reference = reference.clone();
            reference.set(member, own);
            job.params.set("ref", reference.to_json());
        }
        job.details.push(("argument", argument.chars().take(128).collect()));
        Box::pin(self.dispatcher.run(work, job, None, server)).await
    }

    /// The plugin that has a template, of those that the caller may use.
    async fn template(&self, work: &Work, template: &str) -> Result<Subject, CallError> {
        if template.len() > MAX_URI {
            return Err(CallError::invalid("the template is longer than 8 KiB"));
        }
        let plugin_of = |index: usize| work.plugin(index).map(|plugin| Subject::template(plugin, index, template));
        if !work.endpoint.namespaced {
            return plugin_of(0);
        }
        let policy = &self.dispatcher.calls.policy;
        let mut owners = Vec::new();
        for index in having(work, "resources") {
            self.know(work, index, &[ListKind::Templates]).await;
            let plugin = work.plugin(index)?;
            let may = policy.may_list(&work.inbound.caller, Action::ReadResource, plugin.name(), template);
            let has =
                plugin.is_listed(ListKind::Templates, template) || plugin.is_listed(ListKind::Resources, template);
            if may && has {
                owners.push(index);
            }
        }
        match owners.as_slice() {
            [only] => plugin_of(*only),
            [] => Err(CallError::unknown("template of resources")),
            several => {
                let name = |index: &usize| work.endpoint.plugins.get(*index).map_or("", |plugin| plugin.name());
                let plugins: Vec<&str> = several.iter().map(name).collect();
                let text = format!("several plugins have this template: {}", plugins.join(", "));
                Err(CallError::invalid_with(text, &json!({ "plugins": plugins })))
            }
        }
    }

    async fn set_level(&self, work: &mut Work) -> Result<Json, CallError> {
        let level =
            work.params.get("level").filter(|level| level.as_text().is_some_and(|level| severity(&level).is_some()));
        let Some(level) = level.cloned() else { return Err(CallError::invalid("there is no such level")) };
        let Some(session) = work.session.clone() else { return Ok(Json::empty_object()) };
        session.set_log_level(&level.as_text().unwrap_or_default());
        let mut params = Object::default();
        params.add("level", level);
        for (index, plugin) in work.endpoint.plugins.iter().enumerate() {
            let Some(upstream) = session.open_upstream(index) else { continue };
            if upstream.opened().at(&["capabilities", "logging"]).is_none() {
                continue;
            }
            let upcalls: Arc<dyn Upcalls> = Arc::new(Silent);
            let asked = upstream.ask(own_ask("logging/setLevel", params.to_json(), upcalls));
            if let Ok(Err(error)) = timeout(plugin.timeout(), asked).await {
                return Err(CallError::upstream(&error, plugin.name()));
            }
        }
        Ok(Json::empty_object())
    }

    /// The caller's own tasks, as the gateway knows them.
    fn task_list(&self, work: &Work) -> Json {
        let tasks = self.dispatcher.tasks.of(work.owner());
        let mut result = Object::default();
        result.add("tasks", Json::array(&tasks));
        result.to_json()
    }

    /// A request about a task: of the call that it came of, and under its obligations.
    async fn task(&self, work: &mut Work, method: Method, server: &mut Option<Generation>) -> Result<Json, CallError> {
        let id = work.params.text("taskId").map(std::borrow::Cow::into_owned).unwrap_or_default();
        let task = self.dispatcher.tasks.find(work.owner(), &id).ok_or_else(|| CallError::unknown("task"))?;
        let plugin = Arc::clone(work.plugin(task.subject.index)?);
        let calls = &self.dispatcher.calls;
        let ties = work.ties();
        let by = By { inbound: &work.inbound, client: &work.client, ties: &ties };
        let subject = task.subject.asked(task.subject.action);
        let details = [("method", &*work.request.method)];
        let permit = calls.permit(by, plugin.name(), &subject, task.verdict.clone(), &details).await?;
        let _running = calls.rate(&work.inbound, plugin.name(), &task.subject, false)?;
        let capturing = self.dispatcher.capture_of_task(work, &plugin, &task);
        let of = (&task, capturing.as_ref());
        let outcome = self.dispatcher.of_task(work, &plugin, of, &permit, server).await;
        let ended = self.of_task(work, method, &task, outcome, *server);
        let generation = server.unwrap_or(work.client.generation);
        keep_answer(capturing.as_ref(), work, &ended, (generation, None)).await?;
        ended
    }

    /// What the client gets to know of a task.
    fn of_task(
        &self,
        work: &Work,
        method: Method,
        task: &Task,
        outcome: Result<Json, CallError>,
        server: Option<Generation>,
    ) -> Result<Json, CallError> {
        let obligations = &task.verdict.obligations;
        let redacts = obligations.redacts_result();
        let result = outcome.map_err(|error| if redacts { error.without_words() } else { error })?;
        let result = if redacts { obligations.redact_result(&result) } else { result };
        let plugin = work.plugin(task.subject.index)?;
        let most = plugin.max_result_bytes();
        let limit = obligations.max_result_bytes().map_or(most, |own| own.min(most));
        if result.len() as u64 > limit {
            return Err(CallError::upstream(&UpstreamError::TooLarge { limit }, plugin.name()));
        }
        let Some(mut object) = result.object() else { return Ok(result) };
        task.rename(&mut object);
        if method != Method::TaskResult {
            self.dispatcher.tasks.update(work.owner(), &task.client_id, &object);
        }
        let generation = server.unwrap_or(work.client.generation);
        Ok(bridge::result(object.to_json(), &work.client, generation, bridge::Kind::Plain))
    }
}

/// What a server says of an own request of the gateway's: nothing of it is passed on.
struct Silent;

#[async_trait::async_trait]
impl Upcalls for Silent {
    async fn asked(&self, _: crate::gateway::message::Request) -> Result<Json, RpcError> {
        Err(RpcError::method_not_found("nobody is asked for the sake of this request"))
    }

    async fn notified(&self, _: crate::gateway::message::Notification) {}
}

/// The plugins that have a capability, or may have it.
pub(super) fn having(work: &Work, capability: &str) -> Vec<usize> {
    let plugins = work.endpoint.plugins.iter().enumerate();
    let has = plugins.filter(|(_, plugin)| {
        plugin.offer().is_none_or(|offer| offer.capabilities.get(capability).is_some_and(|value| !value.is_null()))
    });
    has.map(|(index, _)| index).collect()
}
