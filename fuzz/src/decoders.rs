//! What is decoded from outside, each with what must hold of whatever comes out. The fuzz targets run
//! these on what the fuzzer makes up, the test `decoders` on the corpus and on variations of it.

use std::{
    collections::{BTreeSet, HashMap},
    io::Cursor,
};

use headroom_trace::{Reading, Trace};
use headroom_wire::{
    Message, Numbering,
    certificate::CertificateFacts,
    enrol::{Reply, Request},
    frame,
    limits::NUMBER_RANGES_MAX,
};

/// A decoder under its name; says whether the bytes were taken for what it decodes.
pub type Decoder = (&'static str, fn(&[u8]) -> bool);

/// All of them; the names are those of targets and of folders of the corpus.
pub const ALL: [Decoder; 5] = [
    ("frame", frame),
    ("enrol", enrol),
    ("certificate", certificate),
    ("numbering", numbering),
    ("trace", trace),
];

/// A frame of the wire: what decodes encodes again to the same, and a batch keeps its rows.
pub fn frame(bytes: &[u8]) -> bool {
    let Ok((message, used)) = frame::split(bytes) else { return false };
    assert!(used <= bytes.len());
    let again = frame::encode(&message).expect("what was read within the limits is within them");
    let (same, _) = frame::split(&again).expect("what was written can be read");
    assert_eq!(same.kind(), message.kind());
    if let Message::Batch(batch) = &message
        && let Ok(contents) = batch.decode()
    {
        assert_eq!(contents.samples.len(), batch.samples());
        assert!(contents.samples.iter().all(|(_, sample)| sample.t_s.is_finite()));
        if let Ok(encoded) = contents.encode(batch.boot, batch.seq) {
            let again = encoded.decode().expect("what was written can be read");
            assert_eq!(again.samples.len(), contents.samples.len());
            assert_eq!(again.actions, contents.actions);
        }
    }
    if let Message::ModelOffer(bundle) = &message {
        let n_golden = bundle.golden_vectors().map_or(0, |vectors| vectors.len());
        assert!(n_golden <= bundle.golden.len(), "each takes a byte at least");
        assert!(bundle.verify(&[0; 32]).is_err(), "nobody signs with that key");
    }
    true
}

/// A request for a certificate, and the reply.
pub fn enrol(bytes: &[u8]) -> bool {
    // By their bytes: a time may be no number, which equals nothing.
    let request = Request::decode(bytes);
    if let Ok(request) = &request {
        let again = request.encode().expect("what was read within the limits is within them");
        let same = Request::decode(&again).expect("what was written can be read");
        assert_eq!(same.encode().ok(), Some(again));
    }
    let reply = Reply::decode(bytes);
    if let Ok(reply) = &reply {
        let again = reply.encode().expect("what was read within the limits is within them");
        let same = Reply::decode(&again).expect("what was written can be read");
        assert_eq!(same.encode().ok(), Some(again));
    }
    request.is_ok() || reply.is_ok()
}

/// What a certificate says.
pub fn certificate(bytes: &[u8]) -> bool {
    let Ok(facts) = CertificateFacts::of(bytes) else { return false };
    assert!(facts.not_before_s.is_finite() && facts.not_after_s.is_finite());
    true
}

/// A stored numbering, and the bytes as steps of one beside a set that does the same slowly.
pub fn numbering(bytes: &[u8]) -> bool {
    let stored = Numbering::from_bytes(bytes);
    if let Some(stored) = &stored {
        assert_eq!(Numbering::from_bytes(&stored.to_bytes()).as_ref(), Some(stored));
    }
    let (mut fast, mut slow) = (Numbering::default(), BTreeSet::new());
    for &byte in bytes.iter().take(512) {
        let seq = u64::from(byte >> 1) + 1;
        if byte & 1 == 0 {
            let has_taken = fast.insert(seq);
            assert!(has_taken || fast.n_ranges() >= NUMBER_RANGES_MAX, "refused without need");
            if has_taken {
                slow.insert(seq);
            }
        } else {
            fast.settle(seq);
            slow.extend(1..seq);
        }
        assert_eq!(fast.contains(seq), slow.contains(&seq), "{seq}");
    }
    let gapless = (1..).take_while(|seq| slow.contains(seq)).last();
    assert_eq!(fast.watermark(), gapless);
    stored.is_some()
}

/// A trace as CSV, read both ways: whatever comes out is finite and in order.
pub fn trace(bytes: &[u8]) -> bool {
    let mut is_read = false;
    for reading in [Reading::Lenient, Reading::Strict] {
        let Ok(trace) = Trace::from_csv(Cursor::new(bytes.to_vec()), "fuzz", reading) else {
            continue;
        };
        let columns = trace.columns().len();
        let mut newest: HashMap<usize, f64> = HashMap::new();
        for row in trace {
            let Ok(row) = row else { break };
            is_read = true;
            assert_eq!(row.values.len(), columns);
            assert!(row.values.iter().flatten().all(|value| value.is_finite()));
            let before = newest.insert(row.workload_index, row.t_s);
            assert!(before.is_none_or(|before_s| before_s < row.t_s), "out of order");
        }
    }
    is_read
}
