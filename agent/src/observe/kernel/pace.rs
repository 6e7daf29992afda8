//! Hears at once when events come faster than a hook's budget allows.
//!
//! The agent looks once a period, and a storm of a part of a second would be over before. A program
//! that finds itself too fast says so through a ring buffer, and this thread takes the hook off.

use std::{
    io,
    os::unix::net::UnixStream,
    sync::Arc,
    thread::{self, JoinHandle},
};

use aya::maps::{MapData, RingBuf};
use headroom_abi::record;
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};

use super::duty::Shared;

/// What follows when the thread is not there.
pub(super) const UNHEARD: &str = "storms are noticed once a period only";

/// The thread, until dropped.
pub(super) struct PaceListener {
    /// Closed to end the thread.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

/// Starts listening for `hooks`, in the order of their gates.
///
/// # Errors
/// When no thread or socket can be made.
pub(super) fn listen(ring: RingBuf<MapData>, hooks: Vec<Arc<Shared>>) -> io::Result<PaceListener> {
    let (stop, stopped) = UnixStream::pair()?;
    let thread = thread::Builder::new()
        .name("pace".to_owned())
        .spawn(move || follow(ring, &stopped, &hooks))?;
    Ok(PaceListener { stop: Some(stop), thread: Some(thread) })
}

fn follow(mut ring: RingBuf<MapData>, stopped: &UnixStream, hooks: &[Arc<Shared>]) {
    loop {
        let mut fds = [PollFd::new(&ring, PollFlags::IN), PollFd::new(stopped, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_n_ready) => {}
            Err(Errno::INTR) => continue,
            Err(error) => {
                tracing::warn!(%error, "{UNHEARD}");
                return;
            }
        }
        if !fds[1].revents().is_empty() {
            return;
        }
        while let Some(record) = ring.next().and_then(|item| decode(&item)) {
            if let Some(hook) = hooks.get(record.gate as usize) {
                hook.cut(record);
            }
        }
    }
}

/// `None` for a record that no program of this version writes.
fn decode(bytes: &[u8]) -> Option<record::HookAhead> {
    let (gate, epoch) = bytes.split_first_chunk::<4>()?;
    let epoch = epoch.try_into().ok()?;
    Some(record::HookAhead { gate: u32::from_ne_bytes(*gate), epoch: u32::from_ne_bytes(epoch) })
}

impl Drop for PaceListener {
    fn drop(&mut self) {
        drop(self.stop.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that hears of storms panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use headroom_abi::record::HookAhead;

    use super::decode;

    #[test]
    fn a_record_is_two_numbers_and_nothing_else() {
        let bytes: Vec<u8> = [1_u32, 7].iter().flat_map(|word| word.to_ne_bytes()).collect();
        assert_eq!(decode(&bytes), Some(HookAhead { gate: 1, epoch: 7 }));
        for n_bytes in [0, 3, 4, 7] {
            assert_eq!(decode(&bytes[..n_bytes]), None);
        }
        assert_eq!(decode(&[0; 9]), None);
    }
}
