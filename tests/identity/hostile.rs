//! Strangers, impostors and requests that lie.

use std::{fs, sync::Arc};

use headroom_agent::{
    join::{
        ask::{AskError, ask, without_certificate},
        files,
        pin::{CaHash, PinnedAuthority},
    },
    uplink::Transport,
};
use headroom_aggregator::{
    enrol::{Journal, token::Scope},
    pki,
};
use headroom_wire::{
    certificate::CertificateFacts,
    enrol::{ALPN, Grant, REQUEST_BYTES_MAX, Request},
    tls::{self, TlsFiles},
};
use quinn::{ClientConfig, Endpoint, crypto::rustls::QuicClientConfig};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType};

use crate::world::{World, eventually};

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn pinned(world: &World) -> rustls::ClientConfig {
    let hash = pki::ca_hash(&pki::PkiFiles::of(&world.dir())).unwrap();
    without_certificate(Arc::new(PinnedAuthority::new(CaHash::parse(&hash).unwrap()))).unwrap()
}

fn ask_pinned(world: &World, request: &Request) -> Result<Grant, AskError> {
    run(ask(&world.address().to_string(), "localhost", pinned(world), Transport::Auto, request))
}

fn kind(result: Result<Grant, AskError>) -> String {
    match result {
        Err(AskError::Refused { kind, .. }) => kind,
        other => panic!("{other:?}"),
    }
}

fn csr(key: &KeyPair) -> Vec<u8> {
    CertificateParams::new(Vec::new()).unwrap().serialize_request(key).unwrap().der().to_vec()
}

fn join(token: &str, node: &str, csr: Vec<u8>) -> Request {
    Request::Join { token: token.to_owned(), node: node.to_owned(), csr: csr.into() }
}

#[test]
fn a_request_that_asks_for_more_gets_its_own_name_only() {
    let world = World::new(|_, _| {});
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let other = "spiffe://headroom/agent/host-2".try_into().unwrap();
    params.subject_alt_names.push(SanType::URI(other));
    let lie = params.serialize_request(&key).unwrap().der().to_vec();
    let token = world.token(Scope::Any, 1);
    let grant = ask_pinned(&world, &join(&token, "host-1", lie.clone())).unwrap();
    let facts = CertificateFacts::of(&grant.chain[0]).unwrap();
    assert_eq!(facts.uris, ["spiffe://headroom/agent/host-1"]);
    assert_eq!(facts.dns_names, ["host-1"]);
    assert!(!facts.is_authority && !facts.is_for_server);
    let mut forged = lie;
    *forged.last_mut().unwrap() ^= 1;
    let spare = world.token(Scope::Any, 1);
    assert_eq!(kind(ask_pinned(&world, &join(&spare, "host-3", forged))), "csr");
}

#[test]
fn an_aggregator_of_another_authority_is_told_nothing() {
    let world = World::new(|_, _| {});
    // Same names throughout, another key.
    let impostor = World::new(|_, _| {});
    let token = world.token(Scope::Any, 1);
    let mut invitation = world.invitation("host-1", &token);
    invitation.server = impostor.address().to_string();
    let dir = world.host("one");
    let refused = headroom_agent::join::join(&invitation, &dir).unwrap_err().to_string();
    assert!(refused.contains("--ca-hash") && refused.contains("nothing was sent"), "{refused}");
    assert!(!dir.join("agent.pem").exists() && !dir.join("ca.pem").exists());
    assert_eq!(impostor.view().ingest.refusals("token_unknown"), 0, "the token was not shown");

    // The hash is right, and the name dialled is not in the certificate.
    let mut invitation = world.invitation("host-1", &token);
    invitation.server_name = "elsewhere.example".to_owned();
    let refused = headroom_agent::join::join(&invitation, &dir).unwrap_err().to_string();
    assert!(refused.contains("not accepted"), "{refused}");
    world.join("one", "host-1", &token).unwrap();
}

#[test]
fn only_a_certificate_of_ours_renews() {
    let world = World::new(|_, _| {});
    let key = KeyPair::generate().unwrap();
    let renew = Request::Renew { csr: csr(&key).into() };
    assert_eq!(kind(ask_pinned(&world, &renew)), "identity", "without a certificate");
    // The same names from another authority: TLS ends it.
    let elsewhere = world.temporary.path().join("elsewhere");
    pki::init(&elsewhere, &["localhost".to_owned()]).unwrap();
    let out = world.host("stranger");
    pki::issue(&elsewhere, "headroom", "host-1", &out).unwrap();
    fs::copy(world.dir().join("ca.pem"), out.join("ca.pem")).unwrap();
    let files = TlsFiles {
        ca: out.join("ca.pem"),
        cert: out.join("agent.pem"),
        key: out.join("agent.key"),
    };
    let server = world.address().to_string();
    let refused =
        run(ask(&server, "localhost", tls::client(&files).unwrap(), Transport::Auto, &renew));
    assert!(matches!(refused, Err(AskError::Connect { .. } | AskError::Reach(_))), "{refused:?}");
    // And a key that was given nothing does not return.
    let request = Request::Return { node: "host-1".to_owned(), csr: csr(&key).into() };
    assert_eq!(kind(ask_pinned(&world, &request)), "key_unknown");
    let nodes = Journal::open(&world.dir()).unwrap().read(|ledger| ledger.nodes().count());
    assert_eq!(nodes, 0);
}

#[test]
fn who_guesses_has_to_wait_and_large_requests_are_not_read() {
    let world = World::new(|_, config| config.enrol.failures_max = 3);
    let key = files::read_or_make_key(&world.host("key")).unwrap();
    let guess = "hrj-0123456789ab-0123456789012345678901234567890123456789";
    for _ in 0..2 {
        let refused = ask_pinned(&world, &join(guess, "host-1", csr(&key)));
        assert_eq!(kind(refused), "token_unknown");
    }
    // Larger than may be: refused without reading it to its end.
    run(async {
        let mut tls = pinned(&world);
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
        let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let connecting = endpoint.connect_with(config, world.address(), "localhost").unwrap();
        let connection = connecting.await.unwrap();
        let (mut send, mut receive) = connection.open_bi().await.unwrap();
        drop(send.write_all(&vec![0; REQUEST_BYTES_MAX + 1]).await);
        drop(send.finish());
        let reply = receive.read_to_end(10_000).await.unwrap();
        assert!(String::from_utf8_lossy(&reply).contains("no whole request"));
        connection.close(0_u32.into(), b"");
    });
    eventually("it is counted", || world.view().ingest.refusals("silent") == 1);
    let token = world.token(Scope::Any, 1);
    let refused = ask_pinned(&world, &join(&token, "host-1", csr(&key))).unwrap_err().to_string();
    assert!(refused.contains("try again in"), "{refused}");
    assert_eq!(world.view().ingest.refusals("throttled"), 1);
}
