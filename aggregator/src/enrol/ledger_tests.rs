//! Decisions of the ledger, one fact a test.

use headroom_wire::certificate::CertificateFacts;

use super::{
    ledger::{Event, Grounds, Issue, Ledger, Refusal, Revocation, Subject},
    token::{Scope, Token},
};

const NOW_S: f64 = 1_000_000.0;
const GRACE_S: f64 = 86_400.0;

fn with_token(scope: Scope, uses: u32) -> (Ledger, String) {
    let mut ledger = Ledger::default();
    let text = add_token(&mut ledger, scope, uses, NOW_S);
    (ledger, text)
}

fn add_token(ledger: &mut Ledger, scope: Scope, uses: u32, made_s: f64) -> String {
    let (token, text) = Token::make(scope, uses, made_s, 3_600.0).unwrap();
    ledger.apply(Event::TokenMade(token));
    text
}

fn issue(node: &str, key: &str, serial: &str, at_s: f64, grounds: Grounds) -> Event {
    Event::Issued(Issue {
        node: node.to_owned(),
        serial: serial.to_owned(),
        key_sha256: key.to_owned(),
        not_after_s: at_s + 86_400.0,
        at_s,
        grounds,
    })
}

fn revoke(subject: Subject, at_s: f64) -> Event {
    Event::Revoked(Revocation { subject, reason: "stolen".to_owned(), at_s })
}

fn join(ledger: &mut Ledger, text: &str, node: &str, key: &str) -> Result<(), Refusal> {
    let grounds = ledger.may_join(text, node, key, false, NOW_S)?;
    ledger.apply(issue(node, key, key, NOW_S, grounds));
    Ok(())
}

fn facts(serial: &str) -> CertificateFacts {
    CertificateFacts {
        serial: serial.to_owned(),
        not_before_s: 0.0,
        not_after_s: 2.0 * NOW_S,
        key_sha256: String::new(),
        uris: Vec::new(),
        dns_names: Vec::new(),
        addresses: Vec::new(),
        is_authority: false,
        is_for_client: true,
        is_for_server: false,
    }
}

#[test]
fn a_token_is_good_for_so_many_and_a_lost_answer_costs_no_use() {
    let (mut ledger, text) = with_token(Scope::Any, 2);
    join(&mut ledger, &text, "a", "k1").unwrap();
    join(&mut ledger, &text, "a", "k1").unwrap();
    join(&mut ledger, &text, "b", "k2").unwrap();
    assert_eq!(join(&mut ledger, &text, "c", "k3"), Err(Refusal::TokenUsedUp { uses: 2 }));
    join(&mut ledger, &text, "b", "k2").unwrap();
    // A replay by who holds another key is another use.
    assert_eq!(join(&mut ledger, &text, "a", "k9"), Err(Refusal::TokenUsedUp { uses: 2 }));
}

#[test]
fn tokens_end_by_time_and_by_word_and_only_their_holder_learns_it() {
    let (mut ledger, text) = with_token(Scope::Any, 1);
    let at = |ledger: &Ledger, text: &str, now_s| ledger.may_join(text, "a", "k", false, now_s);
    assert!(at(&ledger, &text, NOW_S + 3_599.0).is_ok());
    assert_eq!(at(&ledger, &text, NOW_S + 3_600.0), Err(Refusal::TokenExpired { ago_s: 0.0 }));
    let last = if text.ends_with('0') { "1" } else { "0" };
    let guessed = format!("{}{last}", &text[..text.len() - 1]);
    assert_eq!(at(&ledger, &guessed, NOW_S + 3_600.0), Err(Refusal::TokenUnknown));
    let id = ledger.tokens().next().unwrap().token.id.clone();
    ledger.apply(Event::TokenRevoked { id });
    assert_eq!(at(&ledger, &text, NOW_S), Err(Refusal::TokenRevoked));
    assert_eq!(at(&ledger, &guessed, NOW_S), Err(Refusal::TokenUnknown));
}

#[test]
fn names_outside_the_scope_or_the_alphabet_are_refused() {
    let (mut ledger, text) = with_token(Scope::Prefix("web-".to_owned()), 9);
    assert!(matches!(join(&mut ledger, &text, "db-1", "k"), Err(Refusal::TokenScope { .. })));
    for name in ["web-/1", "web-\n", "web- ", ""] {
        let refused = join(&mut ledger, &text, name, "k").unwrap_err();
        assert_eq!(refused, Refusal::NodeName { node: name.to_owned() });
    }
    join(&mut ledger, &text, "web-1", "k").unwrap();
}

#[test]
fn a_name_that_is_held_or_alive_is_taken_over_only_by_a_token_for_it() {
    let (mut ledger, any) = with_token(Scope::Any, 9);
    join(&mut ledger, &any, "a", "k1").unwrap();
    let taken = Refusal::NodeTaken { node: "a".to_owned() };
    assert_eq!(join(&mut ledger, &any, "a", "k2"), Err(taken.clone()));
    let prefix = add_token(&mut ledger, Scope::Prefix("a".to_owned()), 9, NOW_S);
    assert_eq!(join(&mut ledger, &prefix, "a", "k2"), Err(taken));
    let own = add_token(&mut ledger, Scope::Node("a".to_owned()), 1, NOW_S);
    join(&mut ledger, &own, "a", "k2").unwrap();
    // A certificate from elsewhere is in no ledger, but its agent is connected.
    let alive = ledger.may_join(&any, "b", "k3", true, NOW_S);
    assert_eq!(alive, Err(Refusal::NodeTaken { node: "b".to_owned() }));
}

#[test]
fn revoking_a_node_bars_what_it_has_and_not_what_it_gets_by_a_token_for_it() {
    let (mut ledger, any) = with_token(Scope::Any, 9);
    join(&mut ledger, &any, "a", "k1").unwrap();
    assert!(ledger.bar("a", &facts("k1")).is_none());
    ledger.apply(revoke(Subject::Node("a".to_owned()), NOW_S + 1.0));
    assert_eq!(ledger.bar("a", &facts("k1")).unwrap().reason, "stolen");
    assert!(ledger.bar("a", &facts("made-elsewhere")).is_some());
    assert!(ledger.bar("b", &facts("k2")).is_none());
    assert!(matches!(join(&mut ledger, &any, "a", "k1"), Err(Refusal::NodeRevoked { .. })));
    let early = add_token(&mut ledger, Scope::Node("a".to_owned()), 1, NOW_S);
    assert!(matches!(join(&mut ledger, &early, "a", "k1"), Err(Refusal::NodeRevoked { .. })));
    let own = add_token(&mut ledger, Scope::Node("a".to_owned()), 1, NOW_S + 2.0);
    let grounds = ledger.may_join(&own, "a", "k2", false, NOW_S + 3.0).unwrap();
    ledger.apply(issue("a", "k2", "s2", NOW_S + 3.0, grounds));
    assert!(ledger.bar("a", &facts("s2")).is_none());
    assert!(ledger.bar("a", &facts("k1")).is_some(), "the old one stays barred");
    ledger.apply(Event::Lifted { subject: Subject::Node("a".to_owned()) });
    assert!(ledger.bar("a", &facts("k1")).is_none());
}

#[test]
fn one_serial_can_be_barred_alone() {
    let mut ledger = Ledger::default();
    ledger.apply(revoke(Subject::Serial("s1".to_owned()), NOW_S));
    assert!(ledger.bar("a", &facts("s1")).is_some());
    assert!(ledger.bar("a", &facts("s2")).is_none());
}

#[test]
fn who_holds_the_last_key_returns_within_the_grace_unless_revoked() {
    let mut ledger = Ledger::default();
    ledger.apply(issue("a", "k1", "s1", NOW_S, Grounds::Operator));
    let end_s = NOW_S + 86_400.0;
    assert!(ledger.may_return("a", "k1", GRACE_S, end_s + GRACE_S).is_ok());
    let late = ledger.may_return("a", "k1", GRACE_S, end_s + GRACE_S + 1.0);
    assert!(matches!(late, Err(Refusal::TooLate { .. })));
    for (node, key) in [("a", "k2"), ("b", "k1")] {
        let unknown = ledger.may_return(node, key, GRACE_S, end_s);
        assert_eq!(unknown, Err(Refusal::KeyUnknown { node: node.to_owned() }));
    }
    for subject in [Subject::Node("a".to_owned()), Subject::Serial("s1".to_owned())] {
        let mut barred = ledger.clone();
        barred.apply(revoke(subject, NOW_S + 1.0));
        let refused = barred.may_return("a", "k1", GRACE_S, end_s);
        assert!(matches!(refused, Err(Refusal::NodeRevoked { .. })));
    }
}

#[test]
fn certificates_of_one_node_are_bounded() {
    let mut ledger = Ledger::default();
    for i in 0..8 {
        ledger.may_renew("a", NOW_S).unwrap();
        ledger.apply(issue("a", "k", &format!("s{i}"), NOW_S, Grounds::Renewal));
    }
    assert_eq!(ledger.may_renew("a", NOW_S), Err(Refusal::TooMany { node: "a".to_owned() }));
    ledger.may_renew("a", NOW_S + 86_400.0).unwrap();
}

#[test]
fn the_fewest_events_make_the_same_decisions() {
    let (mut ledger, text) = with_token(Scope::Any, 1);
    join(&mut ledger, &text, "a", "k1").unwrap();
    ledger.apply(issue("a", "k1", "s2", NOW_S + 1.0, Grounds::Renewal));
    ledger.apply(revoke(Subject::Node("b".to_owned()), NOW_S));
    let mut again = Ledger::default();
    for event in ledger.events() {
        again.apply(event);
    }
    assert_eq!(again, ledger);
    assert_eq!(join(&mut again, &text, "c", "k3"), Err(Refusal::TokenUsedUp { uses: 1 }));
}
