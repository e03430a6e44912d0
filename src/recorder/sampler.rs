//! Takes samples.

use std::collections::HashMap;

use crate::guard::controller;
use crate::model::guard::{Member, Moment};
use crate::model::history::sample::{Reading, Sample, Session, choose};
use crate::pg::backend_status::{BackendStatuses, Listed};
use crate::pg::{backends, main_segment, settings, this_process};
use crate::proc::cgroup::{Cgroup, own_cgroups};
use crate::proc::host::Host;
use crate::proc::resident::{self, Resident};
use crate::proc::root::Root;
use crate::statements::shared::Slot;

/// How many of the processes that hold most, and of the others that grow most, a sample has.
const LARGEST: usize = 12;
const GROWING: usize = 4;

/// At most so many bytes of a query are kept, so that a sample nearly always has room in a block.
const QUERY_SIZE: usize = 256;

/// Takes samples of this server.
pub struct Sampler {
    root: Root,
    statuses: Option<BackendStatuses>,
    resident: Resident,
    /// The processes of the last sample, by pid. Those without an entry in shared memory are not among them.
    listed: HashMap<i32, Listed>,
    readings: Vec<Reading>,
    /// The largest private memory that processes have noticed themselves since the last sample that was written, by
    /// pid.
    peaks: HashMap<i32, u64>,
    /// How much of Postgres's shared memory will still be allocated when it is touched, in bytes.
    untouched_shared: u64,
}

impl Sampler {
    pub fn new(root: Root) -> Self {
        Sampler {
            statuses: BackendStatuses::find(),
            resident: Resident::new(root.clone()),
            listed: HashMap::new(),
            readings: Vec::new(),
            peaks: HashMap::new(),
            untouched_shared: 0,
            root,
        }
    }

    /// Takes a sample now.
    pub fn sample(&mut self) -> Sample {
        let at = this_process::now();
        let server_start = this_process::server_start();
        self.listed.clear();
        self.readings.clear();
        self.listed.extend(self.statuses.iter().flat_map(BackendStatuses::iter).map(|listed| (listed.pid, listed)));
        let postmaster = (backends::postmaster_pid(), server_start);
        for (pid, start) in self.listed.values().map(|listed| (listed.pid, listed.start)).chain([postmaster]) {
            if let Some(held) = self.resident.read(pid, start) {
                let resident::Held { private, growth, mapped } = held;
                self.readings.push(Reading { pid, private, growth, mapped });
            }
        }
        self.resident.close_others();
        Slot::take_peaks(|pid, peak| {
            let kept = self.peaks.entry(pid).or_default();
            *kept = peak.max(*kept);
        });
        let mut sample = Sample {
            at,
            server_start,
            processes: self.readings.len() as u32,
            private: self.readings.iter().map(|reading| reading.private).sum(),
            ..Sample::default()
        };
        self.add_limits(&mut sample);
        let count = choose(&mut self.readings, LARGEST, GROWING);
        sample.sessions.extend(self.readings[..count].iter().map(|reading| self.session(*reading)));
        sample
    }

    /// The last sample has been written: growth and peaks count from there.
    pub fn has_been_written(&mut self) {
        self.resident.count_growth_from_here();
        self.peaks.clear();
    }

    /// What each session holds together with its parallel workers, by the pid of the leader, in the last sample.
    pub fn groups(&self) -> Vec<(i32, u64)> {
        let mut groups = HashMap::new();
        for reading in &self.readings {
            let leader = self.listed.get(&reading.pid).and_then(Listed::leader).unwrap_or(reading.pid);
            *groups.entry(leader).or_insert(0) += reading.private;
        }
        groups.into_iter().collect()
    }

    /// What the guard is to know of a sample, which was the last. `None` if the headroom is unknown.
    pub fn moment(&self, sample: &Sample) -> Option<Moment> {
        let (headroom, limit, statuses) = (sample.headroom?, sample.limit?, self.statuses?);
        let (untouched_shared, at) = (self.untouched_shared, sample.at);
        if settings::guard::min_headroom(limit).is_none() {
            // Nobody is limited or ended.
            return Some(Moment { at, headroom, limit, untouched_shared, members: Vec::new() });
        }
        let exempt = controller::exempt();
        let member = |reading: &Reading| {
            let listed = self.listed.get(&reading.pid)?;
            let leader = listed.leader();
            let of_client = |pid: &i32| self.listed.get(pid).is_some_and(Listed::is_client_backend);
            if !listed.is_client_backend() && !leader.as_ref().is_some_and(of_client) {
                return None;
            }
            let (is_active, statement) = statuses.statement(*listed);
            let &Reading { pid, private, mapped, .. } = reading;
            let is_exempt = exempt.contains(&pid) || leader.is_some_and(|leader| exempt.contains(&leader));
            Some(Member { pid, leader, private, mapped, is_active, statement, is_exempt })
        };
        let members = self.readings.iter().filter_map(member).collect();
        Some(Moment { at, headroom, limit, untouched_shared, members })
    }

    fn add_limits(&mut self, sample: &mut Sample) {
        // Without them, the headroom would be that of the machine.
        let Ok(cgroups) = own_cgroups(&self.root) else { return };
        let own = cgroups.as_deref().unwrap_or_default();
        let first = |value: fn(&Cgroup) -> Option<u64>| own.iter().find_map(value);
        let Ok(host) = Host::read(&self.root) else { return };
        if let Some((headroom, cgroup)) = host.headroom(cgroups.as_deref(), Cgroup::unreclaimable) {
            // Other shared memory is counted, too, so this is the least that is untouched.
            let shmem = cgroup.map_or(host.shmem, |cgroup| cgroup.shmem);
            let is_huge = host.huge_pages_total.is_some_and(|pages| pages > 0) && main_segment::may_be_in_huge_pages();
            let size = main_segment::size().filter(|_| !is_huge);
            self.untouched_shared = size.zip(shmem).map_or(0, |(size, shmem)| size.saturating_sub(shmem));
            sample.headroom = Some(headroom);
            sample.limit = match cgroup {
                Some(cgroup) => cgroup.limit.and_then(|limit| limit.bytes()),
                None => host.memory_total,
            };
            sample.limited_by = cgroup.map(|cgroup| cgroup.path.clone());
        }
        // The counter of our own cgroup counts our processes. That of the machine counts all, also those of other
        // containers.
        sample.oom_kills = first(|cgroup| cgroup.oom_kills).or(host.oom_kills);
        sample.psi_some = first(|cgroup| cgroup.psi_some);
        sample.psi_full = first(|cgroup| cgroup.psi_full);
    }

    fn session(&self, reading: Reading) -> Session {
        let Reading { pid, private, growth, .. } = reading;
        let peak = self.peaks.get(&pid).copied().unwrap_or(0);
        let Some(listed) = self.listed.get(&pid) else {
            let backend_start = this_process::server_start();
            return Session {
                pid,
                backend_start,
                backend_type: b"postmaster".to_vec(),
                private,
                growth,
                ..Session::default()
            };
        };
        let query_size = if settings::history_queries() { QUERY_SIZE } else { 0 };
        let activity = self.statuses.and_then(|statuses| statuses.activity(*listed, query_size)).unwrap_or_default();
        Session {
            pid,
            leader: listed.leader(),
            backend_start: listed.start,
            backend_type: listed.type_name(),
            user: activity.user,
            database: activity.database,
            application: activity.application,
            state: activity.state.into(),
            query_id: activity.query_id,
            query_start: activity.query_start,
            query: activity.query,
            private,
            peak,
            growth,
        }
    }
}
