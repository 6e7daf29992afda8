//! A guard over a tree of ordinary files laid out like cgroups, for the tests of the engine.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use headroom_allocate::{Device, Knob, Limit};

use super::{
    Engine, Parts, Progress, Steps, Unwatched,
    imitation::{self, MARK},
};
use crate::{
    guard::{
        config::{GuardConfig, OwnersConfig},
        hierarchy::{Hierarchies, Root},
        journal::{Found, Journal},
        owner::Owners,
        policy::{Capacity, Policy},
        protocol::{Applied, Failure, Request, Response},
    },
    observe::cgroup::{Layout, Mode, Version, layout::Hierarchy, weights::Weighing},
};

pub(super) const BOOT: &str = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";
pub(super) const MIB: f64 = 1_048_576.0;

/// Everything allowed, in both directions, with no ration worth the name.
pub(super) const RECLAIM: &str = "[gpu]\non=true\n[[allow]]\npath='/**'\nmode='reclaim'\nreclaim_floor=0.1\n\
    changes_per_minute=1e6\nowned=true\nio_bps.floor=1e5\nknobs=['cpu_quota','cpu_burst',\
    'cpu_weight','cpuset','memory_max','memory_high','memory_low','memory_reclaim','pids_max',\
    'io_max','io_weight','net_egress','gpu_power_limit','gpu_clock_floor']\nnet_bps.floor=1e5";
pub(super) const RAISE: &str = "[gpu]\non=true\n[[allow]]\npath='/**'\nmode='raise'\nchanges_per_minute=1e6\n\
    owned=true\nknobs=['cpu_quota','cpu_burst','cpu_weight','cpuset','memory_max','memory_high',\
    'memory_low','pids_max','io_max','io_weight','net_egress','gpu_power_limit',\
    'gpu_clock_floor']";

/// The device that the trees know limits of, beside 8:0.
pub(super) const DISK: Device = Device { major: 254, minor: 0 };

/// The GPU that they know, used by `/w` alone.
pub(super) const GPU: Device = Device { major: 195, minor: 0 };

/// Trees, by controller.
const TREES: [&str; 7] = ["cpu", "memory", "blkio", "pids", "cpuset", "net", "gpu"];

/// The disks, by name and by numbers.
const DISKS: [(&str, &str); 2] = [("sda", "8:0"), ("vda", "254:0")];

/// On which disks iocost is on.
pub(super) const QOS: &str = "blkio/io.cost.qos";

/// The tree and the guard's own directories.
pub(super) struct Bench {
    _scratch: Option<tempfile::TempDir>,
    pub(super) dir: PathBuf,
    pub(super) version: Version,
}

impl Bench {
    /// Trees with the workload `/w`: 1 core with a burst of 0.9, 64 MiB at most, 32 MiB high, 100
    /// tasks, CPUs 2 and 3 of 8, and a limit on reads of the other device.
    pub(super) fn new(version: Version) -> Self {
        // In memory where that is possible: disks make tests that write thousands of files slow.
        let in_memory = tempfile::tempdir_in("/dev/shm");
        let scratch = in_memory.or_else(|_no_such_dir| tempfile::tempdir()).unwrap();
        let dir = scratch.path().to_owned();
        let bench = Self { _scratch: Some(scratch), dir, version };
        bench.make("w");
        for (name, numbers) in DISKS {
            bench.make_disk(name, numbers);
        }
        bench
    }

    /// One that another process has made.
    pub(super) fn at(dir: &Path, version: Version) -> Self {
        Self { _scratch: None, dir: dir.to_owned(), version }
    }

    pub(super) fn make(&self, workload: &str) {
        for tree in TREES {
            let dir = self.dir.join(tree).join(workload);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("cgroup.procs"), "").unwrap();
            fs::write(dir.join(MARK), "").unwrap();
        }
        for (file, text) in files(self.version) {
            let (tree, name) = file.split_once('/').unwrap();
            fs::write(self.dir.join(tree).join(workload).join(name), text).unwrap();
        }
        fs::write(self.dir.join("cpuset/cpuset.cpus.effective"), "0-7\n").unwrap();
    }

    /// A disk that weights count on: by iocost on v2, and by BFQ on v1.
    fn make_disk(&self, name: &str, numbers: &str) {
        let disk = self.dir.join("sys/block").join(name);
        fs::create_dir_all(disk.join("device")).unwrap();
        fs::create_dir_all(disk.join("queue")).unwrap();
        fs::write(disk.join("dev"), numbers).unwrap();
        let by_numbers = self.dir.join("sys/dev/block");
        fs::create_dir_all(&by_numbers).unwrap();
        let target = Path::new("../../block").join(name);
        std::os::unix::fs::symlink(target, by_numbers.join(numbers)).unwrap();
        self.schedule(name, if self.version == Version::V1 { "bfq" } else { "none" });
        let all: String = DISKS.map(|(_name, numbers)| format!("{numbers} enable=1\n")).concat();
        fs::write(self.dir.join(QOS), if self.version == Version::V1 { "" } else { &all }).unwrap();
    }

    /// Puts a scheduler in force on a disk.
    pub(super) fn schedule(&self, disk: &str, scheduler: &str) {
        let file = self.dir.join("sys/block").join(disk).join("queue/scheduler");
        fs::write(file, format!("mq-deadline [{scheduler}]\n")).unwrap();
    }

    pub(super) fn remove(&self, workload: &str) {
        for tree in TREES {
            fs::remove_dir_all(self.dir.join(tree).join(workload)).unwrap();
        }
    }

    /// What somebody else writes, as the kernel takes it; whether it does.
    pub(super) fn others_write(&self, file: &str, text: &str) -> bool {
        let path = self.dir.join(file);
        let name = path.file_name().unwrap().to_str().unwrap();
        imitation::write(path.parent().unwrap(), self.version, name, text).is_ok()
    }

    pub(super) fn read(&self, file: &str) -> String {
        fs::read_to_string(self.dir.join(file)).unwrap().trim_end().to_owned()
    }

    pub(super) fn write(&self, file: &str, text: &str) {
        fs::write(self.dir.join(file), text).unwrap();
    }

    /// Every file of the trees, by path.
    pub(super) fn snapshot(&self) -> BTreeMap<PathBuf, String> {
        let mut found = BTreeMap::new();
        let mut dirs: Vec<PathBuf> = TREES.map(|tree| self.dir.join(tree)).to_vec();
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    dirs.push(path);
                } else {
                    let text = fs::read_to_string(&path).unwrap().trim_end().to_owned();
                    found.insert(path, text);
                }
            }
        }
        found
    }

    pub(super) fn put_back(&self, snapshot: &BTreeMap<PathBuf, String>) {
        for (path, text) in snapshot {
            fs::write(path, text).unwrap();
        }
    }

    pub(super) fn engine(&self, policy: &str) -> (Engine<Unwatched>, Found) {
        self.engine_on(policy, hierarchies(&self.dir, self.version), Unwatched)
    }

    pub(super) fn engine_on<S: Steps>(
        &self,
        policy: &str,
        hierarchies: Hierarchies,
        steps: S,
    ) -> (Engine<S>, Found) {
        let config = GuardConfig {
            kill_switch: self.dir.join("disable"),
            state_dir: self.dir.join("state"),
            ..GuardConfig::from_toml(policy).unwrap()
        };
        let capacity = Capacity { cpus: 64.0, memory_bytes: 1e12 };
        let (journal, found) = Journal::open(&config.state_dir, BOOT).unwrap();
        let policy = Policy::new(&config, capacity, Vec::new());
        let page_bytes = 4096;
        let parts = Parts { config, policy, hierarchies, journal, page_bytes, steps };
        (Engine::new(parts), found)
    }

    /// What an engine started on what is there gives back.
    pub(super) fn recover(&self) -> Engine<Unwatched> {
        let (mut engine, found) = self.engine(RAISE);
        engine.recover(found.open, &nobody(), Duration::ZERO);
        engine
    }
}

/// Owners of a host that has none.
pub(super) fn nobody() -> Owners {
    let config =
        OwnersConfig { systemd: false, docker: false, podman: false, ..Default::default() };
    Owners::new(&config)
}

impl<S: Steps> Engine<S> {
    /// Answers a request where there are no owners.
    pub(super) fn handle(&mut self, request: &Request, now: Duration) -> Response {
        self.handle_with(&nobody(), request, now)
    }

    /// Answers a request, asking `owners` as often as it takes.
    pub(super) fn handle_with(
        &mut self,
        owners: &Owners,
        request: &Request,
        now: Duration,
    ) -> Response {
        let mut progress = self.begin(request, now);
        loop {
            match progress {
                Progress::Answered(response) => return response,
                Progress::Waiting(ticket) => {
                    let done = owners.run(&ticket.errand);
                    progress = self.resume(*ticket, done, now);
                }
            }
        }
    }

    /// Passes time, and asks `owners` for what that has made due.
    pub(super) fn tick_with(&mut self, owners: &Owners, now: Duration) {
        self.tick(now);
        for ticket in self.take_returns() {
            let done = owners.run(&ticket.errand);
            self.resume(ticket, done, now);
        }
    }
}

/// The trees below `dir`.
pub(super) fn hierarchies(dir: &Path, version: Version) -> Hierarchies {
    let blkio = Hierarchy { version, dir: dir.join("blkio"), controllers: Vec::new() };
    let (mode, hierarchies) = (Mode::Unified, vec![blkio]);
    let layout = Layout { mode, hierarchies, other_controllers: Vec::new() };
    let roots = TREES.map(|tree| (tree, Root::open(&dir.join(tree), version).unwrap()));
    Hierarchies::at(roots).with_weighing(Weighing::of(dir, &layout))
}

fn files(version: Version) -> &'static [(&'static str, &'static str)] {
    match version {
        Version::V2 => &[
            ("cpu/cpu.max", "100000 100000\n"),
            ("cpu/cpu.max.burst", "90000\n"),
            ("cpu/cpu.weight", "100\n"),
            ("memory/memory.max", "67108864\n"),
            ("memory/memory.high", "33554432\n"),
            ("memory/memory.low", "0\n"),
            ("memory/memory.current", "1048576\n"),
            ("memory/memory.reclaim", ""),
            ("pids/pids.max", "100\n"),
            ("cpuset/cpuset.cpus", "2-3\n"),
            ("blkio/io.max", "8:0 rbps=1048576 wbps=max riops=max wiops=max\n"),
            ("blkio/io.weight", "default 100\n"),
            ("blkio/io.bfq.weight", "default 100\n"),
            ("net/net.egress", "1000000\n"),
            ("gpu/gpu.power_limit", "195:0 250500"),
            ("gpu/gpu.power_range", "195:0 100000 350000\n"),
            ("gpu/gpu.clock_floor", "195:0 0"),
            ("gpu/gpu.clock_range", "195:0 1980\n"),
            ("gpu/gpu.users", "195:0\t/w\t/w/below\n"),
        ],
        Version::V1 => &[
            ("cpu/cpu.cfs_quota_us", "100000\n"),
            ("cpu/cpu.cfs_period_us", "100000\n"),
            ("cpu/cpu.cfs_burst_us", "90000\n"),
            ("cpu/cpu.shares", "1024\n"),
            ("memory/memory.limit_in_bytes", "67108864\n"),
            ("memory/memory.usage_in_bytes", "1048576\n"),
            ("pids/pids.max", "100\n"),
            ("blkio/blkio.throttle.read_bps_device", "8:0 1048576\n"),
            ("blkio/blkio.throttle.write_bps_device", ""),
            ("blkio/blkio.throttle.read_iops_device", ""),
            ("blkio/blkio.throttle.write_iops_device", ""),
            ("blkio/blkio.bfq.weight", "100\n"),
            ("blkio/blkio.bfq.weight_device", ""),
        ],
    }
}

pub(super) fn request(workload: &str, knob: Knob, limit: f64, lease_s: f64) -> Request {
    let (workload, reason) = (workload.to_owned(), "a test".to_owned());
    Request::Apply { workload, knob, limit: Limit::At(limit), lease_s, reason }
}

pub(super) fn applied(response: Response) -> Applied {
    match response {
        Response::Applied(applied) => applied,
        other => panic!("{other:?}"),
    }
}

pub(super) fn refused(response: Response) -> String {
    match response {
        Response::Refused { rule, .. } => rule,
        other => panic!("{other:?}"),
    }
}

pub(super) fn failed(response: Response) -> (Failure, String) {
    match response {
        Response::Failed { kind, text } => (kind, text),
        other => panic!("{other:?}"),
    }
}
