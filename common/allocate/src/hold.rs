//! Slow knobs: a limit that is set for hours and raised ahead of need.
//!
//! [`crate::decide`] moves a limit with demand, second by second. Where a change is dear, as with
//! requests, placements and memory, a limit covers the demand of a whole hold time instead: it is
//! raised when demand is told to cross it or use comes close, and lowered only after it has been
//! held and less will do. Pure: the time comes in with the facts.

/// How a limit is held.
#[derive(Clone, Debug, PartialEq)]
pub struct HoldRule {
    /// Share added on top of the demand of the hold time.
    pub margin: f64,
    /// Share of the limit in use from which it is raised before it is hit, 0 to 1.
    pub near: f64,
    /// Least share by which a limit is lowered.
    pub hysteresis: f64,
    /// Time between a change and the next lowering, seconds; also how long is watched before the
    /// first change.
    pub hold_s: f64,
    /// Share added to use when the limit was hit, for what is wanted beyond is not known.
    pub hit_margin: f64,
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
        let made = if was_hit {
            let least = used.map_or(in_force, |used| used * (1.0 + rule.hit_margin));
            Move::RaiseHit(target.max(least))
        } else if let Some(used) = used.filter(|used| *used > in_force * rule.near) {
            Move::RaiseNear(target.max(used * (1.0 + rule.margin) / rule.near))
        } else if let Some(soon) = expected.soon.filter(|soon| *soon > in_force) {
            Move::RaiseAhead(target.max(soon * (1.0 + rule.margin)))
        } else {
            let is_less = in_force.is_infinite() || target < in_force * (1.0 - rule.hysteresis);
            let is_due = now_s - since_s >= rule.hold_s;
            // What is in use, and what is told to come, is not taken away.
            let least = used.unwrap_or(0.0).max(expected.soon.unwrap_or(0.0)) / rule.near;
            let lower = target.max(least);
            if is_less && is_due && lower < in_force { Move::Lower(lower) } else { Move::Keep }
        };
        if made != Move::Keep {
            self.since_s = Some(now_s);
        }
        made
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
            hold_s: 3600.0,
            hit_margin: 0.5,
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
