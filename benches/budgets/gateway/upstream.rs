//! An MCP server that answers at once, on the official SDK as most servers are: a session a client, answers as events.

use std::net::Ipv4Addr;
use std::sync::Arc;

use axum::Router;
use axum::serve::ListenerExt;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, Implementation, ServerCapabilities,
    ServerConfig,
};
use rmcp::service::RequestContext;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use rmcp::{ErrorData, RoleServer, ServerHandler};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::super::Result;
use super::super::report::say;

/// A server that runs until it is dropped.
#[derive(Debug)]
pub(super) struct Upstream {
    url: String,
    serving: JoinHandle<std::io::Result<()>>,
}

impl Upstream {
    /// Serves on a free loopback port.
    ///
    /// # Errors
    /// When there is none.
    pub(super) async fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let url = format!("http://{}/mcp", listener.local_addr()?);
        let sessions = Arc::new(LocalSessionManager::default());
        let service = StreamableHttpService::new(|| Ok(Echo), sessions, StreamableHttpServerConfig::default());
        let router = Router::new().route_service("/mcp", service);
        // An answer is written in two parts. Without this the second waits for 40 ms until the first is acknowledged.
        let listener = listener.tap_io(|connection| {
            if let Err(error) = connection.set_nodelay(true) {
                say(&format!("gateway: the server's answers will be late: {error}"));
            }
        });
        Ok(Self { url, serving: tokio::spawn(async move { axum::serve(listener, router).await }) })
    }

    /// Its MCP endpoint.
    pub(super) fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Echoes its argument.
#[derive(Debug, Clone)]
struct Echo;

impl ServerHandler for Echo {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
            .with_server_info(Implementation::new("echo", env!("CARGO_PKG_VERSION")))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let message = request.arguments.as_ref().and_then(|arguments| arguments.get("message"));
        let text = message.and_then(|message| message.as_str()).unwrap_or_default();
        Ok(CallToolResult::success(vec![ContentBlock::text(text)]).into())
    }
}
