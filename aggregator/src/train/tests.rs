//! A whole run on loads like those a host has: learnt in seconds, far better than repeating the
//! last value, and the same twice.

use headroom_telemetry::{Feature, ModelKey, Sample};

use super::{Series, TrainConfig, run, weights::Rng};

/// A load at second `t`; `noise` is uniform in -1..1.
type Load = fn(t: f64, noise: f64) -> f64;

fn ramp(t: f64, noise: f64) -> f64 {
    // 15 s period: idle, a 3 s ramp, a plateau.
    let phase = t.rem_euclid(15.0);
    let level = if phase < 7.0 {
        0.2
    } else if phase < 10.0 {
        0.2 + (phase - 7.0) / 3.0 * 1.2
    } else {
        1.4
    };
    level * (1.0 + 0.05 * noise)
}

fn square(t: f64, noise: f64) -> f64 {
    (if (t + 4.0).rem_euclid(15.0) < 6.0 { 0.9 } else { 0.1 }) * (1.0 + 0.05 * noise)
}

fn steady(_t: f64, noise: f64) -> f64 {
    0.5 * (1.0 + 0.1 * noise)
}

fn idle(_t: f64, _noise: f64) -> f64 {
    0.0
}

/// One series per load, one sample a second.
pub(super) fn history(seconds: u32, loads: &[Load]) -> Vec<Series> {
    let mut rng = Rng::new(7);
    let mut noise = || f64::from(rng.unit()) * 2.0 - 1.0;
    loads
        .iter()
        .enumerate()
        .map(|(which, load)| Series {
            host: "host-a".to_owned(),
            model_key: ModelKey(format!("unit:load-{which}.service")),
            path: format!("/load-{which}"),
            samples: (0..seconds)
                .map(|second| {
                    let t_s = 1_700_000_000.0 + f64::from(second);
                    // Workloads do not start in step with the clock or each other.
                    let t = f64::from(second) + which as f64 * 2.3;
                    let cores = load(t, noise());
                    let mut sample = Sample::empty(t_s);
                    sample.set(Feature::CpuCores, cores);
                    sample.set(Feature::MemoryBytes, 2e8 * (1.0 + 0.01 * noise()));
                    sample.set(Feature::DiskReadBps, (cores * 1e6).max(0.0));
                    sample.set(Feature::ContextSwitches, cores * 900.0 * (1.0 + 0.1 * noise()));
                    sample.set(Feature::SyscallWrite, cores * 4_000.0);
                    sample
                })
                .collect(),
        })
        .collect()
}

const DEMO: &[Load] = &[ramp, ramp, square, square, steady, idle];

#[test]
fn a_periodic_load_is_learnt_from_two_minutes() {
    let series = history(120, DEMO);
    let mut passes = Vec::new();
    let trained =
        run(&series, None, &TrainConfig::default(), &mut |progress| passes.push(progress)).unwrap();
    let last = passes.last().unwrap();
    println!(
        "{} passes in {:.1} s, loss {:.4}, validation {:.4}; {}",
        last.epoch, last.elapsed_s, last.loss, last.loss_validation, trained.manifest.architecture
    );
    println!("{:#?}", trained.report.summary);
    for workload in &trained.report.workloads {
        println!(
            "{} {:.4} persistence {:.4}",
            workload.model_key,
            workload.scores.candidate.pinball,
            workload.scores.persistence.pinball
        );
    }
    for (resource, scores) in &trained.report.resources {
        println!(
            "{resource} {:.4} persistence {:.4} {:?}",
            scores.candidate.pinball, scores.persistence.pinball, scores.candidate.coverage
        );
    }
    let summary = &trained.report.summary;
    assert!(summary.pinball < 0.4 * summary.pinball_persistence, "{summary:?}");
}
