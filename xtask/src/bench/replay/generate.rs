//! Workloads that are made up: the shapes seen in traces of machines, in the shares seen there.

use std::f64::consts::TAU;

use anyhow::Result;
use headroom_replay::Series;
use headroom_telemetry::Resource;

const DAY_S: f64 = 86_400.0;
const STEP_S: f64 = 300.0;
const GIB: f64 = 1_073_741_824.0;

/// Pseudo-random numbers, the same for the same seed (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.next()
    }
}

/// What a workload does over its days.
#[derive(Clone, Copy, Debug)]
enum Shape {
    /// Little use and none of it regular.
    Idle,
    /// Busy hours every day, fewer on two days of seven.
    Daily,
    /// Short bursts at any time.
    Bursty,
    /// A job at the same time of every day.
    Ramps,
    /// Levels that hold for days.
    Shifts,
}

/// Three of ten are idle, as are half of the rented machines of the traces at most times.
const SHAPES: [Shape; 10] = [
    Shape::Idle,
    Shape::Daily,
    Shape::Bursty,
    Shape::Idle,
    Shape::Ramps,
    Shape::Shifts,
    Shape::Daily,
    Shape::Bursty,
    Shape::Idle,
    Shape::Daily,
];

/// One series per workload of `days` days in steps of five minutes, the same for the same seed.
///
/// # Errors
/// Never, for what it makes can be replayed.
pub(in crate::bench) fn series(
    resource: Resource,
    workloads: u32,
    days: u32,
    seed: u64,
) -> Result<Vec<Series>> {
    let steps = (f64::from(days) * DAY_S / STEP_S) as usize;
    let mut all = Vec::new();
    for number in 0..workloads {
        let shape = SHAPES[number as usize % SHAPES.len()];
        let mut random =
            Random(seed ^ (u64::from(number) << 20) ^ u64::from(resource == Resource::Memory));
        let (unit, kept) = if resource == Resource::Memory { (GIB, 0.9) } else { (1.0, 0.3) };
        let size = unit * random.between(-2.0, 3.0).exp2();
        let mut demand = Demand::new(shape, random);
        let mut used = Vec::with_capacity(steps);
        let mut smooth = 0.0;
        for step in 0..steps {
            // Memory follows demand slowly, CPU at once.
            smooth = kept * smooth + (1.0 - kept) * demand.next(step as f64 * STEP_S);
            used.push((size * smooth) as f32);
        }
        let limit = vec![(size * 4.0) as f32; steps];
        all.push(Series::new(&format!("w{number:04}"), resource, STEP_S, STEP_S, used, limit)?);
    }
    Ok(all)
}

/// Demand relative to the workload's size.
struct Demand {
    shape: Shape,
    random: Random,
    phase_s: f64,
    level: f64,
    left: u32,
}

impl Demand {
    fn new(shape: Shape, mut random: Random) -> Self {
        let phase_s = random.between(0.0, DAY_S);
        let level = random.between(0.3, 1.0);
        Self { shape, random, phase_s, level, left: 0 }
    }

    fn next(&mut self, t_s: f64) -> f64 {
        let noise = 1.0 + 0.1 * (self.random.next() + self.random.next() - 1.0);
        let of_day = (t_s + self.phase_s).rem_euclid(DAY_S) / DAY_S;
        let chance = self.random.next();
        self.left = self.left.saturating_sub(1);
        noise
            * match self.shape {
                Shape::Idle => self.burst(0.05, chance < 0.002, 2),
                Shape::Daily => {
                    let is_weekend = (t_s / DAY_S) as u64 % 7 >= 5;
                    let busy = (0.5 - 0.5 * (of_day * TAU).cos()).powi(2);
                    0.2 + if is_weekend { 0.3 } else { 1.0 } * self.level * busy
                }
                Shape::Bursty => self.burst(0.2, chance < 0.03, 4),
                Shape::Ramps => {
                    let is_up = (0.5..0.62).contains(&of_day);
                    0.15 + if is_up { ((of_day - 0.5) / 0.015).min(1.0) } else { 0.0 }
                }
                Shape::Shifts => {
                    if chance < 0.001 {
                        self.level = self.random.between(0.1, 1.5);
                    }
                    self.level
                }
            }
    }

    /// `rest` until a burst begins, which holds for some steps.
    fn burst(&mut self, rest: f64, begins: bool, steps_max: u32) -> f64 {
        if begins && self.left == 0 {
            self.left = 1 + (self.random.next() * f64::from(steps_max)) as u32;
            self.level = self.random.between(0.5, 2.0);
        }
        if self.left > 0 { self.level } else { rest }
    }
}
