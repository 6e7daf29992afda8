//! Who answers: estimators of quantiles that are pure functions of the recent past, so that what one
//! would have said at an earlier step can be told, and scored, without having been kept.

mod analog;
mod change;
mod phase;
mod recent;
mod view;
mod weighted;

pub(crate) use view::View;

use crate::levels::Quantiles;

/// Number of experts.
pub const N_EXPERTS: usize = 12;

/// Names, as reports tell them.
pub const NAMES: [&str; N_EXPERTS] = [
    "recent-hour",
    "recent-quarter",
    "recent-day",
    "recent-week",
    "change",
    "level",
    "analog",
    "analog-near",
    "analog-phase",
    "analog-time",
    "day-phase",
    "period-phase",
];

/// What every expert says of one horizon; `None` where it knows too little.
pub(crate) type Panel = [Option<Quantiles>; N_EXPERTS];

/// What changes slowly about a series and experts need to know.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seasons {
    /// Steps in a day; zero when a day has no whole number of steps or is out of reach.
    pub(crate) day_steps: usize,
    /// Another period that was found, steps; zero for none.
    pub(crate) period_steps: usize,
}

/// Horizons, in steps ahead, at which the slow experts are asked; between them is interpolated.
pub(crate) const GRID: [usize; 9] = [1, 2, 4, 8, 16, 32, 48, 96, 192];

/// Says for each of `horizons` (ascending, steps ahead) what each expert expects, as of `view`.
pub(crate) fn answer(view: &View<'_>, seasons: Seasons, horizons: &[usize]) -> Vec<Panel> {
    let recents = recent::answer(view);
    let grid = grid_for(horizons);
    let likeness = analog::Likeness::of(view, seasons.day_steps);
    let ask = |&h: &usize| {
        let [state, near, phase, time] = likeness.answer(view, h);
        [change::from_last(view, h), change::from_level(view, h), state, near, phase, time]
    };
    let slow: Vec<_> = grid.iter().map(ask).collect();
    let mut at = 0;
    let panel = |&h: &usize| {
        while at + 1 < grid.len() && grid[at + 1] <= h {
            at += 1;
        }
        let mut panel = [None; N_EXPERTS];
        panel[..4].copy_from_slice(&recents);
        for (expert, said) in panel[4..10].iter_mut().enumerate() {
            let above = (at + 1).min(grid.len() - 1);
            *said = between(slow[at][expert], slow[above][expert], grid[at], grid[above], h);
        }
        panel[10] = phase::values(view, seasons.day_steps, h, 2);
        panel[11] = phase::values(view, seasons.period_steps, h, 1);
        panel
    };
    horizons.iter().map(panel).collect()
}

/// Horizons of the grid up to the longest asked for; that one alone when only one is asked for.
fn grid_for(horizons: &[usize]) -> Vec<usize> {
    let longest = horizons.last().copied().unwrap_or(1);
    if horizons.len() == 1 {
        return vec![longest];
    }
    let inside = GRID.iter().copied().take_while(|&h| h < longest);
    inside.chain([longest]).collect()
}

/// Linear between two horizons; what one says where the other does not answer.
fn between(
    low: Option<Quantiles>,
    high: Option<Quantiles>,
    h_low: usize,
    h_high: usize,
    h: usize,
) -> Option<Quantiles> {
    let (Some(mut mixed), Some(above)) = (low, high) else { return low.or(high) };
    if h_high > h_low && h > h_low {
        let share = (h - h_low) as f32 / (h_high - h_low) as f32;
        for (mixed, above) in mixed.iter_mut().zip(above) {
            *mixed += share * (above - *mixed);
        }
    }
    Some(mixed)
}
