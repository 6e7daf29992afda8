//! The words between the init script and this side: marker lines on the serial console. A suite
//! counts as passed only when its closing marker says so; silence is a failure. Pure.

/// Begins every marker line.
const MARK: &str = "HEADROOM-VM";

/// What a boot showed.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Transcript {
    /// What `uname -r` said inside; `None` when the init script never ran.
    pub(crate) kernel: Option<String>,
    /// Exit status of each suite that came to its end, in order.
    pub(crate) ended: Vec<(String, i32)>,
    /// Lines with which a test said that it did not run, and why.
    pub(crate) skipped: Vec<String>,
    /// Whether the machine shut down by itself after the last suite.
    pub(crate) closed: bool,
    /// Lines a panicking kernel wrote.
    pub(crate) panics: Vec<String>,
}

/// The shell lines that run one suite between its markers.
pub(crate) fn suite_lines(name: &str, command: &str) -> String {
    format!("echo \"{MARK} begin {name}\"\n{command}\necho \"{MARK} end {name} $?\"\n")
}

/// The shell line that names the kernel.
pub(crate) fn opening_line() -> String {
    format!("echo \"{MARK} kernel $(busybox uname -r)\"\n")
}

/// The shell line after the last suite.
pub(crate) fn closing_line() -> String {
    format!("echo \"{MARK} closed\"\n")
}

/// Reads a serial log. Kernel messages may stand before a marker on the same line.
pub(crate) fn read(log: &str) -> Transcript {
    let mut transcript = Transcript::default();
    for line in log.lines() {
        if let Some(reason) = skip_reason(line) {
            transcript.skipped.push(reason);
        }
        if line.contains("Kernel panic") || line.contains("BUG: ") {
            transcript.panics.push(line.trim().to_owned());
        }
        let Some((_, marker)) = line.split_once(MARK) else { continue };
        let words: Vec<&str> = marker.split_whitespace().collect();
        match words[..] {
            ["kernel", release] => transcript.kernel = Some(release.to_owned()),
            ["end", name, status] => {
                let status = status.parse().unwrap_or(i32::MAX);
                transcript.ended.push((name.to_owned(), status));
            }
            ["closed"] => transcript.closed = true,
            _ => {}
        }
    }
    transcript
}

/// What is wrong with a boot that was to run `expected`; empty when all is well.
pub(crate) fn faults(transcript: &Transcript, expected: &[&str]) -> Vec<String> {
    let mut faults = transcript.panics.clone();
    if transcript.kernel.is_none() {
        faults.push("the machine did not reach its init script".to_owned());
    }
    for name in expected {
        match transcript.ended.iter().find(|(ended, _)| ended == name) {
            Some((_, 0)) => {}
            Some((_, status)) => faults.push(format!("{name} ended with status {status}")),
            None => faults.push(format!("{name} did not come to its end")),
        }
    }
    if !transcript.closed {
        faults.push("the machine did not shut down by itself".to_owned());
    }
    faults
}

/// The words after `skipped:` in a line a test wrote about itself.
pub(crate) fn skip_reason(line: &str) -> Option<String> {
    let line = line.trim();
    let mark = "skipped:";
    let begins = line.get(..mark.len())?.eq_ignore_ascii_case(mark);
    begins.then(|| line[mark.len()..].trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[ 1.2] boot\nHEADROOM-VM kernel 6.1.0-56-cloud-amd64\n\
        HEADROOM-VM begin counts\r\ntest a ... ok\nskipped: no PMU in this machine\n\
        [ 3.4] HEADROOM-VM end counts 0\r\nHEADROOM-VM closed\n";

    #[test]
    fn a_whole_run_has_no_faults_and_tells_what_was_skipped() {
        let transcript = read(GOOD);
        assert_eq!(faults(&transcript, &["counts"]), Vec::<String>::new());
        assert_eq!(transcript.skipped, ["no PMU in this machine"]);
        assert_eq!(transcript.kernel.as_deref(), Some("6.1.0-56-cloud-amd64"));
    }

    #[test]
    fn a_suite_without_its_closing_marker_is_a_failure() {
        let cut = GOOD.split("[ 3.4]").next().unwrap();
        let found = faults(&read(cut), &["counts"]);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("did not come to its end"));
    }

    #[test]
    fn a_suite_nobody_ran_and_an_empty_log_are_failures() {
        assert_eq!(faults(&read(GOOD), &["counts", "guard"]).len(), 1);
        assert_eq!(faults(&read(""), &["counts"]).len(), 3);
    }

    #[test]
    fn a_status_other_than_zero_or_unreadable_is_a_failure() {
        for status in ["101", "x"] {
            let log = GOOD.replace("end counts 0", &format!("end counts {status}"));
            assert_eq!(faults(&read(&log), &["counts"]).len(), 1, "{status}");
        }
    }

    #[test]
    fn a_kernel_panic_is_a_failure_even_when_all_markers_are_there() {
        let log = format!("{GOOD}[ 9.9] Kernel panic - not syncing\n");
        assert_eq!(faults(&read(&log), &["counts"]).len(), 1);
    }

    #[test]
    fn the_lines_that_are_written_are_the_lines_that_are_read() {
        let script = format!("{}{}{}", opening_line(), suite_lines("a", "true"), closing_line());
        let log: String = script
            .lines()
            .filter_map(|line| line.strip_prefix("echo "))
            .map(|line| {
                line.trim_matches('"').replace("$(busybox uname -r)", "6.1").replace("$?", "0")
            })
            .map(|line| line + "\n")
            .collect();
        assert_eq!(faults(&read(&log), &["a"]), Vec::<String>::new());
    }
}
