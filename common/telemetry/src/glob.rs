//! Patterns over cgroup paths: `*` within a component, `**` across components, `?` one character.

use serde::{Deserialize, Serialize};

/// One pattern, e.g. `/system.slice/*.service` or `/kubepods.slice/**`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Glob(pub String);

impl Glob {
    /// Whether the whole of `path` matches. Takes time proportional to the product of the lengths.
    pub fn matches(&self, path: &str) -> bool {
        let pattern = tokens(&self.0);
        let path: Vec<char> = path.chars().collect();
        // `reach[i]` says whether the tokens so far match the first `i` characters of the path.
        let mut reach = vec![false; path.len() + 1];
        reach[0] = true;
        for token in pattern {
            let mut next = vec![false; path.len() + 1];
            for i in 0..=path.len() {
                let stays = |crosses: bool| i > 0 && (crosses || path[i - 1] != '/');
                next[i] = match token {
                    Token::Exactly(c) => i > 0 && reach[i - 1] && path[i - 1] == c,
                    Token::One => i > 0 && reach[i - 1] && path[i - 1] != '/',
                    Token::Within => reach[i] || (stays(false) && next[i - 1]),
                    Token::Across => reach[i] || (stays(true) && next[i - 1]),
                };
            }
            reach = next;
        }
        reach[path.len()]
    }
}

#[derive(Clone, Copy)]
enum Token {
    Exactly(char),
    One,
    Within,
    Across,
}

fn tokens(pattern: &str) -> Vec<Token> {
    let mut found = Vec::with_capacity(pattern.len());
    let mut rest = pattern.chars().peekable();
    while let Some(c) = rest.next() {
        found.push(match c {
            '*' if rest.next_if_eq(&'*').is_some() => Token::Across,
            '*' => Token::Within,
            '?' => Token::One,
            other => Token::Exactly(other),
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::proptest;

    use super::Glob;

    fn matches(pattern: &str, path: &str) -> bool {
        Glob(pattern.to_owned()).matches(path)
    }

    #[test]
    fn stars_stop_at_components_unless_doubled() {
        assert!(matches("/system.slice/*.service", "/system.slice/a.service"));
        assert!(!matches("/system.slice/*", "/system.slice/a/b"));
        assert!(matches("/system.slice/**", "/system.slice/a/b"));
        assert!(matches("/**/x", "/a/b/x"));
        assert!(matches("/a?", "/ab"));
        assert!(!matches("/a?", "/a/"));
        assert!(!matches("", "/"));
        assert!(matches("**", "/anything/at/all"));
    }

    proptest! {
        #[test]
        fn any_pattern_over_any_path_ends(pattern in "[*?/aé]{0,40}", path in "[/aé]{0,80}") {
            matches(&pattern, &path);
        }

        #[test]
        fn a_path_matches_itself(path in "(/[a-z.]{1,8}){1,5}") {
            assert!(matches(&path, &path));
        }
    }
}
