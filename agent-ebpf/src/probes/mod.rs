//! The programs, one file per signal.

mod blockio;
mod lifecycle;
mod network;
mod sched;
mod syscall;
