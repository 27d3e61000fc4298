//! A request's body, read within bounds of size, time and memory.
//!
//! Memory is set aside before it is used (invariant I7): for a body of announced length at once, so that a full buffer
//! answers before anything is sent; for one without, in steps as it comes. A client that sends nothing for a while, or
//! takes longer than a request may, is cut off.

use std::time::Duration;

use axum::body::Body;
use axum::http::header::CONTENT_LENGTH;
use axum::http::{HeaderMap, StatusCode};
use bytes::Bytes;
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout, timeout_at};

use super::{Api, Problem};

/// Memory is set aside for a body of unknown length in steps of so many bytes.
const STEP: usize = 1 << 20;

/// How long a client may send nothing in the midst of its body.
const IDLE: Duration = Duration::from_secs(20);

/// How long, at most, the rest of a refused body is waited for.
const DISCARD: Duration = Duration::from_secs(2);

/// Reads JSON, before which an editor or a shell may have put a byte order mark.
///
/// # Errors
/// When it is no JSON of that form.
pub(super) fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T, serde_json::Error> {
    serde_json::from_slice(body.strip_prefix("\u{feff}".as_bytes()).unwrap_or(body))
}

/// Reads a small body whole, of at most `limit` bytes, with memory admitted while it is read.
///
/// # Errors
/// As [`Incoming::read`], and 429 or 503 when there is no memory for it.
pub(super) async fn read_small(api: &Api, headers: &HeaderMap, body: Body, limit: usize) -> Result<Bytes, Problem> {
    let deadline = Instant::now() + api.limits.request_timeout.as_duration();
    let mut body = Incoming::new(headers, body);
    let announced = body.announced().filter(|announced| *announced <= limit).unwrap_or(0);
    let mut admission = api.plane.admit(announced).await?;
    body.read(limit, deadline, |bytes| Ok(admission.grow_to(bytes)?)).await
}

/// A body that is still being sent.
#[derive(Debug)]
pub(super) struct Incoming {
    body: Body,
    announced: Option<usize>,
    read: usize,
}

impl Incoming {
    /// The body of a request with these headers.
    pub(super) fn new(headers: &HeaderMap, body: Body) -> Self {
        let announced = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        Self { body, announced, read: 0 }
    }

    /// Its length in bytes, if the client has said so.
    pub(super) fn announced(&self) -> Option<usize> {
        self.announced
    }

    /// Reads it whole: at most `limit` bytes, until `deadline`. `reserve` is called with the bytes that are to be held
    /// in all, before they are.
    ///
    /// # Errors
    /// 413, 408, 400 when the client stops in the midst, and whatever `reserve` says.
    pub(super) async fn read(
        &mut self,
        limit: usize,
        deadline: Instant,
        mut reserve: impl FnMut(usize) -> Result<(), Problem>,
    ) -> Result<Bytes, Problem> {
        let too_large = || {
            Problem::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "body_too_large",
                format!("the body has more than {limit} bytes; send smaller batches"),
            )
        };
        let mut room = 0;
        if let Some(announced) = self.announced {
            if announced > limit {
                return Err(too_large());
            }
            reserve(announced)?;
            room = announced;
        }
        let mut bytes = Vec::with_capacity(room);
        while let Some(chunk) = self.chunk(deadline).await? {
            let held = bytes.len() + chunk.len();
            if held > limit {
                return Err(too_large());
            }
            if held > room {
                room = held.max(room + STEP);
                reserve(room)?;
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.into())
    }

    /// The next piece that is not empty.
    async fn chunk(&mut self, deadline: Instant) -> Result<Option<Bytes>, Problem> {
        let slow = || {
            Problem::new(
                StatusCode::REQUEST_TIMEOUT,
                "request_timeout",
                "the body came too slowly; send it in one go, or smaller batches",
            )
        };
        loop {
            let frame = timeout_at(deadline.min(Instant::now() + IDLE), self.body.frame()).await.map_err(|_| slow())?;
            let Some(frame) = frame else { return Ok(None) };
            let frame = frame.map_err(|error| {
                tracing::debug!(%error, "a body broke off");
                Problem::new(
                    StatusCode::BAD_REQUEST,
                    "body_incomplete",
                    "the body broke off, or is not framed as HTTP wants it",
                )
            })?;
            if let Ok(chunk) = frame.into_data()
                && !chunk.is_empty()
            {
                self.read += chunk.len();
                return Ok(Some(chunk));
            }
        }
    }

    /// Reads the rest of a refused body and forgets it, within `limit` bytes and a short time. A client that is still
    /// sending would otherwise see its connection break, and not the answer.
    pub(super) async fn discard(&mut self, limit: usize) {
        if self.announced.is_some_and(|announced| announced > limit) {
            return;
        }
        let deadline = Instant::now() + DISCARD;
        let rest = async {
            while let Ok(Some(_)) = self.chunk(deadline).await {
                if self.read > limit {
                    break;
                }
            }
        };
        // Time running out is as good an end as any.
        let _ = timeout(DISCARD, rest).await;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::convert::Infallible;
    use std::time::Duration;

    use axum::body::Body;
    use axum::http::header::CONTENT_LENGTH;
    use axum::http::{HeaderMap, HeaderValue};
    use bytes::Bytes;
    use futures::stream;
    use tokio::time::Instant;

    use super::{Incoming, STEP};
    use crate::api::Problem;

    fn announced(length: usize) -> HeaderMap {
        HeaderMap::from_iter([(CONTENT_LENGTH, HeaderValue::from(length))])
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    fn chunks(sizes: &[usize]) -> Body {
        let chunks: Vec<_> = sizes.iter().map(|size| Ok::<_, Infallible>(Bytes::from(vec![7; *size]))).collect();
        Body::from_stream(stream::iter(chunks))
    }

    #[tokio::test]
    async fn memory_for_an_announced_body_is_set_aside_at_once() {
        let steps = RefCell::new(Vec::new());
        let mut body = Incoming::new(&announced(10), chunks(&[4, 6]));
        let held = body
            .read(10, soon(), |bytes| {
                steps.borrow_mut().push(bytes);
                Ok(())
            })
            .await
            .unwrap();
        assert_eq!(held.len(), 10);
        assert_eq!(steps.take(), [10]);
    }

    #[tokio::test]
    async fn memory_for_a_body_of_unknown_length_is_set_aside_as_it_comes() {
        let steps = RefCell::new(Vec::new());
        let mut body = Incoming::new(&HeaderMap::new(), chunks(&[1, STEP, 3 * STEP]));
        let held = body
            .read(8 * STEP, soon(), |bytes| {
                steps.borrow_mut().push(bytes);
                Ok(())
            })
            .await
            .unwrap();
        assert_eq!(held.len(), 4 * STEP + 1);
        assert_eq!(steps.take(), [STEP, 2 * STEP, 4 * STEP + 1]);
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_refused_announced_or_not() {
        for headers in [announced(11), HeaderMap::new()] {
            let mut body = Incoming::new(&headers, chunks(&[6, 5]));
            let problem = body.read(10, soon(), |_| Ok(())).await.unwrap_err();
            assert_eq!(problem.code(), "body_too_large");
        }
    }

    #[tokio::test]
    async fn a_refusal_of_memory_comes_before_anything_is_read() {
        let mut body = Incoming::new(&announced(10), chunks(&[10]));
        let refuse = |_| Err(Problem::internal());
        assert_eq!(body.read(10, soon(), refuse).await.unwrap_err(), Problem::internal());
        assert_eq!(body.read, 0);
        body.discard(10).await;
        assert_eq!(body.read, 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_stops_sending_is_cut_off() {
        let stalled = Body::from_stream(stream::pending::<Result<Bytes, Infallible>>());
        let problem = Incoming::new(&announced(10), stalled).read(10, soon(), |_| Ok(())).await.unwrap_err();
        assert_eq!(problem.code(), "request_timeout");
    }
}
