//! The bytes of keys and values. Numbers are big-endian, so that order of bytes is order of time.

use std::ops::RangeInclusive;

use headroom_telemetry::{Feature, Sample};
use headroom_wire::{AppliedAction, BootId};

const SAMPLE_KEY_BYTES: usize = 4 + 8;
const VALUE_BYTES: usize = Feature::COUNT * 4;

/// Whole milliseconds; times before the epoch count as the epoch.
fn milliseconds(t_s: f64) -> u64 {
    let ms = (t_s * 1_000.0).round();
    #[expect(clippy::cast_possible_truncation, reason = "a float saturates where it does not fit")]
    #[expect(clippy::cast_sign_loss, reason = "clamped from below")]
    let whole = ms.max(0.0) as u64;
    whole
}

pub(super) fn sample(id: u32, t_s: f64) -> [u8; SAMPLE_KEY_BYTES] {
    let mut key = [0; SAMPLE_KEY_BYTES];
    key[..4].copy_from_slice(&id.to_be_bytes());
    key[4..].copy_from_slice(&milliseconds(t_s).to_be_bytes());
    key
}

/// One knob is moved once at a time, so series, time and knob name an action.
pub(super) fn action(id: u32, action: &AppliedAction) -> Vec<u8> {
    let mut key = sample(id, action.at_s).to_vec();
    key.extend_from_slice(action.knob.name().as_bytes());
    key
}

/// Keys of `id` from `from_s` up to, at millisecond precision, `to_s`.
pub(super) fn range(id: u32, from_s: f64, to_s: f64) -> RangeInclusive<Vec<u8>> {
    let mut last = sample(id, to_s).to_vec();
    last.extend_from_slice(&[0xff; 16]);
    sample(id, from_s).to_vec()..=last
}

pub(super) fn values(sample: &Sample) -> Vec<u8> {
    sample.values().iter().flat_map(|value| value.to_le_bytes()).collect()
}

pub(super) fn sample_from(key: &[u8], value: &[u8]) -> Option<Sample> {
    let t_ms = number(key.get(4..SAMPLE_KEY_BYTES)?)?;
    let mut values = [f32::NAN; Feature::COUNT];
    if value.len() != VALUE_BYTES {
        return None;
    }
    for (into, four) in values.iter_mut().zip(value.chunks_exact(4)) {
        *into = f32::from_le_bytes(four.try_into().ok()?);
    }
    #[expect(clippy::cast_precision_loss, reason = "milliseconds since 1970 fit 53 bits")]
    let t_s = t_ms as f64 / 1_000.0;
    Some(Sample::from_values(t_s, values))
}

pub(super) fn series_id(key: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(key.try_into().ok()?))
}

pub(super) fn number(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

pub(super) fn durable(host: &str, boot: BootId) -> Vec<u8> {
    let mut key = boot.0.to_be_bytes().to_vec();
    key.extend_from_slice(host.as_bytes());
    key
}

pub(super) fn durable_from(key: &[u8]) -> Option<(String, BootId)> {
    let (boot, host) = key.split_at_checked(8)?;
    Some((String::from_utf8(host.to_vec()).ok()?, BootId(number(boot)?)))
}
