//! `/proc/PID/stat`: which process this is.

use memchr::memrchr;

use super::error::Malformed;
use super::fields;
use super::process::Pid;

/// Distinguishes a process from others that had or will have the same pid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The pid of its parent.
    pub parent: Pid,
    /// When it was started, in clock ticks since boot.
    pub start_time: u64,
}

impl Identity {
    /// Parses stat. `None` for a process that has exited or has given up its address space. Also `None` for a thread:
    /// its directory in `/proc` can be opened although it is not listed, but it has no exit signal.
    pub fn parse(stat: &[u8]) -> Result<Option<Self>, Malformed> {
        Self::parse_fields(stat).ok_or(Malformed::LINE)
    }

    fn parse_fields(stat: &[u8]) -> Option<Option<Self>> {
        // The second field is the program's name in parentheses. The name may contain anything, including parentheses.
        let fields = stat.get(memrchr(b')', stat)? + 1..)?.trim_ascii();
        let mut fields = fields.split(|&byte| byte == b' ');
        // Fields are numbered as in proc(5), where the name is field 2.
        let state = fields.next()?;
        let parent = Pid::try_from(fields::decimal(fields.next()?)?).ok()?;
        let start_time = fields::decimal(fields.nth(22 - 5)?)?;
        let virtual_size = fields.next()?;
        let exit_signal = fields.nth(38 - 24)?;
        let is_gone = matches!(state, b"Z" | b"X" | b"x") || virtual_size == b"0" || exit_signal == b"-1";
        Some((!is_gone).then_some(Identity { parent, start_time }))
    }
}

#[cfg(any(test, feature = "oracle"))]
pub mod naive;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A stat file of a sleeping process, with a start time of 4711, a virtual size of 8192 and an exit signal of 17.
    const STAT: &str =
        "12 (NAME) S 7 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 8192 3 1 1 1 1 1 1 0 0 0 0 0 0 0 17 0 0 0 0\n";

    fn parse(stat: &str) -> Result<Option<Identity>, Malformed> {
        Identity::parse(stat.as_bytes())
    }

    #[test]
    fn stat_with_any_program_name() {
        for name in ["postgres", "a b", ")", ") Z 1 (", "(", ""] {
            let identity = parse(&STAT.replace("NAME", name)).unwrap();
            assert_eq!(identity, Some(Identity { parent: 7, start_time: 4711 }));
        }
    }

    #[test]
    fn stat_of_a_process_that_is_gone() {
        for (alive, gone) in [(" S ", " Z "), (" S ", " X "), (" S ", " x "), (" 8192 ", " 0 "), (" 17 ", " -1 ")] {
            assert!(STAT.contains(alive));
            assert_eq!(parse(&STAT.replace(alive, gone)), Ok(None), "{gone}");
        }
    }

    #[test]
    fn a_truncated_stat_is_malformed() {
        for bad in ["", "12", "12 (postgres", "12 (postgres)", "12 (postgres) S", "12 (postgres) S 7 1 1"] {
            assert_eq!(parse(bad), Err(Malformed::LINE), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn stat_agrees_with_the_oracle(
            name in "[ -~]{0,16}", state in "[A-Za-z]", numbers in prop::collection::vec("-?[0-9]{1,21}|0|-1", 0..60),
        ) {
            naive::assert_agrees(format!("12 ({name}) {state} {}\n", numbers.join(" ")).as_bytes());
        }

        #[test]
        fn damaged_stat_agrees_with_the_oracle(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut stat = STAT.as_bytes().to_vec();
            let at = at.index(stat.len());
            stat[at] = byte;
            naive::assert_agrees(&stat);
            naive::assert_agrees(&stat[..at]);
        }
    }
}
