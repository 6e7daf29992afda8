//! The loaded kernel programs: reading counters, draining events. `reclaim` hands slots back.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    mem,
    os::fd::OwnedFd,
    time::Duration,
};

use aya::{
    Ebpf,
    sys::{Stats, enable_stats},
    util::nr_cpus,
};
use aya_log::EbpfLogger;
use headroom_abi::record::{self, marks};
use headroom_telemetry::Fact;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;

use super::{
    CgroupId, DeviceUse, KernelConfig, KernelCounters, KernelError, KernelEvent, Layout, Topic,
    detail,
    duty::{Duties, DutyHook, HookCount, Watched},
    events::{CgroupRecord, decode_cgroup, decode_exec},
    hardware,
    load::{self, DeviceId, Maps, in_map},
    log::ToTracing,
    marks::Marked,
    reading::per_cpu,
    slots::SlotBook,
};
use crate::observe::{
    ProbeState,
    governor::{CallCost, HookPlan},
};

/// Events kept between two calls of [`KernelProbes::drain_events`]; older ones are dropped.
const PENDING_MAX: usize = 16_384;

/// Reads in which a removed cgroup still shows its last counters.
const READS_AFTER_REMOVAL: u64 = 2;

/// Programs attached to the kernel, until dropped.
pub struct KernelProbes {
    /// Before the programs, so that hooks are off before those go.
    duties: Duties,
    watched: Watched,
    ebpf: Ebpf,
    pub(super) maps: Maps,
    logger: Option<EbpfLogger<ToTracing>>,
    pub(super) layout: Layout,
    states: Vec<(Topic, Fact<String>)>,
    hardware: hardware::States,
    pub(super) book: SlotBook,
    pending: VecDeque<KernelEvent>,
    /// Removed cgroups, each with the number of reads after which its slot is taken back.
    pub(super) removed: VecDeque<(u64, CgroupId)>,
    pub(super) n_reads: u64,
    /// Counters as they were read last.
    latest: HashMap<CgroupId, KernelCounters>,
    /// Of which of them the counters changed with the last read.
    grown: HashSet<CgroupId>,
    /// Whether no task could run unseen between the last two reads.
    sees_all_tasks: bool,
    /// The round of marks that programs are in.
    round: u32,
    n_pending_dropped: u64,
    n_undecodable: u64,
    n_slots: u32,
    pub(super) n_cpus: usize,
    /// Entries of a slot in maps that are mapped into memory and count by CPU.
    pub(super) cpus_per_slot: u32,
    /// Lost cgroup events up to which the map of slots was read whole.
    pub(super) n_lost_resynced: u64,
    /// Keeps the kernel measuring run times.
    _run_stats: Option<OwnedFd>,
}

/// How the kernel side is doing. Counts are since the programs were attached.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KernelStats {
    /// Cgroup events lost because nobody read in time.
    pub lost_cgroup_events: u64,
    /// Exec events lost because nobody read in time.
    pub lost_exec_events: u64,
    /// Records that no program of this version writes.
    pub undecodable_records: u64,
    /// Counted events charged to no cgroup because no slot was free. Block I/O, system calls,
    /// switches and packets alike.
    pub slotless_events: u64,
    /// Slots in use.
    pub slots_used: usize,
    /// Slots there are.
    pub slots: u32,
    /// Bytes of map contents in the kernel, without its own overhead.
    pub map_bytes: u64,
    /// What each attached program cost; zero unless the kernel measures run times.
    pub programs: Vec<ProgramCost>,
}

/// What a program cost since it was loaded, as far as the kernel measured it.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct ProgramCost {
    /// Name of the program.
    pub name: &'static str,
    /// Runs measured.
    pub runs: u64,
    /// Time in those runs. The measurement itself adds tens of nanoseconds to each.
    pub run_time: Duration,
}

impl KernelProbes {
    /// Loads the object and attaches what this kernel can serve.
    ///
    /// A topic the kernel cannot serve is absent with a reason, see [`Self::states`]; the rest
    /// lives.
    ///
    /// # Errors
    /// When there is no object, no permission, no type information in the kernel, or the maps
    /// cannot be made.
    pub fn load(config: &KernelConfig) -> Result<Self, KernelError> {
        let run_stats = if config.run_stats {
            enable_stats(Stats::RunTime)
                .inspect_err(|error| tracing::warn!(%error, "run times are not measured"))
                .ok()
        } else {
            None
        };
        let mut loaded = load::load(config)?;
        load::give_back();
        let duties =
            Duties::start(loaded.taps, &loaded.maps.shared, loaded.maps.pace_events.take());
        Ok(Self {
            watched: duties.watched(),
            duties,
            ebpf: loaded.ebpf,
            maps: loaded.maps,
            logger: loaded.logger,
            layout: loaded.layout,
            states: loaded.states,
            hardware: loaded.hardware,
            book: SlotBook::default(),
            pending: VecDeque::new(),
            removed: VecDeque::new(),
            n_reads: 0,
            latest: HashMap::new(),
            grown: HashSet::new(),
            sees_all_tasks: false,
            // A mark of zero is long past.
            round: u32::MAX / 2,
            n_pending_dropped: 0,
            n_undecodable: 0,
            n_slots: config.slots,
            n_cpus: nr_cpus().unwrap_or(1),
            cpus_per_slot: loaded.cpus_per_slot,
            n_lost_resynced: 0,
            _run_stats: run_stats,
        })
    }

    /// How each topic is attached, or why it is not.
    pub fn states(&self) -> Vec<ProbeState> {
        let state = |(topic, state): &(Topic, Fact<String>)| ProbeState {
            name: topic.name(),
            state: state.clone(),
        };
        self.states.iter().map(state).collect()
    }

    /// Whether a topic is attached. When it is not, its counters are missing, not zero.
    pub fn has(&self, topic: Topic) -> bool {
        self.states.iter().any(|(found, state)| *found == topic && state.is_known())
    }

    /// What the hardware counter at a place of [`headroom_abi::record::hardware`] is, or why there is
    /// none.
    pub fn hardware_state(&self, place: usize) -> Fact<&'static str> {
        self.hardware.get(place).cloned().unwrap_or_else(|| Fact::unknown("no such counter"))
    }

    /// How long each hook had counted when the counters were last read.
    pub fn watched(&self) -> Watched {
        self.watched
    }

    /// What `hook` counted, and its windows since the last call.
    pub fn take_count(&self, hook: DutyHook) -> HookCount {
        self.duties.take_count(hook)
    }

    /// From now on `hook` counts as `plan` says.
    pub fn set_duty(&mut self, hook: DutyHook, plan: HookPlan) {
        self.duties.set(hook, plan);
    }

    /// Cost of the hook on system calls on this host; `None` when there is none. Takes
    /// milliseconds.
    pub fn measure_call(&self) -> Option<CallCost> {
        self.duties.measure_call()
    }

    pub(super) fn maps(&self) -> &Maps {
        &self.maps
    }

    /// The slot of a cgroup, if it has one.
    pub(super) fn slot_of(&self, id: CgroupId) -> Option<u32> {
        self.book.taken().find(|(found, _)| *found == id).map(|(_, slot)| slot)
    }

    /// Which hierarchy names workloads in which counters.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Events since the last call, oldest first.
    ///
    /// Losses are told by [`Self::stats`]; after one of cgroup events, the tree of cgroups is to be
    /// walked again.
    pub fn drain_events(&mut self) -> Vec<KernelEvent> {
        self.poll_rings();
        self.pending.drain(..).collect()
    }

    /// Waits until a program was started since [`Self::drain_events`] was last called, or `time` is
    /// over; whether one was. A signal ends it early.
    pub fn wait_for_exec(&self, time: Duration) -> bool {
        let mut ring = [PollFd::new(&self.maps.exec_events, PollFlags::IN)];
        let time = Timespec::try_from(time).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
        matches!(poll(&mut ring, Some(&time)), Ok(ready) if ready > 0)
    }

    /// Cumulative counters of every cgroup that had an event since the programs were attached, as
    /// [`Self::latest`] has them after a [`Self::refresh`].
    ///
    /// # Errors
    /// When a kernel map cannot be read.
    pub fn read(&mut self) -> Result<Vec<(CgroupId, KernelCounters)>, KernelError> {
        self.refresh()?;
        Ok(self.latest.iter().map(|(id, counters)| (*id, counters.clone())).collect())
    }

    /// Cumulative counters as they were read last, of every cgroup that had an event since the programs
    /// were attached and has not ended since.
    pub fn latest(&self) -> &HashMap<CgroupId, KernelCounters> {
        &self.latest
    }

    /// Whether anything was counted for the cgroup between the last two reads.
    pub fn grew(&self, id: CgroupId) -> bool {
        self.grown.contains(&id)
    }

    /// Whether a task could neither start nor go on running between the last two reads without being
    /// counted: switches were counted all the time, and so were ticks of the CPU clock.
    pub fn sees_all_tasks(&self) -> bool {
        self.sees_all_tasks
    }

    /// Reads the counters of every cgroup that had an event since the last call.
    ///
    /// A removed cgroup is there for two reads after the kernel told of its end, so that its last
    /// counters are seen, and then gives up its slot by itself.
    ///
    /// # Errors
    /// When a kernel map cannot be read.
    pub fn refresh(&mut self) -> Result<(), KernelError> {
        self.poll_rings();
        self.resync_after_loss()?;
        self.retire_removed();
        self.free_rested_slots()?;
        self.n_reads += 1;
        let marked = self.maps.marks.turn(self.round, self.n_slots)?;
        self.round = marked.round();
        let quiet = self.duties.quiet();
        let watched = self.duties.watched();
        // Tasks mark their slot when they come and go, and while they run at the ticks of the clock.
        let is_always = watched.factor_since(&self.watched, DutyHook::Switches) == Some(1.0);
        let tasks_mark = is_always && self.has(Topic::RunQueue) && self.has(Topic::CodeSamples);
        self.sees_all_tasks = tasks_mark;
        // Taken, and given back whatever happens: what is read goes where it stays.
        let mut latest = mem::take(&mut self.latest);
        let read = self.read_due(&marked, tasks_mark, &mut latest);
        self.latest = latest;
        self.grown = read?;
        drop(quiet);
        self.watched = watched;
        self.book.note_read(self.grown.iter().copied());
        if self.latest.len() > self.book.n_taken() {
            let taken: HashSet<CgroupId> = self.book.taken().map(|(id, _)| id).collect();
            self.latest.retain(|id, _| taken.contains(id));
        }
        Ok(())
    }

    /// Brings `latest` up to date for every cgroup that had an event; returns those that grew.
    fn read_due(
        &self,
        marked: &Marked,
        tasks_mark: bool,
        latest: &mut HashMap<CgroupId, KernelCounters>,
    ) -> Result<HashSet<CgroupId>, KernelError> {
        let wanted = self.wanted();
        let mut grown = HashSet::new();
        for (id, slot, is_read) in self.book.taken_and_read() {
            let mut due = marked.due(slot);
            due[marks::TASKS] |= !tasks_mark && id.hierarchy == self.layout.task;
            if is_read && due == [false; marks::COUNT] {
                continue;
            }
            let before = latest.get_mut(&id);
            let counters = self.read_slot(id, slot, wanted, due, before.as_deref())?;
            match before {
                Some(before) if *before == counters => continue,
                Some(before) => *before = counters,
                None => {
                    latest.insert(id, counters);
                }
            }
            grown.insert(id);
        }
        Ok(grown)
    }

    /// Block I/O by cgroup and device since the programs were attached, in no order. For looking at
    /// now and then: it asks the kernel for every pair of the two.
    ///
    /// Beyond [`headroom_abi::DEVICE_PAIRS`] pairs new ones are not told apart; [`Self::read`] has their sums.
    ///
    /// # Errors
    /// When the kernel map cannot be read.
    pub fn read_devices(&self) -> Result<Vec<(CgroupId, DeviceUse)>, KernelError> {
        let cgroups: HashMap<u32, CgroupId> =
            self.book.taken().map(|(id, slot)| (slot, id)).collect();
        let mut all = Vec::new();
        for entry in &self.maps.devices {
            let (DeviceId(key), load::Device(record)) = entry.map_err(in_map("DEVICES"))?;
            if let Some(id) = cgroups.get(&key.slot) {
                all.push((*id, DeviceUse::new(key.device, &record)));
            }
        }
        Ok(all)
    }

    /// How the kernel side is doing. A map that cannot be read leaves its counts at zero and is
    /// logged.
    pub fn stats(&self) -> KernelStats {
        let losses = self.losses().unwrap_or_else(|error| {
            tracing::warn!(%error, "losses are unknown");
            record::Losses::default()
        });
        KernelStats {
            lost_cgroup_events: losses.cgroup_events + self.n_pending_dropped,
            lost_exec_events: losses.exec_events,
            undecodable_records: self.n_undecodable,
            slotless_events: losses.slotless,
            slots_used: self.book.n_taken(),
            slots: self.n_slots,
            map_bytes: self.map_bytes(),
            programs: self.program_costs(),
        }
    }

    fn map_bytes(&self) -> u64 {
        let (n_slots, n_cpus) = (u64::from(self.n_slots), self.n_cpus as u64);
        let detail = self.has(Topic::SyscallDetail).then(|| detail::detail_bytes(n_slots, n_cpus));
        let has_hardware = self.has(Topic::HardwareCounters);
        let hardware = has_hardware.then(|| detail::hardware_bytes(n_slots, n_cpus));
        detail::base_bytes(n_slots, n_cpus) + detail.unwrap_or(0) + hardware.unwrap_or(0)
    }

    fn program_costs(&self) -> Vec<ProgramCost> {
        let attached = Topic::ALL.into_iter().filter(|topic| self.has(*topic));
        attached
            .flat_map(|topic| topic.programs().iter().copied())
            .filter_map(|name| {
                let info = self.ebpf.program(name)?.info().ok()?;
                Some(ProgramCost { name, runs: info.run_count(), run_time: info.run_time() })
            })
            .collect()
    }

    fn poll_rings(&mut self) {
        let mut late = Vec::new();
        while let Some(record) = self.maps.cgroup_events.next().map(|item| decode_cgroup(&item)) {
            match record {
                Some(CgroupRecord::SlotTaken { id, slot }) => {
                    if self.book.take(id, slot) {
                        late.push(id);
                    }
                }
                Some(CgroupRecord::Made { number, inode, path }) => {
                    self.cgroup_changed(number, inode, &path, true);
                }
                Some(CgroupRecord::Removed { number, inode, path }) => {
                    self.cgroup_changed(number, inode, &path, false);
                }
                Some(CgroupRecord::OomVictim { id, pid, comm }) => {
                    self.push(KernelEvent::OomVictim { id, pid, comm });
                }
                None => self.n_undecodable += 1,
            }
        }
        // Only now: taking a slot back is a system call, and if it is this process's own cgroup that
        // was retired, each one would be answered by the next slot taken.
        for id in late {
            self.retire(id);
        }
        while let Some(event) = self.maps.exec_events.next().map(|item| decode_exec(&item)) {
            match event {
                Some(event) => self.push(event),
                None => self.n_undecodable += 1,
            }
        }
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
    }

    fn cgroup_changed(&mut self, number: u32, inode: u64, path: &str, is_made: bool) {
        for hierarchy in self.layout.by_number(number).collect::<Vec<_>>() {
            let id = CgroupId { hierarchy, inode };
            let path = path.to_owned();
            if is_made {
                self.push(KernelEvent::CgroupMade { id, path });
            } else {
                self.removed.push_back((self.n_reads + READS_AFTER_REMOVAL, id));
                self.push(KernelEvent::CgroupRemoved { id, path });
            }
        }
    }

    fn push(&mut self, event: KernelEvent) {
        if self.pending.len() >= PENDING_MAX {
            self.pending.pop_front();
            self.n_pending_dropped += 1;
        }
        self.pending.push_back(event);
    }

    pub(super) fn losses(&self) -> Result<record::Losses, KernelError> {
        let mut total = record::Losses::default();
        for cpu in per_cpu(&self.maps.losses, 0, "LOSSES")?.iter() {
            total.cgroup_events = total.cgroup_events.wrapping_add(cpu.0.cgroup_events);
            total.exec_events = total.exec_events.wrapping_add(cpu.0.exec_events);
            total.slotless = total.slotless.wrapping_add(cpu.0.slotless);
        }
        Ok(total)
    }
}
