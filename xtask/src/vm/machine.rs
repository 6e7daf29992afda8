//! One machine under QEMU: switched on, watched, switched off. The guest beats on a second serial
//! line; a machine whose beat stops is frozen as a whole, which no timer inside it can notice, and
//! its registers are kept for whoever looks into it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::kernel;
use crate::process;

/// How long one boot may take from power on to power off.
const BOOT_TIME_MAX: Duration = Duration::from_secs(1_200);

/// How long the guest may stay without a beat before it counts as frozen. It beats every
/// [`super::image::BEAT_SECONDS`]; a busy host makes it late by seconds.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// How often the machine is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// How long the emulator may take to tell its registers.
const MONITOR_TIME_MAX: Duration = Duration::from_secs(3);

/// A machine that is ready to be switched on.
pub(super) struct Machine {
    pub(super) qemu: PathBuf,
    pub(super) kernel: kernel::Kernel,
    pub(super) initramfs: PathBuf,
    pub(super) disk: PathBuf,
    /// Where the serial console is written.
    pub(super) log: PathBuf,
}

/// How a boot ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The guest switched itself off.
    Off,
    /// It was switched off after [`BOOT_TIME_MAX`], still beating.
    TooLong,
    /// It was switched off because its beat had stopped.
    Frozen,
}

/// What a person is told of an end.
pub(super) fn said_of(end: End) -> String {
    match end {
        End::Off => "the machine switched itself off".to_owned(),
        End::TooLong => format!(
            "the machine ran longer than {} minutes and was switched off",
            BOOT_TIME_MAX.as_secs() / 60
        ),
        End::Frozen => {
            format!("the machine froze as a whole, {} s without a beat", SILENCE_MAX.as_secs())
        }
    }
}

impl Machine {
    /// From power on to power off. A machine that takes too long or freezes is switched off, and
    /// its log then lacks the closing markers.
    pub(super) fn run(&self, show_console: bool) -> Result<End> {
        for path in [&self.log, &self.beats(), &self.monitor()] {
            if path.exists() {
                std::fs::remove_file(path)
                    .with_context(|| format!("remove what an earlier boot left: {path:?}"))?;
            }
        }
        let mut command = self.command();
        let mut child =
            command.spawn().with_context(|| format!("start `{}`", process::line_of(&command)))?;
        let watched = self.watch(&mut child, show_console);
        if !matches!(watched, Ok(End::Off)) {
            child.kill().context("switch the emulator off")?;
            child.wait().context("wait for the emulator that was switched off")?;
        }
        watched
    }

    fn watch(&self, child: &mut Child, show_console: bool) -> Result<End> {
        let started = Instant::now();
        let mut console = Tail::new(&self.log, show_console);
        let beat_log = self.beats();
        let mut beats = Tail::new(&beat_log, false);
        let mut last_beat = started;
        loop {
            let status = child.try_wait().context("wait for the emulator")?;
            console.follow()?;
            if beats.follow()? {
                last_beat = Instant::now();
            }
            match status {
                Some(status) if !status.success() => bail!("qemu ended with {status}"),
                Some(_) => return Ok(End::Off),
                None if last_beat.elapsed() > SILENCE_MAX => {
                    self.keep_registers()?;
                    return Ok(End::Frozen);
                }
                None if started.elapsed() > BOOT_TIME_MAX => return Ok(End::TooLong),
                None => std::thread::sleep(LOOK_INTERVAL),
            }
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.qemu);
        // One thread for both processors: with a thread for each, one of them can run into an
        // instruction that the other is patching, which kills the guest's kernel now and then.
        command
            .args(["-M", "q35", "-accel", "tcg,thread=single", "-cpu", "max", "-smp", "2"])
            .args(["-m", "2048", "-display", "none", "-no-reboot", "-nic", "none"])
            .arg("-kernel")
            .arg(&self.kernel.image)
            .arg("-initrd")
            .arg(&self.initramfs)
            .args(["-append", "console=ttyS0 quiet panic=-1 random.trust_cpu=1 mitigations=off"])
            .arg("-drive")
            .arg(format!("file={},format=raw,if=virtio,snapshot=on", self.disk.display()))
            // Files take every byte at once; a pipe that nobody empties would stop the guest's
            // serial line.
            .arg("-serial")
            .arg(format!("file:{}", self.log.display()))
            .arg("-serial")
            .arg(format!("file:{}", self.beats().display()))
            .arg("-monitor")
            .arg(format!("unix:{},server=on,wait=off", self.monitor().display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    }

    fn beats(&self) -> PathBuf {
        self.log.with_extension("beats")
    }

    fn monitor(&self) -> PathBuf {
        self.log.with_extension("monitor")
    }

    /// Where the registers of a frozen machine are kept.
    pub(super) fn registers(&self) -> PathBuf {
        self.log.with_extension("registers")
    }

    /// Asks the emulator twice where its processors are: whether they move tells a loop from a
    /// stop.
    fn keep_registers(&self) -> Result<()> {
        let told = match self.ask_monitor(b"info cpus\ninfo registers -a\ninfo registers -a\n") {
            Ok(told) => told,
            Err(error) => format!("the emulator itself does not answer: {error}\n").into_bytes(),
        };
        let path = self.registers();
        std::fs::write(&path, told).with_context(|| format!("write {}", path.display()))
    }

    fn ask_monitor(&self, question: &[u8]) -> std::io::Result<Vec<u8>> {
        let mut stream = UnixStream::connect(self.monitor())?;
        stream.set_read_timeout(Some(MONITOR_TIME_MAX))?;
        stream.write_all(question)?;
        let mut told = Vec::new();
        // It never closes its end: the time-out does.
        match stream.read_to_end(&mut told) {
            Err(error) if told.is_empty() => Err(error),
            _ => Ok(told),
        }
    }
}

/// Reads what is appended to a file, and shows it where asked.
struct Tail<'a> {
    path: &'a Path,
    offset: u64,
    shown: bool,
}

impl<'a> Tail<'a> {
    fn new(path: &'a Path, shown: bool) -> Self {
        Self { path, offset: 0, shown }
    }

    /// Whether anything was appended since the last call.
    fn follow(&mut self) -> Result<bool> {
        // The emulator makes the file a moment after it starts.
        let Ok(mut file) = File::open(self.path) else { return Ok(false) };
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(self.offset))
            .and_then(|_| file.read_to_end(&mut bytes))
            .with_context(|| format!("read {}", self.path.display()))?;
        self.offset += bytes.len() as u64;
        if self.shown && !bytes.is_empty() {
            print!("{}", String::from_utf8_lossy(&bytes));
            std::io::stdout().flush().context("write to standard output")?;
        }
        Ok(!bytes.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_tells_what_was_appended_and_only_that() {
        let path = std::env::temp_dir().join(format!("headroom-tail-{}", std::process::id()));
        let mut tail = Tail::new(&path, false);
        assert!(!tail.follow().unwrap(), "no file yet");
        std::fs::write(&path, "one\n").unwrap();
        assert!(tail.follow().unwrap());
        assert!(!tail.follow().unwrap());
        std::fs::write(&path, "one\ntwo\n").unwrap();
        assert!(tail.follow().unwrap());
        assert_eq!(tail.offset, 8);
        std::fs::remove_file(&path).unwrap();
    }
}
