//! Tasks of a host made of plain files.

use std::{collections::BTreeMap, fs, path::Path};

use super::{TaskFiles, TaskLists};

struct FakeProc(tempfile::TempDir);

impl FakeProc {
    fn new() -> Self {
        let fake = Self(tempfile::tempdir().unwrap());
        fake.write("proc/1/ns/net", "");
        fake
    }

    fn root(&self) -> &Path {
        self.0.path()
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn task(&self, id: u32, n: u64) {
        let dir = format!("proc/{id}");
        self.write(&format!("{dir}/schedstat"), &format!("1 {} {n}\n", n * 500_000_000));
        let status = format!("voluntary_ctxt_switches:\t{n}\nnonvoluntary_ctxt_switches:\t0\n");
        self.write(&format!("{dir}/status"), &status);
        self.write(&format!("{dir}/io"), &format!("syscr: {n}\nsyscw: {}\n", 2 * n));
        let head = "a|b|c\nd|e|f\n";
        let traffic = format!("{head}eth0: {n} 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n");
        self.write(&format!("{dir}/net/dev"), &traffic);
    }

    fn own_namespace(&self, id: u32) {
        self.write(&format!("proc/{id}/ns/net"), "");
    }

    fn same_namespace(&self, id: u32, as_id: &str) {
        fs::create_dir_all(self.root().join(format!("proc/{id}/ns"))).unwrap();
        let there = self.root().join(format!("proc/{as_id}/ns/net"));
        fs::hard_link(there, self.root().join(format!("proc/{id}/ns/net"))).unwrap();
    }

    fn lists(&self, workloads: &[(&str, &[u32])]) -> BTreeMap<String, TaskLists> {
        let list = |(path, ids): &(&str, &[u32])| {
            let text: String = ids.iter().map(|id| format!("{id}\n")).collect();
            self.write(&format!("cg{path}/cgroup.threads"), &text);
            self.write(&format!("cg{path}/cgroup.procs"), &text);
            let dir = self.root().join(format!("cg{path}"));
            let lists = TaskLists {
                threads: dir.join("cgroup.threads"),
                processes: dir.join("cgroup.procs"),
            };
            ((*path).to_owned(), lists)
        };
        workloads.iter().map(list).collect()
    }
}

#[test]
fn waits_switches_calls_and_own_traffic_are_rates() {
    let host = FakeProc::new();
    for id in [10, 11, 20] {
        host.task(id, 100);
    }
    host.own_namespace(10);
    host.same_namespace(11, "10");
    host.same_namespace(20, "1");
    let lists = host.lists(&[("/a", &[10, 11]), ("/b", &[20])]);
    let mut files = TaskFiles::new(host.root(), 100);
    let first = files.look(&lists, 1.0);
    assert_eq!(first["/a"].switches, None, "nothing to compare with");
    for id in [10, 11, 20] {
        host.task(id, 104);
    }
    let second = files.look(&lists, 3.0);
    let a = second["/a"];
    assert_eq!((a.wait_ratio, a.switches, a.voluntary), (Some(2.0), Some(4.0), Some(4.0)));
    assert_eq!((a.involuntary, a.reads, a.writes), (Some(0.0), Some(4.0), Some(8.0)));
    assert_eq!(a.traffic, Some([2.0, 0.0, 0.0, 0.0]));
    assert_eq!(second["/b"].traffic, None, "the host's traffic is not the workload's");
    assert!(files.why_missing("/b", true).contains("shares its network namespace"));
}

#[test]
fn a_namespace_shared_by_two_workloads_is_nobodys() {
    let host = FakeProc::new();
    host.task(10, 1);
    host.task(20, 1);
    host.own_namespace(10);
    host.same_namespace(20, "10");
    let lists = host.lists(&[("/a", &[10]), ("/b", &[20])]);
    let mut files = TaskFiles::new(host.root(), 100);
    for at_s in [1.0, 2.0, 3.0] {
        let rates = files.look(&lists, at_s);
        assert_eq!((rates["/a"].traffic, rates["/b"].traffic), (None, None));
    }
}

#[test]
fn no_more_tasks_are_read_than_allowed_and_every_workload_gets_its_turn() {
    let host = FakeProc::new();
    let ids: Vec<u32> = (10..40).collect();
    for id in &ids {
        host.task(*id, 1);
    }
    let groups: [(&str, &[u32]); 4] =
        [("/a", &ids[..4]), ("/b", &ids[4..8]), ("/c", &ids[8..12]), ("/huge", &ids[12..])];
    let lists = host.lists(&groups);
    let mut files = TaskFiles::new(host.root(), 8);
    let mut turns = BTreeMap::new();
    for at_s in 1..=6 {
        let rates = files.look(&lists, f64::from(at_s));
        assert!(files.n_read() <= 8);
        for path in rates.into_keys() {
            *turns.entry(path).or_insert(0) += 1;
        }
    }
    assert_eq!(turns, BTreeMap::from(["/a", "/b", "/c"].map(|path| (path.to_owned(), 4))));
    assert!(files.why_missing("/huge", false).contains("more tasks than"));
    let unread = ["/a", "/b", "/c"]
        .iter()
        .filter(|path| files.why_missing(path, false).contains("not its turn"));
    assert_eq!(unread.count(), 1);
}

#[test]
fn tasks_that_end_while_they_are_read_leave_no_trace() {
    let host = FakeProc::new();
    host.task(10, 1);
    let lists = host.lists(&[("/a", &[10, 999])]);
    let mut files = TaskFiles::new(host.root(), 8);
    files.look(&lists, 1.0);
    host.task(10, 2);
    assert_eq!(files.look(&lists, 2.0)["/a"].switches, Some(1.0));
    assert!(files.look(&BTreeMap::new(), 3.0).is_empty());
    assert_eq!(files.why_missing("/a", false), "its tasks were not read yet");
}
