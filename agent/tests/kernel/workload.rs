//! Workloads that do exactly what is said, in a child process.
//!
//! Between `fork` and its end a child makes raw system calls only; it allocates nothing and cannot
//! panic. What goes wrong in it becomes its exit status.

use std::{
    alloc::{self, Layout},
    ffi::CStr,
    fs::{self, File},
    io::Write,
    mem,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    ptr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::world::Group;

/// Bytes of one direct read or write.
pub(crate) const BLOCK_BYTES: usize = 4096;

/// A child that waits to be let go.
pub(crate) struct Child {
    pid: libc::pid_t,
    gate: OwnedFd,
}

/// What the scheduler accounted to a task.
pub(crate) struct Accounted {
    /// Times it was put on a CPU.
    pub(crate) switches: u64,
    /// How long it had one in total, nanoseconds.
    pub(crate) ran_ns: u64,
    /// How long it waited for that in total, nanoseconds.
    pub(crate) wait_ns: u64,
    /// Times it gave up a CPU to wait, its very end perhaps not included.
    pub(crate) voluntary: u64,
    /// Times it was taken off a CPU.
    pub(crate) involuntary: u64,
}

impl Child {
    /// Forks a child that will run `body` and end.
    pub(crate) fn fork(body: impl FnOnce()) -> Self {
        let mut ends = [0; 2];
        // SAFETY: `pipe2` fills two descriptors, which are ours alone then.
        let (inner, gate) = unsafe {
            assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC), 0);
            (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1]))
        };
        // SAFETY: the child makes raw system calls only and leaves by `_exit`.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
        if pid == 0 {
            let mut byte = 0_u8;
            // SAFETY: one byte is read into one byte.
            let n_read = unsafe { libc::read(inner.as_raw_fd(), (&raw mut byte).cast(), 1) };
            check(n_read == 1);
            body();
            end(0);
        }
        let child = Self { pid, gate };
        child.wait_until_asleep();
        child
    }

    /// Moves the child into `cgroup`, lets it run to its end, and says what the scheduler
    /// accounted to it meanwhile; `None` when this kernel does not account.
    pub(crate) fn run_in(self, cgroup: &Group) -> Option<Accounted> {
        cgroup.add(self.pid.unsigned_abs());
        self.wait_until_asleep();
        let before = self.accounted();
        self.let_go();
        // It stays readable until it is reaped.
        self.wait(libc::WEXITED | libc::WNOWAIT);
        let after = self.accounted();
        assert_eq!(self.wait(libc::WEXITED), 0, "exit status of the child");
        let (before, after) = (before?, after?);
        Some(Accounted {
            switches: after.switches - before.switches,
            ran_ns: after.ran_ns - before.ran_ns,
            wait_ns: after.wait_ns - before.wait_ns,
            voluntary: after.voluntary - before.voluntary,
            involuntary: after.involuntary - before.involuntary,
        })
    }

    /// Moves the child into `cgroup`, lets it run, and says by which signal it ended or with what
    /// status.
    pub(crate) fn end_in(self, cgroup: &Group) -> i32 {
        cgroup.add(self.pid());
        self.let_go();
        self.wait(libc::WEXITED)
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.pid.unsigned_abs()
    }

    /// Lets it run `body`.
    pub(crate) fn let_go(&self) {
        File::from(self.gate.try_clone().unwrap()).write_all(&[1]).unwrap();
    }

    /// Waits for its end; says by which signal it ended or with what status.
    pub(crate) fn reap(self) -> i32 {
        self.wait(libc::WEXITED)
    }

    /// Ends it, whatever it does.
    pub(crate) fn kill(self) {
        // SAFETY: takes no pointer; the child is not reaped yet, so that the id is still its own.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
        self.wait(libc::WEXITED);
    }

    /// Two CPUs it may run on, that where it is first; `None` when there is only one.
    pub(crate) fn two_cpus(&self) -> Option<[usize; 2]> {
        /// Position of the CPU among the fields after the command name.
        const PROCESSOR: usize = 36;
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap();
        let after_name = stat.rsplit(") ").next().unwrap_or_default();
        let here = after_name.split(' ').nth(PROCESSOR).unwrap().parse().unwrap();
        let other = allowed_cpus().into_iter().find(|cpu| *cpu != here)?;
        confine(self.pid, here);
        Some([here, other])
    }

    fn wait(&self, options: i32) -> i32 {
        // SAFETY: zeros are a valid `siginfo_t`, and the kernel fills it.
        unsafe {
            let mut info: libc::siginfo_t = mem::zeroed();
            let id = self.pid.unsigned_abs();
            assert_eq!(libc::waitid(libc::P_PID, id, &raw mut info, options), 0);
            info.si_status()
        }
    }

    /// What the scheduler accounted to it so far; `None` when this kernel does not account.
    pub(crate) fn accounted(&self) -> Option<Accounted> {
        let text = fs::read_to_string(format!("/proc/{}/schedstat", self.pid)).ok()?;
        let mut fields = text.split_whitespace().map(|field| field.parse::<u64>().ok());
        let (ran_ns, wait_ns, switches) = (fields.next()??, fields.next()??, fields.next()??);
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let count = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().parse().ok()
        };
        let voluntary = count("voluntary_ctxt_switches:")?;
        let involuntary = count("nonvoluntary_ctxt_switches:")?;
        (switches > 0).then_some(Accounted { switches, ran_ns, wait_ns, voluntary, involuntary })
    }

    /// Returns once it sleeps.
    pub(crate) fn wait_until_asleep(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap();
            let after_name = stat.rsplit(") ").next().unwrap_or_default();
            if after_name.starts_with('S') {
                return;
            }
            assert!(Instant::now() < deadline, "the child does not sleep: {stat}");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// CPUs this process may run on.
fn allowed_cpus() -> Vec<usize> {
    // SAFETY: zeros are a valid `cpu_set_t`, whose size is passed.
    unsafe {
        let mut allowed: libc::cpu_set_t = mem::zeroed();
        assert_eq!(libc::sched_getaffinity(0, size_of_val(&allowed), &raw mut allowed), 0);
        (0..libc::CPU_SETSIZE as usize).filter(|cpu| libc::CPU_ISSET(*cpu, &allowed)).collect()
    }
}

/// Confines a process to one CPU; in a child, 0 is itself.
pub(crate) fn confine(pid: libc::pid_t, cpu: usize) {
    // SAFETY: zeros are a valid `cpu_set_t`, whose size is passed.
    unsafe {
        let mut set: libc::cpu_set_t = mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        check(libc::sched_setaffinity(pid, size_of_val(&set), &raw const set) == 0);
    }
}

/// A counter that a child and this process share.
pub(crate) struct SharedCounter(*mut AtomicU64);

// SAFETY: the page is mapped until the process ends, and is used as an atomic only.
unsafe impl Sync for SharedCounter {}

impl SharedCounter {
    /// At zero.
    pub(crate) fn new() -> Self {
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let page = unsafe { libc::mmap(ptr::null_mut(), 4096, protection, flags, -1, 0) };
        assert_ne!(page, libc::MAP_FAILED);
        Self(page.cast())
    }

    /// The counter.
    pub(crate) fn get(&self) -> &AtomicU64 {
        // SAFETY: mapped, aligned and zero from the start.
        unsafe { &*self.0 }
    }
}

/// Both ends of a pipe, for a child and what it is to wait for.
pub(crate) struct Pipe(OwnedFd, OwnedFd);

impl Pipe {
    pub(crate) fn new() -> Self {
        let mut ends = [0; 2];
        // SAFETY: `pipe` fills two descriptors, which are ours alone then.
        unsafe {
            assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC), 0);
            Self(OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1]))
        }
    }

    /// Waits for a byte.
    pub(crate) fn take(&self) {
        let mut byte = 0_u8;
        // SAFETY: one byte is read into one byte.
        check(unsafe { libc::read(self.0.as_raw_fd(), (&raw mut byte).cast(), 1) } == 1);
    }

    /// Wakes whoever waits.
    pub(crate) fn give(&self) {
        // SAFETY: one byte is written.
        check(unsafe { libc::write(self.1.as_raw_fd(), [1_u8].as_ptr().cast(), 1) } == 1);
    }
}

/// A busy thread of this process on the CPU that a child is confined to.
pub(crate) struct Neighbour {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Neighbour {
    /// Confines `child` and a new busy thread to one CPU.
    pub(crate) fn on_cpu_of(child: &Child) -> Self {
        // SAFETY: zeros are a valid `cpu_set_t`, whose size is passed.
        let (first, size) = unsafe {
            let mut allowed: libc::cpu_set_t = mem::zeroed();
            let size = size_of::<libc::cpu_set_t>();
            assert_eq!(libc::sched_getaffinity(0, size, &raw mut allowed), 0);
            let mut first: libc::cpu_set_t = mem::zeroed();
            let is_allowed = |cpu: &usize| libc::CPU_ISSET(*cpu, &allowed);
            let cpu = (0..libc::CPU_SETSIZE as usize).rev().find(is_allowed).unwrap();
            libc::CPU_SET(cpu, &mut first);
            assert_eq!(libc::sched_setaffinity(child.pid, size, &raw const first), 0);
            (first, size)
        };
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            // SAFETY: the set lives as long as the call; 0 is the calling thread.
            let confined = unsafe { libc::sched_setaffinity(0, size, &raw const first) };
            assert_eq!(confined, 0);
            while !told.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            assert!(thread.join().is_ok(), "the neighbour failed");
        }
    }
}

/// A file on a block device, read and written past the page cache.
pub(crate) struct DirectFile {
    file: File,
    buffer: *mut u8,
}

impl DirectFile {
    /// Makes a file of `n_blocks` that is on its device already. `Err` says why there can be none.
    pub(crate) fn create(n_blocks: u64) -> Result<Self, String> {
        let mut named = tempfile::NamedTempFile::new().map_err(|error| error.to_string())?;
        let device = named.as_file().metadata().map_err(|error| error.to_string())?.dev();
        if libc::major(device) == 0 {
            return Err(format!("{} is not on a block device", named.path().display()));
        }
        let n_bytes = usize::try_from(n_blocks).unwrap() * BLOCK_BYTES;
        named.write_all(&vec![7; n_bytes]).and_then(|()| named.as_file().sync_all()).unwrap();
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(named.path())
            .map_err(|error| format!("O_DIRECT on {}: {error}", named.path().display()))?;
        let layout = Layout::from_size_align(BLOCK_BYTES, BLOCK_BYTES).unwrap();
        // SAFETY: the layout is not empty. Kept until the process ends.
        let buffer = unsafe { alloc::alloc_zeroed(layout) };
        assert!(!buffer.is_null());
        Ok(Self { file, buffer })
    }

    /// Reads one block; for a child.
    pub(crate) fn read(&self, block: u64) {
        let offset = block as libc::off_t * BLOCK_BYTES as libc::off_t;
        // SAFETY: the buffer holds a block.
        let n_bytes =
            unsafe { libc::pread(self.file.as_raw_fd(), self.buffer.cast(), BLOCK_BYTES, offset) };
        check(n_bytes == BLOCK_BYTES as isize);
    }

    /// Overwrites one block; for a child.
    pub(crate) fn write(&self, block: u64) {
        let offset = block as libc::off_t * BLOCK_BYTES as libc::off_t;
        // SAFETY: the buffer holds a block.
        let n_bytes =
            unsafe { libc::pwrite(self.file.as_raw_fd(), self.buffer.cast(), BLOCK_BYTES, offset) };
        check(n_bytes == BLOCK_BYTES as isize);
    }
}

/// Makes a system call that needs no arguments, or fails harmlessly on zeros; for a child.
pub(crate) fn call(number: libc::c_long) {
    // SAFETY: zeros are no pointers the kernel would write to.
    unsafe { libc::syscall(number, 0, 0, 0, 0, 0, 0) };
}

/// Sleeps for a millisecond; for a child.
pub(crate) fn sleep_briefly() {
    let time = libc::timespec { tv_sec: 0, tv_nsec: 1_000_000 };
    // SAFETY: the time lives as long as the call.
    unsafe { libc::nanosleep(&raw const time, ptr::null_mut()) };
}

/// Closes a descriptor that is not open; for a child.
pub(crate) fn close_nothing() {
    // SAFETY: no descriptor has this number.
    unsafe { libc::syscall(libc::SYS_close, -1) };
}

/// Sleeps for some nanoseconds, less than a second; for a child.
pub(crate) fn sleep_for(ns: i64) {
    let time = libc::timespec { tv_sec: 0, tv_nsec: ns };
    // SAFETY: the time lives as long as the call.
    unsafe { libc::nanosleep(&raw const time, ptr::null_mut()) };
}

/// CPU time this process has used, seconds; for a child.
pub(crate) fn cpu_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the time lives as long as the call.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1.0e9
}

/// Page faults of this process so far; for a child.
pub(crate) fn page_faults() -> u64 {
    // SAFETY: zeros are a valid `rusage`, which the kernel fills.
    unsafe {
        let mut used: libc::rusage = mem::zeroed();
        check(libc::getrusage(libc::RUSAGE_SELF, &raw mut used) == 0);
        (used.ru_minflt + used.ru_majflt).unsigned_abs()
    }
}

/// Maps so many pages of memory, touches each, and gives them back; for a child. Each touch is a
/// page fault.
pub(crate) fn touch_new_pages(n_pages: usize) {
    const PAGE_BYTES: usize = 4096;
    let n_bytes = n_pages * PAGE_BYTES;
    let (access, kind) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping anywhere, written within its bounds and taken back.
    unsafe {
        let memory = libc::mmap(ptr::null_mut(), n_bytes, access, kind, -1, 0);
        check(memory != libc::MAP_FAILED);
        libc::madvise(memory, n_bytes, libc::MADV_NOHUGEPAGE);
        for page in 0..n_pages {
            memory.cast::<u8>().add(page * PAGE_BYTES).write_volatile(1);
        }
        check(libc::munmap(memory, n_bytes) == 0);
    }
}

/// Uses the CPU for a moment; for a child.
pub(crate) fn burn() {
    for step in 0..200_000_u32 {
        std::hint::black_box(step);
    }
}

/// Sends datagrams to its own socket and takes each one in; for a child.
pub(crate) fn talk_to_oneself(n_datagrams: u64, payload: &[u8]) {
    // SAFETY: addresses and buffers live as long as the calls, with their sizes passed.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0);
        check(socket >= 0);
        let mut address: libc::sockaddr_in = mem::zeroed();
        address.sin_family = libc::AF_INET as libc::sa_family_t;
        address.sin_addr.s_addr = u32::from_ne_bytes([127, 0, 0, 1]);
        let mut size = size_of::<libc::sockaddr_in>() as libc::socklen_t;
        let named = (&raw mut address).cast::<libc::sockaddr>();
        check(libc::bind(socket, named, size) == 0);
        check(libc::getsockname(socket, named, &raw mut size) == 0);
        check(libc::connect(socket, named, size) == 0);
        let mut buffer = [0_u8; 2048];
        for _ in 0..n_datagrams {
            let n_sent = libc::send(socket, payload.as_ptr().cast(), payload.len(), 0);
            check(n_sent == payload.len() as isize);
            let n_got = libc::recv(socket, buffer.as_mut_ptr().cast(), buffer.len(), 0);
            check(n_got == payload.len() as isize);
        }
    }
}

/// Starts the program `true` and waits for its end; for a child.
pub(crate) fn run_true() {
    run(c"/bin/true");
}

/// Starts a program and waits for its end, which has to be a good one; for a child.
pub(crate) fn run(program: &CStr) {
    let arguments = [program.as_ptr(), ptr::null()];
    // SAFETY: both lists are closed by a null, and the second child leaves by `_exit`.
    unsafe {
        let pid = libc::fork();
        check(pid >= 0);
        if pid == 0 {
            libc::execve(program.as_ptr(), arguments.as_ptr(), [ptr::null()].as_ptr());
            end(9);
        }
        let mut status = 0;
        check(libc::waitpid(pid, &raw mut status, 0) == pid && status == 0);
    }
}

/// Becomes the program `true`; for a child.
pub(crate) fn become_true() -> ! {
    // SAFETY: both lists are closed by a null.
    unsafe {
        let arguments = [c"true".as_ptr(), ptr::null()];
        libc::execve(c"/bin/true".as_ptr(), arguments.as_ptr(), [ptr::null()].as_ptr());
    }
    end(9)
}

/// Takes memory until there is none; for a child.
pub(crate) fn take_memory(n_bytes: usize) {
    let (protection, flags) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping, written within its bounds.
    unsafe {
        let memory = libc::mmap(ptr::null_mut(), n_bytes, protection, flags, -1, 0);
        check(memory != libc::MAP_FAILED);
        for page in (0..n_bytes).step_by(4096) {
            memory.cast::<u8>().add(page).write_volatile(1);
        }
    }
}

/// Asks for the parent's id through the 32-bit interface; for a child.
#[cfg(target_arch = "x86_64")]
pub(crate) fn getppid_32() {
    /// Its number there; among 64-bit numbers it is `semget`.
    const GETPPID_32: u64 = 64;
    // SAFETY: the call takes no argument; the interface leaves r8 to r11 undefined.
    unsafe {
        std::arch::asm!(
            "int 0x80", inout("rax") GETPPID_32 => _,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
}

/// Ends a child whose call failed.
pub(crate) fn check(succeeded: bool) {
    if !succeeded {
        end(8);
    }
}

fn end(status: i32) -> ! {
    // SAFETY: ends the process without running anything else of it.
    unsafe { libc::_exit(status) }
}
