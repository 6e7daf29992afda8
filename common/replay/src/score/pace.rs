//! How long things take where demand is judged: over days, or over the hours of a recording of seconds.

/// The longest step that counts as one of seconds: a host can tick at it.
pub const TICK_MAX_S: f64 = 10.0;

/// Lengths of time that a step of its length asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// What counts once, and of which a part may be left out of scores at the start.
    pub span_s: f64,
    /// What that is called.
    pub span: &'static str,
    /// Within this a ramp rises.
    pub ramp_s: f64,
    /// Until then, and a lead time more, a raise has to be needed.
    pub needed_s: f64,
    /// What is run through, by default, before scores count.
    pub from_s: f64,
}

const DAYS: Pace =
    Pace { span_s: 86_400.0, span: "day", ramp_s: 1800.0, needed_s: 86_400.0, from_s: 86_400.0 };
const SECONDS: Pace =
    Pace { span_s: 3600.0, span: "hour", ramp_s: 10.0, needed_s: 600.0, from_s: 120.0 };

impl Pace {
    /// That of a series with steps of `step_s` seconds.
    pub fn of(step_s: f64) -> Self {
        if step_s <= TICK_MAX_S { SECONDS } else { DAYS }
    }

    /// Whether it is by days.
    pub fn is_days(&self) -> bool {
        *self == DAYS
    }
}
