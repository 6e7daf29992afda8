//! An aggregator killed again and again while agents stream: what it acknowledged is there, once.
//!
//! `HEADROOM_KILL_ROUNDS` sets how often it is killed.

use std::{
    cell::Cell,
    net::{SocketAddr, UdpSocket},
    path::Path,
    process::{Child, Command},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use headroom_tests::program;

use crate::{
    server::start_until_ready,
    world::{self, World, eventually},
};

const ROUNDS: u32 = 30;
const AGENTS: usize = 3;

struct Killed(Child);

impl Killed {
    fn start(dir: &Path, quic: SocketAddr) -> Self {
        let mut command = Command::new(program("headroom-aggregator").unwrap());
        command.args(["serve", "--dir"]).arg(dir);
        command.args(["--listen-http", "127.0.0.1:0", "--listen-quic", &quic.to_string()]);
        Self(start_until_ready(&mut command))
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// It has no chance to say that it ends, and the next one knows nothing of its connections.
#[test]
fn agents_of_an_aggregator_that_was_killed_are_told_by_the_next_one() {
    let world = World::new();
    let quic = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    world.reach(quic);
    let running = Killed::start(&world.aggregator_dir(), quic);
    let agent = world.agent("host", None);
    let t0_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64().floor() - 1.0e5;
    let told = Cell::new(0_u32);
    let tell = || {
        agent.report(world::tick_at(t0_s, told.get(), 2));
        told.set(told.get() + 1);
    };
    eventually("something is acknowledged", || {
        tell();
        agent.stats().vectors_acked > 0
    });
    drop(running);
    let _next = Killed::start(&world.aggregator_dir(), quic);
    // One that wears out waiting for acknowledgements gives another reason, and then has a connection.
    eventually("the agent is told", || {
        tell();
        agent.stats().last_error.is_some_and(|error| error.contains("started anew"))
    });
}

#[test]
fn an_aggregator_killed_at_any_moment_loses_and_doubles_nothing() {
    let rounds = std::env::var("HEADROOM_KILL_ROUNDS")
        .map_or(ROUNDS, |rounds| rounds.parse().expect("a number of rounds"));
    let mut world = World::new();
    let quic = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    world.reach(quic);
    let agents: Vec<_> = (0..AGENTS)
        .map(|i| {
            let spool = (i > 0).then(|| world.dir.path().join(format!("spool-{i}")));
            world.agent(&format!("host-{i}"), spool)
        })
        .collect();
    let t0_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64().floor();
    // Periods are told faster than they pass, and the future is refused.
    let t0_s = t0_s - 1.0e5;
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut told = 0_u32;
    for round in 0..rounds {
        let running = Killed::start(&world.aggregator_dir(), quic);
        let acked = || agents.iter().map(|agent| agent.stats().vectors_acked).sum::<u64>();
        let (before, patience) = (acked(), Instant::now() + Duration::from_secs(40));
        while acked() == before {
            assert!(Instant::now() < patience, "nothing is acknowledged in round {round}");
            agents.iter().for_each(|agent| agent.report(world::tick_at(t0_s, told, 2)));
            told += 1;
            thread::sleep(Duration::from_millis(20));
        }
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        for _ in 0..random % 30 {
            agents.iter().for_each(|agent| agent.report(world::tick_at(t0_s, told, 2)));
            told += 1;
            thread::sleep(Duration::from_millis(2));
        }
        drop(running);
        println!("round {round}: {told} periods told");
    }
    world.listen_at(quic);
    let server = world.serve();
    let expected = 2 * u64::from(told);
    for agent in &agents {
        eventually("everything is acknowledged", || agent.stats().vectors_acked >= expected);
        let stats = agent.stats();
        assert_eq!((stats.vectors_dropped, stats.reports_dropped), (0, 0), "{stats:?}");
        assert_eq!(stats.vectors_acked, expected, "each is acknowledged once");
    }
    let to_s = t0_s + f64::from(told) + 1.0;
    for host in 0..AGENTS {
        for path in ["/w/0", "/w/1"] {
            let history = &server.view().history;
            let window = history.window(&format!("host-{host}"), path, t0_s, to_s).unwrap();
            let times: Vec<f64> = window.iter().map(|sample| sample.t_s - t0_s).collect();
            let all: Vec<f64> = (0..told).map(f64::from).collect();
            assert_eq!(times, all, "host-{host} {path}");
        }
    }
    println!("{rounds} kills, {} samples, each there once", expected * AGENTS as u64);
}
