//! Small loads whose time per operation shows what the agent costs others: a system call that does
//! nothing, a byte that goes to and fro between two threads on one CPU, which is two context
//! switches, and the same over TCP. They run pinned and, as root, with a real-time priority, so
//! that other processes on the machine do not show in the figures.

use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use thiserror::Error;

use crate::burst::{Burst, Stretch};

/// How long one measurement runs: below the share of a second that the kernel leaves to real-time
/// threads, so that it never holds them back.
const MEASUREMENT: Duration = Duration::from_millis(300);

/// Operations between two looks at the clock.
const BATCH: u32 = 128;

/// Shortest stretch of a measurement that is told apart.
const STRETCH: Duration = Duration::from_millis(1);

/// Why a load could not be measured.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The system refused something the load needs.
    #[error("{operation}: {source}")]
    System {
        /// What was being done.
        operation: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A thread of the measurement ended without a result.
    #[error("the {0} thread panicked")]
    Panicked(&'static str),
}

fn system(operation: &'static str) -> impl Fn(io::Error) -> LoadError {
    move |source| LoadError::System { operation, source }
}

/// A load and what one operation of it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Load {
    /// `getppid`, the cheapest system call.
    Getppid,
    /// A byte there and back over two pipes between two threads on one CPU.
    PipeRoundTrip,
    /// A byte there and back over a TCP connection on the loopback device, two threads on one CPU.
    TcpRoundTrip,
}

impl Load {
    /// Every load.
    pub const ALL: [Self; 3] = [Self::Getppid, Self::PipeRoundTrip, Self::TcpRoundTrip];

    /// Its name in figures.
    pub fn name(self) -> &'static str {
        match self {
            Self::Getppid => "getppid",
            Self::PipeRoundTrip => "pipe round trip",
            Self::TcpRoundTrip => "TCP round trip",
        }
    }

    /// Nanoseconds per operation, measured once on `cpu`.
    ///
    /// # Errors
    /// When the CPU cannot be had, or a pipe or connection breaks.
    pub fn measure_ns(self, cpu: usize) -> Result<f64, LoadError> {
        Ok(self.burst(cpu)?.mean_ns())
    }

    /// One run on `cpu`, from its first operation on.
    ///
    /// # Errors
    /// When the CPU cannot be had, or a pipe or connection breaks.
    pub fn burst(self, cpu: usize) -> Result<Burst, LoadError> {
        match self {
            Self::Getppid => on_own_thread(cpu, || Ok(time(getppid))),
            Self::PipeRoundTrip => {
                let (there_out, there_in) = io::pipe().map_err(system("make a pipe"))?;
                let (back_out, back_in) = io::pipe().map_err(system("make a pipe"))?;
                round_trips(cpu, (back_out, there_in), (there_out, back_in))
            }
            Self::TcpRoundTrip => {
                let (near, far) = connection().map_err(system("make a TCP connection"))?;
                let copy = |stream: &TcpStream| stream.try_clone().map_err(system("copy a socket"));
                let (near_out, far_out) = (copy(&near)?, copy(&far)?);
                round_trips(cpu, (near_out, near), (far_out, far))
            }
        }
    }
}

/// Both ends of a connection over the loopback device that sends at once.
fn connection() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    let (far, _address) = listener.accept()?;
    for stream in [&near, &far] {
        stream.set_nodelay(true)?;
    }
    Ok((near, far))
}

/// Whether threads of this process may have a real-time priority; without it the figures are
/// noisier.
pub fn real_time_is_allowed() -> bool {
    thread::spawn(|| become_real_time().is_ok()).join().unwrap_or(false)
}

fn getppid() {
    std::hint::black_box(rustix::process::getppid());
}

fn time(mut operation: impl FnMut()) -> Burst {
    let begun = Instant::now();
    let mut stretches = Vec::with_capacity(512);
    let (mut since, mut operations) = (begun, 0);
    loop {
        for _ in 0..BATCH {
            operation();
        }
        operations += u64::from(BATCH);
        let now = Instant::now();
        let length = now - since;
        if length >= STRETCH {
            stretches.push(Stretch { length, operations });
            (since, operations) = (now, 0);
        }
        if now - begun >= MEASUREMENT {
            return Burst::new(stretches);
        }
    }
}

/// Times a byte there and back. `near` is what this side reads from and writes to, `far` the same
/// of the other side.
fn round_trips<R, W>(cpu: usize, near: (R, W), far: (R, W)) -> Result<Burst, LoadError>
where
    R: Read + Send + 'static,
    W: Write + Send + 'static,
{
    let (mut far_out, mut far_in) = far;
    let echo = thread::spawn(move || {
        settle_on(cpu)?;
        // Ends when the other side closes its end.
        while pass_on(&mut far_out, &mut far_in)? {}
        Ok::<(), io::Error>(())
    });
    let (mut near_out, mut near_in) = near;
    let measured = on_own_thread(cpu, move || {
        let mut failed = None;
        let byte = [0_u8];
        let trips = time(|| {
            if failed.is_some() {
                return;
            }
            let trip = near_in.write_all(&byte).and_then(|()| near_out.read_exact(&mut [0_u8; 1]));
            failed = trip.err();
        });
        match failed {
            Some(error) => Err(error),
            None => Ok(trips),
        }
    });
    let echoed = echo.join().map_err(|_panic| LoadError::Panicked("echo"))?;
    let measured = measured?;
    echoed.map_err(system("echo the bytes"))?;
    Ok(measured)
}

/// Moves one byte; `false` at the end of the input.
fn pass_on(from: &mut impl Read, to: &mut impl Write) -> io::Result<bool> {
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
) -> Result<T, LoadError> {
    let worker = thread::spawn(move || {
        settle_on(cpu)?;
        work()
    });
    let result = worker.join().map_err(|_panic| LoadError::Panicked("measuring"))?;
    result.map_err(system("measure"))
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
