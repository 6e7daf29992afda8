//! What is decoded from outside, on the corpus of the fuzz targets and on variations of it: cut off,
//! flipped, doubled, and with lying numbers. `cargo xtask fuzz` goes on where this ends.

#![expect(clippy::unwrap_used, reason = "a test stops where something is not as it should be")]

#[path = "../../fuzz/src/decoders.rs"]
mod decoders;
mod seeds;

use std::{fs, path::PathBuf};

/// Variations of each entry.
const VARIATIONS: u64 = 400;

fn corpus(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(name)
}

/// A number below `bound`, by xorshift64*.
fn draw(random: &mut u64, bound: usize) -> usize {
    *random ^= *random >> 12;
    *random ^= *random << 25;
    *random ^= *random >> 27;
    let drawn = random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
    usize::try_from(drawn).unwrap() % bound.max(1)
}

fn vary(entry: &[u8], random: &mut u64) -> Vec<u8> {
    let mut bytes = entry.to_vec();
    for _ in 0..=draw(random, 3) {
        let at = draw(random, bytes.len());
        match draw(random, 5) {
            0 => bytes.truncate(at),
            1 if !bytes.is_empty() => bytes[at] ^= 1 << draw(random, 8),
            2 if !bytes.is_empty() => bytes[at] = [0, 0x7f, 0x80, 0xff][draw(random, 4)],
            3 => {
                let end = (at + draw(random, 64)).min(bytes.len());
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            _ => {
                let end = (at + 4).min(bytes.len());
                bytes.splice(at..end, [0xff; 4]);
            }
        }
    }
    bytes
}

#[test]
fn the_corpus_and_what_is_near_it_decode_without_panic() {
    for (name, decode) in decoders::ALL {
        let mut entries: Vec<PathBuf> = fs::read_dir(corpus(name))
            .unwrap_or_else(|error| panic!("no corpus of `{name}`: {error}"))
            .map(|entry| entry.unwrap().path())
            .collect();
        entries.sort();
        assert!(!entries.is_empty(), "no corpus of `{name}`");
        let (mut n_read, mut random) = (0, 0x9e37_79b9_7f4a_7c15);
        for path in &entries {
            let entry = fs::read(path).unwrap();
            n_read += usize::from(decode(&entry));
            for _ in 0..VARIATIONS {
                decode(&vary(&entry, &mut random));
            }
        }
        assert!(n_read > 0, "no entry for `{name}` is what it decodes: write the seeds anew");
    }
}

/// A change of a form leaves a corpus that nothing decodes; this says so, by name.
#[test]
fn what_this_release_writes_decodes() {
    for (name, seeds) in seeds::all() {
        let (_, decode) = decoders::ALL.into_iter().find(|(known, _)| *known == name).unwrap();
        for (seed, bytes) in seeds {
            assert!(decode(&bytes), "{name}/{seed}");
        }
    }
}

/// `HEADROOM_WRITE_SEEDS=1 cargo test --test decoders` writes what this release makes into the corpus.
#[test]
fn seeds_are_written_when_asked_for() {
    if std::env::var_os("HEADROOM_WRITE_SEEDS").is_none() {
        return;
    }
    for (name, seeds) in seeds::all() {
        fs::create_dir_all(corpus(name)).unwrap();
        for (seed, bytes) in seeds {
            fs::write(corpus(name).join(seed), bytes).unwrap();
        }
    }
}
