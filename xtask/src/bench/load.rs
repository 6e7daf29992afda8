//! Small loads whose time per operation shows what the agent costs others: a system call that does
//! nothing, and a byte that goes to and fro between two threads on one CPU, which is two context
//! switches. They run pinned and, as root, with a real-time priority, so that other processes on
//! the machine do not show in the figures.

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

/// How long one measurement runs: below the share of a second that the kernel leaves to real-time
/// threads, so that it never holds them back.
const MEASUREMENT: Duration = Duration::from_millis(300);

/// Operations between two looks at the clock.
const BATCH: u32 = 512;

/// A load and what one operation of it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Load {
    /// `getppid`, the cheapest system call.
    Getppid,
    /// A byte there and back over two pipes between two threads on one CPU.
    PipeRoundTrip,
}

impl Load {
    pub(super) const ALL: [Self; 2] = [Self::Getppid, Self::PipeRoundTrip];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Getppid => "getppid",
            Self::PipeRoundTrip => "pipe round trip",
        }
    }

    /// Nanoseconds per operation, measured once on `cpu`.
    pub(super) fn measure_ns(self, cpu: usize) -> Result<f64> {
        let measured = match self {
            Self::Getppid => on_own_thread(cpu, || Ok(time_ns(getppid)))?,
            Self::PipeRoundTrip => pipe_round_trip_ns(cpu)?,
        };
        Ok(measured)
    }
}

/// Whether threads of this process may have a real-time priority; without it the figures are
/// noisier.
pub(super) fn real_time_is_allowed() -> bool {
    thread::spawn(|| become_real_time().is_ok()).join().unwrap_or(false)
}

fn getppid() {
    std::hint::black_box(rustix::process::getppid());
}

fn time_ns(mut operation: impl FnMut()) -> f64 {
    for _ in 0..BATCH {
        operation();
    }
    let begun = Instant::now();
    let mut operations = 0_u64;
    loop {
        for _ in 0..BATCH {
            operation();
        }
        operations += u64::from(BATCH);
        let elapsed = begun.elapsed();
        if elapsed >= MEASUREMENT {
            return elapsed.as_secs_f64() * 1e9 / operations as f64;
        }
    }
}

fn pipe_round_trip_ns(cpu: usize) -> Result<f64> {
    let (mut there_out, mut there_in) = io::pipe().context("make a pipe")?;
    let (mut back_out, mut back_in) = io::pipe().context("make a pipe")?;
    let echo = thread::spawn(move || {
        settle_on(cpu)?;
        // Ends when the other side closes its end.
        while pass_on(&mut there_out, &mut back_in)? {}
        Ok::<(), io::Error>(())
    });
    let measured = on_own_thread(cpu, move || {
        let mut failed = None;
        let byte = [0_u8];
        let per_trip = time_ns(|| {
            if failed.is_some() {
                return;
            }
            let trip = there_in.write_all(&byte).and_then(|()| back_out.read_exact(&mut [0_u8; 1]));
            failed = trip.err();
        });
        match failed {
            Some(error) => Err(error),
            None => Ok(per_trip),
        }
    });
    let echoed = echo.join().map_err(|_panic| anyhow!("the echo thread panicked"))?;
    let measured = measured?;
    echoed.context("echo the bytes")?;
    Ok(measured)
}

/// Moves one byte; `false` at the end of the input.
fn pass_on(from: &mut PipeReader, to: &mut PipeWriter) -> io::Result<bool> {
    let mut byte = [0_u8; 1];
    if from.read(&mut byte)? == 0 {
        return Ok(false);
    }
    to.write_all(&byte)?;
    Ok(true)
}

fn on_own_thread<T: Send + 'static>(
    cpu: usize,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T> {
    let worker = thread::spawn(move || {
        settle_on(cpu)?;
        work()
    });
    let result = worker.join().map_err(|_panic| anyhow!("the measuring thread panicked"))?;
    result.context("measure")
}

/// Pins this thread, and gives it a real-time priority where that is allowed.
fn settle_on(cpu: usize) -> io::Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set)?;
    // Without the right to it the measurement is noisier, which its spread shows.
    let _allowed = become_real_time();
    Ok(())
}

fn become_real_time() -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: the pointer is to a live value of the type the call reads; 0 is this thread.
    let outcome = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_load_gives_a_time_per_operation() {
        for load in Load::ALL {
            let time_ns = load.measure_ns(0).unwrap();
            assert!(time_ns.is_finite() && time_ns > 0.0, "{}: {time_ns}", load.name());
        }
    }
}
