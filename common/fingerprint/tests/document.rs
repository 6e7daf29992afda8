//! The document of the fingerprint is the one the code would make.

use std::{fs, path::Path};

use headroom_fingerprint::vector::document::document;

#[test]
fn the_document_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/FINGERPRINT.md");
    let is = fs::read_to_string(&path).unwrap_or_default();
    assert!(is == document(), "docs/FINGERPRINT.md is out of date: run `cargo xtask schema`");
}
