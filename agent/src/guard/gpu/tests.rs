//! The GPUs' knobs against a library that stands in for the driver's, with the process as a thread.

use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use headroom_allocate::Device;
use tempfile::TempDir;

use super::{
    FLOOR_FILE, FLOOR_RANGE_FILE, GpuError, Gpus, MAJOR, POWER_FILE, POWER_RANGE_FILE, USERS_FILE,
    actor, numbers_of, talk::Talk, users_of,
};

const FIRST: Device = Device { major: MAJOR, minor: 0 };
const SECOND: Device = Device { major: MAJOR, minor: 1 };

struct Fake {
    dir: TempDir,
    library: PathBuf,
}

impl Fake {
    /// Compiles the stand-in; `None`, after saying why, where there is no compiler.
    fn build() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let library = dir.path().join("libnvidia-ml.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/observe/gpu/stand_in.c");
        let at =
            |name: &str, file: &str| format!("-D{name}=\"{}\"", dir.path().join(file).display());
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-w", "-DSPLIT=0", "-DMUTE=0", "-DSHARED=0", "-o"])
            .arg(&library)
            .args([at("LOST", "lost"), at("HANG", "hang"), at("STATE", "")])
            .arg(source)
            .output();
        match built {
            Ok(output) if output.status.success() => Some(Self { dir, library }),
            Ok(output) => panic!("{}", String::from_utf8_lossy(&output.stderr)),
            Err(error) => {
                println!("skipped: no C compiler to build a stand-in for NVML with: {error}");
                None
            }
        }
    }

    /// Guards and their process, here a thread.
    fn gpus(&self) -> Gpus {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let library = self.library.clone();
        thread::spawn(move || actor::serve(theirs, Some(&library)));
        let gpus = Gpus::talking(Talk::over(ours), None);
        gpus.await_ready(Duration::from_secs(20));
        gpus
    }

    fn file(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join(name)).unwrap_or_default().trim().to_owned()
    }
}

fn numbers(gpus: &Gpus, file: &str, device: Device) -> Option<Vec<u64>> {
    numbers_of(&gpus.read(file).unwrap(), device)
}

#[test]
fn limits_floors_and_their_ranges_are_read_written_and_given_back() {
    let Some(fake) = Fake::build() else { return };
    let gpus = fake.gpus();
    assert_eq!(numbers(&gpus, POWER_FILE, FIRST), Some(vec![250_500]));
    assert_eq!(numbers(&gpus, POWER_RANGE_FILE, SECOND), Some(vec![100_000, 350_000]));
    assert_eq!(numbers(&gpus, FLOOR_RANGE_FILE, FIRST), Some(vec![2_000]));
    assert_eq!(numbers(&gpus, FLOOR_FILE, FIRST), Some(vec![0]));
    gpus.write(POWER_FILE, "195:0 300000").unwrap();
    gpus.write(FLOOR_FILE, "195:0 1500").unwrap();
    assert_eq!(numbers(&gpus, POWER_FILE, FIRST), Some(vec![300_000]));
    assert_eq!(numbers(&gpus, POWER_FILE, SECOND), Some(vec![250_500]));
    assert_eq!(numbers(&gpus, FLOOR_FILE, FIRST), Some(vec![1_500]));
    assert_eq!((fake.file("power0"), fake.file("floor0")), ("300000".into(), "1500".into()));
    gpus.write(FLOOR_FILE, "195:0 0").unwrap();
    assert_eq!(
        (numbers(&gpus, FLOOR_FILE, FIRST), fake.file("floor0")),
        (Some(vec![0]), "0".into())
    );
}

#[test]
fn what_the_driver_refuses_changes_nothing() {
    let Some(fake) = Fake::build() else { return };
    let gpus = fake.gpus();
    let no = gpus.write(POWER_FILE, "195:0 900000").unwrap_err();
    assert!(matches!(no, GpuError::Failed(_)), "{no}");
    gpus.write(FLOOR_FILE, "195:0 1200").unwrap();
    assert!(gpus.write(FLOOR_FILE, "8:0 x").is_err() && gpus.write(USERS_FILE, "195:0 1").is_err());
    assert_eq!(numbers(&gpus, FLOOR_FILE, FIRST), Some(vec![1_200]));
    let lost = gpus.write(POWER_FILE, "195:7 200000").unwrap_err();
    assert!(matches!(lost, GpuError::Lost(7)), "{lost}");
}

#[test]
fn a_gpu_that_falls_off_the_bus_is_lost_and_the_other_goes_on() {
    let Some(fake) = Fake::build() else { return };
    let gpus = fake.gpus();
    fs::write(fake.dir.path().join("lost"), "").unwrap();
    assert_eq!(numbers(&gpus, POWER_FILE, SECOND), None);
    assert!(matches!(gpus.write(POWER_FILE, "195:1 200000"), Err(GpuError::Lost(1))));
    assert_eq!(numbers(&gpus, POWER_FILE, FIRST), Some(vec![250_500]));
}

#[test]
fn a_driver_that_hangs_is_given_up_and_left_alone() {
    let Some(fake) = Fake::build() else { return };
    let gpus = fake.gpus();
    let hang = fake.dir.path().join("hang");
    fs::write(&hang, "").unwrap();
    let no = gpus.write(POWER_FILE, "195:0 200000").unwrap_err();
    assert!(no.to_string().contains("does not answer"), "{no}");
    fs::remove_file(&hang).unwrap();
    for _try in 0..1_000 {
        let left_alone = gpus.read(POWER_FILE).unwrap_err();
        assert_eq!(left_alone.to_string(), no.to_string(), "it would answer, and is not asked");
    }
}

#[test]
fn the_users_are_the_cgroups_of_its_processes() {
    let Some(fake) = Fake::build() else { return };
    let gpus = fake.gpus();
    let pids = fake.dir.path().join("pids0");
    fs::write(&pids, "").unwrap();
    let users = |gpus: &Gpus| gpus.read(USERS_FILE).unwrap();
    assert_eq!(users_of(&users(&gpus), FIRST), Some(vec![]));
    fs::write(&pids, format!("{} 4294967294", std::process::id())).unwrap();
    let text = users(&gpus);
    let found = users_of(&text, FIRST);
    assert_eq!(found.map_or(1, |paths| paths.len()), 1, "one that has ended is nobody: {text}");
}

#[test]
fn a_list_of_processes_that_fails_leaves_the_users_unknown() {
    let Some(fake) = Fake::build() else { return };
    let gpus = fake.gpus();
    let write = |file: &str, text: &str| fs::write(fake.dir.path().join(file), text).unwrap();
    let n_users = || {
        let text = gpus.read(USERS_FILE).unwrap();
        users_of(&text, FIRST).map(|users| users.len())
    };
    write("pids0", &std::process::id().to_string());
    assert_eq!(n_users(), Some(1));
    for list in ["graphics0", "mps0"] {
        write(list, "3");
        assert_eq!(n_users(), Some(1), "{list}: the hardware has none such");
        write(list, "4");
        assert_eq!(n_users(), None, "{list}: somebody may be on it who is not listed");
        write(list, "0");
    }
}

#[test]
fn without_a_library_the_reason_is_told_and_nobody_asks_again_for_a_while() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let library = PathBuf::from("/nonexistent/libnvidia-ml.so");
    thread::spawn(move || actor::serve(theirs, Some(&library)));
    let gpus = Gpus::talking(Talk::over(ours), None);
    gpus.await_ready(Duration::from_secs(20));
    for _try in 0..2 {
        let error = gpus.read(POWER_FILE).unwrap_err();
        assert!(matches!(error, GpuError::Absent(_)), "{error}");
    }
}

#[test]
fn lines_are_found_by_the_whole_device() {
    let text = "195:0 5\n195:10 7 8\n195:1\t/a b\t/c\n195:2\t?\n195:3";
    let of = |minor| Device { major: MAJOR, minor };
    assert_eq!(numbers_of(text, of(0)), Some(vec![5]));
    assert_eq!(numbers_of(text, of(10)), Some(vec![7, 8]));
    assert_eq!(users_of(text, of(1)), Some(vec!["/a b", "/c"]));
    assert_eq!(users_of(text, of(2)), None);
    assert_eq!(users_of(text, of(3)), Some(vec![]));
    assert_eq!(users_of(text, of(4)), None);
}
