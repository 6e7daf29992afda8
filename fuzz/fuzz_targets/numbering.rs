#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    headroom_fuzz::decoders::numbering(bytes);
});
