//! What servers do at their standard output, in chunks of every size.

use proptest::prelude::*;

use super::{Frame, Framing, Oddity};

const MESSAGE: &str = r#"{"jsonrpc":"2.0","id":1,"result":{"text":"é}{"}}"#;

fn read(bytes: &[u8], chunk: usize, limit: usize) -> (Vec<Frame>, Vec<Oddity>) {
    let mut framing = Framing::new(limit);
    bytes.chunks(chunk).for_each(|chunk| framing.feed(chunk));
    framing.finish();
    (std::iter::from_fn(|| framing.next()).collect(), framing.take_oddities())
}

/// That every way to cut the bytes gives these messages, and this oddity.
#[track_caller]
fn gives(bytes: &[u8], messages: &[&str], oddities: &[Oddity]) {
    for chunk in 1..=bytes.len() {
        let (frames, seen) = read(bytes, chunk, 10_000);
        let texts: Vec<_> = frames
            .iter()
            .map(|frame| match frame {
                Frame::Object(text) => std::str::from_utf8(text).unwrap().to_owned(),
                Frame::TooLong { .. } => panic!("{frame:?}"),
            })
            .collect();
        assert_eq!(texts, messages, "chunks of {chunk}");
        assert_eq!(seen, oddities, "chunks of {chunk}");
    }
}

fn utf16(text: &str, unit: fn(u16) -> [u8; 2]) -> Vec<u8> {
    text.encode_utf16().flat_map(unit).collect()
}

#[test]
fn a_message_a_line_is_read_as_it_is_written() {
    gives(format!("{MESSAGE}\n{MESSAGE}\r\n\n").as_bytes(), &[MESSAGE, MESSAGE], &[]);
    gives(format!("\u{feff}{MESSAGE}\n").as_bytes(), &[MESSAGE], &[]);
    gives(MESSAGE.as_bytes(), &[MESSAGE], &[]);
}

#[test]
fn chatter_is_dropped_and_told_once() {
    let text = format!("Listening on stdio\n{MESSAGE}\n{{ not json\n[debug] x\n{MESSAGE}\n}} \n");
    gives(text.as_bytes(), &[MESSAGE, MESSAGE], &[Oddity::Chatter]);
}

#[test]
fn bytes_that_are_no_text_at_all_are_chatter() {
    let mut bytes = b"\x00\xff\x00\n\xff\x00\x01\n\x00\x00\n".to_vec();
    bytes.extend_from_slice(format!("{MESSAGE}\n").as_bytes());
    gives(&bytes, &[MESSAGE], &[Oddity::Chatter]);
}

#[test]
fn other_encodings_are_read() {
    let text = format!("{MESSAGE}\r\n{MESSAGE}\n");
    gives(&utf16(&text, u16::to_le_bytes), &[MESSAGE, MESSAGE], &[Oddity::Encoding]);
    gives(&utf16(&text, u16::to_be_bytes), &[MESSAGE, MESSAGE], &[Oddity::Encoding]);
    gives(&utf16(&format!("\u{feff}{text}"), u16::to_le_bytes), &[MESSAGE, MESSAGE], &[Oddity::Encoding]);
    let mut mixed = utf16("warning 😀 \u{a0a}\n", u16::to_le_bytes);
    mixed.extend_from_slice(text.as_bytes());
    gives(&mixed, &[MESSAGE, MESSAGE], &[Oddity::Encoding, Oddity::Chatter]);
    gives(b"{\"id\":1,\"result\":\"caf\xE9\"}\n", &["{\"id\":1,\"result\":\"caf\u{fffd}\"}"], &[Oddity::Encoding]);
}

#[test]
fn a_message_over_several_lines_and_two_on_one_are_taken_apart() {
    let pretty = "{\n  \"jsonrpc\": \"2.0\",\n  \"result\": {}\n}";
    gives(
        format!("{pretty}\n{MESSAGE}{MESSAGE} {MESSAGE}\n").as_bytes(),
        &["{\n\"jsonrpc\": \"2.0\",\n\"result\": {}\n}", MESSAGE, MESSAGE, MESSAGE],
        &[Oddity::Lines],
    );
}

#[test]
fn an_output_that_ends_within_a_message_is_told() {
    gives(format!("{MESSAGE}\n{{\"jsonrpc\":\"2.0\",\"id\":2,\"res").as_bytes(), &[MESSAGE], &[Oddity::HalfLine]);
    gives(format!("{MESSAGE}\n{{\"jsonrpc\":\"2.0\",\"id\":2,").as_bytes(), &[MESSAGE], &[Oddity::HalfLine]);
}

#[test]
fn a_line_past_the_limit_is_told_with_its_id_and_the_next_is_read() {
    let long = "x".repeat(500);
    for text in [
        format!(r#"{{"jsonrpc":"2.0","id":7,"result":{{"text":"{long}"}}}}"#),
        format!(r#"{{"result":{{"id":9,"text":"{long}"}},"jsonrpc":"2.0","id":7}}"#),
        format!("{{\"id\":7,\n\"result\":\n\"{long}\"}}"),
    ] {
        let text = format!("{text}\n{MESSAGE}\n");
        for chunk in [1, 7, 1_000] {
            let (frames, oddities) = read(text.as_bytes(), chunk, 100);
            assert_eq!(frames, [Frame::TooLong { id: Some(7) }, Frame::Object(MESSAGE.into())]);
            assert_eq!(oddities, [Oddity::TooLong]);
        }
    }
    let (frames, oddities) = read(format!("{long}\n{MESSAGE}\n").as_bytes(), 11, 100);
    assert_eq!((frames.len(), oddities), (1, vec![Oddity::Chatter]));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic_and_it_always_goes_on(
        bytes in proptest::collection::vec(prop_oneof![any::<u8>(), proptest::sample::select(b"{}[]\"\n\\\0:,id1".to_vec())], 0..3_000),
        chunk in 1..200_usize,
        limit in 0..400_usize,
    ) {
        let mut framing = Framing::new(limit);
        for chunk in bytes.chunks(chunk) {
            framing.feed(chunk);
            while let Some(frame) = framing.next() {
                if let Frame::Object(text) = frame {
                    prop_assert!(std::str::from_utf8(&text).is_ok());
                }
            }
            prop_assert!(framing.line.len() <= limit.max(2) + 4);
        }
        framing.finish();
    }
}
