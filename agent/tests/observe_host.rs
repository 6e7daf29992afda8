//! The sampler on a real host: workloads that live for less than a period, what files tell of a
//! known load, and what is left without kernel programs.

#![expect(clippy::unwrap_used, reason = "a test stops where something is not as it should be")]

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use headroom_agent::observe::{ObserveConfig, Sampler, Tick, kernel::Topic};
use headroom_telemetry::{Feature, Sample};
use headroom_tests::cgroup::{Cgroup, Hierarchies};

/// Where the cgroup is made, as systemd names a transient scope.
const PATH: &str = "/headroom-brief/run-r0123456789abcdef0123456789abcdef.scope";

struct Parents(Vec<PathBuf>);

impl Drop for Parents {
    fn drop(&mut self) {
        for dir in &self.0 {
            drop(fs::remove_dir(dir.join(PATH.trim_start_matches('/'))));
            drop(fs::remove_dir(dir.join("headroom-brief")));
        }
    }
}

#[test]
fn a_cgroup_that_lives_between_two_ticks_is_sampled_once_with_its_name() {
    if let Some(reason) = headroom_tests::cannot_run_as_root() {
        println!("skipped: {reason}");
        return;
    }
    let config = ObserveConfig {
        include: vec![headroom_telemetry::Glob("/headroom-brief/*".to_owned())],
        gpu: false,
        ..ObserveConfig::default()
    };
    let mut sampler = Sampler::start(&config).unwrap();
    let states = sampler.probe_states();
    let lacking = states.iter().find(|state| {
        let is_needed = [Topic::CgroupEvents, Topic::Execs, Topic::RunQueue]
            .iter()
            .any(|topic| topic.name() == state.name);
        is_needed && !state.state.is_known()
    });
    if let Some(lacking) = lacking {
        println!("skipped: {}: {}", lacking.name, lacking.state);
        return;
    }
    let parents = Parents(Hierarchies::detect().unwrap().roots);
    for root in &parents.0 {
        fs::create_dir_all(root.join("headroom-brief")).unwrap();
    }
    sampler.sample(1.0);
    let dirs: Vec<PathBuf> =
        parents.0.iter().map(|root| root.join(PATH.trim_start_matches('/'))).collect();
    for dir in &dirs {
        fs::create_dir(dir).unwrap();
    }
    let joins: Vec<String> =
        dirs.iter().map(|dir| format!("echo $$ > '{}/cgroup.procs'", dir.display())).collect();
    let cat = tool("cat");
    let script = format!("{} && {cat} /proc/loadavg && exec {cat} /dev/null", joins.join(" && "));
    assert!(command(&script).stdout(Stdio::null()).status().unwrap().success());
    for dir in &dirs {
        fs::remove_dir(dir).unwrap();
    }
    let tick = sampler.sample(2.0);
    let found = tick.workloads.iter().find(|(workload, _sample)| workload.path == PATH);
    let (workload, sample) = found.expect("the workload that ended is in the tick");
    assert_eq!(workload.model_key.0, "unit:run-*.scope");
    assert!(sample.get(Feature::Execs).unwrap() > 0.0);
    assert!(sample.get(Feature::ContextSwitches).unwrap() > 0.0);
    assert_eq!(sample.get(Feature::MemoryBytes), None, "its files were not read");
    let reasons = sampler.missing_reasons(PATH, sample);
    let memory = reasons.iter().find(|(feature, _)| *feature == Feature::MemoryBytes).unwrap();
    assert!(memory.1.contains("ended before"), "{}", memory.1);
    assert_eq!(sampler.counts().brief, 1);
    let next = sampler.sample(3.0);
    assert!(next.gone.iter().any(|path| path == PATH), "{:?}", next.gone);
    assert!(next.workloads.iter().all(|(workload, _sample)| workload.path != PATH));
}

/// A cgroup of ours, removed with what was switched on for it.
struct Place {
    cgroup: Cgroup,
    hierarchies: Hierarchies,
}

impl Place {
    fn new(path: &str) -> Self {
        let mut hierarchies = Hierarchies::detect().unwrap();
        hierarchies.enable_controllers().unwrap();
        Self { cgroup: Cgroup::create(&hierarchies, path).unwrap(), hierarchies }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.cgroup.remove();
        self.hierarchies.restore_controllers();
    }
}

/// A sampler without kernel programs over cgroups whose names begin with `/headroom-files`.
fn files_only() -> Sampler {
    let config = ObserveConfig {
        include: vec![headroom_telemetry::Glob("/headroom-files-*".to_owned())],
        gpu: false,
        probes: false,
        ..ObserveConfig::default()
    };
    Sampler::start(&config).unwrap()
}

fn sample_of<'t>(tick: &'t Tick, path: &str) -> &'t Sample {
    &tick.workloads.iter().find(|(workload, _)| workload.path == path).unwrap().1
}

/// How the shell's tool `name` is called; a machine made for tests may have busybox only.
fn tool(name: &str) -> String {
    let has_tools = Path::new("/bin/sh").exists();
    if has_tools { name.to_owned() } else { format!("/bin/busybox {name}") }
}

/// A shell that will run `script`.
fn command(script: &str) -> Command {
    let words = tool("sh");
    let mut words = words.split(' ');
    let mut command = Command::new(words.next().unwrap_or("sh"));
    command.args(words).args(["-c", script]);
    command
}

/// A shell that runs `script`, and says when it has reached each `echo` in it.
fn shell(script: &str) -> Child {
    command(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

#[test]
fn files_and_tasks_tell_a_known_load_without_kernel_programs() {
    const N_READS: f64 = 300.0;
    if let Some(reason) = headroom_tests::cannot_run_as_root() {
        println!("skipped: {reason}");
        return;
    }
    let path = "/headroom-files-load";
    let place = Place::new(path);
    let script =
        "read go; i=0; while [ $i -lt 300 ]; do read line < /proc/loadavg; i=$((i+1)); done;
                  echo done; read end";
    let mut child = shell(script);
    place.cgroup.add(child.id()).unwrap();
    let mut sampler = files_only();
    let began = Instant::now();
    sampler.sample(1.0);
    child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let tick = sampler.sample(2.0);
    let period_s = began.elapsed().as_secs_f64();
    let seen = sample_of(&tick, path);
    for feature in [
        Feature::CpuSystemCores,
        Feature::MemoryWorkingSetBytes,
        Feature::MemoryDirtyBytes,
        Feature::MemoryWritebackBytes,
        Feature::OomKills,
        Feature::RunqWaitRatio,
    ] {
        assert!(seen.get(feature).is_some_and(|value| value >= 0.0), "{}", feature.name());
    }
    let charged = seen.get(Feature::MemoryBytes).unwrap();
    assert!(seen.get(Feature::MemoryWorkingSetBytes).unwrap() <= charged);
    let reads = seen.get(Feature::SyscallRead).unwrap();
    let switches = seen.get(Feature::ContextSwitches).unwrap();
    assert!(reads > 0.0 && switches > 0.0, "{reads} {switches}");
    assert!(f64::from(reads) * period_s >= N_READS, "{reads} a second over {period_s} s");
    assert_eq!(seen.get(Feature::NetRxBps), None, "it is in the host's network namespace");
    child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    child.wait().unwrap();
}

#[test]
fn a_kill_for_want_of_memory_is_told_in_the_period_it_happens() {
    if let Some(reason) = headroom_tests::cannot_run_as_root() {
        println!("skipped: {reason}");
        return;
    }
    let path = "/headroom-files-killed";
    let place = Place::new(path);
    place.cgroup.set_memory_limit(16 << 20).unwrap();
    let mut child = shell(&format!("read go; exec {} /dev/zero", tool("tail")));
    place.cgroup.add(child.id()).unwrap();
    let mut sampler = files_only();
    sampler.sample(1.0);
    // Rates over less than a millisecond say nothing and are missing.
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(sample_of(&sampler.sample(2.0), path).get(Feature::OomKills), Some(0.0));
    child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    assert!(!child.wait().unwrap().success());
    let tick = sampler.sample(3.0);
    assert!(sample_of(&tick, path).get(Feature::OomKills).unwrap() > 0.0);
}

/// A cgroup at one path in v1 hierarchies and at another in the v2 tree, removed in the end.
struct Apart(Vec<PathBuf>);

impl Drop for Apart {
    fn drop(&mut self) {
        for dir in &self.0 {
            for _attempt in 0..50 {
                match fs::remove_dir(dir) {
                    Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                        std::thread::sleep(Duration::from_millis(20));
                    }
                    _ => break,
                }
            }
        }
    }
}

#[test]
fn a_workload_with_another_path_in_the_v2_tree_is_one_on_a_hybrid_host() {
    if let Some(reason) = headroom_tests::cannot_run_as_root() {
        println!("skipped: {reason}");
        return;
    }
    let hierarchies = Hierarchies::detect().unwrap();
    let is_v2 = |root: &&PathBuf| root.join("cgroup.controllers").exists();
    let Some(unified) = hierarchies.roots.iter().find(is_v2).filter(|_root| !hierarchies.unified)
    else {
        println!("skipped: this host has only one kind of cgroup hierarchy");
        return;
    };
    let id = std::process::id();
    let (path, other) = (format!("/headroom-files-{id}"), format!("/headroom-files-v2-{id}"));
    let dir_in = |root: &PathBuf| {
        let name = if root == unified { &other } else { &path };
        root.join(name.trim_start_matches('/'))
    };
    let apart = Apart(hierarchies.roots.iter().map(dir_in).collect());
    let mut child = shell("read end");
    for dir in &apart.0 {
        fs::create_dir(dir).unwrap();
        fs::write(dir.join("cgroup.procs"), child.id().to_string()).unwrap();
    }
    let mut sampler = files_only();
    let own = |tick: &Tick| -> Vec<String> {
        let all = tick.workloads.iter().map(|(workload, _)| workload.path.clone());
        all.filter(|found| *found == path || *found == other).collect()
    };
    assert_eq!(own(&sampler.sample(1.0)).len(), 2, "nobody was asked yet");
    sampler.sample(2.0);
    let joined = sampler.sample(3.0);
    assert_eq!(own(&joined), std::slice::from_ref(&path));
    if unified.join("cpu.pressure").exists() {
        std::thread::sleep(Duration::from_millis(20));
        let seen = sampler.sample(4.0);
        let pressure = sample_of(&seen, &path).get(Feature::PsiCpuSome);
        assert!(pressure.is_some(), "told by the v2 cgroup only");
    }
    drop(child.stdin.take());
    child.wait().unwrap();
    drop(apart);
    let ended = sampler.sample(5.0);
    assert!(own(&ended).is_empty() && ended.gone.contains(&path), "{:?}", ended.gone);
}

#[test]
fn a_limit_that_somebody_writes_is_told_at_the_next_tick() {
    if let Some(reason) = headroom_tests::cannot_run_as_root() {
        println!("skipped: {reason}");
        return;
    }
    let path = format!("/headroom-limit-{}", std::process::id());
    let config = ObserveConfig {
        include: vec![headroom_telemetry::Glob(path.clone())],
        gpu: false,
        ..ObserveConfig::default()
    };
    let place = Place::new(&path);
    let mut sampler = Sampler::start(&config).unwrap();
    // Long enough that what does not run is left alone, and not a multiple of any round of looks.
    for tick in 0..11 {
        sampler.sample(f64::from(tick));
    }
    for (tick, cores) in [0.25, 0.5, 0.75].into_iter().enumerate() {
        place.cgroup.set_cpu_limit(Some(cores)).unwrap();
        let seen = sampler.sample(11.0 + tick as f64);
        let told = seen.limits[path.as_str()].cpu_quota;
        assert_eq!(told, Some(headroom_allocate::Limit::At(cores)), "limit {tick}");
    }
}

#[test]
fn a_program_that_starts_in_a_new_cgroup_is_told_before_the_next_tick() {
    if let Some(reason) = headroom_tests::cannot_run_as_root() {
        println!("skipped: {reason}");
        return;
    }
    let config = ObserveConfig {
        include: vec![headroom_telemetry::Glob("/headroom-start-*".to_owned())],
        gpu: false,
        ..ObserveConfig::default()
    };
    let mut sampler = Sampler::start(&config).unwrap();
    if !sampler.tells_starts() {
        println!("skipped: the kernel does not tell of programs that start here");
        return;
    }
    sampler.sample(1.0);
    let path = format!("/headroom-start-{}", std::process::id());
    let place = Place::new(&path);
    place.cgroup.set_cpu_limit(Some(0.25)).unwrap();
    let mut child = shell(&format!("read line; exec {} 0", tool("sleep")));
    place.cgroup.add(child.id()).unwrap();
    while sampler.wait_for_start(Duration::ZERO) {
        sampler.take_starts();
    }
    // Whoever asks for the time twice may be interrupted in between.
    let before = Instant::now() - Duration::from_millis(100);
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let mut started = Vec::new();
    while sampler.wait_for_start(Duration::from_secs(20)) {
        started = sampler.take_starts();
        // The kernel may tell late of the shell itself.
        started.retain(|started| started.comm != "sh");
        if !started.is_empty() {
            break;
        }
    }
    child.wait().unwrap();
    let found = started.iter().find(|started| started.workload.path == path);
    let found = found.unwrap_or_else(|| panic!("{path} not among {started:?}"));
    // A busybox starts its applets from its own file.
    assert!(["sleep", "busybox", "exe"].contains(&found.comm.as_str()), "{}", found.comm);
    assert!(found.at >= before && found.at <= Instant::now(), "{:?}", found.at - before);
    let limits = sampler.read_limits(&path).unwrap();
    assert_eq!(limits.cpu_quota, Some(headroom_allocate::Limit::At(0.25)));
    assert!(sampler.take_starts().is_empty(), "each start once");
}
