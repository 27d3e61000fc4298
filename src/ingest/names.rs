//! What a name may be made of, so that two names that look alike are one, and none looks like nothing.

/// Whether a character shows nothing, or changes how others are shown: bidirectional controls, zero-width characters,
/// fillers, separators of lines, tags. Labels, columns and policies compare names by their characters; people compare
/// them by sight.
pub const fn is_unseen(character: char) -> bool {
    matches!(
        character,
        '\u{ad}'
            | '\u{34f}'
            | '\u{61c}'
            | '\u{115f}'..='\u{1160}'
            | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{2800}'
            | '\u{3164}'
            | '\u{fe00}'..='\u{fe0f}'
            | '\u{feff}'
            | '\u{ffa0}'
            | '\u{fff0}'..='\u{fffb}'
            | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}'
    )
}

/// Whether a text can be a name: something of it is seen, and nothing of it is unseen.
pub(super) fn is_seen(name: &str) -> bool {
    name.chars().any(|character| !character.is_whitespace()) && !name.chars().any(is_unseen)
}

#[cfg(test)]
mod tests {
    use super::is_seen;

    #[test]
    fn a_name_is_seen_and_hides_nothing() {
        for good in ["list_repos", "日本語 tool", "créate issue", "أداة", "🚀", "a b"] {
            assert!(is_seen(good), "{good}");
        }
        for bad in [
            "",
            " ",
            "\u{a0}\u{3000}",
            "pay\u{202e}lla",
            "list\u{200b}_repos",
            "a\u{200d}b",
            "\u{feff}tool",
            "a\u{2066}b\u{2069}",
            "a\u{2028}b",
            "\u{3164}",
            "a\u{e0041}",
        ] {
            assert!(!is_seen(bad), "{bad:?}");
        }
    }
}
