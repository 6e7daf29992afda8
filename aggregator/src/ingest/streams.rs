//! Frames on the streams of one connection: control messages in order, and batches each on a stream of
//! its own where the transport has streams.

use std::io;

use headroom_wire::{Message, frame};
use quinn::{Connection, RecvStream};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};

use super::{
    ended::Ended,
    server::{STEP, Services},
    session::Refusal,
};

/// Frames on the stream of one batch: definitions, and the batch.
pub(super) const FRAMES_MAX: usize = 8;
/// How much is read at once, so that a length that lies costs no memory.
const READ_BYTES: usize = 64 << 10;

/// Reads control messages, one by one in order. The end of the stream is told by none at all, so that
/// what came before it is dealt with first.
pub(super) async fn read_control(
    receive: &mut (impl AsyncRead + Unpin),
    services: &Services,
    arrivals: &mpsc::Sender<Vec<Message>>,
) -> Result<std::convert::Infallible, Ended> {
    loop {
        let messages = match read_frame(receive, services).await {
            Ok(message) => vec![message],
            Err(Ended::Goodbye) => Vec::new(),
            Err(other) => return Err(other),
        };
        let is_end = messages.is_empty();
        arrivals.send(messages).await.map_err(|_ended| Ended::Stuck)?;
        if is_end {
            return std::future::pending().await;
        }
    }
}

/// Reads the streams of batches, each by itself, so that none waits for another. Never resolves where
/// batches come with the control messages.
pub(super) async fn read_batches(
    connection: Option<&Connection>,
    services: &Services,
    arrivals: &mpsc::Sender<Vec<Message>>,
) -> Result<std::convert::Infallible, Ended> {
    let Some(connection) = connection else { return std::future::pending().await };
    let mut reading = JoinSet::new();
    loop {
        tokio::select! {
            stream = connection.accept_uni() => {
                reading.spawn(read_batch(stream?, services.clone(), arrivals.clone()));
            }
            Some(read) = reading.join_next() => read.map_err(|_broken| Ended::Stuck)??,
        }
    }
}

/// Reads one stream to its end and hands over what it carried at once: definitions and their batch.
async fn read_batch(
    mut receive: RecvStream,
    services: Services,
    arrivals: mpsc::Sender<Vec<Message>>,
) -> Result<(), Ended> {
    let mut messages = Vec::new();
    loop {
        let message = match read_frame(&mut receive, &services).await {
            Ok(message) => message,
            Err(Ended::Goodbye) => break,
            // An agent that gives a batch up sends it again, or says that it will not come.
            Err(Ended::Io(error)) if error.kind() == io::ErrorKind::ConnectionReset => {
                return Ok(());
            }
            Err(other) => return Err(other),
        };
        match &message {
            Message::Workloads(_) | Message::Batch(_) => messages.push(message),
            other => return Err(Refusal::OutOfPlace { kind: other.kind() }.into()),
        }
        if messages.len() > FRAMES_MAX {
            return Err(Ended::Crowded { frames: messages.len() });
        }
    }
    if messages.is_empty() {
        return Ok(());
    }
    arrivals.send(messages).await.map_err(|_ended| Ended::Stuck)
}

pub(super) async fn write_all(
    send: &mut (impl AsyncWrite + Unpin),
    mut queue: mpsc::Receiver<Message>,
    services: &Services,
) -> Result<std::convert::Infallible, Ended> {
    while let Some(message) = queue.recv().await {
        match write(send, &message, services).await {
            // A message that cannot be written is a fault of ours, not of the agent.
            Err(Ended::Frame(error)) => {
                tracing::error!(kind = message.kind(), %error, "cannot send");
            }
            other => other?,
        }
    }
    Err(Ended::Stuck)
}

pub(super) async fn write(
    send: &mut (impl AsyncWrite + Unpin),
    message: &Message,
    services: &Services,
) -> Result<(), Ended> {
    let bytes = frame::encode(message)?;
    let written = async {
        send.write_all(&bytes).await?;
        send.flush().await
    };
    timeout(STEP, written).await.map_err(|_elapsed| Ended::Stuck)??;
    services.metrics.sent(bytes.len());
    Ok(())
}

pub(super) async fn read_frame(
    receive: &mut (impl AsyncRead + Unpin),
    services: &Services,
) -> Result<Message, Ended> {
    let mut header = [0; frame::HEADER_BYTES];
    let first = match receive.read(&mut header).await {
        Ok(0) => return Err(Ended::Goodbye),
        Ok(bytes) => bytes,
        Err(error) => return Err(broken(error)),
    };
    receive.read_exact(&mut header[first..]).await.map_err(broken)?;
    let expected = frame::body_bytes(header)?;
    let mut body = Vec::with_capacity(expected.min(READ_BYTES));
    while body.len() < expected {
        let read = body.len();
        body.resize(expected.min(read + READ_BYTES), 0);
        receive.read_exact(&mut body[read..]).await.map_err(broken)?;
    }
    services.metrics.received(frame::HEADER_BYTES + body.len());
    Ok(frame::decode(&body)?)
}

/// An end where more was announced is the peer's doing; everything else is the network's.
fn broken(error: io::Error) -> Ended {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Ended::Truncated,
        _ => Ended::Io(error),
    }
}

/// Reads and drops what still comes, to its end.
pub(super) async fn drain(receive: &mut (impl AsyncRead + Unpin)) {
    let mut rest = [0; 4_096];
    while matches!(receive.read(&mut rest).await, Ok(bytes) if bytes > 0) {}
}
