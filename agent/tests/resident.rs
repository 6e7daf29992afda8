//! Large blocks that are hardly touched do not stay in memory. A process of its own: what others allocate
//! meanwhile would count.

#![cfg(target_env = "gnu")]
#![expect(clippy::unwrap_used, reason = "a test stops where something is not as it should be")]

use std::hint::black_box;

use headroom_agent::resident::return_large_blocks;

const BLOCK_BYTES: u64 = 24 << 20;

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    headroom_measure::process::resident_bytes(&status).unwrap()
}

#[test]
fn zeros_that_nobody_touches_are_not_resident_however_often_they_are_asked_for() {
    return_large_blocks();
    let before = resident_bytes();
    let block = || black_box(vec![0_u8; usize::try_from(BLOCK_BYTES).unwrap()]);
    (0..4).for_each(|_| drop(block()));
    let held = block();
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < BLOCK_BYTES / 2, "{grown} bytes more are resident");
    assert_eq!(held[1 << 20], 0);
}
