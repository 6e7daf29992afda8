//! Fuzz targets for what is decoded from outside; `cargo xtask fuzz` runs them.

pub mod decoders;
