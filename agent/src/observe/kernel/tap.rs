//! One program at one tracepoint, taken off and put on again.

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd},
};

use aya::programs::ProgramFd;

/// `BPF_RAW_TRACEPOINT_OPEN` of `bpf(2)`.
const RAW_TRACEPOINT_OPEN: libc::c_long = 17;

/// What that command takes, as `bpf(2)` lays it out.
#[repr(C)]
struct RawTracepointOpen {
    name: u64,
    program: u32,
    reserved: u32,
    cookie: u64,
}

/// A loaded program, attached while `link` is there.
pub(super) struct Tap {
    program: ProgramFd,
    /// Unset for a program that was loaded for one tracepoint only.
    tracepoint: Option<CString>,
    link: Option<OwnedFd>,
}

impl Tap {
    /// Puts `program` on.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn attached(program: ProgramFd, tracepoint: Option<&str>) -> io::Result<Self> {
        let tracepoint = tracepoint.map(CString::new).transpose().map_err(io::Error::other)?;
        let mut tap = Self { program, tracepoint, link: None };
        tap.put_on()?;
        Ok(tap)
    }

    /// Attaches the program, unless it is.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn put_on(&mut self) -> io::Result<()> {
        if self.link.is_some() {
            return Ok(());
        }
        let name = self.tracepoint.as_ref().map_or(0, |name| name.as_ptr() as u64);
        let program = AsFd::as_fd(&self.program).as_raw_fd();
        let program = u32::try_from(program).map_err(io::Error::other)?;
        let attributes = RawTracepointOpen { name, program, reserved: 0, cookie: 0 };
        // SAFETY: the attributes and the name outlive the call, and their size is passed; the
        // kernel reads them only.
        let opened = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                RAW_TRACEPOINT_OPEN,
                &raw const attributes,
                // Without the cookie, which older kernels do not know.
                size_of::<RawTracepointOpen>() - size_of::<u64>(),
            )
        };
        let link = i32::try_from(opened).map_err(io::Error::other)?;
        if link < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just opened it for us.
        self.link = Some(unsafe { OwnedFd::from_raw_fd(link) });
        Ok(())
    }

    /// Detaches the program.
    pub(super) fn take_off(&mut self) {
        self.link = None;
    }
}
