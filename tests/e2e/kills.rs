//! The agent killed at every place of its side of a change, and at many moments of its life: the
//! workload has its own limit again, the guard's journal holds nothing open, the audit trail's chain
//! holds, and the next agent goes on.

use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use headroom_agent::{
    app::audit::read,
    guard::{
        GuardClient, Request, Response,
        journal::Journal,
        protocol::{Counters, Status},
    },
};
use headroom_tests::{
    cannot_run_as_root,
    cgroup::{Cgroup, Hierarchies},
};

use super::{
    Host, ONE_AT_A_TIME, OWN_CORES,
    relay::{About, Death, Place, Relay},
};

/// The shortest there is, so that a hundred of them end within a minute.
const LEASE_S: u32 = 1;
/// Hosts at a time, each with a guard, an agent and a workload of its own.
const N_LANES: usize = 4;
/// Kills at a moment that hangs on nothing.
const N_MOMENTS: usize = 24;
/// From before the agent's first instruction to after several renewals, seconds.
const MOMENTS_S: f64 = 2.4;

/// How one agent ends.
#[derive(Clone, Copy, Debug)]
enum End {
    /// At a place of an exchange.
    At(Death),
    /// So long after its start.
    After(Duration),
}

/// Every place of every kind of exchange, and as many moments between them.
fn ends() -> Vec<End> {
    let mut deaths = Vec::new();
    for about in [About::Change, About::Renewal, About::Release] {
        for place in Place::ALL {
            // A renewal is not written down.
            if (about, place) != (About::Renewal, Place::WrittenDown) {
                deaths.push(End::At(Death { about, place }));
            }
        }
    }
    let moments = (0..N_MOMENTS).map(|moment| {
        let share = (moment as f64 + scatter(moment as u64)) / N_MOMENTS as f64;
        End::After(Duration::from_secs_f64(share * MOMENTS_S))
    });
    // Taken in turn, so that nearly every kill is followed by an agent that has to get somewhere.
    let mut ends = Vec::new();
    let mut moments = moments.collect::<Vec<End>>().into_iter();
    for death in deaths {
        ends.push(death);
        ends.extend(moments.next());
    }
    ends.extend(moments);
    ends
}

/// A number from 0 to 1 that is the same in every run: the finaliser of SplitMix64.
fn scatter(of: u64) -> f64 {
    let mut bits = of.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((bits ^ (bits >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}

/// A host whose agent talks to the guard through a relay.
struct Lane {
    host: Host,
    relay: Relay,
}

impl Lane {
    fn start(number: usize) -> Self {
        let mut host = Host::start(&format!("kills-{number}"));
        let text = fs::read_to_string(host.file("agent.toml")).unwrap();
        let text = text.replace("period_s = 0.5", "period_s = 0.1");
        host.write("agent.toml", &text.replace("guard.sock", "relay.sock"));
        let (guard, audit) = (host.file("guard.sock"), host.file("audit.jsonl"));
        let relay = Relay::start(&host.file("relay.sock"), guard, audit);
        host.run("guard", "guard.toml");
        host.wait_until("the guard listens", |host| host.file("guard.sock").exists());
        Self { host, relay }
    }

    /// What is raised stops soon, so that renewals follow.
    fn set_mode(&self, mode: &str) {
        let policy = format!(
            "[host]\nreserve = 0.0\n[[workloads]]\nmatch = {:?}\nmode = {mode:?}\n\
             lease_s = {LEASE_S}\nceiling_cores = {}\nregret = false\n",
            self.host.cgroup.path(),
            OWN_CORES * 1.5
        );
        let next = self.host.file("policy.next");
        fs::write(&next, policy).unwrap();
        fs::rename(next, self.host.file("policy.toml")).unwrap();
    }

    /// Has an agent live and die as `end` says, and looks at what it leaves behind; whether the guard
    /// had changed something for it.
    fn live_and_die(&mut self, end: End) -> bool {
        self.set_mode("raise");
        let before = self.status().counters;
        let agent = self.host.run("run", "agent.toml");
        match end {
            End::After(moment) => {
                thread::sleep(moment);
                self.host.children[agent].kill().unwrap();
            }
            End::At(death) => {
                self.relay.sentence(self.host.children[agent].id(), death);
                if death.about == About::Release {
                    self.host.wait_raised();
                    self.set_mode("off");
                }
                self.host.wait_until(&format!("the agent gets to {death:?}"), |_host| {
                    self.relay.is_carried_out()
                });
            }
        }
        let mut child = self.host.children.remove(agent);
        assert_eq!(child.wait().unwrap().signal(), Some(9), "{end:?}: ended by itself");
        self.look(end, &before);
        self.status().counters.applied > before.applied
    }

    /// What has to hold after each death. `before` is what the guard had counted at the start of the
    /// agent.
    fn look(&self, end: End, before: &Counters) {
        let is_own = || (self.host.limit() - OWN_CORES).abs() < 1e-6;
        if let End::At(Death { about: About::Change, place }) = end {
            if matches!(place, Place::Asked | Place::HalfAsked) {
                assert!(is_own(), "{end:?}: {}", self.host.limit());
                assert_eq!(self.status().counters.applied, before.applied, "{end:?}");
            } else {
                // Otherwise nothing would be there that has to be given back.
                self.host.wait_until(&format!("{end:?}: the guard changes the limit"), |_host| {
                    self.status().counters.applied > before.applied
                });
            }
        }
        self.host.wait_until(&format!("{end:?}: everything is given back"), |_host| {
            let Status { leases_held, counters, .. } = self.status();
            let gave_back = counters.restored > before.restored;
            leases_held == 0 && (gave_back || counters.applied == before.applied)
        });
        assert!(is_own(), "{end:?}: {}", self.host.limit());
        let open = open_in_journal(&self.host.file("state"));
        assert_eq!(open, Vec::<String>::new(), "{end:?}");
        let audit = self.host.file("audit.jsonl");
        if audit.exists() {
            let trail = read::read(&audit).unwrap();
            assert_eq!(trail.breaks, Vec::<String>::new(), "{end:?}");
        }
    }

    fn status(&self) -> Status {
        let mut guard = GuardClient::connect(&self.host.file("guard.sock")).unwrap();
        match guard.request(&Request::Status).unwrap() {
            Response::Status(status) => *status,
            other => panic!("{other:?}"),
        }
    }
}

/// Leases that the journal in `state` says were never given back, read from a copy: the guard holds
/// the directory's lock.
fn open_in_journal(state: &Path) -> Vec<String> {
    let copy = tempfile::tempdir().unwrap();
    fs::copy(state.join("journal"), copy.path().join("journal")).unwrap();
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let (_journal, found) = Journal::open(copy.path(), boot_id.trim()).unwrap();
    assert_eq!(found.warnings, Vec::<String>::new());
    found.open.iter().map(|entry| format!("{entry:?}")).collect()
}

#[test]
fn an_agent_killed_anywhere_in_a_change_leaves_the_own_limit_and_a_trail_that_holds() {
    if let Some(reason) = cannot_run_as_root() {
        println!("skipped: {reason}");
        return;
    }
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let name = format!("/headroom-e2e-kills-{}", std::process::id());
    match Hierarchies::detect().and_then(|hierarchies| Cgroup::create(&hierarchies, &name)) {
        Ok(cgroup) => cgroup.remove(),
        Err(error) => {
            println!("skipped: no cgroup can be made: {error:#}");
            return;
        }
    }
    let ends = ends();
    assert!(ends.len() >= 40, "{}", ends.len());
    let began = Instant::now();
    let n_changed = AtomicUsize::new(0);
    thread::scope(|scope| {
        for number in 0..N_LANES {
            let (ends, n_changed) = (&ends, &n_changed);
            scope.spawn(move || {
                let mut lane = Lane::start(number);
                // Two at a time: a place and a moment.
                for pair in ends.chunks(2).skip(number).step_by(N_LANES) {
                    let changed = pair.iter().filter(|end| lane.live_and_die(**end)).count();
                    n_changed.fetch_add(changed, Ordering::Relaxed);
                }
                lane.set_mode("raise");
                lane.host.run("run", "agent.toml");
                lane.host.wait_raised();
            });
        }
    });
    let (n_changed, took) = (n_changed.into_inner(), began.elapsed());
    eprintln!("{} agents killed in {took:?}, {n_changed} of them after a change", ends.len());
}
