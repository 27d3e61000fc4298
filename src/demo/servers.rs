//! The demo's MCP servers: one a plugin, over Streamable HTTP, all on one loopback port.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, Implementation, ListToolsResult,
    PaginatedRequestParams, ServerCapabilities, ServerConfig,
};
use rmcp::service::RequestContext;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use rmcp::{ErrorData, RoleServer, ServerHandler};
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::tools::{Fault, PLUGINS, TOOLS, Tool};

/// The servers while they run.
#[derive(Debug)]
pub struct Servers {
    address: SocketAddr,
    stop: CancellationToken,
    serving: JoinHandle<io::Result<()>>,
}

impl Servers {
    /// Serves on a free loopback port; `seed` decides which calls are slow and which fail.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start(seed: u64) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        let rng = Arc::new(Mutex::new(SmallRng::seed_from_u64(seed)));
        let mut router = Router::new();
        for plugin in PLUGINS {
            let server = Server { plugin, rng: Arc::clone(&rng) };
            let config = StreamableHttpServerConfig::default().with_cancellation_token(stop.child_token());
            let sessions = Arc::new(LocalSessionManager::default());
            let service = StreamableHttpService::new(move || Ok(server.clone()), sessions, config);
            router = router.route_service(&path(plugin), service);
        }
        let stopped = stop.clone().cancelled_owned();
        let serving = tokio::spawn(async move { axum::serve(listener, router).with_graceful_shutdown(stopped).await });
        Ok(Self { address, stop, serving })
    }

    /// Each plugin, and the URL of its MCP endpoint.
    pub fn plugins(&self) -> impl Iterator<Item = (&'static str, String)> {
        PLUGINS.into_iter().map(|plugin| (plugin, format!("http://{}{}", self.address, path(plugin))))
    }

    /// Ends every session and stops serving.
    ///
    /// # Errors
    /// When serving did not end well.
    pub async fn stop(self) -> io::Result<()> {
        self.stop.cancel();
        self.serving.await.map_err(io::Error::other)?
    }
}

fn path(plugin: &str) -> String {
    format!("/{plugin}/mcp")
}

/// One plugin's server.
#[derive(Debug, Clone)]
struct Server {
    plugin: &'static str,
    rng: Arc<Mutex<SmallRng>>,
}

impl Server {
    fn draw<T>(&self, draw: impl FnOnce(&mut SmallRng) -> T) -> T {
        draw(&mut self.rng.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ServerHandler for Server {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
            .with_server_info(Implementation::new(format!("demo-{}", self.plugin), env!("CARGO_PKG_VERSION")))
    }

    async fn list_tools(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let own = TOOLS.iter().filter(|tool| tool.plugin == self.plugin);
        Ok(ListToolsResult::with_all_items(own.map(described).collect()))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let Some(tool) = Tool::find(self.plugin, &request.name) else {
            return Err(ErrorData::invalid_params(format!("there is no tool {}", request.name), None));
        };
        let given = request.arguments.unwrap_or_default();
        if let Some(missing) = tool.parameters.iter().find(|parameter| !given.contains_key(**parameter)) {
            return Err(ErrorData::invalid_params(format!("{} needs {missing}", tool.name), None));
        }
        let (latency, fault) = self.draw(|rng| (tool.latency_ms(rng), tool.fault(rng)));
        tokio::select! {
            () = sleep(Duration::from_secs_f64(latency / 1e3)) => {}
            () = context.ct.cancelled() => {}
        }
        match fault {
            Some(Fault::Breaks) => Err(ErrorData::internal_error("the index answered 502 Bad Gateway", None)),
            Some(Fault::Refuses) => {
                Ok(CallToolResult::error(vec![ContentBlock::text("a required check has not passed")]).into())
            }
            None => Ok(CallToolResult::structured(self.draw(|rng| tool.answer(rng))).into()),
        }
    }
}

/// The tool as a client sees it listed.
fn described(tool: &Tool) -> rmcp::model::Tool {
    let properties: Map<String, Value> =
        tool.parameters.iter().map(|parameter| ((*parameter).to_owned(), json!({ "type": "string" }))).collect();
    let schema = Map::from_iter([
        ("type".to_owned(), Value::from("object")),
        ("properties".to_owned(), Value::Object(properties)),
        ("required".to_owned(), json!(tool.parameters)),
    ]);
    rmcp::model::Tool::new(tool.name, tool.description, schema)
}

#[cfg(test)]
mod tests {
    use rmcp::model::CallToolRequestParams;
    use rmcp::service::RunningService;
    use rmcp::transport::StreamableHttpClientTransport;
    use rmcp::{RoleClient, ServiceExt};
    use serde_json::{Value, json};

    use super::{PLUGINS, Servers, TOOLS};

    async fn client(servers: &Servers, plugin: &str) -> RunningService<RoleClient, ()> {
        let (_, url) = servers.plugins().find(|(name, _)| *name == plugin).unwrap();
        ().serve(StreamableHttpClientTransport::from_uri(url)).await.unwrap()
    }

    #[tokio::test]
    async fn each_plugin_lists_its_own_tools_and_together_they_are_a_dozen() {
        let servers = Servers::start(1).await.unwrap();
        let mut listed = Vec::new();
        for plugin in PLUGINS {
            let client = client(&servers, plugin).await;
            let tools = client.list_all_tools().await.unwrap();
            listed.extend(tools.into_iter().map(|tool| (plugin, tool.name.into_owned())));
            client.cancel().await.unwrap();
        }
        let expected: Vec<_> = TOOLS.iter().map(|tool| (tool.plugin, tool.name.to_owned())).collect();
        assert_eq!(listed, expected);
        servers.stop().await.unwrap();
    }

    #[tokio::test]
    async fn a_tool_answers_and_says_what_it_lacks() {
        let servers = Servers::start(1).await.unwrap();
        let client = client(&servers, "files").await;
        let call = |arguments: Value| {
            let params =
                CallToolRequestParams::new("list_directory").with_arguments(arguments.as_object().unwrap().clone());
            client.call_tool(params)
        };
        let answer = call(json!({ "path": "." })).await.unwrap();
        assert_eq!(answer.structured_content.unwrap()["entries"][1], "README.md");
        assert!(call(json!({})).await.unwrap_err().to_string().contains("needs path"));
        client.cancel().await.unwrap();
        servers.stop().await.unwrap();
    }
}
