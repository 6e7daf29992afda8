//! Death at every step of a change: the process is killed for good, and what a new guard finds is
//! given back.
//!
//! Each case runs in a process of its own, this test binary started again, over trees of ordinary
//! files and, as root, over real cgroups of this host.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use headroom_allocate::{Device, Knob};
use rustix::process::{Signal, getpid, kill_process};

use super::{
    Step, Steps,
    bench::{Bench, DISK, GPU, MIB, RECLAIM, hierarchies, nobody, request},
};
use crate::{
    guard::{hierarchy::Hierarchies, knob, path::CgroupPath, protocol::Request},
    observe::cgroup::{Layout, Version},
};

pub(super) const STEPS: [Step; 9] = [
    Step::BeforeIntent,
    Step::AfterIntent,
    Step::BetweenWrites,
    Step::AfterWrites,
    Step::BeforeInForce,
    Step::AfterInForce,
    Step::BeforeReturn,
    Step::AfterReturn,
    Step::AfterEnded,
];

/// How often a step is passed in one run of the script, at most, that is tried.
pub(super) const TIMES: u32 = 16;

/// Kills the process the n-th time a step is reached.
struct DieAt {
    step: Step,
    left: AtomicU32,
}

impl Steps for DieAt {
    fn reached(&self, step: Step) {
        if step == self.step && self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            kill_process(getpid(), Signal::KILL).unwrap();
        }
    }
}

/// Where the limits are: in files of the bench, or in a cgroup of this host.
#[derive(Clone)]
pub(super) enum Place {
    Files(Version),
    Host { workload: String },
}

impl Place {
    pub(super) fn workload(&self) -> &str {
        match self {
            Self::Files(_) => "/w",
            Self::Host { workload } => workload,
        }
    }

    /// Further knobs that the place has, and what is asked of them.
    pub(super) fn others(&self) -> Vec<(Knob, f64)> {
        match self {
            Self::Files(version) => other_knobs(*version, Some(DISK)),
            Self::Host { workload } => HostCgroup::knobs(workload),
        }
    }

    pub(super) fn hierarchies(&self, dir: &Path) -> Hierarchies {
        match self {
            Self::Files(version) => hierarchies(dir, *version),
            Self::Host { .. } => Hierarchies::detect(),
        }
    }

    fn env(&self) -> String {
        match self {
            Self::Files(Version::V1) => "files v1".to_owned(),
            Self::Files(Version::V2) => "files v2".to_owned(),
            Self::Host { workload } => format!("host {workload}"),
        }
    }

    fn from_env(text: &str) -> Self {
        match text.split_once(' ') {
            Some(("files", "v1")) => Self::Files(Version::V1),
            Some(("files", _)) => Self::Files(Version::V2),
            Some((_, workload)) => Self::Host { workload: workload.to_owned() },
            None => panic!("{text}"),
        }
    }
}

/// Raised, raised more, lowered below its own with the burst, memory raised, given back; then every
/// other knob of the place, and all given back again.
pub(super) fn script(workload: &str, others: &[(Knob, f64)]) -> Vec<Request> {
    let mut script = vec![
        request(workload, Knob::CpuQuota, 1.5, 100.0),
        request(workload, Knob::CpuQuota, 1.75, 100.0),
        request(workload, Knob::MemoryMax, 96.0 * MIB, 100.0),
        request(workload, Knob::CpuQuota, 0.5, 100.0),
        Request::Release { workload: workload.to_owned(), knob: Knob::CpuQuota },
        request(workload, Knob::CpuQuota, 1.25, 100.0),
        Request::ReleaseAll,
        request(workload, Knob::MemoryMax, 80.0 * MIB, 100.0),
    ];
    script.extend(others.iter().map(|(knob, amount)| request(workload, *knob, *amount, 100.0)));
    script
}

/// What is asked of the knobs beside quota and hard memory limit.
fn other_knobs(version: Version, disk: Option<Device>) -> Vec<(Knob, f64)> {
    let mut knobs = vec![(Knob::CpuBurst, 0.5), (Knob::CpuWeight, 500.0), (Knob::PidsMax, 150.0)];
    if version == Version::V2 {
        knobs.extend([(Knob::MemoryHigh, 48.0 * MIB), (Knob::MemoryLow, 8.0 * MIB)]);
    }
    if version == Version::V2 && disk == Some(DISK) {
        knobs.extend([(Knob::GpuPowerLimit(GPU), 300.0), (Knob::GpuClockFloor(GPU), 1200.0)]);
    }
    knobs.extend(disk.map(|disk| (Knob::IoReadBps(disk), 5e6)));
    knobs
}

/// The process that dies. Does nothing when run as an ordinary test.
#[test]
fn dying_process() {
    let Ok(case) = env::var("HEADROOM_TEST_DIE_AT") else { return };
    let place = Place::from_env(&env::var("HEADROOM_TEST_PLACE").unwrap());
    let dir = PathBuf::from(env::var("HEADROOM_TEST_DIR").unwrap());
    let (step, nth) = case.split_once(' ').unwrap();
    let step = STEPS.into_iter().find(|known| format!("{known:?}") == step).unwrap();
    let steps = DieAt { step, left: AtomicU32::new(nth.parse().unwrap()) };
    let bench = Bench::at(&dir, Version::V2);
    let (mut engine, _) = bench.engine_on(RECLAIM, place.hierarchies(&dir), steps);
    for ask in script(place.workload(), &place.others()) {
        let response = engine.handle(&ask, Duration::ZERO);
        let text = format!("{response:?}");
        assert!(!text.starts_with("Failed") && !text.starts_with("Refused"), "{ask:?}: {text}");
    }
    // The end of the script without a stop is a crash, too.
}

/// Runs the script up to one death; whether it got as far as that.
fn run_to_death(place: &Place, dir: &Path, step: Step, nth: u32) -> bool {
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", "guard::engine::tests_crash::dying_process", "--nocapture"])
        .env("HEADROOM_TEST_DIE_AT", format!("{step:?} {nth}"))
        .env("HEADROOM_TEST_PLACE", place.env())
        .env("HEADROOM_TEST_DIR", dir)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let killed = output.status.signal() == Some(9);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(killed || output.status.success(), "{step:?} {nth}: {}\n{text}", output.status);
    killed
}

fn die_everywhere(place: &Place, bench: &Bench, files: &dyn Fn() -> BTreeMap<PathBuf, String>) {
    let before = files();
    let mut died_at = BTreeSet::new();
    for step in STEPS {
        for nth in 1..=TIMES {
            let case = format!("{step:?} {nth}");
            let died = run_to_death(place, &bench.dir, step, nth);
            if died {
                died_at.insert(case.clone());
            }
            let hierarchies = place.hierarchies(&bench.dir);
            let (mut engine, found) = bench.engine_on(RECLAIM, hierarchies, super::Unwatched);
            assert_eq!(found.warnings, Vec::<String>::new(), "{case}");
            let tally = engine.recover(found.open, &nobody(), Duration::ZERO);
            assert_eq!((tally.foreign, tally.gone, tally.pending), (0, 0, 0), "{case}");
            drop(engine);
            assert_eq!(files(), before, "{case}");
            if !died {
                break;
            }
        }
        let first = format!("{step:?} 1");
        assert!(died_at.contains(&first), "{step:?} is never reached: {died_at:?}");
    }
    // Each step of each change in the script, so that a step that is skipped is noticed: the nine
    // changes and returns of quota and memory, and the five steps of one of each other knob.
    let n_others = place.others().len();
    assert!(died_at.len() >= 39 + 5 * n_others, "{n_others} others: {died_at:?}");
}

#[test]
fn death_at_any_step_on_v1_files_leaves_nothing_behind() {
    let bench = Bench::new(Version::V1);
    die_everywhere(&Place::Files(Version::V1), &bench, &|| bench.snapshot());
}

#[test]
fn death_at_any_step_on_v2_files_leaves_nothing_behind() {
    let bench = Bench::new(Version::V2);
    die_everywhere(&Place::Files(Version::V2), &bench, &|| bench.snapshot());
}

/// A cgroup of this host with limits, removed when dropped.
pub(super) struct HostCgroup {
    pub(super) dirs: Vec<PathBuf>,
    pub(super) files: Vec<PathBuf>,
}

/// Controllers of the cgroup; without the first two there is no test.
const CONTROLLERS: [&str; 4] = ["cpu", "memory", "pids", "blkio"];

/// Files of knobs, each with what the cgroup is given of its own.
const OWN: [(&str, &str); 12] = [
    ("cpu.cfs_quota_us", "100000"),
    ("cpu.max", "100000 100000"),
    ("cpu.cfs_burst_us", "90000"),
    ("cpu.max.burst", "90000"),
    ("cpu.shares", "300"),
    ("cpu.weight", "30"),
    ("memory.limit_in_bytes", "67108864"),
    ("memory.max", "67108864"),
    ("memory.high", "33554432"),
    ("memory.low", "0"),
    ("pids.max", "100"),
    ("blkio.throttle.read_bps_device", ""),
];

impl HostCgroup {
    pub(super) fn make(name: &str) -> Result<Self, String> {
        let layout = Layout::detect(Path::new("/")).map_err(|error| error.to_string())?;
        let mut made = Self { dirs: Vec::new(), files: Vec::new() };
        for controller in CONTROLLERS {
            let Some(home) = layout.home(controller) else {
                if matches!(controller, "cpu" | "memory") {
                    return Err(format!("no {controller} controller"));
                }
                continue;
            };
            let dir = layout.hierarchies[home].dir.join(name);
            if !made.dirs.contains(&dir) {
                fs::create_dir(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
                made.dirs.push(dir.clone());
            }
            for (file, value) in OWN {
                let path = dir.join(file);
                if !path.exists() || made.files.contains(&path) {
                    continue;
                }
                if !value.is_empty() {
                    let written = fs::write(&path, value);
                    written.map_err(|error| format!("{}: {error}", path.display()))?;
                }
                made.files.push(path);
            }
            let io_max = dir.join("io.max");
            if io_max.exists() && !made.files.contains(&io_max) {
                made.files.push(io_max);
            }
        }
        Ok(made)
    }

    /// Further knobs that the cgroup at `workload` has.
    fn knobs(workload: &str) -> Vec<(Knob, f64)> {
        let hierarchies = Hierarchies::detect();
        let path = CgroupPath::parse(workload).unwrap();
        let version = hierarchies.root(Knob::CpuQuota).unwrap().version();
        let mut knobs = other_knobs(version, disk());
        knobs.retain(|(knob, _)| {
            let dir = hierarchies.open(&path, *knob);
            dir.is_ok_and(|dir| knob::read(&dir, *knob).is_ok())
        });
        knobs
    }

    fn snapshot(&self) -> BTreeMap<PathBuf, String> {
        let read = |path: &PathBuf| (path.clone(), fs::read_to_string(path).unwrap());
        self.files.iter().map(read).collect()
    }
}

/// A whole disk of this host on which limits are kept.
fn disk() -> Option<Device> {
    let mut disks = fs::read_dir("/sys/block").ok()?.flatten().filter_map(|entry| {
        let dir = entry.path();
        // One that is backed by hardware, or by a hypervisor.
        dir.join("device").exists().then(|| fs::read_to_string(dir.join("dev")).ok())?
    });
    disks.next()?.trim().parse().ok()
}

impl Drop for HostCgroup {
    fn drop(&mut self) {
        for dir in &self.dirs {
            drop(fs::remove_dir(dir));
        }
    }
}

#[test]
fn death_at_any_step_on_cgroups_of_this_host_leaves_nothing_behind() {
    let name = format!("headroom-test-crash-{}", std::process::id());
    let cgroup = match HostCgroup::make(&name) {
        Ok(cgroup) => cgroup,
        Err(reason) => {
            eprintln!("skipped: {reason}");
            return;
        }
    };
    let scratch = tempfile::tempdir().unwrap();
    let bench = Bench::at(scratch.path(), Version::V2);
    let workload = CgroupPath::parse(&format!("/{name}")).unwrap().to_string();
    die_everywhere(&Place::Host { workload }, &bench, &|| cgroup.snapshot());
}

#[test]
fn a_journal_torn_at_any_byte_gives_back_what_was_written() {
    for version in [Version::V1, Version::V2] {
        let bench = Bench::new(version);
        let own = bench.snapshot();
        let journal = bench.dir.join("state/journal");
        // Length of the journal and state of the files before each change, and at the end.
        let mut stages = Vec::new();
        let (mut engine, _) = bench.engine(RECLAIM);
        let asks = script("/w", &other_knobs(version, Some(DISK)));
        for ask in &asks {
            stages.push((fs::metadata(&journal).unwrap().len(), bench.snapshot()));
            engine.handle(ask, Duration::ZERO);
        }
        stages.push((fs::metadata(&journal).unwrap().len(), bench.snapshot()));
        drop(engine);
        let bytes = fs::read(&journal).unwrap();
        let releases: Vec<bool> =
            asks.iter().map(|ask| !matches!(ask, Request::Apply { .. })).collect();
        for end in 0..=bytes.len() {
            let reached = stages.iter().rposition(|(length, _)| *length <= end as u64);
            let stage = reached.unwrap_or(0);
            let is_whole = first_record_end(&bytes, stages[stage].0).is_some_and(|at| at <= end);
            // A change is recorded before it is written, a return after it.
            let is_release = releases.get(stage).copied().unwrap_or(false);
            let may_be_before = !(is_release && is_whole);
            let may_be_after = stage + 1 < stages.len() && (is_release || is_whole);
            let before = may_be_before.then(|| &stages[stage].1);
            let after = may_be_after.then(|| &stages[stage + 1].1);
            for files in before.into_iter().chain(after) {
                fs::write(&journal, &bytes[..end]).unwrap();
                bench.put_back(files);
                drop(bench.recover());
                assert_eq!(bench.snapshot(), own, "{version:?} cut at {end}, stage {stage}");
            }
            for aside in 1..=3 {
                drop(fs::remove_file(bench.dir.join(format!("state/journal.unreadable-{aside}"))));
            }
        }
    }
}

/// Where the record that begins at `start` ends.
fn first_record_end(bytes: &[u8], start: u64) -> Option<usize> {
    let start = usize::try_from(start).unwrap();
    let length = bytes.get(start..start + 4)?;
    let length = u32::from_le_bytes(length.try_into().unwrap());
    Some(start + 8 + usize::try_from(length).unwrap())
}
