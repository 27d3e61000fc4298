//! Scrapes of orgs' metrics: rendered once for all that wait for the same one, a few at a time, compressed, and bounded
//! in memory.
//!
//! An org is loaded before a scrape of it takes its turn: one whose files hang keeps no other org's scrape waiting.
//!
//! A scrape shows all that was acknowledged before it came. So one that comes while another waits to be rendered gets
//! that rendering, and one that comes once it has begun gets the next. What slow readers hold of their answers is
//! bounded: past it a scrape is told to come again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Api, Problem};
use crate::model::{OrgName, micros};
use crate::query::formats::Coding;
use crate::rollup::Granularity;
use crate::rollup::exposition::{Format, Shown, render_shown};

/// Renderings at once: each holds the org's totals still for as long as it takes.
const AT_ONCE: usize = 2;
/// What all answers may hold until they are sent.
const HELD_BYTES: usize = 256 << 20;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Wanted {
    pub(super) org: OrgName,
    pub(super) granularity: Granularity,
    pub(super) format: Format,
    pub(super) shown: Shown,
    pub(super) coding: Option<Coding>,
}

/// An answer.
#[derive(Debug, Clone)]
pub(super) struct Rendered {
    pub(super) body: Bytes,
    pub(super) series: usize,
}

type Rendering = Shared<BoxFuture<'static, Result<Rendered, Problem>>>;

/// Renderings that have not begun, and what bounds them.
pub(super) struct Scrapes {
    waiting: Mutex<HashMap<Wanted, Rendering>>,
    turns: Semaphore,
    room: Arc<Semaphore>,
}

impl std::fmt::Debug for Scrapes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scrapes").finish_non_exhaustive()
    }
}

impl Default for Scrapes {
    fn default() -> Self {
        Self {
            waiting: Mutex::default(),
            turns: Semaphore::new(AT_ONCE),
            room: Arc::new(Semaphore::new(HELD_BYTES / 1024)),
        }
    }
}

/// Bytes, with the room that they take.
struct Held {
    bytes: Vec<u8>,
    _room: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A rendering of what is wanted, shared with whoever wants the same.
pub(super) async fn rendered(api: &Arc<Api>, wanted: Wanted) -> Result<Rendered, Problem> {
    let rendering = {
        let mut waiting = api.scrapes.waiting.lock();
        match waiting.get(&wanted) {
            Some(rendering) => rendering.clone(),
            None => {
                let rendering = render_next(Arc::clone(api), wanted.clone()).boxed().shared();
                waiting.insert(wanted, rendering.clone());
                // It goes on whether or not its first reader waits for it.
                tokio::spawn(rendering.clone());
                rendering
            }
        }
    };
    rendering.await
}

async fn render_next(api: Arc<Api>, wanted: Wanted) -> Result<Rendered, Problem> {
    // An org that is slow to load, since its files hang, takes no turn from others.
    let loaded = api.plane.load(&wanted.org).await;
    let turn = match &loaded {
        Ok(()) => Some(api.scrapes.turns.acquire().await),
        Err(_) => None,
    };
    // Whoever comes from here on may have to see more than this rendering does.
    api.scrapes.waiting.lock().remove(&wanted);
    loaded?;
    let Wanted { org, granularity, format, shown, coding } = wanted;
    let now = micros(api.clock.now());
    let exemplars = api.exemplars.of(&org);
    let read = api.plane.with_totals(&org, move |totals| {
        let exemplars = exemplars.as_ref().map(|kept| kept.read());
        (render_shown(totals, exemplars.as_deref(), granularity, now, format, shown), totals.series_count())
    });
    let (body, series) = read.await?;
    let packed = match coding {
        None => Vec::from(body),
        Some(coding) => {
            let packing = tokio::task::spawn_blocking(move || coding.compress(&body));
            let failed = |error: &dyn std::fmt::Display| {
                tracing::error!(%error, "a scrape could not be compressed");
                Problem::internal()
            };
            packing.await.map_err(|error| failed(&error))?.map_err(|error| failed(&error))?
        }
    };
    drop(turn);
    let kibibytes = u32::try_from(packed.len() / 1024 + 1).unwrap_or(u32::MAX);
    let room = Arc::clone(&api.scrapes.room).try_acquire_many_owned(kibibytes).map_err(|_| {
        let detail = "too many scrapes are being read slowly; come again, and read faster or ask for gzip";
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", detail).retry_after(Duration::from_secs(1))
    })?;
    Ok(Rendered { body: Bytes::from_owner(Held { bytes: packed, _room: room }), series })
}
