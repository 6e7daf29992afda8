//! Times and lengths as people write them.

use time::{Date, Month, OffsetDateTime, Time};

/// Seconds of a length such as `15s`, `5m`, `2h`, `7d`; a bare number is seconds.
///
/// # Errors
///
/// Says what it may look like.
pub(crate) fn seconds(text: &str) -> Result<u32, String> {
    let wrong = || format!("`{text}` is no length of time; write 15s, 5m, 2h or 7d");
    let (digits, unit_s) = match text.trim().char_indices().next_back() {
        Some((at, 's')) => (&text[..at], 1),
        Some((at, 'm')) => (&text[..at], 60),
        Some((at, 'h')) => (&text[..at], 3_600),
        Some((at, 'd')) => (&text[..at], 86_400),
        Some((at, 'w')) => (&text[..at], 7 * 86_400),
        _ => (text, 1),
    };
    let number: u32 = digits.trim().parse().map_err(|_not_a_number| wrong())?;
    number.checked_mul(unit_s).filter(|seconds| *seconds > 0).ok_or_else(wrong)
}

/// A moment: `now`, a length before now, seconds since 1970, a day, or a day and time in UTC. Whole
/// seconds since 1970.
///
/// # Errors
///
/// Says what it may look like.
pub(crate) fn moment(text: &str, now_s: i64) -> Result<i64, String> {
    let text = text.trim();
    if text == "now" {
        return Ok(now_s);
    }
    if let Ok(unix_s) = text.parse::<i64>() {
        return Ok(unix_s);
    }
    if let Some(unix_s) = date(text) {
        return Ok(unix_s);
    }
    seconds(text).map(|before_s| now_s - i64::from(before_s)).map_err(|_no_length| {
        format!(
            "`{text}` is no time; write now, 7d (ago), 2026-01-31, 2026-01-31T12:00:00Z, or seconds \
             since 1970"
        )
    })
}

fn date(text: &str) -> Option<i64> {
    let (day, clock) = match text.split_once('T') {
        Some((day, clock)) => (day, clock.strip_suffix('Z')?),
        None => (text, "00:00:00"),
    };
    let mut parts = day.splitn(3, '-');
    let year = parts.next().filter(|year| year.len() == 4)?.parse().ok()?;
    let month = Month::try_from(parts.next()?.parse::<u8>().ok()?).ok()?;
    let date = Date::from_calendar_date(year, month, parts.next()?.parse().ok()?).ok()?;
    let mut parts = clock.split(':').map(|part| part.parse::<u8>().ok());
    let time = Time::from_hms(parts.next()??, parts.next()??, parts.next()??).ok()?;
    parts.next().is_none().then(|| OffsetDateTime::new_utc(date, time).unix_timestamp())
}

/// A moment as people read it, UTC.
pub(crate) fn shown(t_s: f64) -> String {
    #[expect(clippy::cast_possible_truncation, reason = "saturates, and then is no date")]
    match OffsetDateTime::from_unix_timestamp(t_s as i64) {
        Ok(at) => format!(
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
            at.year(),
            u8::from(at.month()),
            at.day(),
            at.hour(),
            at.minute(),
            at.second()
        ),
        Err(_) => t_s.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::{moment, seconds, shown};

    #[test]
    fn times_are_read_as_people_write_them() {
        for (text, expected) in [
            ("now", 1_000_000),
            ("1h", 996_400),
            ("2026-01-31", 1_769_817_600),
            ("2026-01-31T12:30:05Z", 1_769_862_605),
            ("1769862605", 1_769_862_605),
        ] {
            assert_eq!(moment(text, 1_000_000), Ok(expected), "{text}");
        }
        for wrong in
            ["", "yesterday", "2026-13-01", "2026-01-31T12:30:05", "1x", "0d", "2026-1-1T1Z"]
        {
            assert!(moment(wrong, 0).is_err(), "{wrong}");
        }
        assert_eq!(shown(1_769_862_605.0), "2026-01-31T12:30:05Z");
        assert_eq!(seconds("15"), Ok(15));
        assert!(seconds("99999999d").is_err() && seconds("é").is_err());
    }
}
