//! How many checkpoints were kept, and how far apart.
//!
//! A kept checkpoint that was deleted leaves no trace: the newest one and the tiles prove what it proved. But a forger
//! who would replace this history by another has to delete those that contradict it. So gaps are reported where fewer
//! are there than the control plane keeps, which is at least one a day. A gap does not make a ledger unsound.

/// The control plane keeps one a day; a checkpoint follows its entries by up to some minutes.
const DAY_MICROS: i64 = 25 * 3_600 * 1_000_000;

/// Two neighbouring kept checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// Entries under the first; 0 before the first of all.
    pub from: u64,
    /// Entries under the second.
    pub to: u64,
    /// The time between the last entries under them, in seconds, where both entries are there.
    pub seconds: Option<u64>,
}

/// The number of kept checkpoints and the gaps between them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Spacing {
    /// The widest gap by entries.
    pub widest: Option<Gap>,
    /// The first gap with an entry that is more than a day from the checkpoints on both sides.
    pub sparse: Option<Gap>,
}

/// Watches entries and kept checkpoints go by in order.
#[derive(Debug, Default)]
pub(super) struct Spacer {
    spacing: Spacing,
    /// The last checkpoint: entries under it, and when the last of them was recorded.
    size: u64,
    time: Option<i64>,
    last: Option<i64>,
    /// When the first entry was recorded that is more than a day after that.
    far: Option<i64>,
}

impl Spacer {
    /// The next entry was recorded then; none of one that is gone.
    pub(super) fn entry(&mut self, recorded_at: Option<i64>) {
        self.last = recorded_at;
        let Some(now) = recorded_at else { return };
        let since = *self.time.get_or_insert(now);
        if self.far.is_none() && now.saturating_sub(since) > DAY_MICROS {
            self.far = Some(now);
        }
    }

    /// Entries up to here are gone.
    pub(super) fn gone(&mut self) {
        (self.last, self.time, self.far) = (None, None, None);
    }

    /// There is a checkpoint over the entries so far.
    pub(super) fn checkpoint(&mut self, size: u64) {
        if size <= self.size {
            return;
        }
        let seconds =
            self.time.zip(self.last).and_then(|(from, to)| u64::try_from(to.saturating_sub(from) / 1_000_000).ok());
        let gap = Gap { from: self.size, to: size, seconds };
        if self.spacing.widest.is_none_or(|widest| widest.to - widest.from < gap.to - gap.from) {
            self.spacing.widest = Some(gap);
        }
        let is_sparse = self.far.zip(self.last).is_some_and(|(far, last)| last.saturating_sub(far) > DAY_MICROS);
        if is_sparse && self.spacing.sparse.is_none() {
            self.spacing.sparse = Some(gap);
        }
        (self.size, self.time, self.far) = (size, self.last, None);
    }

    pub(super) fn finish(self) -> Spacing {
        self.spacing
    }
}

#[cfg(test)]
mod tests {
    use super::{Gap, Spacer, Spacing};

    const HOUR: i64 = 3_600 * 1_000_000;

    fn spacing(steps: &[(i64, bool)]) -> Spacing {
        let mut spacer = Spacer::default();
        for (seq, (hour, is_checkpoint)) in (0..).zip(steps) {
            spacer.entry(Some(hour * HOUR));
            if *is_checkpoint {
                spacer.checkpoint(seq + 1);
            }
        }
        spacer.finish()
    }

    #[test]
    fn one_a_day_is_enough_and_a_silent_month_needs_none() {
        let daily: Vec<_> = (0..240).map(|hour| (hour, hour % 24 == 23)).collect();
        assert_eq!(spacing(&daily).sparse, None);
        assert_eq!(spacing(&[(0, true), (1, true), (720, true)]).sparse, None);
        assert_eq!(spacing(&[(0, true), (20, false), (720, false), (721, true)]).sparse, None, "near one of them");
    }

    #[test]
    fn a_day_of_entries_without_one_is_told() {
        let found = spacing(&[(0, true), (30, false), (60, true), (61, true)]);
        let gap = Gap { from: 1, to: 3, seconds: Some(60 * 3_600) };
        assert_eq!(found, Spacing { widest: Some(gap), sparse: Some(gap) });
        assert!(spacing(&[(0, false), (30, false), (60, true)]).sparse.is_some(), "before the first of all");
    }
}
