//! What a series is told, from its first value on.

use proptest::prelude::{Strategy, prop, prop_assert, prop_assert_eq, proptest};

use super::{SeriesConfig, SeriesForecaster, Told};
use crate::LAB_LEVELS;

const STEP_S: f64 = 300.0;

fn config(horizon: usize) -> SeriesConfig {
    SeriesConfig { step_s: STEP_S, horizon, resolution: 0.0 }
}

/// Forecaster that was told `values`, one a step.
fn told(horizon: usize, values: impl IntoIterator<Item = Option<f32>>) -> SeriesForecaster {
    let mut series = SeriesForecaster::new(&config(horizon));
    for (i, value) in values.into_iter().enumerate() {
        series.push(i as f64 * STEP_S, value, false);
    }
    series
}

fn forecast(series: &SeriesForecaster) -> (Vec<[f32; 12]>, Told) {
    let mut out = Vec::new();
    let told = series.forecast(&mut out).unwrap();
    (out, told)
}

/// Repeatable noise, uniform between zero and one.
fn noise(i: usize) -> f32 {
    let x = (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (((x ^ (x >> 32)) >> 16) & 0xffff) as f32 / 65_536.0
}

#[test]
fn nothing_is_said_before_the_first_value_and_a_constant_is_believed_once_it_has_lasted() {
    let mut series = SeriesForecaster::new(&config(48));
    let mut out = vec![[1.0; 12]];
    series.push(0.0, None, false);
    assert_eq!(series.forecast(&mut out), None);
    assert!(out.is_empty());
    for i in 1..700 {
        series.push(f64::from(i) * STEP_S, Some(7.3e9), false);
        assert!(series.forecast(&mut out).is_some());
        assert!(out.iter().all(|quantiles| quantiles[4] == 7.3e9), "{i}: {out:?}");
        // Two values do not show how far the third may be.
        if i < 8 {
            assert!(out.iter().all(|q| q[0] < 7.3e9 && q[11] > 1.05 * 7.3e9), "{i}: {out:?}");
        } else if i > 48 {
            assert!(out.iter().flatten().all(|q| *q == 7.3e9), "{i}: {out:?}");
        }
    }
    assert_eq!(out.len(), 48);
}

#[test]
fn a_daily_peak_is_expected_before_it_comes() {
    let day = |i: usize| if i % 288 >= 240 { 8.0 } else { 1.0 };
    let values = (0..288 * 6 + 220).map(|i| Some(day(i) + 0.2 * noise(i)));
    let (out, _) = forecast(&told(48, values));
    // 220 steps into the day: the peak begins 21 steps ahead.
    assert!(out[9][4] < 2.0, "{:?}", out[9]);
    assert!(out[35][4] > 6.0, "{:?}", out[35]);
}

#[test]
fn a_new_level_is_followed_within_an_hour() {
    let before = 288 * 4;
    let values =
        (0..before + 12).map(|i| Some(if i < before { 1.0 } else { 5.0 } + 0.2 * noise(i)));
    let (out, _) = forecast(&told(12, values));
    for quantiles in &out[..3] {
        assert!((4.5..=5.5).contains(&quantiles[4]), "{quantiles:?}");
    }
}

/// Shares of values not above each level, of forecasts made in `origins` of `value`.
fn covered(value: impl Fn(usize) -> f32, origins: std::ops::Range<usize>) -> [f32; 12] {
    let mut series = SeriesForecaster::new(&config(48));
    let mut out = Vec::new();
    let (mut covered, mut n) = ([0.0; 12], 0.0);
    for i in 0..origins.end {
        series.push(i as f64 * STEP_S, Some(value(i)), false);
        if !origins.contains(&i) || !i.is_multiple_of(5) {
            continue;
        }
        series.forecast(&mut out).unwrap();
        for (h, quantiles) in out.iter().enumerate() {
            for (covered, q) in covered.iter_mut().zip(quantiles) {
                *covered += f32::from(u8::from(value(i + h + 1) <= *q));
            }
            n += 1.0;
        }
    }
    covered.map(|covered| covered / n)
}

#[test]
fn half_a_day_after_a_new_level_all_levels_hold_far_ahead() {
    let at = 288 * 8;
    for (old, new) in [(1.0, 3.0), (3.0, 1.0)] {
        let value = |i: usize| if i < at { old } else { new } * (1.0 + 0.4 * noise(i));
        let shares = covered(value, at + 144..at + 432);
        assert!((shares[4] - 0.5).abs() < 0.12, "{shares:?}");
        assert!((shares[8] - 0.9).abs() < 0.12, "{shares:?}");
        assert!(shares[11] > 0.985, "{shares:?}");
    }
}

#[test]
fn an_idle_series_with_rare_work_is_idle_in_the_middle_and_not_at_the_top() {
    let values = (0..2000).map(|i| Some(if noise(i) > 0.96 { 3.0 } else { 0.0 }));
    let (out, _) = forecast(&told(48, values));
    for quantiles in &out {
        assert_eq!(quantiles[4], 0.0);
        assert!(quantiles[11] > 0.5, "{quantiles:?}");
    }
}

#[test]
fn each_level_covers_its_share_of_a_drifting_series() {
    let value = |i: usize| 10.0 + i as f32 * 0.0005 + 4.0 * noise(i);
    let mut series = SeriesForecaster::new(&config(8));
    let mut out = Vec::new();
    let mut covered = [0.0_f32; 12];
    let mut n = 0.0;
    for i in 0..288 * 20 {
        series.push(i as f64 * STEP_S, Some(value(i)), false);
        if i > 288 * 2 && i % 5 == 0 {
            series.forecast(&mut out).unwrap();
            for (h, quantiles) in out.iter().enumerate() {
                for (covered, q) in covered.iter_mut().zip(quantiles) {
                    *covered += f32::from(u8::from(value(i + h + 1) <= *q));
                }
                n += 1.0;
            }
        }
    }
    for (covered, level) in covered.iter().zip(LAB_LEVELS) {
        let tolerance = if level > 0.9 { 0.02 } else { 0.06 };
        assert!((covered / n - level).abs() < tolerance, "{level}: {}", covered / n);
    }
}

#[test]
fn a_lower_bound_raises_the_forecast_above_itself() {
    let mut series = told(6, (0..300).map(|i| Some(1.0 + 0.1 * noise(i))));
    for i in 300..330 {
        series.push(f64::from(i) * STEP_S, Some(2.0), true);
    }
    let (out, _) = forecast(&series);
    assert!(out[0][8] > 2.0, "{:?}", out[0]);
}

#[test]
fn steps_left_out_are_gaps() {
    let values = |i: usize| Some(f32::from(u8::from(i % 9 > 5)) + noise(i));
    let gap = 700..760;
    let with_none = told(12, (0..1500).map(|i| values(i).filter(|_| !gap.contains(&i))));
    let mut without = SeriesForecaster::new(&config(12));
    for i in (0..1500).filter(|i| !gap.contains(i)) {
        without.push(i as f64 * STEP_S, values(i), false);
    }
    assert_eq!(forecast(&with_none), forecast(&without));
}

#[test]
fn an_expert_that_is_left_out_is_never_the_source() {
    let values: Vec<f32> = (0..900).map(|i| 1.0 + noise(i)).collect();
    let first = forecast(&told(12, values.iter().map(|v| Some(*v)))).1.source;
    let mut series = SeriesForecaster::without(&config(12), &[first], true);
    for (i, value) in values.iter().enumerate() {
        series.push(i as f64 * STEP_S, Some(*value), false);
    }
    assert_ne!(forecast(&series).1.source, first);
}

#[test]
fn memory_is_bounded() {
    let series = told(48, (0..10_000).map(|i| Some(noise(i))));
    assert!(series.memory_bytes() < 16 * 1024, "{}", series.memory_bytes());
}

#[test]
fn confidence_grows_with_what_was_foreseen() {
    let young = forecast(&told(12, (0..20).map(|i| Some(noise(i))))).1;
    let old = forecast(&told(12, (0..3000).map(|i| Some(noise(i))))).1;
    assert!(young.confidence < 0.5, "{young:?}");
    assert!(old.confidence > 0.85, "{old:?}");
}

fn some_series() -> impl Strategy<Value = Vec<Option<f32>>> {
    let value = prop::option::weighted(0.9, prop::num::f32::ANY);
    let calm = prop::option::weighted(0.9, 0.0_f32..100.0);
    let flat = prop::option::weighted(0.9, prop::sample::select(vec![0.0_f32, 1.0, 1e12]));
    let length = 1..400_usize;
    proptest::prop_oneof![
        prop::collection::vec(value, length.clone()),
        prop::collection::vec(calm, length.clone()),
        prop::collection::vec(flat, length),
    ]
}

proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    #[test]
    fn quantiles_are_finite_ordered_and_not_negative(values in some_series(), horizon in 1..70_usize) {
        let series = told(horizon, values.iter().copied());
        let mut out = Vec::new();
        let answered = series.forecast(&mut out).is_some();
        let known = values.iter().flatten().any(|value| value.is_finite());
        prop_assert_eq!(answered, known);
        prop_assert_eq!(out.len(), if known { horizon } else { 0 });
        for quantiles in &out {
            prop_assert!(quantiles.iter().all(|q| q.is_finite() && *q >= 0.0), "{:?}", quantiles);
            prop_assert!(quantiles.is_sorted(), "{:?}", quantiles);
        }
    }

    #[test]
    fn another_unit_is_another_scale_only(values in prop::collection::vec(0.0_f32..100.0, 2..400)) {
        let (ones, _) = forecast(&told(12, values.iter().map(|v| Some(*v))));
        // A power of two, so that rounding is the same in both units.
        let (scaled, _) = forecast(&told(12, values.iter().map(|v| Some(*v * 1024.0))));
        for (one, scaled) in ones.iter().flatten().zip(scaled.iter().flatten()) {
            prop_assert!((one * 1024.0 - scaled).abs() <= 1e-3 * scaled.abs(), "{} {}", one, scaled);
        }
    }
}
