//! Sketches as columns. A count is told in ten bits at most: exactly below 64, above it by its
//! magnitude and the five bits below the highest. Most bins are empty or alike, which compresses.

use std::collections::BTreeMap;

use headroom_telemetry::{SKETCH_BINS, SketchCounts, Sketches};

use crate::{
    batch::{BatchError, Columns, count, index, pack, rows, unpack},
    limits::SKETCHES_MAX,
};

/// Counts below this are exact.
const EXACT: u32 = 64;
/// Bits kept below the highest one.
const MANTISSA_BITS: u32 = 5;
/// Magnitude of the first count that is not exact.
const FIRST_MAGNITUDE: u32 = EXACT.ilog2();

/// A count as it is told; larger counts never have smaller codes.
fn to_code(count: u32) -> u16 {
    let code = if count < EXACT {
        count
    } else {
        let half = 1 << (count.ilog2() - MANTISSA_BITS - 1);
        let rounded = count.saturating_add(half);
        let magnitude = rounded.ilog2();
        let mantissa = (rounded >> (magnitude - MANTISSA_BITS)) & ((1 << MANTISSA_BITS) - 1);
        EXACT + ((magnitude - FIRST_MAGNITUDE) << MANTISSA_BITS) + mantissa
    };
    u16::try_from(code).unwrap_or(u16::MAX)
}

/// The count a code stands for; `None` when none does.
fn from_code(code: u16) -> Option<u32> {
    let code = u32::from(code);
    let Some(above) = code.checked_sub(EXACT) else { return Some(code) };
    let magnitude = FIRST_MAGNITUDE + (above >> MANTISSA_BITS);
    let mantissa = (above & ((1 << MANTISSA_BITS) - 1)) | (1 << MANTISSA_BITS);
    (magnitude < u32::BITS).then(|| mantissa << (magnitude - MANTISSA_BITS))
}

/// Keys: workload and which sketch of it. Values: codes, bin by bin.
pub(crate) fn encode(sketches: &[(u32, Sketches)]) -> Result<Columns, BatchError> {
    let mut keys: Vec<u64> = Vec::new();
    let mut codes = Vec::new();
    for (index, sketches) in sketches {
        for (which, counts) in [(0, &sketches.order), (1, &sketches.code)] {
            let Some(SketchCounts(counts)) = counts.as_ref().filter(|counts| !counts.is_zero())
            else {
                continue;
            };
            if counts.len() != SKETCH_BINS {
                let value = counts.len().to_string();
                return Err(BatchError::Value { what: "sketch length", value });
            }
            keys.push(u64::from(*index) * 2 + which);
            codes.extend(counts.iter().map(|count| to_code(*count)));
        }
    }
    pack(rows(&keys)?, &keys, &codes)
}

/// The caller has bounded the number of rows.
pub(crate) fn decode(columns: &Columns) -> Result<Vec<(u32, Sketches)>, BatchError> {
    let n = count(columns.n_rows).min(SKETCHES_MAX);
    let keys: Vec<u64> = unpack("sketch keys", &columns.keys, n)?;
    let codes: Vec<u16> = unpack("sketch values", &columns.values, SKETCH_BINS * n)?;
    let mut by_workload: BTreeMap<u32, Sketches> = BTreeMap::new();
    for (key, codes) in keys.iter().zip(codes.chunks_exact(SKETCH_BINS)) {
        let counts: Option<Vec<u32>> = codes.iter().map(|code| from_code(*code)).collect();
        let counts = counts.and_then(SketchCounts::new).ok_or_else(|| BatchError::Value {
            what: "sketch count",
            value: format!("{:?}", codes.iter().max()),
        })?;
        let sketches = by_workload.entry(index(key / 2)?).or_default();
        let place = if key % 2 == 0 { &mut sketches.order } else { &mut sketches.code };
        *place = Some(counts);
    }
    Ok(by_workload.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use headroom_telemetry::{SKETCH_BINS, SketchCounts, Sketches};

    use super::{decode, encode, from_code, to_code};
    use crate::batch::{Columns, pack};

    #[test]
    fn counts_keep_a_sixty_fourth_and_their_order() {
        let mut last = (0, 0);
        for count in (0..70_000).chain((0..32).map(|bit| u32::MAX >> (31 - bit))) {
            let code = to_code(count);
            let back = from_code(code).unwrap();
            assert!(back.abs_diff(count) <= count / 64 + u32::from(count > 63), "{count} {back}");
            assert!(count < last.0 || code >= last.1);
            last = (count, code);
        }
        assert_eq!(from_code(to_code(63)), Some(63));
        assert_eq!(from_code(u16::MAX), None);
    }

    fn counts(seed: u32) -> Option<SketchCounts> {
        SketchCounts::new((0..64).map(|i| if i % 5 == seed % 5 { i % 40 } else { 0 }).collect())
    }

    #[test]
    fn what_is_told_comes_back_and_zero_is_not_told() {
        let zero = SketchCounts::new(vec![0; SKETCH_BINS]);
        let sketches = vec![
            (3, Sketches { order: counts(1), code: None }),
            (9, Sketches { order: counts(2), code: counts(3) }),
            (70_000, Sketches { order: zero.clone(), code: counts(4) }),
            (80_000, Sketches { order: zero, code: None }),
        ];
        let mut expected = sketches.clone();
        expected[2].1.order = None;
        expected.pop();
        assert_eq!(decode(&encode(&sketches).unwrap()).unwrap(), expected);
        assert!(decode(&Columns::default()).unwrap().is_empty());
    }

    #[test]
    fn damage_is_an_error() {
        let broken = [(1, Sketches { order: Some(SketchCounts(vec![1; 3])), code: None })];
        assert!(encode(&broken).is_err());
        let impossible = pack(1, &[2_u64], &[60_000_u16; SKETCH_BINS]).unwrap();
        assert!(decode(&impossible).unwrap_err().to_string().contains("sketch count"));
        let mut short = encode(&[(1, Sketches { order: counts(1), code: None })]).unwrap();
        short.n_rows = 2;
        assert!(decode(&short).is_err());
    }
}
