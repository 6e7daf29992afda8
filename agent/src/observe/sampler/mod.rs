//! One sample per workload per tick, joined from kernel counters, cgroup files, pressure and GPUs.

mod block;
mod brief;
mod config;
mod duty;
mod follow;
mod gpu_features;
mod hardware;
mod kernel_source;
mod naming;
mod page_cache;
mod quantile;
mod quiet;
mod rates;
mod sockets;
mod starts;
mod states;
mod task_source;
mod tasks;
#[cfg(test)]
mod tests;
mod turns;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use headroom_allocate::plan::{Knob, Limit};
use headroom_telemetry::{Fact, Sample, Sketches, Workload};
use serde::Serialize;

pub use self::{
    config::{ObserveConfig, ObserveError},
    duty::HookDuty,
    starts::Started,
};
use self::{
    gpu_features::fill_gpu,
    kernel_source::KernelSource,
    quiet::{Resting, Round},
    rates::Observed,
    task_source::TaskSource,
    turns::Turns,
};
use super::{
    cgroup::{
        Layout, Moment, Reading, Tree, TreeConfig, Version, WorkloadFiles, devices::StackedDevices,
        held::DescriptorBudget, join::Twin, tree::Inodes, watch::LimitWatch,
    },
    containers::ContainerFiles,
    gpu::{GpuMonitor, GpuSnapshot, ProcessCgroups},
    host::{HostFacts, HostSample, HostSampler},
    kernel::{DeviceUse, KernelStats, SyscallDetail, Topic},
};

/// Descriptors left to the rest of the process.
const DESCRIPTORS_SPARED: u64 = 256;

/// Ticks between tries to open files a workload did not have, and between quick looks at the tree
/// while kernel events tell of changes.
const SLOW_EVERY_TICKS: u64 = 30;
const QUICK_EVERY_TICKS: u64 = 15;

/// Everything seen in one period.
///
/// What does not change from one to the next is shared between them: most workloads rest.
#[derive(Clone, Debug, Default)]
pub struct Tick {
    /// End of the period, seconds since the Unix epoch, as given by the caller.
    pub t_s: f64,
    /// The host as a whole.
    pub host: HostSample,
    /// Every workload with its sample, by path.
    pub workloads: Vec<(Arc<Workload>, Sample)>,
    /// Paths of workloads that ended since the last tick.
    pub gone: Vec<String>,
    /// Limits in force by path.
    pub limits: BTreeMap<Arc<str>, LimitsInForce>,
    /// What the kernel programs sketched of each workload in this period, by path; none for one
    /// that is seen for the first time.
    pub sketches: BTreeMap<Arc<str>, Arc<Sketches>>,
    /// Tasks chosen to die for want of memory. Their workload's memory use is a lower bound on its
    /// demand.
    pub oom_victims: Vec<OomVictim>,
    /// How much of the period the hooks on system calls and task switches counted. Empty without
    /// kernel programs.
    pub duty: Vec<HookDuty>,
}

/// A task chosen to die for want of memory.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OomVictim {
    /// Path of the workload; `None` when the kernel does not tell, or it is no workload.
    pub path: Option<String>,
    /// Process id, in the initial namespace.
    pub pid: u32,
    /// Command name; empty when the kernel does not tell.
    pub comm: String,
}

/// Limits of one workload's own cgroup. `None`: the host has no such knob for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct LimitsInForce {
    /// CPU quota, cores.
    pub cpu_quota: Option<Limit>,
    /// Hard memory limit, bytes.
    pub memory_max: Option<Limit>,
    /// Soft memory limit, bytes; v2 only.
    pub memory_high: Option<Limit>,
}

impl LimitsInForce {
    /// The limit of `knob`, if the host has that knob for the workload.
    pub fn of(&self, knob: Knob) -> Option<Limit> {
        match knob {
            Knob::CpuQuota => self.cpu_quota,
            Knob::MemoryMax => self.memory_max,
            Knob::MemoryHigh => self.memory_high,
            _ => None,
        }
    }

    /// Every knob there is, with its limit.
    pub fn list(&self) -> Vec<(Knob, Limit)> {
        let pair = |knob: Knob| self.of(knob).map(|limit| (knob, limit));
        Knob::ALL.into_iter().filter_map(pair).collect()
    }
}

/// Counts of what went wrong without stopping anything, since the start.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct ObserveCounts {
    /// Counters that went backwards; their rate was missing once.
    pub backward_counters: u64,
    /// Files that could not be read although their cgroup was there.
    pub failed_reads: u64,
    /// Workloads left out because there were too many, at the last tick.
    pub overflow: usize,
    /// Cgroups left out because their name is not UTF-8, at the last full walk.
    pub unnamed: usize,
    /// Workloads that came and went between two ticks and were sampled all the same.
    pub brief: u64,
    /// Such workloads that were left out because there were too many.
    pub brief_left_out: u64,
}

struct Tracked {
    workload: Arc<Workload>,
    inodes: Inodes,
    /// Where else it is.
    twin: Option<Twin>,
    files: WorkloadFiles,
    /// When it was told last, or before it came to rest. Apart: most workloads rest.
    before: Option<Box<Observed>>,
    /// What had run when its files were read last.
    read_at: Turns,
    /// While nothing happens in it.
    resting: Option<Resting>,
    /// Spreads slow work over ticks.
    born_tick: u64,
}

/// Reads this host, tick by tick.
pub struct Sampler {
    facts: HostFacts,
    tree: Tree,
    tracked: BTreeMap<Arc<str>, Tracked>,
    limit_watch: LimitWatch,
    kernel: KernelSource,
    gpu: Option<GpuMonitor>,
    host: HostSampler,
    devices: Arc<StackedDevices>,
    budget: DescriptorBudget,
    buffer: Vec<u8>,
    containers: ContainerFiles,
    tasks: TaskSource,
    /// Workloads of this tick that have ended already; told as gone at the next.
    brief: Vec<String>,
    last_tick_s: Option<f64>,
    root: std::path::PathBuf,
    started: Instant,
    ticks: u64,
    counts: ObserveCounts,
}

impl Sampler {
    /// Finds the hierarchies, loads the kernel programs, starts the GPU's thread.
    ///
    /// What the host lacks is no error: its features are missing, see [`Sampler::feature_states`].
    ///
    /// # Errors
    /// When no cgroup hierarchy can be found, a time in `config` is not one, or a thread cannot be
    /// started.
    pub fn start(config: &ObserveConfig) -> Result<Self, ObserveError> {
        config.check()?;
        let layout = Layout::detect(&config.root)?;
        let budget = DescriptorBudget::new(descriptors(config.max_open_files));
        let tree_config = TreeConfig {
            include: config.include.clone(),
            exclude: config.exclude.clone(),
            workloads_max: config.max_workloads,
            full_walk_s: config.full_walk_s,
        };
        let gpu = if config.gpu {
            let cgroups = ProcessCgroups {
                root: config.root.clone(),
                controller: layout.v1("cpu").map(|_index| "cpu"),
            };
            let period = Duration::from_secs_f64(config.gpu_period_s);
            let library = config.gpu_library.clone();
            Some(GpuMonitor::start(period, cgroups, library).map_err(ObserveError::GpuThread)?)
        } else {
            None
        };
        Ok(Self {
            tree: Tree::new(&config.root, &layout, tree_config),
            tracked: BTreeMap::new(),
            limit_watch: LimitWatch::new(),
            kernel: KernelSource::load(config),
            gpu,
            host: HostSampler::open(&config.root, &budget),
            devices: Arc::new(StackedDevices::read(&config.root)),
            facts: HostFacts::read(&config.root, layout),
            budget,
            buffer: Vec::new(),
            containers: ContainerFiles::new(&config.root),
            tasks: TaskSource::new(config),
            brief: Vec::new(),
            last_tick_s: None,
            root: config.root.clone(),
            started: Instant::now(),
            ticks: 0,
            counts: ObserveCounts::default(),
        })
    }

    /// One tick. `now_s` is the wall time the samples are stamped with; rates are over the time
    /// that really passed for each workload.
    pub fn sample(&mut self, now_s: f64) -> Tick {
        let started = self.started;
        self.sample_by(now_s, &mut || started.elapsed().as_secs_f64())
    }

    /// As [`Sampler::sample`], with the clock that rates are measured by.
    fn sample_by(&mut self, now_s: f64, clock: &mut dyn FnMut() -> f64) -> Tick {
        let mut gone = std::mem::take(&mut self.brief);
        let brief = self.follow_tree(clock(), &mut gone);
        if self.ticks.is_multiple_of(SLOW_EVERY_TICKS) {
            self.devices = Arc::new(StackedDevices::read(&self.root));
        }
        self.kernel.read();
        let gpu = self.gpu.as_ref().map(GpuMonitor::latest);
        let host = self.host.sample(clock(), &mut self.buffer);
        let mut workloads = Vec::with_capacity(self.tracked.len());
        // In the order of their keys, of which a map is made at once.
        let mut limits = Vec::with_capacity(self.tracked.len());
        let mut sketches = Vec::with_capacity(self.tracked.len());
        let oom_victims = self.oom_victims();
        self.note_written_limits();
        let mut vanished = Vec::new();
        let moment = self.moment(clock());
        let round = Round::new(&self.kernel, &self.facts.layout, moment, now_s);
        for (path, tracked) in &mut self.tracked {
            let Some((mut sample, sketched)) =
                round.sample(tracked, &mut self.counts, clock(), &mut self.buffer)
            else {
                vanished.push(path.to_string());
                continue;
            };
            if let Some(sketched) = sketched {
                sketches.push((Arc::clone(path), sketched));
            }
            fill_gpu(&mut sample, gpu.as_ref(), path);
            limits.push((Arc::clone(path), limits_of(tracked.files.last())));
            workloads.push((Arc::clone(&tracked.workload), sample));
        }
        for path in vanished {
            self.tree.look_at(&path);
            self.end(&path);
            gone.push(path);
        }
        let inodes_of = |path: &str| self.tracked.get(path).map(|tracked| tracked.inodes);
        let layout = &self.facts.layout;
        self.tasks.fill(&mut workloads, layout, &self.kernel, clock(), inodes_of);
        workloads.extend(self.sample_brief(brief, now_s, clock()));
        self.ticks += 1;
        let duty = self.kernel.duties().to_vec();
        let limits = limits.into_iter().collect();
        let sketches = sketches.into_iter().collect();
        Tick { t_s: now_s, host, workloads, gone, limits, sketches, oom_victims, duty }
    }

    /// What all workloads that are read now have in common.
    fn moment(&self, at_s: f64) -> Moment {
        Moment {
            devices: Arc::clone(&self.devices),
            at_s,
            calm: self.host.calm(),
            tells_children: self.kernel.has(Topic::CgroupEvents),
            is_thorough: false,
        }
    }

    fn oom_victims(&mut self) -> Vec<OomVictim> {
        let told = self.kernel.take_victims();
        let path_of = |id| {
            let mut all = self.tracked.iter();
            let is_it = |inodes| self.kernel.task_id(&self.facts.layout, inodes) == Some(id);
            all.find(|(_, tracked)| is_it(&tracked.inodes)).map(|(path, _)| path.to_string())
        };
        told.into_iter()
            .map(|(id, pid, comm)| OomVictim { path: id.and_then(path_of), pid, comm })
            .collect()
    }

    /// System calls of the workload at `path` by number, since its first; `None` when they are not
    /// counted, see [`Sampler::probe_states`].
    pub fn syscall_detail(&self, path: &str) -> Option<SyscallDetail> {
        self.kernel.syscall_detail(&self.facts.layout, &self.tracked.get(path)?.inodes)
    }

    /// What the host is.
    pub fn facts(&self) -> &HostFacts {
        &self.facts
    }

    /// What went wrong so far.
    pub fn counts(&self) -> ObserveCounts {
        self.counts
    }

    /// How the kernel programs do; `None` when there are none or nothing was asked yet.
    pub fn kernel_stats(&self) -> Option<&KernelStats> {
        self.kernel.stats()
    }

    /// What the GPU's thread saw last; `None` when GPUs are not watched.
    pub fn gpu(&self) -> Option<GpuSnapshot> {
        self.gpu.as_ref().map(GpuMonitor::latest)
    }

    fn gpu_state(&self) -> Fact<String> {
        self.gpu().map_or_else(|| Fact::absent("switched off by observe.gpu"), |seen| seen.state)
    }

    /// Block I/O since the start by workload and device, as far as the kernel counts it. Asks the
    /// kernel anew, once per pair of the two: for looking at now and then.
    pub fn block_devices(&self) -> BTreeMap<String, Vec<DeviceUse>> {
        let mut by_cgroup = self.kernel.devices();
        let mut by_path = BTreeMap::new();
        for (path, tracked) in &self.tracked {
            let id = self.kernel.block_id(&self.facts.layout, &tracked.inodes);
            if let Some(devices) = id.and_then(|id| by_cgroup.remove(&id)) {
                by_path.insert(path.to_string(), devices);
            }
        }
        by_path
    }

    /// The interface version of the hierarchy that accounts CPU use.
    pub fn cpu_version(&self) -> Option<Version> {
        let layout = &self.facts.layout;
        layout.home("cpu").map(|index| layout.hierarchies[index].version)
    }
}

fn limits_of(reading: &Reading) -> LimitsInForce {
    LimitsInForce {
        cpu_quota: reading.cpu_quota,
        memory_max: reading.memory_max,
        memory_high: reading.memory_high,
    }
}

/// Raises the process's limit of open files towards `wanted` and returns how many may be held.
fn descriptors(wanted: usize) -> usize {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    let needed = wanted as u64 + DESCRIPTORS_SPARED;
    let allowed = limit.maximum.map_or(needed, |hard| hard.min(needed));
    if limit.current.is_some_and(|soft| soft < allowed) {
        let before = limit.current;
        limit.current = Some(allowed);
        if setrlimit(Resource::Nofile, limit).is_err() {
            limit.current = before;
        }
    }
    let usable = limit.current.unwrap_or(needed).saturating_sub(DESCRIPTORS_SPARED);
    usize::try_from(usable).unwrap_or(wanted).min(wanted)
}
