//! One workload: how unusual each step is, and whether that is an anomaly.
//!
//! Two views are joined. Each column is held against its own level and its own time of day, which
//! sees jumps. A random cut forest (Guha et al., ICML 2016) holds the columns against each other,
//! which sees relations that break. Means of both over an hour and half a day see what lasts. All are turned into the probability of so much surprise in this
//! workload's own past, so columns without a unit and workloads of any noise compare.

use rcf3::Forest;

use crate::{
    series::{Series, Surprise},
    tail::{P_MIN, Tail},
};

const TREES: usize = 40;
const TREE_POINTS: usize = 128;
/// Steps of one column that make a point of the forest where there is one column only.
const SHINGLE: usize = 8;
/// Steps before which nothing is called an anomaly.
const WARM_UP_STEPS: u64 = 200;
/// An anomaly ends when steps are this many times more likely than those that start one ...
const RELEASE_FACTOR: f64 = 20.0;
/// ... for so many steps.
const RELEASE_STEPS: u32 = 3;
/// Share of a step's surprise in the means that look back on about an hour and half a day of five
/// minutes: what goes wrong for long is seldom striking at any one step.
const MEAN_SHARES: [f64; 2] = [1.0 / 12.0, 1.0 / 72.0];
/// What the rareness of such a mean counts beside that of the step.
const MEAN_WEIGHT: f64 = 0.5;
const DAY_S: f64 = 86_400.0;

/// What is looked at.
#[derive(Clone, Debug)]
pub struct DetectorConfig {
    /// Columns of values.
    pub columns: usize,
    /// Length of a step, seconds.
    pub step_s: f64,
    /// Steps a day that may be called an anomaly by chance: the budget of false alarms.
    pub false_alarms_per_day: f64,
}

/// What is said of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict {
    /// 0 to 1: the share of this workload's past steps that were less unusual, carried on beyond
    /// the most unusual one. 0 where nothing was measured.
    pub score: f64,
    /// Whether the step belongs to an anomaly.
    pub is_anomalous: bool,
}

/// Watches one workload. Memory is bounded: some hundred kilobytes.
pub struct Detector {
    series: Vec<Series>,
    forest: Option<Forest>,
    seed: u64,
    point: Vec<f32>,
    by_column: Tail,
    by_forest: Tail,
    means: [f64; MEAN_SHARES.len()],
    by_mean: [Tail; MEAN_SHARES.len()],
    joint: Tail,
    n_steps: u64,
    threshold: f64,
    is_anomalous: bool,
    calm_steps: u32,
}

impl Detector {
    /// A workload of which nothing is known. `seed` settles what the forest leaves to chance.
    pub fn new(config: &DetectorConfig, seed: u64) -> Self {
        let steps_per_day = (DAY_S / config.step_s).max(1.0);
        Self {
            series: (0..config.columns).map(|_| Series::new(config.step_s)).collect(),
            forest: None,
            seed,
            point: Vec::new(),
            by_column: Tail::new(),
            by_forest: Tail::new(),
            means: [0.0; MEAN_SHARES.len()],
            by_mean: MEAN_SHARES.map(|_| Tail::new()),
            joint: Tail::new(),
            n_steps: 0,
            threshold: (config.false_alarms_per_day / steps_per_day).clamp(P_MIN, 0.5),
            is_anomalous: false,
            calm_steps: 0,
        }
    }

    /// Judges the next step; `None` is not measured, values beyond the columns are left out.
    pub fn push(&mut self, t_s: f64, values: &[Option<f32>]) -> Verdict {
        let mut largest = [0.0_f64; 3];
        let mut n_known = 0;
        self.point.resize(self.series.len(), 0.0);
        for ((series, value), scaled) in self.series.iter_mut().zip(values).zip(&mut self.point) {
            // A column that is missing stays where it was for the forest.
            let Some(value) = value.filter(|value| value.is_finite()) else { continue };
            let Surprise { distance, scaled: now } = series.push(t_s, f64::from(value));
            *scaled = now;
            n_known += 1;
            let place = largest.iter().position(|other| distance > *other);
            if let Some(place) = place {
                largest[place..].rotate_right(1);
                largest[place] = distance;
            }
        }
        if n_known == 0 {
            return Verdict { score: 0.0, is_anomalous: self.is_anomalous };
        }
        self.n_steps += 1;
        let column = largest[0] + 0.5 * largest[1] + 0.25 * largest[2];
        let p_column = self.by_column.probability(column);
        self.by_column.add(column);
        let surprise = match self.ask_forest() {
            Some(forest) => {
                let p_forest = self.by_forest.probability(forest);
                self.by_forest.add(forest);
                -p_column.ln() - 0.5 * p_forest.ln()
            }
            None => -p_column.ln(),
        };
        let surprise = surprise + MEAN_WEIGHT * self.lasting(surprise);
        let p = self.joint.probability(surprise);
        self.joint.add(surprise);
        self.decide(p);
        Verdict { score: 1.0 - p, is_anomalous: self.is_anomalous }
    }

    /// How rare it is that steps have been so surprising for so long.
    fn lasting(&mut self, surprise: f64) -> f64 {
        let mut lasting = 0.0;
        for ((mean, tail), share) in self.means.iter_mut().zip(&mut self.by_mean).zip(MEAN_SHARES) {
            *mean += (surprise - *mean) * share;
            lasting -= tail.probability(*mean).ln();
            tail.add(*mean);
        }
        lasting
    }

    /// How much the step stands apart in the forest; `None` while that knows too little.
    fn ask_forest(&mut self) -> Option<f64> {
        if self.n_steps < WARM_UP_STEPS / 4 {
            return None;
        }
        if self.forest.is_none() {
            let shingle = if self.series.len() == 1 { SHINGLE } else { 1 };
            let builder = Forest::builder(self.series.len()).shingle_size(shingle);
            let builder = builder.num_trees(TREES).capacity(TREE_POINTS).seed(self.seed);
            self.forest = builder.build().ok();
        }
        let score = self.forest.as_mut()?.update_and_score(&self.point).ok()?;
        Some(score).filter(|score| score.is_finite() && *score > 0.0)
    }

    fn decide(&mut self, p: f64) {
        if self.n_steps < WARM_UP_STEPS {
            return;
        }
        if p <= self.threshold {
            self.is_anomalous = true;
            self.calm_steps = 0;
        } else if self.is_anomalous && p > self.threshold * RELEASE_FACTOR {
            self.calm_steps += 1;
            self.is_anomalous = self.calm_steps < RELEASE_STEPS;
        }
    }
}

#[cfg(test)]
#[path = "detector_tests.rs"]
mod tests;
