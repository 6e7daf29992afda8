//! The lake: samples, their rollups and actions as hive-partitioned Parquet, readable by any engine.
//!
//! [`root`] says where a lake is, [`layout`] where a file is in it and which files count, [`files`] how
//! they come and go, [`schema`] what columns one has, [`part`] writes one and [`read`] reads it, [`merge`] makes one of several, [`rollup`] thins, [`lake`] holds
//! the list of files and tends it. [`engine`] runs SQL over them, [`dataset`] builds training sets.
//! What is not yet in a file (journal and hot window) belongs to the aggregator.

#[cfg(feature = "s3")]
pub mod bucket;
#[cfg(feature = "sql")]
pub mod dataset;
#[cfg(feature = "sql")]
pub mod engine;
pub mod error;
pub mod files;
pub mod lake;
pub mod layout;
pub mod merge;
mod open;
#[cfg(feature = "sql")]
pub mod output;
pub mod part;
pub mod read;
pub mod rollup;
pub mod root;
pub mod schema;
pub mod storage;

pub use self::{
    error::LakeError,
    lake::Lake,
    layout::{Hour, Part, Table},
    root::{Root, S3},
    schema::{ActionRow, Identity, Rows},
};
