//! Slots from the end of their cgroup to the next one: given up, rested, emptied, handed back.

use std::{collections::HashSet, time::Instant};

use aya::{
    Pod,
    maps::{MapData, MapError, PerCpuArray, PerCpuValues},
};
use headroom_abi::record;

use super::{
    CgroupId, KernelError, KernelProbes, Topic,
    load::{
        Block, DeviceId, Events, Key, Latency, Net, Numbers, PageCache, Sampled, Streams, Task,
        in_map,
    },
    reading::per_cpu,
};

impl KernelProbes {
    /// Gives up the slot of a cgroup that is gone, after its last counters were read; sooner than
    /// [`Self::read`] would by itself. A late event of it is dropped.
    pub fn retire(&mut self, id: CgroupId) {
        if !self.book.retire(id, Instant::now()) {
            return;
        }
        match self.maps.slots.remove(&Key(id.to_key())) {
            Ok(()) | Err(MapError::KeyNotFound) => {}
            // The slot is rested either way; the entry costs a place in the map.
            Err(error) => tracing::warn!(?id, %error, "slot of a removed cgroup stays mapped"),
        }
    }

    /// Takes back the slots of removed cgroups whose last counters were read often enough.
    pub(super) fn retire_removed(&mut self) {
        while let Some(&(until, id)) = self.removed.front()
            && until <= self.n_reads
        {
            self.removed.pop_front();
            self.retire(id);
        }
    }

    /// After lost events, slots taken unheard are found in the map itself.
    pub(super) fn resync_after_loss(&mut self) -> Result<(), KernelError> {
        let n_lost = self.losses()?.cgroup_events;
        if n_lost == self.n_lost_resynced {
            return Ok(());
        }
        let known: HashSet<u32> = self.book.taken().map(|(_, slot)| slot).collect();
        let mut found = Vec::new();
        for entry in &self.maps.slots {
            let (Key(key), slot) = entry.map_err(in_map("SLOTS"))?;
            if let (false, Some(id)) = (known.contains(&slot), CgroupId::from_key(&key)) {
                found.push((id, slot));
            }
        }
        for (id, slot) in found {
            if self.book.take(id, slot) {
                self.retire(id);
            }
        }
        self.n_lost_resynced = n_lost;
        Ok(())
    }

    /// Returns slots of retired cgroups, emptied, to the kernel's queue.
    pub(super) fn free_rested_slots(&mut self) -> Result<(), KernelError> {
        if !self.book.is_any_resting() {
            return Ok(());
        }
        let cached = per_cpu(&self.maps.shared.caches, 0, "TASK_CACHE")?;
        let remembered = cached.iter().filter_map(|cache| u32::try_from(cache.0.slot).ok());
        let remembered = remembered.collect();
        let rested = self.book.rested(Instant::now(), &remembered);
        self.forget_devices(&rested)?;
        for slot in rested {
            self.clear_slot(slot)?;
            self.maps.free_slots.push(slot, 0).map_err(in_map("FREE_SLOTS"))?;
        }
        Ok(())
    }

    fn clear_slot(&mut self, slot: u32) -> Result<(), KernelError> {
        let n_cpus = self.n_cpus;
        let first = slot * self.cpus_per_slot;
        for index in first..first + self.cpus_per_slot {
            self.maps.tasks.set(index, Task(record::TaskCounters::ZERO))?;
        }
        self.clear_samples(slot)?;
        clear(&mut self.maps.blocks, slot, Block(record::BlockCounters::ZERO), n_cpus, "BLOCKS")?;
        let cache = PageCache(record::CacheCounters::default());
        clear(&mut self.maps.caches, slot, cache, n_cpus, "CACHES")?;
        clear(&mut self.maps.nets, slot, Net(record::NetCounters::ZERO), n_cpus, "NETS")?;
        if self.has(Topic::HardwareCounters) {
            let zero = Events(record::EventCounters::default());
            clear(&mut self.maps.event_counts, slot, zero, n_cpus, "EVENT_COUNTS")?;
        }
        let streams = Streams(record::StreamEnds::default());
        self.maps.block_streams.set(slot, streams, 0).map_err(in_map("BLOCK_STREAMS"))
    }

    /// Removes what slots that are given again had per device.
    fn forget_devices(&mut self, slots: &[u32]) -> Result<(), KernelError> {
        if slots.is_empty() {
            return Ok(());
        }
        let mut stale = Vec::new();
        for key in self.maps.devices.keys() {
            let DeviceId(key) = key.map_err(in_map("DEVICES"))?;
            if slots.contains(&key.slot) {
                stale.push(key);
            }
        }
        for key in stale {
            match self.maps.devices.remove(&DeviceId(key)) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(in_map("DEVICES")(error)),
            }
        }
        Ok(())
    }

    fn clear_samples(&mut self, slot: u32) -> Result<(), KernelError> {
        let has_detail = self.has(Topic::SyscallDetail);
        let maps = &mut self.maps;
        let zero = Sampled(record::SampledCounters::ZERO);
        maps.sampled.set(slot, zero)?;
        if has_detail {
            let zero = Latency(record::ClassLatency::ZERO);
            maps.class_latency.set(slot, zero, 0).map_err(in_map("CLASS_LATENCY"))?;
            let zero = Numbers(record::CallNumbers::ZERO);
            clear(&mut maps.call_numbers, slot, zero, self.n_cpus, "CALL_NUMBERS")?;
        }
        Ok(())
    }
}

fn clear<V: Pod>(
    map: &mut PerCpuArray<MapData, V>,
    slot: u32,
    zero: V,
    n_cpus: usize,
    name: &'static str,
) -> Result<(), KernelError> {
    let zeros = PerCpuValues::try_from(vec![zero; n_cpus])
        .map_err(|source| KernelError::Map { map: name, source: source.into() })?;
    map.set(slot, zeros, 0).map_err(in_map(name))
}
