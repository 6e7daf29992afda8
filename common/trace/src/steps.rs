//! Regular steps from the rows of one workload and column.

/// A gap longer than this is not filled: a clock that went ahead by years must not make billions
/// of missing steps.
const GAP_STEPS_MAX: f64 = 100_000.0;
/// Rows that follow one another by at least this share of a step are the trace's own steps.
const OWN_STEP_SHARE: f64 = 0.75;
/// Shares of a step below this are rounding.
const ROUNDING: f64 = 1.0e-6;

/// One step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Time of the step, seconds since the Unix epoch. Nothing later than it is in its value.
    pub t_s: f64,
    /// Mean of the known values of the step; `None` when there is none.
    pub value: Option<f32>,
}

/// What making steps did.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct StepCounts {
    /// Rows taken in.
    pub rows: u64,
    /// Steps handed out.
    pub steps: u64,
    /// Steps among them without a row: gaps.
    pub gaps: u64,
    /// Gaps too long to fill, after which steps start anew.
    pub restarts: u64,
    /// Rows left out because they are not later than the one before.
    pub dropped: u64,
}

/// Turns rows of one workload and column, in time order, into regular steps.
///
/// The first step is the first row. Rows denser than the step are averaged: a step at `t` takes in
/// the rows in (`t` - step, `t`]. Where the rows are about a step apart each is a step of its own,
/// at its own time: clocks that drift by a second now and then, as those of real collectors do,
/// neither leave holes nor put two rows into one step. Missing rows become steps without a value.
#[derive(Clone, Debug)]
pub struct Steps {
    step_s: f64,
    open: Option<Open>,
    counts: StepCounts,
}

/// The step that still takes in rows.
#[derive(Clone, Copy, Debug)]
struct Open {
    t_s: f64,
    row_t_s: f64,
    /// Time between the two newest rows.
    spacing_s: f64,
    sum: f64,
    known: u32,
}

impl Open {
    /// Without a row; one before the first is taken to have been long ago.
    fn new(t_s: f64) -> Self {
        Self { t_s, row_t_s: f64::NEG_INFINITY, spacing_s: f64::INFINITY, sum: 0.0, known: 0 }
    }

    fn add(&mut self, row_t_s: f64, spacing_s: f64, value: Option<f64>) {
        self.row_t_s = row_t_s;
        self.spacing_s = spacing_s;
        if let Some(value) = value.filter(|value| value.is_finite()) {
            self.sum += value;
            self.known += 1;
        }
    }

    fn close(&self) -> Step {
        let mean = self.sum / f64::from(self.known);
        #[expect(clippy::cast_possible_truncation, reason = "series are single precision")]
        let value = (self.known > 0).then_some(mean as f32);
        Step { t_s: self.t_s, value: value.filter(|value| value.is_finite()) }
    }
}

impl Steps {
    /// Steps of `step_s` seconds; a step that is not positive and finite is taken as one second.
    pub fn new(step_s: f64) -> Self {
        let step_s = if step_s.is_finite() && step_s > 0.0 { step_s } else { 1.0 };
        Self { step_s, open: None, counts: StepCounts::default() }
    }

    /// Takes in a row; `emit` gets every step that is complete by it, gaps included.
    /// A row not later than the one before is left out and counted.
    pub fn push(&mut self, t_s: f64, value: Option<f64>, mut emit: impl FnMut(Step)) {
        self.counts.rows += 1;
        let Some(mut open) = self.open.filter(|_| t_s.is_finite()) else {
            if t_s.is_finite() {
                let mut first = Open::new(t_s);
                first.add(t_s, f64::INFINITY, value);
                self.open = Some(first);
            } else {
                self.counts.dropped += 1;
            }
            return;
        };
        let spacing_s = t_s - open.row_t_s;
        if spacing_s <= 0.0 {
            self.counts.dropped += 1;
            return;
        }
        // One row after a gap does not make dense rows a trace of this step.
        let is_own_step = spacing_s.min(open.spacing_s) >= OWN_STEP_SHARE * self.step_s;
        let later = (t_s - open.t_s) / self.step_s;
        let steps = if is_own_step { later.round() } else { (later - ROUNDING).ceil() };
        if steps < 1.0 {
            open.t_s = if is_own_step { open.t_s.max(t_s) } else { open.t_s };
            open.add(t_s, spacing_s, value);
            self.open = Some(open);
            return;
        }
        self.emit(open.close(), &mut emit);
        if steps > GAP_STEPS_MAX {
            self.counts.restarts += 1;
            open = Open::new(t_s);
        } else {
            let mut missing = 1.0;
            while missing < steps {
                self.counts.gaps += 1;
                let t_s = open.t_s + missing * self.step_s;
                self.emit(Step { t_s, value: None }, &mut emit);
                missing += 1.0;
            }
            let grid_s = open.t_s + steps * self.step_s;
            open = Open::new(if is_own_step { t_s } else { grid_s });
        }
        open.add(t_s, spacing_s, value);
        self.open = Some(open);
    }

    /// Hands out the last step, which may have taken in only some of its rows.
    pub fn finish(&mut self, mut emit: impl FnMut(Step)) {
        if let Some(open) = self.open.take() {
            self.emit(open.close(), &mut emit);
        }
    }

    /// What was done so far.
    pub fn counts(&self) -> StepCounts {
        self.counts
    }

    fn emit(&mut self, step: Step, emit: &mut impl FnMut(Step)) {
        self.counts.steps += 1;
        emit(step);
    }
}

#[cfg(test)]
#[path = "steps_tests.rs"]
mod tests;
