//! Slow knobs: a limit that is set for hours and raised ahead of need.
//!
//! [`crate::decide`] moves a limit with demand, second by second. Where a change is dear, as with
//! requests, placements and memory, a limit covers the demand of a whole hold time instead: it is
//! raised when demand is told to cross it or use comes close, and lowered only after it has been
//! held and less will do. Pure: the time comes in with the facts.

/// After which a hit counts half, seconds.
const HITS_HALF_LIFE_S: f64 = 1800.0;

/// How a limit is held.
#[derive(Clone, Debug, PartialEq)]
pub struct HoldRule {
    /// Share added on top of the demand of the hold time.
    pub margin: f64,
    /// Share of the limit in use from which it is raised before it is hit, 0 to 1.
    pub near: f64,
    /// Least share by which a limit is lowered.
    pub hysteresis: f64,
    /// How long is watched before the first change, seconds.
    pub watch_s: f64,
    /// Time between a change and the next lowering, seconds.
    pub hold_s: f64,
    /// The same after lowerings that had to be taken back; each doubles the time up to this.
    pub hold_max_s: f64,
    /// Share added to use when the limit was hit, for what is wanted beyond is not known.
    pub hit_margin: f64,
    /// Share by which a forecast alone raises a limit at most at a time.
    pub ahead_max: f64,
    /// The limit is raised when it was hit this often, a hit counting half an hour later half as
    /// much: 1 for the first hit, more where a hit only delays.
    pub hits: f64,
    /// Limits are never below this, in the unit of the resource.
    pub floor: f64,
}

/// Demand as it is told, in the unit of the resource.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Expected {
    /// Highest demand within the lead time; `None` when nothing is told.
    pub soon: Option<f64>,
    /// Highest demand within the hold time.
    pub hold: f64,
}

/// What to do with the limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Move {
    /// Leave it.
    Keep,
    /// Raise it: it was hit.
    RaiseHit(f64),
    /// Raise it: use is close to it.
    RaiseNear(f64),
    /// Raise it: demand is told to cross it within the lead time.
    RaiseAhead(f64),
    /// Lower it: held long enough, and less will do.
    Lower(f64),
}

/// A limit that is held.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeldLimit {
    since_s: Option<f64>,
    /// Time from a change to the next lowering; `None` before the first change.
    hold_s: Option<f64>,
    /// When it was last lowered.
    lowered_s: Option<f64>,
    /// Hits, less for what is past, and when that was counted.
    hits: f64,
    counted_s: f64,
}

impl HeldLimit {
    /// The next move for the limit `in_force` (infinite for none) at `now_s`, with `used` in the
    /// last period (`None` when not measured) and whether the limit `was_hit` in it.
    pub fn step(
        &mut self,
        rule: &HoldRule,
        expected: &Expected,
        in_force: f64,
        used: Option<f64>,
        was_hit: bool,
        now_s: f64,
    ) -> Move {
        let since_s = *self.since_s.get_or_insert(now_s);
        let target = (expected.hold * (1.0 + rule.margin)).max(rule.floor);
        let made = if self.is_hit_enough(rule, was_hit, now_s) {
            let least = used.map_or(in_force, |used| used * (1.0 + rule.hit_margin));
            Move::RaiseHit(target.max(least))
        } else if let Some(used) = used.filter(|used| *used > in_force * rule.near) {
            Move::RaiseNear(target.max(used * (1.0 + rule.margin) / rule.near))
        } else if let Some(soon) = expected.soon.filter(|soon| *soon > in_force) {
            let most = in_force * (1.0 + rule.ahead_max);
            Move::RaiseAhead((soon * (1.0 + rule.margin)).min(most))
        } else {
            let is_less = in_force.is_infinite() || target < in_force * (1.0 - rule.hysteresis);
            let is_due = now_s - since_s >= self.hold_s.unwrap_or(rule.watch_s);
            // What is in use, and what is told to come, is not taken away.
            let least = used.unwrap_or(0.0).max(expected.soon.unwrap_or(0.0)) / rule.near;
            let lower = target.max(least);
            if is_less && is_due && lower < in_force { Move::Lower(lower) } else { Move::Keep }
        };
        self.remember(rule, made, now_s);
        made
    }

    fn is_hit_enough(&mut self, rule: &HoldRule, was_hit: bool, now_s: f64) -> bool {
        self.hits *= (-(now_s - self.counted_s) / HITS_HALF_LIFE_S).exp2();
        self.counted_s = now_s;
        self.hits += f64::from(u8::from(was_hit));
        was_hit && self.hits >= rule.hits
    }

    /// A raise soon after a lowering says that it was lowered too soon: the next one waits twice as
    /// long. A lowering after a hold that nothing disturbed halves the wait.
    fn remember(&mut self, rule: &HoldRule, made: Move, now_s: f64) {
        if made == Move::Keep {
            return;
        }
        self.hits = 0.0;
        let hold_s = self.hold_s.unwrap_or(rule.hold_s);
        let next_s = if matches!(made, Move::Lower(_)) {
            let was_taken_back = self.lowered_s.is_none();
            self.lowered_s = Some(now_s);
            if was_taken_back { hold_s } else { hold_s * 0.5 }
        } else {
            let is_soon = self.lowered_s.take().is_some_and(|at_s| now_s - at_s < rule.hold_max_s);
            if is_soon { hold_s * 2.0 } else { hold_s }
        };
        self.hold_s = Some(next_s.clamp(rule.hold_s, rule.hold_max_s));
        self.since_s = Some(now_s);
    }
}

#[cfg(test)]
mod tests {
    use super::{Expected, HeldLimit, HoldRule, Move};

    fn rule() -> HoldRule {
        HoldRule {
            margin: 0.1,
            near: 0.9,
            hysteresis: 0.1,
            watch_s: 3600.0,
            hold_s: 3600.0,
            hold_max_s: 4.0 * 3600.0,
            hit_margin: 0.5,
            ahead_max: 1.0,
            hits: 1.0,
            floor: 0.1,
        }
    }

    fn expected(soon: f64, hold: f64) -> Expected {
        Expected { soon: Some(soon), hold }
    }

    #[test]
    fn a_limit_is_lowered_once_it_was_held_and_less_will_do() {
        let mut held = HeldLimit::default();
        let mut step =
            |hold, now_s| held.step(&rule(), &expected(1.0, hold), 4.0, Some(1.0), false, now_s);
        assert_eq!(step(2.0, 0.0), Move::Keep);
        assert_eq!(step(2.0, 3599.0), Move::Keep);
        assert_eq!(step(3.5, 3600.0), Move::Keep);
        assert_eq!(step(2.0, 3700.0), Move::Lower(2.2));
        assert_eq!(step(1.0, 3800.0), Move::Keep);
    }

    #[test]
    fn demand_told_above_the_limit_raises_it_at_once() {
        let mut held = HeldLimit::default();
        let made = held.step(&rule(), &expected(3.0, 1.0), 2.0, Some(1.0), false, 0.0);
        assert_eq!(made, Move::RaiseAhead(3.0 * 1.1));
        // A forecast alone does no more than double it.
        let made = held.step(&rule(), &expected(9.0, 1.0), 2.0, Some(1.0), false, 0.0);
        assert_eq!(made, Move::RaiseAhead(4.0));
    }

    #[test]
    fn a_lowering_that_is_taken_back_makes_the_next_one_wait_twice_as_long() {
        let mut held = HeldLimit::default();
        let mut step = |hold, used, is_hit, now_s| {
            held.step(&rule(), &expected(0.0, hold), 4.0, Some(used), is_hit, now_s)
        };
        assert_eq!(step(1.0, 0.5, false, 0.0), Move::Keep);
        assert_eq!(step(1.0, 0.5, false, 3600.0), Move::Lower(1.1));
        assert_eq!(step(4.0, 4.0, true, 4000.0), Move::RaiseHit(6.0));
        assert_eq!(step(1.0, 0.5, false, 4000.0 + 7199.0), Move::Keep);
        assert_eq!(step(1.0, 0.5, false, 4000.0 + 7200.0), Move::Lower(1.1));
        // Nothing disturbed the hold that follows: the wait is halved again.
        assert_eq!(step(1.0, 0.5, false, 11_200.0 + 7200.0), Move::Lower(1.1));
        assert_eq!(step(1.0, 0.5, false, 18_400.0 + 3600.0), Move::Lower(1.1));
    }

    #[test]
    fn hits_that_only_delay_are_counted_and_forgotten() {
        let rule = HoldRule { near: 1.0, hits: 1.8, ..rule() };
        let expected = expected(1.0, 1.0);
        let mut held = HeldLimit::default();
        let mut hit = |now_s| held.step(&rule, &expected, 2.0, Some(2.0), true, now_s);
        // Each alone, two half lives apart, comes to 1.25 and 1.31.
        assert!([0.0, 3600.0, 7200.0].map(&mut hit).iter().all(|made| !is_hit(made)));
        assert!(is_hit(&hit(7500.0)));
    }

    fn is_hit(made: &Move) -> bool {
        matches!(made, Move::RaiseHit(_))
    }

    #[test]
    fn use_close_to_the_limit_raises_it_before_it_is_hit() {
        let mut held = HeldLimit::default();
        let made = held.step(&rule(), &expected(1.0, 1.0), 2.0, Some(1.9), false, 0.0);
        assert_eq!(made, Move::RaiseNear(1.9 * 1.1 / 0.9));
    }

    #[test]
    fn a_hit_raises_by_more_than_was_seen() {
        let mut held = HeldLimit::default();
        let made = held.step(&rule(), &expected(1.0, 1.0), 2.0, Some(2.0), true, 0.0);
        assert_eq!(made, Move::RaiseHit(3.0));
    }

    #[test]
    fn what_is_in_use_is_not_taken_away() {
        let mut held = HeldLimit::default();
        held.step(&rule(), &expected(0.0, 0.0), 4.0, Some(3.0), false, 0.0);
        let made = held.step(&rule(), &expected(0.0, 0.0), 4.0, Some(3.0), false, 7200.0);
        assert_eq!(made, Move::Lower(3.0 / 0.9));
    }
}
