//! Rows as text: a table for people, JSON or CSV for programs.

use arrow::{record_batch::RecordBatch, util::pretty::pretty_format_batches};

use crate::LakeError;

/// How rows are told.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// A table with lines.
    #[default]
    Text,
    /// An array of objects; a missing value is left out.
    Json,
    /// With a line of names; a missing value is empty.
    Csv,
}

/// The rows of `batches`, which have the same columns.
///
/// # Errors
///
/// When a value has no text, as maps have none in CSV.
pub fn render(batches: &[RecordBatch], format: Format) -> Result<Vec<u8>, LakeError> {
    let failed = || LakeError::arrow("print", std::path::Path::new("the rows"));
    let mut text = Vec::new();
    match format {
        Format::Text => {
            text = pretty_format_batches(batches).map_err(failed())?.to_string().into_bytes();
        }
        Format::Json => {
            let mut writer = arrow::json::ArrayWriter::new(&mut text);
            let batches: Vec<&RecordBatch> = batches.iter().collect();
            writer.write_batches(&batches).map_err(failed())?;
            writer.finish().map_err(failed())?;
        }
        Format::Csv => {
            let mut writer = arrow::csv::Writer::new(&mut text);
            for batch in batches {
                writer.write(batch).map_err(failed())?;
            }
        }
    }
    if text.last() != Some(&b'\n') {
        text.push(b'\n');
    }
    Ok(text)
}
