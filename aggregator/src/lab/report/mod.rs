//! The page of a replay: one HTML file with plots in it, light and dark, without script.

mod chart;
mod drill;
mod frontier;

use std::fmt::Write as _;

use headroom_replay::{
    Kind,
    score::{Pace, Scores},
};
use headroom_telemetry::Resource;

use self::chart::{Axis, Line, lines};
use super::replay::{
    PolicyRun, ResourceRun, Told, at_equal_slack,
    summary::{percent, us_per_step},
};

/// Slack bins of the distribution.
const BINS: usize = 25;
/// Workloads listed as outliers.
const OUTLIERS: usize = 12;
/// Least share of unmet use that the curves show.
const UNMET_MIN: f64 = 1e-5;

/// The page.
pub(super) fn page(told: &Told, resources: &[ResourceRun]) -> String {
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>Replay of {0}</title>\n<style>{1}</style></head><body>\n\
         <h1>Replay of {0}</h1>\n",
        escape(&told.trace),
        include_str!("page.css")
    );
    let (unit, unit_s) =
        if Pace::of(told.step_s).is_days() { ("day", 86_400.0) } else { ("minute", 60.0) };
    let until = told.scope.until_s / unit_s;
    let until = if until.is_finite() { format!("{until}") } else { "the end".to_owned() };
    put(
        &mut html,
        &format!(
            "<p class=\"quiet\">Steps of {} s, lead time {} s, objective {}; scored from {unit} {} to {} of \
         every workload. {} steps without a row. Made in {:.1} s.</p>",
            told.step_s,
            told.setting.lead_s,
            told.objective,
            told.scope.from_s / unit_s,
            until,
            told.gaps,
            told.wall_s
        ),
    );
    for resource in resources {
        section(&mut html, told, resource);
    }
    notes(&mut html, told);
    html + "</body></html>\n"
}

fn put(html: &mut String, text: &str) {
    html.push_str(text);
    html.push('\n');
}

/// Text that is no markup.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn section(html: &mut String, told: &Told, resource: &ResourceRun) {
    let Some(own) = resource.runs.first() else { return };
    let scores = own.tally.scores();
    let span = Pace::of(told.step_s).span;
    put(
        html,
        &format!(
            "<h2>{}</h2><p>{} workloads, {} workload-{span}s. First policy: <b>{}</b>.</p>",
            escape(&resource.name),
            scores.workloads,
            scores.workload_days,
            own.kind
        ),
    );
    tiles(html, resource, own, span);
    put(html, "<div class=\"pair\">");
    curves(html, resource);
    distribution(html, resource, span);
    put(html, "</div>");
    keys(html, &resource.runs);
    table(html, resource, span);
    if Pace::of(told.step_s).is_days() {
        frontier::section(html, resource);
    }
    drill::section(html, told, resource);
    outliers(html, own, span);
}

fn tiles(html: &mut String, resource: &ResourceRun, own: &PolicyRun, span: &str) {
    let scores = own.tally.scores();
    let mut tiles = vec![
        (percent(scores.slack_mean) + " %", "mean slack".to_owned()),
        (percent(scores.free_days_share) + " %", format!("workload-{span}s never above the limit")),
        (format!("{:.3} %", scores.unmet_share * 100.0), "of use unmet".to_owned()),
        (
            format!("{} / {}", scores.changes_per_day.median, scores.changes_per_day.p99),
            format!("changes per workload-{span}, median / p99"),
        ),
        (
            percent(scores.ramps_periodic_covered_share) + " %",
            "of periodic ramps covered one lead ahead".to_owned(),
        ),
    ];
    let vpa = resource.runs.iter().find(|run| run.kind == Kind::Vpa && own.kind != Kind::Vpa);
    if let Some(over) = vpa.and_then(|vpa| at_equal_slack(own, vpa)) {
        tiles.push((format!("{over:.2} ×"), "VPA's unmet use at equal slack".to_owned()));
    }
    put(html, "<div class=\"tiles\">");
    for (value, words) in tiles {
        put(html, &format!("<div class=\"tile\"><b>{value}</b><span>{words}</span></div>"));
    }
    put(html, "</div>");
}

/// Slack against unmet use over each policy's parameter.
fn curves(html: &mut String, resource: &ResourceRun) {
    let point = |scores: &Scores| {
        scores.slack_mean.map(|slack| (slack * 100.0, (scores.unmet_share * 100.0).max(UNMET_MIN)))
    };
    let mut shown = Vec::new();
    for (rank, run) in resource.runs.iter().enumerate() {
        let mut points: Vec<(f64, f64)> =
            run.sweep.iter().filter_map(|(_, tally)| point(&tally.scores())).collect();
        points.retain(|(slack, _)| *slack >= 0.0);
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mark = point(&run.tally.scores()).filter(|(slack, _)| *slack >= 0.0);
        shown.push(Line { name: run.kind.name(), points, mark, is_own: rank == 0 });
    }
    let x = Axis { label: "mean slack, %".to_owned(), low: 0.0, high: 100.0, is_log: false };
    let drawn = resource.runs.iter().flat_map(|run| &run.sweep);
    let drawn = drawn.map(|(_, tally)| tally.workloads().len()).max().unwrap_or(0);
    let of = resource.series.len();
    let part = if drawn < of {
        format!(" Lines are of {drawn} of the {of} workloads, dots of all (--curve-workloads).")
    } else {
        String::new()
    };
    let label = "use above the limit, %".to_owned();
    let y = Axis { label, low: UNMET_MIN, high: 100.0, is_log: true };
    put(
        html,
        &format!(
            "<figure><figcaption>Lower left is better. Each line is a policy over its parameter, the dot \
         the policy as it is. Points of negative slack are left out; no shortage is drawn at the \
         bottom.{part}</figcaption>{}</figure>",
            lines("Slack against unmet use", &shown, &x, &y)
        ),
    );
}

/// How the slack of workload-days, or hours, is spread.
fn distribution(html: &mut String, resource: &ResourceRun, span: &str) {
    let mut shown = Vec::new();
    let mut most = 0.0_f64;
    for (rank, run) in resource.runs.iter().enumerate() {
        let mut bins = [0_u32; BINS];
        let mut count = 0.0;
        for slack in run.tally.slacks() {
            let bin = (f64::from(slack).clamp(0.0, 0.9999) * BINS as f64) as usize;
            bins[bin] += 1;
            count += 1.0;
        }
        let share = |bin: usize| f64::from(bins[bin]) / f64::max(count, 1.0) * 100.0;
        let center = |bin: usize| (bin as f64 + 0.5) / BINS as f64 * 100.0;
        let points: Vec<(f64, f64)> = (0..BINS).map(|bin| (center(bin), share(bin))).collect();
        most = points.iter().fold(most, |most, (_, share)| most.max(*share));
        shown.push(Line { name: run.kind.name(), points, mark: None, is_own: rank == 0 });
    }
    let x = Axis {
        label: format!("slack of a workload-{span}, %"),
        low: 0.0,
        high: 100.0,
        is_log: false,
    };
    let high = (most * 1.05).max(1.0);
    let label = format!("share of workload-{span}s, %");
    let y = Axis { label, low: 0.0, high, is_log: false };
    put(
        html,
        &format!(
            "<figure><figcaption>Where the slack is: to the left limits are tight; those below 0 are in \
         the first bin.</figcaption>{}</figure>",
            lines("Distribution of slack", &shown, &x, &y)
        ),
    );
}

fn keys(html: &mut String, runs: &[PolicyRun]) {
    put(html, "<div class=\"keys\">");
    for run in runs {
        put(html, &key(run.kind.name()));
    }
    put(html, "</div>");
}

fn key(name: &str) -> String {
    format!("<span><i style=\"background:var(--{name})\"></i>{name}</span>")
}

fn table(html: &mut String, resource: &ResourceRun, span: &str) {
    let is_memory = resource.resource == Resource::Memory;
    let vpa = resource.runs.iter().find(|run| run.kind == Kind::Vpa);
    let (short, waits) = if is_memory {
        ("kills<br>restart / no reaction", "")
    } else {
        ("time above<br>limit %", "<th>time work waits<br>(carried) %</th>")
    };
    put(
        html,
        &format!(
            "<div class=\"scroll\"><table class=\"wide\"><thead><tr><th>policy</th><th>slack %<br>mean / median</th>\
         <th>unmet<br>%</th><th>{span}s<br>free %</th><th>{short}</th>{waits}<th>changes<br>med / p99</th>\
         <th>rever-<br>sals</th><th>periodic<br>ramps %</th><th>other<br>ramps %</th><th>lead<br>\
         median s</th><th>raised ahead,<br>unused %</th><th>cost<br>1 / 10 / 100</th><th>unmet<br>/ VPA</th>\
         <th>µs<br>/ step</th></tr></thead><tbody>"
        ),
    );
    for (rank, run) in resource.runs.iter().enumerate() {
        let s = run.tally.scores();
        // Of nothing there is no share.
        let known = |text: String| if s.workload_days > 0 { text } else { "-".to_owned() };
        let of_time = |seconds: f64| {
            let all = s.steps as f64 * resource.series.first().map_or(1.0, |series| series.step_s);
            known(format!("{:.2}", seconds / all.max(1.0) * 100.0))
        };
        let cells = [
            format!("{} / {}", percent(s.slack_mean), percent(s.slack_median)),
            known(format!("{:.3}", s.unmet_share * 100.0)),
            percent(s.free_days_share),
            if is_memory {
                format!("{} / {}", s.oom_restart, s.oom_no_reaction)
            } else {
                format!("{}</td><td>{}", of_time(s.throttled_s), of_time(s.carried_late_s))
            },
            format!("{} / {}", s.changes_per_day.median, s.changes_per_day.p99),
            s.reversals.to_string(),
            percent(s.ramps_periodic_covered_share),
            percent(s.ramps_other_covered_share),
            s.lead_median_s.map_or_else(|| "-".to_owned(), |lead_s| format!("{lead_s:.0}")),
            percent(s.prealloc_unused_share),
            format!("{:.2} / {:.2} / {:.2}", s.cost_1, s.cost_10, s.cost_100),
            vpa.and_then(|vpa| at_equal_slack(run, vpa))
                .map_or_else(|| "-".to_owned(), |over| format!("{over:.2}")),
            format!("{:.2}", us_per_step(run)),
        ];
        let class = if rank == 0 { " class=\"own\"" } else { "" };
        put(
            html,
            &format!(
                "<tr{class}><td>{}</td><td>{}</td></tr>",
                key(run.kind.name()),
                cells.join("</td><td>")
            ),
        );
    }
    put(html, "</tbody></table></div>");
}

/// The workloads that the first policy did worst by: means hide them.
fn outliers(html: &mut String, own: &PolicyRun, span: &str) {
    let mut all: Vec<_> = own.tally.workloads().iter().filter(|w| w.days > 0).collect();
    all.sort_by(|a, b| b.days_short.cmp(&a.days_short).then(b.slack.total_cmp(&a.slack)));
    put(
        html,
        &format!(
            "<h3>Workloads that {} serves worst</h3><div class=\"scroll\"><table><thead><tr>\
         <th>workload</th><th>{span}s above the limit</th><th>of {span}s</th><th>unmet %</th>\
         <th>mean slack %</th><th>changes</th></tr></thead><tbody>",
            own.kind
        ),
    );
    for one in all.iter().take(OUTLIERS) {
        put(
            html,
            &format!(
                "<tr><td class=\"name\">{}</td><td>{}</td><td>{}</td><td>{:.3}</td><td>{}</td><td>{}</td></tr>",
                escape(&one.workload),
                one.days_short,
                one.days,
                one.unmet_share * 100.0,
                percent(Some(one.slack).filter(|slack| slack.is_finite())),
                one.changes
            ),
        );
    }
    put(html, "</tbody></table></div>");
}

fn notes(html: &mut String, told: &Told) {
    let mut list = String::new();
    let pace = Pace::of(told.step_s);
    let span = pace.span;
    let slack = format!(
        "Slack is (mean limit − 95th percentile of use) / mean limit of a workload-{span}. It is negative \
         where the limit is below what is used."
    );
    let ramps = if pace.is_days() {
        "A ramp rises by 30 % of the day's range within 30 minutes; periodic ones have another at the \
         same time of day a day or a week before. It is covered when the limit was enough for its top \
         one lead time before its onset."
    } else {
        "A ramp rises by 30 % of the hour's range within 10 seconds; periodic ones come as long after \
         an earlier one as that came after one before it. It is covered when the limit was enough for \
         its top one lead time before its onset. What is shorter than an hour counts once."
    };
    let within = if pace.is_days() { "a day" } else { "ten minutes" };
    let unused = format!(
        "Raised ahead: raises made because a forecast crossed the limit, by their amount. Unused: what of \
         it use did not come to within the lead time and {within}."
    );
    for note in [
        "A replay is counterfactual: use is taken as it was recorded, whatever the limit. A workload \
         that is throttled or killed would have gone on differently; nobody can tell how from a trace.",
        &slack,
        "Unmet use is lost in the main model; where work is carried over, the time in which it waits is \
         told beside it. Kills are counted as one per run of steps above the limit (restart) and as one \
         per step (no reaction).",
        ramps,
        &unused,
        "Steps are means: bursts within a step are not seen.",
    ] {
        let _infallible = write!(list, "<li>{note}</li>");
    }
    put(html, &format!("<h2>How to read this</h2><ul class=\"notes\">{list}</ul>"));
    put(html, &format!("<p class=\"quiet\">{}</p>", escape(&told.findings.to_string())));
}

#[cfg(test)]
mod tests {
    use headroom_replay::Kind;

    /// Relative luminance of `#rrggbb`, as WCAG 2 defines it.
    fn luminance(colour: &str) -> f64 {
        let channel = |at: usize| {
            let share = f64::from(u8::from_str_radix(&colour[at..at + 2], 16).unwrap()) / 255.0;
            if share <= 0.040_45 { share / 12.92 } else { ((share + 0.055) / 1.055).powf(2.4) }
        };
        0.2126 * channel(1) + 0.7152 * channel(3) + 0.0722 * channel(5)
    }

    /// The light and the dark colour of a name in the style sheet.
    fn colours(name: &str) -> [&'static str; 2] {
        let css = include_str!("page.css");
        let found = css.split(&format!("--{name}: light-dark(")).nth(1);
        let pair = found.unwrap_or_else(|| panic!("no colour for {name}"));
        [&pair[..7], &pair[9..16]]
    }

    #[test]
    fn every_policy_and_all_text_stand_out_in_light_and_in_dark() {
        let names = Kind::ALL.map(Kind::name).into_iter().chain(["text", "quiet"]);
        for name in names {
            for scheme in 0..2 {
                let mut two = [name, "ground"].map(|name| luminance(colours(name)[scheme]));
                two.sort_by(f64::total_cmp);
                let contrast = (two[1] + 0.05) / (two[0] + 0.05);
                assert!(contrast >= 4.5, "{name}, scheme {scheme}: {contrast}");
            }
        }
    }
}
