//! Cumulative counters of one cgroup, summed over CPUs.

use headroom_abi::{
    histogram::BUCKETS,
    record::{self, NetCounters as NetRecord},
    size::SIZE_BUCKETS,
    syscall::SyscallClass,
};
use serde::Serialize;

/// What the kernel programs counted for one cgroup since they were attached.
///
/// All values only grow. A signal whose [`super::Topic`] is not attached stays zero here;
/// [`super::KernelProbes::has`] tells that apart from nothing having happened. Counters of a
/// workload that is several cgroups, one per hierarchy, are brought together with
/// [`KernelCounters::merge`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KernelCounters {
    /// System calls begun, by [`SyscallClass`] in order. Exact, except that calls made through the
    /// 32-bit interface are classed by their 64-bit numbers.
    pub syscalls: [u64; SyscallClass::COUNT],
    /// Times a task was put on a CPU.
    pub switches: u64,
    /// Total time runnable tasks waited for a CPU, nanoseconds, by the scheduler's own clock.
    pub runq_wait_ns: u64,
    /// Those waits by [`headroom_abi::histogram::bucket`].
    pub runq_hist: [u64; BUCKETS],
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

/// Block I/O completed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct BlockCounters {
    /// Read requests completed.
    pub read_ops: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Write requests completed.
    pub write_ops: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Requests that begin at the sector where one of the last streams of the cgroup ended, on the
    /// same device. Requests that overtake each other in the device are not in it.
    pub sequential_ops: u64,
    /// Times from request to completion, summed, nanoseconds. Over a span of time this is the
    /// average number of requests under way, by Little's law.
    pub latency_ns: u64,
    /// Time from request to completion, by [`headroom_abi::histogram::bucket`]. Requests of queues
    /// that keep no times are not in it.
    pub latency_hist: [u64; BUCKETS],
    /// Of this the time in the device. Requests of queues that do not note when the device was
    /// given them, which they do for a scheduler or throttle that asks, are not in it.
    pub device_hist: [u64; BUCKETS],
    /// Sizes of requests, by [`headroom_abi::size::size_bucket`].
    pub size_hist: [u64; SIZE_BUCKETS],
}

/// Use of the page cache, in pages, charged to the task that reads, faults or writes; the cgroup
/// that pays for the memory may be another.
///
/// Hits are `got_pages` less the pages added for reading, `added_pages - made_pages`. Readahead
/// adds pages before they are asked for, so that a single moment may show fewer hits than there
/// were, and the next one more. Pages of a file system's own metadata are added and never asked for.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct CacheCounters {
    /// Pages that reads asked for, within the file, plus pages that faults asked for: one for a
    /// fault by itself, those around it for one that maps what is there. The kernel does not tell
    /// of a fault that maps a whole huge page.
    pub got_pages: u64,
    /// Pages added.
    pub added_pages: u64,
    /// Of these the pages that a write of the same task changed right after. They need not have
    /// been brought from anywhere.
    pub made_pages: u64,
    /// Clean pages that were changed.
    pub dirtied_pages: u64,
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

/// Packets that passed the IP layer. Bytes count from the IP header on; a packet that the kernel
/// keeps together until the device, or put together on arrival, counts once.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NetCounters {
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// TCP connections opened.
    pub connects: u64,
    /// TCP connections that came in and were completed, whether or not `accept` was called yet.
    pub accepts: u64,
    /// TCP segments sent again, those that open a connection among them. One that the kernel keeps
    /// together until the device counts once.
    pub retransmits: u64,
    /// Packets dropped for a reason that the kernel states, on their way from or to a socket of
    /// IPv4 or IPv6. Before Linux 6.11 only datagrams of IPv4 are told on their way in.
    pub drops: u64,
    /// Sizes of packets, both ways, by [`headroom_abi::size::size_bucket`].
    pub size_hist: [u64; SIZE_BUCKETS],
    /// Smoothed round-trip time of the TCP connection, by [`headroom_abi::histogram::bucket`], once
    /// per packet sent and so weighted by packets.
    pub rtt_hist: [u64; BUCKETS],
}

impl Default for KernelCounters {
    fn default() -> Self {
        Self {
            syscalls: [0; SyscallClass::COUNT],
            switches: 0,
            runq_wait_ns: 0,
            runq_hist: [0; BUCKETS],
            block: BlockCounters::default(),
            cache: CacheCounters::default(),
            net: NetCounters::default(),
            execs: 0,
            exits: 0,
        }
    }
}

impl Default for BlockCounters {
    fn default() -> Self {
        Self {
            read_ops: 0,
            read_bytes: 0,
            write_ops: 0,
            write_bytes: 0,
            sequential_ops: 0,
            latency_ns: 0,
            latency_hist: [0; BUCKETS],
            device_hist: [0; BUCKETS],
            size_hist: [0; SIZE_BUCKETS],
        }
    }
}

impl Default for NetCounters {
    fn default() -> Self {
        Self {
            rx_bytes: 0,
            rx_packets: 0,
            tx_bytes: 0,
            tx_packets: 0,
            connects: 0,
            accepts: 0,
            retransmits: 0,
            drops: 0,
            size_hist: [0; SIZE_BUCKETS],
            rtt_hist: [0; BUCKETS],
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
        add(&mut self.switches, other.switches);
        add(&mut self.runq_wait_ns, other.runq_wait_ns);
        add_all(&mut self.runq_hist, &other.runq_hist);
        add(&mut self.execs, other.execs);
        add(&mut self.exits, other.exits);
        self.block.merge(&other.block);
        self.cache.merge(&other.cache);
        self.net.merge(&other.net);
    }

    pub(super) fn add_task(&mut self, record: &record::TaskCounters) {
        add_all(&mut self.syscalls, &record.syscalls);
        add(&mut self.switches, record.switches);
        add(&mut self.runq_wait_ns, record.runq_wait_ns);
        add_all(&mut self.runq_hist, &record.runq_hist);
        add(&mut self.execs, record.execs);
        add(&mut self.exits, record.exits);
    }

    pub(super) fn add_block(&mut self, record: &record::BlockCounters) {
        self.block.merge(&BlockCounters {
            read_ops: record.read_ops,
            read_bytes: record.read_bytes,
            write_ops: record.write_ops,
            write_bytes: record.write_bytes,
            sequential_ops: record.sequential_ops,
            latency_ns: record.latency_ns,
            latency_hist: record.latency_hist,
            device_hist: record.device_hist,
            size_hist: record.size_hist,
        });
    }

    pub(super) fn add_cache(&mut self, record: &record::CacheCounters) {
        self.cache.merge(&CacheCounters {
            got_pages: record.got_pages,
            added_pages: record.added_pages,
            made_pages: record.made_pages,
            dirtied_pages: record.dirtied_pages,
        });
    }

    pub(super) fn add_net(&mut self, record: &NetRecord) {
        self.net.merge(&NetCounters {
            rx_bytes: record.rx_bytes,
            rx_packets: record.rx_packets,
            tx_bytes: record.tx_bytes,
            tx_packets: record.tx_packets,
            connects: record.connects,
            accepts: record.accepts,
            retransmits: record.retransmits,
            drops: record.drops,
            size_hist: record.size_hist,
            rtt_hist: record.rtt_hist,
        });
    }
}

impl BlockCounters {
    fn merge(&mut self, other: &Self) {
        add(&mut self.read_ops, other.read_ops);
        add(&mut self.read_bytes, other.read_bytes);
        add(&mut self.write_ops, other.write_ops);
        add(&mut self.write_bytes, other.write_bytes);
        add(&mut self.sequential_ops, other.sequential_ops);
        add(&mut self.latency_ns, other.latency_ns);
        add_all(&mut self.latency_hist, &other.latency_hist);
        add_all(&mut self.device_hist, &other.device_hist);
        add_all(&mut self.size_hist, &other.size_hist);
    }
}

impl CacheCounters {
    fn merge(&mut self, other: &Self) {
        add(&mut self.got_pages, other.got_pages);
        add(&mut self.added_pages, other.added_pages);
        add(&mut self.made_pages, other.made_pages);
        add(&mut self.dirtied_pages, other.dirtied_pages);
    }
}

impl NetCounters {
    fn merge(&mut self, other: &Self) {
        add(&mut self.rx_bytes, other.rx_bytes);
        add(&mut self.rx_packets, other.rx_packets);
        add(&mut self.tx_bytes, other.tx_bytes);
        add(&mut self.tx_packets, other.tx_packets);
        add(&mut self.connects, other.connects);
        add(&mut self.accepts, other.accepts);
        add(&mut self.retransmits, other.retransmits);
        add(&mut self.drops, other.drops);
        add_all(&mut self.size_hist, &other.size_hist);
        add_all(&mut self.rtt_hist, &other.rtt_hist);
    }
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

#[cfg(test)]
mod tests {
    use headroom_abi::record::{SYSCALL_ROOM, TaskCounters};

    use super::KernelCounters;

    #[test]
    fn merging_adds_every_field() {
        let mut task = TaskCounters { switches: 3, execs: 1, ..TaskCounters::ZERO };
        task.syscalls = [2; SYSCALL_ROOM];
        task.runq_hist[5] = 3;
        let mut one = KernelCounters::default();
        one.add_task(&task);
        one.block.read_bytes = 4096;
        one.net.tx_packets = 7;
        one.net.drops = 1;
        one.block.size_hist[3] = 2;
        one.cache.got_pages = 5;
        let mut both = one.clone();
        both.merge(&one);
        assert_eq!(both.syscalls, [4; 14]);
        assert_eq!((both.switches, both.execs, both.runq_hist[5]), (6, 2, 6));
        assert_eq!((both.block.read_bytes, both.net.tx_packets), (8192, 14));
        assert_eq!((both.net.drops, both.block.size_hist[3], both.cache.got_pages), (2, 4, 10));
    }
}
