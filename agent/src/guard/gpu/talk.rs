//! The other end of the process that calls NVML: started at the first question, killed when it does
//! not answer, left alone for a while after that.

use std::{
    env,
    io::{self, Read, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tracing::{info, warn};

use super::{
    GpuError,
    actor::{Answer, Question},
};

/// How long one question may keep the guard waiting.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);
/// How long opening the library may take: without a process that keeps the GPUs awake, the driver
/// starts each of them first.
const OPEN_WITHIN: Duration = Duration::from_secs(30);
/// How long a driver that did not answer, or is not there, is left alone.
const REST: Duration = Duration::from_secs(60);
/// Longest answer, bytes.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Starts the process, and gives the end of the pair that speaks to it.
#[derive(Debug)]
pub(super) struct Talk {
    library: Option<PathBuf>,
    state: State,
    /// Killed, and not gone yet: the kernel ends no process that waits in a driver.
    dying: Vec<Child>,
}

#[derive(Debug)]
enum State {
    Off,
    Open { line: Line, child: Option<Child>, opening_since: Option<Instant> },
    Resting { until: Instant, why: GpuError },
}

impl Talk {
    pub(super) fn new(library: Option<PathBuf>) -> Self {
        Self { library, state: State::Off, dying: Vec::new() }
    }

    /// One whose process is a thread of the test, at the other end of `stream`.
    #[cfg(test)]
    pub(super) fn over(stream: UnixStream) -> Self {
        let line = Line { stream, read: Vec::new() };
        let state = State::Open { line, child: None, opening_since: Some(Instant::now()) };
        Self { library: None, state, dying: Vec::new() }
    }

    /// Whether the process is there and has not opened the library yet.
    pub(super) fn is_starting(&self) -> bool {
        matches!(self.state, State::Open { opening_since: Some(_), .. })
    }

    /// Why nobody is asked for now; `None` when somebody is, or would be.
    pub(super) fn resting(&self) -> Option<&GpuError> {
        match &self.state {
            State::Resting { until, why } if Instant::now() < *until => Some(why),
            _ => None,
        }
    }

    /// Asks, and waits half a second at most.
    ///
    /// # Errors
    /// When no process can be started, it does not answer in time, or there is no driver.
    pub(super) fn ask(&mut self, question: Question) -> Result<Answer, GpuError> {
        self.dying.retain_mut(|child| !matches!(child.try_wait(), Ok(Some(_ended))));
        if let State::Resting { until, why } = &self.state {
            if Instant::now() < *until {
                return Err(why.clone());
            }
            self.state = State::Off;
        }
        if matches!(self.state, State::Off) {
            self.state = self.start().map_err(|error| {
                GpuError::Failed(format!("starting the process that asks NVML: {error}"))
            })?;
        }
        self.await_library()?;
        let State::Open { line, .. } = &mut self.state else {
            return Err(GpuError::Failed("the process that asks NVML is gone".to_owned()));
        };
        let answer = line.say(&question).and_then(|()| line.hear(ANSWER_WITHIN));
        match answer {
            Ok(answer) => Ok(answer),
            Err(error) => {
                let what = match error.kind() {
                    io::ErrorKind::WouldBlock => "NVML does not answer".to_owned(),
                    _ => format!("the process that asks NVML: {error}"),
                };
                Err(self.give_up(&GpuError::Failed(what)))
            }
        }
    }

    /// Hears whether the library is open, if that is not known yet.
    fn await_library(&mut self) -> Result<(), GpuError> {
        let State::Open { line, opening_since, .. } = &mut self.state else { return Ok(()) };
        let Some(since) = *opening_since else { return Ok(()) };
        match line.hear(ANSWER_WITHIN) {
            Ok(Answer::Ready) => {
                *opening_since = None;
                Ok(())
            }
            Ok(Answer::Absent(why)) => Err(self.give_up(&GpuError::Absent(why))),
            Err(error)
                if error.kind() == io::ErrorKind::WouldBlock && since.elapsed() < OPEN_WITHIN =>
            {
                Err(GpuError::Failed("NVML is being opened".to_owned()))
            }
            Ok(other) => {
                Err(self.give_up(&GpuError::Failed(format!("NVML begins with {other:?}"))))
            }
            Err(error) => Err(self.give_up(&GpuError::Failed(format!("opening NVML: {error}")))),
        }
    }

    fn start(&self) -> io::Result<State> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut command = Command::new(env::current_exe()?);
        command.arg("gpu-actor").env_clear().stdin(Stdio::from(OwnedFd::from(theirs)));
        if let Some(library) = &self.library {
            command.arg("--library").arg(library);
        }
        let child = command.stdout(Stdio::null()).spawn()?;
        info!(pid = child.id(), "a process asks NVML");
        let line = Line { stream: ours, read: Vec::new() };
        Ok(State::Open { line, child: Some(child), opening_since: Some(Instant::now()) })
    }

    /// Kills the process and leaves the driver alone for a while.
    fn give_up(&mut self, why: &GpuError) -> GpuError {
        let why = match why {
            GpuError::Failed(text) => {
                GpuError::Failed(format!("{text}; tried again after {} s", REST.as_secs()))
            }
            other => other.clone(),
        };
        warn!("{why}");
        let resting = State::Resting { until: Instant::now() + REST, why: why.clone() };
        if let State::Open { child: Some(child), .. } = std::mem::replace(&mut self.state, resting)
        {
            self.kill(child);
        }
        why
    }

    fn kill(&mut self, mut child: Child) {
        // One that has ended by itself is no error.
        drop(child.kill());
        if !matches!(child.try_wait(), Ok(Some(_ended))) {
            self.dying.push(child);
        }
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        if let State::Open { child: Some(child), .. } =
            std::mem::replace(&mut self.state, State::Off)
        {
            self.kill(child);
        }
    }
}

/// Lines of JSON over a pair of sockets.
#[derive(Debug)]
struct Line {
    stream: UnixStream,
    /// Read, and no whole line yet.
    read: Vec<u8>,
}

impl Line {
    fn say(&mut self, question: &Question) -> io::Result<()> {
        let mut text = serde_json::to_string(question)?;
        text.push('\n');
        self.stream.set_write_timeout(Some(ANSWER_WITHIN))?;
        self.stream.write_all(text.as_bytes())
    }

    /// The next answer.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when none came within `patience`.
    fn hear(&mut self, patience: Duration) -> io::Result<Answer> {
        let end = Instant::now() + patience;
        loop {
            if let Some(at) = self.read.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=at).collect();
                return Ok(serde_json::from_slice(&line)?);
            }
            if self.read.len() > ANSWER_BYTES_MAX {
                return Err(io::Error::other("an answer without an end"));
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.stream.set_read_timeout(Some(left))?;
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(io::Error::other("has ended")),
                Ok(count) => self.read.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}
