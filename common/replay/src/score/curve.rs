//! Two policies compared where they leave as much unused, for one with more slack is always safer.

use super::Tally;

/// Unmet demand of the curve `own` over that of `other` at a mean slack of `slack`; `None` where
/// a curve does not reach there, or the other has nothing unmet. Curves are read linearly between
/// the two points next to it.
pub fn unmet_at_equal_slack(
    own: &[(f64, Tally)],
    other: &[(f64, Tally)],
    slack: f64,
) -> Option<f64> {
    let own = unmet_at(&points(own), slack)?;
    let other = unmet_at(&points(other), slack)?;
    (other > 0.0).then(|| own / other)
}

/// Mean slack and unmet share of each point, by slack.
fn points(curve: &[(f64, Tally)]) -> Vec<(f64, f64)> {
    let scores = curve.iter().map(|(_, tally)| tally.scores());
    let mut points: Vec<(f64, f64)> =
        scores.filter_map(|scores| Some((scores.slack_mean?, scores.unmet_share))).collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    points
}

fn unmet_at(points: &[(f64, f64)], slack: f64) -> Option<f64> {
    points.windows(2).find(|pair| pair[0].0 <= slack && slack <= pair[1].0).map(|pair| {
        let width = (pair[1].0 - pair[0].0).max(f64::MIN_POSITIVE);
        pair[0].1 + (slack - pair[0].0) / width * (pair[1].1 - pair[0].1)
    })
}

#[cfg(test)]
mod tests {
    use super::unmet_at;

    #[test]
    fn between_two_points_the_curve_is_straight_and_beyond_them_there_is_none() {
        let points = [(0.2, 0.04), (0.4, 0.02), (0.6, 0.0)];
        // A quarter of the way from 0.04 to 0.02.
        assert!((unmet_at(&points, 0.25).unwrap() - 0.035).abs() < 1e-12);
        assert!((unmet_at(&points, 0.6).unwrap()).abs() < 1e-12);
        assert_eq!(unmet_at(&points, 0.1), None);
        assert_eq!(unmet_at(&points, 0.7), None);
    }
}
