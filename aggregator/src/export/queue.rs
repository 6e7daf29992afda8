//! Points that wait to be sent: bounded, the oldest dropped and counted.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, PoisonError},
    time::Duration,
};

use super::summary::Point;

/// A bounded line of batches.
#[derive(Debug)]
pub(super) struct Queue {
    batches_max: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    batches: VecDeque<Vec<Point>>,
    is_closed: bool,
}

impl Queue {
    pub(super) fn new(batches_max: usize) -> Self {
        Self { batches_max, state: Mutex::default(), changed: Condvar::new() }
    }

    /// Adds a batch; how many points were dropped for it.
    pub(super) fn push(&self, batch: Vec<Point>) -> usize {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.batches.push_back(batch);
        let over = state.batches.len().saturating_sub(self.batches_max);
        let dropped = state.batches.drain(..over).map(|batch| batch.len()).sum();
        drop(state);
        self.changed.notify_all();
        dropped
    }

    /// The next batch, waiting for one; `None` once it is closed.
    pub(super) fn pop(&self) -> Option<Vec<Point>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if state.is_closed {
                return None;
            }
            if let Some(batch) = state.batches.pop_front() {
                return Some(batch);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits for `time`, or until it is closed; whether it is.
    pub(super) fn pause(&self, time: Duration) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(state, time, |state| !state.is_closed);
        waited.unwrap_or_else(PoisonError::into_inner).0.is_closed
    }

    /// Ends everybody who waits.
    pub(super) fn close(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).is_closed = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{names::Metric, summary::Point},
        Queue,
    };

    #[test]
    fn the_oldest_goes_first_and_is_counted() {
        let batch = |value: f64, n| {
            let metric = Metric::DemandCpu;
            vec![Point { metric, labels: Vec::new(), value, t_s: 0.0, is_sent: true }; n]
        };
        let queue = Queue::new(2);
        assert_eq!([1.0, 2.0, 3.0].map(|value| queue.push(batch(value, 4))), [0, 0, 4]);
        assert_eq!(queue.pop(), Some(batch(2.0, 4)));
        queue.close();
        assert_eq!(queue.pop(), None);
        assert!(queue.pause(std::time::Duration::from_secs(600)), "a closed one does not wait");
    }
}
