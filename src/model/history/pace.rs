//! How often a sample is taken, and which are written.

use super::sample::Sample;

/// How fast memory can be eaten, in bytes a second. The fastest ways that were found reach 2.5 GB/s for one session.
const EATEN_PER_SECOND: u64 = 4 << 30;

/// What a sample may have changed by since the last one that was written, without being written.
const NEGLIGIBLE: u64 = 8 << 20;

/// In how many milliseconds the next sample is due: before half of what is left can have been eaten, but within
/// `shortest` and `longest`.
pub fn interval(headroom: Option<u64>, shortest: u64, longest: u64) -> u64 {
    let Some(headroom) = headroom else { return longest };
    let half = headroom / 2;
    let milliseconds = half / (EATEN_PER_SECOND / 1000);
    milliseconds.clamp(shortest.min(longest), longest)
}

/// Whether a sample says more than the last one that was written. `longest` is how many milliseconds may lie between
/// two.
pub fn is_worth_writing(written: Option<&Sample>, sample: &Sample, longest: u64) -> bool {
    let Some(written) = written else { return true };
    let passed = sample.at - written.at;
    // If the clock has been set back, nothing is known about that.
    if passed < 0 || passed as u64 + 1000 >= longest * 1000 {
        return true;
    }
    let differs = |a: u64, b: u64| a.abs_diff(b) >= NEGLIGIBLE.max(a.min(b) / 16);
    differs(written.private, sample.private)
        || written.headroom.zip(sample.headroom).is_some_and(|(before, after)| differs(before, after))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn half_of_what_is_left_cannot_be_eaten_in_between(headroom in 0_u64..16 << 30) {
            let milliseconds = interval(Some(headroom), 20, 1000);
            prop_assert!((20..=1000).contains(&milliseconds));
            prop_assert!(milliseconds == 20 || milliseconds * (EATEN_PER_SECOND / 1000) <= headroom / 2);
        }
    }

    #[test]
    fn a_setting_may_be_the_wrong_way_round() {
        assert_eq!(interval(Some(0), 500, 100), 100);
        assert_eq!(interval(None, 20, 1000), 1000);
    }

    #[test]
    fn what_has_changed_is_written() {
        let written = Sample { at: 0, private: 1 << 30, headroom: Some(1 << 30), ..Sample::default() };
        let sample = |at, private, headroom| Sample { at, private, headroom: Some(headroom), ..Sample::default() };
        assert!(is_worth_writing(None, &written, 1000));
        assert!(!is_worth_writing(Some(&written), &sample(20_000, 1 << 30, 1 << 30), 1000));
        assert!(is_worth_writing(Some(&written), &sample(1_000_000, 1 << 30, 1 << 30), 1000));
        assert!(is_worth_writing(Some(&written), &sample(20_000, 1200 << 20, 1 << 30), 1000));
        assert!(is_worth_writing(Some(&written), &sample(20_000, 1 << 30, 900 << 20), 1000));
        assert!(is_worth_writing(Some(&written), &sample(-1, 1 << 30, 1 << 30), 1000));
    }
}
