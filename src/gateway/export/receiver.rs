//! One attempt to hand a batch to a control plane, and what its answer means.
//!
//! Only an answer that the control plane itself made can end a batch: an acknowledgement delivers it, a problem
//! document that says that this body will never be taken (400, 413, 415, 422) sends it to the quarantine, and one that
//! says that its number cannot be compared (409 `sequence_conflict`) has it sent under another one. Everything else, no
//! answer, a busy server, a token or an org that is not known yet, a proxy's page, means to come again with the same
//! bytes under the same number: the configuration may be mended, the network too.

use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use serde::Deserialize;
use url::Url;

use crate::config::Secret;
use crate::gateway::control_plane::HttpClient;
use crate::gateway::spool::SentUnder;
use crate::ingest::{self, AFTER, EMITTER, IDEMPOTENCY_KEY, SEQUENCE};
use crate::model::OrgName;
use crate::payload::frames;

/// How long one attempt may take, and its connection.
pub(super) const ATTEMPT: Duration = Duration::from_secs(60);
pub(super) const CONNECT: Duration = Duration::from_secs(5);

/// The most of an answer that is read.
const ANSWER_BYTES: usize = 64 << 10;

/// The longest `Retry-After` that is followed to the end.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// The code of a number that cannot be compared.
const CONFLICT: &str = "sequence_conflict";

/// What is sent.
#[derive(Debug)]
pub(super) struct Body {
    pub(super) org: OrgName,
    /// What it is sent under, in this lane of the emitter if that is a number.
    pub(super) sent_under: SentUnder,
    pub(super) lane: u16,
    /// The org's resource that takes it: `invocations` or `audit`.
    pub(super) resource: &'static str,
    pub(super) media: &'static str,
    pub(super) bytes: Vec<u8>,
}

/// What became of an attempt.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is durable there, from now or from an attempt before.
    Taken,
    /// It is to be sent again, not before so long.
    Later { why: String, after: Option<Duration> },
    /// It was not stored under its number, nor can it be: it is to be sent again under another one.
    Conflict { why: String },
    /// It will never be taken.
    Never { why: String },
}

impl Verdict {
    fn later(why: impl Into<String>) -> Self {
        Self::Later { why: why.into(), after: None }
    }
}

/// A control plane that takes batches.
#[derive(Debug, Clone)]
pub(super) struct Receiver {
    client: HttpClient,
    url: Url,
    token: Option<Secret>,
}

#[derive(Deserialize)]
struct Acknowledgement {
    #[serde(rename = "accepted")]
    _accepted: u64,
    #[serde(rename = "duplicate")]
    _duplicate: bool,
}

#[derive(Deserialize)]
struct Problem {
    code: String,
}

impl Receiver {
    /// The control plane at `url`.
    pub(super) fn new(client: HttpClient, url: Url, token: Option<Secret>) -> Self {
        Self { client, url, token }
    }

    /// Sends a body once.
    pub(super) async fn send(&self, body: Body) -> Verdict {
        let path = format!("{}/v1/orgs/{}/{}", self.url.path().trim_end_matches('/'), body.org, body.resource);
        let mut url = self.url.clone();
        url.set_path(&path);
        let mut request = self.client.get().post(url).header(CONTENT_TYPE, body.media);
        request = if body.media == frames::MEDIA {
            // What is sealed does not compress.
            request.body(body.bytes)
        } else {
            let packed = match tokio::task::spawn_blocking(move || zstd::bulk::compress(&body.bytes, 1)).await {
                Ok(Ok(packed)) => packed,
                Ok(Err(error)) => return Verdict::later(format!("cannot be compressed: {error}")),
                Err(error) => return Verdict::later(format!("cannot be compressed: {error}")),
            };
            request.header(CONTENT_ENCODING, "zstd").body(packed)
        };
        request = match body.sent_under {
            SentUnder::Key(key) => request.header(IDEMPOTENCY_KEY, key.to_string()),
            SentUnder::Number { emitter, number, after } => {
                let lane = ingest::Lane { emitter, lane: body.lane };
                request.header(EMITTER, lane.to_string()).header(SEQUENCE, number).header(AFTER, after)
            }
        };
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.expose());
        }
        let mut response = match request.send().await {
            Ok(response) => response,
            Err(error) => return Verdict::later(causes(&error)),
        };
        let (status, headers) = (response.status(), response.headers().clone());
        let mut answer = Vec::new();
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) if answer.len() + chunk.len() <= ANSWER_BYTES => answer.extend_from_slice(&chunk),
                Ok(_) => break,
                Err(error) => return Verdict::later(causes(&error)),
            }
        }
        judge(status, &headers, &answer)
    }
}

fn judge(status: StatusCode, headers: &HeaderMap, answer: &[u8]) -> Verdict {
    if status.is_success() {
        return match serde_json::from_slice::<Acknowledgement>(answer) {
            Ok(_) => Verdict::Taken,
            Err(_) => Verdict::later(format!("{status}, but what answers is no control plane")),
        };
    }
    // The code is a word of the control plane's own; other text of an answer is not repeated.
    let problem = is_problem(headers).then(|| serde_json::from_slice::<Problem>(answer).ok()).flatten();
    let why = match &problem {
        Some(problem) => format!("{status} ({})", problem.code.chars().take(64).collect::<String>()),
        None => status.to_string(),
    };
    match status {
        StatusCode::CONFLICT if problem.as_ref().is_some_and(|problem| problem.code == CONFLICT) => {
            Verdict::Conflict { why }
        }
        StatusCode::BAD_REQUEST
        | StatusCode::PAYLOAD_TOO_LARGE
        | StatusCode::UNSUPPORTED_MEDIA_TYPE
        | StatusCode::UNPROCESSABLE_ENTITY
            if problem.is_some() =>
        {
            Verdict::Never { why }
        }
        _ => Verdict::Later { why, after: retry_after(headers) },
    }
}

fn is_problem(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/problem+json"))
}

/// `Retry-After` in seconds; the form with a date is nothing a control plane sends.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST_WAIT))
}

/// An error with its causes: the first one alone only says that a request failed. Without the URL.
fn causes(error: &reqwest::Error) -> String {
    let causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    let what = if error.is_timeout() { "no answer in time" } else { "no answer" };
    causes.fold(what.to_owned(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use reqwest::StatusCode;
    use reqwest::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};

    use super::{Verdict, judge};

    fn judged(status: u16, media: &'static str, answer: &str) -> Verdict {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, media.parse().unwrap());
        judge(StatusCode::from_u16(status).unwrap(), &headers, answer.as_bytes())
    }

    #[test]
    fn only_an_acknowledgement_delivers() {
        let json = "application/json";
        assert_eq!(judged(200, json, r#"{"accepted": 3, "duplicate": false}"#), Verdict::Taken);
        assert_eq!(judged(200, json, r#"{"accepted": 3, "duplicate": true}"#), Verdict::Taken);
        for page in ["", "<html>welcome to the hotel's network</html>", "{}"] {
            assert!(matches!(judged(200, json, page), Verdict::Later { .. }), "{page}");
        }
        assert!(matches!(judged(302, json, ""), Verdict::Later { .. }));
    }

    #[test]
    fn only_the_control_planes_own_word_ends_a_batch() {
        let problem = r#"{"code": "invalid_sample", "detail": "hunter2"}"#;
        for status in [400, 413, 415, 422] {
            let verdict = judged(status, "application/problem+json", problem);
            assert!(matches!(&verdict, Verdict::Never { why } if why.contains("invalid_sample")), "{verdict:?}");
            assert!(matches!(judged(status, "text/html", "<html>a proxy</html>"), Verdict::Later { .. }));
        }
        for status in [401, 403, 404, 405, 408, 409, 429, 500, 502, 503, 504] {
            let verdict = judged(status, "application/problem+json", problem);
            assert!(matches!(&verdict, Verdict::Later { why, .. } if !why.contains("hunter2")), "{verdict:?}");
        }
    }

    #[test]
    fn only_a_number_that_cannot_be_compared_is_a_conflict() {
        let problem = "application/problem+json";
        assert!(matches!(judged(409, problem, r#"{"code": "sequence_conflict"}"#), Verdict::Conflict { .. }));
        assert!(matches!(judged(409, "text/html", r#"{"code": "sequence_conflict"}"#), Verdict::Later { .. }));
        assert!(matches!(judged(503, problem, r#"{"code": "sequence_conflict"}"#), Verdict::Later { .. }));
        assert!(matches!(judged(422, problem, r#"{"code": "key_reused"}"#), Verdict::Never { .. }));
    }

    #[test]
    fn retry_after_is_read_up_to_five_minutes() {
        for (said, after) in [("7", Some(7)), ("86400", Some(300)), ("soon", None)] {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, said.parse().unwrap())]);
            let Verdict::Later { after: found, .. } = judge(StatusCode::SERVICE_UNAVAILABLE, &headers, b"") else {
                panic!("503 is to be repeated")
            };
            assert_eq!(found, after.map(Duration::from_secs));
        }
    }
}
