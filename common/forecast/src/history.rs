//! The recent past of one series: a week at five minutes, contiguous, with gaps.

/// Steps remembered: a week at five minutes.
pub(crate) const CAPACITY: usize = 2016;
/// Steps by which the store is overfull before the oldest are dropped, so that dropping is rare.
const SLACK: usize = 96;

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

    /// The steps remembered, at most [`CAPACITY`].
    pub(crate) fn recent(&self) -> &[f32] {
        &self.values[self.values.len().saturating_sub(CAPACITY)..]
    }
}
