//! System calls of a cgroup by number, and their durations by class: read when asked for, not every
//! tick, and kept only where there is room for them.

use headroom_abi::{
    CGROUP_RING_BYTES, DEVICE_PAIRS, EXEC_RING_BYTES, PACE_RING_BYTES, READERS, RECENT_TASKS,
    record::{self, CLASS_BUCKETS},
    syscall::{Architecture, NUMBER_UNKNOWN, SYSCALLS, SyscallClass},
};
use headroom_telemetry::Fact;
use serde::Serialize;

use super::{CgroupId, KernelConfig, KernelError, KernelProbes, Topic, load::in_map};

/// System calls of one cgroup since its first.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SyscallDetail {
    /// Calls by number, those never made left out. Counters wrap at 2^32 per CPU.
    pub calls: Vec<CallCount>,
    /// Timed calls of each class that had any.
    pub latency: Vec<ClassDurations>,
}

/// Calls with one number.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CallCount {
    /// The number; `None` for calls that have none in the tables: newer than them, or made through
    /// the 32-bit interface.
    pub number: Option<u16>,
    /// Its name, if this version knows it.
    pub name: Option<&'static str>,
    /// How often it was made.
    pub calls: u64,
}

/// Durations of timed calls of one class.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassDurations {
    /// Position of the class in [`SyscallClass::ALL`].
    pub class: usize,
    /// By powers of two: the first below 256 ns, then one per doubling.
    pub hist: Vec<u32>,
}

impl KernelProbes {
    /// Calls of the cgroup `id` by number and class; `None` when they are not counted or it never
    /// made one.
    ///
    /// # Errors
    /// When a kernel map cannot be read.
    pub fn syscall_detail(&self, id: CgroupId) -> Result<Option<SyscallDetail>, KernelError> {
        let Some(slot) = self.slot_of(id).filter(|_slot| self.has(Topic::SyscallDetail)) else {
            return Ok(None);
        };
        let maps = self.maps();
        let mut totals = [0_u64; NUMBER_UNKNOWN + 1];
        for cpu in maps.call_numbers.get(&slot, 0).map_err(in_map("CALL_NUMBERS"))?.iter() {
            for (total, calls) in totals.iter_mut().zip(cpu.0.calls) {
                *total = total.saturating_add(u64::from(calls));
            }
        }
        let calls = totals.iter().enumerate().filter(|(_, calls)| **calls > 0);
        let latency = maps.class_latency.get(&slot, 0).map_err(in_map("CLASS_LATENCY"))?.0;
        let by_class = latency.hist.iter().take(SyscallClass::COUNT).enumerate();
        Ok(Some(SyscallDetail {
            calls: calls.map(|(number, calls)| CallCount::new(number, *calls)).collect(),
            latency: by_class
                .filter(|(_, hist)| hist.iter().any(|count| *count > 0))
                .map(|(class, hist)| ClassDurations { class, hist: hist.to_vec() })
                .collect(),
        }))
    }
}

impl CallCount {
    fn new(number: usize, calls: u64) -> Self {
        let number = u16::try_from(number).ok().filter(|_| number < NUMBER_UNKNOWN);
        let architecture = Architecture::current();
        let is_it = |syscall: &&headroom_abi::syscall::Syscall| {
            number.is_some() && architecture.and_then(|on| syscall.number(on)) == number
        };
        let name = SYSCALLS.iter().find(is_it).map(|syscall| syscall.name);
        Self { number, name, calls }
    }
}

/// Whether the counts by number stay within the memory that all maps may take.
pub(super) fn fits(config: &KernelConfig, n_cpus: u64) -> Fact<String> {
    let slots = u64::from(config.slots);
    let taken = base_bytes(slots, n_cpus) + detail_bytes(slots, n_cpus);
    let most = config.map_bytes_max;
    if taken > most {
        return Fact::Absent(format!(
            "would raise kernel memory to {taken} bytes, more than \
             observe.kernel.map_bytes_max = {most}"
        ));
    }
    Fact::Known(format!("{} bytes of kernel memory", detail_bytes(slots, n_cpus)))
}

/// Replaces the state of the topic that no program of its own makes up.
pub(super) fn settle(states: &mut [(Topic, Fact<String>)], has_room: Fact<String>) {
    let counts = states.iter().find(|(topic, _)| *topic == Topic::Syscalls);
    let lacking = counts.and_then(|(_, state)| state.reason()).map(str::to_owned);
    if let Some((_, state)) = states.iter_mut().find(|(t, _)| *t == Topic::SyscallDetail) {
        *state = lacking.map_or(has_room, Fact::Absent);
    }
}

/// Bytes of contents of all maps that are always there.
pub(super) fn base_bytes(n_slots: u64, n_cpus: u64) -> u64 {
    let per_slot_and_cpu = size_of::<record::TaskCounters>()
        + size_of::<record::BlockCounters>()
        + size_of::<record::CacheCounters>()
        + size_of::<record::NetCounters>();
    let per_cpu = size_of::<record::SlotCache>()
        + size_of::<record::Losses>()
        + size_of::<record::EventState>();
    let per_slot = size_of::<record::CgroupKey>()
        + 3 * size_of::<u32>()
        + size_of::<record::SampledCounters>()
        + size_of::<record::StreamEnds>();
    let per_device = size_of::<record::DeviceKey>() + size_of::<record::DeviceCounters>();
    let shared = u64::from(RECENT_TASKS) * size_of::<record::RecentTask>() as u64
        + u64::from(READERS) * size_of::<record::Reader>() as u64
        + u64::from(DEVICE_PAIRS) * per_device as u64;
    let rings = [CGROUP_RING_BYTES, EXEC_RING_BYTES, PACE_RING_BYTES];
    let rings: u64 = rings.map(u64::from).iter().sum();
    n_slots * (n_cpus * per_slot_and_cpu as u64 + per_slot as u64)
        + n_cpus * per_cpu as u64
        + shared
        + rings
}

/// Bytes of contents of the map that hardware counters add.
pub(super) fn hardware_bytes(n_slots: u64, n_cpus: u64) -> u64 {
    n_slots * n_cpus * size_of::<record::EventCounters>() as u64
}

/// Bytes of contents of the maps that this topic adds.
pub(super) fn detail_bytes(n_slots: u64, n_cpus: u64) -> u64 {
    let numbers = size_of::<record::CallNumbers>() as u64;
    n_slots * (n_cpus * numbers + size_of::<record::ClassLatency>() as u64)
}

const _: () =
    assert!(CLASS_BUCKETS * 4 * record::SYSCALL_ROOM == size_of::<record::ClassLatency>());

#[cfg(test)]
mod tests {
    use headroom_telemetry::Fact;

    use super::{CallCount, fits, settle};
    use crate::observe::kernel::{KernelConfig, Topic};

    #[test]
    fn counts_by_number_are_left_out_where_they_would_take_too_much() {
        let config = KernelConfig::default();
        assert!(fits(&config, 2).is_known());
        let on_many_cpus = fits(&config, 64);
        assert!(on_many_cpus.reason().unwrap().contains("map_bytes_max"), "{on_many_cpus}");
        assert!(!fits(&KernelConfig { map_bytes_max: 0, ..config }, 1).is_known());
    }

    #[test]
    fn without_counted_calls_there_are_none_by_number() {
        let lacking = Fact::Absent("no hook".to_owned());
        let mut states = vec![
            (Topic::Syscalls, lacking.clone()),
            (Topic::SyscallDetail, Fact::Known(String::new())),
        ];
        settle(&mut states, Fact::Known("room".to_owned()));
        assert_eq!(states[1].1, lacking);
    }

    #[test]
    fn numbers_have_names_where_they_are_known() {
        assert_eq!(CallCount::new(511, 3), CallCount { number: None, name: None, calls: 3 });
        assert_eq!(CallCount::new(500, 1).number, Some(500));
    }
}
