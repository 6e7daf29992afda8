//! What this release writes, as a beginning for the fuzzer: one of each kind.

use headroom_aggregator::pki;
use headroom_allocate::{Knob, Limit};
use headroom_predict::{
    Bundle, Forecast, Source,
    forecast::{HORIZONS, LEVELS},
};
use headroom_telemetry::{
    Fact, Feature, Resource, SKETCH_BINS, Sample, SketchCounts, Sketches, Workload,
    schema::SchemaHash,
};
use headroom_wire::{
    AppliedAction, BootId, Contents, Hello, HostReport, Message, Numbering, PolicyOffer,
    ProbeReport, Welcome,
    enrol::{Grant, Reply, Request},
    frame,
    message::Definitions,
};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};

/// Name and bytes.
type Seed = (&'static str, Vec<u8>);

/// The seeds of each decoder.
pub(crate) fn all() -> Vec<(&'static str, Vec<Seed>)> {
    vec![
        ("frame", frames()),
        ("enrol", enrolment()),
        ("certificate", certificates()),
        ("numbering", numberings()),
        ("trace", traces()),
    ]
}

fn contents() -> Contents {
    let sample = |i: u32| {
        let mut sample = Sample::empty(1_760_000_000.0 + f64::from(i));
        for (at, &feature) in Feature::ALL.iter().enumerate().filter(|(at, _)| at % 3 != 0) {
            sample.set(feature, f64::from(i) + at as f64 / 7.0);
        }
        sample
    };
    Contents {
        host: Some((1_760_000_000.0, HostReport { cpus: 4, ..HostReport::default() })),
        samples: (0..6).map(|i| (i % 2, sample(i))).collect(),
        forecasts: vec![(
            1,
            Forecast {
                resource: Resource::Memory,
                origin_t_s: 1_760_000_001.0,
                step_s: 1.0,
                quantiles: [[1.0e8; LEVELS]; HORIZONS],
                source: Source::Base,
                confidence: 0.5,
            },
        )],
        limits: vec![(0, Knob::CpuQuota, Limit::At(1.5)), (1, Knob::MemoryMax, Limit::Unlimited)],
        actions: vec![(
            0,
            AppliedAction {
                knob: Knob::CpuQuota,
                before: Limit::At(1.0),
                after: Limit::At(1.5),
                at_s: 1_760_000_000.5,
                reason: "p99 ahead of use".to_owned(),
            },
        )],
        sketches: vec![(
            0,
            Sketches { order: SketchCounts::new((0..SKETCH_BINS as u32).collect()), code: None },
        )],
    }
}

fn frames() -> Vec<Seed> {
    let boot = BootId(7);
    let hello = Hello {
        protocol: 4,
        schema: SchemaHash::current(),
        node: "host-1".to_owned(),
        boot,
        agent_version: "0.1.0".to_owned(),
        kernel: "6.1".to_owned(),
        model_version: Some(3),
        now_s: 1.76e9,
        protocol_oldest: Some(4),
        policy_version: None,
    };
    let welcome = Welcome {
        protocol: 4,
        aggregator_version: "0.1.0".to_owned(),
        durable_seq: Some(9),
        now_s: 1.76e9,
    };
    let entries = vec![(0, Workload::from_path("/system.slice/a.service"))];
    let probes = vec![
        ProbeReport { name: "sched".to_owned(), state: Fact::Known("tracepoint".to_owned()) },
        ProbeReport { name: "pmu".to_owned(), state: Fact::absent("no PMU in this guest") },
    ];
    let message = |name, message: Message| (name, frame::encode(&message).unwrap());
    vec![
        message("hello", Message::Hello(hello)),
        message("welcome", Message::Welcome(welcome)),
        message("refused", Message::Refused { reason: "another schema".to_owned() }),
        message("workloads", Message::Workloads(Definitions { boot, entries })),
        message("batch", Message::Batch(contents().encode(boot, 1).unwrap())),
        message("batch-empty", Message::Batch(Contents::default().encode(boot, 2).unwrap())),
        message("probes", Message::Probes(probes)),
        message("ack", Message::Ack { boot, seq: 5 }),
        message(
            "model",
            Message::ModelOffer(Bundle {
                manifest: vec![0x80],
                onnx: vec![8, 7, 18, 4],
                golden: vec![0x90],
                signature: vec![8; 64],
            }),
        ),
        message(
            "verdict",
            Message::ModelVerdict { version: 3, refused: Some("schema".to_owned()) },
        ),
        message(
            "policy",
            Message::PolicyOffer(PolicyOffer {
                version: 9,
                text: Some("[defaults]\nmode = \"raise\"\n".to_owned()),
                signature: vec![8; 64],
            }),
        ),
        message("policy-verdict", Message::PolicyVerdict { version: 9, refused: None }),
        message("settled", Message::Settled { boot, before: 4 }),
        message("wait", Message::Wait { for_s: 10, reason: "disk full".to_owned() }),
    ]
}

fn enrolment() -> Vec<Seed> {
    let csr = || vec![0x30, 0x82, 1, 2].into();
    let join = Request::Join { token: "hrj-0-1".to_owned(), node: "host-1".to_owned(), csr: csr() };
    let back = Request::Return { node: "host-1".to_owned(), csr: csr() };
    let grant = Grant {
        node: "host-1".to_owned(),
        chain: vec![csr()],
        authorities: vec![csr()],
        model_key: vec![1; 32].into(),
        now_s: 1.76e9,
    };
    let refused =
        Reply::Refused { kind: "used".to_owned(), reason: "the token is used".to_owned() };
    vec![
        ("join", join.encode().unwrap()),
        ("renew", Request::Renew { csr: csr() }.encode().unwrap()),
        ("return", back.encode().unwrap()),
        ("issued", Reply::Issued(grant).encode().unwrap()),
        ("refused", refused.encode().unwrap()),
    ]
}

fn certificates() -> Vec<Seed> {
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("aggregator");
    pki::init(&own, &["localhost".to_owned()]).unwrap();
    pki::issue(&own, "headroom", "host-1", &dir.path().join("agent")).unwrap();
    let der = |path: &str| {
        CertificateDer::from_pem_file(dir.path().join(path)).unwrap().as_ref().to_vec()
    };
    vec![
        ("authority", der("aggregator/ca.pem")),
        ("server", der("aggregator/server.pem")),
        ("agent", der("agent/agent.pem")),
    ]
}

fn numberings() -> Vec<Seed> {
    let mut gaps = Numbering::up_to(5);
    for seq in [8, 9, 12, 40] {
        assert!(gaps.insert(seq));
    }
    vec![("gapless", Numbering::up_to(77).to_bytes()), ("gaps", gaps.to_bytes())]
}

fn traces() -> Vec<Seed> {
    vec![
        (
            "plain",
            b"workload,t,cpu_cores,memory_bytes\na,0,0.5,1000\nb,0,,2000\na,1,0.75,1000\n".to_vec(),
        ),
        (
            "broken",
            b"workload,t,cpu_cores\na,0,-1\na,5,NaN\na,3,1e15\n\"a\nb\",4,inf\na,5,2,9\n\xff,1,1\n"
                .to_vec(),
        ),
        (
            "limits",
            b"t,workload,cpu_cores,cpu_limit_cores,extra\n0,x,0.2,0,1\n300,x,0.3,2,1\n300,x,0.4,2,1\n"
                .to_vec(),
        ),
    ]
}
