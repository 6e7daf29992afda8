//! Sketches gathered over the last minutes: old periods fade, so that a program that changed is
//! seen to have changed.

use headroom_telemetry::{SKETCH_BINS, SketchCounts, Sketches};

use crate::vector::ratio::square_root_shares;

/// Time after which an event counts half, seconds.
pub const SKETCH_HALF_LIFE_S: f64 = 60.0;
/// Events, faded ones in part, below which a sketch says too little to be compared.
pub const SKETCH_EVENTS_MIN: f64 = 32.0;

/// The sketches of one workload, with exponential forgetting.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SketchAccumulator {
    order: Option<Box<[f64; SKETCH_BINS]>>,
    code: Option<Box<[f64; SKETCH_BINS]>>,
    newest_s: Option<f64>,
}

impl SketchAccumulator {
    /// One in which nothing was taken yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the sketches of the period that ended at `t_s`, seconds since the Unix epoch.
    ///
    /// A sketch that was not taken leaves what is gathered to fade. A period that is not newer than
    /// the last counts with it; one without a finite time is left out.
    pub fn add(&mut self, t_s: f64, sketches: &Sketches) {
        if !t_s.is_finite() {
            return;
        }
        let passed_s = self.newest_s.map_or(0.0, |newest_s| (t_s - newest_s).max(0.0));
        self.newest_s = Some(self.newest_s.map_or(t_s, |newest_s| newest_s.max(t_s)));
        let kept = (-passed_s / SKETCH_HALF_LIFE_S).exp2();
        gather(&mut self.order, sketches.order.as_ref(), kept);
        gather(&mut self.code, sketches.code.as_ref(), kept);
    }

    /// Whether any sketch was ever taken.
    pub fn is_empty(&self) -> bool {
        self.order.is_none() && self.code.is_none()
    }

    /// Square roots of the shares of the order sketch's bins; NaN each while fewer than
    /// [`SKETCH_EVENTS_MIN`] are gathered.
    pub fn order(&self) -> [f32; SKETCH_BINS] {
        shares(self.order.as_deref())
    }

    /// The same of the code sketch.
    pub fn code(&self) -> [f32; SKETCH_BINS] {
        shares(self.code.as_deref())
    }
}

fn gather(
    gathered: &mut Option<Box<[f64; SKETCH_BINS]>>,
    counts: Option<&SketchCounts>,
    kept: f64,
) {
    if let Some(bins) = gathered {
        bins.iter_mut().for_each(|bin| *bin *= kept);
    }
    let Some(SketchCounts(counts)) = counts.filter(|counts| counts.0.len() == SKETCH_BINS) else {
        return;
    };
    let bins = gathered.get_or_insert_with(|| Box::new([0.0; SKETCH_BINS]));
    for (bin, count) in bins.iter_mut().zip(counts) {
        *bin += f64::from(*count);
    }
}

fn shares(bins: Option<&[f64; SKETCH_BINS]>) -> [f32; SKETCH_BINS] {
    bins.map_or([f32::NAN; SKETCH_BINS], |bins| square_root_shares(bins, SKETCH_EVENTS_MIN))
}

#[cfg(test)]
mod tests {
    use headroom_telemetry::{SKETCH_BINS, SketchCounts, Sketches};

    use super::{SKETCH_HALF_LIFE_S, SketchAccumulator};

    fn in_bin(bin: usize, count: u32) -> Sketches {
        let mut counts = vec![0; SKETCH_BINS];
        counts[bin] = count;
        Sketches { order: SketchCounts::new(counts), code: None }
    }

    #[test]
    fn events_count_half_after_the_half_life() {
        let mut sketches = SketchAccumulator::new();
        sketches.add(100.0, &in_bin(3, 200));
        sketches.add(100.0 + SKETCH_HALF_LIFE_S, &in_bin(4, 100));
        let shares = sketches.order();
        assert!((shares[3] - shares[4]).abs() < 1e-6);
        assert!((shares[3] * shares[3] - 0.5).abs() < 1e-6);
        assert!(sketches.code()[0].is_nan());
    }

    #[test]
    fn too_few_events_or_none_taken_are_not_known() {
        let mut sketches = SketchAccumulator::new();
        assert!(sketches.is_empty() && sketches.order()[0].is_nan());
        sketches.add(1.0, &in_bin(0, 31));
        assert!(!sketches.is_empty() && sketches.order()[0].is_nan());
        sketches.add(1.0, &in_bin(0, 1));
        assert!((sketches.order()[0] - 1.0).abs() < 1e-6);
        sketches.add(1.0 + 10.0 * SKETCH_HALF_LIFE_S, &Sketches::default());
        assert!(sketches.order()[0].is_nan());
    }

    #[test]
    fn wrong_lengths_and_times_change_nothing() {
        let mut sketches = SketchAccumulator::new();
        sketches.add(f64::NAN, &in_bin(0, 99));
        let short = Sketches { order: Some(SketchCounts(vec![9; 3])), code: None };
        sketches.add(5.0, &short);
        assert!(sketches.is_empty());
        sketches.add(5.0, &in_bin(1, 64));
        sketches.add(-5.0, &in_bin(2, 64));
        let shares = sketches.order();
        assert!((shares[1] - shares[2]).abs() < 1e-6);
    }
}
