use proptest::prelude::*;

use super::*;

const MB: u64 = 1 << 20;
const SECOND: i64 = 1_000_000;

fn member(pid: i32, private: u64) -> Member {
    let private = private * MB;
    Member { pid, private, mapped: private, is_active: true, statement: 1, ..Member::default() }
}

fn moment(at: i64, headroom: u64, members: &[Member]) -> Moment {
    Moment { at, headroom: headroom * MB, limit: 1000 * MB, members: members.to_vec(), ..Moment::default() }
}

fn policy(action: Action) -> Policy {
    Policy { min_headroom: 200 * MB, action }
}

proptest! {
    #[test]
    fn a_refusal_is_unpacked_as_it_was_packed(pid in 1i32..1 << 22, kilobytes in 0u64..1 << 42) {
        let refusal = Refusal { pid, mapped: kilobytes * 1024, statement: 5 };
        prop_assert_eq!(Refusal::unpack(refusal.pack(), 5), Some(refusal));
    }
}

#[test]
fn nothing_happens_while_there_is_enough() {
    let mut guard = Guard::default();
    let decision = guard.decide(policy(Action::Terminate), &moment(0, 200, &[member(1, 800)]));
    // All of what is left but the reserve.
    assert_eq!(decision, Decision { share: Some(136 * MB), ..Decision::default() });
    assert!(!guard.is_short());
}

#[test]
fn the_brake_leaves_a_quarter_to_each() {
    let mut guard = Guard::default();
    let decision = guard.decide(policy(Action::Brake), &moment(0, 164, &[member(1, 800)]));
    assert_eq!(decision, Decision { share: Some(25 * MB), has_become_short: true, ..Decision::default() });
    // Four that grow at the same time.
    let members = [2, 3, 4, 5].map(|pid| member(pid, 210));
    assert_eq!(guard.decide(policy(Action::Brake), &moment(1, 144, &members)).share, Some(10 * MB));
    // They no longer grow.
    assert_eq!(guard.decide(policy(Action::Brake), &moment(2, 144, &members)).share, Some(20 * MB));
    assert_eq!(guard.decide(policy(Action::Log), &moment(3, 144, &members)).share, None);
}

#[test]
fn what_is_spoken_for_is_not_shared() {
    let mut guard = Guard::default();
    let large = Member { mapped: 900 * MB, ..member(1, 800) };
    let small = Member { mapped: 60 * MB, ..member(2, 1) };
    assert_eq!(guard.decide(policy(Action::Brake), &moment(0, 184, &[large, small])).share, Some(5 * MB));
    let moment = Moment { untouched_shared: 20 * MB, ..moment(1, 184, &[large, small]) };
    assert_eq!(guard.decide(policy(Action::Brake), &moment).share, Some(0));
}

#[test]
fn shortage_ends_when_there_is_a_quarter_more() {
    let mut guard = Guard::default();
    let mut at = |headroom| guard.decide(policy(Action::Log), &moment(0, headroom, &[])).has_become_short;
    assert_eq!([200, 199, 100, 249, 250, 199].map(&mut at), [false, true, false, false, false, true]);
}

#[test]
fn one_that_grows_comes_before_one_that_has_long_been_large() {
    let mut guard = Guard::default();
    let decide = |guard: &mut Guard, at, headroom, eater| {
        guard.decide(policy(Action::Cancel), &moment(at, headroom, &[member(1, 400), member(2, eater)])).order
    };
    for at in 1..4 {
        assert_eq!(decide(&mut guard, at * SECOND, 550, 5), None);
    }
    let order = decide(&mut guard, 4 * SECOND, 90, 300).unwrap();
    assert_eq!(order, Order { pid: 2, statement: 1, end: End::Cancel, held: 300 * MB });
}

#[test]
fn a_group_counts_under_its_leader() {
    let workers = [3, 4].map(|pid| Member { leader: Some(2), ..member(pid, 200) });
    let members = [&[member(1, 300), member(2, 90)][..], &workers].concat();
    let order = Guard::default().decide(policy(Action::Cancel), &moment(0, 90, &members)).order;
    assert_eq!(order, Some(Order { pid: 2, statement: 1, end: End::Cancel, held: 490 * MB }));
}

#[test]
fn one_that_does_not_obey_is_terminated_but_no_other_is_ended() {
    for action in [Action::Cancel, Action::Terminate] {
        let mut guard = Guard::default();
        let mut decide = |at| guard.decide(policy(action), &moment(at, 90, &[member(1, 500), member(2, 300)])).order;
        assert_eq!(decide(0).map(|order| (order.pid, order.end)), Some((1, End::Cancel)));
        assert_eq!(decide(GRACE - 1), None);
        let second = (action == Action::Terminate).then_some((1, End::Terminate));
        assert_eq!(decide(GRACE).map(|order| (order.pid, order.end)), second);
        assert_eq!(decide(2 * GRACE), None);
    }
}

#[test]
fn the_next_statement_is_another_one() {
    let mut guard = Guard::default();
    let mut decide = |at, statement| {
        let members = [Member { statement, ..member(1, 500) }];
        guard.decide(policy(Action::Terminate), &moment(at, 90, &members)).order.map(|order| order.end)
    };
    assert_eq!(decide(0, 1), Some(End::Cancel));
    assert_eq!(decide(GRACE, 2), Some(End::Cancel));
}

#[test]
fn two_that_do_not_obey_are_both_terminated() {
    let mut guard = Guard::default();
    let mut orders = Vec::new();
    for nth in 0..8 {
        // Now the one holds more, now the other.
        let members = [member(1, 400 + nth % 2), member(2, 400 + (nth + 1) % 2)];
        let order = guard.decide(policy(Action::Terminate), &moment(nth as i64 * SECOND, 90, &members)).order;
        orders.extend(order.map(|order| (order.pid, order.end)));
    }
    orders.truncate(4);
    assert_eq!(orders, [(2, End::Cancel), (1, End::Cancel), (2, End::Terminate), (1, End::Terminate)]);
}

#[test]
fn an_idle_session_can_only_be_terminated() {
    let idle = Member { is_active: false, ..member(1, 500) };
    let end = |action, members: &[Member]| {
        let order = Guard::default().decide(policy(action), &moment(0, 90, members)).order;
        order.map(|order| (order.pid, order.end))
    };
    assert_eq!(end(Action::Cancel, &[idle]), None);
    assert_eq!(end(Action::Cancel, &[idle, member(2, 200)]), Some((2, End::Cancel)));
    assert_eq!(end(Action::Terminate, &[idle, member(2, 200)]), Some((1, End::Terminate)));
}

#[test]
fn a_shortage_that_is_not_ours_is_said_once() {
    let mut guard = Guard::default();
    let mut decide = |at, headroom| guard.decide(policy(Action::Terminate), &moment(at, headroom, &[member(1, 99)]));
    let first = decide(0, 90);
    assert!(first.has_no_reason && first.order.is_none());
    let second = decide(SECOND, 90);
    assert!(!second.has_no_reason && second.order.is_none());
    assert!(!decide(2 * SECOND, 300).has_no_reason);
    assert!(decide(3 * SECOND, 90).has_no_reason);
}

prop_compose! {
    fn members()(
        held in prop::collection::vec(
            (0_u64..600, 0_u64..300, any::<bool>(), any::<bool>(), 0_usize..4, 0_i64..3), 0..12)
    ) -> Vec<Member> {
        let member = |(nth, &(private, untouched, is_active, is_exempt, leader, statement))| {
            let pid: i32 = nth + 1;
            // Each may be a worker of one of the first three.
            let leader = (leader > 0 && pid > 3 && leader < 4).then_some(leader as i32);
            let mapped = (private + untouched) * MB;
            Member { pid, leader, private: private * MB, mapped, is_active, statement, is_exempt }
        };
        (0..).zip(&held).map(member).collect()
    }
}

prop_compose! {
    fn moments()(
        all in prop::collection::vec((members(), 0_u64..400, 0_i64..400_000), 1..40)
    ) -> Vec<Moment> {
        let mut at = 0;
        let next = |(members, headroom, passed): (Vec<Member>, u64, i64)| {
            at += passed;
            moment(at, headroom, &members)
        };
        all.into_iter().map(next).collect()
    }
}

proptest! {
    #[test]
    fn whom_it_ends(moments in moments(), action in prop::sample::select(
        vec![Action::Log, Action::Brake, Action::Cancel, Action::Terminate])) {
        let mut guard = Guard::default();
        let mut last: Option<(i64, Order)> = None;
        // Whoever was not there at a sample is somebody else afterwards.
        let mut was_away = false;
        for moment in &moments {
            was_away |= last.is_some_and(|(_, before)| moment.members.iter().all(|member| member.pid != before.pid));
            let is_exempt = |leader: i32| moment.members.iter()
                .any(|member| (member.pid == leader || member.leader == Some(leader)) && member.is_exempt);
            let held = |leader: i32| -> u64 { moment.members.iter()
                .filter(|member| member.pid == leader || member.leader == Some(leader))
                .map(|member| member.private).sum() };
            let weight = |guard: &Guard, leader: i32| -> u64 { held(leader) + moment.members.iter()
                .filter(|member| member.pid == leader || member.leader == Some(leader))
                .map(|member| member.private.saturating_sub(guard.base.get(&member.pid).copied().unwrap_or(0)))
                .sum::<u64>() };
            let weights: HashMap<i32, u64> = moment.members.iter().filter(|member| member.leader.is_none())
                .map(|member| (member.pid, weight(&guard, member.pid))).collect();
            let Some(order) = guard.decide(policy(action), moment).order else { continue };
            prop_assert!(action >= Action::Cancel && moment.headroom < 100 * MB);
            prop_assert!(!is_exempt(order.pid));
            prop_assert!(order.end == End::Cancel || action == Action::Terminate);
            let leader = moment.members.iter().find(|member| member.pid == order.pid).unwrap();
            prop_assert_eq!((leader.leader, leader.statement), (None, order.statement));
            // It can be the reason.
            prop_assert!(order.held == held(order.pid) && order.held >= moment.limit / 10);
            // Nobody who could have been ended is larger.
            for other in moment.members.iter().filter(|member| member.leader.is_none()) {
                let can_be = !is_exempt(other.pid) && held(other.pid) >= moment.limit / 10
                    && (other.is_active || action == Action::Terminate);
                prop_assert!(!can_be || weights[&other.pid] <= weights[&order.pid]);
            }
            // Nobody twice within the grace.
            if let Some((at, before)) = last {
                prop_assert!(moment.at - at >= GRACE);
                prop_assert!(before != order || was_away);
            }
            last = Some((moment.at, order));
            was_away = false;
        }
    }

    #[test]
    fn the_reserve_is_never_shared(moments in moments()) {
        let mut guard = Guard::default();
        for moment in &moments {
            let share = guard.decide(policy(Action::Brake), moment).share.unwrap();
            let left = moment.headroom.saturating_sub(64 * MB);
            prop_assert!(share <= left);
            // Four may take all of it between two samples while memory is short.
            prop_assert!(!guard.is_short() || 4 * share <= left);
        }
    }
}

/// The history of a server that ended with the OOM killer, as its recorder has written it.
#[test]
fn the_session_that_was_killed_would_have_been_canceled() {
    let recorded = include_str!("../../../tests/fixtures/oom-kill.history");
    let rows: Vec<Vec<i64>> =
        recorded.lines().map(|line| line.split(' ').map(|number| number.parse().unwrap()).collect()).collect();
    let mut guard = Guard::default();
    let mut orders = Vec::new();
    for sample in rows.chunk_by(|a, b| a[0] == b[0]) {
        let member = |row: &Vec<i64>| Member {
            pid: row[3] as i32,
            private: row[4] as u64,
            mapped: row[4] as u64,
            is_active: row[5] != 0,
            statement: row[6],
            ..Member::default()
        };
        let [at, headroom, limit] = [0, 1, 2].map(|column| sample[0][column]);
        let members = sample.iter().map(member).collect();
        let moment = Moment { at, headroom: headroom as u64, limit: limit as u64, untouched_shared: 0, members };
        let policy = Policy { min_headroom: moment.limit / 5, action: Action::Cancel };
        orders.extend(guard.decide(policy, &moment).order);
    }
    let eater = rows.iter().find(|row| row[7] != 0).unwrap()[3] as i32;
    assert!(!orders.is_empty() && orders.iter().all(|order| order.pid == eater), "{orders:?} {eater}");
}
