//! A real guard, its real process for NVML, and a library that stands in for the driver's: a workload
//! alone on a GPU, one that is not alone, deaths, and a driver that hangs.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

use headroom_agent::guard::{Request, Response};
use headroom_allocate::{Device, Knob, Limit};
use rustix::process::Signal;

use crate::place::{Cgroup, Place, apply, text, until};

const GPU: Device = Device { major: 195, minor: 0 };
const POWER: Knob = Knob::GpuPowerLimit(GPU);
const FLOOR: Knob = Knob::GpuClockFloor(GPU);

/// A process in a cgroup; killed when dropped.
struct Sleeper(Child);

impl Sleeper {
    fn within(cgroup: &Cgroup) -> Self {
        let child = Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap();
        fs::write(cgroup.cpu.join("cgroup.procs"), child.id().to_string()).unwrap();
        Self(child)
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A guard's place with a stand-in for the driver in it; or why there is none.
fn place() -> Result<Place, String> {
    let place = Place::new("");
    let dir = place.dir.path();
    let library = dir.join("libnvidia-ml.so");
    let at = |name: &str, file: &str| format!("-D{name}=\"{}\"", dir.join(file).display());
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-w", "-DSPLIT=0", "-DMUTE=0", "-DSHARED=0", "-o"])
        .arg(&library)
        .args([at("LOST", "lost"), at("HANG", "hang"), at("STATE", "")])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/observe/gpu/stand_in.c"))
        .status()
        .map_err(|error| format!("no C compiler to build a stand-in for NVML with: {error}"))?;
    assert!(built.success());
    let policy = format!(
        "[gpu]\non=true\nlibrary='{}'\n[[allow]]\npath='/headroom-test-guard-*'\nmode='reclaim'\n\
         knobs=['gpu_power_limit','gpu_clock_floor']",
        library.display()
    );
    let config = place.file("guard.toml");
    fs::write(&config, text(&config) + &policy).unwrap();
    Ok(place)
}

fn driver(place: &Place) -> (String, String) {
    let said = |name: &str| text(&place.file(name)).trim().to_owned();
    (said("power0"), said("floor0"))
}

#[test]
fn a_gpu_is_moved_for_its_only_user_and_given_back_whoever_dies() {
    if !Path::new(env!("CARGO_BIN_EXE_headroom-agent")).exists() {
        println!("skipped: the agent's program is not here, and only it can call NVML");
        return;
    }
    let cgroup = cgroup_or_skip!();
    let place = match place() {
        Ok(place) => place,
        Err(reason) => {
            println!("skipped: {reason}");
            return;
        }
    };
    let (user, stranger) = (Sleeper::within(&cgroup), std::process::id());
    let pids = place.file("pids0");
    fs::write(&pids, user.0.id().to_string()).unwrap();
    let own = ("250500".to_owned(), "0".to_owned());

    let mut guard = place.start();
    // The library is opened beside; asked again until it is.
    until(20, "the driver is there", || {
        matches!(guard.ask(&apply(&cgroup.path, POWER, 300.0, 60.0)), Response::Applied(_))
    });
    assert_eq!(guard.apply(&cgroup, FLOOR, 9e9, 60.0).applied, Limit::At(2_000.0), "its highest");
    assert_eq!(driver(&place), ("300000".to_owned(), "2000".to_owned()));
    let least = guard.apply(&cgroup, POWER, 1.0, 60.0);
    assert_eq!(least.applied, Limit::At(125.0), "half of its own is left: {least:?}");

    fs::write(&pids, format!("{} {stranger}", user.0.id())).unwrap();
    until(10, "a GPU that is shared is let go", || driver(&place) == own);
    match guard.ask(&apply(&cgroup.path, POWER, 200.0, 60.0)) {
        Response::Refused { rule, .. } => assert_eq!(rule, "shared"),
        other => panic!("{other:?}"),
    }
    fs::write(&pids, user.0.id().to_string()).unwrap();

    guard.apply(&cgroup, POWER, 200.0, 60.0);
    guard.apply(&cgroup, FLOOR, 1500.0, 60.0);
    guard.end(Signal::KILL);
    assert_eq!(
        driver(&place),
        ("200000".to_owned(), "1500".to_owned()),
        "drivers keep what they are told"
    );
    let done = place.restore();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(driver(&place), own);

    let mut guard = place.start();
    until(20, "the driver is there", || {
        matches!(guard.ask(&apply(&cgroup.path, FLOOR, 900.0, 60.0)), Response::Applied(_))
    });
    fs::write(place.file("hang"), "").unwrap();
    assert!(matches!(guard.ask(&apply(&cgroup.path, POWER, 300.0, 60.0)), Response::Failed { .. }));
    assert_eq!(guard.status().leases_held, 1, "the guard goes on, and forgets nothing");
    fs::remove_file(place.file("hang")).unwrap();
    guard.end(Signal::KILL);
    drop(user);
    let mut guard = place.start();
    assert_eq!(driver(&place), own, "given back although its workload has ended");
    guard.ask(&Request::ReleaseAll);
}
