//! Certificates made elsewhere: SPIFFE names in a bundle of authorities, changed on disk while in use.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use headroom_aggregator::enrol::token::Scope;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
};

use crate::world::{World, eventually, report};

/// An authority as an operator may have one.
struct Elsewhere {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Elsewhere {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// Writes certificate and key for `uri` into `dir`.
    fn issue(&self, uri: &str, dir: &Path, trusted: &Path) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join("agent.key"), key.serialize_pem()).unwrap();
        fs::set_permissions(dir.join("agent.key"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(dir.join("agent.pem"), certificate.pem()).unwrap();
        fs::copy(trusted, dir.join("ca.pem")).unwrap();
    }
}

#[test]
fn names_of_another_trust_domain_are_accepted_where_a_template_says_so() {
    let elsewhere = Elsewhere::new();
    let pem = elsewhere.pem.clone();
    let world = World::new(|dir, config| {
        let bundle = fs::read_to_string(dir.join("ca.pem")).unwrap() + &pem;
        fs::write(dir.join("ca.pem"), bundle).unwrap();
        config.tls.agents = vec!["spiffe://example.org/ns/*/node/{node}".to_owned()];
    });
    let trusted = world.dir().join("ca.pem");
    let (good, bad) = (world.host("good"), world.host("bad"));
    elsewhere.issue("spiffe://example.org/ns/prod/node/host-7", &good, &trusted);
    let agent = world.agent("good", "host-7", false);
    agent.report(report());
    eventually("its sample is acknowledged", || agent.stats().vectors_acked == 1);
    // A name that fits no template.
    elsewhere.issue("spiffe://example.org/workload/web", &bad, &trusted);
    let stranger = world.agent("bad", "web", false);
    eventually("it is told which names fit", || {
        stranger.stats().last_error.is_some_and(|e| e.contains("spiffe://example.org/ns/*/node/"))
    });
    // A token does not take the name of an agent that is connected.
    let refused = world.join("thief", "host-7", &world.token(Scope::Any, 1)).unwrap_err();
    assert!(refused.contains("taken"), "{refused}");
    // Changed on disk: the agent goes on with the new files.
    let before = agent.certificate().serial;
    elsewhere.issue("spiffe://example.org/ns/prod/node/host-7", &good, &trusted);
    eventually("the new certificate is in use", || {
        agent.certificate().serial != before && agent.stats().connections == 2
    });
    agent.report(report());
    eventually("its samples go on", || agent.stats().vectors_acked == 2);
}

#[test]
fn an_agent_speaks_for_itself_alone() {
    let world = World::new(|_, _| {});
    world.join("one", "host-1", &world.token(Scope::Any, 1)).unwrap();
    let liar = world.agent("one", "host-2", true);
    liar.report(report());
    eventually("it is refused", || world.view().ingest.refusals("identity") >= 1);
    eventually("it is told", || {
        liar.stats().last_error.is_some_and(|error| error.contains("`host-1`"))
    });
    assert_eq!(liar.stats().vectors_acked, 0);
    assert!(world.view().fleet.read(std::collections::BTreeMap::is_empty));
}
