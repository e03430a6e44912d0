//! How much memory statements need at their peak, found out by one process about itself.
//!
//! # What the kernel tells
//!
//! The kernel keeps the largest resident set that the process has had: its high-water mark, here called the *mark*. It
//! can be lowered to the present size. Reading it is cheap, reading the present size (a *sample*) costs four times as
//! much, and both are too expensive to do for each statement. Neither is the answer by itself. The resident set also
//! includes shared memory, which grows when a page of shared buffers is touched for the first time; and a sample sees
//! only one moment.
//!
//! A peak is therefore a range. Private memory was at least what a sample found, and at least the mark without the most
//! shared memory that can have been resident at the same time. It was at most the mark without the least. The second
//! lower limit holds only if shared memory does not shrink in between, as that of a parallel query does.
//!
//! # Whose peak it is
//!
//! Nobody can touch much memory in a short time. So the mark is looked at only after each [`LOOK_AFTER`] nanoseconds of
//! statements' time, and what it says belongs to the statement that runs at that moment, and to those that enclose it.
//! It is lowered when a sample is taken, and *again when the next statement starts*, because in between the memory is
//! freed: a mark that includes it would hide all smaller peaks until then, or be blamed on the next statement.

/// What a process can find out about its own memory.
pub trait Probe {
    /// The mark, in bytes, and the number of major faults.
    fn mark(&mut self) -> Mark;
    /// The present sizes. `None` if they cannot be read.
    fn sample(&mut self) -> Option<Sample>;
    /// Lowers the mark to the present size. Returns false if the kernel does not let us.
    fn lower_mark(&mut self) -> bool;
    /// Whether a sample opens no file.
    fn is_open(&self) -> bool;
    /// Is told of a peak.
    fn tell(&mut self, _: Peak) {}
}

/// The mark of a process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mark {
    /// The largest resident set since the mark was lowered, in bytes.
    pub resident: u64,
    /// The number of major faults since the process began.
    pub major_faults: u64,
}

/// The present sizes of a process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    /// Resident private memory, in bytes.
    pub private: u64,
    /// Resident shared memory and mapped files, in bytes.
    pub shared: u64,
}

/// A peak of private memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peak {
    /// It was at least this.
    pub at_least: u64,
    /// It was at most this.
    pub at_most: u64,
}

impl Peak {
    /// The peak of two intervals together.
    pub fn merge(&mut self, other: Peak) {
        self.at_least = self.at_least.max(other.at_least);
        self.at_most = self.at_most.max(other.at_most);
    }
}

/// What has happened since it was last asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Finding {
    /// The peak.
    pub peak: Peak,
    /// The number of major faults.
    pub major_faults: u64,
}

/// After how many nanoseconds of statements' time the mark is looked at. Touching 512 kB takes about that long.
pub const LOOK_AFTER: u64 = 200_000;

/// If nobody has looked for so many nanoseconds of statements' time, a sample is taken and the mark is lowered, however
/// little it has risen: it may be from before something was freed unnoticed.
pub const SAMPLE_AFTER: u64 = 1_000_000;

/// A smaller growth is not noticed.
pub const HEAVY: u64 = 1 << 20;

/// Follows the memory of one process.
#[derive(Debug, Default)]
pub struct Meter {
    /// The mark when it was last looked at.
    mark: u64,
    /// The mark after the last sample.
    sampled_mark: u64,
    major_faults: u64,
    /// Private memory, estimated from the last sample and what the mark has risen since.
    private: u64,
    least_shared: u64,
    most_shared: u64,
    /// Shared memory may shrink, so what the mark says about private memory is not a lower limit.
    shared_may_shrink: bool,
    /// What looks and samples have found, until somebody takes it.
    finding: Option<Finding>,
    /// Memory may have been freed since the mark was lowered.
    is_stale: bool,
    /// When time was last counted, in nanoseconds.
    counted_until: u64,
    /// Statements' time since the last look, in nanoseconds.
    busy: u64,
}

impl Meter {
    /// A meter, from what the process holds now.
    pub fn new(probe: &mut impl Probe) -> Self {
        let mark = probe.mark();
        let sample = probe.sample().unwrap_or_default();
        Meter {
            mark: mark.resident,
            sampled_mark: mark.resident,
            major_faults: mark.major_faults,
            private: sample.private,
            least_shared: sample.shared,
            most_shared: sample.shared,
            ..Meter::default()
        }
    }

    /// Private memory as far as it is known, in bytes.
    pub fn private(&self) -> u64 {
        self.private
    }

    /// Whether memory may have been freed since the mark was lowered, so that a sample is needed before a statement
    /// starts.
    pub fn is_stale(&self) -> bool {
        self.is_stale
    }

    /// From then on, time counts.
    #[inline]
    pub fn start_counting(&mut self, since: u64) {
        self.counted_until = self.counted_until.max(since);
    }

    /// Memory that is held now will be freed.
    pub fn expect_release(&mut self) {
        self.is_stale = true;
    }

    /// Until the next [`refresh`](Self::refresh), shared memory may shrink.
    pub fn expect_shrinking(&mut self) {
        self.shared_may_shrink = true;
    }

    /// Whether so much time has passed that it is worth to look.
    #[inline]
    pub fn is_due(&mut self, now: u64) -> bool {
        self.busy += now.saturating_sub(self.counted_until);
        self.counted_until = now;
        self.busy >= LOOK_AFTER
    }

    /// Takes a sample and lowers the mark if it has risen.
    pub fn sample_if_risen(&mut self, probe: &mut impl Probe) {
        let mark = probe.mark();
        if self.has_risen(mark) {
            self.sample_with(mark, probe);
        }
    }

    /// Looks at the mark. Takes a sample if it has risen, or if the last one was long ago.
    pub fn look(&mut self, probe: &mut impl Probe) {
        let mark = probe.mark();
        let busy = std::mem::take(&mut self.busy);
        if self.has_risen(mark) || busy >= SAMPLE_AFTER && probe.is_open() || self.finding.is_some() {
            self.sample_with(mark, probe);
        } else {
            // Small statements may have needed this. It is not to be blamed on a later one.
            self.private += mark.resident.saturating_sub(self.mark);
            self.mark = self.mark.max(mark.resident);
            if mark.major_faults > self.major_faults {
                self.count_faults(mark);
            }
        }
    }

    /// Takes a sample and lowers the mark.
    pub fn sample(&mut self, probe: &mut impl Probe) {
        let mark = probe.mark();
        self.sample_with(mark, probe);
    }

    /// Takes a sample when a statement starts. Nothing that this one needs has been freed yet.
    pub fn refresh(&mut self, probe: &mut impl Probe) {
        self.sample(probe);
        self.is_stale = false;
        self.shared_may_shrink = false;
    }

    /// What looks and samples have found since the last call.
    pub fn take(&mut self) -> Option<Finding> {
        self.finding.take()
    }

    /// Faults belong to what runs now, whether it has grown or not.
    #[cold]
    fn count_faults(&mut self, mark: Mark) {
        let finding = self.finding.get_or_insert_default();
        finding.major_faults += mark.major_faults.saturating_sub(self.major_faults);
        self.major_faults = mark.major_faults;
    }

    /// Whether the mark has risen since the last sample.
    fn has_risen(&self, mark: Mark) -> bool {
        mark.resident >= self.sampled_mark + HEAVY
    }

    fn sample_with(&mut self, mark: Mark, probe: &mut impl Probe) {
        let Some(Sample { private, shared }) = probe.sample() else {
            // Not again until the mark has risen as much once more.
            (self.mark, self.sampled_mark) = (mark.resident, mark.resident);
            return;
        };
        self.least_shared = self.least_shared.min(shared);
        self.most_shared = self.most_shared.max(shared);
        let mut peak =
            Peak { at_least: private, at_most: private.max(mark.resident.saturating_sub(self.least_shared)) };
        // A mark that has not risen is from before.
        if mark.resident > self.mark && !self.shared_may_shrink {
            peak.at_least = private.max(mark.resident.saturating_sub(self.most_shared));
        }
        self.finding.get_or_insert_default().peak.merge(peak);
        self.count_faults(mark);
        self.mark = if probe.lower_mark() { probe.mark().resident } else { mark.resident };
        self.sampled_mark = self.mark;
        self.private = private;
        (self.least_shared, self.most_shared) = (shared, shared);
        self.is_stale = true;
        self.busy = 0;
    }
}
