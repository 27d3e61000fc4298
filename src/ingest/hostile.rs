//! Bodies made to break the decoders: good ones, mutated, in every form and packing.

use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Value, json};

use super::fixtures::*;
use super::{DecodeLimits, Encoding, Media};
use arrow::ipc::CompressionType;

/// The text that must come out nowhere.
const CANARY: &str = "canary 3f1c: password is hunter2";

/// One change to a body.
#[derive(Debug, Clone)]
enum Mutation {
    Flip(Index, u8),
    Overwrite(Index, Vec<u8>),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    Truncate(Index),
    Repeat(Index, usize),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let at = any::<Index>;
    let piece = prop_oneof![
        prop::collection::vec(any::<u8>(), 1..9),
        prop::sample::select(vec![
            b"\"".to_vec(),
            b"\\u0000".to_vec(),
            b"\n".to_vec(),
            b"}{".to_vec(),
            b"null".to_vec(),
            b"1e999".to_vec(),
            b"NaN".to_vec(),
            b"-".to_vec(),
            b"[[[[".to_vec(),
            vec![0xff; 8],
            vec![0; 8],
            vec![0xff, 0xff, 0xff, 0x7f],
            i64::MAX.to_le_bytes().to_vec(),
            i64::MIN.to_le_bytes().to_vec(),
        ]),
    ];
    prop_oneof![
        (at(), any::<u8>()).prop_map(|(at, mask)| Mutation::Flip(at, mask)),
        (at(), piece.clone()).prop_map(|(at, piece)| Mutation::Overwrite(at, piece)),
        (at(), piece).prop_map(|(at, piece)| Mutation::Insert(at, piece)),
        (at(), 1..40_usize).prop_map(|(at, len)| Mutation::Remove(at, len)),
        at().prop_map(Mutation::Truncate),
        (at(), 1..200_usize).prop_map(|(at, len)| Mutation::Repeat(at, len)),
    ]
}

fn mutate(body: &mut Vec<u8>, mutation: &Mutation) {
    if body.is_empty() {
        return;
    }
    match mutation {
        Mutation::Flip(at, mask) => {
            let at = at.index(body.len());
            body[at] ^= mask | 1;
        }
        Mutation::Overwrite(at, piece) => {
            let at = at.index(body.len());
            let end = (at + piece.len()).min(body.len());
            body.splice(at..end, piece.iter().copied());
        }
        Mutation::Insert(at, piece) => {
            let at = at.index(body.len());
            body.splice(at..at, piece.iter().copied());
        }
        Mutation::Remove(at, len) => {
            let at = at.index(body.len());
            body.drain(at..(at + len).min(body.len()));
        }
        Mutation::Truncate(at) => body.truncate(at.index(body.len())),
        Mutation::Repeat(at, len) => {
            let at = at.index(body.len());
            let piece = body[at..(at + len).min(body.len())].to_vec();
            body.splice(at..at, piece);
        }
    }
}

/// Good bodies of each form, each with a plaintext error message in it.
fn good_bodies() -> Vec<(Media, Vec<u8>)> {
    let mut with_message = sample_without("error_hash");
    with_message["error_message"] = CANARY.into();
    let samples = [with_message.clone(), sample_without("caller"), with_message];
    let messages = arrow::array::StringArray::from(vec![Some(CANARY), None, Some(CANARY)]);
    let without_hash = replaced(&emitted(3), "error_hash", std::sync::Arc::new(arrow::array::NullArray::new(3)));
    let batch = with_column(&without_hash, "error_message", std::sync::Arc::new(messages));
    let views = arrow::compute::cast(batch.column_by_name("tool").unwrap(), &arrow::datatypes::DataType::Utf8View);
    let dictionary_type = arrow::datatypes::DataType::Dictionary(
        Box::new(arrow::datatypes::DataType::Int8),
        Box::new(arrow::datatypes::DataType::Utf8),
    );
    let dictionary = arrow::compute::cast(batch.column_by_name("plugin").unwrap(), &dictionary_type);
    let varied = replaced(&replaced(&batch, "tool", views.unwrap()), "plugin", dictionary.unwrap());
    vec![
        (Media::Ndjson, ndjson(&samples)),
        (Media::Json, json!(samples).to_string().into_bytes()),
        (Media::ArrowStream, stream(&[batch.clone(), batch.clone()], None)),
        (Media::ArrowStream, stream(&[varied], None)),
        (Media::ArrowStream, stream(std::slice::from_ref(&batch), Some(CompressionType::ZSTD))),
        (Media::ArrowStream, stream(&[batch], Some(CompressionType::LZ4_FRAME))),
    ]
}

fn pack(encoding: Encoding, body: &[u8]) -> Vec<u8> {
    use std::io::Write;
    match encoding {
        Encoding::Identity => body.to_vec(),
        Encoding::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(body).unwrap();
            encoder.finish().unwrap()
        }
        Encoding::Zstd => zstd::stream::encode_all(body, 1).unwrap(),
    }
}

/// Decodes, and asserts that the answer is a sound batch or a fault of the sender's, and repeats no secret.
fn assert_sound_or_refused(media: Media, encoding: Encoding, body: &[u8]) {
    let limits = DecodeLimits { max_decoded_bytes: 1 << 20, max_rows: 1000 };
    match decode_packed(media, encoding, body, limits) {
        Ok(batch) => {
            assert_canonical(&batch);
            assert!(!format!("{batch:?}").contains(CANARY));
        }
        Err(error) => {
            assert!(error.status().is_client_error(), "{error}");
            assert!(!error.to_string().is_empty());
            assert!(!format!("{error} {error:?}").contains(CANARY), "{error:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, max_shrink_iters: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_mutated_body_is_refused_or_still_sound(
        form in 0..6_usize,
        mutations in prop::collection::vec(mutation(), 1..6),
    ) {
        let (media, mut body) = good_bodies().swap_remove(form);
        for mutation in &mutations {
            mutate(&mut body, mutation);
        }
        for encoding in [Encoding::Identity, Encoding::Gzip, Encoding::Zstd] {
            assert_sound_or_refused(media, encoding, &pack(encoding, &body));
        }
    }

    #[test]
    fn a_mutated_packing_is_refused_or_still_sound(
        form in 0..6_usize,
        gzip in any::<bool>(),
        mutations in prop::collection::vec(mutation(), 1..4),
    ) {
        let (media, body) = good_bodies().swap_remove(form);
        let encoding = if gzip { Encoding::Gzip } else { Encoding::Zstd };
        let mut packed = pack(encoding, &body);
        for mutation in &mutations {
            mutate(&mut packed, mutation);
        }
        assert_sound_or_refused(media, encoding, &packed);
    }
}

#[test]
fn the_good_bodies_are_good() {
    for (media, body) in good_bodies() {
        assert_canonical(&decode_as(media, &body, DecodeLimits::default()).unwrap());
    }
}

#[test]
fn the_text_of_an_error_message_is_in_no_error() {
    let with = |field: &str, value: Value| {
        let mut sample = sample_with("error_message", CANARY);
        sample[field] = value;
        sample
    };
    for sample in [
        with("error_hash", "00".repeat(32).into()),
        with("error_hash", CANARY.into()),
        with("outcome", CANARY.into()),
        with("started_at", CANARY.into()),
        with("duration_ms", CANARY.into()),
        with("tool", format!("{CANARY}\n").into()),
        with("invocation_id", CANARY.into()),
        with("org", CANARY.into()),
        with("trace_id", CANARY.into()),
        with("decision", CANARY.into()),
        with("error_message", json!([CANARY])),
        with("error_message", json!({ "text": CANARY })),
        with("unknown", CANARY.into()),
        CANARY.into(),
        json!([CANARY]),
    ] {
        for body in [sample.to_string(), sample.to_string().replacen(CANARY, &format!("{CANARY}\" oops"), 1)] {
            for media in [Media::Json, Media::Ndjson] {
                let error = decode_as(media, body.as_bytes(), DecodeLimits::default()).unwrap_err();
                assert!(!format!("{error} {error:?}").contains(CANARY), "{error:?}");
            }
        }
    }
}
