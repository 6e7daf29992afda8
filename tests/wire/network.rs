//! A network that loses, doubles, delays, reorders and parts, by a seed, between a real agent and a
//! real aggregator; and one that gives the agent another address.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::world::{self, World, eventually};

/// How bad the network is, in thousandths of its packets.
#[derive(Clone, Copy, Debug)]
struct Weather {
    lost: u64,
    doubled: u64,
    delay_ms_max: u64,
}

const FINE: Weather = Weather { lost: 0, doubled: 0, delay_ms_max: 0 };
const BAD: Weather = Weather { lost: 80, doubled: 80, delay_ms_max: 25 };

/// Carries packets between one agent and an aggregator.
struct Network {
    address: SocketAddr,
    parted: Arc<AtomicBool>,
    moves: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    to_server: Arc<Mutex<Vec<Vec<u8>>>>,
    thread: Option<JoinHandle<u64>>,
}

impl Network {
    fn start(server: SocketAddr, seed: u64, weather: Weather) -> Self {
        let front = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = front.local_addr().unwrap();
        let (parted, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let moves = Arc::new(AtomicU64::new(0));
        let to_server = Arc::new(Mutex::new(Vec::new()));
        let mut carrier = Carrier {
            kept: Arc::clone(&to_server),
            front,
            back: back(server),
            client: None,
            weather,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            waiting: BinaryHeap::new(),
            n: 0,
            harmed: 0,
        };
        let thread = {
            let (parted, moves, stop) =
                (Arc::clone(&parted), Arc::clone(&moves), Arc::clone(&stop));
            thread::spawn(move || {
                let mut moved = 0;
                while !stop.load(Ordering::Relaxed) {
                    if moves.load(Ordering::Relaxed) > moved {
                        moved += 1;
                        carrier.back = back(server);
                    }
                    carrier.turn(parted.load(Ordering::Relaxed));
                }
                carrier.harmed
            })
        };
        Self { address, parted, moves, stop, to_server, thread: Some(thread) }
    }

    /// Packets that were lost, doubled, or held up.
    fn end(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

fn back(server: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(server).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

/// When it is due, which it is, whether it goes to the server, and its bytes.
type Packet = (Instant, u64, bool, Vec<u8>);

struct Carrier {
    front: UdpSocket,
    back: UdpSocket,
    client: Option<SocketAddr>,
    weather: Weather,
    random: u64,
    waiting: BinaryHeap<Reverse<Packet>>,
    kept: Arc<Mutex<Vec<Vec<u8>>>>,
    n: u64,
    harmed: u64,
}

impl Carrier {
    fn turn(&mut self, parted: bool) {
        let mut packet = [0; 2_048];
        self.front.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        if let Ok((bytes, from)) = self.front.recv_from(&mut packet) {
            self.client = Some(from);
            self.take(true, &packet[..bytes], parted);
        }
        while let Ok(bytes) = self.back.recv(&mut packet) {
            self.take(false, &packet[..bytes], parted);
        }
        while self.waiting.peek().is_some_and(|Reverse((due, ..))| *due <= Instant::now()) {
            let Some(Reverse((_, _, to_server, bytes))) = self.waiting.pop() else { return };
            // A peer that is gone is the network's ordinary state.
            if to_server {
                drop(self.back.send(&bytes));
            } else if let Some(client) = self.client {
                drop(self.front.send_to(&bytes, client));
            }
        }
    }

    fn take(&mut self, to_server: bool, bytes: &[u8], parted: bool) {
        if to_server {
            self.kept.lock().unwrap().push(bytes.to_vec());
        }
        let lost = parted || self.draw(1_000) < self.weather.lost;
        let copies = if lost {
            0
        } else if self.draw(1_000) < self.weather.doubled {
            2
        } else {
            1
        };
        self.harmed += u64::from(copies != 1);
        for _ in 0..copies {
            let delay = Duration::from_millis(self.draw(self.weather.delay_ms_max + 1));
            self.n += 1;
            let due = Instant::now() + delay;
            self.waiting.push(Reverse((due, self.n, to_server, bytes.to_vec())));
        }
    }

    /// A number below `bound`, by xorshift64*.
    fn draw(&mut self, bound: u64) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % bound
    }
}

#[test]
fn a_bad_network_loses_and_doubles_nothing() {
    let mut harmed = 0;
    for seed in 1..=3 {
        let world = World::new();
        let server = world.serve();
        let network = Network::start(server.quic, seed, BAD);
        world.reach(network.address);
        let agent = world.agent("host-1", None);
        for i in 0..50 {
            agent.report(world::tick(i, 2));
            thread::sleep(Duration::from_millis(20));
            network.parted.store((20..35).contains(&i), Ordering::Relaxed);
        }
        eventually("everything is acknowledged", || agent.stats().vectors_acked == 100);
        let stats = agent.stats();
        assert_eq!((stats.vectors_dropped, stats.reports_dropped), (0, 0), "seed {seed}");
        let view = server.view();
        for path in ["/w/0", "/w/1"] {
            let window =
                view.history.window("host-1", path, world::T0_S, world::T0_S + 100.0).unwrap();
            assert_eq!(window.len(), 50, "{path}, seed {seed}");
        }
        assert_eq!(view.ingest.vectors(), 100, "each sample is taken once, seed {seed}");
        drop(agent);
        harmed += network.end();
    }
    assert!(harmed > 10, "the network was bad: {harmed} packets");
}

#[test]
fn an_agent_whose_address_changes_goes_on_with_the_same_connection() {
    let world = World::new();
    let server = world.serve();
    let network = Network::start(server.quic, 1, FINE);
    world.reach(network.address);
    let agent = world.agent("host-1", None);
    for i in 0..30 {
        if i % 10 == 5 {
            let acked = agent.stats().vectors_acked;
            eventually("it goes on", || agent.stats().vectors_acked >= acked.max(u64::from(i)));
            network.moves.fetch_add(1, Ordering::Relaxed);
            thread::sleep(Duration::from_millis(50));
        }
        agent.report(world::tick(i, 1));
    }
    eventually("everything is acknowledged", || agent.stats().vectors_acked == 30);
    let stats = agent.stats();
    assert_eq!((stats.connections, stats.vectors_dropped), (1, 0), "{stats:?}");
}

/// Who listens on the way says everything again that the agent said, from the first packet on.
#[test]
fn a_connection_that_is_replayed_packet_by_packet_stores_and_opens_nothing() {
    let world = World::new();
    let server = world.serve();
    let network = Network::start(server.quic, 1, FINE);
    world.reach(network.address);
    let agent = world.agent("host-1", None);
    (0..20).for_each(|i| agent.report(world::tick(i, 2)));
    eventually("everything is acknowledged", || agent.stats().vectors_acked == 40);
    let heard = network.to_server.lock().unwrap().clone();
    assert!(heard.len() > 5, "{} packets", heard.len());
    let view = server.view();
    let since_s = || view.fleet.read(|hosts| hosts["host-1"].since_s);
    let arrived_s = since_s();
    for while_connected in [true, false] {
        let thief = UdpSocket::bind("127.0.0.1:0").unwrap();
        for packet in heard.iter().chain(&heard) {
            thief.send_to(packet, server.quic).unwrap();
            thread::sleep(Duration::from_millis(1));
        }
        if while_connected {
            // The agent's own connection goes on beside it.
            agent.report(world::tick(20, 2));
            eventually("the agent goes on", || agent.stats().vectors_acked == 42);
            assert!((since_s() - arrived_s).abs() < f64::EPSILON, "nobody else came as host-1");
            assert_eq!(agent.stats().connections, 1);
        }
        assert_eq!(view.ingest.vectors(), 42, "connected: {while_connected}");
        let window =
            view.history.window("host-1", "/w/0", world::T0_S, world::T0_S + 100.0).unwrap();
        assert_eq!(window.len(), 21);
        if while_connected {
            network.parted.store(true, Ordering::Relaxed);
        }
    }
    assert_eq!(view.fleet.read(std::collections::BTreeMap::len), 1);
}
