//! What came lately, in memory: all that is not in the lake yet, and what was sealed not long ago.
//!
//! A segment is what one seal writes, and has the number of its first entry in the journal. While it is
//! here, readers take its rows from here and leave the files of that number out.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use headroom_lake::Rows;
use headroom_telemetry::{Feature, Sample};
use headroom_wire::AppliedAction;

use crate::{milliseconds, seconds};

/// Bytes of a row.
pub(crate) const ROW_BYTES: usize = Feature::COUNT * 4 + 8;
/// What an action is taken for.
const ACTION_BYTES: usize = 256;

/// One entry of the journal in terms of series.
#[derive(Debug, Default)]
pub(crate) struct Committed {
    pub(crate) key: u64,
    pub(crate) samples: Vec<(u32, Sample)>,
    pub(crate) actions: Vec<(u32, AppliedAction)>,
}

/// Rows that are sealed together.
#[derive(Debug)]
pub(crate) struct Segment {
    /// Its first entry in the journal, and its number.
    pub(crate) first: u64,
    /// Its last entry in the journal.
    pub(crate) last: u64,
    pub(crate) begun: Instant,
    pub(crate) bytes: usize,
    pub(crate) series: BTreeMap<u32, Rows>,
    pub(crate) actions: Vec<(u32, AppliedAction)>,
}

impl Segment {
    fn new(first: u64) -> Self {
        let (series, actions) = (BTreeMap::new(), Vec::new());
        Self { first, last: first, begun: Instant::now(), bytes: 0, series, actions }
    }

    fn insert(&mut self, committed: Committed) {
        self.last = committed.key;
        self.bytes += committed.samples.len() * ROW_BYTES + committed.actions.len() * ACTION_BYTES;
        for (id, sample) in committed.samples {
            let rows = self.series.entry(id).or_default();
            rows.t_ms.push(milliseconds(sample.t_s));
            rows.values.extend_from_slice(sample.values());
        }
        self.actions.extend(committed.actions);
    }
}

/// The segments, in order of number.
#[derive(Debug, Default)]
pub(crate) struct Hot {
    sealed: Vec<(Instant, Arc<Segment>)>,
    sealing: Vec<Arc<Segment>>,
    open: Option<Segment>,
}

impl Hot {
    pub(crate) fn insert(&mut self, committed: Vec<Committed>) {
        for entry in committed {
            self.open.get_or_insert_with(|| Segment::new(entry.key)).insert(entry);
        }
    }

    pub(crate) fn unsealed_bytes(&self) -> usize {
        let sealing: usize = self.sealing.iter().map(|segment| segment.bytes).sum();
        sealing + self.open.as_ref().map_or(0, |open| open.bytes)
    }

    /// Whether the open segment is as large or as old as one may be.
    pub(crate) fn is_due(&self, bytes_max: usize, age_max: Duration) -> bool {
        !self.sealing.is_empty()
            || self
                .open
                .as_ref()
                .is_some_and(|open| open.bytes >= bytes_max || open.begun.elapsed() >= age_max)
    }

    /// Ends the open segment. Returns the segments to be sealed, in order.
    pub(crate) fn rotate(&mut self) -> Vec<Arc<Segment>> {
        self.sealing.extend(self.open.take().map(Arc::new));
        self.sealing.clone()
    }

    /// `segment` is in the lake, and no longer in the journal.
    pub(crate) fn sealed(&mut self, segment: &Arc<Segment>) {
        self.sealing.retain(|other| other.first != segment.first);
        self.sealed.push((Instant::now(), Arc::clone(segment)));
    }

    /// Forgets sealed segments that are older than `age_max`, and the oldest while there are more than
    /// `bytes_max` in memory.
    pub(crate) fn evict(&mut self, bytes_max: usize, age_max: Duration) {
        self.sealed.retain(|(at, _)| at.elapsed() < age_max);
        let mut bytes: usize = self.unsealed_bytes()
            + self.sealed.iter().map(|(_, segment)| segment.bytes).sum::<usize>();
        let over = self.sealed.iter().take_while(|(_, segment)| {
            let is_over = bytes > bytes_max;
            bytes -= segment.bytes;
            is_over
        });
        let n_over = over.count();
        self.sealed.drain(..n_over);
    }

    /// The lowest number that is here; parts below may be merged.
    pub(crate) fn lowest(&self) -> u64 {
        self.segments().map(|segment| segment.first).min().unwrap_or(u64::MAX)
    }

    pub(crate) fn segments(&self) -> impl Iterator<Item = &Segment> {
        let whole = self.sealed.iter().map(|(_, segment)| segment).chain(&self.sealing);
        whole.map(|segment| &**segment).chain(&self.open)
    }

    /// Numbers of the segments that are here.
    pub(crate) fn numbers(&self) -> HashSet<u64> {
        self.segments().map(|segment| segment.first).collect()
    }
}

/// The rows of `rows` from `from_ms` to `to_ms` inclusive, as samples.
pub(crate) fn samples(rows: &Rows, (from_ms, to_ms): (i64, i64), into: &mut Vec<Sample>) {
    for (row, t_ms) in rows.t_ms.iter().enumerate() {
        if (from_ms..=to_ms).contains(t_ms)
            && let Ok(values) = rows.row(row).try_into()
        {
            into.push(Sample::from_values(seconds(*t_ms), values));
        }
    }
}
