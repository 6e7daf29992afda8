//! Both sides of the wire as they ship: the agent's uplink against the aggregator's ingest, over QUIC
//! and over TCP, on loopback.

#![expect(clippy::unwrap_used, reason = "a test stops where something is not as it should be")]

mod backpressure;
mod bucket;
mod clock;
mod dashboard;
mod hostile;
mod ingest;
mod kill;
mod models;
mod netns;
mod network;
mod policies;
mod server;
mod tcp;
mod world;

use std::time::Duration;

use headroom_agent::uplink::Transport;
use headroom_telemetry::{Feature, Resource};

use crate::world::{World, eventually};

#[test]
fn samples_arrive_and_are_acknowledged_once_durable() {
    let world = World::new();
    let server = world.serve();
    let agent = world.agent("host-1", None);
    for i in 0..40 {
        agent.report(world::tick(i, 5));
        std::thread::sleep(Duration::from_millis(10));
    }
    eventually("200 samples are acknowledged", || agent.stats().vectors_acked == 200);
    let view = server.view();
    let window = view.history.window("host-1", "/w/3", world::T0_S, world::T0_S + 100.0).unwrap();
    assert_eq!(window.len(), 40);
    assert_eq!(window[7].get(Feature::CpuCores), Some(3.5));
    assert_eq!(window[7].get(Feature::GpuMemoryBytes), None, "missing stays missing");
    let actions = view.history.actions("host-1", "/w/0", 0.0, 4.0e9).unwrap();
    assert_eq!(actions.len(), 4, "every tenth period changed a limit");
    view.fleet.read(|hosts| {
        let host = &hosts["host-1"];
        assert!(host.connected);
        assert_eq!(host.probes.len(), 2);
        assert_eq!(host.report.as_ref().unwrap().1.cpus, 2);
        let live = &host.workloads["/w/3"];
        assert!((live.forecasts[&Resource::Cpu].quantiles[0][1] - 3.5).abs() < 0.02);
        assert_eq!(live.limits.len(), 2);
    });
    let stats = agent.stats();
    assert!(
        stats.connected && stats.vectors_dropped == 0 && stats.last_error.is_none(),
        "{stats:?}"
    );
    println!(
        "{:.1} bytes per workload and second in frames of this small fleet",
        stats.bytes_sent as f64 / 200.0
    );
    drop(agent);
    eventually("the aggregator sees it leave", || {
        view.fleet.read(|hosts| !hosts["host-1"].connected)
    });
}

/// The aggregator ends in the middle of a stream and comes back: with and without a spool, nothing is
/// lost and nothing is there twice.
#[test]
fn a_restart_in_the_middle_loses_nothing() {
    for has_spool in [true, false] {
        let mut world = World::new();
        let server = world.serve();
        let spool = has_spool.then(|| world.dir.path().join("spool"));
        let agent = world.agent("host-1", spool);
        for i in 0..60 {
            agent.report(world::tick(i, 2));
            std::thread::sleep(Duration::from_millis(5));
            if i == 20 {
                eventually("something is acknowledged", || agent.stats().vectors_acked > 0);
            }
            if i == 25 {
                break;
            }
        }
        world.keep_address(&server);
        server.stop();
        for i in 26..60 {
            agent.report(world::tick(i, 2));
            std::thread::sleep(Duration::from_millis(5));
        }
        eventually("the agent notices", || !agent.stats().connected);
        if has_spool {
            eventually("batches wait on disk", || agent.stats().spool_bytes > 0);
        }
        let server = world.serve();
        eventually("everything is acknowledged", || agent.stats().vectors_acked >= 120);
        let stats = agent.stats();
        assert_eq!(
            (stats.vectors_acked, stats.vectors_dropped, stats.reports_dropped),
            (120, 0, 0)
        );
        assert_eq!(stats.connections, 2);
        eventually("the spool is empty", || agent.stats().spool_bytes == 0);
        let history = &server.view().history;
        for path in ["/w/0", "/w/1"] {
            let window = history.window("host-1", path, world::T0_S, world::T0_S + 100.0).unwrap();
            assert_eq!(window.len(), 60, "{path}, spool: {has_spool}");
        }
    }
}

/// What an agent spooled while the aggregator was away reaches it after the agent was restarted.
#[test]
fn a_spool_outlives_its_agent() {
    let mut world = World::new();
    let spool = world.dir.path().join("spool");
    let server = world.serve();
    world.keep_address(&server);
    server.stop();
    let agent = world.agent("host-1", Some(spool.clone()));
    for i in 0..20 {
        agent.report(world::tick(i, 3));
    }
    std::thread::sleep(Duration::from_millis(300));
    drop(agent);
    let server = world.serve();
    let agent = world.agent("host-1", Some(spool));
    agent.report(world::tick(20, 3));
    eventually("both lives are acknowledged", || agent.stats().vectors_acked == 63);
    let window =
        server.view().history.window("host-1", "/w/2", world::T0_S, world::T0_S + 100.0).unwrap();
    assert_eq!(window.len(), 21);
}

#[test]
fn two_agents_do_not_mix() {
    let world = World::new();
    let server = world.serve();
    let (one, two) = (world.agent("host-1", None), world.agent("host-2", None));
    for i in 0..10 {
        one.report(world::tick(i, 1));
        two.report(world::tick(i, 2));
    }
    eventually("both are acknowledged", || {
        one.stats().vectors_acked == 10 && two.stats().vectors_acked == 20
    });
    let series = server.view().history.series(0.0, 4.0e9).unwrap();
    assert_eq!(series.len(), 3);
    assert!(series.iter().all(|series| series.samples.len() == 10));
}

/// The last of its agents is told why it waits, by either carrier, and gets in when another leaves. One
/// that is known comes back whatever was heard of its end.
#[test]
fn of_more_agents_than_there_may_be_the_last_is_told_and_waits() {
    let world = World::new();
    let server = world.serve_with(|config| config.ingest.agents_max = 1);
    let first = world.agent("host-1", None);
    eventually("the first is connected", || first.stats().connected);
    for transport in [Transport::Quic, Transport::Tcp] {
        let second = world.agent_by(transport, "host-2", &world.issue("host-2"), None);
        eventually("the second is told", || {
            second.stats().last_error.is_some_and(|error| error.contains("agents_max"))
        });
        assert!(!second.stats().connected);
    }
    let twin = world.agent("host-1", None);
    eventually("the first is there twice", || twin.stats().connected);
    drop((first, twin));
    let second = world.agent("host-2", None);
    eventually("the second is connected", || second.stats().connected);
    drop(server);
}
