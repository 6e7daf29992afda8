//! The base forecaster on series whose right answer is known.

use super::{Base, POINTS_MIN, noise::Noise};
use crate::answer::{HORIZON_STEPS, HORIZONS, LEVELS, QUANTILES};

/// Errors of the median per horizon, relative to repeating the last value, and coverage per level.
struct Judged {
    relative_error: [f64; HORIZONS],
    coverage: [f64; LEVELS],
    base: Base,
}

fn judge(series: &[Option<f64>], skip: usize) -> Judged {
    let mut base = Base::new(0.01);
    let mut grids = Vec::new();
    let (mut own, mut naive) = ([0.0; HORIZONS], [0.0; HORIZONS]);
    let (mut hits, mut n) = ([0.0; LEVELS], 0.0);
    for (t, value) in series.iter().enumerate() {
        if let (Some(value), true) = (value, t >= skip) {
            for (h, steps) in HORIZON_STEPS.into_iter().enumerate() {
                let origin = t - steps as usize;
                let (Some(grid), Some(last)) = (grids[origin], series[origin]) else { continue };
                let row: [f64; LEVELS] = row_of(&grid, h);
                own[h] += (value - row[1]).abs();
                naive[h] += (value - last).abs();
                hits.iter_mut().zip(row).for_each(|(hits, q)| *hits += f64::from(*value <= q));
                n += 1.0;
            }
        }
        base.push(*value, false);
        grids.push(base.forecast());
    }
    Judged {
        relative_error: std::array::from_fn(|h| own[h] / naive[h].max(1e-9)),
        coverage: hits.map(|hits| hits / n),
        base,
    }
}

fn row_of(grid: &crate::answer::Grid, h: usize) -> [f64; LEVELS] {
    grid[h]
}

fn series(n: usize, f: impl FnMut(usize) -> f64) -> Vec<Option<f64>> {
    (0..n).map(f).map(Some).collect()
}

#[test]
fn nothing_is_said_before_a_handful_of_points() {
    let mut base = Base::new(0.01);
    for i in 0..POINTS_MIN {
        assert!(base.forecast().is_none(), "{i} points");
        base.push(None, false);
        base.push(Some(1.0), false);
    }
    let grid = base.forecast().unwrap();
    for row in grid {
        assert!(row[0] > 0.5 && row[4] < 2.0, "{row:?}");
    }
}

#[test]
fn a_constant_stays() {
    let judged = judge(&series(200, |_| 2.0), 20);
    let grid = judged.base.forecast().unwrap();
    for row in grid {
        assert!((row[1] - 2.0).abs() < 0.02 && row[4] - row[0] < 0.1, "{row:?}");
    }
}

#[test]
fn a_ramp_is_carried_on() {
    let mut noise = Noise::new(1);
    let judged = judge(&series(300, |i| 1.0 + 0.05 * i as f64 + 0.02 * noise.normal()), 60);
    for (h, error) in judged.relative_error.iter().enumerate().skip(1) {
        assert!(*error < 0.7, "{error} at horizon {h}");
    }
    assert!(judged.relative_error[5] < 0.25, "{:?}", judged.relative_error);
}

#[test]
fn a_season_is_seen_coming() {
    for period in [15.0, 17.5, 20.0] {
        let mut noise = Noise::new(2);
        let pulses = series(400, |i| {
            let high = (i as f64) % period < period * 0.4;
            if high { 1.0 } else { 0.2 + 0.02 * noise.uniform() }
        });
        let judged = judge(&pulses, 120);
        let found = judged.base.period().unwrap();
        assert!((found.steps - period).abs() < 0.5, "{found:?} for {period}");
        for (h, error) in judged.relative_error.iter().enumerate() {
            assert!(*error < 0.5, "{error} at horizon {h} with period {period}");
        }
    }
}

#[test]
fn a_sine_is_seen_coming() {
    let mut noise = Noise::new(3);
    let sine = series(400, |i| {
        2.0 + (i as f64 / 30.0 * std::f64::consts::TAU).sin() + 0.1 * noise.normal()
    });
    let judged = judge(&sine, 120);
    assert!(
        judged.relative_error[2..].iter().all(|error| *error < 0.6),
        "{:?}",
        judged.relative_error
    );
}

#[test]
fn noise_is_smoothed_and_covered() {
    let mut noise = Noise::new(4);
    let judged = judge(&series(3000, |_| 5.0 + noise.normal()), 50);
    assert!(judged.relative_error.iter().all(|error| *error < 0.85), "{:?}", judged.relative_error);
    for (share, level) in judged.coverage.into_iter().zip(QUANTILES) {
        assert!((share - level).abs() < 0.04, "{share} at {level}");
    }
}

#[test]
fn an_idle_workload_with_rare_bursts_is_not_expected_to_burst() {
    let mut noise = Noise::new(5);
    let bursts = series(1000, |_| if noise.uniform() < 0.03 { 1.0 } else { 0.0 });
    let judged = judge(&bursts, 50);
    let grid = judged.base.forecast().unwrap();
    assert!(grid[0][1] < 0.2, "{:?}", grid[0]);
    assert!(judged.coverage[2] > 0.85, "{:?}", judged.coverage);
}

#[test]
fn a_level_shift_is_followed_within_a_few_steps() {
    let mut noise = Noise::new(6);
    let shifted = series(200, |i| {
        let level = if i < 190 { 1.0 } else { 4.0 };
        level + 0.05 * noise.normal()
    });
    let grid = judge(&shifted, 20).base.forecast().unwrap();
    assert!((grid[0][1] - 4.0).abs() < 0.5, "{:?}", grid[0]);
    assert!(grid[0][4] >= 4.0);
}

#[test]
fn gaps_and_nonsense_leave_finite_ordered_quantiles() {
    let mut base = Base::new(0.01);
    let mut noise = Noise::new(7);
    for i in 0..600 {
        let value = match i % 11 {
            0..4 => None,
            4 => Some(f64::NAN),
            5 => Some(-1.0),
            6 => Some(1.0e30 * noise.uniform()),
            _ => Some(noise.uniform()),
        };
        base.push(value, i % 13 == 0);
        if let Some(grid) = base.forecast() {
            for row in grid {
                assert!(row.iter().all(|q| q.is_finite() && *q >= 0.0), "{row:?}");
                assert!(row.windows(2).all(|pair| pair[0] <= pair[1]), "{row:?}");
            }
        }
    }
}

#[test]
fn a_censored_value_never_narrows_the_upper_quantiles() {
    let mut open = Base::new(0.01);
    let mut noise = Noise::new(8);
    for _ in 0..100 {
        open.push(Some(2.0 + 0.3 * noise.normal()), false);
    }
    let mut throttled = open.clone();
    for _ in 0..30 {
        open.push(Some(2.0), false);
        throttled.push(Some(2.0), true);
    }
    let width = |base: &Base| {
        let grid = base.forecast().unwrap();
        grid[0][4] - grid[0][1]
    };
    assert!(width(&throttled) > width(&open));
}

#[test]
fn one_step_takes_microseconds() {
    let mut base = Base::new(0.01);
    let start = std::time::Instant::now();
    let n = 2000;
    for i in 0..n {
        base.push(Some(if i % 18 < 6 { 1.0 } else { 0.1 }), false);
        std::hint::black_box(base.forecast());
    }
    let each = start.elapsed() / n;
    println!("{each:?} per step; {} bytes", size_of::<Base>() + 4 * super::HISTORY);
    assert!(each < std::time::Duration::from_micros(200), "{each:?}");
}
