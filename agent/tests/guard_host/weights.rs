//! Weights of block I/O by a real guard over a real disk: the file that its weigher goes by. The disk is
//! that of the virtual machine, and elsewhere a loop device of the test's own.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use headroom_agent::{
    guard::{Response, protocol::Failure},
    observe::cgroup::Version,
};
use headroom_allocate::{Device, Knob};
use rustix::process::Signal;

use crate::place::{Cgroup, Guard, Place, apply, text};

const POLICY: &str = "[[allow]]\npath='/headroom-test-guard-*'\nmode='raise'\n\
    changes_per_minute=1000\nknobs=['io_weight']";

/// A disk whose scheduler nobody else minds; as it was when dropped.
struct Disk {
    queue: PathBuf,
    device: Device,
    scheduler: String,
    looped: Option<String>,
    /// What the device is made of; removed after it.
    _backing: Option<tempfile::NamedTempFile>,
}

impl Disk {
    fn find() -> Result<Self, String> {
        if env::var_os("HEADROOM_IN_VM").is_some() {
            let disks = fs::read_dir("/sys/block").map_err(|error| error.to_string())?;
            let backed = disks.flatten().map(|entry| entry.path());
            let disk = backed.into_iter().find(|dir| dir.join("device").exists());
            return Self::at(&disk.ok_or("the virtual machine has no disk")?, None, None);
        }
        let backing = tempfile::NamedTempFile::new().map_err(|error| error.to_string())?;
        backing.as_file().set_len(16 << 20).map_err(|error| error.to_string())?;
        let mut losetup = Command::new("losetup");
        let made = losetup.args(["--find", "--show"]).arg(backing.path()).output();
        let made = made.map_err(|error| format!("losetup: {error}"))?;
        let device = String::from_utf8_lossy(&made.stdout).trim().to_owned();
        let Some(name) = device.strip_prefix("/dev/") else {
            return Err(format!("losetup: {}", String::from_utf8_lossy(&made.stderr).trim()));
        };
        let dir = Path::new("/sys/block").join(name);
        Self::at(&dir, Some(device.clone()), Some(backing))
    }

    fn at(
        dir: &Path,
        looped: Option<String>,
        backing: Option<tempfile::NamedTempFile>,
    ) -> Result<Self, String> {
        let queue = dir.join("queue/scheduler");
        let device =
            text(&dir.join("dev")).trim().parse().map_err(|_no| "no numbers".to_owned())?;
        let said = text(&queue);
        let scheduler = said.split(['[', ']']).nth(1).unwrap_or("none").to_owned();
        let disk = Self { queue, device, scheduler, looped, _backing: backing };
        if said.contains("bfq") { Ok(disk) } else { Err("the kernel has no BFQ".to_owned()) }
    }

    fn schedule(&self, scheduler: &str) {
        fs::write(&self.queue, scheduler).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.schedule(&self.scheduler);
        if let Some(device) = &self.looped {
            assert!(Command::new("losetup").args(["-d", device]).status().unwrap().success());
        }
    }
}

/// A cgroup, a disk on BFQ, and where the weights of the disk are; or why there are none.
fn ready() -> Result<(Cgroup, Disk, PathBuf), String> {
    let cgroup = Cgroup::new()?;
    let disk = Disk::find()?;
    disk.schedule("bfq");
    let name = match cgroup.version {
        Version::V1 => "blkio.bfq.weight_device",
        Version::V2 => "io.bfq.weight",
    };
    let file = cgroup.file(name).ok_or(format!("no {name}: its controller is not on"))?;
    Ok((cgroup, disk, file))
}

fn refusal(guard: &mut Guard, cgroup: &Cgroup, knob: Knob) -> String {
    match guard.ask(&apply(&cgroup.path, knob, 300.0, 60.0)) {
        Response::Failed { kind: Failure::NoKnob, text } => text,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_weight_goes_to_the_file_that_its_disk_obeys_and_comes_back() {
    let (cgroup, disk, file) = match ready() {
        Ok(ready) => ready,
        Err(reason) => {
            eprintln!("skipped: {reason}");
            return;
        }
    };
    let before = text(&file);
    let place = Place::new(POLICY);
    let mut guard = place.start();
    let knob = Knob::IoWeightOf(disk.device);

    guard.apply(&cgroup, knob, 300.0, 60.0);
    let weight = format!("{} 300", disk.device);
    assert!(text(&file).contains(&weight), "{}", text(&file));
    guard.end(Signal::KILL);
    assert!(text(&file).contains(&weight));
    let mut guard = place.start();
    assert_eq!(text(&file), before, "given back after a crash");

    guard.apply(&cgroup, knob, 300.0, 60.0);
    disk.schedule("none");
    let why = refusal(&mut guard, &cgroup, knob);
    assert!(why.contains("by nobody (its scheduler is none)"), "{why}");
    assert_eq!(guard.status().leases_held, 0);
    disk.schedule("bfq");
    assert_eq!(text(&file), before);
    guard.end(Signal::TERM);
}

#[test]
fn the_weight_of_all_disks_follows_bfq_and_iocost() {
    let (cgroup, disk, file) = match ready() {
        Ok(ready) => ready,
        Err(reason) => {
            eprintln!("skipped: {reason}");
            return;
        }
    };
    if disk.looped.is_some() || cgroup.version == Version::V1 {
        eprintln!("skipped: schedulers of all disks are switched in a virtual machine only");
        return;
    }
    let before = text(&file);
    let place = Place::new(POLICY);
    let mut guard = place.start();
    guard.apply(&cgroup, Knob::IoWeight, 250.0, 60.0);
    assert_eq!(text(&file).trim(), "default 250");

    let Some(iocost) = cgroup.file("io.weight") else {
        eprintln!("skipped: the kernel has no iocost");
        guard.end(Signal::TERM);
        assert_eq!(text(&file), before);
        return;
    };
    assert_eq!(text(&iocost).trim(), "default 100");
    let switch = |on: u8| {
        fs::write("/sys/fs/cgroup/io.cost.qos", format!("{} enable={on}", disk.device)).unwrap();
    };
    switch(1);
    guard.apply(&cgroup, Knob::IoWeight, 250.0, 60.0);
    assert_eq!((text(&file), text(&iocost).trim()), (before.clone(), "default 250"));
    guard.end(Signal::KILL);
    switch(0);
    let mut guard = place.start();
    assert_eq!(text(&iocost).trim(), "default 100", "given back to the file it was in");

    disk.schedule("none");
    let why = refusal(&mut guard, &cgroup, Knob::IoWeight);
    assert!(why.contains("the scheduler bfq or iocost would"), "{why}");
    guard.end(Signal::TERM);
    assert_eq!(text(&file), before);
}
