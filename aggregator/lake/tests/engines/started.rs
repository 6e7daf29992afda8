//! Servers of an engine, as processes on ports of their own.

use std::{
    env,
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

/// How long a server may take until it answers: a machine may be busy, and Java is slow to begin.
const START: Duration = Duration::from_secs(180);

/// A server; it ends with this value.
pub(crate) struct Started(Child);

impl Started {
    /// Starts `command` and lets it say nothing.
    pub(crate) fn new(command: &mut Command) -> Self {
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(quiet.spawn().unwrap_or_else(|error| panic!("{quiet:?}: {error}")))
    }

    /// Waits until `url` answers with a text that `is_ready`.
    pub(crate) fn wait(&mut self, url: &str, is_ready: impl Fn(&str) -> bool) {
        let begun = Instant::now();
        loop {
            let text = ureq::get(url)
                .call()
                .ok()
                .and_then(|mut answer| answer.body_mut().read_to_string().ok());
            if text.is_some_and(|text| is_ready(&text)) {
                return;
            }
            let ended = self.0.try_wait().expect("the state of a child is known");
            assert!(ended.is_none(), "the server for {url} has ended: {ended:?}");
            assert!(begun.elapsed() < START, "{url} is not ready");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A program on the path.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// A port nobody listens on, below those that connections are made from.
pub(crate) fn free_port() -> u16 {
    static N_GIVEN: AtomicU32 = AtomicU32::new(0);
    loop {
        let n = std::process::id().wrapping_mul(16) + N_GIVEN.fetch_add(1, Ordering::Relaxed);
        let port = 10_000 + u16::try_from(n % 10_000).expect("it is below 10,000");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
