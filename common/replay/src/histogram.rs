//! Histograms with exponential buckets whose samples lose weight with age.
//!
//! The form of the Vertical Pod Autoscaler (kubernetes/autoscaler,
//! `vertical-pod-autoscaler/pkg/recommender/util`): bucket `n` starts at
//! `first (ratio^n - 1) / (ratio - 1)`, weights double every half life instead of halving the old
//! ones, and the reference time moves before the weights overflow.

/// Weight below which a bucket counts as empty.
const EPSILON: f64 = 1e-4;
/// Doublings after which the reference time moves.
const EXPONENT_MAX: f64 = 100.0;

/// Edges of exponential buckets.
#[derive(Clone, Debug, PartialEq)]
pub struct Buckets {
    first: f64,
    ratio: f64,
    ln_ratio: f64,
    starts: Vec<f64>,
}

impl Buckets {
    /// Buckets growing by `ratio` from a width of `first` until `max` is inside, in one unit.
    pub fn new(first: f64, ratio: f64, max: f64) -> Self {
        let ln_ratio = ratio.ln();
        let count = ((max * (ratio - 1.0) / first + 1.0).ln() / ln_ratio).ceil() as usize + 1;
        let starts =
            (0..=count).map(|n| first * (ratio.powi(n as i32) - 1.0) / (ratio - 1.0)).collect();
        Self { first, ratio, ln_ratio, starts }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.starts.len() - 1
    }

    /// Lower edge of bucket `index`.
    pub fn start(&self, index: usize) -> f64 {
        self.starts[index.min(self.count())]
    }

    /// The bucket `value` falls in; the last one for all above.
    pub fn find(&self, value: f64) -> usize {
        if value < self.first {
            return 0;
        }
        let exact = (value * (self.ratio - 1.0) / self.first + 1.0).ln() / self.ln_ratio;
        (exact as usize).min(self.count() - 1)
    }
}

/// Weights per bucket, halving with every half life.
#[derive(Clone, Debug)]
pub struct DecayingHistogram {
    buckets: Buckets,
    half_life_s: f64,
    reference_s: f64,
    weights: Vec<f64>,
    total: f64,
    lowest: usize,
    highest: usize,
}

impl DecayingHistogram {
    /// An empty histogram.
    pub fn new(buckets: Buckets, half_life_s: f64) -> Self {
        let count = buckets.count();
        Self {
            buckets,
            half_life_s,
            reference_s: f64::NEG_INFINITY,
            weights: vec![0.0; count],
            total: 0.0,
            lowest: count - 1,
            highest: 0,
        }
    }

    /// Adds `value` with `weight` as of `t_s`.
    pub fn add(&mut self, value: f64, weight: f64, t_s: f64) {
        let weight = weight * self.decay_factor(t_s);
        let bucket = self.buckets.find(value);
        self.weights[bucket] += weight;
        self.total += weight;
        if self.weights[bucket] >= EPSILON {
            self.lowest = self.lowest.min(bucket);
            self.highest = self.highest.max(bucket);
        }
    }

    /// Takes back what `add` put in with the same arguments; a rest too small to count is nothing.
    pub fn subtract(&mut self, value: f64, weight: f64, t_s: f64) {
        let weight = weight * self.decay_factor(t_s);
        let bucket = self.buckets.find(value);
        let rest = |from: f64| Some(from - weight).filter(|rest| *rest >= EPSILON).unwrap_or(0.0);
        self.weights[bucket] = rest(self.weights[bucket]);
        self.total = rest(self.total);
        self.shrink();
    }

    /// Whether nothing of weight is in it.
    pub fn is_empty(&self) -> bool {
        self.weights[self.lowest] < EPSILON
    }

    /// Upper edge of the bucket in which `share` of the weight is reached, 0 to 1; the start of
    /// the last bucket, which has no upper edge; 0 when empty.
    pub fn percentile(&self, share: f64) -> f64 {
        if self.is_empty() {
            return 0.0;
        }
        let threshold = share * self.total;
        let mut sum = 0.0;
        let mut bucket = self.lowest;
        while bucket < self.highest {
            sum += self.weights[bucket];
            if sum >= threshold {
                break;
            }
            bucket += 1;
        }
        let edge = if bucket < self.buckets.count() - 1 { bucket + 1 } else { bucket };
        self.buckets.start(edge)
    }

    /// As [`Self::percentile`] with each bucket counting as much as its upper edge: the value
    /// below which `share` of all use lies rather than of all time.
    pub fn load_percentile(&self, share: f64) -> f64 {
        if self.is_empty() {
            return 0.0;
        }
        let load = |bucket: usize| self.weights[bucket] * self.buckets.start(bucket + 1);
        let total: f64 = (self.lowest..=self.highest).map(load).sum();
        let mut sum = 0.0;
        for bucket in self.lowest..=self.highest {
            sum += load(bucket);
            if sum >= share * total {
                return self.buckets.start(bucket + 1);
            }
        }
        self.buckets.start(self.highest + 1)
    }

    fn decay_factor(&mut self, t_s: f64) -> f64 {
        if t_s > self.reference_s + self.half_life_s * EXPONENT_MAX {
            let reference_s = (t_s / self.half_life_s).round() * self.half_life_s;
            if self.reference_s.is_finite() {
                let halvings = ((reference_s - self.reference_s) / self.half_life_s).round();
                let scale = (-halvings).exp2();
                self.weights.iter_mut().for_each(|weight| *weight *= scale);
                self.total *= scale;
                self.shrink();
            }
            self.reference_s = reference_s;
        }
        ((t_s - self.reference_s) / self.half_life_s).exp2()
    }

    fn shrink(&mut self) {
        let last = self.weights.len() - 1;
        while self.lowest < last && self.weights[self.lowest] < EPSILON {
            self.lowest += 1;
        }
        while self.highest > 0 && self.weights[self.highest] < EPSILON {
            self.highest -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Buckets, DecayingHistogram};

    #[test]
    fn both_histograms_of_the_autoscaler_have_176_buckets() {
        assert_eq!(Buckets::new(0.01, 1.05, 1000.0).count(), 176);
        assert_eq!(Buckets::new(1e7, 1.05, 1e12).count(), 176);
    }

    #[test]
    fn bucket_edges_follow_the_geometric_sum() {
        let buckets = Buckets::new(0.01, 1.05, 1000.0);
        assert!((buckets.start(1) - 0.01).abs() < 1e-12);
        assert!((buckets.start(2) - 0.0205).abs() < 1e-12);
        assert!((buckets.start(3) - 0.031_525).abs() < 1e-12);
        assert_eq!(buckets.find(0.0), 0);
        assert_eq!(buckets.find(0.015), 1);
        assert_eq!(buckets.find(0.03), 2);
        assert_eq!(buckets.find(1e9), 175);
    }

    #[test]
    fn a_percentile_is_the_upper_edge_of_its_bucket() {
        let mut histogram = DecayingHistogram::new(Buckets::new(0.01, 1.05, 1000.0), 86_400.0);
        for value in [0.005, 0.005, 0.005, 0.015] {
            histogram.add(value, 1.0, 0.0);
        }
        assert!((histogram.percentile(0.5) - 0.01).abs() < 1e-12);
        assert!((histogram.percentile(0.75) - 0.01).abs() < 1e-12);
        assert!((histogram.percentile(0.9) - 0.0205).abs() < 1e-12);
        // By load: three quarters of the time at 0.01 are 0.03 of 0.0505.
        assert!((histogram.load_percentile(0.5) - 0.01).abs() < 1e-12);
        assert!((histogram.load_percentile(0.7) - 0.0205).abs() < 1e-12);
    }

    #[test]
    fn a_sample_weighs_half_after_a_half_life() {
        let mut histogram = DecayingHistogram::new(Buckets::new(0.01, 1.05, 1000.0), 86_400.0);
        histogram.add(0.005, 1.0, 0.0);
        histogram.add(1.0, 1.0, 86_400.0);
        // One third of the weight is old, two thirds are new.
        assert!(histogram.percentile(0.33) < 0.02);
        assert!(histogram.percentile(0.34) > 0.9);
    }

    #[test]
    fn what_is_subtracted_is_gone() {
        let mut histogram = DecayingHistogram::new(Buckets::new(1e7, 1.05, 1e12), 86_400.0);
        histogram.add(1e9, 1.0, 500.0);
        histogram.subtract(1e9, 1.0, 500.0);
        assert!(histogram.is_empty());
        assert_eq!(histogram.percentile(0.9).to_bits(), 0.0_f64.to_bits());
    }

    #[test]
    fn the_reference_moves_after_a_hundred_half_lives_and_the_weights_with_it() {
        let mut histogram = DecayingHistogram::new(Buckets::new(0.01, 1.05, 1000.0), 1000.0);
        histogram.add(0.005, 8.0, 0.0);
        // 101 half lives later the reference is there: 8 * 2^-101 is less than counts.
        histogram.add(1.0, 1.0, 101_000.0);
        assert!((histogram.total - 1.0).abs() < 1e-9);
        assert!(histogram.percentile(0.0) > 0.9);
        // Two half lives on, a new sample weighs four times the last one: 4 of 5.
        histogram.add(0.005, 1.0, 103_000.0);
        assert!(histogram.percentile(0.79) < 0.02 && histogram.percentile(0.81) > 0.9);
    }

    proptest! {
        #[test]
        fn percentiles_rise_with_the_share_over_any_span(
            values in prop::collection::vec((0.0..2000.0_f64, 0.0..3e7_f64), 1..60),
        ) {
            let mut values = values;
            values.sort_by(|a, b| a.1.total_cmp(&b.1));
            let mut histogram = DecayingHistogram::new(Buckets::new(0.01, 1.05, 1000.0), 43_200.0);
            for (value, t_s) in &values {
                histogram.add(*value, 0.1, *t_s);
            }
            let percentiles: Vec<f64> =
                [0.1, 0.5, 0.9, 0.99, 1.0].iter().map(|p| histogram.percentile(*p)).collect();
            prop_assert!(percentiles.windows(2).all(|pair| pair[0] <= pair[1]));
            prop_assert!(percentiles.iter().all(|value| value.is_finite()));
        }
    }
}
