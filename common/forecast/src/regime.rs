//! Since when a series has been as it is.
//!
//! A change that lasts is told from a burst by how rarely its values came before: the newest window is
//! a new regime when hardly any of its values lies within what the old one reached. That counts
//! values only, so neither unit nor shape nor the length of a tail matter, and a peak that comes every
//! day is none. ADWIN and CUSUM, which compare means, alarm at each of those.

/// Steps between two looks.
pub(crate) const LOOK_STEPS: u64 = 6;
/// Steps of a window: two hours at five minutes.
const WINDOW: usize = 24;
/// Steps of the old regime that a window is held against: a day at five minutes, or the first night
/// of a daily series would be a change.
const REFERENCE_MIN: usize = 288;
/// Values of a window that may lie within the old regime.
const N_WITHIN: usize = 1;
/// Least share of steps with a value, in a window and in what it is held against.
const KNOWN_SHARE_MIN: f32 = 0.75;

/// What came before a change counts half after so many steps at best.
const FADE_STEPS: f32 = 6.0;
/// A regime that lasted so many steps, five days at five minutes, is believed to be over at once.
const LASTED_STEPS: f32 = 1440.0;
/// Steps in which a change is half forgotten when the next is judged.
const CHANGE_HALF_LIFE: f32 = 864.0;
/// Least that steps of the old regime count: it may come back.
const SHARE_MIN: f32 = 0.001;

/// The present regime of one series.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Regime {
    /// Number of its first step.
    first_step: u64,
    /// Changes of late: where there are many, what was before comes back.
    n_changes: f32,
    /// Steps in which what was before comes to count half.
    fade_steps: f32,
}

impl Regime {
    pub(crate) fn new() -> Self {
        Self { first_step: 0, n_changes: 0.0, fade_steps: FADE_STEPS }
    }

    /// Index of its first step among `n` values that end with step number `n_steps`.
    pub(crate) fn start(&self, n: usize, n_steps: u64) -> usize {
        #[expect(clippy::cast_possible_truncation, reason = "at most `n`")]
        let start = self.first_step.saturating_sub(n_steps - n as u64).min(n as u64) as usize;
        start
    }

    /// What steps before `start` count beside those of the regime, the newest of `n` being its last:
    /// little soon where one regime lasted for days, slowly less where they come and go.
    pub(crate) fn old_share(&self, start: usize, n: usize) -> f32 {
        if start == 0 {
            return 1.0;
        }
        (-((n - start) as f32) / self.fade_steps).exp2().max(SHARE_MIN)
    }

    /// Looks at `values` (oldest first, NaN where missing), the last of them step number `n_steps`;
    /// whether they are in a new regime.
    pub(crate) fn look(&mut self, values: &[f32], n_steps: u64) -> bool {
        let start = self.start(values.len(), n_steps);
        let Some(at) = began(values, start) else { return false };
        let first_step = n_steps - values.len() as u64 + at as u64;
        let lasted = (first_step - self.first_step) as f32;
        self.n_changes *= (-lasted / CHANGE_HALF_LIFE).exp2();
        if self.first_step > 0 {
            self.n_changes += 1.0;
        }
        let doubt = (LASTED_STEPS / lasted).max(1.0);
        self.fade_steps = FADE_STEPS * self.n_changes.exp2() * doubt * doubt;
        self.first_step = first_step;
        true
    }
}

/// Index in `values` at which the newest steps left what the ones from `start` on reached, if all
/// of them but a few did, to the same side.
fn began(values: &[f32], start: usize) -> Option<usize> {
    let split = values.len().checked_sub(WINDOW)?;
    if split < start + REFERENCE_MIN {
        return None;
    }
    let (reference, newest) = (&values[start..split], &values[split..]);
    let mut sorted: Vec<f32> = newest.iter().copied().filter(|value| !value.is_nan()).collect();
    if (sorted.len() as f32) < KNOWN_SHARE_MIN * WINDOW as f32 {
        return None;
    }
    sorted.sort_by(f32::total_cmp);
    let n_known = reference.iter().filter(|value| !value.is_nan()).count();
    if (n_known as f32) < KNOWN_SHARE_MIN * REFERENCE_MIN as f32 {
        return None;
    }
    let (low, high) = (sorted[N_WITHIN], sorted[sorted.len() - 1 - N_WITHIN]);
    let first = |is_new: &dyn Fn(f32) -> bool| {
        newest.iter().position(|value| is_new(*value)).map(|at| split + at)
    };
    if reference.iter().all(|value| value.is_nan() || *value < low) {
        return first(&|value| value >= low);
    }
    if reference.iter().all(|value| value.is_nan() || *value > high) {
        return first(&|value| value <= high);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{REFERENCE_MIN, Regime, SHARE_MIN, WINDOW};

    /// Regime after `values`, looked at after each, and the steps at which it changed.
    fn after(values: &[f32]) -> (Regime, Vec<usize>) {
        let mut regime = Regime::new();
        let changes =
            (1..=values.len()).filter(|n| regime.look(&values[..*n], *n as u64)).collect();
        (regime, changes)
    }

    fn noise(i: usize) -> f32 {
        (i * 7919 % 101) as f32 / 101.0
    }

    #[test]
    fn a_level_that_stays_is_a_change_after_a_window_and_is_found_where_it_began() {
        let at = 6 * REFERENCE_MIN;
        for (old, new) in [(1.0, 5.0), (5.0, 1.0)] {
            let values: Vec<f32> =
                (0..at + 400).map(|i| noise(i) + if i < at { old } else { new }).collect();
            let (regime, changes) = after(&values);
            // One value of a window may be of the old regime.
            assert_eq!(changes, [at + WINDOW - 1]);
            assert_eq!(regime.start(values.len(), values.len() as u64), at);
            // It lasted long, so it is forgotten soon.
            assert!(regime.old_share(at, at + 60) <= SHARE_MIN * 1.1);
        }
    }

    #[test]
    fn a_burst_a_daily_peak_and_an_idle_series_are_none() {
        let daily = |i: usize| noise(i) + if i % 288 >= 200 { 5.0 } else { 0.0 };
        let burst = |i: usize| noise(i) + if (1000..1015).contains(&i) { 9.0 } else { 0.0 };
        let idle = |i: usize| f32::from(u8::from(i.is_multiple_of(97)));
        let shapes: [&dyn Fn(usize) -> f32; 3] = [&daily, &burst, &idle];
        for shape in shapes {
            let values: Vec<f32> = (0..2000).map(shape).collect();
            assert_eq!(after(&values).1, [0_usize; 0]);
        }
    }

    #[test]
    fn what_comes_and_goes_is_forgotten_slowly() {
        let at = [400, 800, 1200, 1600];
        let level = |i: usize| at.iter().filter(|at| i >= **at).count() as f32;
        let values: Vec<f32> = (0..1700).map(|i| noise(i) * 0.5 + level(i)).collect();
        let (regime, changes) = after(&values);
        assert_eq!(changes.len(), at.len());
        assert!(regime.old_share(1600, 1700) > 0.5);
    }

    #[test]
    fn a_gap_is_no_change() {
        let mut values: Vec<f32> = (0..1000).map(noise).collect();
        values[600..700].fill(f32::NAN);
        assert_eq!(after(&values).1, [0_usize; 0]);
    }
}
