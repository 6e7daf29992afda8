//! Frames go there and back, hold their limits on both sides, and survive hostile bytes.

#![expect(clippy::unwrap_used, reason = "a test stops where something is not as it should be")]

use headroom_allocate::{Knob, Limit};
use headroom_predict::{
    Bundle, Forecast, Source,
    forecast::{HORIZONS, LEVELS},
};
use headroom_telemetry::{
    ContainerNames, Fact, Feature, Resource, Runtime, Sample, SketchCounts, Sketches, Workload,
    schema::SchemaHash,
};
use headroom_wire::{
    AppliedAction, BatchError, BootId, Contents, DutyReport, FrameError, Hello, HostReport,
    Message, ProbeReport, Welcome, frame, limits, message::Definitions,
};
use proptest::prelude::{ProptestConfig, any, prop, prop_assert, proptest};

const T_S: f64 = 1_764_000_000.25;

fn sample(t_s: f64, i: u32) -> Sample {
    let mut sample = Sample::empty(t_s);
    sample.set(Feature::CpuCores, 0.1 + f64::from(i) * 0.37);
    sample.set(Feature::MemoryBytes, 1.0e9 + f64::from(i) * 4_096.0);
    sample.set(Feature::SyscallRead, f64::from(i * 17 % 301));
    sample.set(Feature::CpuThrottledRatio, 0.0);
    sample
}

fn forecast(i: u32) -> Forecast {
    let mut quantiles = [[0.0; LEVELS]; HORIZONS];
    for (h, row) in quantiles.iter_mut().enumerate() {
        for (q, value) in row.iter_mut().enumerate() {
            *value = f64::from(i) + 0.1 * h as f64 + 0.3 * q as f64;
        }
    }
    Forecast {
        resource: Resource::ALL[i as usize % Resource::COUNT],
        origin_t_s: T_S + 1.0,
        step_s: 1.0,
        quantiles,
        source: [Source::Base, Source::Reactive, Source::Starts, Source::Model(3)][i as usize % 4]
            .clone(),
        confidence: 0.75,
    }
}

fn contents(n: u32) -> Contents {
    Contents {
        host: Some((
            T_S + 1.0,
            HostReport {
                cpus: 2,
                load_1m: Some(0.5),
                duties: vec![DutyReport {
                    hook: "syscalls".to_owned(),
                    factor: 0.25,
                    relative_error: Some(0.1),
                }],
                ..HostReport::default()
            },
        )),
        samples: (0..n).map(|i| (i % 7, sample(T_S + f64::from(i / 7), i))).collect(),
        forecasts: (0..n).map(|i| (i % 7, forecast(i))).collect(),
        limits: vec![
            (0, Knob::CpuQuota, Limit::At(1.5)),
            (0, Knob::MemoryMax, Limit::Unlimited),
            (3, Knob::MemoryHigh, Limit::At(123_456_789.0)),
        ],
        actions: vec![(
            2,
            AppliedAction {
                knob: Knob::CpuQuota,
                before: Limit::At(1.0),
                after: Limit::At(2.0),
                at_s: T_S + 0.125,
                reason: "p99 within 5 s is 1.7 cores".to_owned(),
            },
        )],
        sketches: vec![
            (1, Sketches { order: SketchCounts::new((0..64).collect()), code: None }),
            (6, Sketches { order: None, code: SketchCounts::new((0..64).rev().collect()) }),
        ],
    }
}

fn bundle() -> Bundle {
    Bundle {
        manifest: vec![1; 400],
        onnx: vec![2; 100_000],
        golden: vec![3; 40_000],
        signature: vec![4; 64],
    }
}

fn names() -> ContainerNames {
    ContainerNames {
        container: ContainerNames::text("web"),
        compose: ContainerNames::text("shop").zip(ContainerNames::text("web")),
        ..ContainerNames::of(Runtime::Docker)
    }
}

fn every_message() -> Vec<Message> {
    vec![
        Message::Hello(Hello {
            protocol: limits::PROTOCOL,
            schema: SchemaHash::current(),
            node: "host-1.example".to_owned(),
            boot: BootId(0xfeed),
            agent_version: "0.1.0".to_owned(),
            kernel: "6.1.0-13-amd64".to_owned(),
            model_version: Some(4),
            now_s: T_S,
            protocol_oldest: Some(3),
            policy_version: None,
        }),
        Message::Welcome(Welcome {
            protocol: limits::PROTOCOL,
            aggregator_version: "0.1.0".to_owned(),
            durable_seq: Some(17),
            now_s: T_S,
        }),
        Message::Refused { reason: "feature schema differs".to_owned() },
        Message::Workloads(Definitions {
            boot: BootId(0xfeed),
            entries: vec![
                (0, Workload::from_path("/system.slice/nginx.service")),
                (1, Workload::named(&format!("/docker/{}", "a1".repeat(32)), Some(names()))),
            ],
        }),
        Message::Batch(contents(20).encode(BootId(0xfeed), 17).unwrap()),
        Message::Probes(vec![
            ProbeReport { name: "block".to_owned(), state: Fact::Known("tracepoint".to_owned()) },
            ProbeReport { name: "pmu".to_owned(), state: Fact::absent("no PMU in this guest") },
            ProbeReport {
                name: "tasks".to_owned(),
                state: Fact::degraded("procfs".to_owned(), "means only"),
            },
        ]),
        Message::Ack { boot: BootId(0xfeed), seq: 17 },
        Message::Settled { boot: BootId(0xfeed), before: 17 },
        Message::Wait { for_s: 30, reason: "full".to_owned() },
        Message::ModelOffer(bundle()),
        Message::ModelVerdict { version: 4, refused: Some("other schema".to_owned()) },
    ]
}

fn there_and_back(message: &Message) -> Message {
    let bytes = frame::encode(message).unwrap();
    let (back, length) = frame::split(&bytes).unwrap();
    assert_eq!(length, bytes.len());
    back
}

#[test]
fn every_message_goes_there_and_back() {
    for message in every_message() {
        let back = there_and_back(&message);
        assert_eq!(format!("{back:?}"), format!("{message:?}"), "{}", message.kind());
    }
}

#[test]
fn contents_come_back_within_their_rounding() {
    let sent = contents(40);
    let Message::Batch(batch) = there_and_back(&Message::Batch(sent.encode(BootId(1), 1).unwrap()))
    else {
        panic!("not a batch")
    };
    let got = batch.decode().unwrap();
    assert_eq!(got.host, sent.host);
    assert_eq!(got.limits, sent.limits);
    assert_eq!(got.actions, sent.actions);
    assert_eq!(got.sketches, sent.sketches);
    for ((i, a), (j, b)) in sent.samples.iter().zip(&got.samples) {
        assert_eq!(i, j);
        assert!((a.t_s - b.t_s).abs() < 1.0e-3);
        for &feature in Feature::ALL {
            match (a.get(feature), b.get(feature)) {
                (None, None) => {}
                (Some(x), Some(y)) => assert!((x - y).abs() <= x.abs() / 1_024.0, "{x} {y}"),
                (x, y) => panic!("{}: {x:?} became {y:?}", feature.name()),
            }
        }
    }
    for ((i, a), (j, b)) in sent.forecasts.iter().zip(&got.forecasts) {
        assert_eq!((i, a.resource, &a.source), (j, b.resource, &b.source));
        for (x, y) in a.quantiles.iter().flatten().zip(b.quantiles.iter().flatten()) {
            assert!((x - y).abs() <= x / 256.0 + 1.0e-9, "{x} became {y}");
        }
    }
    assert_eq!(got.samples.len(), sent.samples.len());
    assert_eq!(got.forecasts.len(), sent.forecasts.len());
}

#[test]
fn nothing_is_a_batch_too() {
    let batch = Contents::default().encode(BootId(1), 1).unwrap();
    assert!(batch.decode().unwrap().is_empty());
}

#[test]
fn the_length_in_front_is_checked_before_anything_is_allocated() {
    let max = u32::try_from(limits::FRAME_BYTES_MAX).unwrap();
    assert!(frame::body_bytes(1_u32.to_be_bytes()).is_ok());
    assert!(frame::body_bytes(max.to_be_bytes()).is_ok());
    assert!(matches!(frame::body_bytes([0; 4]), Err(FrameError::Empty)));
    assert!(matches!(frame::body_bytes((max + 1).to_be_bytes()), Err(FrameError::TooLong { .. })));
    assert!(matches!(frame::body_bytes([0xff; 4]), Err(FrameError::TooLong { .. })));
}

#[test]
fn a_bundle_may_fill_a_frame_and_not_more() {
    let fits = |onnx: usize| {
        let bundle = Bundle { onnx: vec![0; onnx], ..bundle() };
        frame::encode(&Message::ModelOffer(bundle))
    };
    let overhead = fits(500_000).unwrap().len() - frame::HEADER_BYTES - 500_000;
    let largest = limits::FRAME_BYTES_MAX - overhead;
    let frame = fits(largest).unwrap();
    assert!(frame::split(&frame).is_ok());
    assert!(matches!(fits(largest + 1), Err(FrameError::TooLong { .. })));
}

#[test]
fn text_and_counts_hold_their_limits_on_both_sides() {
    let hello = |n: usize| {
        let Message::Hello(hello) = every_message().remove(0) else { panic!("hello is first") };
        Message::Hello(Hello { node: "n".repeat(n), ..hello })
    };
    let reason = |n: usize| Message::Refused { reason: "r".repeat(n) };
    let probes = |n: usize| {
        let probe = ProbeReport { name: "p".to_owned(), state: Fact::absent("none") };
        Message::Probes(vec![probe; n])
    };
    let workloads = |n: usize| {
        let entries = vec![(0, Workload::from_path("/x")); n];
        Message::Workloads(Definitions { boot: BootId(1), entries })
    };
    let path = |n: usize| {
        let entries = vec![(0, Workload { path: "p".repeat(n), ..Workload::from_path("/x") })];
        Message::Workloads(Definitions { boot: BootId(1), entries })
    };
    let cases: [(&dyn Fn(usize) -> Message, usize); 5] = [
        (&hello, limits::NODE_BYTES_MAX),
        (&reason, limits::TEXT_BYTES_MAX),
        (&probes, limits::PROBES_MAX),
        (&workloads, limits::DEFINITIONS_MAX),
        (&path, limits::TEXT_BYTES_MAX),
    ];
    for (make, max) in cases {
        let kind = make(1).kind();
        assert!(frame::split(&frame::encode(&make(max)).unwrap()).is_ok(), "{kind}");
        assert!(matches!(frame::encode(&make(max + 1)), Err(FrameError::Excess { .. })), "{kind}");
        let written_elsewhere = rmp_serde::to_vec(&make(max + 1)).unwrap();
        assert!(
            matches!(frame::decode(&written_elsewhere), Err(FrameError::Excess { .. })),
            "{kind}"
        );
    }
}

#[test]
fn batches_hold_their_limits() {
    let one = |n: usize| Contents { samples: vec![(0, sample(T_S, 1)); n], ..Contents::default() };
    let full = one(limits::SAMPLES_MAX).encode(BootId(1), 1).unwrap();
    assert_eq!(full.decode().unwrap().samples.len(), limits::SAMPLES_MAX);
    assert!(matches!(
        one(limits::SAMPLES_MAX + 1).encode(BootId(1), 1),
        Err(BatchError::Excess { .. })
    ));
    for t_s in [f64::NAN, f64::INFINITY, -1.0, 1.0e12] {
        let contents = Contents { samples: vec![(0, sample(t_s, 1))], ..Contents::default() };
        assert!(matches!(contents.encode(BootId(1), 1), Err(BatchError::Value { .. })), "{t_s}");
    }
}

#[test]
fn every_cut_of_a_frame_is_truncated() {
    for message in every_message() {
        let bytes = frame::encode(&message).unwrap();
        for cut in (0..bytes.len()).step_by(1 + bytes.len() / 200) {
            assert!(
                matches!(frame::split(&bytes[..cut]), Err(FrameError::Truncated { .. })),
                "{} cut at {cut}",
                message.kind()
            );
        }
    }
}

#[test]
fn what_follows_a_message_is_refused() {
    let mut body = rmp_serde::to_vec(&Message::Ack { boot: BootId(1), seq: 1 }).unwrap();
    body.push(0);
    assert!(matches!(frame::decode(&body), Err(FrameError::Trailing { bytes: 1 })));
}

/// Whatever decodes as a batch is decoded to the end.
fn digest(body: &[u8]) {
    if let Ok(Message::Batch(batch)) = frame::decode(body)
        && let Ok(contents) = batch.decode()
    {
        for (_, forecast) in contents.forecasts {
            let finite = forecast.quantiles.iter().flatten().all(|value| value.is_finite());
            assert!(finite && (0.0..=1.0).contains(&forecast.confidence));
        }
        for (_, sample) in contents.samples {
            assert!(sample.t_s.is_finite());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.max(2_000), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_do_no_harm(body in prop::collection::vec(any::<u8>(), 0..600)) {
        digest(&body);
        prop_assert!(frame::split(&body).is_err() || body.len() > frame::HEADER_BYTES);
    }

    #[test]
    fn mutated_frames_do_no_harm(
        which in 0_usize..9,
        mutations in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut body = frame::encode(&every_message()[which]).unwrap().split_off(frame::HEADER_BYTES);
        for (at, byte) in mutations {
            let at = at.index(body.len());
            body[at] = byte;
        }
        digest(&body);
        body.truncate(cut.index(body.len()));
        digest(&body);
    }

    #[test]
    fn any_finite_sample_survives(values in prop::collection::vec(any::<f32>(), Feature::COUNT)) {
        let mut sent = Sample::empty(T_S);
        for (&feature, value) in Feature::ALL.iter().zip(&values) {
            sent.set(feature, f64::from(*value));
        }
        let contents = Contents { samples: vec![(0, sent.clone())], ..Contents::default() };
        let got = contents.encode(BootId(1), 1).unwrap().decode().unwrap();
        for &feature in Feature::ALL {
            match (sent.get(feature), got.samples[0].1.get(feature)) {
                (None, None) => {}
                (Some(x), Some(y)) => {
                    prop_assert!((x - y).abs() <= x.abs() / 1_024.0 + f32::MIN_POSITIVE, "{} {}", x, y);
                }
                (x, y) => prop_assert!(false, "{:?} became {:?}", x, y),
            }
        }
    }
}
