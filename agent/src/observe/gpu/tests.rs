//! NVML against a library that stands in for the driver's: compiled here, and really loaded.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use headroom_telemetry::Fact;
use tempfile::TempDir;

use super::{GpuMonitor, GpuSnapshot, ProcessCgroups};

/// The stand-in. Processes 101 and 102 run on GPU 0, 102 on GPU 1 too; what it answers differs by
/// `SPLIT`, `MUTE` and `SHARED`; GPU 1 is lost as soon as the file `LOST` is there, and calls hang while
/// `HANG` is. Shared, what 102 uses of GPU 0 is charged to 103, the MPS server.
const LIBRARY: &str = include_str!("stand_in.c");

struct Fake {
    dir: TempDir,
    library: PathBuf,
}

impl Fake {
    /// Compiles the stand-in; `None`, after saying why, where there is no compiler.
    fn build(flags: &[&str]) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let (source, library) = (dir.path().join("nvml.c"), dir.path().join("libnvidia-ml.so"));
        fs::write(&source, LIBRARY).unwrap();
        let defaults = ["SPLIT", "MUTE", "SHARED"].map(|flag| {
            let is_on = flags.contains(&flag);
            format!("-D{flag}={}", u8::from(is_on))
        });
        let [lost, hang, state] = [("LOST", "lost"), ("HANG", "hang"), ("STATE", "")]
            .map(|(name, file)| format!("-D{name}=\"{}\"", dir.path().join(file).display()));
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-w", "-o"])
            .arg(&library)
            .args(defaults)
            .args([lost, hang, state])
            .arg(&source)
            .output();
        match built {
            Ok(output) if output.status.success() => {}
            Ok(output) => panic!("{}", String::from_utf8_lossy(&output.stderr)),
            Err(error) => {
                println!("skipped: no C compiler to build a stand-in for NVML with: {error}");
                return None;
            }
        }
        for (pid, path) in [(101, "/a"), (102, "/b"), (103, "/mps")] {
            let proc = dir.path().join(format!("proc/{pid}"));
            fs::create_dir_all(&proc).unwrap();
            fs::write(proc.join("cgroup"), format!("0::{path}\n")).unwrap();
        }
        Some(Self { dir, library })
    }

    fn monitor(&self) -> GpuMonitor {
        let library = Some(self.library.clone());
        GpuMonitor::start(Duration::from_millis(20), cgroups(self.dir.path()), library).unwrap()
    }
}

fn cgroups(root: &Path) -> ProcessCgroups {
    ProcessCgroups { root: root.to_path_buf(), controller: None }
}

fn first(monitor: &GpuMonitor) -> GpuSnapshot {
    monitor.first(Duration::from_secs(30))
}

fn is_near(value: Option<f64>, expected: f64) -> bool {
    value.is_some_and(|value| (value - expected).abs() < 1e-9)
}

#[test]
fn two_processes_in_two_cgroups_are_told_apart() {
    let Some(fake) = Fake::build(&[]) else { return };
    let seen = first(&fake.monitor());
    assert_eq!(seen.state.to_string(), "NVML, driver 550.\\u{1b}[2J1, 2 GPU(s)");
    assert_eq!(seen.devices.len(), 2);
    let (a, b) = (seen.workloads["/a"], seen.workloads["/b"]);
    assert!(is_near(a.utilisation, 0.3), "the mean of two samples: {a:?}");
    assert!(is_near(a.memory_bandwidth, 0.2) && is_near(a.encoder, 0.02), "{a:?}");
    assert!(is_near(a.decoder, 0.01), "{a:?}");
    assert!(is_near(a.power_watts, 50.0), "200 W by 0.3 of 1.2: {a:?}");
    assert!(is_near(a.clock_ratio, 0.75) && is_near(a.throttled, 0.0), "{a:?}");
    assert_eq!(a.memory_bytes, Some(100));
    assert!(is_near(b.utilisation, 1.8) && is_near(b.power_watts, 350.0), "{b:?}");
    assert!(is_near(b.clock_ratio, 0.5) && is_near(b.throttled, 0.5), "{b:?}");
    assert_eq!(b.memory_bytes, Some(600));
    let [first, second] = [&seen.devices[0], &seen.devices[1]];
    assert_eq!((first.minor, second.minor), (Some(0), Some(1)));
    assert_eq!(first.users.as_deref(), Some(&["/a".to_owned(), "/b".to_owned()][..]));
    assert_eq!(second.users.as_deref(), Some(&["/b".to_owned()][..]));
    assert!(is_near(first.power_limit_watts, 250.5) && is_near(first.power_default_watts, 300.0));
}

#[test]
fn a_split_gpu_tells_memory_of_its_instances_and_says_that_use_is_not_told() {
    let Some(fake) = Fake::build(&["SPLIT"]) else { return };
    let seen = first(&fake.monitor());
    assert!(seen.state.shortfall().unwrap().contains("split by MIG"), "{}", seen.state);
    let a = seen.workloads["/a"];
    assert_eq!((a.memory_bytes, a.utilisation, a.power_watts), (Some(100), None, None));
    assert!(seen.tells_processes);
    assert_eq!(seen.devices[0].users, None, "whose use of the whole is whose is not told");
}

#[test]
fn processes_that_share_a_gpu_through_mps_are_found_once_and_it_is_said() {
    let Some(fake) = Fake::build(&["SHARED"]) else { return };
    let seen = first(&fake.monitor());
    assert!(seen.state.shortfall().unwrap().contains("MPS"), "{}", seen.state);
    assert_eq!(seen.workloads["/a"].memory_bytes, Some(100));
    let of = |path: &str| seen.workloads[path].utilisation;
    assert!(is_near(of("/mps"), 0.9), "what the server is charged stays with it: {:?}", of("/mps"));
    assert!(is_near(of("/b"), 0.9), "on the other GPU only: {:?}", of("/b"));
}

#[test]
fn a_driver_that_hangs_delays_nobody_and_what_it_said_before_is_not_told_on() {
    let Some(fake) = Fake::build(&[]) else { return };
    let monitor = fake.monitor();
    assert!(first(&monitor).state.is_known());
    let hang = fake.dir.path().join("hang");
    fs::write(&hang, "").unwrap();
    let until = Instant::now() + Duration::from_secs(30);
    let mut seen = monitor.latest();
    while seen.state.is_known() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
        seen = monitor.latest();
    }
    assert!(seen.state.reason().unwrap().contains("has not answered for"), "{}", seen.state);
    assert!(seen.devices.is_empty() && seen.workloads.is_empty());
    fs::remove_file(&hang).unwrap();
    while !seen.state.is_known() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
        seen = monitor.latest();
    }
    assert_eq!(seen.devices.len(), 2, "it answers again");
}

#[test]
fn a_process_that_ends_between_two_looks_is_nobodys_and_its_use_goes_with_it() {
    let Some(fake) = Fake::build(&[]) else { return };
    let monitor = fake.monitor();
    assert!(first(&monitor).workloads.contains_key("/a"));
    fs::remove_dir_all(fake.dir.path().join("proc/101")).unwrap();
    let until = Instant::now() + Duration::from_secs(30);
    let mut seen = monitor.latest();
    let is_on = |seen: &GpuSnapshot| !seen.state.is_known() || seen.workloads.contains_key("/a");
    while is_on(&seen) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
        seen = monitor.latest();
    }
    assert!(!seen.workloads.contains_key("/a") && seen.state.is_known(), "{:?}", seen.workloads);
    assert!(is_near(seen.workloads["/b"].utilisation, 1.8), "the others' use is theirs still");
}

#[test]
fn a_driver_that_tells_nothing_leaves_all_missing_and_says_so() {
    let Some(fake) = Fake::build(&["MUTE"]) else { return };
    let seen = first(&fake.monitor());
    let shortfall = seen.state.shortfall().unwrap();
    assert!(shortfall.contains("does not tell its processes"), "{shortfall}");
    assert!(seen.workloads.is_empty() && !seen.tells_processes);
    assert_eq!(seen.devices.len(), 2);
    assert_eq!(seen.devices[0].power_watts, None);
}

#[test]
fn a_gpu_lost_in_mid_run_degrades_the_state_and_the_others_go_on() {
    let Some(fake) = Fake::build(&[]) else { return };
    let monitor = fake.monitor();
    assert!(first(&monitor).state.shortfall().is_none());
    fs::write(fake.dir.path().join("lost"), "").unwrap();
    let until = Instant::now() + Duration::from_secs(30);
    let mut seen = monitor.latest();
    while seen.state.shortfall().is_none() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
        seen = monitor.latest();
    }
    assert!(seen.state.shortfall().unwrap().contains("GPU 1 has fallen off"), "{}", seen.state);
    assert_eq!(seen.devices.len(), 1);
    assert!(is_near(seen.workloads["/b"].utilisation, 0.9), "what GPU 0 tells");
    fs::remove_file(fake.dir.path().join("lost")).unwrap();
    while seen.devices.len() < 2 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
        seen = monitor.latest();
    }
    assert_eq!(seen.devices.len(), 2, "the loop goes on");
}

#[test]
fn without_a_library_the_reason_is_told() {
    let library = Some(PathBuf::from("/nonexistent/libnvidia-ml.so"));
    let monitor =
        GpuMonitor::start(Duration::from_secs(1), cgroups("/".as_ref()), library).unwrap();
    let seen = first(&monitor);
    assert_eq!(seen.state, Fact::absent("libnvidia-ml is not installed"));
    assert!(seen.devices.is_empty());
}

#[test]
fn the_monitor_answers_with_or_without_a_driver() {
    let monitor = GpuMonitor::start(Duration::from_secs(1), cgroups("/".as_ref()), None).unwrap();
    let seen = first(&monitor);
    assert!(seen.state.is_known() || seen.state.reason().is_some_and(|why| !why.is_empty()));
    assert_eq!(seen.devices.is_empty(), !seen.state.is_known());
}

#[test]
fn processes_are_found_in_the_hierarchy_that_names_workloads() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("proc/7")).unwrap();
    fs::write(root.path().join("proc/7/cgroup"), "1:cpu:/a\n0::/b\n").unwrap();
    let by = |controller| ProcessCgroups { root: root.path().to_path_buf(), controller };
    assert_eq!(by(Some("cpu")).of(7).as_deref(), Some("/a"));
    assert_eq!(by(None).of(7).as_deref(), Some("/b"));
    assert_eq!(by(None).of(8), None);
}
