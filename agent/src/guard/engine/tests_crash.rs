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

use headroom_allocate::Knob;
use rustix::process::{Signal, getpid, kill_process};

use super::{
    Step, Steps,
    bench::{Bench, MIB, RECLAIM, nobody, request},
};
use crate::{
    guard::{
        hierarchy::{Hierarchies, Root},
        path::CgroupPath,
        protocol::Request,
    },
    observe::cgroup::{Layout, Version},
};

const STEPS: [Step; 9] = [
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
const TIMES: u32 = 5;

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
enum Place {
    Files(Version),
    Host { workload: String },
}

impl Place {
    fn workload(&self) -> &str {
        match self {
            Self::Files(_) => "/w",
            Self::Host { workload } => workload,
        }
    }

    fn hierarchies(&self, dir: &Path) -> Hierarchies {
        match self {
            Self::Files(version) => {
                let root = |tree| Root::open(&dir.join(tree), *version).unwrap();
                Hierarchies::at(root("cpu"), root("memory"))
            }
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

/// Raised, raised more, lowered below its own with the burst, memory raised, given back.
fn script(workload: &str) -> Vec<Request> {
    vec![
        request(workload, Knob::CpuQuota, 1.5, 100.0),
        request(workload, Knob::CpuQuota, 1.75, 100.0),
        request(workload, Knob::MemoryMax, 96.0 * MIB, 100.0),
        request(workload, Knob::CpuQuota, 0.5, 100.0),
        Request::Release { workload: workload.to_owned(), knob: Knob::CpuQuota },
        request(workload, Knob::CpuQuota, 1.25, 100.0),
        Request::ReleaseAll,
        request(workload, Knob::MemoryMax, 80.0 * MIB, 100.0),
    ]
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
    for ask in script(place.workload()) {
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
            if run_to_death(place, &bench.dir, step, nth) {
                died_at.insert(case.clone());
            }
            let hierarchies = place.hierarchies(&bench.dir);
            let (mut engine, found) = bench.engine_on(RECLAIM, hierarchies, super::Unwatched);
            assert_eq!(found.warnings, Vec::<String>::new(), "{case}");
            let tally = engine.recover(found.open, &nobody(), Duration::ZERO);
            assert_eq!((tally.foreign, tally.gone, tally.pending), (0, 0, 0), "{case}");
            drop(engine);
            assert_eq!(files(), before, "{case}");
        }
        let first = format!("{step:?} 1");
        assert!(died_at.contains(&first), "{step:?} is never reached: {died_at:?}");
    }
    // Each step of each change in the script, so that a step that is skipped is noticed.
    assert!(died_at.len() >= 35, "{died_at:?}");
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
struct HostCgroup {
    dirs: Vec<PathBuf>,
    files: Vec<PathBuf>,
}

impl HostCgroup {
    fn make(name: &str) -> Result<Self, String> {
        let layout = Layout::detect(Path::new("/")).map_err(|error| error.to_string())?;
        let mut made = Self { dirs: Vec::new(), files: Vec::new() };
        for controller in ["cpu", "memory"] {
            let home = layout.home(controller).ok_or(format!("no {controller} controller"))?;
            let home = &layout.hierarchies[home];
            let dir = home.dir.join(name);
            if !made.dirs.contains(&dir) {
                fs::create_dir(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
                made.dirs.push(dir.clone());
            }
            let values: &[(&str, &str)] = match (controller, home.version) {
                ("cpu", Version::V1) => &[("cpu.cfs_quota_us", "100000")],
                ("cpu", Version::V2) => &[("cpu.max", "100000 100000")],
                (_, Version::V1) => &[("memory.limit_in_bytes", "67108864")],
                (_, Version::V2) => &[("memory.max", "67108864")],
            };
            for (file, value) in values {
                let path = dir.join(file);
                fs::write(&path, value).map_err(|error| format!("{}: {error}", path.display()))?;
                made.files.push(path);
            }
            for burst in ["cpu.cfs_burst_us", "cpu.max.burst"] {
                let path = dir.join(burst);
                if path.exists() && !made.files.contains(&path) {
                    fs::write(&path, "90000").map_err(|error| error.to_string())?;
                    made.files.push(path);
                }
            }
        }
        Ok(made)
    }

    fn snapshot(&self) -> BTreeMap<PathBuf, String> {
        let read = |path: &PathBuf| (path.clone(), fs::read_to_string(path).unwrap());
        self.files.iter().map(read).collect()
    }
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
        for ask in script("/w") {
            stages.push((fs::metadata(&journal).unwrap().len(), bench.snapshot()));
            engine.handle(&ask, Duration::ZERO);
        }
        stages.push((fs::metadata(&journal).unwrap().len(), bench.snapshot()));
        drop(engine);
        let bytes = fs::read(&journal).unwrap();
        let releases: Vec<bool> =
            script("/w").iter().map(|ask| !matches!(ask, Request::Apply { .. })).collect();
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
