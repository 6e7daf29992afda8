//! TLS over TCP: taken where UDP does not get through, left when it does, and as strict as QUIC.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use headroom_agent::{reach::Carrier, uplink::Transport};
use headroom_wire::{
    limits::FRAME_BYTES_MAX,
    tls::{self, TlsFiles},
};
use rustls::pki_types::ServerName;

use crate::world::{self, World, eventually};

/// A way to an aggregator that carries TCP, and UDP from when it is told to.
struct Way {
    address: SocketAddr,
    udp: Option<UdpSocket>,
    server: SocketAddr,
    stop: Arc<AtomicBool>,
}

impl Way {
    fn new(server: SocketAddr) -> Self {
        let front = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = front.local_addr().unwrap();
        // Taken, so that nobody else answers there, and not read: packets vanish as behind a firewall.
        let udp = Some(UdpSocket::bind(address).unwrap());
        thread::spawn(move || {
            for client in front.incoming().flatten() {
                let Ok(onward) = TcpStream::connect(server) else { continue };
                let pairs =
                    [(client.try_clone().unwrap(), onward.try_clone().unwrap()), (onward, client)];
                for (mut from, mut to) in pairs {
                    thread::spawn(move || {
                        // What ends on one side ends on the other.
                        drop(std::io::copy(&mut from, &mut to));
                        drop(to.shutdown(Shutdown::Write));
                    });
                }
            }
        });
        Self { address, udp, server, stop: Arc::new(AtomicBool::new(false)) }
    }

    /// Carries UDP from now on, for one client at a time.
    fn open_udp(&mut self) {
        let front = self.udp.take().unwrap();
        let (server, stop) = (self.server, Arc::clone(&self.stop));
        let back = UdpSocket::bind("127.0.0.1:0").unwrap();
        back.connect(server).unwrap();
        for socket in [&front, &back] {
            socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        }
        thread::spawn(move || {
            let (mut packet, mut client) = ([0; 2_048], None);
            while !stop.load(Ordering::Relaxed) {
                if let Ok((bytes, from)) = front.recv_from(&mut packet) {
                    client = Some(from);
                    drop(back.send(&packet[..bytes]));
                }
                if let (Ok(bytes), Some(client)) = (back.recv(&mut packet), client) {
                    drop(front.send_to(&packet[..bytes], client));
                }
            }
        });
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

#[test]
fn tcp_is_taken_while_udp_is_blocked_and_left_when_it_gets_through() {
    let world = World::new();
    let server = world.serve();
    let mut way = Way::new(server.quic);
    world.reach(way.address);
    let agent = world.agent("host-1", None);
    for i in 0..20 {
        agent.report(world::tick(i, 3));
    }
    eventually("all is acknowledged over TCP", || agent.stats().vectors_acked == 60);
    assert_eq!(agent.stats().carrier, Some(Carrier::Tcp));

    way.open_udp();
    for i in 20..40 {
        agent.report(world::tick(i, 3));
        thread::sleep(Duration::from_millis(20));
    }
    eventually("it goes over to QUIC", || agent.stats().carrier == Some(Carrier::Quic));
    for i in 40..60 {
        agent.report(world::tick(i, 3));
    }
    eventually("all is acknowledged", || agent.stats().vectors_acked >= 180);
    let stats = agent.stats();
    assert_eq!((stats.vectors_acked, stats.vectors_dropped, stats.reports_dropped), (180, 0, 0));
    for path in ["/w/0", "/w/1", "/w/2"] {
        let window =
            server.view().history.window("host-1", path, world::T0_S, world::T0_S + 100.0).unwrap();
        assert_eq!(window.len(), 60, "{path}");
    }
    assert_eq!(server.view().ingest.vectors(), 180, "each sample is taken once");
}

#[test]
fn a_restart_in_the_middle_loses_nothing_over_tcp() {
    let mut world = World::new();
    let server = world.serve();
    world.keep_address(&server);
    let files = world.issue("host-1");
    let agent = world.agent_by(Transport::Tcp, "host-1", &files, None);
    for i in 0..30 {
        agent.report(world::tick(i, 2));
        thread::sleep(Duration::from_millis(5));
    }
    eventually("something is acknowledged", || agent.stats().vectors_acked > 0);
    server.stop();
    eventually("the agent notices", || !agent.stats().connected);
    for i in 30..60 {
        agent.report(world::tick(i, 2));
        thread::sleep(Duration::from_millis(5));
    }
    let server = world.serve();
    eventually("everything is acknowledged", || agent.stats().vectors_acked >= 120);
    let stats = agent.stats();
    assert_eq!((stats.vectors_acked, stats.vectors_dropped, stats.connections), (120, 0, 2));
    assert_eq!(stats.carrier, Some(Carrier::Tcp));
    let history = &server.view().history;
    for path in ["/w/0", "/w/1"] {
        let window = history.window("host-1", path, world::T0_S, world::T0_S + 100.0).unwrap();
        assert_eq!(window.len(), 60, "{path}");
    }
}

/// A stream of one's own, past the handshake.
fn connect(
    address: SocketAddr,
    files: &Path,
) -> rustls::StreamOwned<rustls::ClientConnection, TcpStream> {
    let tls = tls::client(&TlsFiles {
        ca: files.join("ca.pem"),
        cert: files.join("agent.pem"),
        key: files.join("agent.key"),
    })
    .unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    rustls::StreamOwned::new(rustls::ClientConnection::new(Arc::new(tls), name).unwrap(), stream)
}

#[test]
fn strangers_and_lying_lengths_are_refused_over_tcp_and_the_next_is_served() {
    let world = World::new();
    let server = world.serve();
    let files = world.issue("host-1");
    let cases: [(&str, Vec<u8>); 3] = [
        ("truncated", [&100_u32.to_be_bytes()[..], &[1; 10]].concat()),
        ("decode", [&4_u32.to_be_bytes()[..], &[0xc1; 4]].concat()),
        ("too_long", u32::try_from(FRAME_BYTES_MAX + 1).unwrap().to_be_bytes().to_vec()),
    ];
    for (kind, bytes) in cases {
        let mut stream = connect(server.quic, &files);
        stream.write_all(&bytes).unwrap();
        stream.conn.send_close_notify();
        stream.flush().unwrap();
        // The answer, if any, is of no interest; the end is.
        drop(stream.read_to_end(&mut Vec::new()));
        eventually("it is counted", || server.view().ingest.refusals(kind) == 1);
    }
    // Not TLS at all, and another authority's certificate.
    let mut plain = TcpStream::connect(server.quic).unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    drop(plain.read_to_end(&mut Vec::new()));
    eventually("it is counted", || server.view().ingest.refusals("tls") == 1);
    let elsewhere = world.dir.path().join("elsewhere");
    headroom_aggregator::pki::init(&elsewhere, &["localhost".to_owned()]).unwrap();
    let foreign = world.dir.path().join("stranger");
    headroom_aggregator::pki::issue(&elsewhere, "headroom", "host-1", &foreign).unwrap();
    std::fs::copy(world.aggregator_dir().join("ca.pem"), foreign.join("ca.pem")).unwrap();
    let stranger = world.agent_by(Transport::Tcp, "host-1", &foreign, None);
    stranger.report(world::tick(0, 1));
    eventually("it is counted", || server.view().ingest.refusals("tls") >= 2);
    assert_eq!(stranger.stats().vectors_acked, 0);
    drop(stranger);

    let agent = world.agent_by(Transport::Tcp, "host-1", &files, None);
    agent.report(world::tick(0, 1));
    eventually("ours is served", || agent.stats().vectors_acked == 1);
}
