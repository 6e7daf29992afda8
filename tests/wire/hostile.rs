//! Agents that are strangers, of another release, or broken: refused with the reason, counted, and
//! the next one is served.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use headroom_aggregator::pki;
use headroom_telemetry::{Feature, Sample, Workload, schema::SchemaHash};
use headroom_wire::{
    BootId, Contents, Hello, Message, frame,
    limits::{FRAME_BYTES_MAX, PROTOCOL},
    message::Definitions,
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

    /// Opens a stream of its own and says all of `bytes` on it.
    async fn stream(&mut self, bytes: &[u8]) {
        let mut stream = self.connection.open_uni().await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.finish().unwrap();
    }

    async fn greet(&mut self) -> Option<u64> {
        self.say(&Message::Hello(hello("host-1"))).await;
        match self.hear().await {
            Message::Welcome(welcome) => welcome.durable_seq,
            other => panic!("{}", other.kind()),
        }
    }

    /// The numbers of the next `n` acknowledgements.
    async fn acks(&mut self, n: usize) -> Vec<u64> {
        let mut acked = Vec::new();
        while acked.len() < n {
            match self.hear().await {
                Message::Ack { seq, .. } => acked.push(seq),
                other => panic!("{}", other.kind()),
            }
        }
        acked.sort_unstable();
        acked
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
        protocol_oldest: None,
        policy_version: None,
    }
}

/// The stream of batch `seq`: one sample, and the name of its workload.
fn batch(seq: u64) -> Vec<u8> {
    let mut sample = Sample::empty(world::T0_S + seq as f64);
    sample.set(Feature::CpuCores, 1.0);
    let contents = Contents { samples: vec![(0, sample)], ..Contents::default() };
    let boot = BootId(1);
    let entries = vec![(0, Workload::from_path("/x"))];
    let messages = [
        Message::Workloads(Definitions { boot, entries }),
        Message::Batch(contents.encode(boot, seq).unwrap()),
    ];
    messages.iter().flat_map(|message| frame::encode(message).unwrap()).collect()
}

#[test]
fn batches_out_of_order_and_replayed_by_another_connection_are_stored_once() {
    let world = World::new();
    let server = world.serve();
    let files = world.issue("host-1");
    let captured: Vec<Vec<u8>> = [3, 1, 5, 2].map(batch).into();
    run(async {
        let mut raw = connect(server.quic, &files).await;
        assert_eq!(raw.greet().await, None);
        for bytes in &captured {
            raw.stream(bytes).await;
        }
        assert_eq!(raw.acks(4).await, [1, 2, 3, 5]);
    });
    run(async {
        let mut raw = connect(server.quic, &files).await;
        assert_eq!(raw.greet().await, Some(3), "four is missing");
        for bytes in &captured {
            raw.stream(bytes).await;
        }
        assert_eq!(raw.acks(4).await, [1, 2, 3, 5]);
        raw.stream(&batch(4)).await;
        assert_eq!(raw.acks(1).await, [4], "a number that comes late is no repeat");
        raw.say(&Message::Settled { boot: BootId(1), before: 9 }).await;
        raw.stream(&batch(9)).await;
        assert_eq!(raw.acks(1).await, [9]);
    });
    run(async {
        let mut raw = connect(server.quic, &files).await;
        assert_eq!(raw.greet().await, Some(9), "six to eight were given up");
    });
    let view = server.view();
    let window = view.history.window("host-1", "/x", world::T0_S, world::T0_S + 100.0).unwrap();
    assert_eq!(window.len(), 6);
    assert_eq!((view.ingest.vectors(), view.ingest.repeats()), (6, 4));
}

/// An agent of protocol 3 sends everything in order on the stream it opened.
#[test]
fn an_agent_of_protocol_3_is_served() {
    let world = World::new();
    let server = world.serve();
    let files = world.issue("host-1");
    run(async {
        let mut raw = connect(server.quic, &files).await;
        raw.say(&Message::Hello(Hello { protocol: 3, ..hello("host-1") })).await;
        let Message::Welcome(welcome) = raw.hear().await else { panic!("refused") };
        assert_eq!(welcome.protocol, 3);
        for seq in 1..=3 {
            raw.send.write_all(&batch(seq)).await.unwrap();
            assert_eq!(raw.acks(1).await, [seq]);
        }
    });
    assert_eq!(server.view().ingest.vectors(), 3);
}

#[test]
fn lies_on_the_stream_of_a_batch_end_the_connection_and_are_counted() {
    let world = World::new();
    let server = world.serve();
    let files = world.issue("host-1");
    let too_long = u32::try_from(FRAME_BYTES_MAX + 1).unwrap().to_be_bytes().to_vec();
    let definitions = Message::Workloads(Definitions { boot: BootId(1), entries: Vec::new() });
    let cases: [(&str, Vec<u8>); 5] = [
        ("too_long", too_long),
        ("truncated", [&1_000_000_u32.to_be_bytes()[..], &[1; 10]].concat()),
        ("decode", [&4_u32.to_be_bytes()[..], &[0xc1; 4]].concat()),
        ("out_of_place", frame::encode(&Message::Probes(Vec::new())).unwrap()),
        ("crowded", frame::encode(&definitions).unwrap().repeat(9)),
    ];
    for (kind, bytes) in cases {
        run(async {
            let mut raw = connect(server.quic, &files).await;
            raw.greet().await;
            raw.stream(&bytes).await;
            raw.closed().await;
        });
        eventually("it is counted", || server.view().ingest.refusals(kind) == 1);
    }
    let agent = world.agent("host-1", None);
    agent.report(world::tick(0, 1));
    eventually("the next is served", || agent.stats().vectors_acked == 1);
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
