//! A proxy before an S3 service that does to chosen requests what networks, balancers and overloaded services do: it
//! cuts the connection in place of the answer, answers something else, or holds a request back.
//!
//! Each connection carries one request. The bytes of requests and answers pass through as they are.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is forwarded, and the connection is cut in place of the answer.
    Cut,
    /// It is forwarded, and answered with this status in place of the service's.
    AnsweredAfter(u16),
    /// It is not forwarded, and answered with this status.
    Answered(u16),
    /// It is not forwarded, and the connection is cut.
    Dropped,
    /// It is a listing, and is answered with an empty one.
    EmptyListing,
    /// It deletes, is not forwarded, and is answered as if it had been.
    DeletesNothing,
    /// It is held for so long, then forwarded, whether or not anybody still waits for the answer.
    Late(Duration),
}

/// A request that came through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) method: String,
    /// Path and query.
    pub(crate) target: String,
    /// Headers, names in lower case.
    pub(crate) headers: Vec<(String, String)>,
}

impl Seen {
    /// The value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// Whether it writes this object, whatever it is called before the name.
    pub(crate) fn puts(&self, name: &str) -> bool {
        self.method == "PUT" && self.target.split('?').next().is_some_and(|path| path.ends_with(name))
    }
}

type Matches = Box<dyn Fn(&Seen) -> bool + Send + Sync>;

#[derive(Default)]
struct State {
    rules: Mutex<VecDeque<(Matches, Fault, usize)>>,
    seen: Mutex<Vec<Seen>>,
    /// Answers of the service that nobody was given.
    withheld: Mutex<Vec<u16>>,
}

impl State {
    /// The fault of a request, by the first rule that matches and has not been used up.
    fn fault(&self, request: &Seen) -> Option<Fault> {
        self.seen.lock().unwrap().push(request.clone());
        let mut rules = self.rules.lock().unwrap();
        let (_, fault, left) = rules.iter_mut().find(|(matches, _, left)| *left > 0 && matches(request))?;
        *left -= 1;
        Some(*fault)
    }
}

/// A running proxy; it ends when it is dropped.
pub(crate) struct Proxy {
    state: Arc<State>,
    endpoint: String,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// Starts one before `upstream`, an `http://` URL of host and port.
    pub(crate) async fn start(upstream: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let upstream = upstream.strip_prefix("http://").unwrap().trim_end_matches('/').to_owned();
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (state, upstream) = (Arc::clone(&shared), upstream.clone());
                // A connection that breaks is what clients are to bear.
                tokio::spawn(async move { drop(serve(client, &upstream, &state).await) });
            }
        });
        Self { state, endpoint, accepting }
    }

    /// Where it is reached.
    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Does this to the next `times` requests that match. Rules are looked at in the order they were given in.
    pub(crate) fn on(&self, times: usize, fault: Fault, matches: impl Fn(&Seen) -> bool + Send + Sync + 'static) {
        self.state.rules.lock().unwrap().push_back((Box::new(matches), fault, times));
    }

    /// Takes back all that was to be done.
    pub(crate) fn forgive(&self) {
        self.state.rules.lock().unwrap().clear();
    }

    /// The requests so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().unwrap().clone()
    }

    /// The requests so far, which are forgotten.
    pub(crate) fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.state.seen.lock().unwrap())
    }

    /// The statuses that the service answered and no client was given.
    pub(crate) fn withheld(&self) -> Vec<u16> {
        self.state.withheld.lock().unwrap().clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn serve(mut client: TcpStream, upstream: &str, state: &State) -> std::io::Result<()> {
    let Some((seen, request)) = read_request(&mut client).await? else { return Ok(()) };
    let fault = state.fault(&seen);
    let withhold = |answer: &[u8]| state.withheld.lock().unwrap().push(status(answer));
    match fault {
        None => client.write_all(&forward(upstream, &request).await?).await,
        Some(Fault::Cut) => {
            withhold(&forward(upstream, &request).await?);
            Ok(())
        }
        Some(Fault::AnsweredAfter(status)) => {
            withhold(&forward(upstream, &request).await?);
            client.write_all(&answer(status)).await
        }
        Some(Fault::Answered(status)) => client.write_all(&answer(status)).await,
        Some(Fault::Dropped) => Ok(()),
        Some(Fault::EmptyListing) => {
            let listing = "<ListBucketResult><IsTruncated>false</IsTruncated><KeyCount>0</KeyCount></ListBucketResult>";
            client.write_all(&answer_with(200, listing)).await
        }
        Some(Fault::DeletesNothing) => {
            client.write_all(&answer_with(200, "<DeleteResult><Deleted><Key>x</Key></Deleted></DeleteResult>")).await
        }
        Some(Fault::Late(by)) => {
            tokio::time::sleep(by).await;
            let answer = forward(upstream, &request).await?;
            withhold(&answer);
            client.write_all(&answer).await
        }
    }
}

/// Reads a request with its body; none when the client closed a connection that it did not use.
async fn read_request(client: &mut TcpStream) -> std::io::Result<Option<(Seen, Vec<u8>)>> {
    let mut bytes = Vec::new();
    let head = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if client.read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
    };
    let text = String::from_utf8_lossy(&bytes[..head]).into_owned();
    let mut lines = text.lines();
    let mut first = lines.next().unwrap().split(' ').map(str::to_owned);
    let (method, target) = (first.next().unwrap(), first.next().unwrap());
    let headers: Vec<_> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let seen = Seen { method, target, headers };
    let length: usize = seen.header("content-length").map_or(0, |length| length.parse().unwrap());
    assert!(seen.header("transfer-encoding").is_none(), "a body without a length is not for this proxy");
    while bytes.len() < head + length {
        if client.read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
    }
    // The service closes the connection after its answer, so that the answer's end need not be looked for.
    bytes.splice(head - 2..head - 2, *b"connection: close\r\n");
    Ok(Some((seen, bytes)))
}

async fn forward(upstream: &str, request: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut service = TcpStream::connect(upstream).await?;
    service.write_all(request).await?;
    let mut answer = Vec::new();
    service.read_to_end(&mut answer).await?;
    Ok(answer)
}

fn status(answer: &[u8]) -> u16 {
    let text = String::from_utf8_lossy(answer);
    text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default()
}

fn answer(status: u16) -> Vec<u8> {
    let code = match status {
        409 => "ConditionalRequestConflict",
        412 => "PreconditionFailed",
        503 => "SlowDown",
        _ => "InternalError",
    };
    answer_with(status, &format!("<Error><Code>{code}</Code><Message>made up by the proxy</Message></Error>"))
}

fn answer_with(status: u16, xml: &str) -> Vec<u8> {
    let body = format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>{xml}");
    let length = body.len();
    let head = format!("HTTP/1.1 {status} Made Up\r\ncontent-type: application/xml\r\ncontent-length: {length}\r\n");
    format!("{head}etag: \"made-up\"\r\nconnection: close\r\n\r\n{body}").into_bytes()
}
