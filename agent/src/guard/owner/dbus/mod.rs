//! A connection to a D-Bus peer over a Unix socket, every call within a deadline.
//!
//! A client of its own, because it has to be small, to need no thread and no runtime, and to give
//! up at a deadline whatever the other side does; see DECISIONS.md.

pub(crate) mod wire;

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Instant,
};

use super::{error::OwnerError, socket};
use wire::{Call, Incoming, START_BYTES, Value};

/// Longest line of the handshake, bytes.
const LINE_BYTES_MAX: usize = 512;

/// Messages that are passed over while waiting for an answer; a peer that sends more is no use.
const OTHERS_MAX: usize = 1_000;

/// A connection that has authenticated.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    path: PathBuf,
    serial: u32,
}

/// Who is at the other end of a socket.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Peer {
    /// A message bus, which wants to be greeted.
    Bus,
    /// The service itself.
    Service,
}

impl Connection {
    /// Connects and authenticates as this process's user.
    ///
    /// # Errors
    /// [`OwnerError::Unreachable`] when nobody listens there, otherwise what went wrong.
    pub(crate) fn open(path: &Path, peer: Peer, deadline: Instant) -> Result<Self, OwnerError> {
        let stream = socket::connect(path, deadline)?;
        let mut connection = Self { stream, path: path.to_owned(), serial: 0 };
        connection.authenticate(deadline)?;
        if peer == Peer::Bus {
            let hello = Call {
                destination: "org.freedesktop.DBus",
                path: "/org/freedesktop/DBus",
                interface: "org.freedesktop.DBus",
                member: "Hello",
            };
            connection.call(&hello, &[], deadline)?;
        }
        Ok(connection)
    }

    /// Calls a method and waits for its answer's first value.
    ///
    /// # Errors
    /// [`OwnerError::Refused`] with the error's name when the callee says no; anything else means
    /// that the connection is of no more use and that it is not known what has come of the call.
    pub(crate) fn call(
        &mut self,
        call: &Call<'_>,
        arguments: &[Value],
        deadline: Instant,
    ) -> Result<Option<Value>, OwnerError> {
        self.serial = self.serial.wrapping_add(1).max(1);
        let what = call.member;
        self.send(&wire::encode(call, self.serial, arguments), what, deadline)?;
        for _other in 0..OTHERS_MAX {
            match self.receive(what, deadline)? {
                Incoming::Return(serial, value) if serial == self.serial => return Ok(value),
                Incoming::Error(serial, name, text) if serial == self.serial => {
                    return Err(OwnerError::Refused { what: what.to_owned(), name, text });
                }
                _ => {}
            }
        }
        Err(self.broken(what, format!("{OTHERS_MAX} messages came and none was the answer")))
    }

    /// Whether the other side has closed the connection while nobody asked anything.
    pub(crate) fn is_stale(&self) -> bool {
        let mut byte = [0; 1];
        let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
        match rustix::net::recv(&self.stream, &mut byte[..], flags) {
            Ok((_, 0)) => true,
            Ok(_) | Err(rustix::io::Errno::AGAIN) => false,
            Err(_) => true,
        }
    }

    /// "Authentication Protocol" of the specification, with the mechanism EXTERNAL: the kernel
    /// vouches for the user.
    fn authenticate(&mut self, deadline: Instant) -> Result<(), OwnerError> {
        let what = "authenticating";
        let uid = rustix::process::geteuid().as_raw().to_string();
        let hex: String = uid.bytes().map(|byte| format!("{byte:02x}")).collect();
        self.send(format!("\0AUTH EXTERNAL {hex}\r\n").as_bytes(), what, deadline)?;
        let line = self.line(deadline)?;
        if !line.starts_with("OK ") {
            let name = "authentication".to_owned();
            return Err(OwnerError::Refused { what: what.to_owned(), name, text: line });
        }
        self.send(b"BEGIN\r\n", what, deadline)
    }

    /// A line of the handshake, read byte by byte so that nothing after it is taken.
    fn line(&mut self, deadline: Instant) -> Result<String, OwnerError> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            if line.len() > LINE_BYTES_MAX {
                return Err(self.broken("authenticating", "the line has no end".to_owned()));
            }
            let mut byte = [0; 1];
            self.fill(&mut byte, "authenticating", deadline)?;
            line.push(byte[0]);
        }
        Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
    }

    fn receive(&mut self, what: &str, deadline: Instant) -> Result<Incoming, OwnerError> {
        let mut start = [0; START_BYTES];
        self.fill(&mut start, what, deadline)?;
        let length = wire::length(&start).map_err(|text| self.broken(what, text))?;
        let mut message = start.to_vec();
        message.resize(length, 0);
        self.fill(&mut message[START_BYTES..], what, deadline)?;
        wire::decode(&message).map_err(|text| self.broken(what, text))
    }

    fn send(&mut self, bytes: &[u8], what: &str, deadline: Instant) -> Result<(), OwnerError> {
        let failed = |source| OwnerError::io(&self.path, what, source);
        socket::limit(&self.stream, deadline).map_err(failed)?;
        self.stream.write_all(bytes).map_err(failed)
    }

    /// Like `read_exact`, with the deadline over all of it.
    fn fill(&mut self, buffer: &mut [u8], what: &str, deadline: Instant) -> Result<(), OwnerError> {
        let failed = |source| OwnerError::io(&self.path, what, source);
        let mut filled = 0;
        while filled < buffer.len() {
            socket::limit(&self.stream, deadline).map_err(failed)?;
            match self.stream.read(&mut buffer[filled..]) {
                Ok(0) => return Err(failed(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(())
    }

    fn broken(&self, what: &str, text: String) -> OwnerError {
        OwnerError::Broken { path: self.path.clone(), what: what.to_owned(), text }
    }
}
