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
const LIBRARY: &str = r#"
#include <stdio.h>
#include <string.h>
#include <unistd.h>
typedef unsigned u; typedef unsigned long long ull;
struct utilization { u gpu, memory; };
struct memory { u version; ull total, reserved, free, used; };
struct process { u pid; ull bytes; u gpu_instance, compute_instance; };
struct sample { u pid; ull at; u sm, mem, enc, dec; };
static int gpus[2]; static int instances[2];
static long number(void *d) { return d == &gpus[1] || d == &instances[1]; }
static int is_instance(void *d) { return d == &instances[0] || d == &instances[1]; }
#define CHECK(d) do { if (number(d) && access(LOST, F_OK) == 0) return 15; if (MUTE) return 3; } while (0)
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetDriverVersion(char *v, u n) { snprintf(v, n, "550.\x1b[2J1"); return 0; }
int nvmlDeviceGetCount_v2(u *n) { *n = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(u i, void **d) { *d = &gpus[i]; return 0; }
int nvmlDeviceGetName(void *d, char *s, u n) { CHECK(d); snprintf(s, n, "Fake %ld", number(d)); return 0; }
int nvmlDeviceGetUUID(void *d, char *s, u n) { CHECK(d); snprintf(s, n, "GPU-%ld", number(d)); return 0; }
int nvmlDeviceGetUtilizationRates(void *d, struct utilization *r) { CHECK(d); r->gpu = 80; r->memory = 40; return 0; }
int nvmlDeviceGetMemoryInfo_v2(void *d, struct memory *m) { CHECK(d); m->total = 1000; m->reserved = 0; m->free = 400; m->used = 600; return 0; }
int nvmlDeviceGetPowerUsage(void *d, u *mw) { CHECK(d); while (access(HANG, F_OK) == 0) usleep(1000); *mw = 200000; return 0; }
int nvmlDeviceGetClockInfo(void *d, u kind, u *mhz) { CHECK(d); *mhz = number(d) ? 500 : 1500; return 0; }
int nvmlDeviceGetMaxClockInfo(void *d, u kind, u *mhz) { CHECK(d); *mhz = 2000; return 0; }
int nvmlDeviceGetCurrentClocksThrottleReasons(void *d, ull *r) { CHECK(d); *r = number(d) ? 4 : 1; return 0; }
int nvmlDeviceGetMigMode(void *d, u *now, u *next) { CHECK(d); *now = *next = SPLIT; return 0; }
int nvmlDeviceGetMaxMigDeviceCount(void *d, u *n) { CHECK(d); *n = 7; return 0; }
int nvmlDeviceGetMigDeviceHandleByIndex(void *d, u i, void **m) { CHECK(d); if (i > 0) return 6; *m = &instances[number(d)]; return 0; }
static int answer(struct process *from, u have, u *n, struct process *to) {
  if (*n < have) { *n = have; return have ? 7 : 0; }
  if (have) memcpy(to, from, have * sizeof *from);
  *n = have; return 0;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *d, u *n, struct process *p) {
  CHECK(d);
  /* Split, the GPU as a whole tells only a privileged caller; its instances tell everybody. */
  if (SPLIT && !is_instance(d)) return 4;
  struct process both[2] = { { 101, 100, 0, 0 }, { 102, 300, 0, 0 } };
  return number(d) ? answer(both + 1, 1, n, p) : answer(both, 2, n, p);
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *d, u *n, struct process *p) {
  CHECK(d); return answer(0, 0, n, p);
}
int nvmlDeviceGetMPSComputeRunningProcesses_v3(void *d, u *n, struct process *p) {
  CHECK(d); struct process client = { 101, 100, 0, 0 };
  return answer(&client, SHARED && !number(d), n, p);
}
int nvmlDeviceGetProcessUtilization(void *d, struct sample *s, u *n, ull since) {
  static ull at = 1000;
  CHECK(d);
  if (SPLIT) return 3;
  if (!s) { *n = 3; return 7; }
  at += 10;
  struct sample first[3] = { { 101, at, 20, 10, 4, 0 }, { 101, at + 1, 40, 30, 0, 2 }, { 102, at, 90, 50, 0, 0 } };
  if (SHARED && !number(d)) first[2].pid = 103;
  memcpy(s, first, sizeof first);
  if (number(d)) { s[0] = first[2]; *n = 1; } else *n = 3;
  return 0;
}
"#;

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
        let [lost, hang] = [("LOST", "lost"), ("HANG", "hang")]
            .map(|(name, file)| format!("-D{name}=\"{}\"", dir.path().join(file).display()));
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-w", "-o"])
            .arg(&library)
            .args(defaults)
            .args([lost, hang])
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
}

#[test]
fn a_split_gpu_tells_memory_of_its_instances_and_says_that_use_is_not_told() {
    let Some(fake) = Fake::build(&["SPLIT"]) else { return };
    let seen = first(&fake.monitor());
    assert!(seen.state.shortfall().unwrap().contains("split by MIG"), "{}", seen.state);
    let a = seen.workloads["/a"];
    assert_eq!((a.memory_bytes, a.utilisation, a.power_watts), (Some(100), None, None));
    assert!(seen.tells_processes);
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
