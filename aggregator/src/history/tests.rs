//! What is committed is there after closing, after a repeat, and until retention takes it.

use headroom_allocate::{Knob, Limit};
use headroom_telemetry::{Feature, Sample, Workload};
use headroom_wire::{AppliedAction, BootId};

use super::{Arrival, History};

fn sample(t_s: f64, cores: f64) -> Sample {
    let mut sample = Sample::empty(t_s);
    sample.set(Feature::CpuCores, cores);
    sample
}

fn arrival(host: &str, seq: u64, path: &str, times: std::ops::Range<u32>) -> Arrival {
    let workload = Workload::from_path(path);
    Arrival {
        host: host.to_owned(),
        number: Some((BootId(7), seq)),
        samples: times
            .map(|t| (workload.clone(), sample(f64::from(t), f64::from(t) / 10.0)))
            .collect(),
        actions: vec![(
            workload,
            AppliedAction {
                knob: Knob::CpuQuota,
                before: Limit::Unlimited,
                after: Limit::At(2.0),
                at_s: 15.25,
                reason: "p99 within 5 s is 1.7 cores".to_owned(),
            },
        )],
    }
}

#[test]
fn what_is_committed_is_there_after_opening_again() {
    let dir = tempfile::tempdir().unwrap();
    {
        let history = History::open(dir.path()).unwrap();
        history.commit(&[arrival("a", 1, "/x", 10..20), arrival("b", 3, "/x", 10..12)]).unwrap();
    }
    let history = History::open(dir.path()).unwrap();
    assert_eq!(history.n_series(), 2);
    assert_eq!(history.durable_seq("a", BootId(7)), Some(1));
    assert_eq!(history.durable_seq("b", BootId(7)), None, "one and two are missing");
    assert!(history.numbering("b", BootId(7)).contains(3));
    assert_eq!(history.durable_seq("a", BootId(8)), None);
    let window = history.window("a", "/x", 12.0, 14.0).unwrap();
    assert_eq!(window.iter().map(|s| s.t_s).collect::<Vec<_>>(), [12.0, 13.0, 14.0]);
    assert_eq!(window[0].get(Feature::CpuCores), Some(1.2));
    assert_eq!(window[0].get(Feature::MemoryBytes), None, "missing stays missing");
    let actions = history.actions("a", "/x", 0.0, 100.0).unwrap();
    assert_eq!(actions.len(), 1);
    assert_eq!(actions[0].before, Limit::Unlimited);
    // New series do not take the numbers of old ones.
    history.append("c", &[(Workload::from_path("/y"), sample(1.0, 1.0))]).unwrap();
    assert_eq!(history.window("a", "/x", 0.0, 100.0).unwrap().len(), 10);
    assert_eq!(history.series(0.0, 100.0).unwrap().len(), 3);
}

#[test]
fn a_repeat_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let history = History::open(dir.path()).unwrap();
    for _ in 0..3 {
        history.commit(&[arrival("a", 1, "/x", 10..20)]).unwrap();
    }
    assert_eq!(history.window("a", "/x", 0.0, 100.0).unwrap().len(), 10);
    assert_eq!(history.actions("a", "/x", 0.0, 100.0).unwrap().len(), 1);
    assert_eq!(history.n_series(), 1);
}

#[test]
fn retention_takes_the_old_and_leaves_the_new() {
    let dir = tempfile::tempdir().unwrap();
    let history = History::open(dir.path()).unwrap();
    history.commit(&[arrival("a", 1, "/x", 10..20)]).unwrap();
    assert_eq!(history.retain_from(14.5).unwrap(), 5);
    assert_eq!(history.window("a", "/x", 0.0, 100.0).unwrap().len(), 5);
    assert_eq!(history.actions("a", "/x", 0.0, 100.0).unwrap().len(), 1);
    history.retain_from(16.0).unwrap();
    assert!(history.actions("a", "/x", 0.0, 100.0).unwrap().is_empty());
}

#[test]
fn a_workload_that_changes_its_name_keeps_one_history_per_path() {
    let dir = tempfile::tempdir().unwrap();
    let history = History::open(dir.path()).unwrap();
    let before = Workload::from_path("/x");
    let after = Workload { name: "web".to_owned(), ..before.clone() };
    history.append("a", &[(before, sample(1.0, 1.0)), (after, sample(2.0, 2.0))]).unwrap();
    assert_eq!(history.n_series(), 2);
    assert_eq!(history.window("a", "/x", 0.0, 10.0).unwrap().len(), 2);
}

#[test]
fn a_bounded_read_gives_the_newest() {
    let dir = tempfile::tempdir().unwrap();
    let history = History::open(dir.path()).unwrap();
    history.commit(&[arrival("a", 1, "/x", 10..30), arrival("a", 2, "/y", 10..13)]).unwrap();
    let series = history.newest(0.0, 100.0, 10).unwrap();
    let times: Vec<Vec<f64>> = series
        .iter()
        .map(|series| series.samples.iter().map(|sample| sample.t_s).collect())
        .collect();
    assert_eq!(times, [vec![25.0, 26.0, 27.0, 28.0, 29.0], vec![10.0, 11.0, 12.0]]);
}
