//! What the hour usually brings, plus how values differed from that lately.

use super::{
    View,
    weighted::{key, quantiles_of},
};
use crate::{calendar::Calendar, levels::Quantiles};

/// Steps looked back on, and from one to the next.
const BACK: usize = 288;
const STRIDE: usize = 2;
/// Weight of a difference relative to the next one looked at.
const KEEP: f32 = 0.985;
/// Fewest differences that make an answer.
const N_MIN: usize = 8;

/// Quantiles of how values differed from what their hours usually bring.
pub(super) struct Usual<'a> {
    calendar: &'a Calendar,
    /// Time of the origin, seconds, and length of a step.
    origin_t_s: f64,
    step_s: f64,
    apart: Option<Quantiles>,
}

impl<'a> Usual<'a> {
    pub(super) fn of(view: &View, calendar: &'a Calendar, end_t_s: f64, step_s: f64) -> Self {
        let behind = (view.values.len() - 1 - view.origin) as f64;
        let origin_t_s = end_t_s - behind * step_s;
        let mut keys = Vec::with_capacity(BACK / STRIDE);
        let mut weight = 1.0;
        let (mut least, mut n_least) = (f32::INFINITY, 0);
        for back in (0..BACK.min(view.origin + 1)).step_by(STRIDE) {
            let value = view.values[view.origin - back];
            let hour = Calendar::hour_of(origin_t_s - back as f64 * step_s);
            if let Some(usual) = calendar.usual(hour).filter(|_| !value.is_nan()) {
                let share = if view.origin - back < view.start { view.old_share } else { 1.0 };
                keys.push(key(value - usual, weight * share));
                n_least = if value < least { 1 } else { n_least + usize::from(value == least) };
                least = least.min(value);
            }
            weight *= KEEP;
        }
        // A series that mostly rests has no usual value: a mean would be what it never has.
        let rests = 2 * n_least > keys.len();
        let apart = if rests || keys.len() < N_MIN { None } else { quantiles_of(&mut keys) };
        Self { calendar, origin_t_s, step_s, apart }
    }

    /// What is expected `h` steps on.
    pub(super) fn answer(&self, h: usize) -> Option<Quantiles> {
        let hour = Calendar::hour_of(self.origin_t_s + h as f64 * self.step_s);
        let usual = self.calendar.usual(hour)?;
        self.apart.map(|apart| apart.map(|apart| usual + apart))
    }
}

#[cfg(test)]
mod tests {
    use super::{Usual, View};
    use crate::{calendar::Calendar, history::History, regime::Regime};

    const STEP_S: f64 = 60.0;
    const DAY: usize = 1440;

    /// Busy from eight to ten, and not on the last two days of a week.
    fn value(i: usize) -> f32 {
        let (day, hour) = (i / DAY % 7, i % DAY / 60);
        let busy = day < 5 && (8..10).contains(&hour);
        f32::from(u8::from(busy)) * 4.0 + 1.0 + 0.01 * (i % 7) as f32
    }

    #[test]
    fn a_busy_hour_is_expected_on_the_days_that_have_it_though_the_history_is_shorter_than_two_days()
     {
        let mut history = History::default();
        let mut calendar = Calendar::new(STEP_S);
        let n = DAY * 7 * 4;
        let mut push = |from: usize, to: usize| {
            for i in from..to {
                history.push(Some(value(i)));
                calendar.push(i as f64 * STEP_S, value(i));
            }
            let view = View::of(&history, &Regime::new(), to as u64).unwrap();
            let usual = Usual::of(&view, &calendar, (to - 1) as f64 * STEP_S, STEP_S);
            // Half past eight, an hour and a half and a day from seven in the morning.
            [90, 60 * 6].map(|h| usual.answer(h).unwrap()[4])
        };
        let on_a_monday = push(0, n + 7 * 60);
        assert!(on_a_monday[0] > 4.0 && on_a_monday[1] < 1.5, "{on_a_monday:?}");
        let on_a_saturday = push(n + 7 * 60, n + 5 * DAY + 7 * 60);
        assert!(on_a_saturday[0] < 3.0, "{on_a_saturday:?}");
    }

    #[test]
    fn what_differs_lately_is_added_and_without_a_calendar_there_is_no_answer() {
        let mut history = History::default();
        let mut calendar = Calendar::new(3600.0);
        for i in 0..24 * 14_usize {
            calendar.push(i as f64 * 3600.0, (i % 24) as f32);
            history.push(Some((i % 24) as f32 + 10.0));
        }
        let view = View::of(&history, &Regime::new(), 24 * 14).unwrap();
        let end_t_s = f64::from(24 * 14 - 1) * 3600.0;
        let told = Usual::of(&view, &calendar, end_t_s, 3600.0).answer(6).unwrap();
        assert!(told.iter().all(|told| (told - 15.0).abs() < 1e-3), "{told:?}");
        let none = Calendar::new(3600.0);
        assert!(Usual::of(&view, &none, end_t_s, 3600.0).answer(6).is_none());
    }
}
