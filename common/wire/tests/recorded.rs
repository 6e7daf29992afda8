//! Frames recorded once are decoded for ever, or the protocol version is raised.
//!
//! With `HEADROOM_RECORD_FRAMES=1` in the environment the recording is written anew.

#![expect(clippy::unwrap_used, reason = "a test stops where something is not as it should be")]

use std::{fs, path::PathBuf};

use headroom_allocate::{Knob, Limit};
use headroom_predict::{Bundle, Forecast, Source, forecast::HORIZONS};
use headroom_telemetry::{
    Fact, Feature, Resource, Sample, SketchCounts, Sketches, Workload, schema::SchemaHash,
};
use headroom_wire::{
    AppliedAction, BatchError, BootId, Contents, Hello, HostReport, Message, PolicyOffer,
    ProbeReport, Welcome, frame, limits::PROTOCOL, message::Definitions,
};

const T_S: f64 = 1_764_000_000.0;

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/frames-v{PROTOCOL}.bin"))
}

fn contents() -> Contents {
    let samples = (0..6_u32).map(|i| {
        let mut sample = Sample::empty(T_S + f64::from(i / 2));
        sample.set(Feature::CpuCores, 0.5 + f64::from(i) * 0.25);
        sample.set(Feature::MemoryBytes, 1_073_741_824.0);
        (i % 2, sample)
    });
    Contents {
        host: Some((
            T_S + 2.0,
            HostReport { cpus: 4, load_1m: Some(0.75), ..HostReport::default() },
        )),
        samples: samples.collect(),
        forecasts: vec![(
            1,
            Forecast {
                resource: Resource::Memory,
                origin_t_s: T_S + 2.0,
                step_s: 1.0,
                quantiles: [[1.0, 2.0, 4.0, 8.0, 16.0]; HORIZONS],
                source: Source::Model(7),
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
                at_s: T_S + 1.5,
                reason: "raise ahead of demand".to_owned(),
            },
        )],
        sketches: vec![(1, Sketches { order: SketchCounts::new((0..64).collect()), code: None })],
    }
}

fn messages() -> Vec<Message> {
    let boot = BootId(0x0123_4567_89ab_cdef);
    vec![
        Message::Hello(Hello {
            protocol: PROTOCOL,
            schema: SchemaHash([7; 16]),
            node: "host-1".to_owned(),
            boot,
            agent_version: "0.1.0".to_owned(),
            kernel: "6.1.0".to_owned(),
            model_version: None,
            now_s: T_S,
            protocol_oldest: Some(3),
            policy_version: None,
        }),
        Message::Welcome(Welcome {
            protocol: PROTOCOL,
            aggregator_version: "0.1.0".to_owned(),
            durable_seq: Some(3),
            now_s: T_S,
        }),
        Message::Refused { reason: "no".to_owned() },
        Message::Workloads(Definitions {
            boot,
            entries: vec![
                (0, Workload::from_path("/system.slice/nginx.service")),
                (1, Workload::from_path("/demo/batch")),
            ],
        }),
        Message::Batch(contents().encode(boot, 4).unwrap()),
        Message::Probes(vec![ProbeReport {
            name: "pmu".to_owned(),
            state: Fact::absent("no PMU in this guest"),
        }]),
        Message::Ack { boot, seq: 4 },
        Message::ModelOffer(Bundle {
            manifest: vec![1, 2],
            onnx: vec![3, 4, 5],
            golden: vec![6],
            signature: vec![7; 64],
        }),
        Message::ModelVerdict { version: 7, refused: None },
        Message::Settled { boot, before: 3 },
        Message::Wait { for_s: 30, reason: "the disk is full".to_owned() },
        Message::PolicyOffer(PolicyOffer {
            version: 9,
            text: Some("deny = []\n".to_owned()),
            signature: vec![8; 64],
        }),
        Message::PolicyVerdict { version: 9, refused: Some("older".to_owned()) },
    ]
}

#[test]
fn recorded_frames_are_understood() {
    let path = path();
    if std::env::var_os("HEADROOM_RECORD_FRAMES").is_some() {
        let bytes: Vec<u8> =
            messages().iter().flat_map(|message| frame::encode(message).unwrap()).collect();
        fs::write(&path, bytes).unwrap();
    }
    let recorded = fs::read(&path).unwrap();
    let mut rest = recorded.as_slice();
    for expected in messages() {
        let (message, length) = frame::split(rest).unwrap();
        rest = &rest[length..];
        if let (Message::Batch(batch), Message::Batch(_)) = (&message, &expected) {
            // Compressed bytes may change with the library; what they mean may not.
            let (got, sent) = (batch.decode().unwrap(), contents());
            assert_eq!(format!("{got:?}"), format!("{sent:?}"));
        } else {
            assert_eq!(format!("{message:?}"), format!("{expected:?}"));
        }
    }
    assert!(rest.is_empty());
}

/// What becomes of the one batch that a recording in `name` holds.
fn batch_of(name: &str) -> Result<Contents, BatchError> {
    let recorded = fs::read(path().with_file_name(name)).unwrap();
    let mut rest = recorded.as_slice();
    let mut batches = Vec::new();
    while !rest.is_empty() {
        let (message, length) = frame::split(rest).unwrap();
        rest = &rest[length..];
        if let Message::Batch(batch) = message {
            batches.push(batch);
        }
    }
    assert_eq!(batches.len(), 1);
    batches[0].decode()
}

/// Protocol 3 only adds a source of forecasts; 4 changes how batches travel, not what they are; 5 only
/// adds policies.
#[test]
fn batches_of_protocols_2_to_4_read_as_they_did() {
    for file in ["frames-v2.bin", "frames-v3.bin", "frames-v4.bin"] {
        let read = batch_of(file).unwrap();
        assert_eq!(format!("{read:?}"), format!("{:?}", contents()), "{file}");
    }
}

/// The hello of an agent of an older protocol still is one, so that it can be served or told why not.
#[test]
fn the_hellos_of_protocols_3_and_4_read_as_they_did() {
    for (file, versions) in [("frames-v3.bin", (3, None)), ("frames-v4.bin", (4, Some(3)))] {
        let recorded = fs::read(path().with_file_name(file)).unwrap();
        let (message, _) = frame::split(&recorded).unwrap();
        let Message::Hello(hello) = message else { panic!("{}", message.kind()) };
        assert_eq!((hello.protocol, hello.protocol_oldest), versions);
        assert_eq!((hello.node.as_str(), hello.policy_version), ("host-1", None));
    }
}

/// An agent of this release may have such batches in its spool: they must not end the connection.
#[test]
fn a_batch_of_the_older_form_is_unreadable_by_itself() {
    assert!(matches!(batch_of("frames-v1.bin"), Err(BatchError::Codec(1))));
}
