//! Where history cannot be written, or takes long about it, agents wait and lose nothing.

use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use headroom_aggregator::history::{History, HistoryConfig, Local};
use headroom_lake::storage::Storage;

use crate::{
    ingest::Ingest,
    world::{self, World, eventually},
};

/// A disk that takes no commit while it is busy.
#[derive(Debug, Default)]
struct Busy(AtomicBool);

impl Storage for Busy {
    fn reach(&self, step: &'static str, _path: &Path) -> io::Result<()> {
        while step == "commit" && self.0.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        Local.free_bytes(path)
    }
}

#[test]
fn agents_wait_for_a_disk_that_is_slow_and_send_once() {
    let world = World::new();
    let disk = Arc::new(Busy::default());
    let storage: Arc<dyn Storage> = Arc::<Busy>::clone(&disk);
    let dir = world.dir.path().join("history");
    let config = HistoryConfig::default();
    let history = Arc::new(History::open_with(&dir, config, storage).unwrap());
    let _ingest = Ingest::start(&world, Arc::clone(&history));
    let agent = world.agent("host-1", None);
    agent.report(world::tick(0, 2));
    eventually("it is acknowledged while the disk is quick", || agent.stats().vectors_acked == 2);
    disk.0.store(true, Ordering::Relaxed);
    (1..20).for_each(|i| agent.report(world::tick(i, 2)));
    eventually("it is asked to wait and told why", || {
        agent.stats().waits_for.is_some_and(|reason| reason.contains("slow or busy"))
    });
    assert_eq!(agent.stats().vectors_acked, 2);
    disk.0.store(false, Ordering::Relaxed);
    eventually("everything is acknowledged", || agent.stats().vectors_acked == 40);
    let stats = agent.stats();
    assert_eq!((stats.connections, stats.vectors_dropped), (1, 0), "{stats:?}");
    let window = history.window("host-1", "/w/1", world::T0_S, world::T0_S + 100.0).unwrap();
    assert_eq!(window.len(), 20);
    assert_eq!(stats.waits_for, None);
}

/// They stay, keep what they have, and send it once there is room.
#[test]
fn agents_wait_for_an_aggregator_without_room() {
    let mut world = World::new();
    let full = world.serve_with(|config| {
        (config.history.free_mb_low, config.history.free_mb_min) = (1 << 40, 1 << 40);
    });
    let spool = world.dir.path().join("spool");
    let agent = world.agent("host-1", Some(spool));
    (0..20).for_each(|i| agent.report(world::tick(i, 2)));
    eventually("it is asked to wait and told why", || {
        agent.stats().waits_for.is_some_and(|reason| reason.contains("are kept free"))
    });
    (20..40).for_each(|i| agent.report(world::tick(i, 2)));
    thread::sleep(Duration::from_millis(500));
    let stats = agent.stats();
    assert!(stats.connected && stats.vectors_acked == 0, "{stats:?}");
    assert_eq!((stats.connections, stats.vectors_dropped), (1, 0), "{stats:?}");
    assert_eq!(full.view().ingest.vectors(), 0);
    world.keep_address(&full);
    full.stop();
    let server = world.serve();
    eventually("everything is acknowledged", || agent.stats().vectors_acked == 80);
    let stats = agent.stats();
    assert_eq!((stats.vectors_dropped, stats.waits_for), (0, None));
    let window =
        server.view().history.window("host-1", "/w/1", world::T0_S, world::T0_S + 100.0).unwrap();
    assert_eq!(window.len(), 40);
}
