//! Kernel counters by workload: probes speak of inode numbers, workloads are paths.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use headroom_telemetry::Fact;

use super::{
    brief::{Brief, BriefBook},
    config::ObserveConfig,
    duty::{Budget, HookDuty},
    hardware,
    rates::KernelView,
    starts::{Exec, StartBook},
};
use crate::observe::{
    ProbeState,
    cgroup::{Layout, Tree, tree::Inodes},
    kernel::{
        CgroupId, DeviceUse, Hierarchy, KernelCounters, KernelEvent, KernelProbes, KernelStats,
        SyscallDetail, Topic, Watched,
    },
};

/// Ticks between looks at what the probes lost; the look asks the kernel about every program.
const STATS_EVERY_TICKS: u64 = 10;

/// The probes, if they could be loaded, with what was read last.
pub(super) struct KernelSource {
    probes: Option<KernelProbes>,
    budget: Option<Budget>,
    /// Why there are no probes.
    why_none: String,
    /// Victims of the OOM killer told and not handed on yet: cgroup, process, command.
    victims: Vec<(Option<CgroupId>, u32, String)>,
    read_error: Option<String>,
    stats: Option<KernelStats>,
    /// Whether events went uncounted lately: a cgroup without counters may then have had some.
    is_short_of_slots: bool,
    brief: BriefBook,
    starts: StartBook,
    ticks: u64,
}

/// What is known to have happened in a workload.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Activity {
    /// Not all of it.
    Unknown,
    /// Nothing of any kind.
    Nothing,
    /// What the counters tell, of every kind.
    Counted,
}

/// Ids of one workload: of its tasks, its block I/O and its sockets.
type Ids = [Option<CgroupId>; 3];

/// The hierarchy that names each of them, with its index in the host's layout.
pub(super) type Homes = [Option<(Hierarchy, usize)>; 3];

fn ids_at(homes: &Homes, inodes: &Inodes) -> Ids {
    homes.map(|home| {
        let (hierarchy, index) = home?;
        let inode = inodes[index];
        (inode != 0).then_some(CgroupId { hierarchy, inode })
    })
}

impl KernelSource {
    pub(super) fn load(config: &ObserveConfig) -> Self {
        let loaded = if config.probes {
            KernelProbes::load(&config.kernel).map_err(|error| error.to_string())
        } else {
            Err("switched off by observe.probes".to_owned())
        };
        let (mut probes, why_none) = match loaded {
            Ok(probes) => (Some(probes), String::new()),
            Err(reason) => (None, reason),
        };
        let cpus = std::thread::available_parallelism().map_or(1.0, |cpus| cpus.get() as f64);
        let budget = probes.as_mut().map(|probes| Budget::new(config.budget, cpus, probes));
        Self {
            probes,
            budget,
            why_none,
            victims: Vec::new(),
            read_error: None,
            stats: None,
            is_short_of_slots: false,
            brief: BriefBook::default(),
            starts: StartBook::default(),
            ticks: 0,
        }
    }

    /// Why the hardware counter at a place of [`headroom_abi::record::hardware`] is not read; `None`
    /// when it is.
    pub(super) fn why_not_hardware(&self, place: usize) -> Option<String> {
        let topic = self.why_not(Topic::HardwareCounters);
        let state = self.probes.as_ref().map(|probes| probes.hardware_state(place));
        let own = state.and_then(|state| state.reason().map(str::to_owned));
        own.or(topic)
    }

    /// Why `topic` is not counted; `None` when it is.
    pub(super) fn why_not(&self, topic: Topic) -> Option<String> {
        let Some(probes) = &self.probes else { return Some(self.why_none.clone()) };
        if probes.has(topic) {
            return None;
        }
        let states = probes.states();
        let found = states.into_iter().find(|state| state.name == topic.name());
        Some(found.and_then(|state| state.state.reason().map(str::to_owned)).unwrap_or_default())
    }

    pub(super) fn has(&self, topic: Topic) -> bool {
        self.probes.as_ref().is_some_and(|probes| probes.has(topic))
    }

    /// Counters of one cgroup as they were read last; `None` when it had no event, or when reading
    /// failed.
    fn latest(&self, id: CgroupId) -> Option<&KernelCounters> {
        self.probes.as_ref().filter(|_| self.read_error.is_none())?.latest().get(&id)
    }

    fn all(&self) -> impl Iterator<Item = &KernelCounters> {
        self.probes.iter().flat_map(|probes| probes.latest().values())
    }

    /// Whether any request counted so far came with the time its device was given it.
    pub(super) fn tells_device_time(&self) -> bool {
        let has_any = |counters: &KernelCounters| counters.block.device_hist.iter().any(|&n| n > 0);
        self.all().any(has_any)
    }

    pub(super) fn stats(&self) -> Option<&KernelStats> {
        self.stats.as_ref()
    }

    /// State of every topic; every one is absent for the same reason when nothing was loaded.
    pub(super) fn states(&self) -> Vec<ProbeState> {
        let Some(probes) = &self.probes else {
            let absent = |topic: Topic| ProbeState {
                name: topic.name(),
                state: Fact::absent(&self.why_none),
            };
            return Topic::ALL.into_iter().map(absent).collect();
        };
        let mut states = probes.states();
        hardware::tell(&mut states, self.all());
        if let Some(budget) = &self.budget {
            budget.tell(&mut states);
        }
        if let Some(error) = &self.read_error {
            for state in &mut states {
                state.state = Fact::unknown(error);
            }
        }
        states
    }

    /// Tells `tree` of cgroups that were made and removed; returns those that were both since the
    /// last call or soon after it, by path.
    pub(super) fn feed(&mut self, tree: &mut Tree) -> BTreeMap<String, Brief> {
        self.drain();
        let Some(probes) = &mut self.probes else { return BTreeMap::new() };
        for event in self.starts.take_others(self.ticks) {
            match event {
                KernelEvent::CgroupMade { id, path } => {
                    tree.look_at(&path);
                    self.brief.made(id, self.ticks);
                }
                KernelEvent::CgroupRemoved { id, path } => {
                    tree.look_at(&path);
                    self.brief.removed(id, path);
                }
                KernelEvent::Exec { .. } => {}
                KernelEvent::OomVictim { id, pid, comm } => {
                    self.victims.push((id, pid, comm));
                }
            }
        }
        if self.starts.take_short() {
            tree.distrust();
        }
        self.ticks += 1;
        if self.ticks % STATS_EVERY_TICKS == 1 {
            let stats = probes.stats();
            if let Some(before) = &self.stats {
                if stats.lost_cgroup_events > before.lost_cgroup_events {
                    tree.distrust();
                }
                self.is_short_of_slots = stats.slotless_events > before.slotless_events;
            }
            self.stats = Some(stats);
        }
        self.brief.take(self.ticks)
    }

    /// Waits until a program was started or `time` is over; whether one was.
    pub(super) fn wait_for_exec(&self, time: Duration) -> bool {
        self.probes.as_ref().is_some_and(|probes| probes.wait_for_exec(time))
    }

    /// Programs started since the last call, with when, nanoseconds of the kernel's clock.
    pub(super) fn take_execs(&mut self) -> BTreeMap<Exec, u64> {
        self.drain();
        self.starts.take_execs()
    }

    /// Path of a cgroup that was made lately; `None` when nobody told of its making.
    pub(super) fn path_made(&self, id: CgroupId) -> Option<&str> {
        self.starts.path_made(id)
    }

    fn drain(&mut self) {
        let Some(probes) = &mut self.probes else { return };
        for event in probes.drain_events() {
            self.starts.push(event, self.ticks);
        }
    }

    /// Cgroups that came and went unseen because there were too many, since the start.
    pub(super) fn brief_left_out(&self) -> u64 {
        self.brief.left_out()
    }

    /// Whether anything was counted for `brief`, which tells that tasks were in it.
    pub(super) fn knows(&self, brief: &Brief) -> bool {
        brief.ids.iter().any(|id| self.latest(*id).is_some())
    }

    /// Counters of a workload that ended before it was sampled, summed over its lives.
    pub(super) fn view_brief(&self, brief: &Brief) -> KernelView {
        let mut view = KernelView::default();
        let Some(probes) = self.probes.as_ref().filter(|_probes| self.read_error.is_none()) else {
            return view;
        };
        let names = probes.layout();
        for id in &brief.ids {
            let hierarchies = [names.task, names.block, names.network];
            self.add_to(&mut view, hierarchies.map(|of| (of == id.hierarchy).then_some(*id)));
        }
        view
    }

    /// Reads all counters. When that fails, every kernel counter is missing until it works again.
    pub(super) fn read(&mut self) {
        let Some(probes) = &mut self.probes else { return };
        match probes.refresh() {
            Ok(()) => {
                self.read_error = None;
                if let Some(budget) = &mut self.budget {
                    budget.follow(probes);
                }
            }
            Err(error) => self.read_error = Some(error.to_string()),
        }
    }

    /// Gives back the slots of a workload that is gone, after its last counters were read.
    pub(super) fn retire(&mut self, layout: &Layout, inodes: &Inodes) {
        let ids = self.ids(layout, inodes);
        let Some(probes) = &mut self.probes else { return };
        for id in ids.into_iter().flatten() {
            probes.retire(id);
        }
    }

    /// How each hook counted in the last period.
    pub(super) fn duties(&self) -> &[HookDuty] {
        self.budget.as_ref().map_or(&[], Budget::duties)
    }

    /// Victims of the OOM killer since the last call.
    pub(super) fn take_victims(&mut self) -> Vec<(Option<CgroupId>, u32, String)> {
        std::mem::take(&mut self.victims)
    }

    /// The id that names tasks of the workload with `inodes`.
    pub(super) fn task_id(&self, layout: &Layout, inodes: &Inodes) -> Option<CgroupId> {
        self.ids(layout, inodes)[0]
    }

    /// System calls of the workload with `inodes` by number; `None` when they are not counted.
    pub(super) fn syscall_detail(&self, layout: &Layout, inodes: &Inodes) -> Option<SyscallDetail> {
        let id = self.task_id(layout, inodes)?;
        let read = self.probes.as_ref()?.syscall_detail(id);
        read.inspect_err(|error| tracing::warn!(%error, "system calls by number")).ok()?
    }

    fn ids(&self, layout: &Layout, inodes: &Inodes) -> Ids {
        ids_at(&self.homes(layout), inodes)
    }

    /// Where the ids of workloads are found.
    pub(super) fn homes(&self, layout: &Layout) -> Homes {
        let Some(probes) = &self.probes else { return [None; 3] };
        let names = probes.layout();
        [names.task, names.block, names.network].map(|hierarchy| {
            let index = match hierarchy {
                Hierarchy::Unified => layout.v2(),
                Hierarchy::Cpu => layout.v1("cpu"),
                Hierarchy::Blkio => layout.v1("blkio"),
            };
            Some((hierarchy, index?))
        })
    }

    /// What is known to have happened in the workload with `inodes` between the last two reads of the
    /// counters.
    pub(super) fn activity(&self, homes: &Homes, inodes: &Inodes) -> Activity {
        let Some(probes) = self.probes.as_ref().filter(|_probes| self.read_error.is_none()) else {
            return Activity::Unknown;
        };
        let ids = ids_at(homes, inodes);
        if !probes.sees_all_tasks() || self.is_short_of_slots || ids[0].is_none() {
            return Activity::Unknown;
        }
        let has_grown = ids.iter().flatten().any(|id| probes.grew(*id));
        if has_grown { Activity::Counted } else { Activity::Nothing }
    }

    /// How long each hook has counted by the last read.
    pub(super) fn watched(&self) -> Watched {
        self.probes.as_ref().map(KernelProbes::watched).unwrap_or_default()
    }

    /// Block I/O by cgroup and device since the start; nothing when it is not counted. A read error
    /// is logged.
    pub(super) fn devices(&self) -> HashMap<CgroupId, Vec<DeviceUse>> {
        let mut by_cgroup: HashMap<_, Vec<_>> = HashMap::new();
        let Some(probes) = self.probes.as_ref().filter(|probes| probes.has(Topic::BlockIo)) else {
            return by_cgroup;
        };
        let devices = probes.read_devices().unwrap_or_else(|error| {
            tracing::warn!(%error, "block I/O by device is unknown");
            Vec::new()
        });
        for (id, used) in devices {
            by_cgroup.entry(id).or_default().push(used);
        }
        by_cgroup
    }

    /// The id that block I/O of the workload with `inodes` is counted for.
    pub(super) fn block_id(&self, layout: &Layout, inodes: &Inodes) -> Option<CgroupId> {
        self.ids(layout, inodes)[1]
    }

    /// Counters of the workload with `inodes`.
    ///
    /// A cgroup the probes have no counters for had no events, unless slots ran out.
    pub(super) fn view(&self, layout: &Layout, inodes: &Inodes) -> KernelView {
        let mut view = KernelView::default();
        if self.read_error.is_none() {
            self.add_to(&mut view, self.ids(layout, inodes));
        }
        if let (Some(probes), Some(budget)) = (&self.probes, &self.budget) {
            view.watched = probes.watched();
            view.call_cost = budget.call_cost();
        }
        view
    }

    fn add_to(&self, view: &mut KernelView, ids: Ids) {
        const TOPICS: [&[Topic]; 3] = [
            &[
                Topic::Syscalls,
                Topic::SyscallLatency,
                Topic::RunQueue,
                Topic::Migrations,
                Topic::OomVictims,
                Topic::HardwareCounters,
                Topic::CodeSamples,
                Topic::PageCache,
                Topic::PageCacheHits,
                Topic::PageCacheDirtied,
                Topic::Execs,
                Topic::Exits,
            ],
            &[Topic::BlockIo],
            &[Topic::Network, Topic::Tcp, Topic::PacketDrops],
        ];
        for (index, (id, topics)) in ids.into_iter().zip(TOPICS).enumerate() {
            let Some(id) = id else { continue };
            let found = self.latest(id);
            if found.is_none() && self.is_short_of_slots {
                continue;
            }
            // Two signals may be named by the same id, whose counters are then merged once.
            if let Some(counters) = found
                && !ids[..index].contains(&Some(id))
            {
                view.counters.merge(counters);
            }
            for topic in topics.iter().filter(|topic| self.has(**topic)) {
                view.allow(*topic);
            }
        }
    }
}
