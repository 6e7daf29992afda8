//! Frames on the streams of one connection: control messages in order, and batches each on a stream of
//! its own.

use headroom_wire::{Message, frame};
use quinn::{Connection, RecvStream, SendStream};
use tokio::{sync::mpsc, task::JoinSet, time::timeout};

use super::{
    quic::{Ended, STEP, Services},
    session::Refusal,
};

/// Frames on the stream of one batch: definitions, and the batch.
pub(super) const FRAMES_MAX: usize = 8;
/// How much is read at once, so that a length that lies costs no memory.
const READ_BYTES: usize = 64 << 10;

/// Reads control messages, one by one in order. The end of the stream is told by none at all, so that
/// what came before it is dealt with first.
pub(super) async fn read_control(
    receive: &mut RecvStream,
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

/// Reads the streams of batches, each by itself, so that none waits for another.
pub(super) async fn read_batches(
    connection: &Connection,
    services: &Services,
    arrivals: &mpsc::Sender<Vec<Message>>,
) -> Result<std::convert::Infallible, Ended> {
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
            Err(Ended::Read(quinn::ReadExactError::ReadError(quinn::ReadError::Reset(_)))) => {
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
    mut send: SendStream,
    mut queue: mpsc::Receiver<Message>,
    services: &Services,
) -> Result<std::convert::Infallible, Ended> {
    while let Some(message) = queue.recv().await {
        match write(&mut send, &message, services).await {
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
    send: &mut SendStream,
    message: &Message,
    services: &Services,
) -> Result<(), Ended> {
    let bytes = frame::encode(message)?;
    timeout(STEP, send.write_all(&bytes)).await.map_err(|_elapsed| Ended::Stuck)??;
    services.metrics.sent(bytes.len());
    Ok(())
}

pub(super) async fn read_frame(
    receive: &mut RecvStream,
    services: &Services,
) -> Result<Message, Ended> {
    let mut header = [0; frame::HEADER_BYTES];
    receive.read_exact(&mut header).await.map_err(|error| match error {
        quinn::ReadExactError::FinishedEarly(0) => Ended::Goodbye,
        other => Ended::Read(other),
    })?;
    let expected = frame::body_bytes(header)?;
    let mut body = Vec::with_capacity(expected.min(READ_BYTES));
    while body.len() < expected {
        let read = body.len();
        body.resize(expected.min(read + READ_BYTES), 0);
        receive.read_exact(&mut body[read..]).await?;
    }
    services.metrics.received(frame::HEADER_BYTES + body.len());
    Ok(frame::decode(&body)?)
}
