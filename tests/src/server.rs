//! Servers of others that tests start, as processes on ports of their own.

use std::{
    env,
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// How long a server may take until it answers: a machine may be busy, and Java is slow to begin.
const START: Duration = Duration::from_secs(180);
/// Below those that connections are made from, or one of them could take a port before the server
/// does, and the server would be asked for at another's door.
const PORTS: std::ops::Range<u16> = 20_000..30_000;

/// A server; it ends with this value.
#[derive(Debug)]
pub struct Started(Child);

impl Started {
    /// Starts `command` and lets it say nothing.
    ///
    /// # Errors
    /// When there is no such program.
    pub fn new(command: &mut Command) -> Result<Self> {
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self(quiet.spawn().with_context(|| format!("start {quiet:?}"))?))
    }

    /// Waits until it `is_ready`.
    ///
    /// # Errors
    /// When it ends, or takes too long; names `what` was waited for.
    pub fn wait_until(&mut self, what: &str, is_ready: impl Fn() -> bool) -> Result<()> {
        let begun = Instant::now();
        while !is_ready() {
            if let Some(ended) = self.0.try_wait()? {
                bail!("the server of {what} has ended: {ended}");
            }
            if begun.elapsed() > START {
                bail!("{what} is not ready after {} s", START.as_secs());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A program on the path.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// A port of this machine that no other test of this process was given and nobody listens on.
pub fn free_port() -> u16 {
    static N_GIVEN: AtomicU32 = AtomicU32::new(0);
    let width = u32::from(PORTS.end - PORTS.start);
    loop {
        let n = std::process::id().wrapping_mul(16) + N_GIVEN.fetch_add(1, Ordering::Relaxed);
        let port = u16::try_from(n % width).map_or(PORTS.start, |n| PORTS.start + n);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
