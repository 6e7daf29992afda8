//! What is said on the guard's socket: requests, responses, and the frames around them.
//!
//! A frame is its length as a little-endian `u32`, a version byte, and one MessagePack value; the
//! length counts the version byte and the value.

use std::io::{self, Read, Write};

use headroom_allocate::{Knob, Limit};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;

/// Version of the frames and of what is in them.
pub const VERSION: u8 = 1;

/// Longest frame, bytes, without its length field.
pub const FRAME_BYTES_MAX: usize = 64 * 1024;

/// Nesting no request or response comes near; keeps hostile input off the stack's end.
const DEPTH_MAX: usize = 16;

/// Something asked of the guard.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub enum Request {
    /// Set a limit and hold it under a lease. Asked again with the value in force, it renews the
    /// lease.
    Apply {
        /// Cgroup path below the hierarchy's root, beginning with `/`.
        workload: String,
        /// The knob.
        knob: Knob,
        /// The value, in the unit of the knob's resource.
        limit: Limit,
        /// Life of the lease from now, seconds; more than is allowed is cut.
        lease_s: f64,
        /// Why, for people; kept in the journal, cut at 256 bytes.
        reason: String,
    },
    /// Give one limit back now.
    Release {
        /// Cgroup path.
        workload: String,
        /// The knob.
        knob: Knob,
    },
    /// Take memory back from a workload now. Nothing is held afterwards.
    Reclaim {
        /// Cgroup path.
        workload: String,
        /// How much at most, bytes; more than is allowed is cut.
        bytes: f64,
        /// Why, for people; kept in the journal, cut at 256 bytes.
        reason: String,
    },
    /// Give every limit back now.
    ReleaseAll,
    /// Tell what is held and what has happened.
    Status,
}

/// What the guard answers.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub enum Response {
    /// The limit is in force.
    Applied(Applied),
    /// The limit was given back, or will be as soon as it can be.
    Released(Released),
    /// Memory was taken back, as far as there was some to take.
    Reclaimed(Reclaimed),
    /// Every limit was given back, or will be as soon as it can be.
    ReleasedAll(Tally),
    /// What is held and what has happened.
    Status(Box<Status>),
    /// A rule forbids it; nothing was changed.
    Refused {
        /// Name of the rule.
        rule: String,
        /// The sentence for people.
        text: String,
    },
    /// It was tried and failed; the limit is as it was before.
    Failed {
        /// The kind of failure.
        kind: Failure,
        /// The sentence for people, with operation, path and value.
        text: String,
    },
}

/// Kinds of failure.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Failure {
    /// There is no such cgroup, or not any more. A lease on it has ended.
    Gone,
    /// The host has no such knob for this workload.
    NoKnob,
    /// Someone else changed the limit. Theirs stands and is the workload's own limit from now on;
    /// a lease has ended.
    Foreign,
    /// The kernel refused to read or write the file.
    Kernel,
    /// Whoever owns the cgroup refused, or did not answer in time.
    Owner,
    /// A change of the same limit is under way.
    Busy,
    /// The journal cannot be written, so nothing is changed.
    Journal,
    /// The frame could not be understood.
    Malformed,
}

/// A limit in force.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Applied {
    /// The value before.
    pub before: Limit,
    /// The workload's own limit, which comes back when the lease ends.
    pub baseline: Limit,
    /// The value now, as read back.
    pub applied: Limit,
    /// The rule that moved the value away from what was asked; `None` when none did.
    pub clamped_by: Option<String>,
    /// Time until the lease ends, seconds; 0 when the workload's own limit is in force and there is
    /// nothing to hold.
    pub expires_in_s: f64,
    /// Wall time right after the write, or right after it was found not to be needed; seconds since
    /// the Unix epoch.
    pub at_unix_s: f64,
}

/// Memory taken back.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Reclaimed {
    /// What the kernel was asked for, bytes; 0 when the rules left nothing to ask for.
    pub asked_bytes: f64,
    /// In use before, bytes.
    pub before_bytes: f64,
    /// In use after, bytes. The workload may have taken some meanwhile.
    pub after_bytes: f64,
    /// The rule that moved the amount away from what was asked; `None` when none did.
    pub clamped_by: Option<String>,
    /// Wall time right after, seconds since the Unix epoch.
    pub at_unix_s: f64,
}

/// A limit given back.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Released {
    /// Whether a lease was held at all.
    pub held: bool,
    /// Why the limit is not back yet; it is tried again every second. `None` when it is back.
    pub pending: Option<String>,
}

/// Outcomes of giving many limits back.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Tally {
    /// Back at the workload's own limit.
    pub restored: u32,
    /// Changed by someone else meanwhile, and left at that.
    pub foreign: u32,
    /// The workload is gone.
    pub gone: u32,
    /// Not back yet.
    pub pending: u32,
}

/// What is held and what has happened since the guard started.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Status {
    /// Version of the guard's program.
    pub version: String,
    /// Time since the start, seconds.
    pub uptime_s: f64,
    /// Whether the kill switch is on.
    pub disabled: bool,
    /// Where CPU limits are changed, or why they cannot be.
    pub cpu: String,
    /// Where memory limits are changed, or why they cannot be.
    pub memory: String,
    /// Why the journal cannot be written; `None` when it can.
    pub journal_trouble: Option<String>,
    /// Leases held, all of them.
    pub leases_held: u64,
    /// The leases, as many as fit into a frame.
    pub leases: Vec<LeaseStatus>,
    /// The latest changes by others, oldest first.
    pub foreign: Vec<ForeignChange>,
    /// Limits that others keep changing and that are left to them for a while, as `knob of path`;
    /// the first few.
    pub contested: Vec<String>,
    /// Services that are asked for changes, and where they listen.
    pub owners: String,
    /// Where what workloads send is paced, or why it is not.
    #[serde(default)]
    pub egress: String,
    /// Whether power limits and clock floors of GPUs are moved, or why they are not.
    #[serde(default)]
    pub gpu: String,
    /// What has happened.
    pub counters: Counters,
}

/// One lease.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct LeaseStatus {
    /// Cgroup path.
    pub workload: String,
    /// The knob.
    pub knob: Knob,
    /// The workload's own limit.
    pub baseline: Limit,
    /// The limit in force.
    pub applied: Limit,
    /// Time until it ends, seconds; 0 when it has ended.
    pub expires_in_s: f64,
    /// Who was asked for it; `None` when the file was written.
    pub owner: Option<String>,
    /// Why an ended lease is not given back yet.
    pub pending: Option<String>,
}

/// A limit under lease that someone else changed.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ForeignChange {
    /// Cgroup path.
    pub workload: String,
    /// The knob.
    pub knob: Knob,
    /// The value in force as the guard had left it.
    pub ours: Limit,
    /// The value found.
    pub found: Limit,
    /// When it was noticed, seconds since the Unix epoch.
    pub at_unix_s: f64,
}

/// Counts since the start.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Counters {
    /// Limits changed.
    pub applied: u64,
    /// Leases renewed without a change.
    pub renewed: u64,
    /// Requests whose value a rule moved.
    pub clamped: u64,
    /// Requests refused by a rule.
    pub refused: u64,
    /// Writes or reads the kernel refused.
    pub failed: u64,
    /// Writes refused because the limit would exceed that of a cgroup above.
    pub failed_by_parent: u64,
    /// Limits under lease changed by someone else.
    pub foreign: u64,
    /// Times memory was taken back.
    #[serde(default)]
    pub reclaimed: u64,
    /// Limits given back.
    pub restored: u64,
    /// Leases ended because their workload was gone.
    pub gone: u64,
    /// Times a limit could not be given back at once.
    pub postponed: u64,
    /// Times an owner refused, or did not answer in time.
    pub owner_errors: u64,
    /// Journal writes that failed.
    pub journal_errors: u64,
    /// Connections from users who may not ask.
    pub peers_refused: u64,
    /// Connections beyond the most that are served.
    pub peers_too_many: u64,
    /// Frames that could not be understood, or were cut off.
    pub frames_bad: u64,
}

/// Why a frame could not be read or written.
#[derive(Debug, Error)]
pub enum FrameError {
    /// The connection failed or ended within a frame.
    #[error("reading or writing a frame: {0}")]
    Io(#[from] io::Error),
    /// The other side has closed the connection between frames.
    #[error("the connection is closed")]
    Closed,
    /// The length is out of range.
    #[error("a frame of {0} bytes (from 2 to {FRAME_BYTES_MAX} are allowed)")]
    Length(usize),
    /// Another version.
    #[error("frame version {0}, this is version {VERSION}")]
    Version(u8),
    /// The value is not what was expected.
    #[error("decoding a frame: {0}")]
    Decode(String),
    /// The value cannot be written.
    #[error("encoding a frame: {0}")]
    Encode(String),
}

/// A frame holding `value`, with its length.
///
/// # Errors
/// When the value does not fit into a frame.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0, 0, 0, 0, VERSION];
    rmp_serde::encode::write_named(&mut frame, value)
        .map_err(|error| FrameError::Encode(error.to_string()))?;
    let length = frame.len() - 4;
    if length > FRAME_BYTES_MAX {
        return Err(FrameError::Length(length));
    }
    let length = u32::try_from(length).map_err(|_too_long| FrameError::Length(length))?;
    frame[..4].copy_from_slice(&length.to_le_bytes());
    Ok(frame)
}

/// The value in the body of a frame, i.e. what follows the length.
///
/// # Errors
/// When the version differs, or the body is not exactly one such value.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    let (&version, value) = body.split_first().ok_or(FrameError::Length(0))?;
    if version != VERSION {
        return Err(FrameError::Version(version));
    }
    let mut rest = value;
    let mut decoder = rmp_serde::Deserializer::new(&mut rest);
    decoder.set_max_depth(DEPTH_MAX);
    let decoded =
        T::deserialize(&mut decoder).map_err(|error| FrameError::Decode(error.to_string()))?;
    drop(decoder);
    if rest.is_empty() {
        Ok(decoded)
    } else {
        Err(FrameError::Decode(format!("{} bytes after the value", rest.len())))
    }
}

/// Length of the body that a length field announces.
///
/// # Errors
/// When no frame has this length.
pub fn body_length(field: [u8; 4]) -> Result<usize, FrameError> {
    let length = u32::from_le_bytes(field) as usize;
    if (2..=FRAME_BYTES_MAX).contains(&length) {
        Ok(length)
    } else {
        Err(FrameError::Length(length))
    }
}

/// Reads one frame and decodes it.
///
/// # Errors
/// [`FrameError::Closed`] when the stream ends before the first byte.
pub fn read_frame<T: DeserializeOwned>(stream: &mut impl Read) -> Result<T, FrameError> {
    let mut field = [0; 4];
    let first = loop {
        match stream.read(&mut field) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => break other?,
        }
    };
    if first == 0 {
        return Err(FrameError::Closed);
    }
    stream.read_exact(&mut field[first..])?;
    let mut body = vec![0; body_length(field)?];
    stream.read_exact(&mut body)?;
    decode(&body)
}

/// Writes one frame.
///
/// # Errors
/// When the value does not fit into a frame, or the stream fails.
pub fn write_frame<T: Serialize>(stream: &mut impl Write, value: &T) -> Result<(), FrameError> {
    stream.write_all(&encode(value)?)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use headroom_allocate::{Knob, Limit};
    use proptest::proptest;

    use super::{FRAME_BYTES_MAX, FrameError, Request, decode, encode, read_frame};

    fn apply(reason: String) -> Request {
        Request::Apply {
            workload: "/a/b".to_owned(),
            knob: Knob::CpuQuota,
            limit: Limit::At(1.5),
            lease_s: 30.0,
            reason,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        for request in [
            apply("ramp".to_owned()),
            Request::Release { workload: "/a".to_owned(), knob: Knob::MemoryMax },
            Request::Reclaim { workload: "/a".to_owned(), bytes: 1e6, reason: String::new() },
            Request::ReleaseAll,
            Request::Status,
        ] {
            let frame = encode(&request).unwrap();
            assert_eq!(read_frame::<Request>(&mut frame.as_slice()).unwrap(), request);
        }
    }

    #[test]
    fn a_frame_cut_anywhere_is_an_error() {
        let frame = encode(&apply("ramp".to_owned())).unwrap();
        for end in 0..frame.len() {
            assert!(read_frame::<Request>(&mut &frame[..end]).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn too_long_is_told_before_it_is_read() {
        let length = u32::try_from(FRAME_BYTES_MAX).unwrap() + 1;
        let frame = length.to_le_bytes();
        assert!(matches!(read_frame::<Request>(&mut frame.as_slice()), Err(FrameError::Length(_))));
        assert!(encode(&apply("x".repeat(FRAME_BYTES_MAX))).is_err());
    }

    #[test]
    fn other_versions_and_trailing_bytes_are_refused() {
        let mut body = encode(&Request::Status).unwrap().split_off(4);
        body.push(0xc0);
        assert!(matches!(decode::<Request>(&body), Err(FrameError::Decode(_))));
        body.pop();
        body[0] = 9;
        assert!(matches!(decode::<Request>(&body), Err(FrameError::Version(9))));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_err(body in proptest::collection::vec(0u8.., 0..200)) {
            drop(decode::<Request>(&body));
        }

        #[test]
        fn any_nesting_decodes_or_errs(opening in 0x90u8..=0x9f, depth in 0usize..60_000) {
            let mut body = vec![opening; depth];
            body.insert(0, super::VERSION);
            drop(decode::<Request>(&body));
        }
    }
}
