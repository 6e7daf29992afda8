//! Sockets: packets, connections, retransmissions, round-trip times and drops.

use std::{net::TcpListener, thread};

use headroom_abi::{
    histogram::bucket,
    size::{SIZE_BUCKETS, size_bucket},
};
use headroom_agent::observe::kernel::{NetCounters, Topic};

use super::{
    shared::Shared,
    streams::{self, Family},
    workload::{self, Child},
    world::{World, skip_unless},
};

#[test]
fn datagrams_are_counted_on_both_ways() {
    const N_DATAGRAMS: u64 = 300;
    const PAYLOAD: u64 = 777;
    /// IP and UDP headers.
    const HEADERS: u64 = 20 + 8;
    let Some(mut world) = World::new(&[Topic::Network]) else { return };
    let cgroup = world.cgroup("network");
    let payload = [7_u8; PAYLOAD as usize];
    let child = Child::fork(|| workload::talk_to_oneself(N_DATAGRAMS, &payload));
    child.run_in(&cgroup);
    let net = world.counters(&cgroup).net;
    let bytes = N_DATAGRAMS * (PAYLOAD + HEADERS);
    assert_eq!((net.tx_packets, net.tx_bytes), (N_DATAGRAMS, bytes));
    assert_eq!((net.rx_packets, net.rx_bytes), (N_DATAGRAMS, bytes));
    let mut sizes = [0; SIZE_BUCKETS];
    sizes[size_bucket(PAYLOAD + HEADERS)] = 2 * N_DATAGRAMS;
    assert_eq!(net.size_hist, sizes);
    assert_eq!(net.rtt_hist.iter().sum::<u64>(), 0, "datagrams have no round-trip time");
}

#[test]
fn connections_count_for_who_opens_and_for_who_accepts_them() {
    const N_CONNECTIONS: u64 = 25;
    let Some(mut world) = World::new(&[Topic::Network]) else { return };
    if let Some(reason) = world.why_absent(Topic::Tcp) {
        return skip_unless(false, &reason);
    }
    for (family, address) in [(Family::V4, "127.0.0.1:0"), (Family::V6, "[::1]:0")] {
        if let Err(error) = TcpListener::bind(address) {
            skip_unless(false, &format!("{address}: {error}"));
            continue;
        }
        let (opener, accepter) = (world.cgroup("opener"), world.cgroup("accepter"));
        let port = Shared::new();
        let server = Child::fork(|| streams::serve(family, N_CONNECTIONS, port));
        let client = Child::fork(|| streams::visit(family, N_CONNECTIONS, port));
        thread::scope(|scope| {
            scope.spawn(|| server.run_in(&accepter));
            client.run_in(&opener);
        });
        let connections = |net: &NetCounters| (net.connects, net.accepts);
        let (opened, accepted) = (world.counters(&opener).net, world.counters(&accepter).net);
        assert_eq!(connections(&opened), (N_CONNECTIONS, 0), "{family:?}");
        assert_eq!(connections(&accepted), (0, N_CONNECTIONS), "{family:?}");
    }
}

#[test]
fn retransmissions_are_those_the_connection_accounts() {
    let Some(mut world) = World::new(&[Topic::Network]) else { return };
    if let Some(reason) = world.why_absent(Topic::Tcp) {
        return skip_unless(false, &reason);
    }
    let cgroup = world.cgroup("retransmits");
    let told = Shared::new();
    Child::fork(|| streams::knock_at_a_full_queue(told)).run_in(&cgroup);
    let n_accounted = told.get(0);
    assert!(n_accounted > 0, "no answer came, and nothing was sent again");
    let net = world.counters(&cgroup).net;
    assert_eq!(net.retransmits, n_accounted);
    assert_eq!((net.connects, net.accepts), (1, 1), "the one that filled the queue");
}

#[test]
fn round_trip_times_are_those_the_connection_accounts() {
    const N_ROUNDS: u64 = 200;
    /// Half a power of two each.
    const BUCKETS_OFF_MAX: usize = 4;
    let Some(mut world) = World::new(&[Topic::Network]) else { return };
    let cgroup = world.cgroup("roundtrips");
    let told = Shared::new();
    Child::fork(|| streams::talk_to_oneself(N_ROUNDS, told)).run_in(&cgroup);
    let net = world.counters(&cgroup).net;
    let n_timed: u64 = net.rtt_hist.iter().sum();
    assert!((N_ROUNDS..=net.tx_packets).contains(&n_timed), "{n_timed} of {}", net.tx_packets);
    let accounted = bucket(told.get(0) * 1000);
    let mut used = net.rtt_hist.iter().enumerate().filter(|(_, n)| **n > 0).map(|(index, _)| index);
    let nearest = used.clone().map(|index| index.abs_diff(accounted)).min().unwrap();
    assert!(
        nearest <= BUCKETS_OFF_MAX,
        "{accounted} not near {:?}",
        used.by_ref().collect::<Vec<_>>()
    );
}

#[test]
fn datagrams_that_find_their_buffer_full_are_drops() {
    const N_DATAGRAMS: u64 = 500;
    let Some(mut world) = World::new(&[Topic::Network]) else { return };
    if let Some(reason) = world.why_absent(Topic::PacketDrops) {
        return skip_unless(false, &reason);
    }
    let is_told = |family: Family| {
        matches!(family, Family::V4) || !world.state_of(Topic::PacketDrops).contains("IPv4")
    };
    let families = [Family::V4, Family::V6].map(|family| (family, is_told(family)));
    for (family, is_told) in families {
        if !is_told {
            skip_unless(false, "drops on arrival: this kernel tells them for IPv4 only");
            continue;
        }
        let cgroup = world.cgroup("drops");
        let told = Shared::new();
        if !family.is_there() {
            skip_unless(false, &format!("{family:?}: no loopback address"));
            continue;
        }
        let payload = [7; 1000];
        Child::fork(|| streams::flood_oneself(family, N_DATAGRAMS, &payload, told)).run_in(&cgroup);
        let n_received = told.get(0);
        assert!((1..N_DATAGRAMS).contains(&n_received), "{n_received} received");
        let net = world.counters(&cgroup).net;
        assert_eq!(net.drops, N_DATAGRAMS - n_received, "{family:?}");
    }
}
