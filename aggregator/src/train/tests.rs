//! A whole run on loads like those a host has: learnt in seconds, far better than repeating the
//! last value, and the same twice.

use headroom_predict::{Bundle, SequenceModel};
use headroom_telemetry::{Feature, ModelKey, Resource, Sample};

use super::{Series, TrainConfig, TrainError, Trained, run, weights::Rng};

/// A load at second `t`; `noise` is uniform in -1..1.
pub(crate) type Load = fn(t: f64, noise: f64) -> f64;

pub(crate) fn ramp(t: f64, noise: f64) -> f64 {
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

pub(crate) fn steady(_t: f64, noise: f64) -> f64 {
    0.5 * (1.0 + 0.1 * noise)
}

pub(crate) fn idle(_t: f64, _noise: f64) -> f64 {
    0.0
}

/// One series per load, one sample a second.
pub(crate) fn history(seconds: u32, loads: &[Load]) -> Vec<Series> {
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

/// A small run: one that ends at once, and predicts hardly better than persistence.
pub(crate) fn small() -> TrainConfig {
    TrainConfig {
        hidden: 4,
        lag_hidden: 4,
        max_epochs: 1,
        windows_trained_min: 40,
        ..TrainConfig::default()
    }
}

/// A candidate of a small run.
pub(crate) fn candidate(seed: u64) -> Trained {
    let config = TrainConfig { seed, ..small() };
    run(&history(100, &[ramp, square, steady]), None, &config, &mut |_| ()).unwrap()
}

#[test]
fn a_periodic_load_is_learnt_from_two_minutes() {
    let mut passes = Vec::new();
    let trained =
        run(&history(120, DEMO), None, &TrainConfig::default(), &mut |pass| passes.push(pass))
            .unwrap();
    let last = passes.last().unwrap();
    let summary = &trained.report.summary;
    println!(
        "{} passes over {} windows in {:.1} s, pinball {:.4}, persistence {:.4}, coverage {:.3?}",
        last.epoch,
        summary.windows_trained,
        last.elapsed_s,
        summary.pinball,
        summary.pinball_persistence,
        summary.coverage
    );
    assert!(summary.pinball < 0.3 * summary.pinball_persistence, "{summary:?}");
    assert!(summary.windows_held_back > 100 && last.eta_s < 1.0);
    let ramps = &trained.report.workloads[0].scores;
    assert!(ramps.candidate.pinball < 0.3 * ramps.persistence.pinball, "{ramps:?}");
}

#[test]
fn the_ramp_is_foreseen_seconds_ahead() {
    // Shown 120 s, asked at each second of the following minute, as an agent would.
    let mut series = history(200, DEMO);
    let unseen: Vec<Sample> = series[0].samples.clone();
    series.iter_mut().for_each(|one| one.samples.truncate(120));
    let trained = run(&series, None, &TrainConfig::default(), &mut |_| ()).unwrap();
    let key = ring::signature::Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
    let public = ring::signature::KeyPair::public_key(&key).as_ref().to_vec();
    let bundle = Bundle::sign(trained.manifest, trained.onnx, &trained.golden, &key).unwrap();
    let model = SequenceModel::load(&bundle, &public).unwrap();

    let mut window = headroom_fingerprint::Window::new(1.0);
    let (mut foreseen, mut ramps) = (0, 0);
    for (second, sample) in unseen.iter().enumerate() {
        window.push(sample).unwrap();
        let use_at = |second: usize| Resource::Cpu.usage(&unseen[second]).unwrap();
        if second < 121 || second + 5 >= unseen.len() {
            continue;
        }
        // Idle now, at the plateau five seconds on.
        if use_at(second) < 0.3 && use_at(second + 5) > 1.2 {
            ramps += 1;
            let grids = model.infer(&window.encode().unwrap()).unwrap();
            let (five_steps, level_90) = (3, 2);
            foreseen += usize::from(grids[0][five_steps][level_90] > 1.1);
        }
    }
    assert!(ramps >= 8 && foreseen * 10 >= ramps * 9, "{foreseen} of {ramps} foreseen");
}

#[test]
fn a_run_repeats_bit_for_bit() {
    let (first, second) = (candidate(5), candidate(5));
    assert_eq!(first.onnx, second.onnx);
    assert_eq!(first.report, second.report);
    assert_ne!(first.onnx, candidate(6).onnx);
}

#[test]
fn an_incumbent_is_judged_on_the_same_windows() {
    let first = candidate(1);
    let incumbent = SequenceModel::from_parts(first.manifest, &first.onnx, &first.golden).unwrap();
    let series = history(100, &[ramp, square, steady]);
    let again = run(&series, Some(&incumbent), &TrainConfig { seed: 1, ..small() }, &mut |_| ());
    let overall = again.unwrap().report.overall;
    assert_eq!(overall.incumbent, Some(overall.candidate));
}

#[test]
fn too_little_history_is_refused_with_the_figures() {
    let refuse = |series: &[Series]| run(series, None, &small(), &mut |_| ()).unwrap_err();
    let error = refuse(&history(40, &[ramp]));
    assert!(matches!(error, TrainError::TooFewWindows { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("40 needed") && text.contains("1 workloads over 39 s"), "{text}");
    assert!(matches!(refuse(&[]), TrainError::TooFewWindows { found: 0, .. }));
    let bad = TrainConfig { hidden: 0, ..small() };
    let error = run(&history(100, &[ramp]), None, &bad, &mut |_| ()).unwrap_err();
    assert_eq!(error.to_string(), "train.hidden is 0, must be 4 to 64");
}
