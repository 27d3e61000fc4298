//! The connections that a server has: how many, from where, and which of them do nothing.
//!
//! A connection costs a descriptor, and the store needs some too. So there are at most so many, and at most so many
//! from one address; a new one past that takes the place of the one that has been idle longest, and is refused where
//! none is idle. So idle connections, however many, keep no client out.
//!
//! A connection is closed when it has sent no request 10 s after it was made, when the head of a request takes longer
//! than that, when it is idle for two minutes (longer than clients commonly keep an idle connection, so that they close
//! it and not we, just when a request is on its way), and when its client takes nothing of an answer for two minutes.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

/// How long a connection's first request, and any request's head, may take.
const HEAD: Duration = Duration::from_secs(10);
/// How long a connection may be idle.
const IDLE: Duration = Duration::from_secs(120);
/// How long a client may take nothing of an answer.
const STALL: Duration = Duration::from_secs(120);
/// How often it is looked, at least.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// What one connection does.
#[derive(Debug)]
pub(super) struct Activity {
    opened: Instant,
    in_flight: AtomicUsize,
    /// Whether a request came.
    served: AtomicBool,
    /// Whether it speaks HTTP/2, where bytes between requests are no head: pings come too.
    multiplexed: AtomicBool,
    /// Milliseconds since it was made, plus one; 0 if it has not happened. When its last request ended, when a head
    /// began, since when nothing is taken.
    idle: AtomicU64,
    head: AtomicU64,
    stalled: AtomicU64,
}

impl Activity {
    fn new() -> Self {
        Self {
            opened: Instant::now(),
            in_flight: AtomicUsize::new(0),
            served: AtomicBool::new(false),
            multiplexed: AtomicBool::new(false),
            idle: AtomicU64::new(1),
            head: AtomicU64::new(0),
            stalled: AtomicU64::new(0),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }

    fn at(&self, mark: &AtomicU64) -> Option<Instant> {
        match mark.load(Ordering::Relaxed) {
            0 => None,
            millis => Some(self.opened + Duration::from_millis(millis - 1)),
        }
    }

    /// A request has come; it lasts until what is given is dropped.
    pub(super) fn request(self: &Arc<Self>, multiplexed: bool) -> InFlight {
        self.served.store(true, Ordering::Relaxed);
        self.multiplexed.store(multiplexed, Ordering::Relaxed);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.head.store(0, Ordering::Relaxed);
        InFlight(Arc::clone(self))
    }

    fn is_idle(&self) -> bool {
        self.in_flight.load(Ordering::Relaxed) == 0
    }

    /// When it is to be closed, as things are now.
    fn deadline(&self) -> Option<Instant> {
        if let Some(stalled) = self.at(&self.stalled) {
            return Some(stalled + STALL);
        }
        if !self.is_idle() {
            return None;
        }
        if !self.served.load(Ordering::Relaxed) {
            return Some(self.opened + HEAD);
        }
        if !self.multiplexed.load(Ordering::Relaxed)
            && let Some(head) = self.at(&self.head)
        {
            return Some(head + HEAD);
        }
        self.at(&self.idle).map(|idle| idle + IDLE)
    }

    /// Returns when it has done nothing for too long.
    pub(super) async fn expired(&self) {
        loop {
            let now = Instant::now();
            match self.deadline() {
                Some(deadline) if deadline <= now => return,
                Some(deadline) => sleep_until(deadline.min(now + CHECK_INTERVAL)).await,
                None => sleep_until(now + CHECK_INTERVAL).await,
            }
        }
    }
}

/// A request under way.
#[derive(Debug)]
pub(super) struct InFlight(Arc<Activity>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.idle.store(self.0.now(), Ordering::Relaxed);
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct Open {
    address: IpAddr,
    activity: Arc<Activity>,
    close: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    open: HashMap<u64, Open>,
    by_address: HashMap<IpAddr, usize>,
    next: u64,
}

/// All connections of a server.
#[derive(Debug)]
pub(super) struct Connections {
    most: usize,
    of_address: usize,
    state: Mutex<State>,
}

/// One of them; dropped, it is gone.
#[derive(Debug)]
pub(super) struct Connection {
    all: Arc<Connections>,
    id: u64,
    /// What it does.
    pub(super) activity: Arc<Activity>,
    /// That it is to be closed for another.
    pub(super) close: CancellationToken,
}

impl Connections {
    /// At most so many, and so many from one address.
    pub(super) fn new(most: usize, of_address: usize) -> Arc<Self> {
        Arc::new(Self { most: most.max(1), of_address: of_address.max(1), state: Mutex::default() })
    }

    /// A place for a connection from an address, perhaps that of one that is idle; none where nothing is idle.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Connection> {
        let mut state = self.state.lock();
        if state.by_address.get(&address).is_some_and(|count| *count >= self.of_address) {
            Self::close_idlest(&mut state, |open| open.address == address)?;
        } else if state.open.len() >= self.most {
            // The address with the most connections gives first.
            let most = state.by_address.iter().max_by_key(|(_, count)| **count).map(|(address, _)| *address);
            Self::close_idlest(&mut state, |open| Some(open.address) == most)
                .or_else(|| Self::close_idlest(&mut state, |_| true))?;
        }
        let (activity, close) = (Arc::new(Activity::new()), CancellationToken::new());
        let id = state.next;
        state.next += 1;
        state.open.insert(id, Open { address, activity: Arc::clone(&activity), close: close.clone() });
        *state.by_address.entry(address).or_default() += 1;
        Some(Connection { all: Arc::clone(self), id, activity, close })
    }

    fn close_idlest(state: &mut State, among: impl Fn(&Open) -> bool) -> Option<()> {
        let idle = state.open.iter().filter(|(_, open)| open.activity.is_idle() && among(open));
        let since = |open: &Open| open.activity.at(&open.activity.idle);
        let (id, _) = idle.min_by_key(|(_, open)| since(open))?;
        let id = *id;
        Self::remove(state, id)?.close.cancel();
        Some(())
    }

    fn remove(state: &mut State, id: u64) -> Option<Open> {
        let open = state.open.remove(&id)?;
        if let Some(count) = state.by_address.get_mut(&open.address) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                state.by_address.remove(&open.address);
            }
        }
        Some(open)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // One that was closed for another is gone already.
        let _ = Connections::remove(&mut self.all.state.lock(), self.id);
    }
}

/// A socket whose bytes are noted.
#[derive(Debug)]
pub(super) struct Noted<S> {
    socket: S,
    activity: Arc<Activity>,
}

impl<S> Noted<S> {
    pub(super) fn new(socket: S, activity: Arc<Activity>) -> Self {
        Self { socket, activity }
    }

    fn note<T>(&self, written: Poll<T>) -> Poll<T> {
        let stalled = &self.activity.stalled;
        match &written {
            Poll::Ready(_) => stalled.store(0, Ordering::Relaxed),
            Poll::Pending if stalled.load(Ordering::Relaxed) == 0 => {
                stalled.store(self.activity.now(), Ordering::Relaxed);
            }
            Poll::Pending => {}
        }
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Noted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.socket).poll_read(context, buffer))?;
        let activity = &self.activity;
        if buffer.filled().len() > before && activity.is_idle() && activity.head.load(Ordering::Relaxed) == 0 {
            activity.head.store(activity.now(), Ordering::Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Noted<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(context, bytes);
        self.note(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(context, slices);
        self.note(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::time::Duration;

    use tokio::time::{Instant, advance};

    use super::{Connections, HEAD, IDLE};

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[tokio::test(start_paused = true)]
    async fn past_the_most_the_one_idle_longest_gives_its_place() {
        let all = Connections::new(3, 3);
        let first = all.enter(address(1)).unwrap();
        advance(Duration::from_secs(1)).await;
        let busy = all.enter(address(1)).unwrap();
        let _request = busy.activity.request(false);
        advance(Duration::from_secs(1)).await;
        let third = all.enter(address(2)).unwrap();
        // The first one answered something since, so the third is idle longer.
        drop(first.activity.request(false));
        let fourth = all.enter(address(3)).unwrap();
        assert!(first.close.is_cancelled(), "the address that has most gives first");
        assert!(!busy.close.is_cancelled() && !third.close.is_cancelled());
        let _requests = [third.activity.request(false), fourth.activity.request(false)];
        assert!(all.enter(address(4)).is_none(), "nothing is idle");
        drop(busy);
        assert!(all.enter(address(4)).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn one_address_takes_the_places_of_its_own_alone() {
        let all = Connections::new(100, 2);
        let other = all.enter(address(2)).unwrap();
        advance(Duration::from_secs(1)).await;
        let own = [all.enter(address(1)).unwrap(), all.enter(address(1)).unwrap()];
        let _third = all.enter(address(1)).unwrap();
        assert_eq!(own.iter().filter(|own| own.close.is_cancelled()).count(), 1);
        assert!(!other.close.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_sends_nothing_and_one_that_is_idle_expire() {
        let all = Connections::new(10, 10);
        let mute = all.enter(address(1)).unwrap();
        let started = Instant::now();
        mute.activity.expired().await;
        assert!((HEAD..HEAD * 2).contains(&started.elapsed()));
        let served = all.enter(address(1)).unwrap();
        drop(served.activity.request(false));
        let started = Instant::now();
        served.activity.expired().await;
        assert!((IDLE..IDLE * 2).contains(&started.elapsed()));
    }
}
