//! The recent past of one series: a week at five minutes, with gaps, kept in order of value.

/// Steps remembered: a week at five minutes.
pub(crate) const CAPACITY: usize = 2016;
/// Steps looked at for what a lower bound may stand for.
const BEYOND_STEPS: usize = 288;
/// What a lower bound is taken for when nothing greater was seen; a guess, small enough for a limit
/// that grows by it to grow step by step.
const BEYOND_RATIO: f32 = 1.1;

/// A ring of values, NaN where nothing was measured.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    values: Vec<f32>,
    /// Places in the ring of known values, ascending by value and then by place: to keep them in
    /// order costs less than to sort them whenever somebody asks.
    order: Vec<u16>,
    /// Place of the oldest value once the ring is full.
    oldest: usize,
}

impl History {
    /// Appends the next step.
    pub(crate) fn push(&mut self, value: Option<f32>) {
        let value = value.unwrap_or(f32::NAN);
        let place = if self.values.len() < CAPACITY {
            if self.values.len() == self.values.capacity() {
                let grown = (self.values.len() * 2).clamp(32, CAPACITY) - self.values.len();
                self.values.reserve_exact(grown);
                self.order.reserve_exact(self.values.capacity() - self.order.len());
            }
            self.values.push(value);
            self.values.len() - 1
        } else {
            let place = self.oldest;
            if !self.values[place].is_nan() {
                let at = self.rank(self.values[place], place);
                self.order.remove(at);
            }
            self.values[place] = value;
            self.oldest = (place + 1) % CAPACITY;
            place
        };
        if !value.is_nan() {
            let at = self.rank(value, place);
            #[expect(clippy::cast_possible_truncation, reason = "CAPACITY is below 65,536")]
            self.order.insert(at, place as u16);
        }
    }

    /// Number of places in the order before `value` at `place`.
    fn rank(&self, value: f32, place: usize) -> usize {
        self.order.partition_point(|&other| {
            let known = self.values[usize::from(other)];
            known < value || (known == value && usize::from(other) < place)
        })
    }

    /// Bytes held outside of the type itself.
    pub(crate) fn heap_bytes(&self) -> usize {
        self.values.capacity() * size_of::<f32>() + self.order.capacity() * size_of::<u16>()
    }

    /// What a demand of at least `value` is taken for: the mean of the last day's values above it
    /// or, where there is none, a tenth more.
    pub(crate) fn beyond(&self, value: f32) -> f32 {
        let (older, newer) = self.halves();
        let day = newer.iter().rev().chain(older.iter().rev()).take(BEYOND_STEPS);
        let above = day.filter(|known| **known > value);
        let (sum, n) = above.fold((0.0, 0.0), |(sum, n), known| (sum + known, n + 1.0));
        if n > 0.0 { sum / n } else { value * BEYOND_RATIO }
    }

    /// The value `back` steps before the last; `None` where it is missing or forgotten.
    pub(crate) fn back(&self, back: usize) -> Option<f32> {
        let (older, newer) = self.halves();
        let value = match newer.len().checked_sub(back + 1) {
            Some(place) => newer.get(place),
            None => older.len().checked_sub(back + 1 - newer.len()).and_then(|at| older.get(at)),
        };
        value.copied().filter(|value| !value.is_nan())
    }

    /// The steps remembered, at most [`CAPACITY`], oldest first.
    pub(crate) fn recent(&self) -> Vec<f32> {
        let (older, newer) = self.halves();
        [older, newer].concat()
    }

    /// Indices into [`History::recent`] of known values, ascending by value.
    pub(crate) fn order(&self) -> Vec<u16> {
        #[expect(clippy::cast_possible_truncation, reason = "CAPACITY is below 65,536")]
        let (oldest, len) = (self.oldest as u16, self.values.len() as u16);
        let age = |&place: &u16| {
            if place >= oldest { place - oldest } else { place + (len - oldest) }
        };
        self.order.iter().map(age).collect()
    }

    fn halves(&self) -> (&[f32], &[f32]) {
        let (newer, older) = self.values.split_at(self.oldest);
        (older, newer)
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
        assert!(history.values.capacity() <= CAPACITY);
        let order = history.order();
        let known = recent.iter().filter(|value| !value.is_nan()).count();
        assert_eq!(order.len(), known);
        assert!(order.is_sorted_by(|a, b| recent[usize::from(*a)] < recent[usize::from(*b)]));
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
