//! Puts quantiles right by how often they were passed.
