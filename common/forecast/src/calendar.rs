//! What the hour of the day and of the week usually bring, over more weeks than the history reaches
//! back: means that fade by the visit, whatever the length of a step. Hours are those of the time that
//! values come with; where clocks are put forward, the means follow within days.

/// Hours in a day and in a week.
const DAY: usize = 24;
const WEEK: usize = 168;
/// Seconds in an hour.
const HOUR_S: f64 = 3600.0;
/// Share of a mean that one visit of its hour replaces, by day and by week.
const SHARES: [f32; 2] = [0.2, 0.4];
/// Visits after which the hour of the week counts as much as the hour of the day.
const VISITS_HALF: f32 = 2.0;

/// Means by hour.
#[derive(Clone, Debug)]
pub(crate) struct Calendar {
    hours: Box<Hours>,
    /// The hour that the last value was in, of the week.
    last: Option<usize>,
    /// Steps in an hour, at least one.
    hour_steps: f32,
}

#[derive(Clone, Debug)]
struct Hours {
    day: [f32; DAY],
    week: [f32; WEEK],
    day_visits: [u8; DAY],
    week_visits: [u8; WEEK],
    /// Values of the present visit.
    n_in_visit: u16,
}

impl Calendar {
    pub(crate) fn new(step_s: f64) -> Self {
        let hours = Hours {
            day: [0.0; DAY],
            week: [0.0; WEEK],
            day_visits: [0; DAY],
            week_visits: [0; WEEK],
            n_in_visit: 0,
        };
        #[expect(clippy::cast_possible_truncation, reason = "a number of steps")]
        let hour_steps = (HOUR_S / step_s).max(1.0) as f32;
        Self { hours: Box::new(hours), last: None, hour_steps }
    }

    /// Bytes held outside of the type itself.
    pub(crate) fn heap_bytes(&self) -> usize {
        size_of_val(&*self.hours)
    }

    /// Hour of the week of a time, counted from any epoch.
    pub(crate) fn hour_of(t_s: f64) -> usize {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the remainder is not negative and below a week"
        )]
        let hour = (t_s / HOUR_S).rem_euclid(WEEK as f64) as usize;
        hour.min(WEEK - 1)
    }

    /// Takes a value that was there at `t_s`.
    pub(crate) fn push(&mut self, t_s: f64, value: f32) {
        let hour = Self::hour_of(t_s);
        let hours = &mut *self.hours;
        if self.last != Some(hour) {
            self.last = Some(hour);
            hours.n_in_visit = 0;
            let visits = [&mut hours.day_visits[hour % DAY], &mut hours.week_visits[hour]];
            visits.into_iter().for_each(|visits| *visits = visits.saturating_add(1));
        }
        hours.n_in_visit = hours.n_in_visit.saturating_add(1);
        let n = f32::from(hours.n_in_visit);
        let means = [
            (&mut hours.day[hour % DAY], hours.day_visits[hour % DAY], SHARES[0]),
            (&mut hours.week[hour], hours.week_visits[hour], SHARES[1]),
        ];
        for (mean, visits, least) in means {
            let first = 1.0 / f32::from(visits.max(1));
            let share = if visits <= 1 { 1.0 / n } else { first.max(least) / self.hour_steps };
            *mean += share.min(1.0) * (value - *mean);
        }
    }

    /// What the hour of the week `hour` usually brings; `None` where that hour of the day never was.
    pub(crate) fn usual(&self, hour: usize) -> Option<f32> {
        let hours = &*self.hours;
        let day = (hours.day_visits[hour % DAY] > 0).then_some(hours.day[hour % DAY])?;
        let visits = f32::from(hours.week_visits[hour]);
        Some(day + visits / (visits + VISITS_HALF) * (hours.week[hour] - day))
    }
}

#[cfg(test)]
mod tests {
    use super::{Calendar, DAY, HOUR_S, WEEK};

    /// After `weeks` of steps of `step_s` seconds: two on the last two days of a week, else one.
    fn after(weeks: usize, step_s: f64) -> Calendar {
        let mut calendar = Calendar::new(step_s);
        let mut t_s = 0.0;
        while t_s < weeks as f64 * WEEK as f64 * HOUR_S {
            let is_weekend = Calendar::hour_of(t_s) / DAY >= 5;
            calendar.push(t_s, if is_weekend { 2.0 } else { 1.0 });
            t_s += step_s;
        }
        calendar
    }

    #[test]
    fn an_hour_that_never_was_is_not_known() {
        let mut calendar = Calendar::new(HOUR_S);
        calendar.push(5.0 * HOUR_S, 3.0);
        assert_eq!(calendar.usual(5), Some(3.0));
        // The same hour of another day is the best guess; another hour is none.
        assert_eq!(calendar.usual(5 + DAY), Some(3.0));
        assert_eq!(calendar.usual(6), None);
    }

    #[test]
    fn a_weekend_is_told_from_the_days_before_it_whatever_the_step() {
        for step_s in [60.0, 300.0, 1800.0, 3600.0] {
            let calendar = after(4, step_s);
            let (monday, saturday) = (calendar.usual(12), calendar.usual(5 * DAY + 12));
            let (monday, saturday) = (monday.unwrap(), saturday.unwrap());
            assert!(monday < 1.25 && saturday > 1.7, "{step_s}: {monday} {saturday}");
        }
    }

    #[test]
    fn a_time_before_the_epoch_has_an_hour() {
        assert_eq!(Calendar::hour_of(-1.0), WEEK - 1);
        assert_eq!(Calendar::hour_of(WEEK as f64 * HOUR_S), 0);
    }
}
