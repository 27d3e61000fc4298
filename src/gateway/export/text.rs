//! Texts of others cut to what the control plane takes.
//!
//! The names of plugins, tools and callers may come from clients, and a batch with one field out of bounds is refused
//! whole. So a text that is too long is cut, and a control character or one that is not seen replaced, before anything
//! is recorded: one strange call must not take the telemetry of a thousand others with it.

use std::borrow::Cow;

use serde::{Serialize, Serializer};

use crate::ingest::is_unseen;

/// The most characters of a required name, of an optional text, of an event's target, and the most bytes of a reason
/// and of one of an event's texts in lists. They are the control plane's own bounds.
pub(super) const NAME: usize = 128;
pub(super) const TEXT: usize = 256;
pub(super) const TARGET: usize = 1_024;
pub(super) const PROSE_BYTES: usize = 16 << 10;
pub(super) const LISTED_BYTES: usize = 1_024;
/// The most texts in a list.
pub(super) const LISTED: usize = 256;

/// A text of at most so many characters, without control characters; `?` for a required name that is empty.
pub(super) fn bounded(text: &str, most: usize) -> Cow<'_, str> {
    if text.len() <= most && text.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.chars().take(most).map(visible).collect())
}

/// A required name; `?` for one that is blank.
pub(super) fn name(text: &str) -> Cow<'_, str> {
    if text.trim().is_empty() { Cow::Borrowed("?") } else { bounded(text, NAME) }
}

/// A text of at most so many bytes; control characters stay if `lines` are let through.
pub(super) fn bounded_bytes(text: &str, most: usize, lines: bool) -> Cow<'_, str> {
    let cut = text.get(..text.floor_char_boundary(most)).unwrap_or_default();
    if lines || !cut.chars().any(char::is_control) {
        return Cow::Borrowed(cut);
    }
    Cow::Owned(cut.chars().map(|c| if c.is_control() { ' ' } else { c }).collect())
}

fn visible(character: char) -> char {
    if character.is_control() || is_unseen(character) { char::REPLACEMENT_CHARACTER } else { character }
}

/// Serialises a list within bounds; an empty text is left out.
pub(super) fn listed<S: Serializer>(texts: &&[String], serializer: S) -> Result<S::Ok, S::Error> {
    let texts = texts.iter().filter(|text| !text.is_empty()).take(LISTED);
    serializer.collect_seq(texts.map(|text| bounded_bytes(text, LISTED_BYTES, false)))
}

/// Serialises an optional text within the bound of [`TEXT`].
pub(super) fn optional<S: Serializer>(text: &Option<&str>, serializer: S) -> Result<S::Ok, S::Error> {
    text.map(|text| bounded(text, TEXT)).serialize(serializer)
}

#[cfg(test)]
mod tests {
    use super::{bounded, bounded_bytes, name};

    #[test]
    fn a_plain_text_stays_as_it_is() {
        assert_eq!(bounded("list_repos", 128), "list_repos");
        assert_eq!(bounded("日本語", 3), "日本語");
    }

    #[test]
    fn a_long_text_is_cut_at_a_character() {
        assert_eq!(bounded(&"é".repeat(300), 128).chars().count(), 128);
        assert_eq!(bounded_bytes("aé", 2, true), "a");
    }

    #[test]
    fn control_characters_are_replaced() {
        assert_eq!(bounded("a\nb\u{85}", 128), "a\u{fffd}b\u{fffd}");
        assert_eq!(bounded("pay\u{202e}lla\u{200b}", 128), "pay\u{fffd}lla\u{fffd}");
        assert_eq!(bounded_bytes("a\nb", 10, false), "a b");
        assert_eq!(bounded_bytes("a\nb", 10, true), "a\nb");
    }

    #[test]
    fn a_required_name_is_never_empty() {
        for blank in ["", " ", "\u{3000}"] {
            assert_eq!(name(blank), "?");
        }
    }
}
