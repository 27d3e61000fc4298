//! The recent windows of one tool: the histograms that the quantile gauges are read from.

use super::{Granularity, Histogram};

/// How far ahead of this node's clock a window may begin, in microseconds: samples may be 10 minutes in the future by
/// the clock of the node that took them, and that clock as much ahead of this one.
const AHEAD: i64 = 20 * 60 * 1_000_000;

/// Histograms by granularity and start of window.
#[derive(Debug, Clone, Default)]
pub(super) struct Windows {
    hours: Vec<Window>,
    days: Vec<Window>,
}

/// One window.
#[derive(Debug, Clone)]
pub(super) struct Window {
    /// Its start, in microseconds since the Unix epoch.
    pub(super) start: i64,
    /// The durations in it.
    pub(super) latency: Histogram,
}

impl Windows {
    /// The window to count in, if it is still of interest or soon will be; older ones are forgotten.
    pub(super) fn open(&mut self, granularity: Granularity, start: i64, now: i64) -> Option<&mut Histogram> {
        if !is_kept(granularity, start, now) {
            return None;
        }
        let windows = self.of_mut(granularity);
        let place = match windows.iter().position(|window| window.start == start) {
            Some(place) => place,
            None => {
                windows.retain(|window| is_kept(granularity, window.start, now));
                windows.push(Window { start, latency: Histogram::new() });
                windows.len() - 1
            }
        };
        windows.get_mut(place).map(|window| &mut window.latency)
    }

    /// The windows that a scrape at `now` shows: the open one and the one before it.
    pub(super) fn shown(&self, granularity: Granularity, now: i64) -> impl Iterator<Item = &Histogram> {
        let open = granularity.window_start(now);
        let before = granularity.window_start(open.saturating_sub(1));
        let shown = self.of(granularity).iter().filter(move |window| window.start == open || window.start == before);
        shown.map(|window| &window.latency)
    }

    /// All windows held, in no order.
    pub(super) fn of(&self, granularity: Granularity) -> &[Window] {
        match granularity {
            Granularity::Hour => &self.hours,
            Granularity::Day => &self.days,
        }
    }

    /// All windows held, to be filled from a snapshot.
    pub(super) fn of_mut(&mut self, granularity: Granularity) -> &mut Vec<Window> {
        match granularity {
            Granularity::Hour => &mut self.hours,
            Granularity::Day => &mut self.days,
        }
    }

    /// Forgets what no scrape at `now` or later shows.
    pub(super) fn expire(&mut self, now: i64) {
        for granularity in Granularity::ALL {
            self.of_mut(granularity).retain(|window| is_kept(granularity, window.start, now));
        }
    }

    /// Memory on the heap, in bytes.
    pub(super) fn heap_bytes(&self) -> usize {
        let windows = self.hours.iter().chain(&self.days);
        let slots = (self.hours.capacity() + self.days.capacity()) * size_of::<Window>();
        slots + windows.map(|window| window.latency.heap_bytes()).sum::<usize>()
    }
}

/// Whether a scrape at `now`, or soon after it, shows the window.
fn is_kept(granularity: Granularity, start: i64, now: i64) -> bool {
    let open = granularity.window_start(now);
    let before = granularity.window_start(open.saturating_sub(1));
    before <= start && start <= now.saturating_add(AHEAD)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = Granularity::Hour.width();
    const MINUTE: i64 = HOUR / 60;

    fn counted(windows: &Windows, now: i64) -> u64 {
        windows.shown(Granularity::Hour, now).map(Histogram::count).sum()
    }

    #[test]
    fn the_open_window_and_the_one_before_it_are_shown() {
        let mut windows = Windows::default();
        for hour in 7..=9 {
            windows.open(Granularity::Hour, hour * HOUR, 9 * HOUR).into_iter().for_each(|window| window.record(1.0));
        }
        assert_eq!(counted(&windows, 9 * HOUR), 2);
        assert_eq!(counted(&windows, 10 * HOUR - 1), 2);
        assert_eq!(counted(&windows, 10 * HOUR), 1);
        assert_eq!(counted(&windows, 11 * HOUR), 0);
    }

    #[test]
    fn a_window_that_some_clock_is_ahead_in_is_kept_and_shown_once_it_opens() {
        let mut windows = Windows::default();
        let now = 10 * HOUR - 10 * MINUTE;
        windows.open(Granularity::Hour, 10 * HOUR, now).unwrap().record(1.0);
        assert_eq!(counted(&windows, now), 0);
        assert_eq!(counted(&windows, 10 * HOUR), 1);
        assert!(windows.open(Granularity::Hour, 11 * HOUR, now).is_none());
    }

    #[test]
    fn memory_of_windows_past_is_given_back() {
        let mut windows = Windows::default();
        for hour in 0..100 {
            windows.open(Granularity::Hour, hour * HOUR, hour * HOUR).unwrap().record(1.0);
            assert!(windows.of(Granularity::Hour).len() <= 2);
        }
        windows.expire(102 * HOUR);
        assert!(windows.of(Granularity::Hour).is_empty());
    }
}
