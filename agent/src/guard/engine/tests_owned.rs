//! The engine with owners: what is asked, in which order, and what comes back whatever happens.

use std::{fs, path::PathBuf, time::Duration};

use headroom_allocate::{Knob, Limit};

use super::{
    Engine, Progress, Unwatched,
    bench::{Bench, RAISE, applied, failed, refused, request},
};
use crate::{
    guard::{
        owner::{
            Owners,
            tests::{Fake, owners_at},
        },
        protocol::{Failure, Request, Response},
    },
    observe::cgroup::Version,
};

const UNIT: &str = "/a.service";

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A guard beside a systemd with the unit `a.service`: 1 core, as the file says.
struct World {
    bench: Bench,
    fake: Fake,
    owners: Owners,
    engine: Engine<Unwatched>,
}

impl World {
    fn new() -> Self {
        let bench = Bench::new(Version::V2);
        bench.make("a.service");
        let fake = Fake::systemd(&bench.dir.join("bus"), &bench.dir.join(Self::FILE));
        let owners = owners_at(&bench.dir);
        let (engine, _) = bench.engine(RAISE);
        Self { bench, fake, owners, engine }
    }

    const FILE: &str = "cpu/a.service/cpu.max";

    fn ask(&mut self, cores: f64, lease_s: f64, now: u64) -> Response {
        let ask = request(UNIT, Knob::CpuQuota, cores, lease_s);
        self.engine.handle_with(&self.owners, &ask, s(now))
    }

    fn tick(&mut self, now: u64) {
        self.engine.tick_with(&self.owners, s(now));
    }

    fn file(&self) -> String {
        self.bench.read(Self::FILE)
    }

    fn told(&self) -> Vec<u64> {
        self.fake.state().told.clone()
    }

    fn drop_in(&self) -> PathBuf {
        self.bench.dir.join("run/systemd/system.control/a.service.d/50-CPUQuota.conf")
    }

    /// A guard that starts where this one was killed.
    fn crash(self) -> Self {
        let Self { bench, fake, owners, engine } = self;
        drop(engine);
        let (mut engine, found) = bench.engine(RAISE);
        engine.recover(found.open, &owners, s(0));
        Self { bench, fake, owners, engine }
    }
}

#[test]
fn a_unit_is_changed_through_systemd_and_back() {
    let mut world = World::new();
    let raised = applied(world.ask(2.0, 10.0, 0));
    assert_eq!((raised.before, raised.applied), (Limit::At(1.0), Limit::At(2.0)));
    assert_eq!(raised.expires_in_s, 10.0);
    assert_eq!(world.file(), "200000 100000");
    applied(world.ask(2.0, 10.0, 1));
    assert_eq!(world.told(), [2_000_000], "a renewal asks nobody");
    world.tick(12);
    assert_eq!(world.told(), [2_000_000, 1_000_000]);
    assert_eq!(world.file(), "100000 100000");
    assert!(world.engine.pending().is_empty());
}

#[test]
fn a_drop_in_of_ours_goes_and_one_that_was_there_stays() {
    for was_there in [false, true] {
        let mut world = World::new();
        let drop_in = world.drop_in();
        fs::create_dir_all(drop_in.parent().unwrap()).unwrap();
        if was_there {
            fs::write(&drop_in, "theirs").unwrap();
        }
        applied(world.ask(2.0, 10.0, 0));
        fs::write(&drop_in, "as systemd writes it").unwrap();
        world.tick(12);
        assert_eq!(drop_in.exists(), was_there);
    }
}

#[test]
fn a_release_waits_for_the_owner() {
    let mut world = World::new();
    applied(world.ask(2.0, 10.0, 0));
    let release = Request::Release { workload: UNIT.to_owned(), knob: Knob::CpuQuota };
    match world.engine.handle_with(&world.owners, &release, s(1)) {
        Response::Released(released) => assert_eq!((released.held, released.pending), (true, None)),
        other => panic!("{other:?}"),
    }
    assert_eq!(world.file(), "100000 100000");
    applied(world.ask(2.0, 10.0, 2));
    match world.engine.handle_with(&world.owners, &Request::ReleaseAll, s(3)) {
        Response::ReleasedAll(tally) => assert_eq!((tally.restored, tally.pending), (1, 0)),
        other => panic!("{other:?}"),
    }
    assert_eq!(world.file(), "100000 100000");
}

#[test]
fn whoever_releases_everything_asks_for_all_of_it_itself() {
    let mut world = World::new();
    applied(world.ask(2.0, 10.0, 0));
    let Progress::Waiting(ticket) = world.engine.begin(&Request::ReleaseAll, s(1)) else {
        panic!()
    };
    assert!(world.engine.take_returns().is_empty(), "nobody else is sent");
    let done = world.owners.run(&ticket.errand);
    match world.engine.resume(*ticket, done, s(1)) {
        Progress::Answered(Response::ReleasedAll(tally)) => {
            assert_eq!((tally.restored, tally.pending), (1, 0));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_a_killed_guard_told_the_owner_is_taken_back_by_the_next() {
    let mut world = World::new();
    applied(world.ask(2.0, 10.0, 0));
    let world = world.crash();
    assert_eq!(world.file(), "100000 100000");
    assert_eq!(world.told(), [2_000_000, 1_000_000]);
    assert!(world.engine.pending().is_empty());
    let world = world.crash();
    assert_eq!(world.told().len(), 2);
}

#[test]
fn a_file_that_others_write_is_theirs_and_the_owner_loses_ours() {
    let mut world = World::new();
    applied(world.ask(2.0, 100.0, 0));
    world.bench.write(World::FILE, "300000 100000\n");
    world.tick(2);
    // Without it, the next daemon-reload would bring a value of ours back.
    assert_eq!(world.told(), [2_000_000, 1_000_000]);
    assert_eq!(world.file(), "300000 100000");
    assert!(world.engine.pending().is_empty());
}

#[test]
fn what_others_tell_the_owner_is_adopted() {
    let mut world = World::new();
    applied(world.ask(2.0, 100.0, 0));
    world.fake.state().quota_us = 3_000_000;
    world.bench.write(World::FILE, "300000 100000\n");
    world.tick(2);
    assert_eq!(world.told(), [2_000_000]);
    assert_eq!(world.file(), "300000 100000");
    let raised = applied(world.ask(4.0, 10.0, 3));
    assert_eq!(raised.baseline, Limit::At(3.0));
    world.tick(14);
    assert_eq!(world.file(), "300000 100000");
}

#[test]
fn a_restarted_unit_does_not_keep_ours() {
    let mut world = World::new();
    applied(world.ask(2.0, 100.0, 0));
    fs::remove_dir_all(world.bench.dir.join("cpu/a.service")).unwrap();
    fs::create_dir_all(world.bench.dir.join("cpu/other")).unwrap();
    world.bench.make("a.service");
    world.bench.write(World::FILE, "200000 100000\n");
    world.tick(2);
    assert_eq!(world.told(), [2_000_000, 1_000_000]);
    assert_eq!(world.file(), "100000 100000");
    assert!(world.engine.pending().is_empty());
}

#[test]
fn a_unit_that_is_gone_ends_its_lease() {
    let mut world = World::new();
    applied(world.ask(2.0, 100.0, 0));
    fs::remove_dir_all(world.bench.dir.join("cpu/a.service")).unwrap();
    world.fake.state().knows_nobody = true;
    world.tick(2);
    assert!(world.engine.pending().is_empty());
}

#[test]
fn an_owner_that_hangs_delays_no_other_lease_and_gets_its_own_back_later() {
    let mut world = World::new();
    applied(world.ask(2.0, 10.0, 0));
    let plain = request("/w", Knob::CpuQuota, 2.0, 10.0);
    applied(world.engine.handle(&plain, s(0)));
    world.fake.state().hangs = true;
    // What is due is handed out, and nothing waits for it.
    world.engine.tick(s(11));
    assert_eq!(world.bench.read("cpu/w/cpu.max"), "100000 100000");
    let tickets = world.engine.take_returns();
    assert_eq!(tickets.len(), 1);
    let (kind, _) = failed(world.engine.handle(&request(UNIT, Knob::CpuQuota, 3.0, 9.0), s(11)));
    assert_eq!(kind, Failure::Busy);
    for ticket in tickets {
        let done = world.owners.run(&ticket.errand);
        world.engine.resume(ticket, done, s(12));
    }
    // The file has its own value again, and the lease is kept until the owner has, too.
    assert_eq!(world.file(), "100000 100000");
    assert_eq!(world.engine.pending().len(), 1);
    world.fake.state().hangs = false;
    world.owners = owners_at(&world.bench.dir);
    world.tick(14);
    assert!(world.engine.pending().is_empty());
    assert_eq!(world.fake.state().quota_us, 1_000_000);
}

#[test]
fn a_change_whose_outcome_is_not_known_is_taken_back() {
    let mut world = World::new();
    applied(world.ask(2.0, 100.0, 0));
    world.fake.state().hangs = true;
    let (kind, text) = failed(world.ask(3.0, 100.0, 1));
    assert_eq!(kind, Failure::Owner, "{text}");
    // It lands after all.
    world.fake.state().hangs = false;
    let mut waited = 0;
    while world.told().len() < 2 && waited < 500 {
        std::thread::sleep(Duration::from_millis(10));
        waited += 1;
    }
    assert_eq!(world.told(), [2_000_000, 3_000_000]);
    world.owners = owners_at(&world.bench.dir);
    world.tick(3);
    assert_eq!(world.told(), [2_000_000, 3_000_000, 1_000_000]);
    assert_eq!(world.file(), "100000 100000");
    assert!(world.engine.pending().is_empty());
}

#[test]
fn a_knob_that_others_keep_changing_is_left_to_them() {
    let mut world = World::new();
    for change in 0..3 {
        applied(world.ask(2.0, 100.0, change * 3));
        let theirs = 1_200_000 + change * 100_000;
        world.fake.state().tell_quietly(theirs);
        world.tick(change * 3 + 2);
    }
    assert_eq!(refused(world.ask(2.0, 100.0, 10)), "contested");
    let Response::Status(status) = world.engine.handle(&Request::Status, s(10)) else { panic!() };
    assert_eq!(status.contested, ["cpu_quota of /a.service"]);
    applied(world.ask(2.0, 100.0, 1_000));
}

#[test]
fn kubernetes_is_refused_without_asking_anybody() {
    let bench = Bench::new(Version::V2);
    bench.make("kubepods.slice");
    let ask = request("/kubepods.slice", Knob::CpuQuota, 2.0, 10.0);
    let (mut engine, _) = bench.engine(RAISE);
    assert_eq!(refused(engine.handle(&ask, s(0))), "kubernetes");
    drop(engine);
    let (mut engine, _) = bench.engine(&format!("{RAISE}\nkubernetes=true"));
    assert_eq!(applied(engine.handle(&ask, s(0))).applied, Limit::At(2.0));
}

#[test]
fn where_owners_cannot_be_reached_the_file_is_written() {
    let mut world = World::new();
    let ask = request(UNIT, Knob::CpuQuota, 2.0, 10.0);
    assert_eq!(applied(world.engine.handle(&ask, s(0))).applied, Limit::At(2.0));
    assert!(world.told().is_empty());
    world.engine.tick(s(11));
    assert_eq!(world.file(), "100000 100000");
}
