//! The events of a response, as messages.

use std::time::Duration;

use tokio::time::timeout;

use super::events::{Event, EventReader};
use super::{Content, ExchangeError, messages, result_bytes};
use crate::gateway::message::Message;
use crate::gateway::upstream::share::{Reading, Share};

/// How long the end of an answered exchange is waited for, so that its connection can be used again.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(50);

/// The events of a response.
pub(in crate::gateway::upstream) struct EventStream {
    response: reqwest::Response,
    reader: EventReader,
    reading: Reading,
    share: Share,
    limit: usize,
}

/// What an event brought.
pub(in crate::gateway::upstream) struct Arrived {
    /// Where the stream can be resumed.
    pub(in crate::gateway::upstream) id: Option<String>,
    /// How long to wait before that.
    pub(in crate::gateway::upstream) retry: Option<Duration>,
    pub(in crate::gateway::upstream) messages: Result<Vec<Message>, ExchangeError>,
}

impl EventStream {
    pub(super) fn new(response: reqwest::Response, share: Share, limit: usize) -> Self {
        Self { response, reader: EventReader::new(limit), reading: share.reading(), share, limit }
    }

    /// The next event; `None` at the end of the stream, however it ends.
    pub(in crate::gateway::upstream) async fn next(&mut self) -> Option<Arrived> {
        loop {
            if let Some(event) = self.reader.next() {
                return Some(arrived(event, self.limit, &self.share));
            }
            if let Err(error) = self.reading.has(self.reader.held()) {
                return Some(Arrived { id: None, retry: None, messages: Err(ExchangeError::Upstream(error)) });
            }
            match self.response.chunk().await {
                Ok(Some(bytes)) => self.reader.feed(&bytes),
                // A stream that breaks off is resumed as one that ends early.
                Ok(None) | Err(_) => return None,
            }
        }
    }

    /// Reads what is left of an answered exchange, which is its end, so that the connection can be used again.
    pub(in crate::gateway::upstream) fn drain(mut self: Box<Self>) {
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let rest = async move { while self.next().await.is_some() {} };
            runtime.spawn(timeout(DRAIN_TIMEOUT, rest));
        }
    }
}

fn arrived(event: Event, limit: usize, share: &Share) -> Arrived {
    let messages = if event.too_long {
        Err(ExchangeError::TooLarge { limit: result_bytes(limit) })
    } else {
        match event.data.filter(|data| !data.is_empty()) {
            None => Ok(Vec::new()),
            Some(data) => match share.hold(data).map_err(ExchangeError::Upstream).and_then(|data| messages(&data)) {
                Ok(Content::Messages(messages)) => Ok(messages),
                Ok(_) => Ok(Vec::new()),
                Err(error) => Err(error),
            },
        }
    };
    Arrived { id: event.id, retry: event.retry.map(Duration::from_millis), messages }
}
