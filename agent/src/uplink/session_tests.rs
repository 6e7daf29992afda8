//! Batching, resending and bounds, with a clock of the test's own.

use headroom_allocate::{Knob, Limit};
use headroom_predict::{
    Forecast, Source,
    forecast::{HORIZONS, LEVELS},
};
use headroom_telemetry::{
    Fact, Feature, Resource, SKETCH_BINS, Sample, SketchCounts, Sketches, Workload,
};
use headroom_wire::{
    AppliedAction, HostReport, Message, ProbeReport, TickReport, WorkloadReport, frame, limits,
    message::BootId,
};

use super::{BACKOFF_S, IN_FLIGHT_MAX, Session};

pub(crate) fn tick(t_s: f64, n_workloads: usize) -> TickReport {
    let workloads = (0..n_workloads)
        .map(|i| {
            let mut sample = Sample::empty(t_s);
            sample.set(Feature::CpuCores, i as f64 + 0.5);
            WorkloadReport {
                workload: Workload::from_path(&format!("/w/{i}")),
                sample,
                forecasts: vec![Forecast {
                    resource: Resource::Cpu,
                    origin_t_s: t_s,
                    step_s: 1.0,
                    quantiles: [[1.0; LEVELS]; HORIZONS],
                    source: Source::Base,
                    confidence: 0.5,
                }],
                limits: vec![(Knob::CpuQuota, Limit::At(2.0))],
                actions: Vec::new(),
                sketches: Sketches::default(),
            }
        })
        .collect();
    TickReport { t_s, host: HostReport::default(), workloads, probes: Vec::new() }
}

fn session() -> Session {
    Session::new(BootId(9), 2.0)
}

/// Two seconds of reports make one batch.
fn gather(session: &mut Session, from_s: f64, n_ticks: u32) {
    for i in 0..n_ticks {
        let now_s = from_s + f64::from(i);
        session.report(tick(now_s, 2), now_s);
    }
}

fn sent(session: &mut Session) -> Vec<u64> {
    std::iter::from_fn(|| session.next_batch()).map(|(_, ready)| ready.seq).collect()
}

#[test]
fn a_batch_is_cut_when_its_time_is_up() {
    let mut session = session();
    session.connected(None);
    session.report(tick(100.0, 2), 100.0);
    assert!(session.next_batch().is_none());
    assert_eq!(session.due_s(), Some(102.0));
    session.report(tick(101.0, 2), 101.0);
    session.poll(101.9);
    assert!(session.next_batch().is_none());
    session.poll(102.0);
    let (definitions, ready) = session.next_batch().unwrap();
    assert_eq!(definitions.unwrap().entries.len(), 2);
    assert_eq!((ready.seq, ready.vectors), (1, 4));
    let (Message::Batch(batch), _) = frame::split(&ready.frame).unwrap() else {
        panic!("not a batch")
    };
    let contents = batch.decode().unwrap();
    assert_eq!(contents.samples.len(), 4);
    assert_eq!(contents.forecasts.len(), 2, "only the newest forecast travels");
    assert_eq!(contents.limits.len(), 2);
}

#[test]
fn what_is_not_acknowledged_is_sent_again() {
    let mut session = session();
    session.connected(None);
    gather(&mut session, 0.0, 9);
    let first = sent(&mut session);
    assert_eq!(first, [1, 2, 3, 4]);
    assert_eq!(session.acked(BootId(9), 2), 4, "one batch of four samples, not those before it");
    assert_eq!(session.acked(BootId(9), 2), 0, "once");
    session.disconnected(false);
    assert!(session.next_batch().is_none(), "nothing is sent without a connection");
    session.connected(None);
    assert_eq!(sent(&mut session), [1, 3, 4]);
    session.disconnected(false);
    assert_eq!(session.connected(Some(3)), 8, "the aggregator already had them");
    assert_eq!(sent(&mut session), [4]);
    session.rewind();
    assert_eq!(sent(&mut session), [4]);
    assert_eq!(session.oldest(), (BootId(9), 4));
}

#[test]
fn workloads_are_defined_until_a_batch_with_them_is_acknowledged() {
    let mut session = session();
    session.connected(None);
    gather(&mut session, 0.0, 5);
    let defined = |session: &mut Session| -> Vec<bool> {
        std::iter::from_fn(|| session.next_batch()).map(|(d, _)| d.is_some()).collect()
    };
    assert_eq!(defined(&mut session), [true, true], "whichever stream arrives first");
    session.acked(BootId(9), 2);
    gather(&mut session, 10.0, 5);
    let later = defined(&mut session);
    assert!(!later.is_empty() && later.iter().all(|defines| !defines), "{later:?}");
    session.disconnected(false);
    session.connected(None);
    assert!(session.next_batch().unwrap().0.is_some());
    session.disconnected(false);
    let (_, oldest) = session.oldest();
    assert!(session.connected(Some(oldest)) > 0, "the first is durable without a word of it");
    assert!(session.next_batch().unwrap().0.is_some(), "a new connection has no names");
}

#[test]
fn a_foreign_acknowledgement_settles_nothing() {
    let mut session = session();
    session.connected(None);
    gather(&mut session, 0.0, 3);
    sent(&mut session);
    assert_eq!(session.acked(BootId(8), 1), 0);
    assert_eq!(session.acked(BootId(9), 77), 0, "never sent");
    assert_eq!(session.waiting(), 1);
}

#[test]
fn only_so_much_is_in_flight() {
    let mut session = session();
    session.connected(None);
    gather(&mut session, 0.0, 2 * IN_FLIGHT_MAX as u32 + 21);
    assert_eq!(sent(&mut session).len(), IN_FLIGHT_MAX);
    (1..=5).for_each(|seq| assert_eq!(session.acked(BootId(9), seq), 4));
    assert_eq!(sent(&mut session).len(), 5);
}

#[test]
fn memory_is_bounded_by_bytes_and_age_oldest_first() {
    let mut session = session();
    gather(&mut session, 0.0, 21);
    assert_eq!(session.waiting(), 10);
    let aged: Vec<u64> =
        session.overflow(usize::MAX, 10.0, 20.0).iter().map(|ready| ready.seq).collect();
    assert_eq!(aged, [1, 2, 3, 4], "cut at 2, 4, 6 and 8 s");
    let size = session.next_size();
    let large: Vec<u64> =
        session.overflow(2 * size + 1, 1.0e9, 20.0).iter().map(|ready| ready.seq).collect();
    assert_eq!(large, [5, 6, 7, 8]);
}

#[test]
fn many_workloads_make_several_frames_within_the_limit() {
    let mut session = session();
    session.connected(None);
    session.report(tick(1.0, 5_000), 1.0);
    session.cut(2.0);
    let mut n_samples = 0;
    let mut n_defined = 0;
    while let Some((definitions, ready)) = session.next_batch() {
        assert!(ready.frame.len() <= limits::FRAME_BYTES_MAX);
        n_samples += ready.vectors;
        n_defined += definitions.map_or(0, |definitions| definitions.entries.len());
    }
    assert_eq!((n_samples, n_defined), (5_000, 5_000));
    assert_eq!(session.take_losses().vectors, 0);
}

#[test]
fn what_cannot_be_sent_is_counted_and_the_rest_goes_on() {
    let mut session = session();
    session.connected(None);
    let mut report = tick(1.0, 3);
    report.workloads[1].workload.path = "/".repeat(limits::TEXT_BYTES_MAX + 1);
    report.workloads[2].actions.push(AppliedAction {
        knob: Knob::CpuQuota,
        before: Limit::At(1.0),
        after: Limit::At(2.0),
        at_s: 1.0,
        reason: "é".repeat(limits::TEXT_BYTES_MAX),
    });
    session.report(report, 1.0);
    session.cut(3.0);
    let losses = session.take_losses();
    assert_eq!(losses.vectors, 1);
    assert!(losses.error.unwrap().contains("too long"));
    let (_, ready) = session.next_batch().unwrap();
    assert_eq!(ready.vectors, 2);
}

#[test]
fn probe_states_go_out_on_connecting_and_when_they_change() {
    let mut session = session();
    session.connected(None);
    assert!(session.next_probes().is_none());
    let probe = |text: &str| ProbeReport { name: "pmu".to_owned(), state: Fact::absent(text) };
    let mut report = tick(1.0, 0);
    report.probes = vec![probe("guest")];
    session.report(report.clone(), 1.0);
    assert_eq!(session.next_probes(), Some(vec![probe("guest")]));
    session.report(report.clone(), 2.0);
    assert!(session.next_probes().is_none());
    report.probes = vec![probe("no rights")];
    session.report(report, 3.0);
    assert!(session.next_probes().is_some());
    session.disconnected(false);
    session.connected(None);
    assert!(session.next_probes().is_some());
}

#[test]
fn waits_grow_stay_bounded_and_begin_anew_after_success() {
    let mut session = session();
    let (first_s, longest_s) = BACKOFF_S;
    let waits: Vec<f64> = (0..40).map(|_| session.disconnected(false)).collect();
    assert!(waits[0] <= first_s);
    assert!(waits.iter().all(|wait_s| (0.0..=longest_s).contains(wait_s)));
    assert!(waits[20..].iter().all(|wait_s| *wait_s >= longest_s / 2.0));
    assert!(session.disconnected(true) >= longest_s / 2.0);
    session.connected(None);
    gather(&mut session, 0.0, 3);
    session.acked(BootId(9), 1);
    assert!(session.disconnected(false) <= first_s);
}

#[test]
fn sketches_are_summed_and_sent_every_ten_seconds() {
    let mut session = session();
    session.connected(None);
    for i in 0..24 {
        let now_s = 100.0 + f64::from(i);
        let mut report = tick(now_s, 2);
        report.workloads[0].sketches.order = SketchCounts::new(vec![1; SKETCH_BINS]);
        session.report(report, now_s);
    }
    session.cut(124.0);
    let mut told = Vec::new();
    while let Some((_, ready)) = session.next_batch() {
        let (message, _) = frame::split(&ready.frame).unwrap();
        let Message::Batch(batch) = message else { panic!("not a batch") };
        session.acked(BootId(9), ready.seq);
        let contents = batch.decode().unwrap();
        told.extend(contents.sketches.into_iter().map(|(index, sketches)| {
            assert_eq!(index, 0);
            sketches.order.unwrap().0[5]
        }));
    }
    assert_eq!(told, [10, 10], "what is left waits for its time");
}
