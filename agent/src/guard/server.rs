//! The guard's socket and threads: one that ticks, one that accepts, one per connection.

use std::{
    fs,
    io::{self, Read},
    mem::MaybeUninit,
    os::{
        fd::AsRawFd,
        unix::{
            fs::{DirBuilderExt, FileTypeExt, PermissionsExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use sd_notify::NotifyState;
use thiserror::Error;
use tracing::{info, warn};

use super::{
    config::GuardConfig,
    engine::{Engine, Progress, Steps, Ticket},
    owner::{Kind, Owners},
    protocol::{self, Counters, Failure, FrameError, Request, Response, Tally},
};

/// Time between two ticks.
const TICK: Duration = Duration::from_millis(100);

/// How long stopping waits for owners to take their values back. What they have not taken by then
/// stays in the journal. Below `TimeoutStopSec` of the unit.
const STOP: Duration = Duration::from_secs(12);

/// Ticks between two signs of life to the service manager.
const TICKS_PER_SIGN: u32 = 10;

/// How long a connection may say nothing.
const IDLE: Duration = Duration::from_secs(300);

/// How long a frame may take to arrive once it has begun, or to be taken.
const FRAME: Duration = Duration::from_secs(2);

/// Requests per second and connection; a peer that asks more often waits.
const REQUESTS_PER_S: u32 = 5_000;

/// Stack of a thread that serves a connection, bytes.
const STACK_BYTES: usize = 256 * 1024;

/// Why the socket could not be served.
#[derive(Debug, Error)]
#[error("{op} {}: {source}", path.display())]
pub struct SocketError {
    op: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// What the threads share. The engine is taken out when the guard stops.
struct Shared<S> {
    engine: Mutex<Option<Engine<S>>>,
    owners: Arc<Owners>,
    start: Instant,
    uids: Vec<u32>,
    connections: AtomicUsize,
    connections_max: usize,
}

impl<S: Steps> Shared<S> {
    /// A panic in one request must not keep the limits from being given back.
    fn engine(&self) -> MutexGuard<'_, Option<Engine<S>>> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers a request, asking owners while the engine is free for others; `None` once the guard
    /// has stopped.
    fn answer(&self, request: &Request) -> Option<Response> {
        let mut progress = self.engine().as_mut()?.begin(request, self.start.elapsed());
        loop {
            match progress {
                Progress::Answered(response) => return Some(response),
                Progress::Waiting(ticket) => {
                    let done = self.owners.run(&ticket.errand);
                    let now = self.start.elapsed();
                    progress = self.engine().as_mut()?.resume(*ticket, done, now);
                }
            }
        }
    }

    fn count(&self, count: impl FnOnce(&mut Counters)) {
        if let Some(engine) = self.engine().as_mut() {
            engine.count(count);
        }
    }
}

/// Opens the socket, replacing one that a guard has left behind.
///
/// # Errors
/// When it cannot be made, or something that is not a socket is in its place.
pub(super) fn bind(config: &GuardConfig) -> Result<UnixListener, SocketError> {
    let path = &config.socket;
    let failed = |op| move |source: io::Error| SocketError { op, path: path.clone(), source };
    let dir = path.parent().unwrap_or_else(|| Path::new("/"));
    if !dir.is_dir() {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(dir).map_err(failed("making"))?;
    }
    match fs::symlink_metadata(path) {
        // The lock of the state directory says that no guard of this configuration listens on it.
        Ok(found) if found.file_type().is_socket() => {
            fs::remove_file(path).map_err(failed("removing"))?;
        }
        Ok(_) => {
            let what = io::Error::new(io::ErrorKind::AlreadyExists, "it is not a socket");
            return Err(failed("replacing")(what));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("looking at")(error)),
    }
    let listener = UnixListener::bind(path).map_err(failed("binding"))?;
    // Who may ask is decided by the peer's credentials; the mode only spares others the try.
    let mode = if config.uids.iter().any(|&uid| uid != 0) { 0o666 } else { 0o600 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed("protecting"))?;
    Ok(listener)
}

/// Serves until `stop` says so, then gives everything back.
///
/// # Errors
/// When the threads cannot be started or stop accepting; everything is given back then, too.
pub(super) fn serve<S: Steps + 'static>(
    engine: Engine<S>,
    owners: Arc<Owners>,
    listener: UnixListener,
    config: &GuardConfig,
    start: Instant,
    stop: impl Fn() -> bool,
) -> Result<Tally, SocketError> {
    let shared = Arc::new(Shared {
        engine: Mutex::new(Some(engine)),
        owners,
        start,
        uids: config.uids.clone(),
        connections: AtomicUsize::new(0),
        connections_max: config.connections_max,
    });
    let failed = |op| {
        let path = config.socket.clone();
        move |source: io::Error| SocketError { op, path, source }
    };
    let accepting = {
        let shared = Arc::clone(&shared);
        thread::Builder::new()
            .name("accept".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || accept(&shared, &listener))
            .map_err(failed("accepting on"))?
    };
    tell(NotifyState::Ready);
    info!("listening on {}", config.socket.display());
    let mut couriers = Couriers::new(Arc::clone(&shared));
    let mut ticks = 0u32;
    while !stop() && !accepting.is_finished() {
        if let Some(engine) = shared.engine().as_mut() {
            engine.tick(start.elapsed());
        }
        couriers.send_out();
        // From the loop that gives limits back, so that a loop that hangs is noticed.
        if ticks.is_multiple_of(TICKS_PER_SIGN) {
            tell(NotifyState::Watchdog);
        }
        ticks = ticks.wrapping_add(1);
        thread::sleep(TICK);
    }
    tell(NotifyState::Stopping);
    couriers.finish();
    let tally = match shared.engine().take() {
        Some(mut engine) => engine.stop(start.elapsed()),
        None => Tally::default(),
    };
    if let Err(error) = fs::remove_file(&config.socket) {
        warn!("removing {}: {error}", config.socket.display());
    }
    if accepting.is_finished() {
        return Err(failed("accepting on")(io::Error::other("the thread has ended")));
    }
    Ok(tally)
}

/// Threads that ask owners to take their values back, one per kind of owner, so that one that
/// hangs holds up only its own. Each is started when there is first something to ask.
struct Couriers<S> {
    shared: Arc<Shared<S>>,
    to: [Option<Sender<Ticket>>; Kind::ALL.len()],
}

impl<S: Steps + 'static> Couriers<S> {
    fn new(shared: Arc<Shared<S>>) -> Self {
        Self { shared, to: [const { None }; Kind::ALL.len()] }
    }

    /// Hands over what is to be asked.
    fn send_out(&mut self) {
        let tickets = self.shared.engine().as_mut().map(Engine::take_returns).unwrap_or_default();
        for ticket in tickets {
            let kind = ticket.errand.kind().unwrap_or(Kind::Systemd);
            let place = &mut self.to[kind as usize];
            let sender = match place.take().map_or_else(|| courier(&self.shared, kind), Ok) {
                Ok(sender) => sender,
                Err(error) => {
                    warn!("starting a thread that asks {}: {error}", kind.name());
                    run_here(&self.shared, ticket);
                    continue;
                }
            };
            if let Err(unsent) = sender.send(ticket) {
                // The thread has panicked, and is started again the next time.
                run_here(&self.shared, unsent.0);
            } else {
                *place = Some(sender);
            }
        }
    }

    /// Gives everything back, and waits for owners as long as [`STOP`] lets it.
    fn finish(&mut self) {
        if let Some(engine) = self.shared.engine().as_mut() {
            engine.begin_stop(self.shared.start.elapsed());
        }
        let end = Instant::now() + STOP;
        while Instant::now() < end {
            self.send_out();
            let is_asking = self.shared.engine().as_ref().is_some_and(Engine::is_asking);
            if !is_asking {
                return;
            }
            thread::sleep(TICK / 10);
        }
    }
}

fn courier<S: Steps + 'static>(shared: &Arc<Shared<S>>, kind: Kind) -> io::Result<Sender<Ticket>> {
    let (sender, tickets): (Sender<Ticket>, Receiver<Ticket>) = channel();
    let shared = Arc::clone(shared);
    thread::Builder::new()
        .name(format!("ask-{}", kind.name()))
        .stack_size(STACK_BYTES)
        .spawn(move || tickets.iter().for_each(|ticket| run_here(&shared, ticket)))?;
    Ok(sender)
}

fn run_here<S: Steps>(shared: &Shared<S>, ticket: Ticket) {
    let done = shared.owners.run(&ticket.errand);
    if let Some(engine) = shared.engine().as_mut() {
        // Nobody waits for the answer, and what it led to is in the leases.
        let _answer = engine.resume(ticket, done, shared.start.elapsed());
    }
}

/// Without a service manager there is nobody to tell, which is no error.
fn tell(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        warn!("telling the service manager: {error}");
    }
}

fn accept<S: Steps + 'static>(shared: &Arc<Shared<S>>, listener: &UnixListener) {
    loop {
        let stream = match listener.accept() {
            Ok((stream, _address)) => stream,
            Err(error) => {
                // Out of descriptors, say: it passes.
                warn!("accepting a connection: {error}");
                thread::sleep(TICK);
                continue;
            }
        };
        match peer_uid(&stream) {
            Ok(uid) if uid == 0 || shared.uids.contains(&uid) => {}
            Ok(uid) => {
                warn!("uid {uid} may not ask");
                shared.count(|counters| counters.peers_refused += 1);
                continue;
            }
            Err(error) => {
                warn!("the peer's credentials are not known: {error}");
                shared.count(|counters| counters.peers_refused += 1);
                continue;
            }
        }
        if shared.connections.fetch_add(1, Ordering::SeqCst) >= shared.connections_max {
            shared.connections.fetch_sub(1, Ordering::SeqCst);
            shared.count(|counters| counters.peers_too_many += 1);
            continue;
        }
        let serving = Serving(Arc::clone(shared));
        let spawned = thread::Builder::new()
            .name("peer".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || converse(&serving.0, &stream));
        if let Err(error) = spawned {
            warn!("starting a thread for a connection: {error}");
            shared.count(|counters| counters.peers_too_many += 1);
        }
    }
}

/// One connection being served; its place is free again when this is dropped, also by a panic.
struct Serving<S>(Arc<Shared<S>>);

impl<S> Drop for Serving<S> {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The user at the other end when it connected.
///
/// Not through rustix, whose type for credentials has no value for a peer in a process namespace
/// that this one cannot see: the kernel says pid 0 then.
fn peer_uid(stream: &UnixStream) -> io::Result<u32> {
    let mut credentials = MaybeUninit::<libc::ucred>::zeroed();
    let size = size_of::<libc::ucred>();
    let mut length = libc::socklen_t::try_from(size).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open for the call, and the buffer is as long as `length` says.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            credentials.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result != 0 || usize::try_from(length).ok() != Some(size) {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has filled the whole buffer, and any bytes make a ucred.
    Ok(unsafe { credentials.assume_init() }.uid)
}

fn converse<S: Steps>(shared: &Shared<S>, stream: &UnixStream) {
    if stream.set_write_timeout(Some(FRAME)).is_err() {
        return;
    }
    let mut second = (Instant::now(), 0);
    loop {
        let mut patient = Patient { stream, until: None };
        let request = match protocol::read_frame::<Request>(&mut patient) {
            Ok(request) => Ok(request),
            Err(FrameError::Closed) => return,
            Err(FrameError::Io(_)) if patient.until.is_none() => return,
            Err(error) => Err(error),
        };
        pace(&mut second);
        let (response, goes_on) = match request {
            Ok(request) => match shared.answer(&request) {
                Some(response) => (response, true),
                None => return,
            },
            Err(error) => {
                shared.count(|counters| counters.frames_bad += 1);
                // After a whole frame the next one begins where it should.
                let goes_on = matches!(error, FrameError::Decode(_) | FrameError::Version(_));
                let text = error.to_string();
                (Response::Failed { kind: Failure::Malformed, text }, goes_on)
            }
        };
        let mut writer = stream;
        if protocol::write_frame(&mut writer, &response).is_err() || !goes_on {
            return;
        }
    }
}

/// Holds up a peer that asks too often, so that the others and the ticks get their turn.
fn pace(second: &mut (Instant, u32)) {
    let elapsed = second.0.elapsed();
    if elapsed >= Duration::from_secs(1) {
        *second = (Instant::now(), 0);
    } else if second.1 >= REQUESTS_PER_S {
        thread::sleep(Duration::from_secs(1).saturating_sub(elapsed));
        *second = (Instant::now(), 0);
    }
    second.1 += 1;
}

/// Reads one frame: waits long for its first byte, and not long for the rest.
struct Patient<'a> {
    stream: &'a UnixStream,
    until: Option<Instant>,
}

impl Read for Patient<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.until.map_or(IDLE, |until| until.saturating_duration_since(Instant::now()));
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        let read = self.stream.read(buffer)?;
        if read > 0 && self.until.is_none() {
            self.until = Some(Instant::now() + FRAME);
        }
        Ok(read)
    }
}
