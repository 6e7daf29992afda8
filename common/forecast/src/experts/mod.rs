//! Who answers: estimators of quantiles that are pure functions of the recent past, so that what one
//! would have said at an earlier step can be told, and scored, without having been kept.

mod analog;
mod calendar;
mod change;
mod phase;
mod recent;
mod view;
mod weighted;

pub(crate) use view::View;

use crate::{calendar::Calendar, levels::Quantiles};

/// Number of experts.
pub const N_EXPERTS: usize = 15;

/// Names, as reports tell them.
pub const NAMES: [&str; N_EXPERTS] = [
    "recent-hour",
    "recent-quarter",
    "recent-day",
    "recent-week",
    "change",
    "level-phase",
    "analog",
    "analog-near",
    "analog-phase",
    "analog-time",
    "day-phase",
    "period-phase",
    "week-phase",
    "day-exact",
    "calendar",
];

/// What every expert says of one horizon; `None` where it knows too little.
pub(crate) type Panel = [Option<Quantiles>; N_EXPERTS];

/// What changes slowly about a series and experts need to know.
#[derive(Clone, Debug)]
pub(crate) struct Seasons {
    /// What hours usually bring.
    pub(crate) calendar: Calendar,
    /// Time of the last step, and length of a step, seconds.
    pub(crate) end_t_s: f64,
    pub(crate) step_s: f64,
    /// Steps in a day; zero when a day has no whole number of steps or is out of reach.
    pub(crate) day_steps: usize,
    /// Another period that was found, steps; zero for none.
    pub(crate) period_steps: usize,
    /// Steps in a week; zero when a week is out of reach.
    pub(crate) week_steps: usize,
}

/// Horizons, in steps ahead, at which the slow experts are asked; between them is interpolated.
pub(crate) const GRID: [usize; 9] = [1, 2, 4, 8, 16, 32, 48, 96, 192];

/// Number of the experts that are asked at the horizons of the grid only; the others look at one
/// phase of a period and are asked at every horizon.
const N_STEADY: usize = 10;

/// What the experts say from one step ahead on.
pub(crate) struct Answers {
    /// Horizons at which the first experts were asked, steps, and what they said.
    steady: Vec<(usize, Panel)>,
    /// What the last experts said one step ahead and on.
    phased: Vec<Panel>,
}

/// What the experts say between two horizons of the grid; outside of it nothing differs but what
/// the last experts say.
pub(crate) struct Segment<'a> {
    /// What the first experts say at its ends; the same ones answer at both.
    pub(crate) ends: [Panel; 2],
    /// Horizons in it, and where between the ends each lies, 0..1.
    pub(crate) horizons: Vec<(usize, f32)>,
    /// What the last experts say at each horizon.
    pub(crate) phased: &'a [Panel],
}

impl Answers {
    /// The horizons, segment after segment.
    pub(crate) fn segments(&self) -> impl Iterator<Item = Segment<'_>> {
        (0..self.steady.len()).map(|at| {
            let (from, low) = &self.steady[at];
            let (to, high) = self.steady.get(at + 1).unwrap_or(&self.steady[at]);
            let ends = [either(low, high), either(high, low)];
            let last = if to > from { to - 1 } else { *from };
            let width = (to - from).max(1) as f32;
            let share = |h: usize| (h, (h - from) as f32 / width);
            let horizons = (*from..=last).map(share).collect();
            Segment { ends, horizons, phased: &self.phased[from - 1..last] }
        })
    }
}

/// What the first say or, where they do not answer, the second.
fn either(first: &Panel, second: &Panel) -> Panel {
    std::array::from_fn(|expert| first[expert].or(second[expert]))
}

/// Says for one step ahead and on to `horizon` what the experts that are `asked` expect.
pub(crate) fn answer(
    view: &View,
    seasons: &Seasons,
    asked: &[bool; N_EXPERTS],
    horizon: usize,
) -> Answers {
    let recents = recent::answer(view);
    let likeness = analog::Likeness::of(view, seasons.day_steps, horizon);
    let inside = GRID.iter().copied().take_while(|&h| h < horizon);
    let steady = inside.chain([horizon]).map(|h| {
        let mut panel = steady(view, &recents, &likeness, seasons.day_steps, h);
        leave_out(&mut panel, asked);
        (h, panel)
    });
    let steady = steady.collect();
    let phases = Phases::of(view, seasons);
    let phased = (1..=horizon).map(|h| {
        let mut panel = [None; N_EXPERTS];
        panel[N_STEADY..].copy_from_slice(&phases.answer(h));
        leave_out(&mut panel, asked);
        panel
    });
    Answers { steady, phased: phased.collect() }
}

/// Says for one horizon of `h` steps what the experts that are `asked` expect.
pub(crate) fn answer_one(
    view: &View,
    seasons: &Seasons,
    asked: &[bool; N_EXPERTS],
    h: usize,
) -> Panel {
    let likeness = analog::Likeness::of(view, seasons.day_steps, h);
    let mut panel = steady(view, &recent::answer(view), &likeness, seasons.day_steps, h);
    panel[N_STEADY..].copy_from_slice(&Phases::of(view, seasons).answer(h));
    leave_out(&mut panel, asked);
    panel
}

fn leave_out(panel: &mut Panel, asked: &[bool; N_EXPERTS]) {
    for (said, asked) in panel.iter_mut().zip(asked) {
        *said = said.filter(|_| *asked);
    }
}

fn steady(
    view: &View,
    recents: &[Option<Quantiles>; 4],
    likeness: &analog::Likeness,
    day_steps: usize,
    h: usize,
) -> Panel {
    let mut panel = [None; N_EXPERTS];
    panel[..4].copy_from_slice(recents);
    panel[4] = change::from_last(view, h);
    panel[5] = change::from_level(view, day_steps, h);
    panel[6..N_STEADY].copy_from_slice(&likeness.answer(view, h));
    panel
}

/// The experts that are asked at every horizon.
struct Phases<'a> {
    view: &'a View,
    seasons: &'a Seasons,
    usual: calendar::Usual<'a>,
}

impl<'a> Phases<'a> {
    fn of(view: &'a View, seasons: &'a Seasons) -> Self {
        let usual = calendar::Usual::of(view, &seasons.calendar, seasons.end_t_s, seasons.step_s);
        Self { view, seasons, usual }
    }

    fn answer(&self, h: usize) -> [Option<Quantiles>; N_EXPERTS - N_STEADY] {
        let Seasons { day_steps, period_steps, week_steps, .. } = *self.seasons;
        [
            phase::values(self.view, day_steps, h, 2),
            phase::values(self.view, period_steps, h, 1),
            phase::values(self.view, week_steps, h, 6),
            phase::values(self.view, day_steps, h, 0),
            self.usual.answer(h),
        ]
    }
}
