//! How rare a value is among those seen before: an empirical tail probability that goes on beyond
//! the largest of them.

/// Buckets of the histogram; each is a fifth of a doubling wide.
const BUCKETS: usize = 160;
const BUCKETS_PER_DOUBLING: f64 = 5.0;
/// The smallest value that is told from zero.
const SMALLEST: f64 = 1.0e-3;
/// Values after which old ones begin to count less: about a week of minutes.
const MEMORY: f64 = 10_000.0;
/// The tail beyond this probability is taken to fall exponentially.
const TAIL_FROM: f64 = 0.02;
/// Probabilities below are not told apart.
pub(crate) const P_MIN: f64 = 1.0e-12;

/// Decaying histogram of values that are not negative, in buckets of equal ratio.
#[derive(Clone, Debug)]
pub(crate) struct Tail {
    weights: Vec<f32>,
    total: f64,
}

impl Tail {
    pub(crate) fn new() -> Self {
        Self { weights: vec![0.0; BUCKETS], total: 0.0 }
    }

    /// Probability that a value as large comes, from those added; in (0, 1]. One before any.
    pub(crate) fn probability(&self, value: f64) -> f64 {
        if self.total < 1.0 {
            return 1.0;
        }
        let at = bucket(value);
        let above: f64 = self.weights[at + 1..].iter().map(|weight| f64::from(*weight)).sum();
        // Within the bucket the value is taken to be where it lies between the edges.
        let inside = f64::from(self.weights[at]) * (1.0 - position(value, at));
        let seen = (above + inside + 0.5) / (self.total + 1.0);
        match self.exponential(value) {
            Some(beyond) if seen < TAIL_FROM => {
                // The sample speaks where it has a handful of values, the shape beyond them.
                let trust = ((above + inside) / 10.0).min(1.0);
                (seen.ln() * trust + beyond.ln() * (1.0 - trust)).exp().clamp(P_MIN, 1.0)
            }
            _ => seen.clamp(P_MIN, 1.0),
        }
    }

    /// What an exponential tail in the logarithm of values (a power law) gives beyond `TAIL_FROM`.
    fn exponential(&self, value: f64) -> Option<f64> {
        let target = self.total * TAIL_FROM;
        let mut above = 0.0;
        let mut excess = 0.0;
        for at in (0..BUCKETS).rev() {
            let weight = f64::from(self.weights[at]);
            if weight > 0.0 && above + weight > target {
                // Hill's estimate: mean of the logarithms over the threshold's.
                let threshold = edge(at + 1);
                let n = above.max(1.0);
                let scale = ((excess - above * threshold.ln()) / n).max(0.1);
                let over = value.max(SMALLEST).ln() - threshold.ln();
                let share = (above + 0.5) / (self.total + 1.0);
                return Some((share * (-over.max(0.0) / scale).exp()).max(P_MIN));
            }
            above += weight;
            excess += weight * (edge(at) * edge(at + 1)).sqrt().ln();
        }
        None
    }

    pub(crate) fn add(&mut self, value: f64) {
        if self.total >= MEMORY {
            for weight in &mut self.weights {
                *weight *= 0.5;
            }
            self.total *= 0.5;
        }
        self.weights[bucket(value)] += 1.0;
        self.total += 1.0;
    }
}

fn bucket(value: f64) -> usize {
    if value <= SMALLEST || value.is_nan() {
        return 0;
    }
    let at = ((value / SMALLEST).log2() * BUCKETS_PER_DOUBLING).floor();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within bounds")]
    let at = at.clamp(0.0, (BUCKETS - 1) as f64) as usize;
    at
}

/// Lower edge of a bucket.
fn edge(at: usize) -> f64 {
    SMALLEST * (at as f64 / BUCKETS_PER_DOUBLING).exp2()
}

/// Where `value` lies in its bucket, 0 at the lower edge.
fn position(value: f64, at: usize) -> f64 {
    ((value.max(SMALLEST) / edge(at)).log2() * BUCKETS_PER_DOUBLING).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, proptest};

    use super::Tail;

    #[test]
    fn a_uniform_sample_gives_its_own_ranks() {
        let mut tail = Tail::new();
        assert!((tail.probability(5.0) - 1.0).abs() < 1e-12);
        for i in 0..1_000 {
            tail.add(f64::from(i) / 100.0);
        }
        for (value, expected) in [(1.0, 0.9), (5.0, 0.5), (9.0, 0.1)] {
            let p = tail.probability(value);
            assert!((p - expected).abs() < 0.05, "{value}: {p}");
        }
    }

    proptest! {
        #[test]
        fn larger_is_never_more_likely(values in vec(0.0_f64..100.0, 0..300), a in 0.0_f64..1e6, b in 0.0_f64..1e6) {
            let mut tail = Tail::new();
            for value in values {
                tail.add(value);
            }
            let (low, high) = (a.min(b), a.max(b));
            let (p_low, p_high) = (tail.probability(low), tail.probability(high));
            assert!(p_high > 0.0 && p_low <= 1.0);
            assert!(p_high <= p_low * 1.25, "{low} {p_low} {high} {p_high}");
        }
    }
}
