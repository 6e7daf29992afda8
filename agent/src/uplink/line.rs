//! One accepted connection, whatever carries it: over QUIC control messages share a stream and each
//! batch has its own, over TCP all share one.

use std::time::Duration;

use headroom_wire::{Hello, Message, Welcome, frame};
use quinn::{Connection, Endpoint, VarInt};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split},
    sync::mpsc,
    time::timeout,
};

use super::{
    identity::ClientTls,
    link::{ACK, LinkError, STEP},
};
use crate::reach::{self, Carrier, name_of};

/// Messages read and not yet handled.
const READ_AHEAD: usize = 256;

/// Whom to ask for a connection, and how this agent introduces itself.
#[derive(Debug)]
pub(super) struct Asking<'a> {
    /// Address of the aggregator, host:port.
    pub(super) server: &'a str,
    /// Name in its certificate; empty: the host of `server`.
    pub(super) server_name: &'a str,
    /// How long each step of connecting may take.
    pub(super) wait: Duration,
    pub(super) hello: Hello,
}

/// An accepted connection.
pub(super) struct Line {
    control: Box<dyn AsyncWrite + Send + Unpin>,
    messages: mpsc::Receiver<Result<Message, LinkError>>,
    /// What batches get their streams from; none over TCP.
    quic: Option<(Endpoint, Connection)>,
}

impl Line {
    /// Connects and says hello.
    ///
    /// # Errors
    ///
    /// When the aggregator is not reached, does not answer, or refuses.
    pub(super) async fn open(
        carrier: Carrier,
        tls: ClientTls,
        asking: Asking<'_>,
    ) -> Result<(Self, Welcome), LinkError> {
        let Asking { server, server_name, wait, hello } = asking;
        let name = name_of(server, server_name);
        match carrier {
            Carrier::Quic => {
                let (endpoint, connection) = reach::quic(server, name, tls.quic, wait).await?;
                let broken = |source| LinkError::Connection { server: server.to_owned(), source };
                let opened = timeout(STEP, connection.open_bi())
                    .await
                    .map_err(|_elapsed| LinkError::Silent { doing: "opening" })?;
                let (send, receive) = opened.map_err(broken)?;
                let quic = Some((endpoint, connection.clone()));
                let greeted = Self::greet(receive, send, quic, hello).await;
                greeted.map_err(|error| told(&connection, error))
            }
            Carrier::Tcp => {
                let stream = reach::tcp(server, name, tls.tcp, wait).await?;
                let (receive, send) = split(stream);
                Self::greet(receive, send, None, hello).await
            }
        }
    }

    async fn greet(
        mut receive: impl AsyncRead + Send + Unpin + 'static,
        send: impl AsyncWrite + Send + Unpin + 'static,
        quic: Option<(Endpoint, Connection)>,
        hello: Hello,
    ) -> Result<(Self, Welcome), LinkError> {
        let mut control: Box<dyn AsyncWrite + Send + Unpin> = Box::new(send);
        let hello = frame::encode(&Message::Hello(hello))?;
        write(&mut control, &hello).await?;
        let answer = timeout(STEP, read_frame(&mut receive))
            .await
            .map_err(|_elapsed| LinkError::Silent { doing: "greeting" })??;
        match answer {
            Message::Welcome(welcome) => {
                let messages = spawn_reader(receive);
                Ok((Self { control, messages, quic }, welcome))
            }
            Message::Refused { reason } => {
                if let Some((_, connection)) = &quic {
                    connection.close(VarInt::from_u32(0), b"refused");
                }
                Err(LinkError::Refused(reason))
            }
            other => Err(LinkError::Unexpected(other.kind())),
        }
    }

    /// What carries it.
    pub(super) fn carrier(&self) -> Carrier {
        if self.quic.is_some() { Carrier::Quic } else { Carrier::Tcp }
    }

    /// The next message of the aggregator. Safe to interrupt.
    pub(super) async fn next(&mut self) -> Result<Message, LinkError> {
        self.messages.recv().await.unwrap_or(Err(LinkError::Unexpected("the end of the stream")))
    }

    /// Writes control messages.
    pub(super) async fn send(&mut self, frames: Vec<Vec<u8>>) -> Result<(), LinkError> {
        timeout(STEP, write(&mut self.control, &frames.concat()))
            .await
            .map_err(|_elapsed| LinkError::Silent { doing: "writing" })?
    }

    /// Writes a batch and the definitions before it. Over QUIC this waits for nothing: a batch that does
    /// not get through lacks its acknowledgement, or ends with the connection, and is sent again then.
    pub(super) async fn send_batch(&mut self, frames: Vec<Vec<u8>>) -> Result<(), LinkError> {
        match &self.quic {
            Some((_, connection)) => spawn_batch(connection.clone(), frames),
            None => {
                timeout(ACK, write(&mut self.control, &frames.concat()))
                    .await
                    .map_err(|_elapsed| LinkError::Silent { doing: "writing a batch" })??;
            }
        }
        Ok(())
    }

    /// What the aggregator said when it ended the connection, where it said anything.
    pub(super) fn told(&self, error: LinkError) -> LinkError {
        match &self.quic {
            Some((_, connection)) => told(connection, error),
            None => error,
        }
    }

    /// Ends the connection, and returns when the aggregator was told.
    pub(super) async fn close(mut self, reason: &'static [u8]) {
        match self.quic {
            Some((endpoint, connection)) => {
                connection.close(VarInt::from_u32(0), reason);
                endpoint.wait_idle().await;
            }
            // Nothing can be done about a connection that is broken already.
            None => drop(self.control.shutdown().await),
        }
    }
}

/// A stream that breaks does not say why; the connection does, when the aggregator said so.
fn told(connection: &Connection, error: LinkError) -> LinkError {
    match (connection.close_reason(), error) {
        (_, error @ (LinkError::Refused(_) | LinkError::Stopping)) => error,
        (Some(quinn::ConnectionError::ApplicationClosed(close)), _) if !close.reason.is_empty() => {
            LinkError::Closed(String::from_utf8_lossy(&close.reason).into_owned())
        }
        (Some(quinn::ConnectionError::Reset), _) => LinkError::Unknown,
        (_, error) => error,
    }
}

/// Writes a batch to a stream of its own.
fn spawn_batch(connection: Connection, frames: Vec<Vec<u8>>) {
    tokio::spawn(async move {
        let written = async {
            let mut stream = connection.open_uni().await?;
            for frame in &frames {
                stream.write_all(frame).await?;
            }
            stream.finish().unwrap_or_default();
            Ok::<(), quinn::WriteError>(())
        };
        match timeout(ACK, written).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "a batch was not sent"),
            Err(_elapsed) => tracing::debug!("a batch was not sent in time"),
        }
    });
}

/// Reading is not safe to interrupt, so it has a task of its own.
fn spawn_reader(
    mut receive: impl AsyncRead + Send + Unpin + 'static,
) -> mpsc::Receiver<Result<Message, LinkError>> {
    let (sender, receiver) = mpsc::channel(READ_AHEAD);
    tokio::spawn(async move {
        loop {
            let message = tokio::select! {
                message = read_frame(&mut receive) => message,
                () = sender.closed() => return,
            };
            let ended = message.is_err();
            if sender.send(message).await.is_err() || ended {
                return;
            }
        }
    });
    receiver
}

async fn write(control: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Result<(), LinkError> {
    control.write_all(bytes).await.map_err(LinkError::Write)?;
    control.flush().await.map_err(LinkError::Write)
}

async fn read_frame(receive: &mut (impl AsyncRead + Unpin)) -> Result<Message, LinkError> {
    let mut header = [0; frame::HEADER_BYTES];
    receive.read_exact(&mut header).await.map_err(LinkError::Read)?;
    let mut body = vec![0; frame::body_bytes(header)?];
    receive.read_exact(&mut body).await.map_err(LinkError::Read)?;
    Ok(frame::decode(&body)?)
}
