//! What tracepoints hand to programs, beside what the programs take it for.
//!
//! A program of another kernel would read a number as a pointer, or one structure as another. Numbers come
//! in eight bytes whatever their type, so that another width of theirs is read rightly.

use std::collections::BTreeMap;

use super::btf::{Argument, Btf, BtfError};

/// What a program takes an argument for.
#[derive(Clone, Copy, Debug)]
enum Taken {
    /// A pointer to one of these structures.
    Pointer(&'static [&'static str]),
    /// A pointer to text.
    Text,
    /// A number.
    Number,
}

use Taken::{Number, Pointer, Text};

const TASK: Taken = Pointer(&["task_struct"]);
const SOCKET: Taken = Pointer(&["sock"]);
const MAPPING: Taken = Pointer(&["address_space"]);
/// Folios are pages before Linux 5.16.
const FOLIO: Taken = Pointer(&["folio", "page"]);
const CGROUP: Taken = Pointer(&["cgroup"]);

/// Arguments that programs use, by place.
const USED: [(&str, &[(usize, Taken)]); 18] = [
    ("sched_switch", &[(0, Number), (1, TASK), (2, TASK)]),
    ("sched_migrate_task", &[(0, TASK)]),
    ("sched_process_exec", &[(0, TASK)]),
    ("sched_process_exit", &[(0, TASK)]),
    ("block_rq_complete", &[(0, Pointer(&["request"])), (2, Number)]),
    ("inet_sock_set_state", &[(0, SOCKET), (1, Number), (2, Number)]),
    ("tcp_retransmit_skb", &[(0, SOCKET)]),
    ("kfree_skb", &[(0, Pointer(&["sk_buff"]))]),
    ("udp_fail_queue_rcv_skb", &[(1, SOCKET)]),
    ("mm_filemap_add_to_page_cache", &[(0, FOLIO)]),
    ("mm_filemap_get_pages", &[(0, MAPPING), (1, Number), (2, Number)]),
    ("mm_filemap_fault", &[(0, MAPPING), (1, Number)]),
    ("mm_filemap_map_pages", &[(0, MAPPING), (1, Number), (2, Number)]),
    ("writeback_dirty_folio", &[(0, FOLIO)]),
    ("writeback_dirty_page", &[(0, FOLIO)]),
    ("cgroup_mkdir", &[(0, CGROUP), (1, Text)]),
    ("cgroup_rmdir", &[(0, CGROUP), (1, Text)]),
    // Which of the two ways it tells a victim is seen from its arguments.
    ("mark_victim", &[]),
];

/// Bytes in which every argument comes; one that needs more would move those after it.
const PLACE_BYTES: u64 = 8;

/// Arguments of `kfree_skb` with a reason, and with the socket that would have received the packet.
const DROP_ARGUMENTS: usize = 3;
const DROP_ARGUMENTS_WITH_RECEIVER: usize = 4;
/// Arguments of `mark_victim` with the task itself, and not only its process id.
const VICTIM_ARGUMENTS_WITH_TASK: usize = 2;

/// The tracepoints that programs are attached to, as this kernel has them.
pub(super) struct Tracepoints(BTreeMap<&'static str, Vec<Argument>>);

impl Tracepoints {
    /// Looks up every tracepoint that a program uses.
    ///
    /// # Errors
    /// When the type information is damaged.
    pub(super) fn find(btf: &Btf<'_>) -> Result<Self, BtfError> {
        btf.tracepoints(&USED.map(|(name, _arguments)| name)).map(Self)
    }

    /// Why the programs for `tracepoint` cannot be attached: it is not there, or hands out something
    /// else than they take. `None` when they can.
    pub(super) fn missing(&self, tracepoint: &str) -> Option<String> {
        let (name, used) = USED.iter().find(|(name, _used)| *name == tracepoint)?;
        let Some(arguments) = self.0.get(name) else {
            return Some(format!("this kernel has no tracepoint {tracepoint}"));
        };
        used.iter().find_map(|(place, taken)| {
            let is_whole = |argument: &Argument| match argument {
                Argument::Pointer(_) => true,
                Argument::Value { bytes } => (1..=PLACE_BYTES).contains(bytes),
            };
            let said = arguments.get(..=*place).filter(|upto| upto.iter().all(is_whole));
            let is_it = said.and_then(<[_]>::last).is_some_and(|argument| taken.fits(argument));
            (!is_it).then(|| {
                let wanted = taken.in_words();
                format!(
                    "argument {place} of tracepoint {tracepoint} is not {wanted} on this kernel"
                )
            })
        })
    }

    /// Whether the kernel has `tracepoint`, whatever it hands out.
    pub(super) fn has(&self, tracepoint: &str) -> bool {
        self.0.contains_key(tracepoint)
    }

    /// Whether a drop tells its reason.
    pub(super) fn tells_drop_reason(&self) -> bool {
        self.count("kfree_skb") >= DROP_ARGUMENTS && self.fits("kfree_skb", 2, Number)
    }

    /// Whether a drop names the socket that would have received the packet.
    pub(super) fn tells_drop_receiver(&self) -> bool {
        self.count("kfree_skb") >= DROP_ARGUMENTS_WITH_RECEIVER && self.fits("kfree_skb", 3, SOCKET)
    }

    /// Whether a victim of the OOM killer is told as a task, and not only by its process id.
    pub(super) fn tells_victim_task(&self) -> bool {
        self.count("mark_victim") >= VICTIM_ARGUMENTS_WITH_TASK && self.fits("mark_victim", 0, TASK)
    }

    fn fits(&self, tracepoint: &str, place: usize, taken: Taken) -> bool {
        let argument = self.0.get(tracepoint).and_then(|arguments| arguments.get(place));
        argument.is_some_and(|argument| taken.fits(argument))
    }

    fn count(&self, tracepoint: &str) -> usize {
        self.0.get(tracepoint).map_or(0, Vec::len)
    }
}

impl Taken {
    fn fits(self, argument: &Argument) -> bool {
        match (self, argument) {
            (Pointer(names), Argument::Pointer(name)) => names.contains(&name.as_str()),
            (Text, Argument::Pointer(name)) => name.is_empty(),
            (Number, Argument::Value { bytes }) => (1..=PLACE_BYTES).contains(bytes),
            _ => false,
        }
    }

    fn in_words(self) -> String {
        match self {
            Pointer(names) => format!("a pointer to struct {}", names.join(" or ")),
            Text => "a pointer to text".to_owned(),
            Number => "a number".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Argument, Tracepoints};

    fn pointer(name: &str) -> Argument {
        Argument::Pointer(name.to_owned())
    }

    #[test]
    fn arguments_that_are_not_what_a_program_takes_are_named() {
        let value = |bytes| Argument::Value { bytes };
        let told = |name, arguments: Vec<Argument>| Tracepoints([(name, arguments)].into());
        let requests =
            |arguments| told("block_rq_complete", arguments).missing("block_rq_complete");
        assert_eq!(requests(vec![pointer("request"), value(1), value(4)]), None);
        assert_eq!(requests(vec![pointer("request"), value(4), value(8)]), None, "another width");
        let said = requests(vec![pointer("bio"), value(1), value(4)]).unwrap();
        assert_eq!(
            said,
            "argument 0 of tracepoint block_rq_complete is not a pointer to struct request on this \
             kernel"
        );
        assert!(requests(vec![pointer("request"), value(1)]).unwrap().contains("argument 2"));
        let moved = requests(vec![pointer("request"), value(16), value(4)]).unwrap();
        assert!(moved.contains("argument 2"), "one before it takes two places: {moved}");
        assert!(requests(vec![pointer("request"), value(1), pointer("")]).is_some());
        let none = told("sched_switch", Vec::new());
        assert!(none.missing("cgroup_mkdir").unwrap().contains("no tracepoint cgroup_mkdir"));
    }

    #[test]
    fn what_is_told_beside_is_seen_from_the_arguments() {
        let value = Argument::Value { bytes: 4 };
        let drop = |more: &[Argument]| {
            let first = [pointer("sk_buff"), pointer("")];
            Tracepoints([("kfree_skb", [&first, more].concat())].into())
        };
        assert!(!drop(&[]).tells_drop_reason());
        assert!(drop(std::slice::from_ref(&value)).tells_drop_reason());
        assert!(!drop(&[value.clone(), value.clone()]).tells_drop_receiver());
        assert!(drop(&[value.clone(), pointer("sock")]).tells_drop_receiver());
        let victim = |arguments| Tracepoints([("mark_victim", arguments)].into());
        assert!(victim(vec![pointer("task_struct"), value.clone()]).tells_victim_task());
        assert!(!victim(vec![value]).tells_victim_task());
    }
}
