//! Group commit: arrivals of many connections become durable with one flush.

use std::{
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Instant,
};

use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

use crate::{Arrival, History};

/// Arrivals that may wait; a full queue slows the connections down.
const WAITING_MAX: usize = 256;
/// Arrivals committed together at most.
const TOGETHER_MAX: usize = 64;

/// Why an arrival is not durable. Whoever waits must not acknowledge it.
#[derive(Clone, Debug, Error)]
pub enum CommitError {
    /// The journal refused it.
    #[error("{0}")]
    Journal(Arc<str>),
    /// The writer has ended.
    #[error("history is closed")]
    Closed,
}

/// How the writer is doing.
#[derive(Clone, Debug, Default)]
pub struct WriterHealth {
    /// Commits that worked.
    pub commits: u64,
    /// Arrivals in them.
    pub arrivals: u64,
    /// How long the last one took, seconds.
    pub last_commit_s: f64,
    /// Why the last one failed, when it did.
    pub failing: Option<Arc<str>>,
}

type Waiting = (Arrival, oneshot::Sender<Result<(), CommitError>>);

/// What the thread is asked.
#[derive(Debug)]
enum Request {
    Commit(Waiting),
    Close,
}

/// The queue in front of the journal.
#[derive(Clone, Debug)]
pub struct Writer {
    queue: mpsc::Sender<Request>,
    health: Arc<Mutex<WriterHealth>>,
}

impl Writer {
    /// Starts the thread that commits. It ends with [`Self::close`], or when every clone of the
    /// writer is gone; the returned handle then joins.
    ///
    /// # Errors
    ///
    /// When the system gives no thread.
    pub fn start(history: Arc<History>) -> std::io::Result<(Self, thread::JoinHandle<()>)> {
        let (queue, receiver) = mpsc::channel(WAITING_MAX);
        let health = Arc::new(Mutex::new(WriterHealth::default()));
        let of_thread = Arc::clone(&health);
        let thread = thread::Builder::new()
            .name("history".to_owned())
            .spawn(move || work(&history, receiver, &of_thread))?;
        Ok((Self { queue, health }, thread))
    }

    /// Hands over `arrival`; what is returned resolves once it is durable.
    ///
    /// # Errors
    ///
    /// When the writer has ended.
    pub async fn submit(
        &self,
        arrival: Arrival,
    ) -> Result<oneshot::Receiver<Result<(), CommitError>>, CommitError> {
        let (sender, receiver) = oneshot::channel();
        let request = Request::Commit((arrival, sender));
        self.queue.send(request).await.map_err(|_closed| CommitError::Closed)?;
        Ok(receiver)
    }

    /// Ends the thread once what was handed over before is durable; later arrivals are refused.
    pub async fn close(&self) {
        // A closed queue means that it has ended already.
        drop(self.queue.send(Request::Close).await);
    }

    /// How the writer is doing.
    pub fn health(&self) -> WriterHealth {
        self.health.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn work(history: &History, mut queue: mpsc::Receiver<Request>, health: &Mutex<WriterHealth>) {
    let mut is_open = true;
    while is_open && let Some(Request::Commit(first)) = queue.blocking_recv() {
        let mut together = vec![first];
        while together.len() < TOGETHER_MAX
            && let Ok(request) = queue.try_recv()
        {
            match request {
                Request::Commit(next) => together.push(next),
                Request::Close => {
                    is_open = false;
                    break;
                }
            }
        }
        let (arrivals, waiting): (Vec<_>, Vec<_>) = together.into_iter().unzip();
        let begun = Instant::now();
        let result = history
            .commit(&arrivals)
            .map_err(|error| CommitError::Journal(error.to_string().into()));
        {
            let mut health = health.lock().unwrap_or_else(PoisonError::into_inner);
            match &result {
                Ok(()) => {
                    health.commits += 1;
                    health.arrivals += arrivals.len() as u64;
                    health.last_commit_s = begun.elapsed().as_secs_f64();
                    health.failing = None;
                }
                Err(error) => {
                    tracing::error!(%error, "history cannot be written");
                    health.failing = Some(error.to_string().into());
                }
            }
        }
        for sender in waiting {
            // A connection that ended meanwhile no longer waits.
            drop(sender.send(result.clone()));
        }
    }
}
