//! The other end of the guard's socket, for the agent's loop and for tools.

use std::{
    io,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType,
    sockopt::{Timeout, set_socket_timeout},
};
use thiserror::Error;

use super::protocol::{self, FrameError, Request, Response};

/// How long the guard may take to accept, to take a request, and to answer it. Writing a limit may
/// have to wait for the kernel to reclaim memory, and for an owner as long as `owners.timeout_ms`
/// lets it, twice.
const TIMEOUT: Duration = Duration::from_secs(25);

/// Why a request got no answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// No guard listens there, or it does not accept.
    #[error("connecting to the guard at {}: {source}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The connection failed in between. Whether the request was carried out is not known; asking
    /// again does no harm.
    #[error("talking to the guard at {}: {source}", path.display())]
    Frame {
        /// The socket.
        path: PathBuf,
        /// What went wrong.
        source: FrameError,
    },
}

/// A connection to the guard, made again on the next request after it has failed.
#[derive(Debug)]
pub struct GuardClient {
    path: PathBuf,
    stream: Option<UnixStream>,
    timeout: Duration,
}

impl GuardClient {
    /// Connects.
    ///
    /// # Errors
    /// When no guard accepts within some seconds.
    pub fn connect(socket: &Path) -> Result<Self, ClientError> {
        let mut client = Self { path: socket.to_owned(), stream: None, timeout: TIMEOUT };
        client.stream = Some(client.open()?);
        Ok(client)
    }

    /// A client that connects on its first request.
    pub fn lazy(socket: &Path) -> Self {
        Self { path: socket.to_owned(), stream: None, timeout: TIMEOUT }
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// When there is none. The next request connects anew.
    pub fn request(&mut self, request: &Request) -> Result<Response, ClientError> {
        if let Some(stream) = self.stream.take() {
            match self.exchange(stream, request) {
                // The guard closes idle connections and may have been restarted. Every request
                // says what is to be, so that asking twice is the same as asking once.
                Err(ClientError::Frame { source, .. }) if is_closed(&source) => {}
                other => return other,
            }
        }
        let stream = self.open()?;
        self.exchange(stream, request)
    }

    fn exchange(
        &mut self,
        mut stream: UnixStream,
        request: &Request,
    ) -> Result<Response, ClientError> {
        let mut exchange = || {
            protocol::write_frame(&mut stream, request)?;
            protocol::read_frame(&mut stream)
        };
        let response =
            exchange().map_err(|source| ClientError::Frame { path: self.path.clone(), source })?;
        self.stream = Some(stream);
        Ok(response)
    }

    fn open(&self) -> Result<UnixStream, ClientError> {
        let open = || -> io::Result<UnixStream> {
            let socket = rustix::net::socket_with(
                AddressFamily::UNIX,
                SocketType::STREAM,
                SocketFlags::CLOEXEC,
                None,
            )?;
            // Also bounds the time to connect while the guard's backlog is full.
            set_socket_timeout(&socket, Timeout::Send, Some(self.timeout))?;
            set_socket_timeout(&socket, Timeout::Recv, Some(self.timeout))?;
            rustix::net::connect(&socket, &SocketAddrUnix::new(&self.path)?)?;
            Ok(UnixStream::from(socket))
        };
        open().map_err(|source| ClientError::Connect { path: self.path.clone(), source })
    }
}

fn is_closed(error: &FrameError) -> bool {
    match error {
        FrameError::Closed => true,
        FrameError::Io(error) => {
            matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
        }
        _ => false,
    }
}
