//! Serving the API on a socket: HTTP/1.1 and HTTP/2 without TLS, and an orderly end.
//!
//! A client that is slow to send its request's head is cut off, and connections are bounded in number, so that idle
//! ones cannot starve the rest. At the end no connection is taken any more, requests under way are finished within a
//! bound, then what is left is cut off: whatever was acknowledged is durable, and what was not may be sent again.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tower::ServiceExt;

/// Connections at once unless it is said; further ones wait to be accepted.
const CONNECTIONS: usize = 8_192;

/// How long a request's head may take, and a connection be idle. Longer than clients commonly keep an idle connection,
/// so that they close it and not we, just when a request is on its way.
const HEAD: Duration = Duration::from_secs(120);

/// Requests at once on one HTTP/2 connection.
const STREAMS: u32 = 256;

/// How often an HTTP/2 connection is asked whether it is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// How long to wait after the system has no socket to give.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A server that has its address, and takes connections from it once it is run.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    connections: usize,
}

impl Server {
    /// Takes the address; with port 0 the system chooses one.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address, connections: CONNECTIONS })
    }

    /// The same with so many connections at once at most.
    pub fn with_connections(self, most: usize) -> Self {
        Self { connections: most.min(Semaphore::MAX_PERMITS), ..self }
    }

    /// The address, with the port that was chosen.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` is over; then finishes what is under way within `grace`. Says whether that was enough.
    pub async fn run(self, router: Router, stop: impl Future<Output = ()>, grace: Duration) -> bool {
        let mut stop = std::pin::pin!(stop);
        let graceful = GracefulShutdown::new();
        let connections = Arc::new(Semaphore::new(self.connections));
        loop {
            let accepted = async {
                let permit = Arc::clone(&connections).acquire_owned().await;
                (permit, self.listener.accept().await)
            };
            let (permit, accepted) = tokio::select! {
                biased;
                () = &mut stop => break,
                accepted = accepted => accepted,
            };
            match accepted {
                Ok((stream, client)) => {
                    let connection = serve(stream, client, router.clone(), &graceful);
                    tokio::spawn(async move {
                        let _permit = permit;
                        connection.await;
                    });
                }
                Err(error) if is_of_the_client(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(self.listener);
        timeout(grace, graceful.shutdown()).await.is_ok()
    }
}

/// One connection, until it ends.
fn serve(
    stream: TcpStream,
    client: SocketAddr,
    router: Router,
    graceful: &GracefulShutdown,
) -> impl Future<Output = ()> + use<> {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection is slower than it could be");
    }
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        let router = router.clone();
        request.extensions_mut().insert(ConnectInfo(client));
        async move { Ok::<_, Infallible>(answer(router, request.map(Body::new)).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE);
    let connection = builder.serve_connection(TokioIo::new(stream), service).into_owned();
    let connection = graceful.watch(connection);
    async move {
        if let Err(error) = connection.await {
            tracing::debug!(error, "a connection broke off");
        }
    }
}

async fn answer(router: Router, request: Request) -> axum::response::Response {
    match router.oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// Errors of `accept` that concern one connection alone, gone before it was taken.
fn is_of_the_client(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
    )
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};
    use std::time::Duration;

    use axum::Router;
    use axum::routing::get;
    use tokio::sync::oneshot;
    use tokio::time::sleep;

    use super::Server;

    async fn started(router: Router, grace: Duration) -> (String, oneshot::Sender<()>, tokio::task::JoinHandle<bool>) {
        let server = Server::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await.unwrap();
        let url = format!("http://{}", server.address());
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(server.run(router, async { drop(stopped.await) }, grace));
        (url, stop, running)
    }

    #[tokio::test]
    async fn a_request_under_way_is_finished_and_a_new_one_is_not_taken() {
        let slow = get(|| async {
            sleep(Duration::from_millis(300)).await;
            "done"
        });
        let (url, stop, running) = started(Router::new().route("/", slow), Duration::from_secs(5)).await;
        let request = tokio::spawn(reqwest::get(url.clone()));
        sleep(Duration::from_millis(100)).await;
        stop.send(()).unwrap();
        assert_eq!(request.await.unwrap().unwrap().text().await.unwrap(), "done");
        assert!(running.await.unwrap());
        assert!(reqwest::get(url).await.unwrap_err().is_connect());
    }

    #[tokio::test]
    async fn a_request_that_does_not_end_is_cut_off_after_the_grace() {
        let (url, stop, running) =
            started(Router::new().route("/", get(std::future::pending::<()>)), Duration::from_millis(50)).await;
        let request = tokio::spawn(reqwest::get(url));
        sleep(Duration::from_millis(100)).await;
        stop.send(()).unwrap();
        assert!(!running.await.unwrap());
        request.abort();
    }

    #[tokio::test]
    async fn http_2_is_spoken_too() {
        let (url, _stop, _running) =
            started(Router::new().route("/", get(|| async { "two" })), Duration::from_secs(1)).await;
        let client = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
        let response = client.get(url).send().await.unwrap();
        assert_eq!(response.version(), http::Version::HTTP_2);
    }
}
