//! Whether somebody set the clock: connections wait for the end of their certificates by a clock that
//! nobody sets, and have to be told.

use std::time::Instant;

/// Distance of the two clocks that is a setting and no drift, seconds.
const SET_S: f64 = 1.0;

/// Compares the time of day with time that passes.
#[derive(Debug)]
pub(super) struct SetWatch {
    begun: Instant,
    apart_s: Option<f64>,
}

impl SetWatch {
    pub(super) fn new() -> Self {
        Self { begun: Instant::now(), apart_s: None }
    }

    /// Whether the time of day, `now_s` seconds since the Unix epoch, was set since the last call.
    pub(super) fn was_set(&mut self, now_s: f64) -> bool {
        self.was_set_at(now_s, self.begun.elapsed().as_secs_f64())
    }

    fn was_set_at(&mut self, now_s: f64, passed_s: f64) -> bool {
        let apart_s = now_s - passed_s;
        let before_s = self.apart_s.replace(apart_s);
        before_s.is_some_and(|before_s| (apart_s - before_s).abs() > SET_S)
    }
}

#[cfg(test)]
mod tests {
    use super::SetWatch;

    #[test]
    fn a_clock_that_is_set_is_noticed_once_and_one_that_drifts_never() {
        let mut watch = SetWatch::new();
        assert!(!watch.was_set_at(1_000.0, 0.0));
        assert!(!watch.was_set_at(1_001.2, 1.0));
        assert!(watch.was_set_at(4_602.2, 2.0), "an hour on");
        assert!(!watch.was_set_at(4_603.2, 3.0));
        assert!(watch.was_set_at(1_004.2, 4.0), "and back");
        for i in 0_u32..100_000 {
            let passed_s = 5.0 + f64::from(i);
            assert!(!watch.was_set_at(1_005.2 + f64::from(i) * 1.0005, passed_s));
        }
    }
}
