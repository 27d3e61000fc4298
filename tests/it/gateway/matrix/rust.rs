//! The Rust SDK as a client of the matrix: what `matrix_client.py` and `matrix.mjs` do with theirs.
#![expect(
    deprecated,
    reason = "the SDK advises against sampling and what older revisions have, which is what is tried here"
)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ClientCapabilities, ClientConfig, ContentBlock,
    CreateMessageRequestParams, CreateMessageResult, ElicitRequestParams, ElicitResult, ElicitationAction,
    GetTaskParams, Implementation, ProgressNotificationParam, ProtocolVersion, ResourceUpdatedNotificationParam,
    SamplingMessage, SamplingMessageContentBlock, SubscribeRequestParams, SubscriptionFilter, TaskPayload,
    UnsubscribeRequestParams,
};
use rmcp::service::{
    ClientLifecycleMode, ClientServiceExt, NotificationContext, RequestContext, RunningService, Subscription,
};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use rmcp::{ClientHandler, ErrorData, RoleClient};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::{SCENARIOS, Target, Verdicts};

const WATCHED: &str = "test://watched-resource";

/// What went wrong, in words.
type Failure = String;

/// Has a client of the SDK do everything with each of the targets, all of them at once.
pub(super) async fn visit(mode: &str, targets: &[Target], patience: Duration) -> Verdicts {
    let mut visits = JoinSet::new();
    for target in targets.iter().cloned() {
        let mode = mode.to_owned();
        visits.spawn(async move { (target.name.clone(), visit_one(&mode, &target, patience).await) });
    }
    visits.join_all().await.into_iter().collect()
}

/// All scenarios, one by one, over one connection as long as it works.
async fn visit_one(mode: &str, target: &Target, patience: Duration) -> BTreeMap<String, String> {
    let mut verdicts = BTreeMap::new();
    let mut session = None;
    for scenario in SCENARIOS {
        let work = async {
            if session.is_none() {
                session = Some(Session::open(mode, target).await?);
            }
            let session = session.as_mut().ok_or("no session")?;
            session.play(scenario).await
        };
        let verdict = match tokio::time::timeout(patience, work).await {
            Ok(Ok(verdict)) => verdict.to_owned(),
            Ok(Err(failure)) => failure,
            Err(_) => format!("nothing after {} ms", patience.as_millis()),
        };
        if verdict != "ok" && verdict != "without a task" {
            // What is left of a scenario that failed shall not disturb the next one.
            session = None;
        }
        verdicts.insert(scenario.to_owned(), verdict);
    }
    verdicts
}

/// The client's side of a connection: answers requests, remembers notifications.
#[derive(Debug, Clone, Default)]
struct Person {
    modern: bool,
    progress: Arc<Mutex<Vec<f64>>>,
    progressed: Arc<Notify>,
    updated: Arc<Notify>,
    tools_changed: Arc<Notify>,
}

impl ClientHandler for Person {
    fn get_info(&self) -> ClientConfig {
        let capabilities = ClientCapabilities::builder().enable_sampling().enable_elicitation().enable_tasks().build();
        let version = if self.modern { ProtocolVersion::V_2026_07_28 } else { ProtocolVersion::V_2025_11_25 };
        ClientConfig::new(capabilities, Implementation::new("matrix-rust", "1.0.0")).with_protocol_version(version)
    }

    async fn create_message(
        &self,
        params: CreateMessageRequestParams,
        _: RequestContext<RoleClient>,
    ) -> Result<CreateMessageResult, ErrorData> {
        let asked = params.messages.into_iter().flat_map(|message| message.content.into_vec());
        let asked: String = asked
            .filter_map(|part| match part {
                SamplingMessageContentBlock::Text(text) => Some(text.text),
                _ => None,
            })
            .collect();
        let answer = SamplingMessage::assistant_text(format!("heard: {asked}"));
        Ok(CreateMessageResult::new(answer, "a-model".to_owned()))
    }

    async fn create_elicitation(
        &self,
        params: ElicitRequestParams,
        _: RequestContext<RoleClient>,
    ) -> Result<ElicitResult, ErrorData> {
        let ElicitRequestParams::FormElicitationParams { requested_schema, .. } = params else {
            return Ok(ElicitResult::new(ElicitationAction::Decline));
        };
        let fields = requested_schema.properties.keys();
        let content: serde_json::Map<_, _> =
            fields.map(|field| (field.clone(), json!(format!("my {field}")))).collect();
        Ok(ElicitResult::new(ElicitationAction::Accept).with_content(content.into()))
    }

    async fn on_progress(&self, params: ProgressNotificationParam, _: NotificationContext<RoleClient>) {
        self.progress.lock().unwrap().push(params.progress);
        self.progressed.notify_one();
    }

    async fn on_resource_updated(&self, _: ResourceUpdatedNotificationParam, _: NotificationContext<RoleClient>) {
        self.updated.notify_one();
    }

    async fn on_tool_list_changed(&self, _: NotificationContext<RoleClient>) {
        self.tools_changed.notify_one();
    }
}

/// A connection of the SDK with a server.
struct Session {
    person: Person,
    client: RunningService<RoleClient, Person>,
    modern: bool,
}

impl Session {
    async fn open(mode: &str, target: &Target) -> Result<Self, Failure> {
        let mut config = StreamableHttpClientTransportConfig::with_uri(target.url.as_str());
        if let Some(token) = &target.token {
            config = config.auth_header(token);
        }
        let preferred_versions = vec![ProtocolVersion::V_2026_07_28];
        let lifecycle = match mode {
            "old" => ClientLifecycleMode::Initialize,
            "modern" => ClientLifecycleMode::Discover { preferred_versions },
            _ => ClientLifecycleMode::Auto { preferred_versions, legacy_version: Some(ProtocolVersion::V_2025_11_25) },
        };
        let person = Person { modern: mode != "old", ..Person::default() };
        let transport = StreamableHttpClientTransport::from_config(config);
        let opened = person.clone().serve_with_lifecycle(transport, lifecycle).await;
        let client = opened.map_err(|e| format!("connecting: {e:?}"))?;
        let version = client.peer_info().map(|info| info.protocol_version.clone());
        let modern = version.is_some_and(|version| !version.has_initialize());
        Ok(Self { person, client, modern })
    }

    async fn play(&mut self, scenario: &str) -> Result<&'static str, Failure> {
        match scenario {
            "tool call" => self.tool_call().await?,
            "progress" => self.progress().await?,
            "elicitation" => self.elicitation().await?,
            "sampling" => self.sampling().await?,
            "resource subscription" => self.resource_subscription().await?,
            "task" => return self.task().await,
            "cancellation" => self.cancellation().await?,
            _ => self.list_changed().await?,
        }
        Ok("ok")
    }

    /// Calls a tool, answering what it asks.
    async fn call(&self, name: &'static str, arguments: Value) -> Result<CallToolResult, Failure> {
        self.client.call_tool(params(name, arguments)).await.map_err(|e| format!("{name}: {e:?}"))
    }

    async fn tools(&self) -> Result<Vec<String>, Failure> {
        let listed = self.client.list_tools(None).await.map_err(|e| format!("tools/list: {e:?}"))?;
        Ok(listed.tools.into_iter().map(|tool| tool.name.into_owned()).collect())
    }

    async fn tool_call(&self) -> Result<(), Failure> {
        let arguments = json!({ "message": "grüße", "wei": 7 });
        let result = self.call("echo", arguments.clone()).await?;
        same("structured content", result.structured_content.unwrap_or_default(), arguments)
    }

    async fn progress(&self) -> Result<(), Failure> {
        self.person.progress.lock().unwrap().clear();
        self.call("test_tool_with_progress", json!({})).await?;
        let seen = self.person.progress.lock().unwrap().clone();
        same("progress", json!(seen), json!([0.0, 50.0, 100.0]))
    }

    async fn elicitation(&self) -> Result<(), Failure> {
        let answer = text(&self.call("test_elicitation", json!({ "message": "who are you" })).await?);
        let content = answer.strip_prefix("User response: action=accept, content=").ok_or_else(|| answer.clone())?;
        let content: Value = serde_json::from_str(content).map_err(|e| format!("{answer}: {e}"))?;
        same("answer", content, json!({ "username": "my username", "email": "my email" }))
    }

    async fn sampling(&self) -> Result<(), Failure> {
        let answer = text(&self.call("test_sampling", json!({ "prompt": "how are you" })).await?);
        same("answer", json!(answer), json!("LLM response: heard: how are you"))
    }

    async fn resource_subscription(&self) -> Result<(), Failure> {
        if self.modern {
            let filter = SubscriptionFilter::builder().resource_subscription(WATCHED).build();
            let mut subscription = self.listen(filter).await?;
            self.call("touch", json!({ "uri": WATCHED })).await?;
            return event(&mut subscription).await;
        }
        let subscribed = self.client.subscribe(SubscribeRequestParams::new(WATCHED)).await;
        subscribed.map_err(|e| format!("resources/subscribe: {e:?}"))?;
        self.call("touch", json!({ "uri": WATCHED })).await?;
        self.person.updated.notified().await;
        let unsubscribed = self.client.unsubscribe(UnsubscribeRequestParams::new(WATCHED)).await;
        unsubscribed.map_err(|e| format!("resources/unsubscribe: {e:?}"))
    }

    async fn listen(&self, filter: SubscriptionFilter) -> Result<Subscription, Failure> {
        let subscription = self.client.listen(filter.clone()).await.map_err(|e| format!("listen: {e:?}"))?;
        match *subscription.acknowledged() == filter {
            true => Ok(subscription),
            false => Err(format!("acknowledged: {:?}", subscription.acknowledged())),
        }
    }

    async fn task(&self) -> Result<&'static str, Failure> {
        let label = Uuid::new_v4().to_string();
        let expected = json!(format!("done: {label}"));
        let called = self.client.call_tool_once(params("long_job", json!({ "ms": 300, "label": label }))).await;
        let created = match called.map_err(|e| format!("long_job: {e:?}"))? {
            CallToolResponse::Task(created) => created.task,
            CallToolResponse::Complete(result) => {
                same("result", json!(text(&result)), expected)?;
                return Ok("without a task");
            }
            other => return Err(format!("{other:?}")),
        };
        loop {
            let state = self.client.get_task(GetTaskParams::new(created.task_id.as_str())).await;
            match state.map_err(|e| format!("tasks/get: {e:?}"))?.task.payload {
                TaskPayload::Working => tokio::time::sleep(Duration::from_millis(50)).await,
                TaskPayload::Completed { result } => {
                    let result: CallToolResult = serde_json::from_value(result.into()).map_err(|e| e.to_string())?;
                    same("result", json!(text(&result)), expected)?;
                    return Ok("ok");
                }
                other => return Err(format!("{other:?}")),
            }
        }
    }

    async fn cancellation(&self) -> Result<(), Failure> {
        let key = Uuid::new_v4().to_string();
        // Progress of calls before this one has been reported.
        let _ = tokio::time::timeout(Duration::ZERO, self.person.progressed.notified()).await;
        tokio::select! {
            answer = self.call("hang", json!({ "key": key })) => return Err(format!("answered: {answer:?}")),
            () = self.person.progressed.notified() => {}
        }
        while text(&self.call("cancellations", json!({ "key": key })).await?) != "1" {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    async fn list_changed(&self) -> Result<(), Failure> {
        let name = format!("grown_{}", Uuid::new_v4());
        let mut subscription = None;
        if self.modern {
            subscription = Some(self.listen(SubscriptionFilter::builder().tools_list_changed().build()).await?);
        }
        same("the new tool is there already", json!(self.tools().await?.contains(&name)), json!(false))?;
        self.call("grow", json!({ "name": name })).await?;
        match &mut subscription {
            Some(subscription) => event(subscription).await?,
            None => self.person.tools_changed.notified().await,
        }
        while !self.tools().await?.contains(&name) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }
}

fn params(name: &'static str, arguments: Value) -> CallToolRequestParams {
    let Value::Object(arguments) = arguments else { panic!("arguments of {name} are an object") };
    CallToolRequestParams::new(name).with_arguments(arguments)
}

fn text(result: &CallToolResult) -> String {
    result.content.iter().filter_map(ContentBlock::as_text).map(|part| part.text.as_str()).collect()
}

fn same(what: &str, got: Value, expected: Value) -> Result<(), Failure> {
    if got == expected { Ok(()) } else { Err(format!("{what}: {got}, not {expected}")) }
}

/// Waits for anything on a subscription.
async fn event(subscription: &mut Subscription) -> Result<(), Failure> {
    match subscription.next().await {
        Ok(Some(_)) => Ok(()),
        other => Err(format!("the subscription ended: {other:?}, {:?}", subscription.end())),
    }
}
