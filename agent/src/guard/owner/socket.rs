//! Unix sockets of owners: connecting, reading and writing, all of it before a deadline.

use std::{
    io,
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType,
    sockopt::{Timeout, set_socket_timeout},
};

use super::error::OwnerError;

/// Connects to `path` before `deadline`.
///
/// # Errors
/// [`OwnerError::Unreachable`] when there is no such socket or nobody listens on it; other errors
/// as [`OwnerError::Io`], a listener that does not accept among them.
pub(super) fn connect(path: &Path, deadline: Instant) -> Result<UnixStream, OwnerError> {
    let open = || -> io::Result<UnixStream> {
        let flags = SocketFlags::CLOEXEC;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // The time to send is also the time to wait for a place in the listener's queue.
        set_socket_timeout(&socket, Timeout::Send, Some(left(deadline)?))?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(UnixStream::from(socket))
    };
    open().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            OwnerError::Unreachable { path: path.to_owned(), source }
        }
        _ => OwnerError::io(path, "connecting", source),
    })
}

/// Lets the next read and write end at `deadline`.
///
/// # Errors
/// When it has passed.
pub(super) fn limit(stream: &UnixStream, deadline: Instant) -> io::Result<()> {
    let left = left(deadline)?;
    stream.set_read_timeout(Some(left))?;
    stream.set_write_timeout(Some(left))
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}
