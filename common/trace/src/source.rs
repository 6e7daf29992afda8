//! What every file form offers to the reader: one row at a time, fields by column.

use headroom_telemetry::SketchCounts;

use crate::{TraceError, ValueProblem};

/// Rows of a file, as they stand there. The reader judges them.
pub(crate) trait Source: Send {
    /// Titles of the columns, in the file's order.
    fn titles(&self) -> &[String];

    /// Goes to the next row; false at the end.
    fn advance(&mut self) -> Result<bool, TraceError>;

    /// Line or row number of the row, from 1.
    fn line(&self) -> u64;

    /// How many fields the row has.
    fn field_count(&self) -> usize;

    /// The field as text; empty when it is missing.
    fn text(&self, column: usize) -> Result<&str, ValueProblem>;

    /// The field as a number, NaN and infinities as they are; `None` when it is missing.
    fn number(&self, column: usize) -> Result<Option<f64>, ValueProblem>;

    /// The field as it is shown in messages.
    fn shown(&self, column: usize) -> String;

    /// The field as the counts of a sketch; `None` when it is missing.
    fn sketch(&self, column: usize) -> Result<Option<SketchCounts>, ValueProblem> {
        match self.text(column)? {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_not_a_sketch| ValueProblem::NotASketch),
        }
    }
}
