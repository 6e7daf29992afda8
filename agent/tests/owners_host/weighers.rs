//! Who shares the machine's disk out by weights: iocost, or BFQ, whose file systemd writes rescaled.

use std::{fs, path::PathBuf};

use headroom_allocate::Knob;
use rustix::process::Signal;

use super::{Place, Unit, raise, release_all, sh, text};

/// The first disk with something behind it.
fn disk() -> PathBuf {
    let mut disks = fs::read_dir("/sys/block").unwrap().map(|entry| entry.unwrap().path());
    disks.find(|dir| dir.join("device").exists()).unwrap()
}

/// iocost on the machine's disk; off again when dropped.
pub(super) struct Iocost {
    numbers: String,
}

impl Iocost {
    pub(super) fn on() -> Self {
        let iocost = Self { numbers: text(&disk().join("dev")).trim().to_owned() };
        iocost.switch(1);
        iocost
    }

    fn switch(&self, on: u8) {
        fs::write("/sys/fs/cgroup/io.cost.qos", format!("{} enable={on}", self.numbers)).unwrap();
    }
}

impl Drop for Iocost {
    fn drop(&mut self) {
        self.switch(0);
    }
}

#[test]
fn a_unit_is_weighed_by_bfq_through_systemd_and_back() {
    in_a_machine_or_skip!();
    let scheduler = disk().join("queue/scheduler");
    let before = text(&scheduler);
    if !before.contains("bfq") {
        eprintln!("skipped: the kernel has no BFQ");
        return;
    }
    fs::write(&scheduler, "bfq").unwrap();
    let place = Place::new(
        "owners.timeout_ms=10000\n[[allow]]\npath='/**'\nmode='reclaim'\nknobs=['io_weight']\n\
         changes_per_minute=1000",
    );
    let mut guard = place.start();
    let unit = Unit::with_file("bfq");
    let told = || sh(&format!("systemctl show -p IOWeight --value {}", unit.name));
    assert_eq!(unit.read("io.bfq.weight"), "default 100");
    for (weight, in_its_scale) in [(300.0, "2300"), (50.0, "50"), (1_000.0, "10000")] {
        raise(&mut guard, &unit, Knob::IoWeight, weight);
        assert_eq!(unit.read("io.bfq.weight"), format!("default {weight}"));
        assert_eq!(told(), in_its_scale);
        sh("systemctl daemon-reload");
        assert_eq!(unit.read("io.bfq.weight"), format!("default {weight}"));
    }
    release_all(&mut guard);
    sh("systemctl daemon-reload");
    assert_eq!(
        (unit.read("io.bfq.weight").as_str(), told().as_str()),
        ("default 100", "[not set]")
    );
    assert!(unit.drop_ins().is_empty(), "{:?}", unit.drop_ins());
    assert!(guard.end(Signal::TERM).success());
    let own = before.split(['[', ']']).nth(1).unwrap_or("none");
    fs::write(&scheduler, own).unwrap();
}
