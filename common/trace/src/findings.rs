//! What was wrong with a trace and what was done about it: counts, with the first examples.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;

use crate::ValueProblem;

/// Examples kept of each kind.
const EXAMPLES_MAX: usize = 3;

/// What was wrong with a row or a value that was repaired.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// Two rows of a workload have the same time.
    Duplicate,
    /// A row is earlier than one before it: the clock went back, or rows are mixed up.
    OutOfOrder,
    /// The clock of a workload went ahead by more than a year.
    ClockAhead,
    /// A time that is none: empty, not finite or beyond the year 5138.
    BadTime,
    /// A row has no workload.
    NoWorkload,
    /// A row has more or fewer fields than the header.
    FieldCount,
    /// The file ends within a row.
    CutShort,
    /// Text where a number belongs.
    NotANumber,
    /// NaN or infinite.
    NotFinite,
    /// Negative use.
    Negative,
    /// A limit of zero, or one that says that there is none.
    NoLimit,
    /// A value larger than any machine has.
    Absurd,
}

impl FindingKind {
    /// What is wrong, in words.
    fn problem(self) -> &'static str {
        match self {
            Self::Duplicate => "rows at the time of another row of the workload",
            Self::OutOfOrder => "rows earlier than the row before of the workload",
            Self::ClockAhead => "jumps of more than a year ahead",
            Self::BadTime => "rows without a usable time",
            Self::NoWorkload => "rows without a workload",
            Self::FieldCount => "rows with more or fewer fields than the header",
            Self::CutShort => "files that end within a row",
            Self::NotANumber => "values that are no numbers",
            Self::NotFinite => "values that are not finite",
            Self::Negative => "negative values of what cannot be negative",
            Self::NoLimit => "limits that are none",
            Self::Absurd => "values larger than any machine has",
        }
    }

    /// What was done about it.
    fn repair(self) -> &'static str {
        match self {
            Self::Duplicate => "the later row counts",
            Self::OutOfOrder
            | Self::BadTime
            | Self::NoWorkload
            | Self::FieldCount
            | Self::CutShort => "dropped",
            Self::ClockAhead => "kept; steps start anew there",
            Self::NotANumber | Self::NotFinite | Self::Negative | Self::NoLimit | Self::Absurd => {
                "taken as missing"
            }
        }
    }
}

/// One place where something was wrong.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Example {
    /// The trace.
    pub file: String,
    /// Line of a CSV file, row of a Parquet file, from 1.
    pub line: u64,
    /// The column; `t` for what is wrong with a row.
    pub column: String,
    /// The value as it stands there, cut to a hundred bytes.
    pub value: String,
}

/// All places where the same was wrong.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Finding {
    /// How often.
    pub count: u64,
    /// The first of them, at most three.
    pub examples: Vec<Example>,
}

/// What was read, and what was repaired on the way. Of a few hundred bytes, whatever the trace.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Findings {
    /// Rows in the file.
    pub rows_read: u64,
    /// Rows handed out.
    pub rows_kept: u64,
    /// Workloads.
    pub workloads: u64,
    /// What was repaired.
    pub repaired: BTreeMap<FindingKind, Finding>,
}

impl Findings {
    /// How often something of `kind` was repaired.
    pub fn count(&self, kind: FindingKind) -> u64 {
        self.repaired.get(&kind).map_or(0, |finding| finding.count)
    }

    /// Repairs of all kinds together.
    pub fn repairs(&self) -> u64 {
        self.repaired.values().map(|finding| finding.count).sum()
    }

    /// Adds what was found in another trace.
    pub fn merge(&mut self, other: &Self) {
        self.rows_read += other.rows_read;
        self.rows_kept += other.rows_kept;
        self.workloads += other.workloads;
        for (kind, finding) in &other.repaired {
            let mine = self.repaired.entry(*kind).or_default();
            mine.count += finding.count;
            let room = EXAMPLES_MAX.saturating_sub(mine.examples.len());
            mine.examples.extend(finding.examples.iter().take(room).cloned());
        }
    }

    pub(crate) fn add(&mut self, kind: FindingKind, example: impl FnOnce() -> Example) {
        let finding = self.repaired.entry(kind).or_default();
        finding.count += 1;
        if finding.examples.len() < EXAMPLES_MAX {
            finding.examples.push(example());
        }
    }
}

/// One line per kind, with the first place; nothing when nothing was repaired.
impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, finding) in &self.repaired {
            write!(f, "{} {}: {}", finding.count, kind.problem(), kind.repair())?;
            if let Some(Example { file, line, column, value }) = finding.examples.first() {
                write!(f, " (first in {file}, line {line}, column {column}: {value:?})")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

impl From<ValueProblem> for FindingKind {
    fn from(problem: ValueProblem) -> Self {
        match problem {
            ValueProblem::NotANumber | ValueProblem::NotASketch | ValueProblem::NotText => {
                Self::NotANumber
            }
            ValueProblem::NotFinite => Self::NotFinite,
            ValueProblem::Empty => Self::NoWorkload,
            ValueProblem::OutOfOrder => Self::OutOfOrder,
            ValueProblem::Duplicate => Self::Duplicate,
            ValueProblem::Negative => Self::Negative,
            ValueProblem::NoLimit => Self::NoLimit,
            ValueProblem::Absurd => Self::Absurd,
        }
    }
}
