//! What the files of real kernels say: v1 of Linux 6.18, v2 of Linux 6.1, cut to what is read.

use std::{fs, path::Path};

use super::{Moment, Reading, WorkloadFiles};
use crate::observe::{
    cgroup::{
        Layout, Look, Mode, Since, Version,
        held::DescriptorBudget,
        layout::{HIERARCHIES_MAX, Hierarchy},
    },
    pressure::HostCalm,
};

const MEMORY_STAT_V2: &str = "\
anon 29118464
file 132321280
kernel 11362304
sock 4096
shmem 40960
file_mapped 45289472
file_dirty 1216512
file_writeback 405504
inactive_anon 29081600
active_anon 77824
inactive_file 98656256
active_file 33624064
workingset_refault_anon 3
workingset_refault_file 77
pgscan 4410
pgsteal 4096
pgscan_kswapd 4000
pgscan_direct 410
pgsteal_kswapd 3900
pgsteal_direct 196
pgfault 91421
pgmajfault 402
";

const MEMORY_STAT_V1: &str = "\
cache 0
rss 0
inactive_file 0
dirty 0
pgfault 0
hierarchical_memory_limit 9223372036854771712
total_cache 8192
total_rss 16384
total_shmem 0
total_mapped_file 0
total_dirty 4096
total_writeback 12288
total_workingset_refault_anon 1
total_workingset_refault_file 2
total_pgpgin 600
total_pgpgout 300
total_pgfault 9
total_pgmajfault 1
total_inactive_anon 0
total_active_anon 16384
total_inactive_file 6144
total_active_file 2048
";

fn write(dir: &Path, files: &[(&str, &str)]) {
    fs::create_dir_all(dir).unwrap();
    for (name, text) in files {
        fs::write(dir.join(name), text).unwrap();
    }
}

fn layout(root: &Path, parts: &[(Version, &str, &[&str])]) -> Layout {
    let hierarchy = |(version, dir, controllers): &(Version, &str, &[&str])| Hierarchy {
        version: *version,
        dir: root.join(dir),
        controllers: controllers.iter().map(|&name| name.to_owned()).collect(),
    };
    Layout {
        mode: if parts.len() == 1 { Mode::Unified } else { Mode::Legacy },
        hierarchies: parts.iter().map(hierarchy).collect(),
        other_controllers: Vec::new(),
    }
}

fn open(layout: &Layout) -> WorkloadFiles {
    let mut inodes = [0; HIERARCHIES_MAX];
    inodes[..layout.hierarchies.len()].fill(1);
    WorkloadFiles::open(layout, "/w", &inodes, None, true, &DescriptorBudget::new(64))
}

fn read(files: &mut WorkloadFiles) -> Reading {
    files.read(true, &Moment::default(), &mut Vec::new()).unwrap()
}

#[test]
fn a_v2_cgroup_tells_all_of_its_memory_and_pressure() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("u/w");
    let pressure = "some avg10=0.00 avg60=0.00 avg300=0.00 total=900\n\
                    full avg10=0.00 avg60=0.00 avg300=0.00 total=400\n";
    let files = [
        ("cpu.stat", "usage_usec 5000\nuser_usec 3000\nsystem_usec 2000\nnr_periods 0\n"),
        ("memory.current", "161480704\n"),
        ("memory.max", "max\n"),
        ("memory.stat", MEMORY_STAT_V2),
        ("memory.events", "low 0\nhigh 4\nmax 7\noom 3\noom_kill 2\noom_group_kill 0\n"),
        ("memory.pressure", pressure),
        ("io.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=5\n"),
    ];
    write(&dir, &files);
    let layout = layout(root.path(), &[(Version::V2, "u", &["cpu", "memory", "io"])]);
    let seen = read(&mut open(&layout));
    assert_eq!(seen.cpu_system_ns, Some(2_000_000));
    assert_eq!(seen.memory_inactive_file_bytes, Some(98_656_256));
    assert_eq!(seen.memory_dirty_bytes, Some(1_216_512));
    assert_eq!(seen.memory_writeback_bytes, Some(405_504));
    assert_eq!(seen.memory_reclaims, Some(4_096), "the sum, not its parts again");
    assert_eq!((seen.oom_kills, seen.memory_limit_hits), (Some(2), Some(7)));
    assert_eq!(seen.pressure_some_us, [None, Some(900), Some(5)]);
    assert_eq!(seen.pressure_full_us, [None, Some(400), None], "no such line is no zero");
}

#[test]
fn a_v1_cgroup_tells_the_same_except_what_v1_does_not_count() {
    let root = tempfile::tempdir().unwrap();
    write(
        &root.path().join("cpu/w"),
        &[("cpuacct.usage", "7000000\n"), ("cpuacct.usage_sys", "2500000\n")],
    );
    let oom = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n";
    let memory = [
        ("memory.usage_in_bytes", "24576\n"),
        ("memory.limit_in_bytes", "9223372036854771712\n"),
        ("memory.stat", MEMORY_STAT_V1),
        ("memory.failcnt", "11\n"),
        ("memory.oom_control", oom),
    ];
    write(&root.path().join("memory/w"), &memory);
    let parts: [(Version, &str, &[&str]); 2] =
        [(Version::V1, "cpu", &["cpu", "cpuacct"]), (Version::V1, "memory", &["memory"])];
    let layout = layout(root.path(), &parts);
    let seen = read(&mut open(&layout));
    assert_eq!(seen.cpu_system_ns, Some(2_500_000));
    assert_eq!(seen.memory_bytes, Some(24_576));
    assert_eq!(seen.memory_inactive_file_bytes, Some(6_144));
    assert_eq!(seen.memory_dirty_bytes, Some(4_096));
    assert_eq!(seen.memory_writeback_bytes, Some(12_288));
    assert_eq!(seen.memory_reclaims, None);
    assert_eq!((seen.oom_kills, seen.memory_limit_hits), (Some(3), Some(11)));
    assert_eq!(seen.pressure_full_us, [None; 3]);
}

#[test]
fn old_kernels_tell_kernel_time_in_clock_ticks() {
    let root = tempfile::tempdir().unwrap();
    let files = [("cpuacct.usage", "7000000\n"), ("cpuacct.stat", "user 1\nsystem 4\n")];
    write(&root.path().join("cpu/w"), &files);
    let parts: [(Version, &str, &[&str]); 2] =
        [(Version::V1, "cpu", &["cpuacct"]), (Version::V1, "memory", &["memory"])];
    let layout = layout(root.path(), &parts);
    assert_eq!(read(&mut open(&layout)).cpu_system_ns, Some(40_000_000));
}

#[test]
fn kills_are_seen_at_once_although_there_is_no_limit() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("u/w");
    write(
        &dir,
        &[
            ("cpu.stat", "usage_usec 1\nsystem_usec 1\n"),
            ("memory.current", "4096\n"),
            ("memory.max", "max\n"),
            ("memory.events", "max 0\noom_kill 0\n"),
        ],
    );
    let layout = layout(root.path(), &[(Version::V2, "u", &["cpu", "memory"])]);
    let mut files = open(&layout);
    assert_eq!(read(&mut files).oom_kills, Some(0));
    write(&dir, &[("memory.current", "0\n"), ("memory.events", "max 0\noom_kill 1\n")]);
    assert_eq!(read(&mut files).oom_kills, Some(1));
}

/// How often the last reading holds before the files are to be read again.
fn n_held_of(files: &mut WorkloadFiles) -> usize {
    let moment = Moment::default();
    std::iter::repeat_with(|| files.look(Since::Nothing, &moment, &mut Vec::new()))
        .take(400)
        .take_while(|look| *look == Look::Same)
        .count()
}

#[test]
fn a_cgroup_that_does_not_run_is_read_again_when_others_change_it_or_after_a_while() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("u/w");
    let stat = |anon: u32| format!("anon {anon}\n");
    write(
        &dir,
        &[
            ("cpu.stat", "usage_usec 5000\n"),
            ("memory.current", "4096\n"),
            ("memory.max", "max\n"),
            ("memory.stat", &stat(1)),
            ("io.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=7\n"),
        ],
    );
    let layout = layout(root.path(), &[(Version::V2, "u", &["cpu", "memory"])]);
    let mut files = open(&layout);
    assert_eq!(n_held_of(&mut files), 0, "nothing was read yet");
    read(&mut files);
    write(&dir, &[("memory.stat", &stat(2))]);
    let n_quiet = n_held_of(&mut files);
    assert!((1..256).contains(&n_quiet), "{n_quiet}");
    assert_eq!(files.last().memory_anon_bytes, Some(1));
    assert_eq!(n_held_of(&mut files), 0, "it is due");
    assert_eq!(read(&mut files).memory_anon_bytes, Some(2));

    for (file, text) in [("memory.current", "8192\n"), ("memory.max", "16384\n")] {
        let look = files.look(Since::Nothing, &Moment::default(), &mut Vec::new());
        assert_eq!(look, Look::Same, "{file}");
        write(&dir, &[(file, text)]);
        let n_late = n_held_of(&mut files);
        assert!(n_late < 8, "{file}: {n_late}");
        read(&mut files);
    }
    assert_eq!(files.last().memory_max, Some(headroom_allocate::plan::Limit::At(16384.0)));
}

#[test]
fn limits_of_what_hardly_runs_are_read_every_so_often_and_of_what_runs_at_once() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("u/w");
    let usage = |us: u32| format!("usage_usec {us}\n");
    write(&dir, &[("cpu.stat", &usage(1)), ("cpu.max", "max 100000\n"), ("memory.max", "max\n")]);
    let layout = layout(root.path(), &[(Version::V2, "u", &["cpu", "memory"])]);
    let mut files = open(&layout);
    read(&mut files);
    write(&dir, &[("cpu.max", "50000 100000\n"), ("cpu.stat", &usage(40_001))]);
    let half = Some(headroom_allocate::plan::Limit::At(0.5));
    assert_eq!(read(&mut files).cpu_quota, half, "it ran for 40 ms");
    write(&dir, &[("cpu.max", "max 100000\n")]);
    let n_late = (0..100).take_while(|_read| read(&mut files).cpu_quota == half).count();
    assert!((1..8).contains(&n_late), "{n_late}");
    write(&dir, &[("cpu.max", "50000 100000\n")]);
    let moment = Moment { is_thorough: true, ..Moment::default() };
    assert_eq!(files.read(true, &moment, &mut Vec::new()).unwrap().cpu_quota, half);
}

#[test]
fn limits_are_not_read_while_nobody_writes_them() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("u/w");
    let usage = |us: u32| format!("usage_usec {us}\n");
    let said = |quota: &str, us: u32| {
        write(&dir, &[("cpu.stat", &usage(us)), ("cpu.max", quota), ("memory.max", "max\n")]);
    };
    said("max 100000\n", 1);
    let layout = layout(root.path(), &[(Version::V2, "u", &["cpu", "memory"])]);
    let mut files = open(&layout);
    let mut inodes = [0; HIERARCHIES_MAX];
    inodes[0] = 1;
    assert_eq!(files.limit_dirs(&layout, "/w", &inodes, None), std::slice::from_ref(&dir));
    files.limits_told(true);
    read(&mut files);
    let half = Some(headroom_allocate::plan::Limit::At(0.5));
    // Nobody can write one so; it shows what is read.
    said("50000 100000\n", 1_000_000);
    let n_held = (2..400).take_while(|second| {
        write(&dir, &[("cpu.stat", &usage(second * 1_000_000))]);
        read(&mut files).cpu_quota != half
    });
    let n_held = n_held.count();
    assert!((8..256).contains(&n_held), "{n_held}: now and then they are read all the same");

    said("max 100000\n", 999_000_000);
    files.limits_written();
    assert_eq!(files.look(Since::Nothing, &Moment::default(), &mut Vec::new()), Look::Stale);
    let free = Some(headroom_allocate::plan::Limit::Unlimited);
    assert_eq!(read(&mut files).cpu_quota, free, "it was told");
    said("50000 100000\n", 999_000_001);
    assert!(n_held_of(&mut files) > 8, "one that does not run is not asked either");
    files.limits_told(false);
    assert!(n_held_of(&mut files) < 8, "nobody tells any more");
}

#[test]
fn what_ran_for_a_moment_is_told_its_cpu_time_without_its_files() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("u/w");
    let usage = |us: u32| format!("usage_usec {us}\n");
    let pressure = |us: u32| format!("some avg10=0.00 avg60=0.00 avg300=0.00 total={us}\n");
    let memory = ("memory.current", "4096\n");
    write(&dir, &[("cpu.stat", &usage(5_000)), memory, ("cpu.pressure", &pressure(7))]);
    let layout = layout(root.path(), &[(Version::V2, "u", &["cpu", "memory"])]);
    let mut files = open(&layout);
    read(&mut files);
    let moment = Moment { tells_children: true, ..Moment::default() };
    let look = |files: &mut WorkloadFiles, has_waited| {
        files.look(Since::RanLittle { ran_ns: 20_000, has_waited }, &moment, &mut Vec::new())
    };
    write(&dir, &[("cpu.pressure", &pressure(9))]);
    assert_eq!(look(&mut files, false), Look::Times);
    assert_eq!(files.last().cpu_usage_ns, Some(5_020_000));
    assert_eq!(files.last().pressure_some_us[0], Some(7));
    assert_eq!(look(&mut files, true), Look::Times);
    assert_eq!(files.last().pressure_some_us[0], Some(9), "its tasks waited");
    write(&dir, &[("memory.current", "8192\n")]);
    let n_late = (0..100).take_while(|_look| look(&mut files, false) == Look::Times).count();
    assert!(n_late < 8, "{n_late}: its memory is looked at every so often");

    // The file's clock is behind the one that told meanwhile.
    write(&dir, &[("cpu.stat", &usage(5_030))]);
    let told = files.last().cpu_usage_ns;
    assert_eq!(read(&mut files).cpu_usage_ns, told, "time does not go back");
    assert_eq!(read(&mut files).cpu_usage_ns, told, "nor as long as the file is behind");
    write(&dir, &[("cpu.stat", &usage(5_900))]);
    assert_eq!(read(&mut files).cpu_usage_ns, Some(5_900_000));
    write(&dir, &[("cpu.stat", &usage(5_899))]);
    assert_eq!(read(&mut files).cpu_usage_ns, Some(5_899_000), "a counter that goes back is told");

    fs::create_dir(dir.join("child")).unwrap();
    files.disturb();
    assert_eq!(look(&mut files, false), Look::Stale, "children may run on its account");
}

/// What `io.pressure` says after `total` microseconds.
fn stalled(total: u32) -> String {
    format!("some avg10=0.00 avg60=0.00 avg300=0.00 total={total}\n")
}

/// Files of a cgroup `u/w` that has waited for I/O for `total` microseconds.
fn files_stalled(root: &tempfile::TempDir, total: u32) -> WorkloadFiles {
    let files = [("cpu.stat", "usage_usec 5000\n"), ("io.pressure", &stalled(total))];
    write(&root.path().join("u/w"), &files);
    open(&layout(root.path(), &[(Version::V2, "u", &["cpu", "memory"])]))
}

#[test]
fn pressure_is_not_read_while_nobody_on_the_host_feels_any() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("u/w");
    let mut files = files_stalled(&root, 7);
    let mut calm = HostCalm::default();
    calm.note([None, None, Some(50)], 1.0);
    let mut at = |at_s: f64, calm: HostCalm| {
        let moment = Moment { at_s, calm, ..Moment::default() };
        files.read(true, &moment, &mut Vec::new()).unwrap().pressure_some_us[2]
    };
    at(2.0, calm);
    // Nothing real changes so; it shows what is read.
    write(&dir, &[("io.pressure", &stalled(8))]);
    assert_eq!(at(4.0, calm), Some(8), "what was read soon after a stall may lack it");
    write(&dir, &[("io.pressure", &stalled(9))]);
    assert_eq!(at(5.0, calm), Some(8));
    calm.note([None, None, Some(51)], 6.0);
    assert_eq!(at(6.0, calm), Some(9));
}

#[test]
fn a_stall_without_running_and_children_are_not_passed_over() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("u/w");
    let mut files = files_stalled(&root, 7);
    read(&mut files);
    write(&dir, &[("io.pressure", &stalled(9))]);
    let look = files.look(Since::Nothing, &Moment::default(), &mut Vec::new());
    assert_eq!((look, files.last().pressure_some_us[2]), (Look::Times, Some(9)));
    assert!(n_held_of(&mut files) > 0);

    read(&mut files);
    fs::create_dir(dir.join("child")).unwrap();
    files.disturb();
    assert_eq!(n_held_of(&mut files), 0, "children may run on its account");
}

#[test]
fn a_controller_is_looked_for_where_it_is() {
    let root = tempfile::tempdir().unwrap();
    write(&root.path().join("m/w"), &[("memory.usage_in_bytes", "4096\n")]);
    write(&root.path().join("u/w"), &[("memory.current", "1\n"), ("memory.high", "2\n")]);
    let parts: [(Version, &str, &[&str]); 2] =
        [(Version::V1, "m", &["memory"]), (Version::V2, "u", &[])];
    let mut files = open(&layout(root.path(), &parts));
    let reading = read(&mut files);
    assert_eq!((reading.memory_bytes, reading.memory_high), (Some(4096), None));
}
