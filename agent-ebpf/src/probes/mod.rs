//! The programs, one file per signal.

mod blockio;
mod hardware;
mod lifecycle;
mod network;
mod oom;
mod pagecache;
mod profile;
mod sched;
mod syscall;
mod tcp;
