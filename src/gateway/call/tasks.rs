//! Which task is whose: what a server works on after its answer, and under which obligations its result stands.
//!
//! A task's id is no right to it: each is bound to the caller whose call it came of, and to anybody else it does not exist. The register is the
//! gateway's own, bounded, and gone with it. At the endpoint of all plugins an id has its plugin's name in front, as names of tools have.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::subject::Subject;
use crate::gateway::message::{Json, Object};
use crate::gateway::policy::Verdict;

/// Tasks of one caller that are known at once; of more, the oldest is forgotten.
const MAX_TASKS: usize = 256;

/// How long a task is known.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// The longest id of a task that is taken.
const MAX_ID: usize = 512;

/// What is known of a task.
#[derive(Debug, Clone)]
pub(crate) struct Task {
    /// As its server calls it.
    pub(crate) id: Box<str>,
    /// As its client does.
    pub(crate) client_id: Box<str>,
    pub(crate) subject: Subject,
    pub(crate) verdict: Verdict,
    /// The session of an old client that it belongs to.
    session: Option<Arc<str>>,
    /// What its server said of it last.
    pub(crate) last: Json,
    since: Instant,
}

/// See the module's doc.
#[derive(Debug, Default)]
pub(crate) struct Tasks(Mutex<HashMap<Arc<str>, VecDeque<Task>>>);

/// Whose tasks: a caller, and the session of an old client.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner<'a> {
    pub(crate) caller: &'a Arc<str>,
    pub(crate) session: Option<&'a Arc<str>>,
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
        let Some(mut object) = result.object() else { return result };
        // Of 2025-11-25 the task is a member, of the extension it is the result.
        let nested = object.get("task").and_then(Json::object);
        let is_flat = object.text("resultType").as_deref() == Some("task");
        let Some(mut task) = nested.or_else(|| is_flat.then(|| object.clone())) else { return result };
        let Some(id) = task.text("taskId").map(std::borrow::Cow::into_owned).filter(|id| id.len() <= MAX_ID) else {
            return result;
        };
        let client_id = prefix.map_or_else(|| id.clone(), |prefix| format!("{prefix}__{id}"));
        task.set("taskId", Json::text(&client_id));
        let last = task.to_json();
        if is_flat {
            object = task;
        } else {
            object.set("task", last.clone());
        }
        let task = Task {
            id: id.into(),
            client_id: client_id.into(),
            subject: subject.clone(),
            verdict: verdict.clone(),
            session: owner.session.cloned(),
            last,
            since: Instant::now(),
        };
        let mut all = self.0.lock();
        let tasks = all.entry(Arc::clone(owner.caller)).or_default();
        tasks.retain(|known| known.client_id != task.client_id && known.since.elapsed() < LIFETIME);
        if tasks.len() >= MAX_TASKS {
            tasks.pop_front();
        }
        tasks.push_back(task);
        object.to_json()
    }

    /// The task of an id, if it is the owner's, at one of these plugins.
    pub(crate) fn find(&self, owner: Owner<'_>, id: &str) -> Option<Task> {
        self.of(owner).into_iter().find(|task| *task.client_id == *id)
    }

    /// The task that a server calls so, if it is the owner's.
    pub(crate) fn find_by_server(&self, owner: Owner<'_>, index: usize, id: &str) -> Option<Task> {
        self.of(owner).into_iter().find(|task| task.subject.index == index && *task.id == *id)
    }

    /// All tasks of the owner, the oldest first.
    pub(crate) fn of(&self, owner: Owner<'_>) -> Vec<Task> {
        let all = self.0.lock();
        let tasks = all.get(owner.caller).into_iter().flatten();
        let is_owners = |task: &&Task| {
            task.since.elapsed() < LIFETIME && task.session.as_deref() == owner.session.map(|session| &**session)
        };
        tasks.filter(is_owners).cloned().collect()
    }

    /// A server said more of a task; the members of what it said count that belong to every task.
    pub(crate) fn update(&self, owner: Owner<'_>, client_id: &str, said: &Object) {
        let mut all = self.0.lock();
        let task =
            all.get_mut(owner.caller).and_then(|tasks| tasks.iter_mut().find(|task| *task.client_id == *client_id));
        let Some(task) = task else { return };
        let Some(mut last) = task.last.object() else { return };
        for name in ["status", "lastUpdatedAt", "ttl", "pollInterval", "ttlMs", "pollIntervalMs"] {
            if let Some(value) = said.get(name) {
                last.set(name, value.clone());
            }
        }
        task.last = last.to_json();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::{MAX_TASKS, Owner, Tasks};
    use crate::gateway::call::subject::Subject;
    use crate::gateway::message::Json;
    use crate::gateway::policy::{Action, Verdict};
    use crate::model::Decision;

    fn verdict() -> Verdict {
        Verdict { decision: Decision::Permit, policy_ids: Vec::new(), obligations: Arc::default(), reason: None }
    }

    fn remember(tasks: &Tasks, caller: &Arc<str>, id: &str) -> Json {
        let result = Json::of(&json!({ "task": { "taskId": id, "status": "working" }, "x": 1 }));
        let subject = Subject::plugin(0, Action::CallTool);
        tasks.remember(Owner { caller, session: None }, (&subject, &verdict()), Some("p"), result)
    }

    #[test]
    fn a_task_is_its_callers_alone() {
        let tasks = Tasks::default();
        let (ann, eve): (Arc<str>, Arc<str>) = ("user:ann".into(), "user:eve".into());
        let result = remember(&tasks, &ann, "t").value().unwrap();
        assert_eq!(result, json!({ "task": { "taskId": "p__t", "status": "working" }, "x": 1 }));
        let owner = Owner { caller: &ann, session: None };
        assert_eq!(&*tasks.find(owner, "p__t").unwrap().id, "t");
        assert!(tasks.find(Owner { caller: &eve, session: None }, "p__t").is_none());
        let session: Arc<str> = "s".into();
        assert!(tasks.find(Owner { caller: &ann, session: Some(&session) }, "p__t").is_none());
        tasks.update(owner, "p__t", &Json::of(&json!({ "status": "completed", "result": {} })).object().unwrap());
        assert_eq!(
            tasks.find(owner, "p__t").unwrap().last.value().unwrap(),
            json!({ "taskId": "p__t", "status": "completed" })
        );
    }

    #[test]
    fn no_more_are_known_than_may_be() {
        let (tasks, ann): (_, Arc<str>) = (Tasks::default(), "user:ann".into());
        for id in 0..MAX_TASKS + 3 {
            remember(&tasks, &ann, &id.to_string());
        }
        let known = tasks.of(Owner { caller: &ann, session: None });
        assert_eq!((known.len(), &*known[0].id), (MAX_TASKS, "3"));
    }
}
