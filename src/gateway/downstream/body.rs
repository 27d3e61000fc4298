//! Taking the body of a request in, within its limit, its time, and the memory there is.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use http::StatusCode;
use http::header::CONTENT_LENGTH;
use http::request::Parts;
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout_at};

use crate::gateway::budget::Budget;

/// How long a whole body may take, and how long nothing of it may come.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
const STALL_TIMEOUT: Duration = Duration::from_secs(10);

/// What a request costs beside its bytes: what is kept of it while it is under way.
const OVERHEAD: usize = 4 << 10;

/// How much is charged at once.
const STEP: usize = 64 << 10;

/// Why a body is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refused {
    TooLarge(usize),
    NoMemory,
    TooSlow,
    Broken,
}

impl Refused {
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::NoMemory => StatusCode::SERVICE_UNAVAILABLE,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::Broken => StatusCode::BAD_REQUEST,
        }
    }

    pub(super) fn text(&self) -> String {
        match self {
            Self::TooLarge(limit) => format!("the request is larger than {limit} bytes"),
            Self::NoMemory => "the memory for requests and answers is used up; try again later".to_owned(),
            Self::TooSlow => "the request did not come in time".to_owned(),
            Self::Broken => "the request broke off".to_owned(),
        }
    }
}

/// Takes a body in. It is charged to its sender for as long as any part of it is there.
pub(super) async fn take_in(
    parts: &Parts,
    mut body: Body,
    limit: usize,
    (budget, owner): (&Arc<Budget>, &Arc<str>),
) -> Result<Bytes, Refused> {
    let announced = parts.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > limit) {
        return Err(Refused::TooLarge(limit));
    }
    let mut charge = budget.charge(owner, OVERHEAD).map_err(|_| Refused::NoMemory)?;
    let deadline = Instant::now() + BODY_TIMEOUT;
    let (mut bytes, mut charged) = (Vec::new(), 0);
    loop {
        let stalled = (Instant::now() + STALL_TIMEOUT).min(deadline);
        let frame = timeout_at(stalled, body.frame()).await.map_err(|_| Refused::TooSlow)?;
        let Some(frame) = frame else { break };
        let Ok(data) = frame.map_err(|_| Refused::Broken)?.into_data() else { continue };
        let length = bytes.len() + data.len();
        if length > limit {
            return Err(Refused::TooLarge(limit));
        }
        if length > charged {
            let step = (length - charged).next_multiple_of(STEP);
            charge.grow(step).map_err(|_| Refused::NoMemory)?;
            charged += step;
            bytes.reserve_exact(charged - bytes.len());
        }
        bytes.extend_from_slice(&data);
    }
    Ok(charge.hold(bytes))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::body::{Body, Bytes};
    use futures::stream;
    use http::Request;

    use super::{Refused, take_in};
    use crate::gateway::budget::Budget;

    async fn take(body: Body, limit: usize, budget: &Arc<Budget>) -> Result<Bytes, Refused> {
        let (parts, body) = Request::post("/").body(body).unwrap().into_parts();
        take_in(&parts, body, limit, (budget, &"a".into())).await
    }

    #[tokio::test]
    async fn a_body_is_charged_until_the_last_part_of_it_is_gone() {
        let budget = Budget::new(1 << 20);
        let body = take(Body::from("hello"), 10, &budget).await.unwrap();
        let part = body.slice(..2);
        drop(body);
        assert!(budget.used() > 0);
        drop(part);
        assert_eq!(budget.used(), 0);
    }

    #[tokio::test]
    async fn a_body_past_the_limit_or_the_memory_is_not_taken_in() {
        let budget = Budget::new(400_000);
        assert_eq!(take(Body::from("x".repeat(11)), 10, &budget).await, Err(Refused::TooLarge(10)));
        let held = take(Body::from(vec![0; 100_000]), 1 << 20, &budget).await.unwrap();
        assert_eq!(take(Body::from(vec![0; 100_000]), 1 << 20, &budget).await, Err(Refused::NoMemory));
        drop(held);
        assert!(take(Body::from(vec![0; 100_000]), 1 << 20, &budget).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_come_is_not_waited_for() {
        let budget = Budget::new(1 << 20);
        let never = Body::from_stream(stream::pending::<Result<Bytes, std::convert::Infallible>>());
        assert_eq!(take(never, 10, &budget).await, Err(Refused::TooSlow));
        assert_eq!(budget.used(), 0);
    }
}
