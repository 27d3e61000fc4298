//! One call's story, from its arrival to its answer.

use std::sync::Arc;

use rmcp::model::ErrorData;
use serde_json::Value;
use tokio::time::timeout;
use uuid::Uuid;

use super::mcp::{Inbound, Session};
use super::message::Request;
use super::upstream::{Ask, Plugin, StreamNumber, UpstreamFault};
use crate::model::{Clock, Random};

/// A request, and whose it is.
#[derive(Clone, Copy)]
pub(crate) struct Work<'a> {
    pub(crate) session: &'a Arc<Session>,
    pub(crate) inbound: &'a Arc<Inbound>,
    pub(crate) request: &'a Request,
    /// Where its response, and what comes in between, goes.
    pub(crate) stream: StreamNumber,
}

impl<'a> Work<'a> {
    pub(crate) fn plugin(&self, index: usize) -> Option<&'a Arc<Plugin>> {
        self.session.endpoint.plugins.get(index)
    }
}

/// Calls of tools.
pub(crate) struct Calls {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) random: Arc<dyn Random>,
}

impl Calls {
    pub(crate) fn random_id(&self) -> Uuid {
        self.random.uuid()
    }

    /// Whether a caller may see a tool.
    pub(crate) fn may_list(&self, _: &Inbound, _: &str, _: &str) -> bool {
        true
    }

    /// A call of the tool `target`: the plugin's index, and what the plugin calls it.
    pub(crate) async fn tool(&self, work: Work<'_>, target: Option<(usize, &str)>) -> Result<Value, ErrorData> {
        let Some((plugin, index, tool)) = target.and_then(|(index, tool)| Some((work.plugin(index)?, index, tool)))
        else {
            return Err(ErrorData::invalid_params("there is no such tool", None));
        };
        let mut params = work.request.params.clone();
        if let Some(name) = params.as_mut().and_then(|params| params.get_mut("name")) {
            *name = Value::from(tool);
        }
        let patience = plugin.timeout();
        let asked = timeout(patience, async {
            let _turn = plugin.turn(patience).await?;
            let link = work.session.link(index).await?;
            link.ask(Ask { stream: Some(work.stream), ..Ask::plain("tools/call", params) }).await
        });
        let outcome = asked.await.unwrap_or(Err(UpstreamFault::TimedOut { after: patience }));
        outcome.map_err(|fault| fault.to_error(plugin.name()))
    }
}
