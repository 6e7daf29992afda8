//! Pure parsers of what `/proc` tells of a task. `None` for what cannot be read; never a panic.

/// What the scheduler counted of one task since it began.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct SchedTotals {
    /// Time it could have run and waited for a CPU, nanoseconds.
    pub wait_ns: u64,
    /// Times it was put on a CPU.
    pub switches: u64,
}

/// Times a task left a CPU since it began.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct SwitchTotals {
    /// To wait for something.
    pub voluntary: u64,
    /// Because another was to run.
    pub involuntary: u64,
}

/// Calls of a process that read from and wrote to descriptors since it began, ended threads
/// included.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct CallTotals {
    /// Calls that read.
    pub reads: u64,
    /// Calls that wrote.
    pub writes: u64,
}

/// Traffic of a network namespace since it was made, without its loopback.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct TrafficTotals {
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
}

/// `/proc/TID/schedstat`: time on a CPU, time waiting, and times put on one.
pub fn schedstat(text: &str) -> Option<SchedTotals> {
    let mut numbers = text.split_ascii_whitespace().skip(1).map(|word| word.parse().ok());
    Some(SchedTotals { wait_ns: numbers.next()??, switches: numbers.next()?? })
}

fn value_of(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    line.trim().parse().ok()
}

/// The counts of switches in `/proc/TID/status`.
pub fn status(text: &str) -> Option<SwitchTotals> {
    Some(SwitchTotals {
        voluntary: value_of(text, "voluntary_ctxt_switches")?,
        involuntary: value_of(text, "nonvoluntary_ctxt_switches")?,
    })
}

/// The counts of calls in `/proc/PID/io`.
pub fn io(text: &str) -> Option<CallTotals> {
    Some(CallTotals { reads: value_of(text, "syscr")?, writes: value_of(text, "syscw")? })
}

/// `/proc/PID/net/dev`, summed over devices but the loopback; `None` when it is not such a file.
pub fn net_dev(text: &str) -> Option<TrafficTotals> {
    const TX_AT: usize = 8;
    let mut total = TrafficTotals::default();
    let mut lines = text.lines();
    if !lines.next()?.contains('|') || !lines.next()?.contains('|') {
        return None;
    }
    for line in lines {
        // A device's name may hold colons (of old aliases); the counts do not.
        let Some((name, counts)) = line.rsplit_once(':') else { continue };
        let counts: Vec<u64> =
            counts.split_ascii_whitespace().map_while(|word| word.parse().ok()).collect();
        let (Some([rx_bytes, rx_packets]), Some([tx_bytes, tx_packets])) =
            (counts.get(..2), counts.get(TX_AT..TX_AT + 2))
        else {
            continue;
        };
        if name.trim() == "lo" {
            continue;
        }
        total.rx_bytes = total.rx_bytes.saturating_add(*rx_bytes);
        total.rx_packets = total.rx_packets.saturating_add(*rx_packets);
        total.tx_bytes = total.tx_bytes.saturating_add(*tx_bytes);
        total.tx_packets = total.tx_packets.saturating_add(*tx_packets);
    }
    Some(total)
}

/// The numbers in a list of tasks or processes, one a line.
pub fn ids(text: &str) -> Vec<u32> {
    text.lines().filter_map(|line| line.trim().parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::any, proptest};

    use super::{
        CallTotals, SchedTotals, SwitchTotals, TrafficTotals, ids, io, net_dev, schedstat, status,
    };

    const NET_DEV: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 74884686  105211    0    0    0     0          0         0 74884686  105211    0    0    0     0       0          0
  eth0: 1000      10    0    0    0     0          0         0 2000      20    0    0    0     0       0          0
eth0:1:  500       5    0    0    0     0          0         0  600       6    0    0    0     0       0          0
";

    #[test]
    fn files_of_a_task_are_read() {
        let expected = SchedTotals { wait_ns: 180_842, switches: 7 };
        assert_eq!(schedstat("512 180842 7\n"), Some(expected));
        assert_eq!(schedstat("512 180842\n"), None);
        let text = "Name:\tvoluntary_ctxt_switches: 9\nvoluntary_ctxt_switches:\t150\n\
                    nonvoluntary_ctxt_switches:\t545\n";
        assert_eq!(status(text), Some(SwitchTotals { voluntary: 150, involuntary: 545 }));
        let text = "rchar: 6987\nwchar: 11\nsyscr: 12\nsyscw: 1\nread_bytes: 0\n";
        assert_eq!(io(text), Some(CallTotals { reads: 12, writes: 1 }));
        assert_eq!(ids("1\n22\nx\n"), [1, 22]);
    }

    #[test]
    fn traffic_leaves_out_what_stays_inside() {
        let expected =
            TrafficTotals { rx_bytes: 1_500, rx_packets: 15, tx_bytes: 2_600, tx_packets: 26 };
        assert_eq!(net_dev(NET_DEV), Some(expected));
        assert_eq!(net_dev("rx: 1 2 3\n"), None);
    }

    proptest! {
        #[test]
        fn hostile_text_never_panics(text in any::<String>(), lines in "([a-z:|]{0,4}[ 0-9]{0,30}\n){0,6}") {
            for text in [text, lines] {
                schedstat(&text);
                status(&text);
                io(&text);
                net_dev(&text);
                ids(&text);
            }
        }
    }
}
