//! What of this process stays in memory. Relocating a large program reads most of it once: what only
//! starting has needed of its files is let go, and comes in again as it is used. And large blocks that
//! are hardly touched are not kept by the allocator.

use std::{fs, io};

/// Addresses of one mapping, from the first up to before the second.
type Range = (usize, usize);

/// Which files are let go of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Files {
    /// The program's own, which stays mapped as long as it runs.
    Program,
    /// Libraries, too. Only where no other thread runs that could unmap one meanwhile, so that
    /// something else is in its place.
    All,
}

/// Has every block of a mebibyte and more come from the kernel and go back to it. Left alone, glibc keeps
/// the first that are freed, and then clears them as a whole for the next one who wants zeros: QUIC's
/// buffer for what arrives, 3 MiB of which little is ever touched, is resident from the second
/// connection on. For the beginning of a program; other C libraries do not need it.
pub fn return_large_blocks() {
    #[cfg(target_env = "gnu")]
    {
        const FROM_BYTES: libc::c_int = 1 << 20;
        // SAFETY: mallopt(3) takes two numbers, and sets a parameter of the allocator.
        let set = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, FROM_BYTES) };
        if set == 0 {
            tracing::debug!("glibc does not take M_MMAP_THRESHOLD");
        }
    }
}

/// Gives the kernel back every clean page of `files`; returns how many bytes of them were resident.
///
/// # Errors
/// When the kernel does not tell what is mapped. Nothing depends on it.
pub(crate) fn let_go(files: Files) -> io::Result<u64> {
    let program = match files {
        Files::Program => Some(fs::read_link("/proc/self/exe")?),
        Files::All => None,
    };
    let program = program.as_ref().map(|path| path.to_string_lossy());
    let program = program.as_deref().map(|path| path.strip_suffix(" (deleted)").unwrap_or(path));
    let (ranges, resident_bytes) = clean(&fs::read_to_string("/proc/self/smaps")?, program);
    for (from, to) in ranges {
        // SAFETY: the range is a whole mapping of a file, which is still mapped as `Files` says, cannot
        // be written to and has no changed page, so that what is read from it next is what the file
        // says, as before.
        let result =
            unsafe { libc::madvise(from as *mut libc::c_void, to - from, libc::MADV_DONTNEED) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(resident_bytes)
}

/// The mappings in `smaps` (`proc_pid_smaps(5)`) of `only`, or of every file, that cannot be written to
/// and of which no page differs from the file, and how much of them is resident, bytes. What was
/// relocated differs, and is left alone. A path with spaces is not found, and nothing of it let go.
fn clean(smaps: &str, only: Option<&str>) -> (Vec<Range>, u64) {
    let (mut ranges, mut resident_bytes) = (Vec::new(), 0);
    let (mut mapping, mut resident) = (None, 0);
    for line in smaps.lines() {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "Rss:" => resident = kib(rest).unwrap_or(0) * 1024,
            "Anonymous:" => {
                if let (Some(range), Some(0)) = (mapping.take(), kib(rest))
                    && resident > 0
                {
                    ranges.push(range);
                    resident_bytes += resident;
                }
            }
            _ if word.ends_with(':') => {}
            _ => mapping = of_file(word, rest, only),
        }
    }
    (ranges, resident_bytes)
}

/// The range of a heading like `55..-56.. r-xp 00f79000 fe:00 1234   /usr/bin/x`, if it is of a file,
/// of `only` where one is given, and private to this process without a right to write.
fn of_file(range: &str, rest: &str, only: Option<&str>) -> Option<Range> {
    let mut words = rest.split_whitespace();
    let rights = words.next()?;
    let path = words.nth(3)?;
    let is_private = rights.ends_with('p') && !rights.contains('w');
    let is_meant = path.starts_with('/') && only.is_none_or(|only| path == only);
    let (from, to) = range.split_once('-').filter(|_| is_private && is_meant)?;
    let parse = |address| usize::from_str_radix(address, 16).ok();
    Some((parse(from)?, parse(to)?)).filter(|(from, to)| from < to)
}

fn kib(text: &str) -> Option<u64> {
    text.trim().trim_end_matches(" kB").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{Files, clean, let_go};

    #[test]
    fn only_clean_pages_of_files_are_let_go() {
        let of = |heading: &str, resident: u64, differs: u64| {
            format!("{heading}\nSize: 99 kB\nRss:   {resident} kB\nAnonymous:  {differs} kB\n")
        };
        let smaps = [
            of("1000-3000 r-xp 00001000 fe:00 7    /usr/bin/a", 8, 0),
            of("3000-4000 r--p 00003000 fe:00 7    /usr/bin/a", 4, 4),
            of("4000-5000 rw-p 00004000 fe:00 7    /usr/bin/a", 4, 0),
            of("5000-6000 r--s 00004000 fe:00 8    /dev/shm/b", 4, 0),
            of("6000-7000 r-xp 00000000 00:00 0    [vdso]", 4, 0),
            of("7000-8000 r--p 00000000 00:00 0 ", 4, 0),
            of("8000-9000 r--p 00000000 fe:00 9    /usr/lib/c", 4, 0),
            of("9000-a000 r--p 00000000 fe:00 7    /usr/bin/a", 0, 0),
            of("9000-8000 r--p 00000000 fe:00 7    /usr/bin/a", 4, 0),
        ];
        let program = (0x1000, 0x3000);
        assert_eq!(clean(&smaps.concat(), Some("/usr/bin/a")), (vec![program], 8192));
        assert_eq!(clean(&smaps.concat(), None), (vec![program, (0x8000, 0x9000)], 12_288));
        assert_eq!(clean("Anonymous: 0 kB\nnothing\n", None), (vec![], 0));
    }

    #[test]
    fn a_program_goes_on_without_them() {
        assert!(let_go(Files::Program).unwrap() > 0);
        assert!(let_go(Files::Program).unwrap() > 0, "what is used has come in again");
    }
}
