//! A socket between agent and guard that carries every byte, and kills the agent at one place of one
//! exchange. Neither side knows of it, so that both are the programs as they are shipped.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use headroom_agent::guard::{Request, Response, protocol};
use headroom_allocate::Limit;
use rustix::process::{Pid, Signal, kill_process};

use crate::PATIENCE;

/// What an exchange is about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum About {
    /// A change.
    Change,
    /// The same limit for another lease.
    Renewal,
    /// The end of the lease.
    Release,
}

/// A place in an exchange, in their order.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Place {
    /// The agent has written its request; the guard has none of it.
    Asked,
    /// The guard has half of the request.
    HalfAsked,
    /// The guard has the request, and nobody is there to take its answer.
    Unheard,
    /// The guard has answered; the agent has none of it.
    Done,
    /// The agent has half of the answer.
    HalfAnswered,
    /// The agent has the answer.
    Answered,
    /// The agent has written down what came of it.
    WrittenDown,
}

impl Place {
    /// All of them.
    pub(crate) const ALL: [Self; 7] = [
        Self::Asked,
        Self::HalfAsked,
        Self::Unheard,
        Self::Done,
        Self::HalfAnswered,
        Self::Answered,
        Self::WrittenDown,
    ];
}

/// Where an agent is to die.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Death {
    /// In an exchange about this.
    pub(crate) about: About,
    /// At this place of it.
    pub(crate) place: Place,
}

/// Who dies, and where; taken by the connection that gets there.
#[derive(Clone, Copy, Debug)]
struct Sentence {
    agent: Pid,
    death: Death,
}

/// What all connections know.
#[derive(Debug)]
struct Shared {
    guard: PathBuf,
    audit: PathBuf,
    sentence: Mutex<Option<Sentence>>,
    carried_out: Mutex<Sender<Death>>,
}

/// The relay; its threads end with the test's process.
#[derive(Debug)]
pub(crate) struct Relay {
    shared: Arc<Shared>,
    carried_out: Receiver<Death>,
}

impl Relay {
    /// Listens at `socket` and carries what comes to `guard`. `audit` is where the agent writes down
    /// what came of its requests.
    pub(crate) fn start(socket: &Path, guard: PathBuf, audit: PathBuf) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        let (sender, carried_out) = channel();
        let (sentence, sender) = (Mutex::new(None), Mutex::new(sender));
        let shared = Arc::new(Shared { guard, audit, sentence, carried_out: sender });
        let of_thread = Arc::clone(&shared);
        thread::spawn(move || {
            for agent in listener.incoming().flatten() {
                let shared = Arc::clone(&of_thread);
                // A connection ends with either side, which is no fault.
                thread::spawn(move || drop(shared.carry(agent)));
            }
        });
        Self { shared, carried_out }
    }

    /// From now on the agent `pid` dies where `death` says.
    pub(crate) fn sentence(&self, pid: u32, death: Death) {
        let agent = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        *self.shared.sentence.lock().unwrap() = Some(Sentence { agent, death });
    }

    /// Whether it has died where it was to.
    pub(crate) fn is_carried_out(&self) -> bool {
        self.carried_out.try_recv().is_ok()
    }
}

impl Shared {
    fn carry(&self, mut agent: UnixStream) -> io::Result<()> {
        let mut guard = UnixStream::connect(&self.guard)?;
        let mut in_force = None;
        loop {
            let request = frame(&mut agent)?;
            let about = about(&request, in_force);
            if self.kill_at(about, Place::Asked) {
                return Ok(());
            }
            let half = request.len() / 2;
            guard.write_all(&request[..half])?;
            if self.kill_at(about, Place::HalfAsked) {
                return Ok(());
            }
            guard.write_all(&request[half..])?;
            if self.kill_at(about, Place::Unheard) {
                return Ok(());
            }
            let answer = frame(&mut guard)?;
            if self.kill_at(about, Place::Done) {
                return Ok(());
            }
            if let Ok(Response::Applied(applied)) = protocol::decode(&answer[4..]) {
                in_force = Some(applied.applied);
            }
            let half = answer.len() / 2;
            let n_written = self.n_written();
            agent.write_all(&answer[..half])?;
            if self.kill_at(about, Place::HalfAnswered) {
                return Ok(());
            }
            agent.write_all(&answer[half..])?;
            if self.kill_at(about, Place::Answered) || self.kill_once_written(about, n_written) {
                return Ok(());
            }
        }
    }

    /// Kills the agent if this is where it is to die.
    fn kill_at(&self, about: Option<About>, place: Place) -> bool {
        let mut sentence = self.sentence.lock().unwrap_or_else(PoisonError::into_inner);
        let due = sentence.take_if(|sentence| {
            Some(sentence.death.about) == about && sentence.death.place == place
        });
        let Some(Sentence { agent, death }) = due else { return false };
        kill_process(agent, Signal::KILL).unwrap();
        self.carried_out.lock().unwrap().send(death).unwrap();
        true
    }

    /// The same once the agent has written down more than `n_written` acts.
    fn kill_once_written(&self, about: Option<About>, n_written: usize) -> bool {
        let is_due = {
            let sentence = self.sentence.lock().unwrap_or_else(PoisonError::into_inner);
            sentence.is_some_and(|sentence| {
                Some(sentence.death.about) == about && sentence.death.place == Place::WrittenDown
            })
        };
        if !is_due {
            return false;
        }
        let began = Instant::now();
        while self.n_written() <= n_written {
            if began.elapsed() > PATIENCE {
                // The test tells what it waits for.
                return false;
            }
            thread::sleep(Duration::from_micros(200));
        }
        self.kill_at(about, Place::WrittenDown)
    }

    /// Acts in the audit trail.
    fn n_written(&self) -> usize {
        let text = fs::read(&self.audit).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        [r#""outcome":{"applied""#, r#""outcome":{"released""#]
            .iter()
            .map(|act| text.matches(act).count())
            .sum()
    }
}

/// One frame with its length, as it is.
fn frame(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; 4];
    stream.read_exact(&mut frame)?;
    let length = u32::from_le_bytes([frame[0], frame[1], frame[2], frame[3]]);
    frame.resize(4 + usize::try_from(length).unwrap(), 0);
    stream.read_exact(&mut frame[4..])?;
    Ok(frame)
}

fn about(request: &[u8], in_force: Option<Limit>) -> Option<About> {
    match protocol::decode(&request[4..]).unwrap() {
        Request::Apply { limit, .. } if Some(limit) == in_force => Some(About::Renewal),
        Request::Apply { .. } => Some(About::Change),
        Request::Release { .. } => Some(About::Release),
        _ => None,
    }
}
