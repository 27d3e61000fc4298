//! A collector of traces over OTLP/HTTP that takes everything and keeps nothing.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::body::Bytes;
use axum::routing::post;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::super::Result;

/// A collector that runs until it is dropped.
#[derive(Debug)]
pub(super) struct Collector {
    url: String,
    batches: Arc<AtomicU64>,
    serving: JoinHandle<std::io::Result<()>>,
}

impl Collector {
    /// Listens on a free loopback port.
    ///
    /// # Errors
    /// When there is none.
    pub(super) async fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let batches = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&batches);
        // No bytes are an empty message of protobuf: all was taken.
        let take = move |_: Bytes| async move {
            count.fetch_add(1, Ordering::Relaxed);
            [("content-type", "application/x-protobuf")]
        };
        let router = Router::new().route("/v1/traces", post(take));
        Ok(Self { url, batches, serving: tokio::spawn(async move { axum::serve(listener, router).await }) })
    }

    /// Its base URL.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Batches of spans that came.
    pub(super) fn batches(&self) -> u64 {
        self.batches.load(Ordering::Relaxed)
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.serving.abort();
    }
}
