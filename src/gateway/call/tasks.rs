//! Which task is whose: what a server works on after its answer, and under which obligations its result stands.
//!
//! A task's id is no right to it: each is bound to the caller whose call it came of, and to anybody else it does not
//! exist. The register is the gateway's own, bounded, and gone with it. At the endpoint of all plugins an id has its
//! plugin's name in front, as names of tools have.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::subject::Subject;
use crate::gateway::message::{Json, Object};
use crate::gateway::policy::Verdict;

/// Tasks of one caller that are known at once, and of all callers; of more, the oldest of the caller who has most is
/// forgotten.
const MAX_TASKS: usize = 256;
const MAX_ALL: usize = 20_000;

/// How long a task is known.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// The longest id of a task that is taken, and what else of it is kept: the members that every task has, each no longer
/// than this.
const MAX_ID: usize = 512;
const MAX_MEMBER: usize = 1_024;
const MEMBERS: [&str; 9] = [
    "taskId",
    "status",
    "statusMessage",
    "createdAt",
    "lastUpdatedAt",
    "ttl",
    "pollInterval",
    "ttlMs",
    "pollIntervalMs",
];

/// Questions of a task that are remembered as asked.
const MAX_ASKED: usize = 64;

/// What is known of a task.
#[derive(Debug, Clone)]
pub(crate) struct Task {
    /// As its server calls it.
    pub(crate) id: Box<str>,
    /// As its client does.
    pub(crate) client_id: Box<str>,
    pub(crate) subject: Subject,
    pub(crate) verdict: Verdict,
    /// The endpoint that it came of: the plugin's index in its subject is of this one alone.
    endpoint: Box<str>,
    /// The session of an old client that it belongs to.
    session: Option<Arc<str>>,
    /// What its server said of it last.
    pub(crate) last: Json,
    /// The keys of the questions that its client was asked.
    pub(crate) asked: Vec<Box<str>>,
    since: Instant,
}

/// The member of `_meta` that says which task a message is about.
const RELATED: &str = "io.modelcontextprotocol/related-task";

impl Task {
    /// Names it in what its server says of it as its client does.
    pub(crate) fn rename(&self, said: &mut Object) {
        if said.has("taskId") {
            said.set("taskId", Json::text(&self.client_id));
        }
        let meta = said.get("_meta").filter(|meta| meta.at(&[RELATED, "taskId"]).is_some()).and_then(Json::object);
        if let Some(mut meta) = meta
            && let Some(mut related) = meta.get(RELATED).and_then(Json::object)
        {
            related.set("taskId", Json::text(&self.client_id));
            meta.set(RELATED, related.to_json());
            said.set("_meta", meta.to_json());
        }
    }

    /// Whether its server may still be at work on it, as far as is known.
    fn is_unfinished(&self) -> bool {
        let status = self.last.get("status");
        let status = status.as_ref().and_then(Json::as_text);
        !matches!(status.as_deref(), Some("completed" | "failed" | "cancelled"))
    }
}

/// See the module's doc.
#[derive(Debug, Default)]
pub(crate) struct Tasks(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    of_callers: HashMap<Arc<str>, VecDeque<Task>>,
    count: usize,
}

/// Whose tasks: a caller, the session of an old client, and the endpoint.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner<'a> {
    pub(crate) caller: &'a Arc<str>,
    pub(crate) session: Option<&'a Arc<str>>,
    /// See [`Endpoint::name`](super::client::Endpoint::name).
    pub(crate) endpoint: &'a str,
}

impl Owner<'_> {
    fn has(self, task: &Task) -> bool {
        task.since.elapsed() < LIFETIME
            && *task.endpoint == *self.endpoint
            && task.session.as_deref() == self.session.map(|session| &**session)
    }
}

impl Tasks {
    /// Remembers the task in a result, if the result is one, and gives the result with the id as the client calls it.
    pub(crate) fn remember(
        &self,
        owner: Owner<'_>,
        (subject, verdict): (&Subject, &Verdict),
        prefix: Option<&str>,
        result: Json,
    ) -> Json {
        // Of 2025-11-25 the task is a member, of the extension it is the result.
        let is_flat = result.get("resultType").is_some_and(|kind| kind.as_text().as_deref() == Some("task"));
        let nested = result.get("task").filter(Json::is_object);
        if !is_flat && nested.is_none() {
            return result;
        }
        let Some(mut object) = result.object() else { return result };
        let is_nested = nested.is_some();
        let Some(mut task) = nested.map_or_else(|| Some(object.clone()), |task| task.object()) else { return result };
        let Some(id) = task.text("taskId").map(std::borrow::Cow::into_owned).filter(|id| id.len() <= MAX_ID) else {
            return result;
        };
        let client_id = prefix.map_or_else(|| id.clone(), |prefix| format!("{prefix}__{id}"));
        task.set("taskId", Json::text(&client_id));
        let last = kept(task.clone());
        if is_nested {
            object.set("task", task.to_json());
        } else {
            object = task;
        }
        let task = Task {
            id: id.into(),
            client_id: client_id.into(),
            subject: subject.clone(),
            verdict: verdict.clone(),
            endpoint: owner.endpoint.into(),
            session: owner.session.cloned(),
            last,
            asked: Vec::new(),
            since: Instant::now(),
        };
        let mut known = self.0.lock();
        let tasks = known.of_callers.entry(Arc::clone(owner.caller)).or_default();
        let before = tasks.len();
        tasks.retain(|other| {
            let is_same = other.client_id == task.client_id && owner.has(other);
            !is_same && other.since.elapsed() < LIFETIME
        });
        if tasks.len() >= MAX_TASKS {
            tasks.pop_front();
        }
        tasks.push_back(task);
        let now = tasks.len();
        known.count = known.count + now - before;
        known.make_room();
        object.to_json()
    }

    /// The task of an id, if it is the owner's.
    pub(crate) fn find(&self, owner: Owner<'_>, id: &str) -> Option<Task> {
        self.first(owner, |task| *task.client_id == *id)
    }

    /// The task that a server calls so, if it is the owner's.
    pub(crate) fn find_by_server(&self, owner: Owner<'_>, index: usize, id: &str) -> Option<Task> {
        self.first(owner, |task| task.subject.index == index && *task.id == *id)
    }

    fn first(&self, owner: Owner<'_>, is_it: impl Fn(&Task) -> bool) -> Option<Task> {
        let known = self.0.lock();
        known.of_callers.get(owner.caller)?.iter().find(|task| owner.has(task) && is_it(task)).cloned()
    }

    /// Whether a task of the owner at this plugin is unfinished whose result is redacted.
    pub(crate) fn is_redacting(&self, owner: Owner<'_>, index: usize) -> bool {
        let redacts = |task: &Task| {
            task.subject.index == index && task.verdict.obligations.redacts_result() && task.is_unfinished()
        };
        let known = self.0.lock();
        known.of_callers.get(owner.caller).into_iter().flatten().any(|task| owner.has(task) && redacts(task))
    }

    /// What was said last of all tasks of the owner, the oldest first.
    pub(crate) fn of(&self, owner: Owner<'_>) -> Vec<Json> {
        let known = self.0.lock();
        let tasks = known.of_callers.get(owner.caller).into_iter().flatten();
        tasks.filter(|task| owner.has(task)).map(|task| task.last.clone()).collect()
    }

    /// A server said more of a task; the members of what it said count that belong to every task.
    pub(crate) fn update(&self, owner: Owner<'_>, client_id: &str, said: &Object) {
        self.change(owner, client_id, |task| {
            let Some(mut last) = task.last.object() else { return };
            for name in ["status", "lastUpdatedAt", "ttl", "pollInterval", "ttlMs", "pollIntervalMs"] {
                if let Some(value) = said.get(name).filter(|value| value.len() <= MAX_MEMBER) {
                    last.set(name, value.clone());
                }
            }
            // Bytes of its own.
            task.last = last.to_json();
        });
    }

    /// Its client is asked these questions for the sake of a task.
    pub(crate) fn asks(&self, owner: Owner<'_>, client_id: &str, keys: Vec<Box<str>>) {
        self.change(owner, client_id, |task| {
            for key in keys {
                if !task.asked.contains(&key) && task.asked.len() < MAX_ASKED && key.len() <= MAX_ID {
                    task.asked.push(key);
                }
            }
        });
    }

    fn change(&self, owner: Owner<'_>, client_id: &str, change: impl FnOnce(&mut Task)) {
        let mut known = self.0.lock();
        let Some(tasks) = known.of_callers.get_mut(owner.caller) else { return };
        if let Some(task) = tasks.iter_mut().find(|task| owner.has(task) && *task.client_id == *client_id) {
            change(task);
        }
    }
}

/// The members of a task that are kept.
fn kept(mut task: Object) -> Json {
    task.retain(|name, value| MEMBERS.contains(&name) && value.len() <= MAX_MEMBER);
    // Bytes of its own: what is kept for a day does not keep the answer it came in.
    task.to_json()
}

impl Known {
    /// Forgets what is too old, then tasks of those who have most, while there are too many.
    fn make_room(&mut self) {
        if self.count <= MAX_ALL {
            return;
        }
        self.of_callers.retain(|_, tasks| {
            tasks.retain(|task| task.since.elapsed() < LIFETIME);
            !tasks.is_empty()
        });
        self.count = self.of_callers.values().map(VecDeque::len).sum();
        while self.count > MAX_ALL {
            let most = self.of_callers.iter().max_by_key(|(_, tasks)| tasks.len());
            let Some(most) = most.map(|(caller, _)| Arc::clone(caller)) else { return };
            let Some(tasks) = self.of_callers.get_mut(&most) else { return };
            tasks.pop_front();
            if tasks.is_empty() {
                self.of_callers.remove(&most);
            }
            self.count -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::{MAX_ALL, MAX_TASKS, Owner, Tasks};
    use crate::gateway::call::subject::Subject;
    use crate::gateway::message::Json;
    use crate::gateway::policy::{Action, Obligations, Verdict};
    use crate::model::Decision;

    fn verdict() -> Verdict {
        Verdict { decision: Decision::Permit, policy_ids: Vec::new(), obligations: Arc::default(), reason: None }
    }

    fn owner(caller: &Arc<str>) -> Owner<'_> {
        Owner { caller, session: None, endpoint: "" }
    }

    fn remember(tasks: &Tasks, owner: Owner<'_>, id: &str) -> Json {
        let result = Json::of(&json!({ "task": { "taskId": id, "status": "working" }, "x": 1 }));
        let subject = Subject::plugin(0, Action::CallTool);
        tasks.remember(owner, (&subject, &verdict()), owner.endpoint.is_empty().then_some("p"), result)
    }

    #[test]
    fn a_task_is_its_callers_alone() {
        let tasks = Tasks::default();
        let (ann, eve): (Arc<str>, Arc<str>) = ("user:ann".into(), "user:eve".into());
        let result = remember(&tasks, owner(&ann), "t").value().unwrap();
        assert_eq!(result, json!({ "task": { "taskId": "p__t", "status": "working" }, "x": 1 }));
        assert_eq!(&*tasks.find(owner(&ann), "p__t").unwrap().id, "t");
        assert!(tasks.find(owner(&eve), "p__t").is_none());
        let session: Arc<str> = "s".into();
        assert!(tasks.find(Owner { session: Some(&session), ..owner(&ann) }, "p__t").is_none());
        let said = json!({ "status": "completed", "result": {}, "ttl": "x".repeat(5_000) });
        tasks.update(owner(&ann), "p__t", &Json::of(&said).object().unwrap());
        assert_eq!(
            tasks.find(owner(&ann), "p__t").unwrap().last.value().unwrap(),
            json!({ "taskId": "p__t", "status": "completed" })
        );
    }

    #[test]
    fn a_task_whose_result_is_redacted_withholds_words_until_it_has_ended() {
        let (tasks, ann): (_, Arc<str>) = (Tasks::default(), "user:ann".into());
        let mut obligations = Obligations::default();
        obligations.annotate("redact", "result:/token").unwrap();
        let redacts = Verdict { obligations: Arc::new(obligations), ..verdict() };
        let result = Json::of(&json!({ "task": { "taskId": "t", "status": "working" } }));
        let subject = Subject::plugin(1, Action::CallTool);
        remember(&tasks, owner(&ann), "other");
        assert!(!tasks.is_redacting(owner(&ann), 0));
        tasks.remember(owner(&ann), (&subject, &redacts), None, result);
        assert!(tasks.is_redacting(owner(&ann), 1) && !tasks.is_redacting(owner(&ann), 0));
        assert!(!tasks.is_redacting(owner(&"user:eve".into()), 1));
        tasks.update(owner(&ann), "t", &Json::of(&json!({ "status": "completed" })).object().unwrap());
        assert!(!tasks.is_redacting(owner(&ann), 1));
    }

    #[test]
    fn what_is_said_of_a_task_names_it_as_its_client_does() {
        let (tasks, ann): (_, Arc<str>) = (Tasks::default(), "user:ann".into());
        remember(&tasks, owner(&ann), "t");
        let task = tasks.find(owner(&ann), "p__t").unwrap();
        let related = |id: &str| json!({ "io.modelcontextprotocol/related-task": { "taskId": id }, "more": 1 });
        let mut said = Json::of(&json!({ "content": [], "taskId": "t", "_meta": related("t") })).object().unwrap();
        task.rename(&mut said);
        let expected = json!({ "content": [], "taskId": "p__t", "_meta": related("p__t") });
        assert_eq!(said.to_json().value().unwrap(), expected);
        let mut plain = Json::of(&json!({ "_meta": {} })).object().unwrap();
        task.rename(&mut plain);
        assert_eq!(plain.to_json().value().unwrap(), json!({ "_meta": {} }));
    }

    #[test]
    fn a_task_of_one_endpoint_is_none_of_another() {
        // Both servers call their first task 1; at each endpoint of one plugin its index is 0.
        let (tasks, ann): (_, Arc<str>) = (Tasks::default(), "user:ann".into());
        let at = |endpoint| Owner { endpoint, ..owner(&ann) };
        remember(&tasks, at("one"), "1");
        assert!(tasks.find(at("two"), "1").is_none() && tasks.find(owner(&ann), "1").is_none());
        assert!(tasks.find_by_server(at("two"), 0, "1").is_none());
        remember(&tasks, at("two"), "1");
        assert!(tasks.find(at("one"), "1").is_some(), "the one does not replace the other");
        assert_eq!(tasks.of(at("one")).len(), 1);
    }

    #[test]
    fn what_a_server_adds_to_a_task_is_passed_on_and_not_kept() {
        let (tasks, ann): (_, Arc<str>) = (Tasks::default(), "user:ann".into());
        let subject = Subject::plugin(0, Action::CallTool);
        let result = json!({ "resultType": "task", "taskId": "t", "status": "working", "more": "x".repeat(100_000) });
        let passed = tasks.remember(owner(&ann), (&subject, &verdict()), None, Json::of(&result));
        assert_eq!(passed.value().unwrap(), result);
        assert!(tasks.find(owner(&ann), "t").unwrap().last.len() < 200);
    }

    #[test]
    fn a_question_is_asked_of_its_task() {
        let (tasks, ann): (_, Arc<str>) = (Tasks::default(), "user:ann".into());
        remember(&tasks, owner(&ann), "t");
        tasks.asks(owner(&ann), "p__t", vec!["k".into(), "k".into()]);
        assert_eq!(tasks.find(owner(&ann), "p__t").unwrap().asked, ["k".into()]);
    }

    #[test]
    fn no_more_are_known_than_may_be() {
        let (tasks, ann): (_, Arc<str>) = (Tasks::default(), "user:ann".into());
        for id in 0..MAX_TASKS + 3 {
            remember(&tasks, owner(&ann), &id.to_string());
        }
        let known = tasks.of(owner(&ann));
        assert_eq!((known.len(), known[0].value().unwrap()["taskId"].clone()), (MAX_TASKS, json!("p__3")));
        for caller in 0..MAX_ALL {
            remember(&tasks, owner(&format!("user:{caller}").into()), "t");
        }
        assert_eq!(tasks.0.lock().count, MAX_ALL);
        assert!(tasks.find(owner(&"user:7".into()), "p__t").is_some(), "who has most gives first");
    }
}
