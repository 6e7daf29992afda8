//! The programs, one file per signal.

mod blockio;
mod lifecycle;
mod network;
mod pagecache;
mod sched;
mod syscall;
mod tcp;
