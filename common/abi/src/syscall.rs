//! Classes of system calls, and which number belongs to which class on each architecture.

/// What a system call is for. The order is that of the telemetry schema.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
pub enum SyscallClass {
    /// Reads from a descriptor.
    Read,
    /// Writes to a descriptor.
    Write,
    /// Files, directories and descriptors.
    File,
    /// Flushes to storage.
    Sync,
    /// Waits for readiness or asynchronous I/O.
    Poll,
    /// Sockets.
    Socket,
    /// Maps, protects or advises on memory.
    Memory,
    /// Makes, runs, ends or traces processes.
    Process,
    /// Futexes, semaphores and message queues.
    Lock,
    /// Clocks, timers and sleeping.
    Time,
    /// Signals.
    Signal,
    /// Scheduling and priorities.
    Sched,
    /// Asks for or sets ids, limits and names.
    Identity,
    /// All others, and numbers the table does not know.
    Other,
}

impl SyscallClass {
    /// Every class, in order.
    pub const ALL: [Self; 14] = [
        Self::Read,
        Self::Write,
        Self::File,
        Self::Sync,
        Self::Poll,
        Self::Socket,
        Self::Memory,
        Self::Process,
        Self::Lock,
        Self::Time,
        Self::Signal,
        Self::Sched,
        Self::Identity,
        Self::Other,
    ];
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();

    /// Position in order.
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// Entries in a table from number to class; larger numbers are [`SyscallClass::Other`].
pub const TABLE_LEN: usize = 512;

/// The number that stands for calls the table has no place for: numbers past it, and calls made
/// through the 32-bit interface, whose numbers mean something else.
pub const NUMBER_UNKNOWN: usize = TABLE_LEN - 1;

/// Mask of the class in an entry of [`call_table`].
pub const CALL_CLASS: u8 = 0x0f;

/// Set in an entry of [`call_table`] for calls that wait by design.
pub const CALL_WAITS: u8 = 0x80;

/// An architecture whose system call numbers are known.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Architecture {
    /// 64-bit x86.
    X86_64,
    /// 64-bit Arm.
    Aarch64,
}

impl Architecture {
    /// The architecture this crate is compiled for; `None` if its numbers are not known.
    pub const fn current() -> Option<Self> {
        if cfg!(target_arch = "x86_64") {
            Some(Self::X86_64)
        } else if cfg!(target_arch = "aarch64") {
            Some(Self::Aarch64)
        } else {
            None
        }
    }
}

/// One system call that is not of class [`SyscallClass::Other`].
#[derive(Clone, Copy, Debug)]
pub struct Syscall {
    /// Its name in the kernel's headers.
    pub name: &'static str,
    /// Its number on 64-bit x86, if it exists there.
    pub x86_64: Option<u16>,
    /// Its number on 64-bit Arm, if it exists there.
    pub aarch64: Option<u16>,
    /// What it is for.
    pub class: SyscallClass,
}

impl Syscall {
    /// Its number on `architecture`, if it exists there.
    pub const fn number(&self, architecture: Architecture) -> Option<u16> {
        match architecture {
            Architecture::X86_64 => self.x86_64,
            Architecture::Aarch64 => self.aarch64,
        }
    }
}

/// The class of each system call number of `architecture`, as [`SyscallClass::index`].
pub const fn class_table(architecture: Architecture) -> [u8; TABLE_LEN] {
    let mut table = [SyscallClass::Other as u8; TABLE_LEN];
    let mut position = 0;
    while position < SYSCALLS.len() {
        let syscall = &SYSCALLS[position];
        if let Some(number) = syscall.number(architecture) {
            table[number as usize] = syscall.class as u8;
        }
        position += 1;
    }
    table
}

/// What the kernel programs know of each number of `architecture`: its class, and
/// [`CALL_WAITS`] for calls that wait for somebody else by design, whose duration says nothing about
/// the kernel.
pub fn call_table(architecture: Architecture) -> [u8; TABLE_LEN] {
    let mut table = class_table(architecture);
    for syscall in SYSCALLS.iter().filter(|syscall| syscall.waits()) {
        if let Some(number) = syscall.number(architecture) {
            table[usize::from(number)] |= CALL_WAITS;
        }
    }
    table
}

/// Calls that wait by design although most of their class do not. A read is not among them: it waits
/// for a pipe, and works for a file, and which it was is not known.
const WAITING: &[&str] = &[
    "wait4",
    "waitid",
    "vfork",
    "ptrace",
    "exit",
    "exit_group",
    "accept",
    "accept4",
    "connect",
    "recvfrom",
    "recvmsg",
    "recvmmsg",
    "flock",
    "sched_yield",
];

/// Calls that do not wait although most of their class do.
const PROMPT: &[&str] = &[
    "epoll_ctl",
    "epoll_ctl_old",
    "epoll_create",
    "epoll_create1",
    "eventfd",
    "eventfd2",
    "io_setup",
    "io_destroy",
    "io_cancel",
    "io_uring_setup",
    "io_uring_register",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "rt_sigpending",
    "sigaltstack",
    "kill",
    "tkill",
    "tgkill",
    "signalfd",
    "signalfd4",
];

impl Syscall {
    /// Whether it waits by design for time to pass or for somebody else to do something.
    pub fn waits(&self) -> bool {
        let is_of_waiting_class = matches!(
            self.class,
            SyscallClass::Poll | SyscallClass::Lock | SyscallClass::Time | SyscallClass::Signal
        );
        WAITING.contains(&self.name) || is_of_waiting_class && !PROMPT.contains(&self.name)
    }
}

macro_rules! number {
    (-) => {
        None
    };
    ($number:literal) => {
        Some($number)
    };
}

/// `name x86_64 aarch64;` per system call; `-` where the architecture lacks it.
macro_rules! syscalls {
    ($($class:ident { $($name:ident $x86_64:tt $aarch64:tt;)* })*) => {
        /// Every system call with a class of its own.
        pub const SYSCALLS: &[Syscall] = &[$($(Syscall {
            name: stringify!($name),
            x86_64: number!($x86_64),
            aarch64: number!($aarch64),
            class: SyscallClass::$class,
        },)*)*];
    };
}

syscalls! {
    Read {
        read 0 63; pread64 17 67; readv 19 65; sendfile 40 71; readahead 187 213; splice 275 76;
        tee 276 77; preadv 295 69; process_vm_readv 310 270; preadv2 327 286;
    }
    Write {
        write 1 64; pwrite64 18 68; writev 20 66; vmsplice 278 75; pwritev 296 70;
        process_vm_writev 311 271; copy_file_range 326 285; pwritev2 328 287;
    }
    File {
        open 2 -; close 3 57; stat 4 -; fstat 5 80; lstat 6 -; lseek 8 62; ioctl 16 29; access 21 -;
        pipe 22 -; dup 32 23; dup2 33 -; fcntl 72 25; flock 73 32; truncate 76 45; ftruncate 77 46;
        getdents 78 -; getcwd 79 17; chdir 80 49; fchdir 81 50; rename 82 -; mkdir 83 -; rmdir 84 -;
        creat 85 -; link 86 -; unlink 87 -; symlink 88 -; readlink 89 -; chmod 90 -; fchmod 91 52;
        chown 92 -; fchown 93 55; lchown 94 -; umask 95 166; utime 132 -; mknod 133 -; ustat 136 -;
        statfs 137 43; fstatfs 138 44; chroot 161 51; setxattr 188 5; lsetxattr 189 6;
        fsetxattr 190 7; getxattr 191 8; lgetxattr 192 9; fgetxattr 193 10; listxattr 194 11;
        llistxattr 195 12; flistxattr 196 13; removexattr 197 14; lremovexattr 198 15;
        fremovexattr 199 16; lookup_dcookie 212 18; getdents64 217 61; fadvise64 221 223;
        utimes 235 -; inotify_init 253 -; inotify_add_watch 254 27; inotify_rm_watch 255 28;
        openat 257 56; mkdirat 258 34; mknodat 259 33; fchownat 260 54; futimesat 261 -;
        newfstatat 262 79; unlinkat 263 35; renameat 264 38; linkat 265 37; symlinkat 266 36;
        readlinkat 267 78; fchmodat 268 53; faccessat 269 48; utimensat 280 88; fallocate 285 47;
        dup3 292 24; pipe2 293 59; inotify_init1 294 26; fanotify_init 300 262;
        fanotify_mark 301 263; name_to_handle_at 303 264; open_by_handle_at 304 265;
        renameat2 316 276; memfd_create 319 279; statx 332 291; close_range 436 436;
        openat2 437 437; faccessat2 439 439; memfd_secret 447 447; cachestat 451 451;
        fchmodat2 452 452; setxattrat 463 463; getxattrat 464 464; listxattrat 465 465;
        removexattrat 466 466; file_getattr 468 468; file_setattr 469 469;
    }
    Sync {
        msync 26 227; fsync 74 82; fdatasync 75 83; sync 162 81; sync_file_range 277 84;
        syncfs 306 267;
    }
    Poll {
        poll 7 -; select 23 -; io_setup 206 0; io_destroy 207 1; io_getevents 208 4;
        io_submit 209 2; io_cancel 210 3; epoll_create 213 -; epoll_ctl_old 214 -;
        epoll_wait_old 215 -; epoll_wait 232 -; epoll_ctl 233 21; pselect6 270 72; ppoll 271 73;
        epoll_pwait 281 22; eventfd 284 -; eventfd2 290 19; epoll_create1 291 20;
        io_pgetevents 333 292; io_uring_setup 425 425; io_uring_enter 426 426;
        io_uring_register 427 427; epoll_pwait2 441 441;
    }
    Socket {
        socket 41 198; connect 42 203; accept 43 202; sendto 44 206; recvfrom 45 207;
        sendmsg 46 211; recvmsg 47 212; shutdown 48 210; bind 49 200; listen 50 201;
        getsockname 51 204; getpeername 52 205; socketpair 53 199; setsockopt 54 208;
        getsockopt 55 209; accept4 288 242; recvmmsg 299 243; sendmmsg 307 269;
    }
    Memory {
        mmap 9 222; mprotect 10 226; munmap 11 215; brk 12 214; mremap 25 216; mincore 27 232;
        madvise 28 233; shmget 29 194; shmat 30 196; shmctl 31 195; shmdt 67 197; mlock 149 228;
        munlock 150 229; mlockall 151 230; munlockall 152 231; remap_file_pages 216 234;
        mbind 237 235; set_mempolicy 238 237; get_mempolicy 239 236; migrate_pages 256 238;
        move_pages 279 239; userfaultfd 323 282; mlock2 325 284; pkey_mprotect 329 288;
        pkey_alloc 330 289; pkey_free 331 290; process_madvise 440 440; process_mrelease 448 448;
        set_mempolicy_home_node 450 450; map_shadow_stack 453 453; mseal 462 462;
    }
    Process {
        clone 56 220; fork 57 -; vfork 58 -; execve 59 221; exit 60 93; wait4 61 260;
        ptrace 101 117; personality 135 92; prctl 157 167; arch_prctl 158 -; set_tid_address 218 96;
        exit_group 231 94; waitid 247 95; unshare 272 97; setns 308 268; kcmp 312 272;
        execveat 322 281; pidfd_open 434 434; clone3 435 435; pidfd_getfd 438 438;
    }
    Lock {
        semget 64 190; semop 65 193; semctl 66 191; msgget 68 186; msgsnd 69 189; msgrcv 70 188;
        msgctl 71 187; futex 202 98; semtimedop 220 192; mq_open 240 180; mq_unlink 241 181;
        mq_timedsend 242 182; mq_timedreceive 243 183; mq_notify 244 184; mq_getsetattr 245 185;
        set_robust_list 273 99; get_robust_list 274 100; membarrier 324 283; rseq 334 293;
        futex_waitv 449 449; futex_wake 454 454; futex_wait 455 455; futex_requeue 456 456;
    }
    Time {
        nanosleep 35 101; getitimer 36 102; alarm 37 -; setitimer 38 103; gettimeofday 96 169;
        times 100 153; adjtimex 159 171; settimeofday 164 170; time 201 -; timer_create 222 107;
        timer_settime 223 110; timer_gettime 224 108; timer_getoverrun 225 109;
        timer_delete 226 111; clock_settime 227 112; clock_gettime 228 113; clock_getres 229 114;
        clock_nanosleep 230 115; timerfd_create 283 85; timerfd_settime 286 86;
        timerfd_gettime 287 87; clock_adjtime 305 266;
    }
    Signal {
        rt_sigaction 13 134; rt_sigprocmask 14 135; rt_sigreturn 15 139; pause 34 -; kill 62 129;
        rt_sigpending 127 136; rt_sigtimedwait 128 137; rt_sigqueueinfo 129 138;
        rt_sigsuspend 130 133; sigaltstack 131 132; tkill 200 130; restart_syscall 219 128;
        tgkill 234 131; signalfd 282 -; signalfd4 289 74; rt_tgsigqueueinfo 297 240;
        pidfd_send_signal 424 424;
    }
    Sched {
        sched_yield 24 124; getpriority 140 141; setpriority 141 140; sched_setparam 142 118;
        sched_getparam 143 121; sched_setscheduler 144 119; sched_getscheduler 145 120;
        sched_get_priority_max 146 125; sched_get_priority_min 147 126;
        sched_rr_get_interval 148 127; sched_setaffinity 203 122; sched_getaffinity 204 123;
        ioprio_set 251 30; ioprio_get 252 31; getcpu 309 168; sched_setattr 314 274;
        sched_getattr 315 275;
    }
    Identity {
        getpid 39 172; uname 63 160; getrlimit 97 163; getrusage 98 165; sysinfo 99 179;
        getuid 102 174; getgid 104 176; setuid 105 146; setgid 106 144; geteuid 107 175;
        getegid 108 177; setpgid 109 154; getppid 110 173; getpgrp 111 -; setsid 112 157;
        setreuid 113 145; setregid 114 143; getgroups 115 158; setgroups 116 159; setresuid 117 147;
        getresuid 118 148; setresgid 119 149; getresgid 120 150; getpgid 121 155; setfsuid 122 151;
        setfsgid 123 152; getsid 124 156; capget 125 90; capset 126 91; setrlimit 160 164;
        sethostname 170 161; setdomainname 171 162; gettid 186 178; prlimit64 302 261;
    }
}

#[cfg(test)]
mod tests {
    use super::{
        Architecture, CALL_CLASS, CALL_WAITS, NUMBER_UNKNOWN, PROMPT, SYSCALLS, SyscallClass,
        TABLE_LEN, WAITING, call_table, class_table,
    };

    const ARCHITECTURES: [Architecture; 2] = [Architecture::X86_64, Architecture::Aarch64];

    #[test]
    fn classes_are_numbered_in_order() {
        for (index, class) in SyscallClass::ALL.iter().enumerate() {
            assert_eq!(class.index(), index);
        }
    }

    #[test]
    fn no_number_or_name_is_listed_twice() {
        for (position, syscall) in SYSCALLS.iter().enumerate() {
            for other in &SYSCALLS[position + 1..] {
                assert_ne!(syscall.name, other.name);
                for architecture in ARCHITECTURES {
                    let number = syscall.number(architecture);
                    assert!(
                        number.is_none() || number != other.number(architecture),
                        "{} and {} share a number",
                        syscall.name,
                        other.name
                    );
                }
            }
        }
    }

    #[test]
    fn tables_hold_every_listed_call_and_only_valid_classes() {
        for architecture in ARCHITECTURES {
            let table = class_table(architecture);
            for syscall in SYSCALLS {
                if let Some(number) = syscall.number(architecture) {
                    assert_eq!(usize::from(table[usize::from(number)]), syscall.class.index());
                }
            }
            assert!(table.iter().all(|&class| usize::from(class) < SyscallClass::COUNT));
            assert_eq!(usize::from(table[TABLE_LEN - 1]), SyscallClass::Other.index());
        }
    }

    #[test]
    fn exceptions_are_listed_calls_and_flags_leave_the_class_alone() {
        for name in WAITING.iter().chain(PROMPT) {
            assert!(SYSCALLS.iter().any(|syscall| syscall.name == *name), "{name}");
        }
        assert!(SyscallClass::COUNT <= usize::from(CALL_CLASS) + 1);
        for architecture in ARCHITECTURES {
            let (calls, classes) = (call_table(architecture), class_table(architecture));
            assert!(calls.iter().zip(classes).all(|(call, class)| call & CALL_CLASS == class));
        }
        let x86_64 = call_table(Architecture::X86_64);
        let waits = [(0, false), (2, false), (35, true), (61, true), (202, true), (233, false)];
        for (number, expected) in waits {
            assert_eq!(x86_64[number] & CALL_WAITS != 0, expected, "{number}");
        }
        assert_eq!(x86_64[NUMBER_UNKNOWN], SyscallClass::Other as u8);
    }

    #[test]
    fn well_known_numbers_have_the_expected_class() {
        let x86_64 = class_table(Architecture::X86_64);
        let aarch64 = class_table(Architecture::Aarch64);
        for (x86_64_number, aarch64_number, class) in [
            (0, 63, SyscallClass::Read),
            (1, 64, SyscallClass::Write),
            (110, 173, SyscallClass::Identity),
            (202, 98, SyscallClass::Lock),
            (321, 280, SyscallClass::Other),
        ] {
            assert_eq!(usize::from(x86_64[x86_64_number]), class.index());
            assert_eq!(usize::from(aarch64[aarch64_number]), class.index());
        }
    }
}
