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
pub(crate) const N_EXPERTS: usize = 12;

/// Names, as reports tell them.
#[expect(dead_code, reason = "told by the answers once they name their source")]
pub(crate) const NAMES: [&str; N_EXPERTS] = [
    "recent-hour",
    "recent-quarter",
    "recent-day",
    "recent-week",
    "change",
    "level",
    "analog",
    "analog-phase",
    "day-phase",
    "day-phase-level",
    "week-phase",
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
pub(crate) const GRID: [usize; 12] = [1, 2, 3, 4, 6, 8, 12, 16, 24, 36, 48, 96];

/// Says for each of `horizons` (ascending, steps ahead) what each expert expects, as of `view`.
pub(crate) fn answer(view: &mut View<'_>, seasons: Seasons, horizons: &[usize]) -> Vec<Panel> {
    let mut panels = vec![[None; N_EXPERTS]; horizons.len()];
    let recents = recent::answer(view);
    for panel in &mut panels {
        panel[..4].copy_from_slice(&recents);
    }
    let kernels = analog::Kernels::of(view, seasons.day_steps);
    on_grid(horizons, &mut panels, 6, |h| kernels.0.answer(view, h));
    on_grid(horizons, &mut panels, 7, |h| kernels.1.answer(view, h));
    on_grid(horizons, &mut panels, 4, |h| change::from_last(view, h));
    on_grid(horizons, &mut panels, 5, |h| change::from_level(view, h));
    for (panel, &h) in panels.iter_mut().zip(horizons) {
        panel[8] = phase::values(view, seasons.day_steps, h, 3);
        panel[9] = phase::changes(view, seasons.day_steps, h);
        panel[10] = phase::values(view, seasons.day_steps * 7, h, 6);
        panel[11] = phase::values(view, seasons.period_steps, h, 0);
    }
    panels
}

/// Asks at the grid's horizons and fills those between.
fn on_grid(
    horizons: &[usize],
    panels: &mut [Panel],
    expert: usize,
    mut ask: impl FnMut(usize) -> Option<Quantiles>,
) {
    if horizons.len() <= 2 {
        for (panel, &h) in panels.iter_mut().zip(horizons) {
            panel[expert] = ask(h);
        }
        return;
    }
    let longest = horizons.last().copied().unwrap_or(1);
    let mut below = (1, ask(1));
    let mut above = below;
    for (panel, &h) in panels.iter_mut().zip(horizons) {
        while above.0 < h {
            below = above;
            let next = GRID.iter().copied().find(|&g| g > below.0).unwrap_or(below.0 * 2);
            let next = next.min(longest);
            above = (next, ask(next));
        }
        panel[expert] = match (below.1, above.1) {
            (Some(low), Some(high)) if above.0 > below.0 => {
                let share = (h - below.0) as f32 / (above.0 - below.0) as f32;
                let mut mixed = low;
                for (mixed, high) in mixed.iter_mut().zip(high) {
                    *mixed += share * (high - *mixed);
                }
                Some(mixed)
            }
            (low, high) => low.or(high),
        };
    }
}
