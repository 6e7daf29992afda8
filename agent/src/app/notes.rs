//! What workloads say of themselves, read by a thread of its own: a file on a disk that is slow, or
//! gone, never holds a period up.

use std::{
    collections::HashSet,
    io,
    sync::mpsc::{Receiver, Sender, channel},
    thread,
    time::{Duration, Instant},
};

use crate::observe::annotations::Notes;

/// How long new workloads are waited for in one period, all together. Most files are read in a
/// fraction of a millisecond.
const PATIENCE: Duration = Duration::from_millis(20);

/// What the workload at a path says.
type Told = (String, Notes);

/// Asks what workloads say of themselves.
#[derive(Debug)]
pub(super) struct NotesReader {
    asked: Sender<String>,
    told: Receiver<Told>,
    /// Asked for, and not told yet.
    waiting: HashSet<String>,
    patience: Duration,
}

impl NotesReader {
    /// One that reads by `read`, which may take as long as it likes.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(super) fn start(read: impl Fn(&str) -> Notes + Send + 'static) -> io::Result<Self> {
        let (asked, to_read) = channel::<String>();
        let (tell, told) = channel();
        let work = move || {
            for path in to_read {
                let notes = read(&path);
                if tell.send((path, notes)).is_err() {
                    break;
                }
            }
        };
        thread::Builder::new().name("annotations".to_owned()).spawn(work)?;
        Ok(Self { asked, told, waiting: HashSet::new(), patience: PATIENCE })
    }

    /// A period has begun: returns what was told since the last. While anything asked before is not told,
    /// nobody is waited for: what keeps the thread keeps it from the rest, too.
    pub(super) fn begin(&mut self) -> Vec<Told> {
        let told: Vec<Told> = self.told.try_iter().collect();
        self.hear(&told);
        self.patience = if self.waiting.is_empty() { PATIENCE } else { Duration::ZERO };
        told
    }

    /// Asks what the workload at `path` says, unless that is under way.
    pub(super) fn ask(&mut self, path: &str) {
        if self.waiting.contains(path) {
            return;
        }
        match self.asked.send(path.to_owned()) {
            Ok(()) => {
                self.waiting.insert(path.to_owned());
            }
            Err(_ended) => tracing::error!("the thread that reads annotations has ended"),
        }
    }

    /// Waits for what is said at `path` as long as the period has patience; returns all that was told
    /// meanwhile.
    pub(super) fn wait_for(&mut self, path: &str) -> Vec<Told> {
        let mut told = Vec::new();
        while self.waiting.contains(path) {
            let began = Instant::now();
            let Ok(one) = self.told.recv_timeout(self.patience) else {
                self.patience = Duration::ZERO;
                break;
            };
            self.patience = self.patience.saturating_sub(began.elapsed());
            self.hear(std::slice::from_ref(&one));
            told.push(one);
        }
        told
    }

    /// Whether anything asked is not told yet.
    #[cfg(test)]
    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    fn hear(&mut self, told: &[Told]) {
        for (path, _) in told {
            self.waiting.remove(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc::channel, thread};

    use super::{Notes, NotesReader};

    #[test]
    fn a_file_that_is_not_read_is_waited_for_once_and_told_when_it_is() {
        let (go, until) = channel::<()>();
        let read = move |path: &str| {
            // Held up until the test lets it go.
            let _ended = until.recv();
            Notes::from([("mode".to_owned(), path.to_owned())])
        };
        let mut reader = NotesReader::start(read).unwrap();
        reader.ask("/a");
        reader.ask("/a");
        assert!(reader.wait_for("/a").is_empty());
        assert!(reader.patience.is_zero(), "no other is waited for in this period");
        assert!(reader.begin().is_empty());
        assert!(reader.patience.is_zero(), "nor in the next");
        drop(go);
        while reader.waiting.contains("/a") {
            thread::yield_now();
            let told = reader.begin();
            assert!(told.iter().all(|(path, notes)| path == "/a" && notes["mode"] == "/a"));
            assert!(told.len() <= 1, "asked twice, read once");
        }
        reader.begin();
        reader.ask("/b");
        let mut told = reader.wait_for("/b");
        // On a machine that is busy the patience may have been too short.
        while reader.waiting.contains("/b") {
            thread::yield_now();
            told.extend(reader.begin());
        }
        assert_eq!(told.len(), 1);
    }
}
