//! Which series there are, and how far each agent's numbering is durable. In memory; the journal's
//! database keeps it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use headroom_lake::Identity;
use headroom_telemetry::Workload;
use headroom_wire::BootId;
use serde::{Deserialize, Serialize};

/// Numbers of one life that are remembered one by one; those below are taken for durable.
const NUMBERS_MAX: usize = 1_024;

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

/// The numbers of one life that are durable. They may become so out of order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Numbers {
    /// Up to this all are.
    floor: Option<u64>,
    above: BTreeSet<u64>,
}

impl Numbers {
    pub(crate) fn up_to(floor: u64) -> Self {
        Self { floor: Some(floor), above: BTreeSet::new() }
    }

    pub(crate) fn has(&self, number: u64) -> bool {
        self.floor.is_some_and(|floor| number <= floor) || self.above.contains(&number)
    }

    pub(crate) fn insert(&mut self, number: u64) {
        self.above.insert(number);
        if self.above.len() > NUMBERS_MAX {
            self.floor = self.above.pop_first().max(self.floor);
        }
    }

    fn last(&self) -> Option<u64> {
        self.above.last().copied().or(self.floor)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Catalogue {
    pub(crate) ids: HashMap<String, HashMap<Workload, u32>>,
    pub(crate) by_path: BTreeMap<(String, String), Vec<u32>>,
    pub(crate) owners: BTreeMap<u32, Owner>,
    pub(crate) durable: HashMap<String, HashMap<BootId, Numbers>>,
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

    fn numbers(&self, host: &str, boot: BootId) -> Option<&Numbers> {
        self.durable.get(host)?.get(&boot)
    }

    pub(crate) fn has(&self, host: &str, (boot, number): (BootId, u64)) -> bool {
        self.numbers(host, boot).is_some_and(|numbers| numbers.has(number))
    }

    pub(crate) fn durable_seq(&self, host: &str, boot: BootId) -> Option<u64> {
        self.numbers(host, boot)?.last()
    }
}

#[cfg(test)]
mod tests {
    use super::{NUMBERS_MAX, Numbers};

    #[test]
    fn a_number_that_comes_late_is_no_repeat() {
        let mut numbers = Numbers::up_to(4);
        numbers.insert(7);
        assert!(numbers.has(4) && numbers.has(7) && !numbers.has(5) && !numbers.has(6));
        assert_eq!(numbers.last(), Some(7));
        numbers.insert(5);
        assert!(numbers.has(5) && !numbers.has(6));
    }

    #[test]
    fn few_numbers_are_remembered_one_by_one() {
        let mut numbers = Numbers::default();
        let last = 3 * NUMBERS_MAX as u64;
        (1..=last).for_each(|number| numbers.insert(number));
        assert!((1..=last).all(|number| numbers.has(number)));
        assert!(!numbers.has(last + 1));
        assert!(numbers.above.len() <= NUMBERS_MAX);
    }
}
