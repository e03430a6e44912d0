//! Which thresholds have been crossed since the last sample. Each is reported once, and again only after the value has
//! been well on the other side.

/// What has been reported.
#[derive(Debug, Default)]
pub struct Thresholds {
    /// Pids of sessions that hold much.
    large: Vec<i32>,
    is_short: bool,
}

impl Thresholds {
    /// The sessions that hold more than `limit` for the first time, or again, with what they hold. `sessions` are pids
    /// of all sessions with what they and their parallel workers hold.
    pub fn cross(&mut self, limit: Option<u64>, sessions: &[(i32, u64)]) -> Vec<(i32, u64)> {
        let Some(limit) = limit else {
            self.large.clear();
            return Vec::new();
        };
        let is_well_below = |private: u64| private < limit / 4 * 3;
        self.large.retain(|pid| sessions.iter().any(|&(other, private)| other == *pid && !is_well_below(private)));
        let is_new = |&&(pid, private): &&(i32, u64)| private > limit && !self.large.contains(&pid);
        let crossed: Vec<_> = sessions.iter().filter(is_new).copied().collect();
        self.large.extend(crossed.iter().map(|&(pid, _)| pid));
        crossed
    }

    /// Whether less than `least` is left, for the first time or again.
    pub fn run_short(&mut self, least: Option<u64>, headroom: Option<u64>) -> bool {
        let Some((least, headroom)) = least.zip(headroom) else {
            self.is_short = false;
            return false;
        };
        if headroom > least / 4 * 5 {
            self.is_short = false;
        }
        let is_new = headroom < least && !self.is_short;
        self.is_short |= is_new;
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_reported_once_until_it_is_well_below() {
        let mut thresholds = Thresholds::default();
        let mut at = |private| thresholds.cross(Some(100), &[(1, 5), (7, private)]);
        assert_eq!(at(100), []);
        assert_eq!(at(101), [(7, 101)]);
        assert_eq!(at(500), []);
        assert_eq!(at(80), []);
        assert_eq!(at(120), []);
        assert_eq!(at(74), []);
        assert_eq!(at(120), [(7, 120)]);
    }

    #[test]
    fn one_that_has_gone_is_forgotten() {
        let mut thresholds = Thresholds::default();
        assert_eq!(thresholds.cross(Some(100), &[(7, 200)]), [(7, 200)]);
        assert_eq!(thresholds.cross(Some(100), &[]), []);
        assert_eq!(thresholds.cross(Some(100), &[(7, 200)]), [(7, 200)]);
        assert_eq!(thresholds.cross(None, &[(7, 200)]), []);
        assert_eq!(thresholds.cross(Some(100), &[(7, 200)]), [(7, 200)]);
    }

    #[test]
    fn shortage_is_reported_once_until_there_is_room_again() {
        let mut thresholds = Thresholds::default();
        let mut at = |headroom| thresholds.run_short(Some(100), Some(headroom));
        assert!(!at(100));
        assert!(at(99));
        assert!(!at(50));
        assert!(!at(110));
        assert!(!at(90));
        assert!(!at(126));
        assert!(at(90));
        assert!(!thresholds.run_short(None, Some(1)) && !thresholds.run_short(Some(100), None));
    }
}
