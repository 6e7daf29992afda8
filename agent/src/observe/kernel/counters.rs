//! Cumulative counters of one cgroup, summed over CPUs.

use headroom_abi::{
    SKETCH_BINS,
    histogram::BUCKETS,
    record::{self, BlockCounters, CacheCounters, EventCount, NetCounters, hardware, marks},
    syscall::SyscallClass,
};
use serde::Serialize;

use super::marks::Due;

/// What the kernel programs counted for one cgroup since they were attached.
///
/// All values only grow. A signal whose [`super::Topic`] is not attached stays zero here;
/// [`super::KernelProbes::has`] tells that apart from nothing having happened. Counters of a
/// workload that is several cgroups, one per hierarchy, are brought together with
/// [`KernelCounters::merge`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KernelCounters {
    /// System calls begun, by [`SyscallClass`] in order. Exact while the hook is on. Calls through
    /// the 32-bit interface are of class `Other` where the kernel tells them apart (x86), and
    /// classed by their 64-bit numbers elsewhere.
    pub syscalls: [u64; SyscallClass::COUNT],
    /// System calls by a hash of the call and the two before it in the same task; wraps.
    pub order: [u32; SKETCH_BINS],
    /// System calls timed to their end, about one in [`headroom_abi::CALLS_PER_TIMED`].
    pub timed_syscalls: u64,
    /// Those among them that failed.
    pub failed_syscalls: u64,
    /// Time in timed calls that do not wait by design, by [`headroom_abi::histogram::bucket`];
    /// wraps.
    pub syscall_hist: [u32; BUCKETS],
    /// Samples of running code by a hash of its place; wraps. Of user code 16 bytes apart in a
    /// page are told apart, the kernel is one bin.
    pub code: [u32; SKETCH_BINS],
    /// Times a task was put on a CPU.
    pub switches: u64,
    /// Times a task gave up a CPU to wait.
    pub voluntary_switches: u64,
    /// Times a task was taken off a CPU while it could run on.
    pub involuntary_switches: u64,
    /// Times a task was moved to another CPU.
    pub migrations: u64,
    /// Tasks chosen to die for want of memory. Zero where the kernel does not tell the task.
    pub oom_victims: u64,
    /// Total time runnable tasks waited for a CPU, nanoseconds, by the scheduler's own clock.
    pub runq_wait_ns: u64,
    /// Total time tasks were on a CPU, nanoseconds, by the scheduler's own clock; of a task that has
    /// not left its CPU yet, without its last turn.
    pub ran_ns: u64,
    /// Those waits by [`headroom_abi::histogram::bucket`].
    pub runq_hist: [u64; BUCKETS],
    /// What the CPU's own counters counted while its tasks ran, by
    /// [`headroom_abi::record::hardware`]. A counter without time is one that there is not.
    pub events: [EventCount; hardware::COUNT],
    /// Block I/O charged to the cgroup.
    pub block: BlockCounters,
    /// Use of the page cache by its tasks.
    pub cache: CacheCounters,
    /// Traffic of its sockets.
    pub net: NetCounters,
    /// Programs started.
    pub execs: u64,
    /// Tasks (threads included) ended.
    pub exits: u64,
}

/// Block I/O of one cgroup on one device.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub struct DeviceUse {
    /// Major number of the disk.
    pub major: u32,
    /// Minor number of the disk; a partition counts for its disk.
    pub minor: u32,
    /// Read requests completed.
    pub read_ops: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Write requests completed.
    pub write_ops: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Times from request to completion, summed, nanoseconds.
    pub latency_ns: u64,
}

impl Default for KernelCounters {
    fn default() -> Self {
        Self {
            syscalls: [0; SyscallClass::COUNT],
            order: [0; SKETCH_BINS],
            timed_syscalls: 0,
            failed_syscalls: 0,
            syscall_hist: [0; BUCKETS],
            code: [0; SKETCH_BINS],
            switches: 0,
            voluntary_switches: 0,
            involuntary_switches: 0,
            migrations: 0,
            oom_victims: 0,
            runq_wait_ns: 0,
            ran_ns: 0,
            runq_hist: [0; BUCKETS],
            events: [EventCount::default(); hardware::COUNT],
            block: BlockCounters::ZERO,
            cache: CacheCounters::default(),
            net: NetCounters::ZERO,
            execs: 0,
            exits: 0,
        }
    }
}

impl DeviceUse {
    pub(super) fn new(device: u32, record: &record::DeviceCounters) -> Self {
        const MINOR_BITS: u32 = 20;
        Self {
            major: device >> MINOR_BITS,
            minor: device & ((1 << MINOR_BITS) - 1),
            read_ops: record.read_ops,
            read_bytes: record.read_bytes,
            write_ops: record.write_ops,
            write_bytes: record.write_bytes,
            latency_ns: record.latency_ns,
        }
    }
}

impl KernelCounters {
    /// Adds what `other` counted.
    pub fn merge(&mut self, other: &Self) {
        add_all(&mut self.syscalls, &other.syscalls);
        wrap_all(&mut self.order, &other.order);
        add(&mut self.timed_syscalls, other.timed_syscalls);
        add(&mut self.failed_syscalls, other.failed_syscalls);
        wrap_all(&mut self.syscall_hist, &other.syscall_hist);
        wrap_all(&mut self.code, &other.code);
        add(&mut self.switches, other.switches);
        add(&mut self.voluntary_switches, other.voluntary_switches);
        add(&mut self.involuntary_switches, other.involuntary_switches);
        add(&mut self.migrations, other.migrations);
        add(&mut self.oom_victims, other.oom_victims);
        add(&mut self.runq_wait_ns, other.runq_wait_ns);
        add(&mut self.ran_ns, other.ran_ns);
        add_all(&mut self.runq_hist, &other.runq_hist);
        add(&mut self.execs, other.execs);
        add(&mut self.exits, other.exits);
        self.add_events(&other.events);
        add_block(&mut self.block, &other.block);
        add_cache(&mut self.cache, &other.cache);
        add_net(&mut self.net, &other.net);
    }

    /// Itself without what is `due`, by [`marks`]: zero, to be read anew.
    pub(super) fn but(&self, due: Due) -> Self {
        let mut kept = self.clone();
        if due[marks::TASKS] {
            kept = Self {
                timed_syscalls: self.timed_syscalls,
                failed_syscalls: self.failed_syscalls,
                syscall_hist: self.syscall_hist,
                code: self.code,
                cache: self.cache,
                block: self.block,
                net: self.net,
                ..Self::default()
            };
        }
        if due[marks::SAMPLED] {
            (kept.timed_syscalls, kept.failed_syscalls) = (0, 0);
            (kept.syscall_hist, kept.code) = ([0; BUCKETS], [0; SKETCH_BINS]);
        }
        if due[marks::CACHE] {
            kept.cache = CacheCounters::default();
        }
        if due[marks::BLOCK] {
            kept.block = BlockCounters::ZERO;
        }
        if due[marks::NET] {
            kept.net = NetCounters::ZERO;
        }
        kept
    }

    pub(super) fn add_task(&mut self, record: &record::TaskCounters) {
        add_all(&mut self.syscalls, &record.syscalls);
        wrap_all(&mut self.order, &record.order);
        add(&mut self.switches, record.switches);
        add(&mut self.voluntary_switches, record.voluntary_switches);
        add(&mut self.involuntary_switches, record.involuntary_switches);
        add(&mut self.migrations, record.migrations);
        add(&mut self.oom_victims, record.oom_victims);
        add(&mut self.runq_wait_ns, record.runq_wait_ns);
        add(&mut self.ran_ns, record.ran_ns);
        add_all(&mut self.runq_hist, &record.runq_hist);
        add(&mut self.execs, record.execs);
        add(&mut self.exits, record.exits);
    }

    pub(super) fn add_events(&mut self, grown: &[EventCount; hardware::COUNT]) {
        for (total, grown) in self.events.iter_mut().zip(grown) {
            add(&mut total.count, grown.count);
            add(&mut total.enabled_ns, grown.enabled_ns);
            add(&mut total.running_ns, grown.running_ns);
        }
    }

    pub(super) fn add_block(&mut self, record: &BlockCounters) {
        add_block(&mut self.block, record);
    }

    pub(super) fn add_cache(&mut self, record: &CacheCounters) {
        add_cache(&mut self.cache, record);
    }

    pub(super) fn add_net(&mut self, record: &NetCounters) {
        add_net(&mut self.net, record);
    }

    pub(super) fn add_sampled(&mut self, record: &record::SampledCounters) {
        add(&mut self.timed_syscalls, record.timed);
        add(&mut self.failed_syscalls, record.failed);
        wrap_all(&mut self.syscall_hist, &record.latency_hist);
        wrap_all(&mut self.code, &record.code);
    }
}

fn add_block(total: &mut BlockCounters, amount: &BlockCounters) {
    add(&mut total.read_ops, amount.read_ops);
    add(&mut total.read_bytes, amount.read_bytes);
    add(&mut total.write_ops, amount.write_ops);
    add(&mut total.write_bytes, amount.write_bytes);
    add(&mut total.sequential_ops, amount.sequential_ops);
    add(&mut total.latency_ns, amount.latency_ns);
    add_all(&mut total.latency_hist, &amount.latency_hist);
    add_all(&mut total.device_hist, &amount.device_hist);
    add_all(&mut total.size_hist, &amount.size_hist);
}

fn add_cache(total: &mut CacheCounters, amount: &CacheCounters) {
    add(&mut total.got_pages, amount.got_pages);
    add(&mut total.added_pages, amount.added_pages);
    add(&mut total.made_pages, amount.made_pages);
    add(&mut total.dirtied_pages, amount.dirtied_pages);
}

fn add_net(total: &mut NetCounters, amount: &NetCounters) {
    add(&mut total.rx_bytes, amount.rx_bytes);
    add(&mut total.rx_packets, amount.rx_packets);
    add(&mut total.tx_bytes, amount.tx_bytes);
    add(&mut total.tx_packets, amount.tx_packets);
    add(&mut total.connects, amount.connects);
    add(&mut total.accepts, amount.accepts);
    add(&mut total.retransmits, amount.retransmits);
    add(&mut total.drops, amount.drops);
    add_all(&mut total.size_hist, &amount.size_hist);
    add_all(&mut total.rtt_hist, &amount.rtt_hist);
}

fn add(total: &mut u64, amount: u64) {
    *total = total.wrapping_add(amount);
}

/// Adds element by element as far as the shorter list goes.
fn add_all(totals: &mut [u64], amounts: &[u64]) {
    for (total, &amount) in totals.iter_mut().zip(amounts) {
        add(total, amount);
    }
}

/// As [`add_all`], for counters that wrap sooner.
fn wrap_all(totals: &mut [u32], amounts: &[u32]) {
    for (total, &amount) in totals.iter_mut().zip(amounts) {
        *total = total.wrapping_add(amount);
    }
}

#[cfg(test)]
mod tests {
    use headroom_abi::record::{
        EventCount, SYSCALL_ROOM, SampledCounters, TaskCounters, hardware, marks,
    };

    use super::KernelCounters;

    #[test]
    fn what_is_read_anew_is_let_go_and_nothing_else() {
        let mut task = TaskCounters { switches: 3, ..TaskCounters::ZERO };
        (task.syscalls[2], task.order[9]) = (7, 1);
        let mut sampled = SampledCounters { timed: 5, failed: 4, ..SampledCounters::ZERO };
        (sampled.latency_hist[1], sampled.code[7]) = (8, 6);
        let fill: [&dyn Fn(&mut KernelCounters); marks::COUNT] = [
            &|all| {
                all.add_task(&task);
                all.add_events(
                    &[EventCount { count: 3, ..EventCount::default() }; hardware::COUNT],
                );
            },
            &|all| all.add_sampled(&sampled),
            &|all| all.cache.got_pages = 5,
            &|all| all.block.size_hist[3] = 2,
            &|all| all.net.tx_packets = 7,
        ];
        let mut all = KernelCounters::default();
        fill.iter().for_each(|add| add(&mut all));
        for (due, add) in fill.iter().enumerate() {
            let mut kept = all.but(std::array::from_fn(|kind| kind == due));
            assert_ne!(kept, all, "kind {due}");
            add(&mut kept);
            assert_eq!(kept, all, "kind {due}");
        }
        assert_eq!(all.but([true; marks::COUNT]), KernelCounters::default());
    }

    #[test]
    fn merging_adds_every_field() {
        let mut task = TaskCounters { switches: 3, execs: 1, ..TaskCounters::ZERO };
        task.syscalls = [2; SYSCALL_ROOM];
        task.runq_hist[5] = 3;
        (task.voluntary_switches, task.involuntary_switches, task.migrations) = (2, 1, 9);
        (task.runq_wait_ns, task.ran_ns) = (5, 7);
        task.order[63] = u32::MAX;
        let mut sampled = SampledCounters { timed: 5, failed: 4, ..SampledCounters::ZERO };
        (sampled.latency_hist[1], sampled.code[7]) = (8, 6);
        let mut one = KernelCounters::default();
        one.add_task(&task);
        one.add_sampled(&sampled);
        one.block.read_bytes = 4096;
        one.net.tx_packets = 7;
        one.net.drops = 1;
        one.block.size_hist[3] = 2;
        one.cache.got_pages = 5;
        one.add_events(&[EventCount { count: 3, enabled_ns: 2, running_ns: 1 }; hardware::COUNT]);
        let mut both = one.clone();
        both.merge(&one);
        assert_eq!(both.syscalls, [4; 14]);
        assert_eq!((both.switches, both.execs, both.runq_hist[5]), (6, 2, 6));
        let switches = (both.voluntary_switches, both.involuntary_switches, both.migrations);
        assert_eq!(switches, (4, 2, 18));
        assert_eq!((both.runq_wait_ns, both.ran_ns), (10, 14));
        assert_eq!((both.timed_syscalls, both.failed_syscalls), (10, 8));
        assert_eq!((both.syscall_hist[1], both.code[7]), (16, 12));
        assert_eq!(both.order[63], u32::MAX - 1, "the counters of a sketch wrap");
        assert_eq!((both.block.read_bytes, both.net.tx_packets), (8192, 14));
        let hardware = both.events[hardware::BRANCH_MISSES];
        assert_eq!((hardware.count, hardware.enabled_ns, hardware.running_ns), (6, 4, 2));
        assert_eq!((both.net.drops, both.block.size_hist[3], both.cache.got_pages), (2, 4, 10));
    }
}
