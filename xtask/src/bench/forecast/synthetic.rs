//! A small set of made-up series: daily, bursty, idle, growing and shifted ones.

use std::collections::BTreeMap;

use super::Resources;

/// Days of five-minute steps in each.
const DAYS: usize = 10;

/// Repeatable noise, uniform between zero and one.
fn noise(seed: usize, i: usize) -> f32 {
    let x = ((seed * 1_000_003 + i) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    ((x >> 40) & 0xffff) as f32 / 65_536.0
}

/// The set, as one resource.
pub(super) fn resources() -> Resources {
    let series = |shape: fn(usize, f32) -> f32, seed: usize| -> Vec<f32> {
        (0..288 * DAYS).map(|i| shape(i, noise(seed, i))).collect()
    };
    let daily =
        |i: usize, u: f32| 1.0 + (i as f32 / 288.0 * std::f32::consts::TAU).sin() * 0.6 + 0.3 * u;
    let bursty = |_: usize, u: f32| if u > 0.9 { 30.0 * u } else { u };
    let idle = |_: usize, _: f32| 0.01;
    let growing = |i: usize, u: f32| 1.0 + i as f32 * 0.001 + 0.1 * u;
    let shifted = |i: usize, u: f32| if i < 288 * 6 { 1.0 + u } else { 4.0 + u };
    let workloads = BTreeMap::from([
        ("daily".to_owned(), series(daily, 1)),
        ("bursty".to_owned(), series(bursty, 2)),
        ("idle".to_owned(), series(idle, 3)),
        ("growing".to_owned(), series(growing, 4)),
        ("shifted".to_owned(), series(shifted, 5)),
    ]);
    Resources::from([("cpu_cores".to_owned(), workloads)])
}
