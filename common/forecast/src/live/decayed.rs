//! A mean that forgets.

/// An exponentially weighted mean that starts as the plain mean of what it has seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Decayed {
    mean: f32,
    n_seen: u32,
}

impl Decayed {
    /// Adds a value; the weight of the newest never falls below one in `memory`.
    pub fn add(&mut self, value: f32, memory: u32) {
        self.n_seen = self.n_seen.saturating_add(1);
        let weight = 1.0 / self.n_seen.min(memory.max(1)) as f32;
        self.mean += weight * (value - self.mean);
    }

    /// The mean; `None` before the first value.
    pub fn mean(&self) -> Option<f32> {
        (self.n_seen > 0).then_some(self.mean)
    }

    /// Values seen so far.
    pub fn n_seen(&self) -> u32 {
        self.n_seen
    }
}
