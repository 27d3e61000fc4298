//! Serving the API on a socket: HTTP/1.1 and HTTP/2, over TLS or as it is, and an orderly end.
//!
//! A client that is slow to shake hands or to send its request's head is cut off, and connections are bounded in number
//! and by address, so that idle ones cannot starve the rest; see `connections`. At the end no connection is taken any
//! more, requests under way are finished within a bound, then what is left is cut off: whatever was acknowledged is
//! durable, and what was not may be sent again.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request};
use axum::http::Version;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::connections::{Connection, Connections, InFlight, Noted};
use crate::tls::Tls;

/// Connections at once unless it is said.
const CONNECTIONS: usize = 8_192;

/// Descriptors that are left to the store, the log and whatever else the process opens.
const RESERVED: usize = 256;

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
    of_address: usize,
    tls: Option<Tls>,
}

impl Server {
    /// Takes the address; with port 0 the system chooses one.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address, connections: CONNECTIONS, of_address: usize::MAX, tls: None })
    }

    /// The same with at most as many connections as descriptors allow, when some are left to everything else, and half
    /// of them from one address. `descriptors` is how many the process may have.
    pub fn within_descriptors(self, descriptors: u64) -> Self {
        let free = usize::try_from(descriptors).unwrap_or(usize::MAX).saturating_sub(RESERVED);
        let connections = self.connections.min(free.max(RESERVED / 4));
        Self { connections, of_address: connections / 2, ..self }
    }

    /// The same with so many connections at once at most.
    pub fn with_connections(self, most: usize) -> Self {
        Self { connections: most, ..self }
    }

    /// The same over TLS, whose files are watched while it runs.
    pub fn with_tls(self, tls: Option<Tls>) -> Self {
        Self { tls, ..self }
    }

    /// Where it is reached: scheme, address and port.
    pub fn url(&self) -> String {
        format!("{}://{}", if self.tls.is_some() { "https" } else { "http" }, self.address)
    }

    /// The address, with the port that was chosen.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` is over; then finishes what is under way within `grace`. Says whether that was enough.
    pub async fn run(self, router: Router, stop: impl Future<Output = ()>, grace: Duration) -> bool {
        let mut stop = std::pin::pin!(stop);
        let graceful = GracefulShutdown::new();
        let connections = Connections::new(self.connections, self.of_address);
        // Handshakes under way end with it: they are no requests.
        let closing = CancellationToken::new();
        let watching = self.tls.clone().map(|tls| tokio::spawn(tls.watch()));
        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut stop => break,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, client)) => {
                    let Some(connection) = connections.enter(client.ip()) else {
                        tracing::debug!(%client, "a connection was refused: there are as many as may be, and none is idle");
                        continue;
                    };
                    let accepted = Accepted { stream, client, connection, watcher: graceful.watcher() };
                    match self.tls.as_ref().map(Tls::acceptor) {
                        None => tokio::spawn(accepted.serve(router.clone())),
                        Some(acceptor) => tokio::spawn(accepted.shake_hands(acceptor, closing.clone(), router.clone())),
                    };
                }
                Err(error) if is_of_the_client(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(self.listener);
        closing.cancel();
        if let Some(watching) = watching {
            watching.abort();
        }
        timeout(grace, graceful.shutdown()).await.is_ok()
    }
}

/// A connection that has a place.
struct Accepted {
    stream: TcpStream,
    client: SocketAddr,
    connection: Connection,
    watcher: Watcher,
}

impl Accepted {
    /// Serves it as it is, until it ends.
    async fn serve(self, router: Router) {
        let Self { stream, client, connection, watcher } = self;
        no_delay(&stream);
        let stream = Noted::new(stream, Arc::clone(&connection.activity));
        let served = serve(stream, client, &connection, watcher, router);
        until_ended(served, client, &connection).await;
    }

    /// Serves it over TLS, until it ends. The handshake has the time that a first request's head has, and its place is
    /// that of the connection.
    async fn shake_hands(self, acceptor: TlsAcceptor, closing: CancellationToken, router: Router) {
        let Self { stream, client, connection, watcher } = self;
        no_delay(&stream);
        let stream = Noted::new(stream, Arc::clone(&connection.activity));
        let served = async {
            let shaken = tokio::select! {
                biased;
                shaken = acceptor.accept(stream) => shaken,
                () = closing.cancelled() => return,
            };
            match shaken {
                Ok(stream) => serve(stream, client, &connection, watcher, router).await,
                Err(error) => tracing::debug!(%client, %error, "a client did not come to terms over TLS"),
            }
        };
        until_ended(served, client, &connection).await;
    }
}

fn no_delay(stream: &TcpStream) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection is slower than it could be");
    }
}

/// One connection, until it ends, has done nothing for too long, or makes room for another.
async fn until_ended(served: impl Future<Output = ()>, client: SocketAddr, connection: &Connection) {
    tokio::select! {
        () = served => {}
        () = connection.activity.expired() => tracing::debug!(%client, "a connection did nothing for too long"),
        () = connection.close.cancelled() => tracing::debug!(%client, "an idle connection made room for another"),
    }
}

/// Answers what comes over a stream, until it ends.
async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    client: SocketAddr,
    connection: &Connection,
    watcher: Watcher,
    router: Router,
) {
    let activity = Arc::clone(&connection.activity);
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        let router = router.clone();
        let in_flight = activity.request(request.version() >= Version::HTTP_2);
        request.extensions_mut().insert(ConnectInfo(client));
        async move {
            let response = answer(router, request.map(Body::new)).await;
            // It is under way until its last byte is taken.
            Ok::<_, Infallible>(response.map(|body| Body::new(UntilRead { body, _in_flight: in_flight })))
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // Heads have a deadline of ours, which tells an idle connection from a slow one.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE);
    let served = builder.serve_connection(TokioIo::new(stream), service).into_owned();
    if let Err(error) = watcher.watch(served).await {
        tracing::debug!(error, "a connection broke off");
    }
}

/// A body, with what lasts until it is read or dropped.
struct UntilRead {
    body: Body,
    _in_flight: InFlight,
}

impl HttpBody for UntilRead {
    type Data = bytes::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
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
    use std::sync::Arc;
    use std::time::Duration;

    use axum::Router;
    use axum::routing::get;
    use tokio::sync::{Notify, oneshot};

    use super::Server;

    async fn started(router: Router, grace: Duration) -> (String, oneshot::Sender<()>, tokio::task::JoinHandle<bool>) {
        let server = Server::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await.unwrap();
        let url = format!("http://{}", server.address());
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(server.run(router, async { drop(stopped.await) }, grace));
        (url, stop, running)
    }

    /// A handler that says when a request has come, and answers once it may.
    fn held(come: &Arc<Notify>, may_end: &Arc<Notify>) -> Router {
        let (come, may_end) = (Arc::clone(come), Arc::clone(may_end));
        let held = move || {
            let (come, may_end) = (Arc::clone(&come), Arc::clone(&may_end));
            async move {
                come.notify_one();
                may_end.notified().await;
                "done"
            }
        };
        Router::new().route("/", get(held))
    }

    #[tokio::test]
    async fn a_request_under_way_is_finished_and_a_new_one_is_not_taken() {
        let (come, may_end) = (Arc::default(), Arc::default());
        let (url, stop, running) = started(held(&come, &may_end), Duration::from_secs(60)).await;
        let request = tokio::spawn(reqwest::get(url.clone()));
        come.notified().await;
        stop.send(()).unwrap();
        may_end.notify_one();
        assert_eq!(request.await.unwrap().unwrap().text().await.unwrap(), "done");
        assert!(running.await.unwrap());
        assert!(reqwest::get(url).await.unwrap_err().is_connect());
    }

    #[tokio::test]
    async fn a_request_that_does_not_end_is_cut_off_after_the_grace() {
        let (come, may_end) = (Arc::default(), Arc::default());
        let (url, stop, running) = started(held(&come, &may_end), Duration::from_millis(50)).await;
        let request = tokio::spawn(reqwest::get(url));
        come.notified().await;
        stop.send(()).unwrap();
        assert!(!running.await.unwrap());
        request.abort();
    }

    #[tokio::test]
    async fn idle_connections_past_the_most_make_room_and_keep_nobody_out() {
        let server = Server::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await.unwrap().with_connections(8);
        let address = server.address();
        let router = Router::new().route("/", get(|| async { "here" }));
        let running = tokio::spawn(server.run(router, std::future::pending(), Duration::from_secs(1)));
        let mut idle = Vec::new();
        for _ in 0..40 {
            idle.push(tokio::net::TcpStream::connect(address).await.unwrap());
        }
        for _ in 0..10 {
            // A connection of its own each time.
            let client = reqwest::Client::builder().pool_max_idle_per_host(0).build().unwrap();
            assert_eq!(client.get(format!("http://{address}")).send().await.unwrap().text().await.unwrap(), "here");
        }
        running.abort();
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
