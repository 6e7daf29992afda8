//! Opens a part for reading: its columns are checked, then its rows come in batches. Of a part in a
//! bucket only what is asked for is fetched.

use std::fs::File;
#[cfg(feature = "s3")]
use std::sync::Arc;

use arrow::{datatypes::SchemaRef, record_batch::RecordBatch};
#[cfg(feature = "s3")]
use parquet::{
    DecodeResult,
    arrow::{
        arrow_reader::ArrowReaderMetadata,
        push_decoder::{ParquetPushDecoder, ParquetPushDecoderBuilder},
    },
    file::metadata::{ParquetMetaData, ParquetMetaDataPushDecoder},
};
use parquet::{
    arrow::arrow_reader::{
        ArrowReaderBuilder, ArrowReaderOptions, ParquetRecordBatchReader,
        ParquetRecordBatchReaderBuilder,
    },
    file::metadata::PageIndexPolicy,
};

#[cfg(feature = "s3")]
use crate::bucket::Bucket;
use crate::{LakeError, Part, Root, schema};

/// Rows decoded together.
const BATCH_ROWS: usize = 8_192;
/// End of a file that is fetched at once: it holds the footer of all but large ones, bytes.
#[cfg(feature = "s3")]
const TAIL_BYTES: u64 = 128 << 10;

/// What narrows a reader to some of the rows and columns, before anything is read; the same for
/// files and objects.
pub(crate) trait Narrow {
    /// `None` when nothing of the part is wanted.
    fn narrow<T>(
        &self,
        part: &Part,
        builder: ArrowReaderBuilder<T>,
    ) -> Option<ArrowReaderBuilder<T>>;
}

/// All of it.
pub(crate) struct Whole;

impl Narrow for Whole {
    fn narrow<T>(&self, _: &Part, builder: ArrowReaderBuilder<T>) -> Option<ArrowReaderBuilder<T>> {
        Some(builder)
    }
}

/// Rows of a part, in batches.
pub(crate) enum Batches {
    /// Nothing is wanted of it.
    None,
    /// Of a file.
    File(Part, Box<ParquetRecordBatchReader>),
    /// Of an object.
    #[cfg(feature = "s3")]
    Object(Part, Arc<Bucket>, Box<ParquetPushDecoder>),
}

/// That the columns are those of the part's table.
fn check(part: &Part, is: &SchemaRef) -> Result<(), LakeError> {
    let expected = schema::of(part.table);
    let fits = is.fields().len() == expected.fields().len()
        && is.fields().iter().zip(expected.fields()).all(|(is, expected)| {
            is.name() == expected.name() && is.data_type() == expected.data_type()
        });
    if fits { Ok(()) } else { Err(foreign(part, "its columns are others")) }
}

/// That a file is not of its table.
pub(crate) fn foreign(part: &Part, reason: &str) -> LakeError {
    LakeError::Foreign { path: part.path.clone(), reason: reason.to_owned() }
}

/// The rows of `part`, below `root`, that `narrow` wants.
///
/// # Errors
///
/// When it cannot be read or is not of its table.
pub(crate) fn open(
    root: &Root,
    part: &Part,
    index: PageIndexPolicy,
    narrow: &impl Narrow,
) -> Result<Batches, LakeError> {
    let failed = || LakeError::parquet("read", &part.path);
    let options = ArrowReaderOptions::new().with_page_index_policy(index);
    match root {
        Root::Directory(_) => {
            let file = File::open(&part.path).map_err(LakeError::io("open", &part.path))?;
            let builder = ParquetRecordBatchReaderBuilder::try_new_with_options(file, options)
                .map_err(failed())?;
            check(part, builder.schema())?;
            let Some(builder) = narrow.narrow(part, builder.with_batch_size(BATCH_ROWS)) else {
                return Ok(Batches::None);
            };
            let reader = builder.build().map_err(failed())?;
            Ok(Batches::File(part.clone(), Box::new(reader)))
        }
        #[cfg(feature = "s3")]
        Root::Bucket(bucket) => {
            let footer = footer(bucket, part)?;
            let footer = ArrowReaderMetadata::try_new(footer, options).map_err(failed())?;
            let builder = ParquetPushDecoderBuilder::new_with_metadata(footer);
            check(part, builder.schema())?;
            let Some(builder) = narrow.narrow(part, builder.with_batch_size(BATCH_ROWS)) else {
                return Ok(Batches::None);
            };
            let decoder = builder.build().map_err(failed())?;
            Ok(Batches::Object(part.clone(), Arc::clone(bucket), Box::new(decoder)))
        }
    }
}

/// The footer of a part, with its index of pages.
#[cfg(feature = "s3")]
fn footer(bucket: &Bucket, part: &Part) -> Result<Arc<ParquetMetaData>, LakeError> {
    if let Some(known) = bucket.footer(&part.path, part.bytes) {
        return Ok(known);
    }
    let failed = || LakeError::parquet("read the footer of", &part.path);
    let mut decoder = ParquetMetaDataPushDecoder::try_new(part.bytes).map_err(failed())?;
    let tail = part.bytes.saturating_sub(TAIL_BYTES)..part.bytes;
    let mut wanted = vec![tail];
    loop {
        let data = bucket.read(&part.path, wanted.clone())?;
        decoder.push_ranges(wanted, data).map_err(failed())?;
        match decoder.try_decode().map_err(failed())? {
            DecodeResult::NeedsData(ranges) => wanted = ranges,
            DecodeResult::Data(footer) => {
                let footer = Arc::new(footer);
                bucket.keep_footer(&part.path, part.bytes, &footer);
                return Ok(footer);
            }
            DecodeResult::Finished => return Err(foreign(part, "it has no footer")),
        }
    }
}

impl Batches {
    fn of(&mut self) -> Result<Option<RecordBatch>, LakeError> {
        match self {
            Self::None => Ok(None),
            Self::File(part, reader) => {
                reader.next().transpose().map_err(LakeError::arrow("read", &part.path))
            }
            #[cfg(feature = "s3")]
            Self::Object(part, bucket, decoder) => {
                let failed = || LakeError::parquet("read", &part.path);
                loop {
                    match decoder.try_decode().map_err(failed())? {
                        DecodeResult::NeedsData(ranges) => {
                            let data = bucket.read(&part.path, ranges.clone())?;
                            decoder.push_ranges(ranges, data).map_err(failed())?;
                        }
                        DecodeResult::Data(batch) => return Ok(Some(batch)),
                        DecodeResult::Finished => return Ok(None),
                    }
                }
            }
        }
    }
}

impl Iterator for Batches {
    type Item = Result<RecordBatch, LakeError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.of().transpose()
    }
}
