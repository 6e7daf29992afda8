//! Which limits are held, what they were before, and until when; pure, `now` is passed in.
//!
//! `now` is monotonic time since the guard's start, so a jump of the wall clock ends no lease and
//! prolongs none.

use std::{collections::BTreeMap, time::Duration};

use headroom_allocate::Knob;

use super::{
    owner::Stake,
    path::CgroupPath,
    setting::{Setting, Standing},
};
use crate::observe::cgroup::{Version, weights::Weigher};

/// How long after a failed attempt a limit is tried to be given back again.
pub const RETRY: Duration = Duration::from_secs(1);

/// One knob of one workload.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Key {
    /// The workload.
    pub workload: CgroupPath,
    /// The knob.
    pub knob: Knob,
}

/// A limit held.
#[derive(Clone, Debug, PartialEq)]
pub struct Lease {
    /// Number of the lease, which the journal knows it by.
    pub id: u64,
    /// Inode of the cgroup's directory.
    pub inode: u64,
    /// The workload's own value, which comes back.
    pub baseline: Setting,
    /// The value in force as last confirmed; `None` before the first write.
    pub confirmed: Option<Setting>,
    /// A value that is being written, or whose write was cut short.
    pub unconfirmed: Option<Setting>,
    /// When it ends.
    pub expires: Duration,
    /// Why, for people.
    pub reason: String,
    /// The owner that was asked for the change; `None` when the file was written.
    pub stake: Option<Stake>,
    /// Whose file a weight of block I/O is in; `None` for other knobs.
    pub weigher: Option<Weigher>,
    /// Set once it has ended and could not be given back at once.
    pub pending: Option<Pending>,
}

/// A limit that is still to be given back.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pending {
    /// When to try again.
    pub retry: Duration,
    /// Why it was not possible.
    pub why: String,
}

/// What to do about a limit that is to be given back.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum GiveBack {
    /// It is back already.
    Nothing,
    /// Somebody else has set it; theirs stands.
    Foreign,
    /// Write this.
    Write(Setting),
}

impl Lease {
    /// Every value the guard has written under this lease, or may have.
    pub fn ours(&self) -> Vec<Setting> {
        self.confirmed.into_iter().chain(self.unconfirmed).collect()
    }

    /// What to do to give the baseline back where `found` is in force.
    pub fn give_back(&self, found: Setting, version: Version, page_bytes: u64) -> GiveBack {
        let ours = self.ours();
        match found.standing(self.baseline, &ours, version, page_bytes) {
            Standing::Baseline => GiveBack::Nothing,
            Standing::Foreign => GiveBack::Foreign,
            Standing::Ours => GiveBack::Write(found.given_back(self.baseline, &ours)),
        }
    }

    /// Whether `found` is no longer what the guard has put into force.
    pub fn is_foreign(&self, found: Setting, page_bytes: u64) -> bool {
        !self.ours().iter().any(|ours| ours.same_limit(found, page_bytes))
    }
}

/// A change about to be made.
#[derive(Clone, Debug)]
pub struct Change {
    /// Inode of the cgroup's directory.
    pub inode: u64,
    /// The value in force.
    pub from: Setting,
    /// The workload's own value; counts if no lease is held.
    pub own: Setting,
    /// The value to write.
    pub to: Setting,
    /// When the lease ends.
    pub expires: Duration,
    /// Why, for people.
    pub reason: String,
    /// The owner that is asked for it; `None` when the file is written.
    pub stake: Option<Stake>,
    /// Whose file a weight of block I/O is in; `None` for other knobs.
    pub weigher: Option<Weigher>,
}

/// Every lease.
#[derive(Debug, Default)]
pub struct Leases {
    held: BTreeMap<Key, Lease>,
    last_id: u64,
}

impl Leases {
    /// The lease on a knob.
    pub fn get(&self, key: &Key) -> Option<&Lease> {
        self.held.get(key)
    }

    /// How many are held.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// All of them, by path.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Lease)> {
        self.held.iter()
    }

    /// The lease as it will be once `change` is under way, for the journal to record first. Its
    /// number is new if none is held.
    pub fn planned(&mut self, key: &Key, change: &Change) -> Lease {
        let held = self.held.get(key);
        let id = held.map_or_else(
            || {
                self.last_id += 1;
                self.last_id
            },
            |lease| lease.id,
        );
        Lease {
            id,
            inode: change.inode,
            baseline: held.map_or(change.own, |lease| lease.baseline),
            confirmed: held.and_then(|lease| lease.confirmed),
            unconfirmed: Some(change.to),
            expires: change.expires,
            reason: change.reason.clone(),
            stake: change.stake.clone(),
            weigher: change.weigher,
            pending: None,
        }
    }

    /// Holds a lease: one just planned and recorded, or one found in the journal.
    pub fn hold(&mut self, key: Key, lease: Lease) {
        self.last_id = self.last_id.max(lease.id);
        self.held.insert(key, lease);
    }

    /// The write is done and `in_force` was read back.
    pub fn confirm(&mut self, key: &Key, in_force: Setting) {
        if let Some(lease) = self.held.get_mut(key) {
            lease.confirmed = Some(in_force);
            lease.unconfirmed = None;
        }
    }

    /// The write was not done. Returns the number of the lease if that has ended it, because
    /// nothing was in force under it.
    pub fn cancel(&mut self, key: &Key) -> Option<u64> {
        let lease = self.held.get_mut(key)?;
        lease.unconfirmed = None;
        if lease.confirmed.is_some() {
            return None;
        }
        self.held.remove(key).map(|lease| lease.id)
    }

    /// Lets the lease on a value already in force end at `expires`.
    pub fn renew(&mut self, key: &Key, expires: Duration) {
        if let Some(lease) = self.held.get_mut(key) {
            lease.expires = expires;
            lease.pending = None;
        }
    }

    /// The limit could not be given back at `now`: it is due again a little later.
    pub fn postpone(&mut self, key: &Key, why: String, now: Duration) {
        if let Some(lease) = self.held.get_mut(key) {
            lease.expires = lease.expires.min(now);
            lease.pending = Some(Pending { retry: now + RETRY, why });
        }
    }

    /// The lease is over.
    pub fn end(&mut self, key: &Key) -> Option<Lease> {
        self.held.remove(key)
    }

    /// Leases to be given back at `now`, deepest cgroups first, because in v1 a parent's quota
    /// cannot go below its child's.
    pub fn due(&self, now: Duration) -> Vec<Key> {
        let is_due = |lease: &Lease| match &lease.pending {
            Some(pending) => pending.retry <= now,
            None => lease.expires <= now,
        };
        deepest_first(self.held.iter().filter(|(_key, lease)| is_due(lease)))
    }

    /// Every lease, deepest cgroups first.
    pub fn all(&self) -> Vec<Key> {
        deepest_first(self.held.iter())
    }

    /// Leases that have not ended, whose files should hold what the guard wrote.
    pub fn in_force(&self) -> Vec<Key> {
        let in_force = self.held.iter().filter(|(_key, lease)| lease.pending.is_none());
        in_force.map(|(key, _lease)| key.clone()).collect()
    }
}

fn deepest_first<'a>(held: impl Iterator<Item = (&'a Key, &'a Lease)>) -> Vec<Key> {
    let mut keys: Vec<Key> = held.map(|(key, _lease)| key.clone()).collect();
    keys.sort_by_key(|key| std::cmp::Reverse(key.workload.depth()));
    keys
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use headroom_allocate::Knob;
    use proptest::{
        collection::vec, prelude::any, prop_oneof, proptest, strategy::Strategy,
        test_runner::Config,
    };

    use super::{Change, GiveBack, Key, Leases, Setting};
    use crate::{guard::path::CgroupPath, observe::cgroup::Version};

    const PAGE: u64 = 1;

    /// What can happen to three knobs, in any order.
    #[derive(Clone, Debug)]
    enum Event {
        Apply { knob: usize, value: u64, lease_s: u64, lands: bool },
        Renew { knob: usize, lease_s: u64 },
        Release { knob: usize },
        Foreign { knob: usize, value: u64 },
        GiveBackFails,
        Pass { seconds: u64 },
    }

    fn event() -> impl Strategy<Value = Event> {
        let knob = 0usize..3;
        prop_oneof![
            (knob.clone(), 0u64..50, 1u64..100, any::<bool>()).prop_map(
                |(knob, value, lease_s, lands)| Event::Apply {
                    knob,
                    // Ours are even and others' odd, so that they are never the same by chance.
                    value: value * 2,
                    lease_s,
                    lands,
                }
            ),
            (knob.clone(), 1u64..100).prop_map(|(knob, lease_s)| Event::Renew { knob, lease_s }),
            knob.clone().prop_map(|knob| Event::Release { knob }),
            (knob, 0u64..50)
                .prop_map(|(knob, value)| Event::Foreign { knob, value: value * 2 + 1 }),
            proptest::strategy::Just(Event::GiveBackFails),
            (0u64..60).prop_map(|seconds| Event::Pass { seconds }),
        ]
    }

    /// Files as they are, and as they would be had the guard never run.
    struct World {
        files: BTreeMap<Key, Setting>,
        without_us: BTreeMap<Key, Setting>,
        leases: Leases,
        now: Duration,
    }

    impl World {
        fn new() -> Self {
            let files: BTreeMap<Key, Setting> = (0..3)
                .map(|i| {
                    let workload = CgroupPath::parse(&format!("/w{i}")).unwrap();
                    (Key { workload, knob: Knob::MemoryHigh }, Setting::Memory(Some(1_001)))
                })
                .collect();
            let without_us = files.clone();
            Self { files, without_us, leases: Leases::default(), now: Duration::ZERO }
        }

        fn key(&self, knob: usize) -> Key {
            self.files.keys().nth(knob).unwrap().clone()
        }

        fn give_back(&mut self, key: &Key) {
            let Some(lease) = self.leases.get(key) else { return };
            match lease.give_back(self.files[key], Version::V2, PAGE) {
                GiveBack::Nothing | GiveBack::Foreign => {}
                GiveBack::Write(setting) => {
                    self.files.insert(key.clone(), setting);
                }
            }
            self.leases.end(key);
        }

        fn check(&mut self) {
            for key in self.leases.in_force() {
                if self.leases.get(&key).unwrap().is_foreign(self.files[&key], PAGE) {
                    self.leases.end(&key);
                }
            }
        }

        fn happen(&mut self, event: &Event) {
            match *event {
                Event::Apply { knob, value, lease_s, lands } => {
                    self.check();
                    let key = self.key(knob);
                    let change = Change {
                        inode: 1,
                        from: self.files[&key],
                        own: self.files[&key],
                        to: Setting::Memory(Some(value)),
                        expires: self.now + Duration::from_secs(lease_s),
                        reason: String::new(),
                        stake: None,
                        weigher: None,
                    };
                    let lease = self.leases.planned(&key, &change);
                    self.leases.hold(key.clone(), lease);
                    if lands {
                        self.files.insert(key.clone(), change.to);
                        self.leases.confirm(&key, change.to);
                    } else {
                        self.leases.cancel(&key);
                    }
                }
                Event::Renew { knob, lease_s } => {
                    let expires = self.now + Duration::from_secs(lease_s);
                    self.leases.renew(&self.key(knob), expires);
                }
                Event::Release { knob } => self.give_back(&self.key(knob)),
                Event::Foreign { knob, value } => {
                    let key = self.key(knob);
                    self.files.insert(key.clone(), Setting::Memory(Some(value)));
                    self.without_us.insert(key, Setting::Memory(Some(value)));
                }
                Event::GiveBackFails => {
                    for key in self.leases.due(self.now) {
                        self.leases.postpone(&key, "busy".to_owned(), self.now);
                    }
                }
                Event::Pass { seconds } => {
                    self.now += Duration::from_secs(seconds);
                    for key in self.leases.due(self.now) {
                        self.give_back(&key);
                    }
                }
            }
        }
    }

    proptest! {
        #![proptest_config(Config::with_cases(512))]
        #[test]
        fn whatever_happens_every_knob_ends_at_its_own_value(events in vec(event(), 0..60)) {
            let mut world = World::new();
            for event in &events {
                world.happen(event);
            }
            world.happen(&Event::Pass { seconds: 200 });
            assert_eq!(world.files, world.without_us);
            assert!(world.leases.is_empty());
        }
    }

    #[test]
    fn a_first_write_that_fails_leaves_no_lease_and_a_later_one_leaves_the_former() {
        let mut leases = Leases::default();
        let key = Key { workload: CgroupPath::parse("/a").unwrap(), knob: Knob::CpuQuota };
        let change = |to| Change {
            inode: 1,
            from: Setting::Memory(Some(1)),
            own: Setting::Memory(Some(1)),
            to: Setting::Memory(Some(to)),
            expires: Duration::from_secs(10),
            reason: String::new(),
            stake: None,
            weigher: None,
        };
        let first = leases.planned(&key, &change(2));
        leases.hold(key.clone(), first.clone());
        assert_eq!(leases.cancel(&key), Some(first.id));
        assert!(leases.is_empty());

        let second = leases.planned(&key, &change(2));
        assert!(second.id > first.id);
        leases.hold(key.clone(), second);
        leases.confirm(&key, Setting::Memory(Some(2)));
        let third = leases.planned(&key, &change(3));
        assert_eq!(third.ours(), [Setting::Memory(Some(2)), Setting::Memory(Some(3))]);
        leases.hold(key.clone(), third);
        assert_eq!(leases.cancel(&key), None);
        assert_eq!(leases.get(&key).unwrap().ours(), [Setting::Memory(Some(2))]);
    }

    #[test]
    fn children_are_due_before_their_parents() {
        let mut leases = Leases::default();
        for path in ["/a", "/a/b/c", "/a/b"] {
            let key = Key { workload: CgroupPath::parse(path).unwrap(), knob: Knob::CpuQuota };
            let change = Change {
                inode: 1,
                from: Setting::Memory(None),
                own: Setting::Memory(None),
                to: Setting::Memory(None),
                expires: Duration::from_secs(1),
                reason: String::new(),
                stake: None,
                weigher: None,
            };
            let lease = leases.planned(&key, &change);
            leases.hold(key, lease);
        }
        assert!(leases.due(Duration::ZERO).is_empty());
        let due = leases.due(Duration::from_secs(1));
        let paths: Vec<_> = due.iter().map(|key| key.workload.as_str()).collect();
        assert_eq!(paths, ["/a/b/c", "/a/b", "/a"]);
    }
}
