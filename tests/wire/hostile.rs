//! Agents that are strangers, of another release, or broken: refused with the reason, counted, and
//! the next one is served.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use headroom_aggregator::pki;
use headroom_telemetry::schema::SchemaHash;
use headroom_wire::{
    BootId, Hello, Message, frame,
    limits::{FRAME_BYTES_MAX, PROTOCOL},
    tls::{self, TlsFiles},
};
use quinn::{
    ClientConfig, Connection, Endpoint, RecvStream, SendStream, crypto::rustls::QuicClientConfig,
};

use crate::world::{self, World, eventually};

/// A connection that says what it likes.
struct Raw {
    connection: Connection,
    send: SendStream,
    receive: RecvStream,
    _endpoint: Endpoint,
}

async fn connect(address: SocketAddr, files: &Path) -> Raw {
    let tls = tls::client(&TlsFiles {
        ca: files.join("ca.pem"),
        cert: files.join("agent.pem"),
        key: files.join("agent.key"),
    })
    .unwrap();
    let config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    let endpoint = Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let connection = endpoint.connect_with(config, address, "localhost").unwrap().await.unwrap();
    let (send, receive) = connection.open_bi().await.unwrap();
    Raw { connection, send, receive, _endpoint: endpoint }
}

impl Raw {
    async fn say(&mut self, message: &Message) {
        self.send.write_all(&frame::encode(message).unwrap()).await.unwrap();
    }

    async fn hear(&mut self) -> Message {
        let mut header = [0; 4];
        self.receive.read_exact(&mut header).await.unwrap();
        let mut body = vec![0; frame::body_bytes(header).unwrap()];
        self.receive.read_exact(&mut body).await.unwrap();
        frame::decode(&body).unwrap()
    }

    async fn closed(&self) {
        tokio::time::timeout(Duration::from_secs(20), self.connection.closed()).await.unwrap();
    }
}

fn hello(node: &str) -> Hello {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    Hello {
        protocol: PROTOCOL,
        schema: SchemaHash::current(),
        node: node.to_owned(),
        boot: BootId(1),
        agent_version: "test".to_owned(),
        kernel: "test".to_owned(),
        model_version: None,
        now_s: now.as_secs_f64(),
    }
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

#[test]
fn other_releases_names_and_clocks_are_refused_with_the_reason() {
    let world = World::new();
    let server = world.serve();
    let files = world.issue("host-1");
    let cases = [
        (Hello { schema: SchemaHash([0; 16]), ..hello("host-1") }, "schema", "feature schema"),
        (Hello { protocol: PROTOCOL + 1, ..hello("host-1") }, "protocol", "same release"),
        (hello("host-2"), "identity", "`host-1`"),
        (Hello { now_s: 1.0, ..hello("host-1") }, "clock", "clock"),
    ];
    for (hello, kind, words) in cases {
        let reason = run(async {
            let mut raw = connect(server.quic, &files).await;
            raw.say(&Message::Hello(hello)).await;
            match raw.hear().await {
                Message::Refused { reason } => reason,
                other => panic!("{}", other.kind()),
            }
        });
        assert!(reason.contains(words), "{reason}");
        eventually("it is counted", || server.view().ingest.refusals(kind) == 1);
    }
}

#[test]
fn broken_frames_are_counted_and_the_next_connection_works() {
    let world = World::new();
    let server = world.serve();
    let files = world.issue("host-1");
    let too_long = u32::try_from(FRAME_BYTES_MAX + 1).unwrap().to_be_bytes().to_vec();
    let cases: [(&str, Vec<u8>); 4] = [
        ("truncated", [&100_u32.to_be_bytes()[..], &[1; 10]].concat()),
        ("decode", [&4_u32.to_be_bytes()[..], &[0xc1; 4]].concat()),
        ("too_long", too_long),
        ("out_of_place", frame::encode(&Message::Ack { boot: BootId(1), seq: 1 }).unwrap()),
    ];
    for (kind, bytes) in cases {
        run(async {
            let mut raw = connect(server.quic, &files).await;
            raw.say(&Message::Hello(hello("host-1"))).await;
            assert!(matches!(raw.hear().await, Message::Welcome(_)));
            raw.send.write_all(&bytes).await.unwrap();
            raw.send.finish().unwrap();
            raw.closed().await;
        });
        eventually("it is counted", || server.view().ingest.refusals(kind) == 1);
    }
    let agent = world.agent("host-1", None);
    agent.report(world::tick(0, 1));
    eventually("the next is served", || agent.stats().vectors_acked == 1);
}

#[test]
fn certificates_from_elsewhere_are_refused_and_counted() {
    let world = World::new();
    let server = world.serve();
    // Signed by another authority of the same name, but trusting ours.
    let elsewhere = world.dir.path().join("elsewhere");
    pki::init(&elsewhere, &["localhost".to_owned()]).unwrap();
    let files = world.dir.path().join("stranger");
    pki::issue(&elsewhere, "headroom", "host-1", &files).unwrap();
    std::fs::copy(world.aggregator_dir().join("ca.pem"), files.join("ca.pem")).unwrap();
    let stranger = world.agent_with("host-1", &files, None);
    stranger.report(world::tick(0, 1));
    eventually("it is counted", || server.view().ingest.refusals("tls") >= 1);
    eventually("the agent says why", || stranger.stats().last_error.is_some());
    let stats = stranger.stats();
    assert!(!stats.connected && stats.vectors_acked == 0, "{stats:?}");
    assert!(server.view().fleet.read(std::collections::BTreeMap::is_empty));
    drop(stranger);

    // The other way round: an agent does not talk to an aggregator it does not know.
    let files = world.dir.path().join("wary");
    pki::issue(&world.aggregator_dir(), "headroom", "host-1", &files).unwrap();
    std::fs::copy(elsewhere.join("ca.pem"), files.join("ca.pem")).unwrap();
    let wary = world.agent_with("host-1", &files, None);
    wary.report(world::tick(0, 1));
    eventually("it says why", || wary.stats().last_error.is_some());
    assert!(!wary.stats().connected);

    let agent = world.agent("host-1", None);
    agent.report(world::tick(0, 1));
    eventually("ours is served", || agent.stats().vectors_acked == 1);
}

#[test]
fn a_server_certificate_is_no_agent() {
    let world = World::new();
    let server = world.serve();
    let files = world.dir.path().join("posing");
    std::fs::create_dir(&files).unwrap();
    for (from, to) in
        [("ca.pem", "ca.pem"), ("server.pem", "agent.pem"), ("server.key", "agent.key")]
    {
        std::fs::copy(world.aggregator_dir().join(from), files.join(to)).unwrap();
    }
    let posing = world.agent_with("host-1", &files, None);
    posing.report(world::tick(0, 1));
    eventually("it is counted", || {
        let ingest = &server.view().ingest;
        ingest.refusals("tls") + ingest.refusals("identity") >= 1
    });
    assert_eq!(posing.stats().vectors_acked, 0);
}
