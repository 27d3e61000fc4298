//! Scrapes of orgs' metrics: rendered once for all that wait for the same one, a few at a time, compressed, and bounded
//! in memory.
//!
//! An org is loaded before a scrape of it takes its turn: one whose files hang keeps no other org's scrape waiting.
//!
//! A scrape shows all that was acknowledged before it came. So one that comes while another waits to be rendered gets
//! that rendering, and one that comes once it has begun gets the next. What slow readers hold of their answers is
//! bounded: past it a scrape is refused for now. One org has at most half of that room, so that its slow readers keep
//! no other org's scrapes out.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
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
/// What all answers may hold until they are sent, and those of one org.
const HELD_BYTES: usize = 256 << 20;
const HELD_BYTES_OF_ORG: usize = HELD_BYTES / 2;

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
    room: Room,
}

impl std::fmt::Debug for Scrapes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scrapes").finish_non_exhaustive()
    }
}

impl Default for Scrapes {
    fn default() -> Self {
        Self { waiting: Mutex::default(), turns: Semaphore::new(AT_ONCE), room: Room::default() }
    }
}

/// The room for answers that are being sent.
struct Room {
    all: Arc<Semaphore>,
    /// Of orgs that have answers there.
    of: Mutex<HashMap<OrgName, Weak<Semaphore>>>,
}

impl Default for Room {
    fn default() -> Self {
        Self { all: Arc::new(Semaphore::new(HELD_BYTES / 1024)), of: Mutex::default() }
    }
}

impl Room {
    /// Room for an answer of an org, if there is any.
    fn take(&self, org: &OrgName, bytes: usize) -> Option<Place> {
        let kibibytes = u32::try_from(bytes / 1024 + 1).ok()?;
        let share = {
            let mut of = self.of.lock();
            of.retain(|_, share| share.strong_count() > 0);
            let known = of.get(org).and_then(Weak::upgrade);
            let share = known.unwrap_or_else(|| Arc::new(Semaphore::new(HELD_BYTES_OF_ORG / 1024)));
            of.insert(org.clone(), Arc::downgrade(&share));
            share
        };
        let of_org = share.try_acquire_many_owned(kibibytes).ok()?;
        let of_all = Arc::clone(&self.all).try_acquire_many_owned(kibibytes).ok()?;
        Some(Place { _of_org: of_org, _of_all: of_all })
    }
}

/// The room that an answer takes.
struct Place {
    _of_org: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

/// Bytes, with the room that they take.
struct Held {
    bytes: Vec<u8>,
    _place: Place,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A rendering of what is wanted, shared by all requests for the same.
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
    // Requests from here on may have to see more than this rendering does.
    api.scrapes.waiting.lock().remove(&wanted);
    loaded?;
    let Wanted { org, granularity, format, shown, coding } = wanted;
    let of = org.clone();
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
    let place = api.scrapes.room.take(&of, packed.len()).ok_or_else(|| {
        let detail = "too many scrapes are being read slowly; come again, and read faster or ask for gzip";
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", detail).retry_after(Duration::from_secs(1))
    })?;
    Ok(Rendered { body: Bytes::from_owner(Held { bytes: packed, _place: place }), series })
}

#[cfg(test)]
mod tests {
    use super::{HELD_BYTES, HELD_BYTES_OF_ORG, Room};

    #[test]
    fn slow_readers_of_one_org_leave_room_to_the_others() {
        let room = Room::default();
        let (noisy, quiet) = ("noisy".parse().unwrap(), "quiet".parse().unwrap());
        let answer = 22 << 20;
        let mut held = Vec::new();
        while let Some(place) = room.take(&noisy, answer) {
            held.push(place);
        }
        assert!(!held.is_empty() && held.len() * answer <= HELD_BYTES_OF_ORG);
        let of_quiet = room.take(&quiet, answer).unwrap();
        held.pop();
        assert!(room.take(&noisy, answer).is_some(), "who reads makes room");
        drop((held, of_quiet));
        assert_eq!(room.all.available_permits(), HELD_BYTES / 1024);
        assert!(room.take(&noisy, HELD_BYTES_OF_ORG - 1024).is_some());
        assert!(room.take(&quiet, answer).is_some());
        assert_eq!(room.of.lock().len(), 1, "who has no answers there is forgotten");
    }
}
