//! Whether this machine has hardware performance counters that the kernel lets us open.
//!
//! Nothing reads them yet: what they would tell is absent, with the reason this finds.

use std::io;

/// `PERF_ATTR_SIZE_VER0`, the smallest description of an event that every kernel takes.
const ATTRIBUTE_BYTES: u32 = 64;

/// The first fields of `struct perf_event_attr`; zeros are the hardware type and CPU cycles.
#[repr(C)]
struct CyclesOfThisThread {
    kind: u32,
    n_bytes: u32,
    rest: [u64; (ATTRIBUTE_BYTES as usize - 8) / 8],
}

/// Why instructions per cycle and misses of caches and branches are absent on this machine.
pub(super) fn why_absent() -> String {
    match open_cycles() {
        Ok(()) => "this machine has hardware counters, but no kernel program reads them".to_owned(),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
            "this machine has no hardware counters (perf_event_open: no such event)".to_owned()
        }
        Err(error) => format!("hardware counters cannot be opened: perf_event_open: {error}"),
    }
}

fn open_cycles() -> io::Result<()> {
    let wanted = CyclesOfThisThread {
        kind: 0,
        n_bytes: ATTRIBUTE_BYTES,
        rest: [0; (ATTRIBUTE_BYTES as usize - 8) / 8],
    };
    let (this_thread, any_cpu, no_group, no_flags) = (0, -1, -1, 0);
    // SAFETY: the description is as long as it says and lives as long as the call. A descriptor
    // that comes back is closed at once.
    unsafe {
        let opened = libc::syscall(
            libc::SYS_perf_event_open,
            &raw const wanted,
            this_thread,
            any_cpu,
            no_group,
            no_flags,
        );
        if opened < 0 {
            return Err(io::Error::last_os_error());
        }
        libc::close(opened as libc::c_int);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{ATTRIBUTE_BYTES, CyclesOfThisThread, why_absent};

    #[test]
    fn the_reason_is_that_of_this_machine() {
        assert_eq!(size_of::<CyclesOfThisThread>(), ATTRIBUTE_BYTES as usize);
        let reason = why_absent();
        // A description the kernel does not understand would be refused as invalid or too big.
        assert!(reason.contains("hardware counters"), "{reason}");
        assert!(!reason.contains("os error 22") && !reason.contains("os error 7)"), "{reason}");
    }
}
