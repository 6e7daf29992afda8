//! From memory and journal to the lake, and what is done to the lake by the clock.

use std::{
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};

use headroom_lake::{ActionRow, Identity, Rows, lake::Tended, schema};
use headroom_wire::AppliedAction;

use crate::{
    History, HistoryError,
    hot::{Hot, Segment},
    milliseconds,
};

/// Hours removed at most in one go to make room.
const SHED_MAX: usize = 10_000;

/// An action as the lake keeps it.
pub(crate) fn row(action: &AppliedAction) -> Result<ActionRow, serde_json::Error> {
    Ok(ActionRow {
        t_ms: milliseconds(action.at_s),
        knob: action.knob.name().to_owned(),
        change: serde_json::to_string(action)?,
    })
}

impl History {
    /// Seals what is large or old enough, forgets what was sealed long ago. Cheap when nothing is due;
    /// meant for every second.
    ///
    /// # Errors
    ///
    /// When the lake or the journal cannot be written; what was not sealed is tried again.
    pub fn seal_due(&self) -> Result<(), HistoryError> {
        let age_max = Duration::from_secs_f64(self.config.seal_s);
        if self.read_hot(|hot| hot.is_due(self.config.seal_bytes(), age_max)) {
            self.seal()?;
        }
        let age_max = Duration::from_secs_f64(self.config.hot_minutes * 60.0);
        let mut hot = self.hot.write().unwrap_or_else(PoisonError::into_inner);
        hot.evict(self.config.hot_bytes_max(), age_max);
        Ok(())
    }

    /// Seals everything.
    ///
    /// # Errors
    ///
    /// As [`Self::seal_due`].
    pub fn seal(&self) -> Result<(), HistoryError> {
        let _alone = self.sealing.lock().unwrap_or_else(PoisonError::into_inner);
        let segments = {
            // No commit is between the journal and the hot window now.
            let _journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
            self.hot.write().unwrap_or_else(PoisonError::into_inner).rotate()
        };
        // In order: after a crash the first that is not sealed says from where on files do not count.
        for segment in segments {
            let result = self.seal_segment(&segment);
            match &result {
                Ok(()) => self.space.sealed(None),
                Err(error @ HistoryError::Lake(_)) => self.space.sealed(Some(error)),
                Err(error) => self.space.told(Some(error)),
            }
            result?;
            self.hot.write().unwrap_or_else(PoisonError::into_inner).sealed(&segment);
        }
        Ok(())
    }

    fn seal_segment(&self, segment: &Arc<Segment>) -> Result<(), HistoryError> {
        let identity = |id: u32| -> Option<Arc<Identity>> {
            self.read_catalogue(|c| c.owners.get(&id).map(|owner| Arc::new(owner.identity(id))))
        };
        let series: Vec<(Arc<Identity>, Rows)> = segment
            .series
            .iter()
            .filter_map(|(id, rows)| Some((identity(*id)?, rows.clone())))
            .collect();
        let mut actions = Vec::with_capacity(segment.actions.len());
        for (id, action) in &segment.actions {
            let row = row(action).map_err(|error| HistoryError::Damaged {
                dir: self.dir.clone(),
                table: "actions",
                reason: error.to_string(),
            })?;
            actions.extend(identity(*id).map(|who| ((*who).clone(), row)));
        }
        let parts = self.lake.seal(segment.first, series, actions)?;
        self.lake.adopt(parts);
        self.write_workloads()?;
        let range = (segment.first, segment.last);
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        let recovered = journal.reopen(&self.catalogue, &*self.storage)?;
        self.hot.write().unwrap_or_else(PoisonError::into_inner).insert(recovered);
        journal.remove(range, &*self.storage)
    }

    /// The table of workloads is written anew when there are more than it says.
    fn write_workloads(&self) -> Result<(), HistoryError> {
        let rows: Vec<(Identity, String, String)> = self.read_catalogue(|catalogue| {
            if catalogue.owners.len() == self.workloads_written.load(Ordering::Relaxed) {
                return Vec::new();
            }
            let owners = catalogue.owners.iter();
            owners
                .map(|(id, owner)| {
                    let kind = format!("{:?}", owner.workload.kind).to_lowercase();
                    (owner.identity(*id), owner.workload.name.clone(), kind)
                })
                .collect()
        });
        if rows.is_empty() {
            return Ok(());
        }
        let batch = schema::workloads_batch(&rows, self.lake.root().path())?;
        self.lake.write_workloads(&batch)?;
        self.workloads_written.store(rows.len(), Ordering::Relaxed);
        Ok(())
    }

    /// Merges, thins and removes what is due at `now_s`, and makes room when the disk is nearly full.
    /// May take minutes; commits go on.
    ///
    /// # Errors
    ///
    /// When the lake cannot be read or written; the rest is done by the next call.
    pub fn tend(&self, now_s: f64) -> Result<Tended, HistoryError> {
        let _alone = self.tending.lock().unwrap_or_else(PoisonError::into_inner);
        let now_ms = milliseconds(now_s);
        let below = self.read_hot(Hot::lowest);
        let mut shed = 0;
        // Before anything that needs room itself.
        while shed < SHED_MAX
            && self.space.is_low(&*self.storage)
            && self.lake.shed(now_ms, below)?
        {
            shed += 1;
        }
        if shed > 0 {
            tracing::warn!(hours = shed, "the disk is nearly full: the oldest samples are removed");
        }
        let mut tended = self.lake.tend(now_ms, below, &self.config.keeping())?;
        tended.removed += shed;
        Ok(tended)
    }
}
