//! The same with the lake in a bucket: whichever step is the last, and when the storage is away.

use std::{
    path::Path,
    sync::{Arc, atomic::AtomicI64},
};

use headroom_history::{History, HistoryConfig, HistoryError, Local, Pressure};
use headroom_lake::{S3, storage::Storage};
use headroom_tests::s3::{BUCKET, S3Server};
use headroom_wire::BootId;

use crate::{Mortal, T0_S, arrival, config, live, times};

fn in_bucket(server: &S3Server, prefix: &str) -> HistoryConfig {
    let s3 = S3 {
        endpoint: server.endpoint(),
        allow_http: true,
        credentials: Some(server.credentials()),
        ..S3::default()
    };
    let lake = Some(format!("s3://{BUCKET}/{prefix}").into());
    HistoryConfig { lake, s3, ..config() }
}

fn open(
    dir: &Path,
    config: &HistoryConfig,
    storage: Arc<dyn Storage>,
) -> Result<History, HistoryError> {
    History::open_with(dir, config.clone(), storage)
}

#[test]
fn a_life_that_ends_at_any_step_loses_nothing_and_doubles_nothing_in_a_bucket() {
    let Some(server) = S3Server::start().unwrap() else { return };
    let expected: Vec<u32> = (0..20).chain(30..40).chain(3_620..3_630).collect();
    let mut n_steps = 0;
    loop {
        let dir = tempfile::tempdir().unwrap();
        let config = in_bucket(&server, &format!("life-{n_steps}"));
        let mortal = Arc::new(Mortal { left: AtomicI64::new(n_steps) });
        let ended = match open(dir.path(), &config, mortal) {
            Ok(history) => live(&history, 1),
            Err(error) => Err((0, error)),
        };
        let (acknowledged, step) = match &ended {
            Ok(()) => (4, String::new()),
            Err((acknowledged, error)) => (*acknowledged, error.to_string()),
        };
        let history = open(dir.path(), &config, Arc::new(Local)).unwrap();
        let durable = history.durable_seq("a", BootId(7)).unwrap_or(0);
        assert!(durable >= acknowledged, "after {n_steps} steps: {step}");
        assert_eq!(times(&history, "a", "/x").len() as u64, 10 * durable, "{n_steps}: {step}");
        live(&history, durable + 1).map_err(|(_, error)| error).unwrap();
        history.seal().unwrap();
        history.seal_due().unwrap();
        history.tend(T0_S + 20_000.0).unwrap();
        assert_eq!(times(&history, "a", "/x"), expected, "after {n_steps} steps: {step}");
        assert_eq!(history.actions("a", "/x", 0.0, 4.0e9).unwrap().len(), 4, "{step}");
        drop(history);
        let again = open(dir.path(), &config, Arc::new(Local)).unwrap();
        assert_eq!(times(&again, "a", "/x"), expected, "after {n_steps} steps: {step}");
        if ended.is_ok() {
            break;
        }
        // Each life takes half a second here; the test of a directory ends one at every step.
        n_steps += 2;
    }
    assert!(n_steps > 25, "only {n_steps} steps were there to end at");
}

#[test]
fn while_the_storage_is_away_the_journal_takes_more_and_says_that_it_is_behind() {
    let Some(mut server) = S3Server::start().unwrap() else { return };
    let dir = tempfile::tempdir().unwrap();
    let config = in_bucket(&server, "away");
    let history = open(dir.path(), &config, Arc::new(Local)).unwrap();
    history.commit(&[arrival("a", 1, "/x", 0..10)]).unwrap();
    history.seal().unwrap();
    history.seal_due().unwrap();
    assert_eq!(history.pressure(), Pressure::Fine);
    server.pause();
    history.commit(&[arrival("a", 2, "/x", 10..20)]).unwrap();
    let refused = history.seal().unwrap_err().to_string();
    assert!(refused.contains(&format!("s3://{BUCKET}/away")), "{refused}");
    let pressure = history.pressure();
    assert!(matches!(&pressure, Pressure::Behind { reason } if reason.contains("s3://")));
    assert!(pressure.takes_more());
    history.commit(&[arrival("a", 3, "/x", 20..30)]).unwrap();
    drop(history);
    // Whoever opens it now is told; what was acknowledged is in the journal.
    let refused = open(dir.path(), &config, Arc::new(Local)).unwrap_err().to_string();
    assert!(refused.contains("[history.s3]"), "{refused}");
    server.resume().unwrap();
    let history = open(dir.path(), &config, Arc::new(Local)).unwrap();
    assert_eq!(times(&history, "a", "/x"), (0..30).collect::<Vec<_>>());
    history.seal().unwrap();
    history.seal_due().unwrap();
    assert_eq!(history.pressure(), Pressure::Fine);
    assert_eq!(history.unsealed_bytes(), 0);
    assert_eq!(times(&history, "a", "/x"), (0..30).collect::<Vec<_>>());
    history.tend(T0_S + 20_000.0).unwrap();
    assert_eq!(times(&history, "a", "/x"), (0..30).collect::<Vec<_>>());
}

#[test]
fn a_full_disk_here_does_not_take_hours_from_the_bucket() {
    let Some(server) = S3Server::start().unwrap() else { return };
    let dir = tempfile::tempdir().unwrap();
    let config = HistoryConfig { free_mb_low: u64::MAX >> 20, ..in_bucket(&server, "full") };
    let history = open(dir.path(), &config, Arc::new(Local)).unwrap();
    history.commit(&[arrival("a", 1, "/x", 0..10)]).unwrap();
    history.seal().unwrap();
    history.seal_due().unwrap();
    assert!(matches!(history.pressure(), Pressure::Low { .. }));
    assert_eq!(history.tend(T0_S + 20_000.0).unwrap().removed, 0);
    assert_eq!(times(&history, "a", "/x").len(), 10);
}
