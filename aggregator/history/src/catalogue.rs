//! Which series there are, and how far each agent's numbering is durable. In memory; the journal's
//! database keeps it.

use std::collections::{BTreeMap, HashMap};

use headroom_lake::Identity;
use headroom_telemetry::Workload;
use headroom_wire::{BootId, Numbering};
use serde::{Deserialize, Serialize};

/// Who a series belongs to.
#[derive(Clone, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub(crate) struct Owner {
    pub(crate) host: String,
    pub(crate) workload: Workload,
}

impl Owner {
    pub(crate) fn identity(&self, id: u32) -> Identity {
        Identity {
            id,
            host: self.host.clone(),
            path: self.workload.path.clone(),
            model_key: self.workload.model_key.0.clone(),
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Catalogue {
    pub(crate) ids: HashMap<String, HashMap<Workload, u32>>,
    pub(crate) by_path: BTreeMap<(String, String), Vec<u32>>,
    pub(crate) owners: BTreeMap<u32, Owner>,
    pub(crate) durable: HashMap<String, HashMap<BootId, Numbering>>,
}

impl Catalogue {
    pub(crate) fn insert(&mut self, id: u32, owner: Owner) {
        let place = (owner.host.clone(), owner.workload.path.clone());
        self.by_path.entry(place).or_default().push(id);
        self.ids.entry(owner.host.clone()).or_default().insert(owner.workload.clone(), id);
        self.owners.insert(id, owner);
    }

    pub(crate) fn id(&self, host: &str, workload: &Workload) -> Option<u32> {
        self.ids.get(host)?.get(workload).copied()
    }

    pub(crate) fn next_id(&self) -> u32 {
        self.owners.last_key_value().map_or(0, |(id, _)| id + 1)
    }

    /// The numbers of `boot` on `host` that are durable or will never come.
    pub(crate) fn numbering(&self, host: &str, boot: BootId) -> Numbering {
        let known = self.durable.get(host).and_then(|lives| lives.get(&boot));
        known.cloned().unwrap_or_default()
    }

    /// Takes over the numbering of a life as it is on disk. What was settled meanwhile stays so.
    pub(crate) fn put_numbering(&mut self, host: &str, boot: BootId, mut on_disk: Numbering) {
        let lives = self.durable.entry(host.to_owned()).or_default();
        let known = lives.entry(boot).or_default();
        on_disk.settle(known.watermark().map_or(0, |number| number.saturating_add(1)));
        *known = on_disk;
    }

    /// Numbers below `before` will never come.
    pub(crate) fn settle(&mut self, host: &str, boot: BootId, before: u64) {
        let lives = self.durable.entry(host.to_owned()).or_default();
        lives.entry(boot).or_default().settle(before);
    }
}
