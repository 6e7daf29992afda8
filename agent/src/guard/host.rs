//! What the guard needs to know about its host, and the signals that stop it.

use std::{
    fs, io,
    sync::atomic::{AtomicBool, Ordering},
};

use super::{path::CgroupPath, policy::Capacity};

/// Set by a signal that asks the guard to stop.
static STOP: AtomicBool = AtomicBool::new(false);

/// Identity of this boot.
///
/// # Errors
/// When the kernel does not tell.
pub(super) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// What this host has.
///
/// # Errors
/// When the number of CPUs cannot be found out.
pub(super) fn capacity() -> io::Result<Capacity> {
    let path = "/sys/devices/system/cpu/online";
    let text = fs::read_to_string(path)?;
    let cpus = count_list(text.trim()).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, format!("{path} says {text:?}"))
    })?;
    let info = rustix::system::sysinfo();
    let memory_bytes = info.totalram as f64 * f64::from(info.mem_unit.max(1));
    Ok(Capacity { cpus: f64::from(cpus), memory_bytes })
}

/// How many numbers a list like `0-3,8` has.
fn count_list(text: &str) -> Option<u32> {
    text.split(',').try_fold(0u32, |count, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        count.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

/// Size of a page, bytes.
pub(super) fn page_bytes() -> u64 {
    // SAFETY: sysconf takes no pointer and has no precondition.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(bytes).ok().filter(|&bytes| bytes > 0).unwrap_or(4096)
}

/// The cgroups this process is in, in every hierarchy; empty when the kernel does not tell.
pub(super) fn own_cgroups() -> Vec<CgroupPath> {
    let text = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let path = |line: &str| CgroupPath::parse(line.splitn(3, ':').nth(2)?).ok();
    text.lines().filter_map(path).collect()
}

/// Lets SIGTERM, SIGINT, SIGHUP and SIGQUIT ask this process to stop.
///
/// # Errors
/// When the kernel does not take the handler.
pub(super) fn catch_stop_signals() -> io::Result<()> {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
        let handler: extern "C" fn(libc::c_int) = ask_to_stop;
        // SAFETY: the handler does nothing but store to an atomic, which is safe in a signal.
        let before = unsafe { libc::signal(signal, handler as libc::sighandler_t) };
        if before == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

extern "C" fn ask_to_stop(_signal: libc::c_int) {
    STOP.store(true, Ordering::SeqCst);
}

/// Whether a signal has asked this process to stop.
pub(super) fn asked_to_stop() -> bool {
    STOP.load(Ordering::SeqCst)
}

#[cfg(test)]
mod tests {
    use super::{boot_id, capacity, count_list, page_bytes};

    #[test]
    fn lists_of_cpus_are_counted() {
        assert_eq!(count_list("0"), Some(1));
        assert_eq!(count_list("0-3,8,10-11"), Some(7));
        assert_eq!(count_list("3-0"), None);
        assert_eq!(count_list("0-4294967295"), None);
        assert_eq!(count_list(""), None);
    }

    #[test]
    fn this_host_tells_what_it_has() {
        let capacity = capacity().unwrap();
        assert!(capacity.cpus >= 1.0 && capacity.memory_bytes > 1e6);
        assert_eq!(boot_id().unwrap().len(), 36);
        assert!(page_bytes().is_power_of_two());
    }
}
