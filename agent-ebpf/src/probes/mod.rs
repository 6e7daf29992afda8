//! The programs, one file per signal.

mod blockio;
mod lifecycle;
mod network;
mod oom;
mod profile;
mod sched;
mod syscall;
