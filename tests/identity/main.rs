//! How a host becomes an agent and stops being one, with both sides as they ship, over loopback.

#![expect(clippy::unwrap_used, reason = "a test stops where something is not as it should be")]

mod elsewhere;
mod hostile;
#[path = "../wire/server.rs"]
#[expect(dead_code, reason = "an aggregator of these tests ends with its world")]
mod server;
mod world;

use std::{fs, os::unix::fs::PermissionsExt as _, thread, time::Duration};

use headroom_agent::{
    join::{self, Invitation},
    reach::Carrier,
};
use headroom_aggregator::{
    enrol::{Journal, ledger::Subject, token::Scope},
    pki,
};
use headroom_telemetry::Feature;
use headroom_wire::certificate::CertificateFacts;

use crate::world::{World, eventually, now_s, report};

#[test]
fn a_host_joins_with_a_token_and_its_samples_arrive() {
    let world = World::new(|_, _| {});
    let token = world.token(Scope::Any, 1);
    let joined = world.join("one", "host-1", &token).unwrap();
    assert_eq!(joined.certificate.uris, ["spiffe://headroom/agent/host-1"]);
    assert!(joined.certificate.is_for_client && !joined.certificate.is_for_server);
    let life_s = joined.certificate.not_after_s - joined.certificate.not_before_s;
    assert_eq!(life_s, 90_000.0, "a day, begun an hour ago");
    let mode = fs::metadata(world.host("one").join("agent.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(fs::read(world.host("one").join("model.pub")).unwrap().len(), 32);

    let agent = world.agent("one", "host-1", true);
    agent.report(report());
    eventually("the sample is acknowledged", || agent.stats().vectors_acked == 1);
    assert!(agent.certificate().days_left(now_s()).unwrap() > 0.9);

    // The same host with the same key asks again because an answer was lost; another does not get in.
    world.join("one", "host-1", &token).unwrap();
    let refused = world.join("two", "host-2", &token).unwrap_err();
    assert!(refused.contains("used up"), "{refused}");
    // A replay of the request by who does not have the key is another host.
    let refused = world.join("thief", "host-1", &token).unwrap_err();
    assert!(refused.contains("used up"), "{refused}");
    let spare = world.token(Scope::Any, 1);
    let refused = world.join("thief", "host-1", &spare).unwrap_err();
    assert!(refused.contains("taken") && refused.contains("--node host-1"), "{refused}");
    let uses = Journal::open(&world.dir())
        .unwrap()
        .read(|ledger| ledger.tokens().map(|state| state.used_by.len()).sum::<usize>());
    assert_eq!(uses, 1);
}

/// Joining, reporting and being revoked where no UDP gets through.
#[test]
fn where_udp_is_blocked_a_host_joins_reports_and_is_told_of_its_revocation() {
    let world = World::new(|_, _| {});
    let server = world.without_udp();
    let token = world.token(Scope::Any, 1);
    let invitation = Invitation { server: server.clone(), ..world.invitation("host-1", &token) };
    join::join(&invitation, &world.host("one")).unwrap();
    let guess = Invitation {
        server: server.clone(),
        ..world.invitation("host-2", "hrj-0123456789ab-0123456789012345678901234567890123456789")
    };
    let refused = format!("{:#}", join::join(&guess, &world.host("two")).unwrap_err());
    assert!(refused.contains("refuses"), "{refused}");

    let agent = world.agent_to(&server, "one", "host-1", true);
    agent.report(report());
    eventually("the sample is acknowledged", || agent.stats().vectors_acked == 1);
    assert_eq!(agent.stats().carrier, Some(Carrier::Tcp));
    world.revoke(Subject::Node("host-1".to_owned()), "lost");
    eventually("it is told why", || {
        agent.stats().last_error.is_some_and(|error| error.contains("lost"))
    });
    assert!(!agent.stats().connected);
}

/// Certificates of four seconds: renewed while samples flow, with none lost or doubled; the bundle of
/// authorities comes along; and after the end of the last one its key alone gets another.
#[test]
fn a_certificate_is_renewed_while_samples_flow_and_after_its_end() {
    let world = World::new(|_, config| config.enrol.life_s = 4.0);
    world.join("one", "host-1", &world.token(Scope::Any, 1)).unwrap();
    let first = CertificateFacts::of_file(&world.host("one").join("agent.pem")).unwrap();
    let agent = world.agent("one", "host-1", true);
    eventually("it connects", || agent.stats().connected);
    // A second authority is announced long before it signs.
    let next = world.temporary.path().join("next");
    pki::init(&next, &["localhost".to_owned()]).unwrap();
    let bundle = ["aggregator", "next"]
        .map(|dir| fs::read_to_string(world.temporary.path().join(dir).join("ca.pem")).unwrap());
    fs::write(world.dir().join("ca.pem"), bundle.concat()).unwrap();

    let begun_s = now_s();
    let mut sent = 0;
    while agent.certificate().renewals < 2 || agent.stats().connections < 3 {
        assert!(now_s() - begun_s < 60.0, "{:?} {:?}", agent.certificate(), agent.stats());
        agent.report(report());
        sent += 1;
        thread::sleep(Duration::from_millis(50));
    }
    eventually("everything is acknowledged", || agent.stats().vectors_acked >= sent);
    let stats = agent.stats();
    assert_eq!((stats.vectors_acked, stats.vectors_dropped), (sent, 0), "{stats:?}");
    let history = &world.view().history;
    let window = history.window("host-1", "/w", begun_s - 1.0, now_s() + 1.0).unwrap();
    assert_eq!(window.len() as u64, sent, "each sample once");
    assert!(window.iter().all(|sample| sample.get(Feature::CpuCores) == Some(1.0)));
    let renewed = CertificateFacts::of_file(&world.host("one").join("agent.pem")).unwrap();
    assert_ne!(renewed.serial, first.serial);
    assert_eq!(renewed.key_sha256, first.key_sha256);
    let authorities = fs::read_to_string(world.host("one").join("ca.pem")).unwrap();
    assert_eq!(authorities.matches("BEGIN CERTIFICATE").count(), 2);

    drop(agent);
    let end_s =
        CertificateFacts::of_file(&world.host("one").join("agent.pem")).unwrap().not_after_s;
    thread::sleep(Duration::from_secs_f64((end_s + 1.5 - now_s()).max(0.0)));
    let agent = world.agent("one", "host-1", true);
    agent.report(report());
    eventually("the key of an ended certificate gets another", || agent.stats().vectors_acked >= 1);
}

#[test]
fn who_does_not_renew_is_cut_off_at_the_end_and_told_why() {
    let world = World::new(|_, config| {
        config.enrol.life_s = 3.0;
        config.enrol.return_s = 0.0;
    });
    world.join("one", "host-1", &world.token(Scope::Any, 1)).unwrap();
    let agent = world.agent("one", "host-1", false);
    eventually("it connects", || agent.stats().connections == 1);
    eventually("it is cut off", || world.view().ingest.refusals("expired") == 1);
    eventually("it says why", || {
        agent.stats().last_error.is_some_and(|error| {
            error.contains("ended") || error.to_lowercase().contains("expired")
        })
    });
    eventually("TLS lets it in no more", || world.view().ingest.refusals("tls") >= 1);
    assert!(!agent.stats().connected);
    drop(agent);
    // Nor does its key alone, when that is not allowed for so long.
    thread::sleep(Duration::from_millis(1_100));
    let agent = world.agent("one", "host-1", true);
    eventually("it is told to join", || {
        agent.certificate().fault.is_some_and(|fault| fault.contains("join with a token"))
    });
}

#[test]
fn a_revoked_agent_is_cut_off_within_seconds_and_stays_out() {
    let world = World::new(|_, _| {});
    let token = world.token(Scope::Prefix("host-".to_owned()), 5);
    let first = world.join("one", "host-1", &token).unwrap();
    world.join("two", "host-2", &token).unwrap();
    let (one, two) = (world.agent("one", "host-1", true), world.agent("two", "host-2", true));
    eventually("both connect", || one.stats().connected && two.stats().connected);
    world.revoke(Subject::Node("host-1".to_owned()), "stolen laptop");
    eventually("it is cut off and told why", || {
        let stats = one.stats();
        !stats.connected && stats.last_error.is_some_and(|e| e.contains("revoked: stolen laptop"))
    });
    eventually("it came again and was refused", || world.view().ingest.refusals("revoked") >= 2);
    assert!(two.stats().connected && two.stats().connections == 1, "others are not touched");
    drop(one);
    let refused = world.join("one", "host-1", &token).unwrap_err();
    assert!(refused.contains("revoked (stolen laptop)"), "{refused}");
    // A token made for it afterwards is the operator's word.
    let own = world.token(Scope::Node("host-1".to_owned()), 1);
    let again = world.join("anew", "host-1", &own).unwrap();
    let one = world.agent("anew", "host-1", true);
    eventually("it is back", || one.stats().connected);
    // One certificate can be barred alone.
    world.revoke(Subject::Serial(again.certificate.serial), "lost");
    eventually("it is cut off", || !one.stats().connected);
    assert_ne!(first.certificate.key_sha256, again.certificate.key_sha256);
}
