//! Names that only a hostile or careless user gives: cgroups with control characters as long as the
//! kernel allows, programs whose names are no text.

use std::{ffi::CString, fs, os::unix::ffi::OsStrExt as _};

use headroom_agent::observe::{
    ObserveConfig, Sampler,
    kernel::{KernelEvent, Topic},
};

use super::{
    workload::{self, Child},
    world::{World, skip_unless},
};

/// Longest name of a directory, bytes.
const NAME_BYTES: usize = 255;

/// Every character that the kernel lets a cgroup have and a terminal would obey.
fn hostile_name() -> String {
    let controls: String = (1..32_u8).map(char::from).filter(|c| *c != '\n').collect();
    let start = format!("{controls}\u{7f}\u{1b}[2J\"'\\%,; \u{202e}\u{e9}");
    let rest = NAME_BYTES - start.len();
    start + &"x".repeat(rest)
}

#[test]
fn cgroups_with_hostile_names_are_told_and_sampled_whole() {
    let Some(mut world) = World::new(&[Topic::CgroupEvents, Topic::Syscalls]) else { return };
    let path = format!("/headroom-test-{}-names/{}", std::process::id(), hostile_name());
    let cgroup = world.cgroup_at(&path);
    Child::fork(|| workload::call(libc::SYS_getppid)).run_in(&cgroup);
    let id = world.task_id(&cgroup);
    let made = KernelEvent::CgroupMade { id, path: path.clone() };
    assert!(world.probes_mut().drain_events().contains(&made), "{made:?}");
    assert!(world.counters(&cgroup).syscalls.iter().sum::<u64>() >= 2);

    let child = Child::fork(|| workload::sleep_for(500_000_000));
    cgroup.add(child.pid());
    child.let_go();
    let config = ObserveConfig { gpu: false, probes: false, ..ObserveConfig::default() };
    let tick = Sampler::start(&config).unwrap().sample(0.0);
    assert!(tick.workloads.iter().any(|(workload, _)| workload.path == path), "not among them");
    assert_eq!(child.reap(), 0);
}

#[test]
fn a_program_whose_name_is_no_text_is_told_as_far_as_it_is() {
    let Some(mut world) = World::new(&[Topic::Execs]) else { return };
    if fs::canonicalize("/bin/true").is_ok_and(|file| !file.ends_with("true")) {
        return skip_unless(false, "programs here go by their names (busybox)");
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(std::ffi::OsStr::from_bytes(b"\xff\x01\xfeodd"));
    fs::copy("/bin/true", &file).unwrap();
    let program = CString::new(file.as_os_str().as_bytes()).unwrap();
    let cgroup = world.cgroup("comm");
    Child::fork(|| workload::run(&program)).run_in(&cgroup);
    let id = world.task_id(&cgroup);
    let told = world.probes_mut().drain_events();
    let is_it = |event: &KernelEvent| {
        matches!(event, KernelEvent::Exec { id: found, comm, .. }
            if *found == id && comm == "\u{fffd}\u{1}\u{fffd}odd")
    };
    assert!(told.iter().any(is_it), "{told:?}");
}
