//! The recent past of one series: a week at five minutes, contiguous, with gaps.

/// Steps remembered: a week at five minutes.
pub(crate) const CAPACITY: usize = 2016;
/// Steps by which the store is overfull before the oldest are dropped, so that dropping is rare.
const SLACK: usize = 96;
/// Steps looked at for what a lower bound may stand for.
const BEYOND_STEPS: usize = 288;
/// What a lower bound is taken for when nothing greater was seen; a guess, small enough for a limit
/// that grows by it to grow step by step.
const BEYOND_RATIO: f32 = 1.1;

/// Values oldest first, NaN where nothing was measured.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    values: Vec<f32>,
}

impl History {
    /// Appends the next step.
    pub(crate) fn push(&mut self, value: Option<f32>) {
        if self.values.len() >= CAPACITY + SLACK {
            self.values.drain(..SLACK);
        }
        if self.values.len() == self.values.capacity() {
            let grown = (self.values.len() * 2).clamp(32, CAPACITY + SLACK);
            self.values.reserve_exact(grown - self.values.len());
        }
        self.values.push(value.unwrap_or(f32::NAN));
    }

    /// Bytes held outside of the type itself.
    pub(crate) fn heap_bytes(&self) -> usize {
        self.values.capacity() * size_of::<f32>()
    }

    /// What a demand of at least `value` is taken for: the mean of the last day's values above it
    /// or, where there is none, a tenth more.
    pub(crate) fn beyond(&self, value: f32) -> f32 {
        let day = &self.values[self.values.len().saturating_sub(BEYOND_STEPS)..];
        let above = day.iter().filter(|known| **known > value);
        let (sum, n) = above.fold((0.0, 0.0), |(sum, n), known| (sum + known, n + 1.0));
        if n > 0.0 { sum / n } else { value * BEYOND_RATIO }
    }

    /// The steps remembered, at most [`CAPACITY`].
    pub(crate) fn recent(&self) -> &[f32] {
        &self.values[self.values.len().saturating_sub(CAPACITY)..]
    }
}

#[cfg(test)]
mod tests {
    use super::{CAPACITY, History};

    #[test]
    fn the_past_is_bounded_and_keeps_the_newest() {
        let mut history = History::default();
        for i in 0..3 * CAPACITY {
            history.push((i % 7 != 0).then_some(i as f32));
        }
        let recent = history.recent();
        assert_eq!(recent.len(), CAPACITY);
        assert_eq!(recent[CAPACITY - 1], (3 * CAPACITY - 1) as f32);
        assert!(history.values.capacity() <= CAPACITY + super::SLACK);
    }

    #[test]
    fn a_lower_bound_stands_for_what_was_above_it() {
        let mut history = History::default();
        for value in [1.0, 4.0, 2.0, 6.0] {
            history.push(Some(value));
        }
        assert_eq!(history.beyond(3.0), 5.0);
        assert_eq!(history.beyond(6.0), 6.0 * 1.1);
    }
}
