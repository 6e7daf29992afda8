//! Asking the kernel about qdiscs over netlink (`rtnetlink(7)`): no program is run for it, and
//! nothing but `CAP_NET_ADMIN` is needed to change one.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use thiserror::Error;

/// The qdisc of a whole device (`TC_H_ROOT` of `linux/pkt_sched.h`).
pub(super) const ROOT: u32 = 0xffff_ffff;

/// From `linux/rtnetlink.h`, which libc's own numbers follow.
const TCA_KIND: u16 = 1;

/// Bytes of `struct nlmsghdr` and `struct tcmsg`.
const HEADER_BYTES: usize = 16;
const TC_BYTES: usize = 20;

/// Longest answer of the kernel to one read, bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// How long the kernel may take to answer, seconds.
const PATIENCE_S: i64 = 2;

/// A qdisc could not be asked for or changed.
#[derive(Debug, Error)]
#[error("{op} (netlink): {source}{hint}")]
pub struct NetlinkError {
    op: &'static str,
    source: io::Error,
    hint: &'static str,
}

impl NetlinkError {
    fn new(op: &'static str, source: io::Error) -> Self {
        let hint = match source.raw_os_error() {
            Some(libc::EPERM) => " (needs CAP_NET_ADMIN)",
            Some(libc::ENOENT | libc::EOPNOTSUPP) => " (this kernel has no such qdisc)",
            Some(libc::EAFNOSUPPORT) => " (the service may not use AF_NETLINK)",
            _ => "",
        };
        Self { op, source, hint }
    }
}

/// One qdisc of one device.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Qdisc {
    /// Index of the device.
    pub device: i32,
    /// Its name for others; 0 for one that the kernel chose by itself.
    pub handle: u32,
    /// What it is below; all bits for the whole device.
    pub parent: u32,
    /// Its kind, such as `fq`.
    pub kind: String,
}

/// What is done to a qdisc.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Change {
    /// Made, where the kernel's own is.
    Make,
    /// Removed, so that the kernel's own comes back.
    Remove,
}

/// The qdiscs of every device of this network namespace.
pub(super) fn qdiscs() -> Result<Vec<Qdisc>, NetlinkError> {
    const OP: &str = "listing qdiscs";
    let any = Qdisc { device: 0, handle: 0, parent: 0, kind: String::new() };
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_DUMP;
    let answer = talk(&message(libc::RTM_GETQDISC, flags, &any));
    let messages = answer.map_err(|error| NetlinkError::new(OP, error))?;
    Ok(messages.iter().filter_map(|body| parse(body)).collect())
}

/// Makes or removes a qdisc.
pub(super) fn change(change: Change, qdisc: &Qdisc) -> Result<(), NetlinkError> {
    let acknowledged = libc::NLM_F_REQUEST | libc::NLM_F_ACK;
    let (op, kind, flags) = match change {
        Change::Make => {
            let flags = acknowledged | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
            ("making a qdisc", libc::RTM_NEWQDISC, flags)
        }
        Change::Remove => ("removing a qdisc", libc::RTM_DELQDISC, acknowledged),
    };
    talk(&message(kind, flags, qdisc)).map_err(|error| NetlinkError::new(op, error))?;
    Ok(())
}

/// `struct nlmsghdr`, `struct tcmsg` and the kind as an attribute, in the byte order of this host.
fn message(kind: u16, flags: i32, qdisc: &Qdisc) -> Vec<u8> {
    let mut body = vec![0; 4];
    body.extend(qdisc.device.to_ne_bytes());
    body.extend(qdisc.handle.to_ne_bytes());
    body.extend(qdisc.parent.to_ne_bytes());
    body.extend(0u32.to_ne_bytes());
    if !qdisc.kind.is_empty() {
        let text = qdisc.kind.as_bytes();
        let length = u16::try_from(4 + text.len() + 1).unwrap_or(u16::MAX);
        body.extend(length.to_ne_bytes());
        body.extend(TCA_KIND.to_ne_bytes());
        body.extend(text);
        body.push(0);
        body.resize(body.len().next_multiple_of(4), 0);
    }
    let length = u32::try_from(HEADER_BYTES + body.len()).unwrap_or(u32::MAX);
    let mut whole = Vec::with_capacity(HEADER_BYTES + body.len());
    whole.extend(length.to_ne_bytes());
    whole.extend(kind.to_ne_bytes());
    whole.extend(u16::try_from(flags).unwrap_or(0).to_ne_bytes());
    whole.extend(1u32.to_ne_bytes());
    whole.extend(0u32.to_ne_bytes());
    whole.extend(body);
    whole
}

/// A qdisc from the body of a message; `None` for one that is cut short or has no kind.
fn parse(body: &[u8]) -> Option<Qdisc> {
    let word = |at: usize| body.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let device = i32::from_ne_bytes(body.get(4..8)?.try_into().ok()?);
    let (handle, parent) = (word(8)?, word(12)?);
    let mut rest = body.get(TC_BYTES..)?;
    while rest.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([rest[0], rest[1]]));
        let kind = u16::from_ne_bytes([rest[2], rest[3]]);
        let value = rest.get(4..length)?;
        if kind == TCA_KIND {
            let text = String::from_utf8_lossy(value).trim_end_matches('\0').to_owned();
            return Some(Qdisc { device, handle, parent, kind: text });
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
    None
}

/// Sends one message; the bodies of what comes back until the kernel says that it is done.
fn talk(message: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    let socket = open()?;
    // SAFETY: the descriptor is open, and the buffer is as long as said.
    let sent = unsafe { libc::send(socket.as_raw_fd(), message.as_ptr().cast(), message.len(), 0) };
    if usize::try_from(sent).ok() != Some(message.len()) {
        return Err(io::Error::last_os_error());
    }
    let mut found = Vec::new();
    let mut buffer = vec![0; ANSWER_BYTES_MAX];
    loop {
        // SAFETY: the descriptor is open, and the buffer is as long as said.
        let received =
            unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        let length = usize::try_from(received).map_err(|_negative| io::Error::last_os_error())?;
        if take(&buffer[..length], &mut found)? {
            return Ok(found);
        }
    }
}

/// Adds the bodies in `answer` to `found`; whether they were the last.
fn take(mut answer: &[u8], found: &mut Vec<Vec<u8>>) -> io::Result<bool> {
    let broken = || io::Error::new(io::ErrorKind::InvalidData, "a message is cut short");
    if answer.is_empty() {
        return Err(broken());
    }
    while answer.len() >= HEADER_BYTES {
        let word = |at: usize| {
            let bytes = answer.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            bytes.map(u32::from_ne_bytes).ok_or_else(broken)
        };
        let length = usize::try_from(word(0)?).map_err(|_large| broken())?;
        let body = answer.get(HEADER_BYTES..length).ok_or_else(broken)?;
        match i32::from(u16::from_ne_bytes([answer[4], answer[5]])) {
            libc::NLMSG_DONE => return Ok(true),
            libc::NLMSG_ERROR => {
                let code = i32::from_ne_bytes(
                    body.get(..4).and_then(|bytes| bytes.try_into().ok()).ok_or_else(broken)?,
                );
                // Zero acknowledges.
                return match code {
                    0 => Ok(true),
                    code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
                };
            }
            _ => found.push(body.to_vec()),
        }
        answer = answer.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

fn open() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: the call takes no pointer.
    let descriptor = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just opened, and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(descriptor) };
    let patience = libc::timeval { tv_sec: PATIENCE_S, tv_usec: 0 };
    let bytes = libc::socklen_t::try_from(size_of::<libc::timeval>()).map_err(io::Error::other)?;
    // SAFETY: the pointer is to a value of the length that is said.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw const patience).cast(),
            bytes,
        )
    };
    if result == 0 { Ok(socket) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::{HEADER_BYTES, Qdisc, ROOT, message, parse, qdiscs, take};

    fn fq() -> Qdisc {
        Qdisc { device: 3, handle: 0x4852_0000, parent: ROOT, kind: "fq".to_owned() }
    }

    #[test]
    fn a_message_says_what_is_read_from_it() {
        let whole = message(libc::RTM_NEWQDISC, libc::NLM_F_REQUEST, &fq());
        assert_eq!(whole.len() % 4, 0);
        assert_eq!(parse(&whole[HEADER_BYTES..]), Some(fq()));
        for cut in 0..whole.len() - HEADER_BYTES {
            let _any = parse(&whole[HEADER_BYTES..][..cut]);
        }
    }

    #[test]
    fn an_answer_ends_where_the_kernel_says_so() {
        let body = [0u8; 4];
        let done = |kind: i32, body: [u8; 4]| {
            let mut bytes = 20u32.to_ne_bytes().to_vec();
            bytes.extend(u16::try_from(kind).unwrap().to_ne_bytes());
            bytes.extend([0; 10]);
            bytes.extend(body);
            bytes
        };
        let mut found = Vec::new();
        let mut answer = message(libc::RTM_NEWQDISC, 0, &fq());
        assert!(!take(&answer, &mut found).unwrap());
        answer.extend(done(libc::NLMSG_DONE, body));
        assert!(take(&answer, &mut found).unwrap());
        assert_eq!(found.len(), 2);
        assert!(take(&done(libc::NLMSG_ERROR, body), &mut found).unwrap());
        let refused = done(libc::NLMSG_ERROR, (-libc::EPERM).to_ne_bytes());
        let error = take(&refused, &mut found).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        assert!(take(&refused[..17], &mut found).is_err() && take(&[], &mut found).is_err());
    }

    #[test]
    fn this_host_lists_its_qdiscs() {
        match qdiscs() {
            Ok(found) => assert!(found.iter().all(|qdisc| !qdisc.kind.is_empty()), "{found:?}"),
            Err(error) => eprintln!("skipped: {error}"),
        }
    }
}
