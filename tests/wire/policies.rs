//! Policies come down the connection, signed for each host, and what became of them is told.

use std::{sync::Arc, time::Duration};

use headroom_agent::{app::fleet_policy::PolicyDoor, config::PolicySource, uplink::UplinkHandle};
use headroom_aggregator::{
    history::History,
    rollout::{Policies, PolicyFor, SigningKey},
};
use headroom_allocate::Mode;
use headroom_telemetry::Glob;
use headroom_wire::PolicyOffer;

use crate::{
    ingest::Ingest,
    world::{World, eventually, tick},
};

fn next(agent: &UplinkHandle) -> PolicyOffer {
    for _ in 0..2_000 {
        if let Some(offer) = agent.policy() {
            return offer;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("no policy came")
}

#[test]
fn policies_reach_the_hosts_they_are_for_and_verdicts_come_back() {
    let world = World::new();
    let dir = world.dir.path();
    let write = |name: &str, text: &str| {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let for_hosts = |glob: &str, file| PolicyFor { hosts: vec![Glob(glob.to_owned())], file };
    let one = write("one.toml", "[defaults]\nmode = \"raise\"\n");
    let all = write("all.toml", "[defaults]\nmode = \"off\"\n");
    let config = vec![for_hosts("*-1", one.clone()), for_hosts("*", all)];
    let key = Arc::new(SigningKey::open_or_create(&dir.join("model.key")).unwrap());
    let public_key = dir.join("model.raw");
    std::fs::write(&public_key, key.public()).unwrap();
    let policies = Arc::new(Policies::open(config, dir, key).unwrap());
    let history = Arc::new(History::open(&dir.join("history")).unwrap());
    let ingest = Ingest::with(&world, history, Arc::clone(&policies));
    let fleet = &ingest.fleet;

    let door = |node: &str| {
        let kept = dir.join(format!("{node}.offer"));
        let source = PolicySource { file: None, from_aggregator: true, kept };
        PolicyDoor::open(&source, Some(&public_key), node).unwrap().0
    };
    let mut first = door("host-1");
    let agent = world.agent("host-1", None);
    agent.report(tick(0, 1));
    let offer = next(&agent);
    let taken = first.take(&offer).unwrap();
    assert_eq!(taken.policy.unwrap().defaults().mode, Mode::Raise);
    assert!(door("host-2").take(&offer).is_err(), "it is for one host alone");
    agent.policy_verdict(offer.version, Ok(()));
    let version = |node: &str| fleet.read(|hosts| hosts.get(node)?.hello.policy_version);
    eventually("it is known to be in force", || version("host-1") == Some(offer.version));

    let other = world.agent("host-2", None);
    other.report(tick(0, 1));
    let theirs = next(&other);
    assert_eq!(door("host-2").take(&theirs).unwrap().policy.unwrap().defaults().mode, Mode::Off);
    other.policy_verdict(theirs.version, Err("this host keeps its own policy".to_owned()));
    let refused = |node: &str| fleet.read(|hosts| hosts.get(node)?.policy.clone()?.refused);
    eventually("why not is known", || refused("host-2").is_some());
    assert_eq!(version("host-2"), None);

    // A change goes out at once.
    std::fs::write(&one, "[defaults]\nmode = \"recommend\"\n").unwrap();
    policies.look();
    let newer = next(&agent);
    assert!(newer.version > offer.version);
    assert_eq!(first.take(&newer).unwrap().policy.unwrap().defaults().mode, Mode::Recommend);
    assert!(first.take(&offer).unwrap_err().contains("older"));
    agent.policy_verdict(newer.version, Ok(()));
    eventually("the newer is known", || version("host-1") == Some(newer.version));
    drop(agent);

    // The next connection tells what is in force, and is not offered it again.
    let again = world.agent("host-1", None);
    again.set_policy_version(first.version());
    again.report(tick(1, 1));
    eventually("it reports", || again.stats().vectors_acked > 0);
    assert_eq!(again.policy(), None);
    assert_eq!(version("host-1"), Some(newer.version));
}
