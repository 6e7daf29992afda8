//! From a cgroup to its slot.
//!
//! Slots are handed out here, on first sight, so that no event of a new cgroup is missed; user
//! space fills the queue of free slots and hears of each one taken.

use aya_ebpf::bindings::BPF_NOEXIST;
use headroom_abi::{
    OVERFLOW_SLOT,
    record::{CgroupKey, SlotCache, SlotTaken, event},
};

use crate::maps::{CGROUP_EVENTS, FREE_SLOTS, NO_WAKEUP, SLOTS, TASK_CACHE, lose};

/// Messages about missing slots: the first on each CPU and one in this many after it.
const SLOTLESS_LOG_INTERVAL: u64 = 1 << 20;

/// Slot for task counters of the cgroup with this inode.
///
/// One entry is remembered per CPU. It is keyed by the inode because inode numbers of cgroups are
/// never reused, unlike the addresses of kernel objects.
#[inline(always)]
pub(crate) fn task_slot(inode: u64) -> u32 {
    let Some(cache) = this_cpu() else { return OVERFLOW_SLOT };
    task_slot_on(cache, inode)
}

/// What this CPU remembers. For programs that run with preemption off and never in an interrupt.
#[inline(always)]
pub(crate) fn this_cpu() -> Option<&'static mut SlotCache> {
    // SAFETY: a map value of this CPU, which no other program uses meanwhile.
    TASK_CACHE.get_ptr_mut(0).map(|cache| unsafe { &mut *cache })
}

/// As [`task_slot`], by what this CPU remembers.
#[inline(always)]
pub(crate) fn task_slot_on(cache: &mut SlotCache, inode: u64) -> u32 {
    if cache.inode == inode {
        return cache.slot as u32;
    }
    let slot = slot(inode, crate::kernel::task_hierarchy());
    // The overflow slot is not remembered: another slot may become free.
    if slot != OVERFLOW_SLOT {
        cache.inode = inode;
        cache.slot = u64::from(slot);
    }
    slot
}

/// Slot of a cgroup, taken now if it has none; [`OVERFLOW_SLOT`] when all are taken.
#[inline(never)]
pub(crate) fn slot(inode: u64, hierarchy: u32) -> u32 {
    let key = CgroupKey { inode, hierarchy, reserved: 0 };
    if let Some(slot) = find(&key) {
        return slot;
    }
    let Ok(Some(slot)) = FREE_SLOTS.pop() else {
        return slotless();
    };
    if SLOTS.insert(&key, &slot, u64::from(BPF_NOEXIST)).is_err() {
        // Another CPU was quicker, or the map is full; either way this slot goes back.
        return match (FREE_SLOTS.push(slot, 0), find(&key)) {
            (_, Some(slot)) => slot,
            (_, None) => slotless(),
        };
    }
    match CGROUP_EVENTS.reserve::<SlotTaken>(0) {
        Some(mut record) => {
            record.write(SlotTaken { kind: event::SLOT_TAKEN, slot, key });
            record.submit(NO_WAKEUP);
        }
        None => {
            lose(|losses| &mut losses.cgroup_events);
        }
    }
    slot
}

/// Slot of a cgroup, if it has one.
#[inline(always)]
pub(crate) fn find(key: &CgroupKey) -> Option<u32> {
    // SAFETY: the slot number is copied at once; entries are written whole before they are linked.
    unsafe { SLOTS.get(key) }.copied()
}

#[inline(always)]
fn slotless() -> u32 {
    let total = lose(|losses| &mut losses.slotless);
    if total % SLOTLESS_LOG_INTERVAL == 1 {
        aya_log_ebpf::warn!(
            (),
            "no free cgroup slot: {} events on this CPU are charged to none",
            total
        );
    }
    OVERFLOW_SLOT
}
