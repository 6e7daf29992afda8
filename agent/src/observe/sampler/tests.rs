//! The sampler over cgroup trees made of plain files: unified, legacy and hybrid.

use std::{fs, path::PathBuf};

use headroom_allocate::plan::{Knob, Limit};
use headroom_telemetry::{Fact, Feature, Glob, Sample};
use tempfile::TempDir;

use super::{ObserveConfig, Sampler, Tick};
use crate::observe::cgroup::Mode;

const UNIFIED: &str = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
const LEGACY: &str = "\
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
36 31 0:33 / /sys/fs/cgroup/blkio rw - cgroup cgroup rw,blkio
";
const HYBRID_V2: &str = "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

struct FakeHost {
    root: TempDir,
    config: ObserveConfig,
}

impl FakeHost {
    fn new(mounts: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        let config = ObserveConfig {
            root: root.path().to_path_buf(),
            probes: false,
            gpu: false,
            ..ObserveConfig::default()
        };
        let host = Self { root, config };
        host.write("proc/self/mountinfo", mounts);
        for mount in mounts.lines().filter_map(|line| line.split(' ').nth(4)) {
            fs::create_dir_all(host.path(mount.trim_start_matches('/'))).unwrap();
        }
        host
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A v2 cgroup with a task and what its files say.
    fn cgroup_v2(&self, path: &str, cpu_us: u64) {
        let dir = format!("sys/fs/cgroup{path}");
        let files = [
            ("cgroup.procs", "42\n"),
            (
                "cpu.stat",
                &format!("usage_usec {cpu_us}\nnr_throttled 3\nthrottled_usec {cpu_us}\n"),
            ),
            ("cpu.max", "150000 100000\n"),
            ("memory.current", "1048576\n"),
            ("memory.max", "max\n"),
            ("memory.high", "2097152\n"),
            ("memory.stat", "anon 4096\nfile 8192\npgfault 7\npgmajfault 0\n"),
            ("memory.events", "low 0\nhigh 0\nmax 5\n"),
            ("io.stat", "254:0 rbytes=512 wbytes=0 rios=1 wios=0\n"),
            ("pids.current", "3\n"),
        ];
        for (name, text) in files {
            self.write(&format!("{dir}/{name}"), text);
        }
    }

    fn sampler(&self) -> Sampler {
        Sampler::start(&self.config).unwrap()
    }
}

/// A tick at `at_s`, by a clock that stands still during it.
fn tick(sampler: &mut Sampler, at_s: f64) -> Tick {
    sampler.sample_by(1_000.0 + at_s, &mut || at_s)
}

fn sample<'t>(tick: &'t Tick, path: &str) -> &'t Sample {
    let found = tick.workloads.iter().find(|(workload, _sample)| workload.path == path);
    &found.unwrap_or_else(|| panic!("{path} is not among {:?}", paths(tick))).1
}

fn paths(tick: &Tick) -> Vec<&str> {
    tick.workloads.iter().map(|(workload, _sample)| workload.path.as_str()).collect()
}

#[test]
fn a_unified_host_is_read_without_probes() {
    let host = FakeHost::new(UNIFIED);
    host.write("sys/fs/cgroup/cgroup.controllers", "cpu io memory pids\n");
    host.cgroup_v2("/app.slice/web.service", 1_000_000);
    let mut sampler = host.sampler();
    assert_eq!(sampler.facts().layout.mode, Mode::Unified);
    let first = tick(&mut sampler, 1.0);
    let path = "/app.slice/web.service";
    assert_eq!(paths(&first), [path], "inner cgroups without tasks are no workloads");
    assert_eq!(sample(&first, path).get(Feature::MemoryBytes), Some(1_048_576.0));
    assert_eq!(sample(&first, path).get(Feature::CpuCores), None);

    host.cgroup_v2(path, 2_000_000);
    let second = tick(&mut sampler, 3.0);
    let seen = sample(&second, path);
    assert_eq!(seen.get(Feature::CpuCores), Some(0.5));
    assert_eq!(seen.get(Feature::CpuThrottledRatio), Some(0.5));
    assert_eq!(seen.get(Feature::CpuLimitCores), Some(1.5));
    assert_eq!(seen.get(Feature::MemoryLimitBytes), Some(2_097_152.0));
    assert_eq!(seen.get(Feature::DiskReadBps), Some(0.0));
    assert_eq!(seen.get(Feature::Tasks), Some(3.0));
    assert_eq!(seen.get(Feature::NetRxBps), None);
    let limits = second.limits[path];
    assert_eq!(limits.of(Knob::CpuQuota), Some(Limit::At(1.5)));
    assert_eq!(limits.memory_max, Some(Limit::Unlimited));
    assert_eq!(limits.list().len(), 3);
    assert!((second.t_s - 1_003.0).abs() < 1e-9);
}

#[test]
fn every_missing_feature_has_a_reason() {
    let host = FakeHost::new(UNIFIED);
    host.cgroup_v2("/a", 0);
    let mut sampler = host.sampler();
    let first = tick(&mut sampler, 1.0);
    let seen = sample(&first, "/a");
    let missing = Feature::ALL.iter().filter(|feature| seen.get(**feature).is_none()).count();
    let reasons = sampler.missing_reasons("/a", seen);
    assert_eq!(reasons.len(), missing);
    assert!(reasons.iter().all(|(_feature, reason)| !reason.is_empty()), "{reasons:?}");
    let states = sampler.feature_states();
    assert_eq!(states.len(), Feature::COUNT);
    let state = |feature: Feature| &states[feature.index()].1;
    assert_eq!(*state(Feature::SyscallFile), Fact::absent("switched off by observe.probes"));
    let waits = state(Feature::RunqWaitRatio);
    assert!(waits.shortfall().is_some_and(|lost| lost.contains("means only")), "{waits}");
}

#[test]
fn a_legacy_host_counts_nanoseconds_and_huge_limits_as_none() {
    let host = FakeHost::new(LEGACY);
    let write = |throttled_ns: u64, usage_ns: u64| {
        let cpu = "sys/fs/cgroup/cpu,cpuacct/w";
        host.write(&format!("{cpu}/cgroup.procs"), "1\n");
        host.write(&format!("{cpu}/tasks"), "1\n2\n");
        host.write(&format!("{cpu}/cpuacct.usage"), &format!("{usage_ns}\n"));
        let stat = format!("nr_periods 9\nnr_throttled 2\nthrottled_time {throttled_ns}\n");
        host.write(&format!("{cpu}/cpu.stat"), &stat);
        host.write(&format!("{cpu}/cpu.cfs_quota_us"), "200000\n");
        host.write(&format!("{cpu}/cpu.cfs_period_us"), "100000\n");
        let memory = "sys/fs/cgroup/memory/w";
        host.write(&format!("{memory}/memory.usage_in_bytes"), "4096\n");
        host.write(&format!("{memory}/memory.limit_in_bytes"), "9223372036854771712\n");
        host.write(&format!("{memory}/memory.stat"), "rss 1\ntotal_rss 2\ntotal_cache 3\n");
        let blkio = "sys/fs/cgroup/blkio/w";
        host.write(&format!("{blkio}/blkio.throttle.io_service_bytes"), "Total 0\n");
        host.write(&format!("{blkio}/blkio.throttle.io_serviced"), "Total 0\n");
    };
    write(0, 0);
    let mut sampler = host.sampler();
    assert_eq!(sampler.facts().layout.mode, Mode::Legacy);
    tick(&mut sampler, 1.0);
    write(250_000_000, 2_000_000_000);
    let second = tick(&mut sampler, 2.0);
    let seen = sample(&second, "/w");
    assert_eq!(seen.get(Feature::CpuCores), Some(2.0));
    assert_eq!(seen.get(Feature::CpuThrottledRatio), Some(0.25));
    assert_eq!(seen.get(Feature::MemoryAnonBytes), Some(2.0));
    assert_eq!(seen.get(Feature::Tasks), Some(2.0));
    assert_eq!(seen.get(Feature::DiskReadBps), None, "a file without devices measures nothing");
    let limits = second.limits["/w"];
    assert_eq!(limits.cpu_quota, Some(Limit::At(2.0)));
    assert_eq!(limits.memory_max, Some(Limit::Unlimited));
    assert_eq!(limits.memory_high, None);
}

#[test]
fn a_hybrid_host_joins_hierarchies_by_path() {
    let host = FakeHost::new(&format!("{LEGACY}{HYBRID_V2}"));
    let pressure = |total| format!("some avg10=0.00 avg60=0.00 avg300=0.00 total={total}\n");
    host.write("proc/pressure/cpu", &pressure(0));
    let write = |total: u64| {
        host.write("sys/fs/cgroup/cpu,cpuacct/w/cgroup.procs", "1\n");
        host.write("sys/fs/cgroup/cpu,cpuacct/w/cpuacct.usage", "5\n");
        host.write("sys/fs/cgroup/memory/w/memory.usage_in_bytes", "4096\n");
        host.write("sys/fs/cgroup/unified/w/cpu.stat", "usage_usec 999\n");
        host.write("sys/fs/cgroup/unified/w/cpu.pressure", &pressure(total));
    };
    write(0);
    host.write("sys/fs/cgroup/memory/only/cgroup.procs", "7\n");
    host.write("sys/fs/cgroup/memory/only/memory.usage_in_bytes", "8192\n");
    let mut sampler = host.sampler();
    assert_eq!(sampler.facts().layout.mode, Mode::Hybrid);
    let first = tick(&mut sampler, 1.0);
    assert_eq!(paths(&first), ["/only", "/w"]);
    write(500_000);
    let second = tick(&mut sampler, 2.0);
    let seen = sample(&second, "/w");
    assert_eq!(seen.get(Feature::PsiCpuSome), Some(0.5));
    assert_eq!(seen.get(Feature::CpuCores), Some(0.0), "v1 accounts CPU time here");
    assert_eq!(seen.get(Feature::MemoryBytes), Some(4096.0));
    let only = sample(&second, "/only");
    assert_eq!(only.get(Feature::CpuCores), None);
    let reasons = sampler.missing_reasons("/only", only);
    let cpu = reasons.iter().find(|(feature, _reason)| *feature == Feature::CpuCores).unwrap();
    assert!(cpu.1.contains("no cgroup in the hierarchy"), "{}", cpu.1);
}

#[test]
fn a_container_at_another_path_in_the_v2_tree_is_one_workload() {
    let host = FakeHost::new(&format!("{LEGACY}{HYBRID_V2}"));
    let id = "0f".repeat(32);
    let (path, other) = (format!("/docker/{id}"), format!("/system.slice/docker-{id}.scope"));
    let pressure = |total| format!("some avg10=0.00 avg60=0.00 avg300=0.00 total={total}\n");
    host.write("proc/pressure/cpu", &pressure(0));
    host.write(&format!("sys/fs/cgroup/unified{other}/cgroup.procs"), "1\n");
    host.write(&format!("sys/fs/cgroup/unified{other}/cpu.pressure"), &pressure(0));
    let mut sampler = host.sampler();
    assert_eq!(paths(&tick(&mut sampler, 1.0)), [&other], "as long as it is nowhere else");

    host.write(&format!("sys/fs/cgroup/cpu,cpuacct{path}/cgroup.procs"), "1\n");
    host.write(&format!("sys/fs/cgroup/cpu,cpuacct{path}/cpuacct.usage"), "5\n");
    let second = tick(&mut sampler, 2.0);
    assert_eq!((paths(&second), &second.gone), (vec![path.as_str()], &vec![other.clone()]));
    host.write(&format!("sys/fs/cgroup/unified{other}/cpu.pressure"), &pressure(500_000));
    let third = tick(&mut sampler, 3.0);
    let seen = sample(&third, &path);
    assert_eq!(seen.get(Feature::PsiCpuSome), Some(0.5));
    assert_eq!(seen.get(Feature::CpuCores), Some(0.0));

    fs::remove_dir_all(host.path(&format!("sys/fs/cgroup/unified{other}"))).unwrap();
    let fourth = tick(&mut sampler, 4.0);
    assert_eq!((paths(&fourth), fourth.gone.len()), (vec![path.as_str()], 0));
    assert_eq!(sample(&fourth, &path).get(Feature::PsiCpuSome), None);
}

/// A hybrid host on which process 42 is at `/batch/job` in v1 and at `/jobs/7` in the v2 tree.
fn host_with_two_paths() -> FakeHost {
    let host = FakeHost::new(&format!("{LEGACY}{HYBRID_V2}"));
    host.write("proc/pressure/cpu", "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n");
    host.write("sys/fs/cgroup/unified/jobs/7/cgroup.procs", "42\n");
    host.write(
        "sys/fs/cgroup/unified/jobs/7/cpu.pressure",
        "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
    );
    host.write("sys/fs/cgroup/cpu,cpuacct/batch/job/cgroup.procs", "42\n");
    host.write("sys/fs/cgroup/cpu,cpuacct/batch/job/cpuacct.usage", "5\n");
    is_at(&host, 42, "/batch/job", "/jobs/7");
    host
}

fn is_at(host: &FakeHost, pid: u32, v1: &str, v2: &str) {
    host.write(
        &format!("proc/{pid}/cgroup"),
        &format!("9:name=systemd:/\n4:memory:/\n2:cpu,cpuacct:{v1}\n0::{v2}\n"),
    );
}

fn ticks(sampler: &mut Sampler, from: u32, n: u32) -> Tick {
    let mut ticks = (from..from + n).map(|at| tick(sampler, f64::from(at)));
    let first = ticks.next().unwrap();
    ticks.last().unwrap_or(first)
}

#[test]
fn a_workload_at_another_path_in_the_v2_tree_is_found_by_its_tasks() {
    let host = host_with_two_paths();
    let mut sampler = host.sampler();
    assert_eq!(paths(&tick(&mut sampler, 1.0)), ["/batch/job", "/jobs/7"], "not asked yet");
    assert_eq!(paths(&tick(&mut sampler, 2.0)).len(), 2, "told once only");
    let third = tick(&mut sampler, 3.0);
    assert_eq!((paths(&third), third.gone.clone()), (vec!["/batch/job"], vec!["/jobs/7".into()]));
    host.write(
        "sys/fs/cgroup/unified/jobs/7/cpu.pressure",
        "some avg10=0.00 avg60=0.00 avg300=0.00 total=500000\n",
    );
    let seen = tick(&mut sampler, 4.0);
    assert_eq!(sample(&seen, "/batch/job").get(Feature::PsiCpuSome), Some(0.5));
    assert_eq!(sample(&seen, "/batch/job").get(Feature::CpuCores), Some(0.0));

    // A process of somebody else comes into the v2 cgroup: it is not this workload's any more.
    host.write("sys/fs/cgroup/unified/jobs/7/cgroup.procs", "42\n43\n");
    is_at(&host, 43, "/batch/other", "/jobs/7");
    let apart = ticks(&mut sampler, 5, 140);
    assert_eq!(paths(&apart), ["/batch/job", "/jobs/7"]);
    // It moves on, and ends: only the first is left to ask.
    is_at(&host, 43, "/batch/other", "/elsewhere");
    assert_eq!(paths(&ticks(&mut sampler, 145, 140)), ["/batch/job"]);
    fs::remove_dir_all(host.path("proc/43")).unwrap();
    assert_eq!(paths(&ticks(&mut sampler, 285, 140)), ["/batch/job"]);
    fs::remove_dir_all(host.path("sys/fs/cgroup/unified/jobs")).unwrap();
    let alone = ticks(&mut sampler, 425, 20);
    assert_eq!(paths(&alone), ["/batch/job"]);
    assert_eq!(sample(&alone, "/batch/job").get(Feature::PsiCpuSome), None);
}

#[test]
fn paths_are_not_joined_when_tasks_disagree_or_none_can_be_asked() {
    let both = ["/batch/job", "/jobs/7"];
    let host = host_with_two_paths();
    host.write("sys/fs/cgroup/cpu,cpuacct/batch/job/cgroup.procs", "42\n43\n");
    is_at(&host, 43, "/batch/job", "/jobs/8");
    assert_eq!(paths(&ticks(&mut host.sampler(), 1, 8)), both, "one of two is elsewhere");

    let host = host_with_two_paths();
    is_at(&host, 42, "/batch/job", "/");
    assert_eq!(paths(&ticks(&mut host.sampler(), 1, 8)), both, "in no cgroup of the v2 tree");

    let host = host_with_two_paths();
    is_at(&host, 42, "/batch/moved", "/jobs/7");
    assert_eq!(paths(&ticks(&mut host.sampler(), 1, 8)), both, "it has moved since it was listed");

    let host = host_with_two_paths();
    host.write("proc/42/cgroup", "2:cpu,cpuacct:/batch/\u{fffd}\n\n:::\n0::\n");
    assert_eq!(paths(&ticks(&mut host.sampler(), 1, 8)), both, "what it says makes no sense");

    let host = host_with_two_paths();
    fs::remove_dir_all(host.path("proc/42")).unwrap();
    assert_eq!(paths(&ticks(&mut host.sampler(), 1, 8)), both, "it has ended");

    let host = host_with_two_paths();
    host.write("sys/fs/cgroup/cpu,cpuacct/batch/next/cgroup.procs", "44\n");
    host.write("sys/fs/cgroup/unified/jobs/7/cgroup.procs", "42\n44\n");
    is_at(&host, 44, "/batch/next", "/jobs/7");
    let three = ["/batch/job", "/batch/next", "/jobs/7"];
    assert_eq!(paths(&ticks(&mut host.sampler(), 1, 8)), three, "two share the v2 cgroup");
}

#[test]
fn workloads_come_and_go_between_ticks() {
    let host = FakeHost::new(UNIFIED);
    host.cgroup_v2("/a", 1);
    let mut sampler = host.sampler();
    tick(&mut sampler, 1.0);
    host.cgroup_v2("/deep/er/b", 1);
    let second = tick(&mut sampler, 2.0);
    assert_eq!(paths(&second), ["/a", "/deep/er/b"]);
    fs::remove_dir_all(host.path("sys/fs/cgroup/deep")).unwrap();
    let third = tick(&mut sampler, 3.0);
    assert_eq!(third.gone, ["/deep/er/b"]);
    assert_eq!(paths(&third), ["/a"]);
    host.cgroup_v2("/deep/er/b", 9);
    let fourth = tick(&mut sampler, 4.0);
    assert_eq!(fourth.gone, Vec::<String>::new());
    assert_eq!(sample(&fourth, "/deep/er/b").get(Feature::CpuCores), None);
}

#[test]
fn a_cgroup_made_anew_under_the_same_name_starts_over() {
    let host = FakeHost::new(UNIFIED);
    host.cgroup_v2("/a", 5);
    let mut sampler = host.sampler();
    tick(&mut sampler, 1.0);
    // Kept aside so that the new directory cannot be given the same inode.
    fs::rename(host.path("sys/fs/cgroup/a"), host.path("aside")).unwrap();
    host.cgroup_v2("/a", 50);
    let second = tick(&mut sampler, 2.0);
    assert_eq!(second.gone, ["/a"]);
    assert_eq!(sample(&second, "/a").get(Feature::CpuCores), None);
    host.cgroup_v2("/a", 1_000_050);
    assert_eq!(sample(&tick(&mut sampler, 3.0), "/a").get(Feature::CpuCores), Some(1.0));
}

#[test]
fn a_counter_that_goes_back_is_missing_once_and_counted() {
    let host = FakeHost::new(UNIFIED);
    host.cgroup_v2("/a", 1_000);
    let mut sampler = host.sampler();
    tick(&mut sampler, 1.0);
    host.cgroup_v2("/a", 10);
    assert_eq!(sample(&tick(&mut sampler, 2.0), "/a").get(Feature::CpuCores), None);
    assert_eq!(sampler.counts().backward_counters, 2);
    assert_eq!(sample(&tick(&mut sampler, 3.0), "/a").get(Feature::CpuCores), Some(0.0));
}

#[test]
fn without_kernel_programs_tasks_tell_means_and_the_source_is_told() {
    let host = FakeHost::new(UNIFIED);
    host.cgroup_v2("/a", 1);
    host.write("sys/fs/cgroup/a/cgroup.threads", "42\n");
    let task = |n: u64| {
        host.write("proc/42/schedstat", &format!("9 {} {n}\n", n * 1_000_000_000));
        host.write("proc/42/io", &format!("syscr: {n}\nsyscw: 0\n"));
    };
    task(1);
    let mut sampler = host.sampler();
    tick(&mut sampler, 1.0);
    task(5);
    let second = tick(&mut sampler, 3.0);
    let seen = sample(&second, "/a");
    assert_eq!(seen.get(Feature::RunqWaitRatio), Some(2.0));
    assert_eq!(seen.get(Feature::ContextSwitches), Some(2.0));
    assert_eq!(seen.get(Feature::SyscallRead), Some(2.0));
    assert_eq!(seen.get(Feature::RunqWaitP99), None);
    assert_eq!(seen.get(Feature::NetRxBps), None);
    let reasons = sampler.missing_reasons("/a", seen);
    let network = reasons.iter().find(|(feature, _)| *feature == Feature::NetRxBps).unwrap();
    assert!(network.1.contains("network namespace"), "{}", network.1);
    let states = sampler.probe_states();
    let tasks = states.iter().find(|state| state.name == "files.tasks").unwrap();
    assert!(tasks.state.to_string().contains("1 tasks read"), "{}", tasks.state);
    assert!(tasks.state.shortfall().is_some());
}

#[test]
fn containers_are_named_by_what_their_runtime_left_on_disk() {
    let host = FakeHost::new(UNIFIED);
    let id = "c3".repeat(32);
    let (path, child) = (format!("/docker/{id}"), format!("/docker/{id}/init"));
    host.cgroup_v2(&path, 1);
    host.cgroup_v2(&child, 1);
    host.cgroup_v2(&format!("/docker/{}", "d4".repeat(32)), 1);
    let mut sampler = host.sampler();
    let keys = |tick: &Tick| -> Vec<String> {
        tick.workloads.iter().map(|(workload, _)| workload.model_key.0.clone()).collect()
    };
    let first = keys(&tick(&mut sampler, 1.0));
    assert_eq!(first[..2], [format!("container:{id}"), format!("container:{id}/init")]);
    let state = format!("var/lib/docker/containers/{id}/config.v2.json");
    host.write(&state, r#"{"Name":"/web","Config":{"Image":"nginx"}}"#);
    let mut last = first;
    for at_s in [2.0, 3.0, 4.0] {
        last = keys(&tick(&mut sampler, at_s));
    }
    assert_eq!(last[..2], ["docker:web", "docker:web/init"]);
    let states = sampler.probe_states();
    let named = states.iter().find(|state| state.name == "files.containers").unwrap();
    assert!(named.state.to_string().starts_with("2 of 3"), "{}", named.state);
    assert!(named.state.shortfall().is_some_and(|why| why.contains("no runtime")));
}

#[test]
fn a_name_of_255_bytes_with_control_characters_is_a_workload_like_any_other() {
    let host = FakeHost::new(UNIFIED);
    let name = format!("\u{1b}[31m\n{}", "x".repeat(249));
    assert_eq!(name.len(), 255);
    host.cgroup_v2(&format!("/{name}"), 1);
    let mut sampler = host.sampler();
    let first = tick(&mut sampler, 1.0);
    let (workload, sample) = &first.workloads[0];
    assert_eq!(workload.path, format!("/{name}"));
    assert!(!workload.name.chars().any(char::is_control));
    assert_eq!(sample.get(Feature::MemoryBytes), Some(1_048_576.0));
}

#[test]
fn tasks_that_leave_do_not_end_a_workload() {
    let host = FakeHost::new(UNIFIED);
    host.cgroup_v2("/a", 1);
    let mut sampler = host.sampler();
    tick(&mut sampler, 1.0);
    host.write("sys/fs/cgroup/a/cgroup.procs", "");
    assert_eq!(paths(&tick(&mut sampler, 2.0)), ["/a"]);
}

#[test]
fn patterns_choose_workloads_and_the_rest_is_counted() {
    let mut host = FakeHost::new(UNIFIED);
    for path in ["/x/a", "/x/b", "/x/c", "/y"] {
        host.cgroup_v2(path, 1);
    }
    host.config.include = vec![Glob("/x/*".to_owned()), Glob("/x".to_owned())];
    host.config.exclude = vec![Glob("/x/b".to_owned())];
    host.config.max_workloads = 2;
    let mut sampler = host.sampler();
    assert_eq!(paths(&tick(&mut sampler, 1.0)), ["/x", "/x/a"]);
    assert_eq!(sampler.counts().overflow, 1);
    let states = sampler.probe_states();
    let cgroups = states.iter().find(|state| state.name == "files.cgroup").unwrap();
    assert!(cgroups.state.to_string().contains("1 more left out"));
}

#[test]
fn times_that_are_not_are_refused() {
    for period_s in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let config = ObserveConfig { period_s, ..ObserveConfig::default() };
        let refused = config.check().unwrap_err().to_string();
        assert!(refused.contains("period_s"), "{refused}");
    }
}
