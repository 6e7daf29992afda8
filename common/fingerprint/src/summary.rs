//! A few numbers about a window: for people, for grouping workloads that behave alike.

use headroom_telemetry::Resource;

use crate::{
    Window,
    period::{self, Period},
};

/// Lengths of the suffixes of the window that are summarised, steps.
pub const SPAN_STEPS: [usize; 3] = [8, 24, 64];

/// Statistics of one window, per resource in model order.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// One entry per resource; `None` when nothing of it was measured.
    pub resources: [Option<ResourceSummary>; Resource::COUNT],
}

/// Statistics of one resource.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ResourceSummary {
    /// Over the last [`SPAN_STEPS`] steps each; an entry without a measured value repeats the next
    /// longer one.
    pub spans: [Span; SPAN_STEPS.len()],
    /// The period of the window, when it has one.
    pub period: Option<Period>,
}

/// Statistics over one span, in the resource's unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    /// Mean.
    pub level: f64,
    /// Standard deviation around the straight line.
    pub spread: f64,
    /// Slope of the straight line, per step.
    pub trend: f64,
    /// Maximum.
    pub peak: f64,
}

impl Summary {
    pub(crate) fn of(window: &Window) -> Self {
        Self { resources: Resource::ALL.map(|resource| summarise(window, resource)) }
    }

    /// Period of `resource` in whole steps, when it has one.
    pub fn period_steps(&self, resource: Resource) -> Option<usize> {
        let period = self.resources[resource.index()]?.period?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between the shortest period and the window's length"
        )]
        let steps = period.steps.round() as usize;
        Some(steps)
    }
}

fn summarise(window: &Window, resource: Resource) -> Option<ResourceSummary> {
    let usage = window.usage(resource);
    let longest = span(&usage)?;
    let mut spans = [longest; SPAN_STEPS.len()];
    let mut longer = longest;
    for (out, steps) in spans.iter_mut().zip(SPAN_STEPS).rev() {
        longer = span(&usage[usage.len().saturating_sub(steps)..]).unwrap_or(longer);
        *out = longer;
    }
    Some(ResourceSummary { spans, period: period::detect(&usage, resource.resolution()) })
}

fn span(values: &[f64]) -> Option<Span> {
    let (intercept, trend) = period::line(values)?;
    let known: Vec<(usize, f64)> =
        values.iter().copied().enumerate().filter(|(_, value)| value.is_finite()).collect();
    let n = known.len() as f64;
    let level = known.iter().map(|(_, value)| value).sum::<f64>() / n;
    let squares =
        known.iter().map(|(i, value)| (value - intercept - trend * *i as f64).powi(2)).sum::<f64>();
    let peak = known.iter().map(|(_, value)| *value).fold(f64::NEG_INFINITY, f64::max);
    Some(Span { level, spread: (squares / n).sqrt(), trend, peak })
}

#[cfg(test)]
mod tests {
    use headroom_telemetry::{Feature, Resource, Sample};

    use crate::Window;

    #[test]
    fn a_ramp_with_pulses_is_summarised() {
        let mut window = Window::new(1.0);
        for i in 0..64 {
            let mut sample = Sample::empty(f64::from(i));
            sample.set(Feature::CpuCores, if i % 16 < 5 { 1.0 } else { 0.0 });
            sample.set(Feature::MemoryBytes, 1.0e6 * f64::from(i));
            window.push(&sample).unwrap();
        }
        let summary = window.summary();
        assert_eq!(summary.period_steps(Resource::Cpu), Some(16));
        assert_eq!(summary.period_steps(Resource::Memory), None);
        assert_eq!(summary.resources[Resource::Disk.index()], None);
        let memory = summary.resources[Resource::Memory.index()].unwrap();
        assert!((memory.spans[0].trend - 1.0e6).abs() < 1.0);
        assert!(memory.spans[0].spread < 10.0);
        assert!((memory.spans[2].peak - 63.0e6).abs() < 10.0);
    }
}
