//! What this process uses, as the kernel accounts it: CPU time, memory, system calls, kernel maps.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::Path,
};

/// CPU time used, seconds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct CpuTime {
    /// Of all threads.
    pub(super) process_s: f64,
    /// Of the calling thread.
    pub(super) thread_s: f64,
}

impl CpuTime {
    pub(super) fn now() -> Self {
        Self {
            process_s: clock_s(libc::CLOCK_PROCESS_CPUTIME_ID),
            thread_s: clock_s(libc::CLOCK_THREAD_CPUTIME_ID),
        }
    }
}

fn clock_s(clock: libc::clockid_t) -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the time lives as long as the call.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1.0e9
}

/// Memory that is resident, bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Resident {
    /// All of it, which is what `ps` and `top` show.
    pub(super) all_bytes: u64,
    /// Of it what the process has for itself: without pages of files, its own program among them.
    pub(super) own_bytes: u64,
}

/// `None` when the kernel does not tell.
pub(super) fn resident() -> Option<Resident> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let bytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
        Some(kibibytes * 1024)
    };
    Some(Resident { all_bytes: bytes("VmRSS:")?, own_bytes: bytes("RssAnon:")? })
}

/// Memory of every kernel map that this process holds open, bytes; each once, however often it is
/// open.
pub(super) fn map_bytes() -> Option<u64> {
    let mut maps = BTreeMap::new();
    for entry in fs::read_dir("/proc/self/fdinfo").ok()?.flatten() {
        let Ok(text) = fs::read_to_string(entry.path()) else { continue };
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().parse::<u64>().ok()
        };
        if let (Some(_), Some(id), Some(bytes)) =
            (field("map_type:"), field("map_id:"), field("memlock:"))
        {
            maps.insert(id, bytes);
        }
    }
    (!maps.is_empty()).then(|| maps.values().sum())
}

/// Counts the system calls of this thread and of those it starts from now on.
pub(super) struct CallCounter(OwnedFd);

/// Where the number of the tracepoint is, by where tracefs is mounted.
const TRACEPOINT_IDS: [&str; 2] = [
    "/sys/kernel/tracing/events/raw_syscalls/sys_enter/id",
    "/sys/kernel/debug/tracing/events/raw_syscalls/sys_enter/id",
];

/// `PERF_TYPE_TRACEPOINT` and `PERF_ATTR_SIZE_VER0` of `perf_event_open(2)`, and the bit of its flags
/// that counts for threads started later.
const TRACEPOINT: u32 = 2;
const ATTRIBUTE_BYTES: u32 = 64;
const INHERIT: u64 = 1 << 1;
const CLOSE_ON_EXEC: libc::c_ulong = 8;

/// The first version of what `perf_event_open(2)` takes.
#[repr(C)]
struct Attributes {
    kind: u32,
    n_bytes: u32,
    config: u64,
    unused: [u64; 3],
    flags: u64,
    rest: [u64; 2],
}

const _: () = assert!(size_of::<Attributes>() == ATTRIBUTE_BYTES as usize);

impl CallCounter {
    /// # Errors
    /// Where tracefs is not mounted, or the kernel does not allow it.
    pub(super) fn start() -> io::Result<Self> {
        let path = TRACEPOINT_IDS.into_iter().find(|path| Path::new(path).exists());
        let path = path
            .ok_or_else(|| io::Error::other(format!("no {}; mount tracefs", TRACEPOINT_IDS[0])))?;
        let config = fs::read_to_string(path)?.trim().parse().map_err(io::Error::other)?;
        let attributes = Attributes {
            kind: TRACEPOINT,
            n_bytes: ATTRIBUTE_BYTES,
            config,
            unused: [0; 3],
            flags: INHERIT,
            rest: [0; 2],
        };
        let (this_thread, any_cpu, no_group) = (0, -1, -1);
        // SAFETY: the description is as long as it says and lives as long as the call.
        let opened = unsafe {
            libc::syscall(
                libc::SYS_perf_event_open,
                &raw const attributes,
                this_thread,
                any_cpu,
                no_group,
                CLOSE_ON_EXEC,
            )
        };
        let opened = i32::try_from(opened).map_err(io::Error::other)?;
        if opened < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just opened it for us.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(opened) }))
    }

    /// Calls so far; `None` when the kernel does not tell.
    pub(super) fn count(&self) -> Option<u64> {
        let mut count = [0_u8; 8];
        // SAFETY: the buffer is as long as it says and lives as long as the call.
        let n_read =
            unsafe { libc::read(self.0.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
        (n_read == 8).then(|| u64::from_ne_bytes(count))
    }
}

#[cfg(test)]
mod tests {
    use super::{CallCounter, CpuTime, resident};

    #[test]
    fn this_process_uses_memory_and_time() {
        let resident = resident().unwrap();
        assert!(resident.own_bytes > 10_000 && resident.all_bytes > resident.own_bytes);
        let before = CpuTime::now();
        let mut sum = 0_u64;
        while CpuTime::now().thread_s <= before.thread_s {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(CpuTime::now().process_s > before.process_s);
    }

    #[test]
    fn every_system_call_is_counted_those_of_new_threads_too() {
        let counter = match CallCounter::start() {
            Ok(counter) => counter,
            Err(error) => {
                println!("skipped: {error}");
                return;
            }
        };
        let call = || {
            for _ in 0..100 {
                std::hint::black_box(rustix::process::getppid());
            }
        };
        let before = counter.count().unwrap();
        call();
        let own = counter.count().unwrap() - before;
        assert!((100..120).contains(&own), "{own}");
        std::thread::spawn(call).join().unwrap();
        assert!(counter.count().unwrap() - before >= 200);
    }
}
