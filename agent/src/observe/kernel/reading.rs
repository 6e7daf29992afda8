//! Reads what the programs counted for one slot, out of the maps that attached programs fill.

use aya::{
    Pod,
    maps::{MapData, PerCpuArray, PerCpuValues},
};
use headroom_abi::record::marks;

use super::{
    CgroupId, KernelCounters, KernelError, Topic,
    load::{Block, Events, Net, PageCache, Sampled, Task, in_map},
    marks::Due,
    probes::KernelProbes,
};

/// Maps that attached programs fill.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    tasks: bool,
    hardware: bool,
    samples: bool,
    blocks: bool,
    caches: bool,
    nets: bool,
}

impl KernelProbes {
    pub(super) fn wanted(&self) -> Wanted {
        let is_any = |topics: &[Topic]| topics.iter().any(|topic| self.has(*topic));
        Wanted {
            tasks: is_any(&[
                Topic::Syscalls,
                Topic::RunQueue,
                Topic::Migrations,
                Topic::OomVictims,
                Topic::Execs,
                Topic::Exits,
            ]),
            hardware: self.has(Topic::HardwareCounters),
            samples: is_any(&[Topic::SyscallLatency, Topic::CodeSamples]),
            blocks: self.has(Topic::BlockIo),
            caches: is_any(&[Topic::PageCache, Topic::PageCacheHits, Topic::PageCacheDirtied]),
            nets: is_any(&[Topic::Network, Topic::Tcp, Topic::PacketDrops]),
        }
    }

    /// What was counted for a slot, of which `before` was read already: only what is `due` is read.
    pub(super) fn read_slot(
        &self,
        id: CgroupId,
        slot: u32,
        wanted: Wanted,
        due: Due,
        before: Option<&KernelCounters>,
    ) -> Result<KernelCounters, KernelError> {
        let due = if before.is_some() { due } else { [true; marks::COUNT] };
        let mut counters = before.map(|before| before.but(due)).unwrap_or_default();
        if id.hierarchy == self.layout.task {
            self.read_tasks(&mut counters, slot, wanted, due)?;
        }
        if wanted.blocks && due[marks::BLOCK] && id.hierarchy == self.layout.block {
            for Block(record) in per_cpu(&self.maps.blocks, slot, "BLOCKS")?.iter() {
                counters.add_block(record);
            }
        }
        if wanted.nets && due[marks::NET] && id.hierarchy == self.layout.network {
            for Net(record) in per_cpu(&self.maps.nets, slot, "NETS")?.iter() {
                counters.add_net(record);
            }
        }
        Ok(counters)
    }

    fn read_tasks(
        &self,
        counters: &mut KernelCounters,
        slot: u32,
        wanted: Wanted,
        due: Due,
    ) -> Result<(), KernelError> {
        if wanted.tasks && due[marks::TASKS] {
            for Task(record) in self.tasks_by_cpu(slot) {
                counters.add_task(&record);
            }
        }
        if wanted.hardware && due[marks::TASKS] {
            for Events(record) in per_cpu(&self.maps.event_counts, slot, "EVENT_COUNTS")?.iter() {
                counters.add_events(&record.events);
            }
        }
        if wanted.samples
            && due[marks::SAMPLED]
            && let Some(Sampled(record)) = self.maps.sampled.get(slot as usize)
        {
            counters.add_sampled(&record);
        }
        if wanted.caches && due[marks::CACHE] {
            for PageCache(record) in per_cpu(&self.maps.caches, slot, "CACHES")?.iter() {
                counters.add_cache(record);
            }
        }
        Ok(())
    }

    fn tasks_by_cpu(&self, slot: u32) -> impl Iterator<Item = Task> + '_ {
        let n_cpus = self.cpus_per_slot as usize;
        let first = slot as usize * n_cpus;
        (first..first + n_cpus).map_while(|index| self.maps.tasks.get(index))
    }
}

pub(super) fn per_cpu<V: Pod>(
    map: &PerCpuArray<MapData, V>,
    slot: u32,
    name: &'static str,
) -> Result<PerCpuValues<V>, KernelError> {
    map.get(&slot, 0).map_err(in_map(name))
}
