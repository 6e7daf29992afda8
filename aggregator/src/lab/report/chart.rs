//! Plots as SVG that is part of the page: no script, no network.

use std::fmt::Write as _;

const WIDTH: f64 = 560.0;
const LEFT: f64 = 68.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 40.0;

/// A line with its points in the units of the axes.
pub(super) struct Line<'a> {
    /// Name of the policy: its colour.
    pub(super) name: &'a str,
    /// Points, in the order they are joined.
    pub(super) points: Vec<(f64, f64)>,
    /// The point that stands for the policy as it is.
    pub(super) mark: Option<(f64, f64)>,
    /// Drawn stronger.
    pub(super) is_own: bool,
}

/// An axis.
pub(super) struct Axis {
    /// Its words.
    pub(super) label: String,
    /// Where it starts.
    pub(super) low: f64,
    /// Where it ends.
    pub(super) high: f64,
    /// Powers of ten have equal room.
    pub(super) is_log: bool,
}

impl Axis {
    fn share(&self, value: f64) -> f64 {
        let share = if self.is_log {
            (value.max(self.low) / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        share.clamp(-0.02, 1.02)
    }

    fn ticks(&self) -> Vec<f64> {
        if self.is_log {
            let (from, to) = (self.low.log10().floor() as i32, self.high.log10().ceil() as i32);
            let all = (from..=to).map(|power| 10.0_f64.powi(power));
            return all.filter(|v| *v >= self.low * 0.999 && *v <= self.high * 1.001).collect();
        }
        let rough = (self.high - self.low) / 5.0;
        let power = 10.0_f64.powf(rough.max(1e-300).log10().floor());
        let step = [1.0, 2.0, 2.5, 5.0, 10.0].map(|times| times * power);
        let step = step.into_iter().find(|step| *step >= rough).unwrap_or(10.0 * power);
        let first = (self.low / step).ceil() as i64;
        let last = (self.high / step + 1e-9).floor() as i64;
        (first..=last).map(|n| n as f64 * step).collect()
    }
}

/// Where values are on the plot.
struct Frame<'a> {
    x: &'a Axis,
    y: &'a Axis,
    width: f64,
    height: f64,
}

impl Frame<'_> {
    fn x(&self, value: f64) -> f64 {
        LEFT + self.x.share(value) * (self.width - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        self.height - BOTTOM - self.y.share(value) * (self.height - TOP - BOTTOM)
    }

    /// Grid, tick texts and labels.
    fn open(&self, title: &str, tell_x: &dyn Fn(f64) -> String) -> String {
        let (width, height) = (self.width, self.height);
        let mut svg =
            format!("<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{title}\">\n");
        let (right, bottom) = (width - RIGHT, height - BOTTOM);
        for tick in self.y.ticks() {
            let (y, text) = (self.y(tick), short(tick));
            put(
                &mut svg,
                &format!(
                    "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>",
                    LEFT - 6.0,
                    y + 4.0
                ),
            );
        }
        for tick in self.x.ticks() {
            let (x, text) = (self.x(tick), tell_x(tick));
            put(
                &mut svg,
                &format!(
                    "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/>\
                 <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{text}</text>",
                    bottom + 15.0
                ),
            );
        }
        let middle = (LEFT + right) / 2.0;
        put(
            &mut svg,
            &format!(
                "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">{}</text>\
             <text transform=\"translate(13 {}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
                height - 6.0,
                self.x.label,
                (TOP + bottom) / 2.0,
                self.y.label
            ),
        );
        svg
    }
}

fn put(svg: &mut String, text: &str) {
    svg.push_str(text);
    svg.push('\n');
}

/// A number in few characters.
pub(super) fn short(value: f64) -> String {
    let size = value.abs();
    if size == 0.0 {
        "0".to_owned()
    } else if !(1e-3..1e4).contains(&size) {
        let text = format!("{value:.0e}");
        text.replace('e', "·10^")
    } else if size >= 10.0 {
        format!("{value:.0}")
    } else {
        let text = format!("{value:.3}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    }
}

/// Lines over two axes.
pub(super) fn lines(title: &str, lines: &[Line<'_>], x: &Axis, y: &Axis) -> String {
    let frame = Frame { x, y, width: WIDTH, height: 340.0 };
    let mut svg = frame.open(title, &short);
    for line in lines {
        let name = line.name;
        let mut path = String::new();
        for (index, (a, b)) in line.points.iter().enumerate() {
            let letter = if index == 0 { 'M' } else { 'L' };
            // Writing to a string does not fail.
            let _infallible = write!(path, "{letter}{:.1} {:.1}", frame.x(*a), frame.y(*b));
        }
        let own = if line.is_own { " own" } else { "" };
        put(
            &mut svg,
            &format!(
                "<path class=\"curve{own}\" d=\"{path}\" style=\"stroke:var(--{name})\"><title>{name}</title></path>"
            ),
        );
        if let Some((a, b)) = line.mark {
            let radius = if line.is_own { 6.0 } else { 4.5 };
            put(
                &mut svg,
                &format!(
                    "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"{radius}\" style=\"fill:var(--{name})\">\
                 <title>{name}: {}, {}</title></circle>",
                    frame.x(a),
                    frame.y(b),
                    short(a),
                    short(b)
                ),
            );
        }
    }
    svg + "</svg>"
}

/// Use as an area, limits as steps, and where use was above the first of them.
pub(super) struct Track<'a> {
    /// Time since the workload's first row of each column.
    pub(super) times: Vec<f64>,
    /// What they are counted in.
    pub(super) counted_in: &'static str,
    /// Least and highest use in each column; NaN where it was not measured.
    pub(super) used: Vec<(f64, f64)>,
    /// Least limit in each column, per policy; infinite for none.
    pub(super) limits: Vec<(&'a str, Vec<f64>)>,
}

/// A workload over time.
pub(super) fn track(title: &str, track: &Track<'_>, unit: &str) -> String {
    let most =
        |values: &[f64]| values.iter().copied().filter(|v| v.is_finite()).fold(0.0, f64::max);
    let peaks: Vec<f64> = track.used.iter().map(|(_, high)| *high).collect();
    let highest = most(&peaks);
    // A limit far above all use would press everything else to the ground.
    let limits = track.limits.iter().map(|(_, values)| most(values)).fold(0.0, f64::max);
    let high = (highest * 1.15).max(limits.min(highest * 2.5) * 1.03).max(f64::MIN_POSITIVE);
    let (from, to) = (track.times.first().copied(), track.times.last().copied());
    let (from, to) = (from.unwrap_or(0.0), to.unwrap_or(1.0));
    let x = Axis {
        label: track.counted_in.to_owned(),
        low: from,
        high: to.max(from + 1e-3),
        is_log: false,
    };
    let y = Axis { label: unit.to_owned(), low: 0.0, high, is_log: false };
    let frame = Frame { x: &x, y: &y, width: 1120.0, height: 260.0 };
    let mut svg = frame.open(title, &short);
    let width = (frame.width - LEFT - RIGHT) / track.times.len().max(1) as f64 + 0.3;
    let mut area = String::new();
    let mut over = String::new();
    let own = track.limits.first().map(|(_, values)| values.as_slice()).unwrap_or_default();
    for (index, (day, (_, top))) in track.times.iter().zip(&track.used).enumerate() {
        if top.is_nan() {
            continue;
        }
        let (at, up, down) = (frame.x(*day), frame.y(*top), frame.y(0.0));
        let _infallible = write!(area, "M{at:.1} {down:.1}V{up:.1}h{width:.1}V{down:.1}z");
        if own.get(index).is_some_and(|limit| top > limit) {
            let _infallible = write!(over, "M{at:.1} {TOP}v6h{:.1}v-6z", width.max(2.0));
        }
    }
    put(&mut svg, &format!("<path class=\"use\" d=\"{area}\"/>"));
    for (rank, (name, values)) in track.limits.iter().enumerate().rev() {
        let mut path = String::new();
        let mut is_open = false;
        for (day, limit) in track.times.iter().zip(values) {
            if !limit.is_finite() {
                is_open = false;
                continue;
            }
            let (at, level) = (frame.x(*day), frame.y(*limit));
            let text = if is_open {
                format!("H{at:.1}V{level:.1}")
            } else {
                format!("M{at:.1} {level:.1}")
            };
            path.push_str(&text);
            is_open = true;
        }
        let class = if rank == 0 { "curve own" } else { "curve" };
        put(
            &mut svg,
            &format!("<path class=\"{class}\" d=\"{path}\" style=\"stroke:var(--{name})\"/>"),
        );
    }
    put(&mut svg, &format!("<path class=\"short\" d=\"{over}\"/>"));
    svg + "</svg>"
}

#[cfg(test)]
mod tests {
    use super::{Axis, Line, Track, lines, short, track};

    fn axis(low: f64, high: f64, is_log: bool) -> Axis {
        Axis { label: "x".to_owned(), low, high, is_log }
    }

    #[test]
    fn ticks_are_round_numbers_inside_the_axis() {
        assert_eq!(axis(0.0, 1.0, false).ticks(), [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]);
        assert_eq!(axis(0.01, 10.0, true).ticks().len(), 4);
    }

    #[test]
    fn a_line_goes_from_corner_to_corner() {
        let line =
            Line { name: "vpa", points: vec![(0.0, 0.0), (1.0, 1.0)], mark: None, is_own: false };
        let svg = lines("t", &[line], &axis(0.0, 1.0, false), &axis(0.0, 1.0, false));
        assert!(svg.contains("M68.0 300.0L548.0 10.0"), "{svg}");
    }

    #[test]
    fn gaps_and_missing_limits_are_not_drawn() {
        let told = Track {
            times: vec![0.0, 1.0, 2.0],
            counted_in: "day",
            used: vec![(1.0, 2.0), (f64::NAN, f64::NAN), (1.0, 9.0)],
            limits: vec![("vpa", vec![f64::INFINITY, 3.0, 3.0])],
        };
        let svg = track("t", &told, "cores");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        assert_eq!(svg.matches("v6h").count(), 1);
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(short(0.25), "0.25");
        assert_eq!(short(1234.5), "1234");
        assert_eq!(short(2e9), "2·10^9");
    }
}
