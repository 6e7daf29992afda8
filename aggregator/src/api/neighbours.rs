//! The workloads that run the program most like one's.

use headroom_fingerprint::{
    VectorHash,
    vector::{DIMENSION, VECTOR_VERSION},
};
use serde::Serialize;

use super::View;
use crate::{
    history::HistoryError,
    neighbours::{Neighbour, nearest},
};

/// Neighbours of one workload.
#[derive(Debug, Serialize)]
pub(super) struct NeighboursView {
    host: String,
    path: String,
    /// Version and hash of the vectors that were compared.
    vector_version: u32,
    vector_hash: String,
    /// Components of this workload's vector that are known, of how many.
    known: usize,
    components: usize,
    /// Workloads it was compared with, and those left out because there are too many.
    compared: usize,
    left_out: usize,
    /// Nearest first.
    neighbours: Vec<Neighbour>,
}

/// The `n` nearest workloads; `None` when this one is not there or has too few samples yet.
pub(super) fn read(
    view: &View,
    host: &str,
    path: &str,
    n: usize,
) -> Result<Option<NeighboursView>, HistoryError> {
    let points = view.neighbours.points(&view.fleet, &view.history)?;
    let asked = points.points.iter().find(|point| point.host == host && point.path == path);
    Ok(asked.map(|asked| NeighboursView {
        host: host.to_owned(),
        path: path.to_owned(),
        vector_version: VECTOR_VERSION,
        vector_hash: VectorHash::current().to_string(),
        known: asked.vector.known(),
        components: DIMENSION,
        compared: points.points.len() - 1,
        left_out: points.left_out,
        neighbours: nearest(&points.points, asked, n),
    }))
}
