//! The maximum of the last steps, in constant time per step.

use std::collections::VecDeque;

/// Maximum of the values of the last `steps` steps. Steps without a value count as time.
#[derive(Clone, Debug)]
pub struct SlidingMax {
    steps: u64,
    now: u64,
    entries: VecDeque<(u64, f64)>,
}

impl SlidingMax {
    /// A window of `steps`, at least one.
    pub fn new(steps: usize) -> Self {
        Self { steps: steps.max(1) as u64, now: 0, entries: VecDeque::new() }
    }

    /// Moves one step on, with the value of that step if there is one.
    pub fn push(&mut self, value: Option<f64>) {
        self.now += 1;
        if self.entries.front().is_some_and(|(at, _)| self.now - at >= self.steps) {
            self.entries.pop_front();
        }
        if let Some(value) = value {
            while self.entries.back().is_some_and(|(_, older)| *older <= value) {
                self.entries.pop_back();
            }
            self.entries.push_back((self.now, value));
        }
    }

    /// The maximum; `None` when no step of the window has a value.
    pub fn max(&self) -> Option<f64> {
        self.entries.front().map(|(_, value)| *value)
    }

    /// Steps gone by, including those without a value.
    pub fn seen(&self) -> u64 {
        self.now
    }
}

/// For each step the maximum of `values` over the next `steps` steps, itself included; NaN where
/// none of them has a value. NaN values are skipped.
pub fn maxima_ahead(values: &[f32], steps: usize) -> Vec<f32> {
    let mut window = SlidingMax::new(steps);
    let mut out = vec![f32::NAN; values.len()];
    for (index, value) in values.iter().enumerate().rev() {
        window.push((!value.is_nan()).then_some(f64::from(*value)));
        if let Some(max) = window.max() {
            out[index] = max as f32;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{SlidingMax, maxima_ahead};

    proptest! {
        #[test]
        fn the_window_agrees_with_a_plain_maximum(
            values in prop::collection::vec(prop::option::of(0.0..9.0_f64), 1..80),
            steps in 1..20_usize,
        ) {
            let mut window = SlidingMax::new(steps);
            for index in 0..values.len() {
                window.push(values[index]);
                let from = (index + 1).saturating_sub(steps);
                let plain = values[from..=index].iter().flatten().copied().reduce(f64::max);
                prop_assert_eq!(window.max(), plain);
            }
        }
    }

    #[test]
    fn maxima_ahead_include_the_step_itself() {
        let ahead = maxima_ahead(&[1.0, 3.0, f32::NAN, 2.0, 0.5], 2);
        assert_eq!(&ahead[..2], &[3.0, 3.0]);
        assert_eq!(&ahead[2..], &[2.0, 2.0, 0.5]);
        assert!(maxima_ahead(&[f32::NAN], 3)[0].is_nan());
    }
}
