//! Columns of numbers: rounding, compression, and decompression into a buffer of known length.

use pco::{ChunkConfig, PagingSpec, data_types::Number, standalone};

/// Mantissa bits kept of a measured value; the rest is noise that costs bytes. The relative error
/// is at most 2^-10.
const MANTISSA_BITS: u32 = 9;
const DROPPED_BITS: u32 = f32::MANTISSA_DIGITS - 1 - MANTISSA_BITS;

/// `value` rounded to [`MANTISSA_BITS`]; NaN becomes the one NaN that stands for missing.
pub(crate) fn round(value: f32) -> f32 {
    if value.is_nan() {
        return f32::NAN;
    }
    let half = 1_u32 << (DROPPED_BITS - 1);
    let rounded = f32::from_bits((value.to_bits() + half) & !((1 << DROPPED_BITS) - 1));
    if rounded.is_finite() { rounded } else { value }
}

/// The upper half of a single-precision number, rounded; relative error at most 2^-8.
pub(crate) fn to_half(value: f64) -> u16 {
    #[expect(clippy::cast_possible_truncation, reason = "precision is given up on purpose")]
    let single = value as f32;
    if single.is_nan() {
        return 0x7fc0;
    }
    let bits = single.to_bits();
    let rounded = bits.saturating_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let infinite = f32::INFINITY.to_bits() >> 16;
    let capped = if rounded & 0x7fff >= infinite { bits >> 16 } else { rounded };
    u16::try_from(capped & 0xffff).unwrap_or(u16::MAX)
}

/// The number [`to_half`] was made from, nearly.
pub(crate) fn from_half(half: u16) -> f64 {
    f64::from(f32::from_bits(u32::from(half) << 16))
}

/// Small numbers near zero from numbers of either sign.
pub(crate) fn zigzag(value: i64) -> u64 {
    (value.cast_unsigned() << 1) ^ (value >> 63).cast_unsigned()
}

/// The inverse of [`zigzag`].
pub(crate) fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}

/// Compresses a column; an empty one is no bytes.
pub(crate) fn compress<T: Number>(numbers: &[T]) -> Result<Vec<u8>, pco::errors::PcoError> {
    if numbers.is_empty() {
        return Ok(Vec::new());
    }
    standalone::simple_compress(numbers, &ChunkConfig::default())
}

/// As [`compress`], each of the stretches of `lengths` for itself, which one after the other are the
/// whole column. [`decompress`] reads either.
pub(crate) fn compress_stretches<T: Number>(
    numbers: &[T],
    lengths: Vec<usize>,
) -> Result<Vec<u8>, pco::errors::PcoError> {
    if numbers.is_empty() {
        return Ok(Vec::new());
    }
    let config = ChunkConfig::default().with_paging_spec(PagingSpec::Exact(lengths));
    standalone::simple_compress(numbers, &config)
}

/// Decompresses exactly `expected` numbers, or says how many there are instead.
///
/// The caller bounds `expected`; the bytes cannot make this allocate more.
pub(crate) fn decompress<T: Number + Default>(
    bytes: &[u8],
    expected: usize,
) -> Result<Result<Vec<T>, usize>, pco::errors::PcoError> {
    if expected == 0 {
        return Ok(if bytes.is_empty() { Ok(Vec::new()) } else { Err(bytes.len()) });
    }
    let mut numbers = vec![T::default(); expected];
    let progress = standalone::simple_decompress_into(bytes, &mut numbers)?;
    if progress.n_processed == expected && progress.finished {
        Ok(Ok(numbers))
    } else {
        Ok(Err(progress.n_processed))
    }
}

#[cfg(test)]
mod tests {
    use super::{
        compress, compress_stretches, decompress, from_half, round, to_half, unzigzag, zigzag,
    };

    #[test]
    fn rounding_keeps_a_thousandth() {
        for value in [0.0, 1.0, 0.3, -7.77, 1.0e9, 123_456_789.0, f32::MIN_POSITIVE, f32::MAX] {
            let rounded = round(value);
            assert!((rounded - value).abs() <= value.abs() / 1_024.0, "{value} became {rounded}");
        }
        assert!(round(f32::NAN).is_nan());
        assert_eq!(round(f32::INFINITY), f32::INFINITY);
    }

    #[test]
    fn halves_keep_four_thousandths_and_their_order() {
        let values = [0.0, 0.001, 0.01, 0.5, 1.0, 1.01, 3.0, 1.0e9, 3.0e38];
        let mut last = -1.0;
        for value in values {
            let back = from_half(to_half(value));
            assert!((back - value).abs() <= value / 256.0, "{value} became {back}");
            assert!(back > last);
            last = back;
        }
        assert!(from_half(to_half(f64::MAX)).is_infinite());
    }

    #[test]
    fn zigzag_goes_both_ways() {
        for value in [0, 1, -1, 63, -64, i64::MAX, i64::MIN] {
            assert_eq!(unzigzag(zigzag(value)), value);
        }
    }

    #[test]
    fn the_number_of_values_must_be_as_announced() {
        let bytes = compress(&[1.0_f32; 300]).unwrap();
        assert!(matches!(decompress::<f32>(&bytes, 300), Ok(Ok(values)) if values.len() == 300));
        for wrong in [0, 1, 256, 299, 301, 1_000] {
            assert!(!matches!(decompress::<f32>(&bytes, wrong), Ok(Ok(_))), "{wrong}");
        }
    }

    #[test]
    fn stretches_are_read_as_one_column_and_missing_ones_are_small() {
        let number = |i: u16| if i < 30_000 { f32::NAN } else { f32::from(i % 977) };
        let numbers: Vec<f32> = (0..32_000).map(number).collect();
        let bytes = compress_stretches(&numbers, vec![30_000, 2_000]).unwrap();
        let back = decompress::<f32>(&bytes, numbers.len()).unwrap().unwrap();
        let bits = |numbers: &[f32]| numbers.iter().map(|n| n.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&back), bits(&numbers));
        for wrong in [0, 29_999, 30_000, 30_001, 31_999, 32_001] {
            assert!(!matches!(decompress::<f32>(&bytes, wrong), Ok(Ok(_))), "{wrong}");
        }
        let measured = compress(&numbers[30_000..]).unwrap().len();
        assert!(bytes.len() < measured + 64, "{} bytes, {measured} of numbers", bytes.len());
        assert!(bytes.len() < compress(&numbers).unwrap().len());
    }
}
