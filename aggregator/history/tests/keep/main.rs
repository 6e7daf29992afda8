//! What is committed is there after closing, after a repeat, in journal, memory or lake, and until
//! retention takes it. A life that ends at any step loses nothing and doubles nothing.

#![expect(clippy::unwrap_used, reason = "a test stops where something is not as it should be")]

#[cfg(feature = "s3")]
mod bucket;

use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
};

use headroom_allocate::{Knob, Limit};
use headroom_history::{Arrival, History, HistoryConfig, HistoryError, Pressure, seconds};
use headroom_lake::storage::{Local, Storage};
use headroom_telemetry::{Feature, Sample, Workload};
use headroom_wire::{AppliedAction, BootId};

/// An hour of the day, so that tests know where hours begin.
const T0_S: f64 = 1_795_370_400.0;

fn sample(t_s: f64, cores: f64) -> Sample {
    let mut sample = Sample::empty(t_s);
    sample.set(Feature::CpuCores, cores);
    sample
}

fn arrival(host: &str, seq: u64, path: &str, times: std::ops::Range<u32>) -> Arrival {
    let workload = Workload::from_path(path);
    let action = AppliedAction {
        knob: Knob::CpuQuota,
        before: Limit::Unlimited,
        after: Limit::At(2.0),
        at_s: T0_S + f64::from(times.start) + 0.25,
        reason: "p99 within 5 s is 1.7 cores".to_owned(),
    };
    Arrival {
        host: host.to_owned(),
        number: Some((BootId(7), seq)),
        samples: times
            .map(|t| (workload.clone(), sample(T0_S + f64::from(t), f64::from(t) / 10.0)))
            .collect(),
        actions: vec![(workload, action)],
    }
}

fn times(history: &History, host: &str, path: &str) -> Vec<u32> {
    let window = history.window(host, path, 0.0, 4.0e9).unwrap();
    window.iter().map(|sample| (sample.t_s - T0_S) as u32).collect()
}

fn config() -> HistoryConfig {
    // The tests run on machines of any size.
    HistoryConfig {
        free_mb_min: 0,
        free_mb_low: 0,
        hot_minutes: 0.0,
        raw_hours: 24.0,
        ..HistoryConfig::default()
    }
}

fn open(dir: &Path) -> History {
    History::open_with(dir, config(), Arc::new(Local)).unwrap()
}

#[test]
fn what_is_committed_is_there_in_journal_memory_and_lake() {
    let dir = tempfile::tempdir().unwrap();
    let look = |history: &History| {
        assert_eq!(history.n_series(), 2);
        assert_eq!(history.durable_seq("a", BootId(7)), Some(1));
        assert_eq!(history.durable_seq("b", BootId(7)), None, "1 and 2 may come yet");
        assert!(history.numbering("b", BootId(7)).contains(3));
        assert_eq!(history.durable_seq("a", BootId(8)), None);
        let window = history.window("a", "/x", T0_S + 12.0, T0_S + 14.0).unwrap();
        let at: Vec<f64> = window.iter().map(|s| s.t_s - T0_S).collect();
        assert_eq!(at, [12.0, 13.0, 14.0]);
        assert_eq!(window[0].get(Feature::CpuCores), Some(1.2));
        assert_eq!(window[0].get(Feature::MemoryBytes), None, "missing stays missing");
        let actions = history.actions("a", "/x", 0.0, 4.0e9).unwrap();
        assert_eq!(actions.len(), 1);
        assert_eq!(actions[0].before, Limit::Unlimited);
        assert_eq!(actions[0].at_s, T0_S + 10.25);
        assert_eq!(history.series(0.0, 4.0e9).unwrap().len(), 2);
    };
    let history = open(dir.path());
    history.commit(&[arrival("a", 1, "/x", 10..20), arrival("b", 3, "/x", 10..12)]).unwrap();
    look(&history);
    drop(history);
    let history = open(dir.path());
    look(&history);
    history.seal().unwrap();
    look(&history);
    history.seal_due().unwrap();
    assert_eq!(history.unsealed_bytes(), 0);
    look(&history);
    drop(history);
    look(&open(dir.path()));
}

#[test]
fn some_features_of_a_window_are_those_of_the_whole() {
    let dir = tempfile::tempdir().unwrap();
    let history = open(dir.path());
    let mut first = arrival("a", 1, "/x", 10..20);
    let workload = Workload::from_path("/x");
    first.samples = (10_u32..20)
        .map(|t| {
            let mut sample = sample(T0_S + f64::from(t), f64::from(t) / 10.0);
            sample.set(Feature::MemoryBytes, 1e6);
            if t % 2 == 0 {
                sample.set(Feature::NetTxBps, f64::from(t));
            }
            (workload.clone(), sample)
        })
        .collect();
    history.commit(&[first, arrival("a", 2, "/y", 10..20)]).unwrap();
    let wanted = [Feature::NetTxBps, Feature::CpuCores];
    let look = |range_s: (f64, f64)| {
        let whole = history.window("a", "/x", range_s.0, range_s.1).unwrap();
        let some = history.window_of("a", "/x", range_s, &wanted).unwrap();
        assert_eq!(some.len(), whole.len());
        for (row, whole) in whole.iter().enumerate() {
            assert_eq!(seconds(some.t_ms[row]), whole.t_s);
            let values = wanted.map(|feature| whole.get(feature).unwrap_or(f32::NAN));
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(some.row(row)), bits(&values), "in the order asked for, no others");
        }
        some.len()
    };
    let lengths = || [look((0.0, 4.0e9)), look((T0_S + 12.0, T0_S + 14.0)), look((0.0, 1.0))];
    assert_eq!(lengths(), [10, 3, 0], "in memory");
    history.seal().unwrap();
    history.seal_due().unwrap();
    assert_eq!(lengths(), [10, 3, 0], "in the lake");
    assert!(history.window_of("a", "/other", (0.0, 4.0e9), &wanted).unwrap().is_empty());
}

#[test]
fn a_repeat_changes_nothing_and_what_comes_late_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let history = open(dir.path());
    for _ in 0..3 {
        let twice = [arrival("a", 5, "/x", 10..20), arrival("a", 5, "/x", 10..20)];
        history.commit(&twice).unwrap();
        history.seal().unwrap();
    }
    history.commit(&[arrival("a", 4, "/x", 0..3)]).unwrap();
    assert_eq!(times(&history, "a", "/x"), [0, 1, 2].into_iter().chain(10..20).collect::<Vec<_>>());
    assert_eq!(history.actions("a", "/x", 0.0, 4.0e9).unwrap().len(), 2);
    assert_eq!(history.n_series(), 1);
    // Outside of any numbering, a sample is named by series and time.
    let again: Vec<_> =
        (10..12).map(|t| (Workload::from_path("/x"), sample(T0_S + f64::from(t), 9.0))).collect();
    history.append("a", &again).unwrap();
    assert_eq!(times(&history, "a", "/x").len(), 13);
    history.seal().unwrap();
    assert_eq!(times(&history, "a", "/x").len(), 13);
}

#[test]
fn a_bounded_read_gives_the_newest() {
    let dir = tempfile::tempdir().unwrap();
    let history = open(dir.path());
    history.commit(&[arrival("a", 1, "/x", 10..30)]).unwrap();
    history.seal().unwrap();
    history.commit(&[arrival("a", 2, "/y", 10..13), arrival("a", 3, "/x", 30..32)]).unwrap();
    let series = history.newest(0.0, 4.0e9, 10).unwrap();
    let at: Vec<Vec<f64>> = series
        .iter()
        .map(|series| series.samples.iter().map(|sample| sample.t_s - T0_S).collect())
        .collect();
    assert_eq!(at, [vec![27.0, 28.0, 29.0, 30.0, 31.0], vec![10.0, 11.0, 12.0]]);
}

#[test]
fn old_hours_are_merged_thinned_and_removed_by_age() {
    let dir = tempfile::tempdir().unwrap();
    let history = open(dir.path());
    for part in 0..4 {
        history
            .commit(&[arrival("a", part + 1, "/x", (part as u32 * 50)..(part as u32 * 50 + 50))])
            .unwrap();
        history.seal().unwrap();
    }
    // An agent that was away tells of the hour before.
    let workload = Workload::from_path("/x");
    let late: Vec<_> =
        (0..5).map(|t| (workload.clone(), sample(T0_S - 100.0 + f64::from(t), 1.0))).collect();
    history.append("a", &late).unwrap();
    history.seal().unwrap();
    history.seal_due().unwrap();
    let before = history.window("a", "/x", 0.0, 4.0e9).unwrap().len();
    assert_eq!(before, 205);
    let tended = history.tend(T0_S + 5_000.0).unwrap();
    assert_eq!((tended.merged, tended.thinned, tended.removed), (2, 2, 0));
    assert_eq!(history.window("a", "/x", 0.0, 4.0e9).unwrap().len(), before);
    assert_eq!(history.tend(T0_S + 5_000.0).unwrap(), Default::default(), "nothing is left to do");
    // A day later samples go, hour by hour; their rollups stay.
    assert_eq!(history.tend(T0_S + 86_400.0).unwrap().removed, 1);
    assert_eq!(times(&history, "a", "/x"), (0..200).collect::<Vec<_>>());
    history.tend(T0_S + 2.0 * 86_400.0).unwrap();
    assert!(history.window("a", "/x", 0.0, 4.0e9).unwrap().is_empty());
    assert_eq!(history.actions("a", "/x", 0.0, 4.0e9).unwrap().len(), 4);
    let root = dir.path().join("lake");
    let n = |table| headroom_lake::layout::list(&root, table).unwrap().parts.len();
    assert_eq!(n(headroom_lake::Table::Samples), 0);
    assert_eq!(n(headroom_lake::Table::Samples10s), 2);
    history.tend(T0_S + 401.0 * 86_400.0).unwrap();
    assert_eq!(history.lake_files(), 0);
}

/// Ends a life at its `left`-th step from now on: that step and all later ones fail.
#[derive(Debug)]
struct Mortal {
    left: AtomicI64,
}

impl Storage for Mortal {
    fn reach(&self, step: &'static str, _path: &Path) -> io::Result<()> {
        if self.left.fetch_sub(1, Ordering::Relaxed) > 0 {
            Ok(())
        } else {
            Err(io::Error::other(format!("the life ended: {step}")))
        }
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        Local.free_bytes(path)
    }
}

/// One life: commits four batches and seals and tends between them. Returns what was acknowledged.
fn live(history: &History, first: u64) -> Result<(), (u64, HistoryError)> {
    let mut acknowledged = first - 1;
    for seq in first..=4 {
        let from = (seq as u32 - 1) * 10;
        // The third batch is of the hour after, so that one seal makes several files.
        let from = if seq == 3 { from + 3_600 } else { from };
        let mut run = || -> Result<(), HistoryError> {
            history.commit(&[arrival("a", seq, "/x", from..from + 10)])?;
            acknowledged = seq;
            if seq % 2 == 0 {
                history.seal()?;
                history.seal_due()?;
                history.tend(T0_S + 20_000.0)?;
            }
            Ok(())
        };
        if let Err(error) = run() {
            return Err((acknowledged, error));
        }
    }
    Ok(())
}

#[test]
fn a_life_that_ends_at_any_step_loses_nothing_and_doubles_nothing() {
    let expected: Vec<u32> = (0..20).chain(30..40).chain(3_620..3_630).collect();
    let mut n_steps = 0;
    loop {
        let dir = tempfile::tempdir().unwrap();
        let mortal = Arc::new(Mortal { left: AtomicI64::new(n_steps) });
        let ended = match History::open_with(dir.path(), config(), mortal) {
            Ok(history) => live(&history, 1),
            Err(error) => Err((0, error)),
        };
        let (acknowledged, step) = match &ended {
            Ok(()) => (4, String::new()),
            Err((acknowledged, error)) => (*acknowledged, error.to_string()),
        };
        // The next life finds at least what was acknowledged, and goes on where the agent would.
        let history = open(dir.path());
        let durable = history.durable_seq("a", BootId(7)).unwrap_or(0);
        assert!(durable >= acknowledged, "after {n_steps} steps: {step}");
        let n_found = times(&history, "a", "/x").len() as u64;
        assert_eq!(n_found, 10 * durable, "after {n_steps} steps: {step}");
        live(&history, durable + 1).map_err(|(_, error)| error).unwrap();
        for check in ["open", "sealed", "opened again"] {
            assert_eq!(
                times(&history, "a", "/x"),
                expected,
                "{check} after {n_steps} steps: {step}"
            );
            assert_eq!(history.actions("a", "/x", 0.0, 4.0e9).unwrap().len(), 4, "{step}");
            history.seal().unwrap();
            history.seal_due().unwrap();
            history.tend(T0_S + 20_000.0).unwrap();
        }
        drop(history);
        assert_eq!(times(&open(dir.path()), "a", "/x"), expected, "after {n_steps} steps: {step}");
        if ended.is_ok() {
            break;
        }
        n_steps += 1;
    }
    assert!(n_steps > 40, "only {n_steps} steps were there to end at");
}

/// A disk whose free bytes are told by the test.
#[derive(Debug)]
struct Disk {
    free_bytes: AtomicU64,
}

impl Storage for Disk {
    fn reach(&self, _step: &'static str, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn free_bytes(&self, _path: &Path) -> io::Result<u64> {
        Ok(self.free_bytes.load(Ordering::Relaxed))
    }
}

#[test]
fn a_full_disk_takes_nothing_makes_room_and_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(Disk { free_bytes: AtomicU64::new(10 << 30) });
    let config = HistoryConfig { free_mb_min: 256, free_mb_low: 1_024, ..config() };
    let storage: Arc<dyn Storage> = disk.clone();
    let history = History::open_with(dir.path(), config, storage).unwrap();
    history.commit(&[arrival("a", 1, "/x", 0..10)]).unwrap();
    history.seal().unwrap();
    history.seal_due().unwrap();
    assert_eq!(history.pressure(), Pressure::Fine);
    disk.free_bytes.store(10 << 20, Ordering::Relaxed);
    std::thread::sleep(std::time::Duration::from_millis(1_100));
    let refused = history.commit(&[arrival("a", 2, "/x", 10..20)]).unwrap_err();
    assert!(refused.to_string().contains("raw_hours"), "{refused}");
    assert!(!history.pressure().takes_more());
    assert_eq!(history.durable_seq("a", BootId(7)), Some(1), "what is refused is not durable");
    // The hour that runs is never removed; an older one is.
    history.tend(T0_S + 60.0).unwrap();
    assert_eq!(times(&history, "a", "/x").len(), 10);
    assert_eq!(history.tend(T0_S + 3_600.0).unwrap().removed, 1);
    disk.free_bytes.store(10 << 30, Ordering::Relaxed);
    history.commit(&[arrival("a", 2, "/x", 10..20)]).unwrap();
    assert_eq!(times(&history, "a", "/x"), (10..20).collect::<Vec<_>>());
    assert!(history.pressure().takes_more());
}
