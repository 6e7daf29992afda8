//! Judges the fields of a row: what is used, what is missing, and what ends the reading.

use std::sync::Arc;

use headroom_telemetry::{Feature, SketchCounts};

use super::{Reading, Row, Seen, Trace};
use crate::{
    FindingKind, TraceError, ValueProblem,
    column::TIME,
    evidence::{CounterWatch, is_beyond_limit},
};

/// Times beyond this (the year 5138) are not seconds.
const TIME_MAX_S: f64 = 1.0e11;
/// Spellings of a missing value that other tools write, in lower case.
const MISSING_WORDS: [&str; 6] = ["na", "n/a", "null", "none", "-", "nil"];

impl Trace {
    pub(super) fn workload_at(&mut self, at: usize) -> Result<Option<usize>, TraceError> {
        let name = self.source.text(at);
        let name = name.and_then(|n| if n.is_empty() { Err(ValueProblem::Empty) } else { Ok(n) });
        match name {
            Ok(name) => {
                if let Some(index) = self.index.get(name) {
                    return Ok(Some(*index));
                }
                let name: Arc<str> = Arc::from(name);
                self.index.insert(Arc::clone(&name), self.seen.len());
                let counters = vec![CounterWatch::NEW; self.watched.len()];
                self.seen.push(Seen { name, emitted_s: f64::NEG_INFINITY, held: None, counters });
                self.findings.workloads += 1;
                Ok(Some(self.seen.len() - 1))
            }
            Err(problem) if self.reading == Reading::Strict => Err(self.refuse(at, problem)),
            Err(_no_name) => {
                self.note(FindingKind::NoWorkload, at, None);
                Ok(None)
            }
        }
    }

    pub(super) fn time_at(&mut self, at: usize) -> Result<Option<f64>, TraceError> {
        let time = self.source.number(at).and_then(|time| time.ok_or(ValueProblem::Empty));
        let time =
            time.and_then(|t| if t.is_finite() { Ok(t) } else { Err(ValueProblem::NotFinite) });
        let is_absurd = time.is_ok_and(|t_s| t_s.abs() > TIME_MAX_S);
        if self.absurd_times.add(is_absurd) || (is_absurd && self.reading == Reading::Strict) {
            return Err(self.absurd_time(at));
        }
        match time {
            Ok(t_s) if !is_absurd => Ok(Some(t_s)),
            Err(problem) if self.reading == Reading::Strict => Err(self.refuse(at, problem)),
            _ => {
                self.note(FindingKind::BadTime, at, None);
                Ok(None)
            }
        }
    }

    fn absurd_time(&self, at: usize) -> TraceError {
        let evidence = "times are seconds since 1970 and these are beyond the year 5138; \
                        milliseconds? divide by 1000";
        self.refuse_column(TIME, &self.source.shown(at), None, evidence)
    }

    pub(super) fn value_at(&mut self, at: usize, place: usize) -> Result<Option<f64>, TraceError> {
        let known = self.known[place];
        let problem = match self.source.number(at) {
            Ok(None) => return Ok(None),
            Ok(Some(value)) => match known.judge(value) {
                Ok(value) => {
                    self.absurd[place].add(false);
                    if value > 0.0 && self.tiny[place].add(known.is_tiny(value)) {
                        return Err(self.tiny_column(place, &self.source.shown(at)));
                    }
                    return Ok(Some(value));
                }
                Err(problem) => problem,
            },
            Err(problem) => problem,
        };
        if self.reading == Reading::Strict {
            return Err(self.refuse(at, problem));
        }
        if problem == ValueProblem::Absurd && self.absurd[place].add(true) {
            return Err(self.absurd_column(place, &self.source.shown(at)));
        }
        let is_text = matches!(problem, ValueProblem::NotANumber | ValueProblem::NotText);
        if is_text && known.feature.is_some() && !is_missing_word(&self.source.shown(at)) {
            return Err(self.refuse(at, problem));
        }
        self.note(problem.into(), at, None);
        Ok(None)
    }

    fn absurd_column(&self, place: usize, value: &str) -> TraceError {
        let unit = self.known[place].feature.map_or("its unit", Feature::unit);
        let evidence = format!(
            "more than half of the column is more than any machine has; it is read in {unit}: \
             convert it"
        );
        self.refuse_column(&self.columns[place], value, None, &evidence)
    }

    fn tiny_column(&self, place: usize, value: &str) -> TraceError {
        let evidence = "more than half of the column is less than a page of memory, 4096 bytes; it is \
                        read in bytes: convert it";
        self.refuse_column(&self.columns[place], value, None, evidence)
    }

    pub(super) fn sketch_at(&mut self, at: usize) -> Result<Option<SketchCounts>, TraceError> {
        match self.source.sketch(at) {
            Ok(counts) => Ok(counts),
            Err(problem) if self.reading == Reading::Strict => Err(self.refuse(at, problem)),
            Err(problem) => {
                self.note(problem.into(), at, None);
                Ok(None)
            }
        }
    }

    /// Use that is beyond its limit by far in most rows is in another unit, percent for example.
    pub(super) fn check_limits(&mut self, row: &Row) -> Result<(), TraceError> {
        for pair in 0..self.limited.len() {
            let (used_at, limit_at, majority) = &mut self.limited[pair];
            let (Some(used), Some(limit)) = (row.values[*used_at], row.values[*limit_at]) else {
                continue;
            };
            if majority.add(is_beyond_limit(used, limit)) {
                let (used_at, limit_at) = (*used_at, *limit_at);
                let evidence = format!(
                    "more than ten times {} of {limit} in most rows: another unit, percent or \
                     thousandths for example; convert use or limit",
                    self.columns[limit_at]
                );
                let column = &self.columns[used_at];
                return Err(self.refuse_column(
                    column,
                    &used.to_string(),
                    Some(&row.workload),
                    &evidence,
                ));
            }
        }
        Ok(())
    }

    /// What sixteen values were too few to say is said by all there are.
    pub(super) fn check_columns_at_end(&self) -> Result<(), TraceError> {
        if self.absurd_times.speaks() {
            let evidence = "most times are beyond the year 5138; milliseconds? divide by 1000";
            return Err(self.refuse_column(TIME, "", None, evidence));
        }
        if let Some(place) = self.absurd.iter().position(|majority| majority.speaks()) {
            return Err(self.absurd_column(place, ""));
        }
        Ok(())
    }

    pub(super) fn look_at_counters(&mut self, row: &Row) -> Result<(), TraceError> {
        for (watch, place) in self.watched.iter().enumerate() {
            let Some(value) = row.values[*place] else { continue };
            let counter = &mut self.seen[row.workload_index].counters[watch];
            if counter.add(value) {
                let evidence = format!(
                    "it never fell over {} rows and rose in most: a counter, not a rate; write \
                     its differences, (v2 - v1) / (t2 - t1)",
                    counter.values()
                );
                let column = &self.columns[*place];
                return Err(self.refuse_column(
                    column,
                    &value.to_string(),
                    Some(&row.workload),
                    &evidence,
                ));
            }
        }
        Ok(())
    }
}

fn is_missing_word(text: &str) -> bool {
    MISSING_WORDS.iter().any(|word| text.eq_ignore_ascii_case(word))
}
