//! Names from cgroups, runtimes and processes, made safe to show.

use std::borrow::Cow;

/// `text` with everything that could move a cursor, hide or reorder what stands beside it written
/// as `\u{..}`: control characters, and the marks of Unicode that set direction or have no width.
///
/// Different texts stay different: a backslash that could be taken for such an escape is escaped
/// too.
pub fn printable(text: &str) -> Cow<'_, str> {
    let is_unsafe = |(at, character): (usize, char)| {
        is_invisible(character) || (character == '\\' && text[at..].starts_with("\\u{"))
    };
    let Some((first, _)) = text.char_indices().find(|found| is_unsafe(*found)) else {
        return Cow::Borrowed(text);
    };
    let mut shown = String::with_capacity(text.len() + 16);
    shown.push_str(&text[..first]);
    for (at, character) in text.char_indices().skip_while(|(at, _)| *at < first) {
        if is_unsafe((at, character)) {
            shown.extend(character.escape_unicode());
        } else {
            shown.push(character);
        }
    }
    Cow::Owned(shown)
}

/// [`printable`], cut to at most `bytes_max` bytes at the end of a character.
pub fn printable_within(text: &str, bytes_max: usize) -> String {
    let mut shown = printable(text.get(..cut_at(text, bytes_max)).unwrap_or("")).into_owned();
    shown.truncate(cut_at(&shown, bytes_max));
    shown
}

/// The end of the last whole character within `bytes_max`.
fn cut_at(text: &str, bytes_max: usize) -> usize {
    if text.len() <= bytes_max {
        return text.len();
    }
    (0..=bytes_max).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0)
}

fn is_invisible(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
        )
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::any, proptest};

    use super::{printable, printable_within};

    #[test]
    fn what_moves_a_cursor_is_written_out() {
        assert_eq!(printable("nginx"), "nginx");
        assert_eq!(printable("a\u{1b}[2Jb\n"), "a\\u{1b}[2Jb\\u{a}");
        assert_eq!(printable("tx\u{202e}gpj"), "tx\\u{202e}gpj");
        assert_eq!(printable("machine\\x2dqemu"), "machine\\x2dqemu");
        assert_eq!(printable("\\u{1b}"), "\\u{5c}u{1b}");
        assert_eq!(printable_within("éé", 3), "é");
    }

    proptest! {
        #[test]
        fn shown_text_is_safe_bounded_and_tells_texts_apart(
            one in any::<String>(), other in "[a\\\\u{1b}\u{1b}]{0,12}", third in "[a\\\\u{1b}\u{1b}]{0,12}",
        ) {
            assert!(!printable(&one).chars().any(char::is_control));
            assert!(printable_within(&one, 20).len() <= 20);
            assert_eq!(printable(&other) == printable(&third), other == third);
        }
    }
}
