//! The best that can be had: what the clairvoyant oracle pays for holding a limit.

use headroom_replay::Kind;

use super::{ResourceRun, percent, put};

/// The oracle over the time for which its limits hold, where it was replayed with curves.
pub(super) fn section(html: &mut String, resource: &ResourceRun) {
    let Some(oracle) = resource.runs.iter().find(|run| run.kind == Kind::Oracle) else { return };
    let swept = oracle.sweep.iter().map(|(hours, tally)| (hours, tally.scores()));
    let swept: Vec<_> = swept.filter(|(_, scores)| scores.workload_days > 0).collect();
    if swept.is_empty() {
        return;
    }
    put(
        html,
        "<h3>What can be had at all</h3><p>The oracle knows what comes and sets the least limit that is \
         never hit for so many hours. Who does not know the future and holds limits as long has at least \
         this slack, or is above the limit at times.</p>\
         <div class=\"scroll\"><table><thead><tr><th>a limit holds for</th><th>slack %<br>mean / median</th>\
         <th>days<br>free %</th><th>changes<br>mean / p99</th></tr></thead><tbody>",
    );
    for (hours, scores) in swept {
        put(
            html,
            &format!(
                "<tr><td>{}</td><td>{} / {}</td><td>{}</td><td>{:.1} / {}</td></tr>",
                held(*hours),
                percent(scores.slack_mean),
                percent(scores.slack_median),
                percent(scores.free_days_share),
                scores.changes_per_day.mean,
                scores.changes_per_day.p99,
            ),
        );
    }
    put(html, "</tbody></table></div>");
}

fn held(hours: f64) -> String {
    if hours < 1.0 {
        format!("{:.0} min", hours * 60.0)
    } else if hours < 48.0 {
        format!("{hours:.0} h")
    } else {
        format!("{:.0} days", hours / 24.0)
    }
}

#[cfg(test)]
mod tests {
    use super::held;

    #[test]
    fn times_are_told_in_their_usual_unit() {
        assert_eq!([0.25, 24.0, 168.0].map(held), ["15 min", "24 h", "7 days"]);
    }
}
