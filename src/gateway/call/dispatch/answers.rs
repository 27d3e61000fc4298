//! What an old client answers to what a modern server asks for in a result.

use std::sync::Arc;

use futures::future::join_all;
use serde_json::json;

use crate::gateway::call::bridge::Input;
use crate::gateway::call::error::CallError;
use crate::gateway::call::scope::Scope;
use crate::gateway::call::table::{self, Question};
use crate::gateway::message::{Json, Object};
use crate::gateway::upstream::UpstreamError;

/// What an old client answers to what a modern server asks for.
pub(super) async fn answers(
    scope: &Arc<Scope>,
    requests: Vec<Input>,
    not_mcp: impl Fn() -> CallError,
) -> Result<Object, CallError> {
    let mut questions = Vec::with_capacity(requests.len());
    for request in requests {
        let question = table::server_request(&request.method).ok_or_else(&not_mcp)?;
        questions.push((question, request));
    }
    let asked = questions.into_iter().map(|(question, Input { key, method, params })| async move {
        match scope.may_ask(question, &method, params.as_ref()).await {
            // Declined in the client's place, or no question that it may be asked.
            Ok(Some(answer)) => (key, question, Ok(Some(answer)), false),
            Err(_) => (key, question, Ok(None), false),
            Ok(None) => (key, question, scope.ask(question, method, params).await.map(Some), true),
        }
    });
    let (mut answers, mut was_asked) = (Object::default(), false);
    for (key, question, answer, asked) in join_all(asked).await {
        was_asked |= asked;
        match (answer, question) {
            (Ok(Some(answer)), _) => answers.set(&key, answer),
            (Ok(None), _) => {}
            // There is no place for an error among the answers.
            (Err(_), Question::Elicit) => answers.set(&key, Json::of(&json!({ "action": "cancel" }))),
            (Err(error), _) => {
                return Err(CallError::upstream(&UpstreamError::Refused(error), scope.plugin().name()));
            }
        }
    }
    if was_asked { Ok(answers) } else { Err(CallError::questions_denied()) }
}
