//! Posting bodies as a gateway does: at least once, each under one idempotency key.
//!
//! A body is sent again under the same key as long as the answer leaves open whether it was stored (no answer, 5xx), or
//! says to come again (429, 503): then not before `Retry-After`. The server stores it once, however often it comes.

use std::borrow::Cow;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Client, StatusCode};
use serde::Deserialize;
use tokio::time::Instant;

use super::template::Body;
use crate::ingest::{Encoding, Media};
use crate::model::{OrgName, causes};

/// The first pause after a failure without `Retry-After`; each further one is twice as long, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How long one attempt may take.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(60);

/// Posts bodies to one org of one control plane.
#[derive(Debug, Clone)]
pub struct Sender {
    client: Client,
    url: String,
    token: Option<String>,
    media: Media,
    encoding: Encoding,
    give_up: Duration,
}

/// A body that was acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivery {
    /// Samples that the server says it took.
    pub accepted: usize,
    /// Whether the server had the body already, from an attempt whose answer was lost.
    pub duplicate: bool,
    /// Attempts beyond the first.
    pub retries: u32,
    /// From the start of the last attempt to its answer.
    pub last_attempt: Duration,
}

/// Why a body was not acknowledged.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The server will not have it, however often it is sent.
    #[error("{status}: {detail}")]
    Refused {
        /// The HTTP status.
        status: StatusCode,
        /// What the server said.
        detail: String,
    },
    /// No acknowledgement within the time given.
    #[error("gave up after {retries} retries: {last}")]
    GaveUp {
        /// Attempts beyond the first.
        retries: u32,
        /// What came of the last one.
        last: String,
    },
    /// The body could not be packed, or no client could be made.
    #[error("cannot send: {0}")]
    CannotSend(String),
}

/// What one attempt came to.
enum Attempt {
    Done(Answer),
    Again { reason: String, after: Option<Duration> },
}

#[derive(Deserialize)]
struct Answer {
    accepted: usize,
    duplicate: bool,
}

impl Sender {
    /// A sender to the control plane at `base_url`, which gives up on a body after `give_up`.
    ///
    /// # Errors
    /// [`Refusal::CannotSend`] when no HTTP client can be made.
    pub fn new(
        base_url: &str,
        org: &OrgName,
        token: Option<String>,
        media: Media,
        encoding: Encoding,
        give_up: Duration,
    ) -> Result<Self, Refusal> {
        let client = Client::builder()
            .timeout(ATTEMPT_TIMEOUT)
            .no_proxy()
            .build()
            .map_err(|error| Refusal::CannotSend(error.to_string()))?;
        let url = format!("{}/v1/orgs/{org}/invocations", base_url.trim_end_matches('/'));
        Ok(Self { client, url, token, media, encoding, give_up })
    }

    /// The form that bodies must have.
    pub fn media(&self) -> Media {
        self.media
    }

    /// A body packed as it will be sent; [`Sender::deliver`] takes the result.
    ///
    /// # Errors
    /// [`Refusal::CannotSend`] when packing fails.
    pub fn pack(&self, body: &Body) -> Result<Bytes, Refusal> {
        let packed = match self.encoding {
            Encoding::Identity => Ok(body.bytes.clone()),
            Encoding::Gzip => gzip(&body.bytes).map(Bytes::from),
            Encoding::Zstd => zstd::stream::encode_all(body.bytes.as_ref(), 1).map(Bytes::from),
        };
        packed.map_err(|error| Refusal::CannotSend(error.to_string()))
    }

    /// Sends a packed body until it is acknowledged.
    ///
    /// # Errors
    /// See [`Refusal`]; after [`Refusal::GaveUp`] the body may or may not have been stored.
    pub async fn deliver(&self, packed: Bytes, key: &str) -> Result<Delivery, Refusal> {
        let deadline = Instant::now() + self.give_up;
        let mut pause = FIRST_PAUSE;
        let mut retries = 0;
        loop {
            let started = Instant::now();
            let (last, wait) = match self.attempt(packed.clone(), key).await? {
                Attempt::Done(Answer { accepted, duplicate }) => {
                    return Ok(Delivery { accepted, duplicate, retries, last_attempt: started.elapsed() });
                }
                Attempt::Again { reason, after: Some(after) } => (reason, after),
                Attempt::Again { reason, after: None } => {
                    let wait = pause;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    (reason, wait)
                }
            };
            if Instant::now() + wait > deadline {
                return Err(Refusal::GaveUp { retries, last });
            }
            retries += 1;
            tokio::time::sleep(wait).await;
        }
    }

    async fn attempt(&self, packed: Bytes, key: &str) -> Result<Attempt, Refusal> {
        let mut request = self
            .client
            .post(&self.url)
            .header(CONTENT_TYPE, self.media.as_str())
            .header("Idempotency-Key", key)
            .body(packed);
        if self.encoding != Encoding::Identity {
            request = request.header(CONTENT_ENCODING, self.encoding.as_str());
        }
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let again = |error: reqwest::Error| Attempt::Again { reason: causes(&error), after: None };
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) => return Ok(again(error)),
        };
        let status = response.status();
        let after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok())
            .and_then(|seconds| seconds.trim().parse().ok())
            .map(Duration::from_secs);
        let body = match response.bytes().await {
            Ok(body) => body,
            Err(error) => return Ok(again(error)),
        };
        if status.is_success() {
            let refused = |error: serde_json::Error| Refusal::Refused {
                status,
                detail: format!("the answer is not an acknowledgement: {error}"),
            };
            return serde_json::from_slice(&body).map(Attempt::Done).map_err(refused);
        }
        let detail = String::from_utf8_lossy(&body);
        if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() {
            return Ok(Attempt::Again { reason: format!("{status}: {}", shortened(&detail)), after });
        }
        Err(Refusal::Refused { status, detail: shortened(&detail).into_owned() })
    }
}

fn gzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    io::Write::write_all(&mut encoder, bytes)?;
    encoder.finish()
}

fn shortened(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(300) {
        Some((end, _)) => Cow::Owned(format!("{}…", text.get(..end).unwrap_or_default())),
        None => Cow::Borrowed(text),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use axum::Router;
    use axum::extract::State;
    use axum::http::{HeaderMap, StatusCode};
    use axum::response::{IntoResponse, Response};
    use axum::routing::post;
    use bytes::Bytes;
    use tokio::net::{TcpListener, TcpSocket};

    use super::super::Body;
    use super::{Refusal, Sender};
    use crate::ingest::{Encoding, Media};

    /// A status, and a `Retry-After`.
    type ScriptedAnswer = (u16, Option<&'static str>);

    /// A control plane that answers by a script, from its end, and notes what it got.
    #[derive(Clone, Default)]
    struct Scripted {
        answers: Arc<Mutex<Vec<ScriptedAnswer>>>,
        got: Arc<Mutex<Vec<(HeaderMap, Bytes)>>>,
    }

    async fn answer(State(server): State<Scripted>, headers: HeaderMap, body: Bytes) -> Response {
        server.got.lock().unwrap().push((headers, body));
        match server.answers.lock().unwrap().pop() {
            None => r#"{"accepted": 3, "duplicate": false}"#.into_response(),
            Some((status, retry_after)) => {
                let mut response = (StatusCode::from_u16(status).unwrap(), "because").into_response();
                if let Some(seconds) = retry_after {
                    response.headers_mut().insert("Retry-After", seconds.parse().unwrap());
                }
                response
            }
        }
    }

    async fn sender(server: &Scripted, encoding: Encoding, give_up: Duration) -> Sender {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let app = Router::new().route("/v1/orgs/acme/invocations", post(answer)).with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        let token = Some("secret".to_owned());
        Sender::new(&url, &"acme".parse().unwrap(), token, Media::Ndjson, encoding, give_up).unwrap()
    }

    fn body() -> Body {
        Body { bytes: Bytes::from_static(b"{}\n{}\n{}\n"), rows: 3, first_id: uuid::Uuid::nil() }
    }

    #[tokio::test]
    async fn a_body_goes_out_with_its_form_key_and_token() {
        let server = Scripted::default();
        let sender = sender(&server, Encoding::Zstd, Duration::ZERO).await;
        let delivery = sender.deliver(sender.pack(&body()).unwrap(), "key-1").await.unwrap();
        assert_eq!((delivery.accepted, delivery.duplicate, delivery.retries), (3, false, 0));
        let got = server.got.lock().unwrap();
        let (headers, packed) = &got[0];
        assert_eq!(headers["content-type"], "application/x-ndjson");
        assert_eq!(headers["content-encoding"], "zstd");
        assert_eq!(headers["idempotency-key"], "key-1");
        assert_eq!(headers["authorization"], "Bearer secret");
        assert_eq!(zstd::stream::decode_all(packed.as_ref()).unwrap(), body().bytes);
    }

    #[tokio::test]
    async fn a_busy_server_gets_the_same_body_under_the_same_key_again() {
        let server = Scripted::default();
        *server.answers.lock().unwrap() = vec![(500, None), (503, Some("0")), (429, Some("0"))];
        let sender = sender(&server, Encoding::Identity, Duration::from_secs(10)).await;
        let delivery = sender.deliver(body().bytes, "key-1").await.unwrap();
        assert_eq!(delivery.retries, 3);
        let got = server.got.lock().unwrap();
        assert_eq!(got.len(), 4);
        assert!(got.iter().all(|(headers, bytes)| headers["idempotency-key"] == "key-1" && *bytes == body().bytes));
    }

    #[tokio::test]
    async fn retry_after_is_not_undercut() {
        let server = Scripted::default();
        *server.answers.lock().unwrap() = vec![(429, Some("30"))];
        let sender = sender(&server, Encoding::Identity, Duration::from_secs(10)).await;
        let error = sender.deliver(body().bytes, "key-1").await.unwrap_err();
        assert!(matches!(error, Refusal::GaveUp { retries: 0, .. }), "{error}");
    }

    #[tokio::test]
    async fn a_refused_body_is_not_sent_again() {
        let server = Scripted::default();
        *server.answers.lock().unwrap() = vec![(400, None)];
        let sender = sender(&server, Encoding::Identity, Duration::from_secs(10)).await;
        let error = sender.deliver(body().bytes, "key-1").await.unwrap_err();
        assert!(matches!(error, Refusal::Refused { status: StatusCode::BAD_REQUEST, .. }), "{error}");
        assert_eq!(server.got.lock().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_server_that_is_away_is_waited_for() {
        // Its port is taken, so that nobody else gets it, and refuses connections until it is listened at.
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let url = format!("http://{}", socket.local_addr().unwrap());
        let give_up = Duration::from_secs(60);
        let sender =
            Sender::new(&url, &"acme".parse().unwrap(), None, Media::Ndjson, Encoding::Identity, give_up).unwrap();
        let server = Scripted::default();
        let app = Router::new().route("/v1/orgs/acme/invocations", post(answer)).with_state(server.clone());
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(2)).await;
            axum::serve(socket.listen(64).unwrap(), app).await
        });
        assert!(sender.deliver(body().bytes, "key-1").await.unwrap().retries > 0);
    }
}
