//! The methods of MCP, all of them, as data: who may send which in which version, and what the gateway does with it.
//!
//! | class | what is done |
//! |---|---|
//! | own | the gateway answers or uses it itself |
//! | governed | a recorded permit for an action lets it through |
//! | of the call | no new decision: it belongs to a call, a task, a question or a subscription of its sender |
//! | passed | it goes on to the servers of its session |
//! | refused | whatever is not in here, or not in the message's version |
//!
//! What is in no version may be named by `plugins[].pass_methods`, and is then governed as `call_method`.

use crate::gateway::policy::Action;
use crate::gateway::protocol::{Generation, OLD};
use crate::gateway::upstream::ListKind;

/// Versions, as bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Versions(u8);

const A: u8 = 1;
const B: u8 = 2;
const C: u8 = 4;
const D: u8 = 8;
const M: u8 = 16;
/// Modern, with the extension for tasks in the request.
const T: u8 = 32;
const OLD_ALL: u8 = A | B | C | D;
const ALL: u8 = OLD_ALL | M | T;

impl Versions {
    /// The version that a message is written in.
    pub(crate) fn of(generation: Generation, version: &str, tasks: bool) -> Self {
        Self(match generation {
            Generation::Modern if tasks => T,
            Generation::Modern => M,
            Generation::Old => match OLD.into_iter().position(|known| known == version) {
                Some(0) => A,
                Some(1) => B,
                Some(2) => C,
                _ => D,
            },
        })
    }
}

/// What a client's request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    Initialize,
    Discover,
    Ping,
    List(ListKind),
    CallTool,
    GetPrompt,
    ReadResource,
    Subscribe,
    Unsubscribe,
    Listen,
    Complete,
    SetLevel,
    TaskGet,
    TaskResult,
    TaskList,
    TaskCancel,
    TaskUpdate,
}

/// What is done with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    Own,
    Governed(Action),
    OfTheCall,
    Passed,
}

/// A request of clients.
struct Request {
    name: &'static str,
    versions: u8,
    class: Class,
    method: Method,
}

const fn request(name: &'static str, versions: u8, class: Class, method: Method) -> Request {
    Request { name, versions, class, method }
}

const REQUESTS: [Request; 20] = [
    request("initialize", OLD_ALL, Class::Own, Method::Initialize),
    request("server/discover", M | T, Class::Own, Method::Discover),
    request("ping", OLD_ALL, Class::Own, Method::Ping),
    request("tools/list", ALL, Class::Governed(Action::List), Method::List(ListKind::Tools)),
    request("prompts/list", ALL, Class::Governed(Action::List), Method::List(ListKind::Prompts)),
    request("resources/list", ALL, Class::Governed(Action::List), Method::List(ListKind::Resources)),
    request("resources/templates/list", ALL, Class::Governed(Action::List), Method::List(ListKind::Templates)),
    request("tools/call", ALL, Class::Governed(Action::CallTool), Method::CallTool),
    request("prompts/get", ALL, Class::Governed(Action::GetPrompt), Method::GetPrompt),
    request("resources/read", ALL, Class::Governed(Action::ReadResource), Method::ReadResource),
    request("resources/subscribe", OLD_ALL, Class::Governed(Action::ReadResource), Method::Subscribe),
    request("resources/unsubscribe", OLD_ALL, Class::OfTheCall, Method::Unsubscribe),
    request("subscriptions/listen", M | T, Class::Own, Method::Listen),
    request("completion/complete", ALL, Class::Governed(Action::Complete), Method::Complete),
    request("logging/setLevel", OLD_ALL, Class::Own, Method::SetLevel),
    request("tasks/get", D | T, Class::OfTheCall, Method::TaskGet),
    request("tasks/result", D, Class::OfTheCall, Method::TaskResult),
    request("tasks/list", D, Class::Own, Method::TaskList),
    request("tasks/cancel", D | T, Class::OfTheCall, Method::TaskCancel),
    request("tasks/update", T, Class::OfTheCall, Method::TaskUpdate),
];

/// What became of the look-up of a client's request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// It is served in this version.
    Served(Method, Class),
    /// It is in the extension for tasks, which this request did not declare.
    NeedsTasks,
    /// It is of another version.
    Elsewhere,
    /// No version has it.
    Unknown,
}

/// A client's request of this name.
pub(crate) fn client_request(name: &str, version: Versions) -> Found {
    match REQUESTS.iter().find(|row| row.name == name) {
        Some(row) if row.versions & version.0 != 0 => Found::Served(row.method, row.class),
        Some(row) if version.0 == M && row.versions & T != 0 => Found::NeedsTasks,
        Some(_) => Found::Elsewhere,
        // What servers ask of clients is no method of a server, and no name for `pass_methods`.
        None if server_request(name).is_some() => Found::Elsewhere,
        None => Found::Unknown,
    }
}

/// What a server's request asks for, where clients may have to answer it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Question {
    Sample,
    Elicit,
    ListRoots,
}

impl Question {
    /// What policy is asked.
    pub(crate) fn action(self) -> Action {
        match self {
            Self::Sample => Action::Sample,
            Self::Elicit => Action::Elicit,
            Self::ListRoots => Action::ListRoots,
        }
    }
}

const QUESTIONS: [(&str, Question); 3] = [
    ("sampling/createMessage", Question::Sample),
    ("elicitation/create", Question::Elicit),
    ("roots/list", Question::ListRoots),
];

/// A server's request of this name, whether it stands alone or is embedded in a result; all others are refused.
pub(crate) fn server_request(name: &str) -> Option<Question> {
    QUESTIONS.into_iter().find(|(known, _)| *known == name).map(|(_, question)| question)
}

/// What a client's notification is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClientNote {
    Initialized,
    Cancelled,
    Progress,
    RootsChanged,
    TaskStatus,
}

/// A client's notification of this name in an old version, and its class. Modern clients have none that does anything.
pub(crate) fn client_notification(name: &str) -> Option<(ClientNote, Class)> {
    Some(match name {
        "notifications/initialized" => (ClientNote::Initialized, Class::Own),
        "notifications/cancelled" => (ClientNote::Cancelled, Class::OfTheCall),
        "notifications/progress" => (ClientNote::Progress, Class::OfTheCall),
        "notifications/roots/list_changed" => (ClientNote::RootsChanged, Class::Passed),
        "notifications/tasks/status" => (ClientNote::TaskStatus, Class::OfTheCall),
        _ => return None,
    })
}

/// What a server's notification is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ServerNote {
    Progress,
    Message,
    ListChanged(ListKind),
    Updated,
    ElicitationComplete,
    /// Of a task: `notifications/tasks/status` of old versions, `notifications/tasks` of the extension.
    Task,
}

/// A server's notification of this name. Any other is dropped, and counted.
pub(crate) fn server_notification(name: &str) -> Option<ServerNote> {
    Some(match name {
        "notifications/progress" => ServerNote::Progress,
        "notifications/message" => ServerNote::Message,
        "notifications/tools/list_changed" => ServerNote::ListChanged(ListKind::Tools),
        "notifications/prompts/list_changed" => ServerNote::ListChanged(ListKind::Prompts),
        "notifications/resources/list_changed" => ServerNote::ListChanged(ListKind::Resources),
        "notifications/resources/updated" => ServerNote::Updated,
        "notifications/elicitation/complete" => ServerNote::ElicitationComplete,
        "notifications/tasks/status" | "notifications/tasks" => ServerNote::Task,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::{Class, Found, Method, Versions, client_request, server_request};
    use crate::gateway::policy::Action;
    use crate::gateway::protocol::{Generation, OLD};

    fn old(version: &str) -> Versions {
        Versions::of(Generation::Old, version, false)
    }

    #[test]
    fn a_method_is_served_in_its_versions_alone() {
        let modern = Versions::of(Generation::Modern, "2026-07-28", false);
        let tasks = Versions::of(Generation::Modern, "2026-07-28", true);
        for version in OLD {
            assert!(matches!(client_request("tools/call", old(version)), Found::Served(Method::CallTool, _)));
            assert_eq!(client_request("server/discover", old(version)), Found::Elsewhere);
            let tasks = client_request("tasks/get", old(version));
            assert_eq!(matches!(tasks, Found::Served(..)), version == "2025-11-25");
        }
        for removed in
            ["initialize", "ping", "logging/setLevel", "resources/subscribe", "resources/unsubscribe", "tasks/list"]
        {
            assert_eq!(client_request(removed, modern), Found::Elsewhere, "{removed}");
        }
        assert_eq!(client_request("tasks/get", modern), Found::NeedsTasks);
        assert!(matches!(client_request("tasks/update", tasks), Found::Served(..)));
        assert_eq!(client_request("tasks/result", tasks), Found::Elsewhere);
    }

    #[test]
    fn what_no_version_has_is_unknown_and_what_servers_ask_is_no_method_of_theirs() {
        assert_eq!(client_request("no/such", old("2025-11-25")), Found::Unknown);
        assert_eq!(client_request("sampling/createMessage", old("2025-11-25")), Found::Elsewhere);
        assert!(server_request("tools/call").is_none());
    }

    #[test]
    fn all_that_reaches_a_server_for_a_caller_is_governed_or_of_a_call() {
        for method in
            ["tools/call", "prompts/get", "resources/read", "resources/subscribe", "completion/complete", "tools/list"]
        {
            assert!(
                matches!(client_request(method, old("2025-11-25")), Found::Served(_, Class::Governed(_))),
                "{method}"
            );
        }
        let Found::Served(_, class) = client_request("completion/complete", old("2025-11-25")) else { panic!() };
        assert_eq!(class, Class::Governed(Action::Complete));
    }
}
