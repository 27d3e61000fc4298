//! The vector, changed bytes, swapped parts, and the construction that opens under two keys.

use bytes::Bytes;
use chrono::DateTime;
use proptest::prelude::*;
use zeroize::Zeroizing;

use super::frames::{self, Frame};
use super::note::KeyNote;
use super::wrapped::{WrappedKey, plain, read_plain};
use super::{
    Content, ContentKey, Direction, Envelope, Header, KeyPair, Kind, MAX_CAP, Recipients, Record, Refusal, Sealer,
    Secret, Suite,
};

const VECTOR: &str = include_str!("../../schemas/payload-vector.txt");

/// Bytes of a line of the vector: a name, a space, hex.
fn vector(name: &str) -> Vec<u8> {
    let line = VECTOR.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).unwrap();
    (0..line.len()).step_by(2).map(|at| u8::from_str_radix(&line[at..at + 2], 16).unwrap()).collect()
}

fn key(name: &str, suite: Suite) -> KeyPair {
    KeyPair::of(suite, Secret::new(&vector(name).try_into().unwrap())).unwrap()
}

struct Opened {
    envelope: Envelope,
    record: Record,
    key: ContentKey,
}

fn opened() -> Opened {
    let envelope = Envelope::parse(vector("envelope").into()).unwrap();
    let record = Record::parse(vector("record").into()).unwrap();
    let shares =
        [envelope.share(0, &key("epoch_sk", Suite::XWing)), envelope.share(1, &key("tenant_sk", Suite::XWing))];
    let shares = shares.map(Result::unwrap);
    let key = envelope.content_key(&[&shares[0], &shares[1]]).unwrap();
    Opened { envelope, record, key }
}

fn open(record: Vec<u8>, of: &Opened) -> Result<Vec<u8>, Refusal> {
    let opened = Record::parse(record.into())?.open(&of.envelope, &of.key, MAX_CAP)?;
    Ok(opened.expose().to_vec())
}

fn header(epoch: &str) -> Header {
    Header {
        org: "acme".parse().unwrap(),
        workspace: "prod".to_owned(),
        instance: "gw-1".to_owned(),
        plugin: "github".to_owned(),
        kind: Kind::Tool,
        tool: "search_code".to_owned(),
        invocation_id: uuid::Uuid::from_u128(7),
        direction: Direction::Request,
        epoch: epoch.parse().unwrap(),
        started_at: DateTime::parse_from_rfc3339("2026-11-26T14:03:22.000312Z").unwrap().to_utc(),
        content_type: "application/json".to_owned(),
        redactions: Vec::new(),
        truncated_from: None,
    }
}

const EPOCH: &str = "2026-11-26.30d";

fn sealed(suite: Suite, tenant: bool, content: &[u8]) -> (Envelope, Bytes, KeyPair, Option<KeyPair>) {
    let epoch_key = KeyPair::random(suite).unwrap();
    let tenant_key = tenant.then(|| KeyPair::random(suite).unwrap());
    let recipients =
        Recipients { epoch: epoch_key.public().clone(), tenant: tenant_key.as_ref().map(|key| key.public().clone()) };
    let (envelope, key) = Envelope::seal(&"acme".parse().unwrap(), EPOCH.parse().unwrap(), &recipients).unwrap();
    let (content, cut) = Content::new(content.to_vec(), MAX_CAP);
    assert_eq!(cut, None);
    let record = Sealer::new(&envelope, key).seal(&header(EPOCH), &content, true).unwrap();
    (envelope, record, epoch_key, tenant_key)
}

#[test]
fn the_vector_opens() {
    let of = opened();
    assert_eq!(of.record.header().tool, "search_code");
    assert_eq!(of.record.header().redactions, ["/password"]);
    let plaintext = open(vector("record"), &of).unwrap();
    assert_eq!(plaintext, vector("plaintext"));
}

#[test]
fn every_bit_of_the_record_counts() {
    let of = opened();
    let whole = vector("record");
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut changed = whole.clone();
            changed[at] ^= 1 << bit;
            let refusal = open(changed, &of).unwrap_err();
            let expected: &[Refusal] = match at {
                0..=4 => &[Refusal::Format],
                5 => &[Refusal::Suite],
                6..=7 => &[Refusal::Format],
                8..=39 => &[Refusal::Envelope],
                40..=71 => &[Refusal::Commitment],
                at if at < of.record.end_of_header() => &[Refusal::Format, Refusal::Envelope, Refusal::Commitment],
                at if at < of.record.end_of_header() + 32 => &[Refusal::Commitment],
                _ => &[Refusal::Tag],
            };
            assert!(expected.contains(&refusal), "byte {at} bit {bit}: {refusal}");
        }
    }
    for cut in 0..whole.len() {
        assert!(open(whole[..cut].to_vec(), &of).is_err(), "cut at {cut}");
    }
    assert_eq!(open([whole.as_slice(), &[0]].concat(), &of), Err(Refusal::Tag));
}

#[test]
fn every_byte_of_the_envelope_counts() {
    let of = opened();
    let whole = vector("envelope");
    let keys = ["epoch_sk", "tenant_sk"].map(|name| key(name, Suite::XWing));
    for at in 0..whole.len() {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        let Ok(envelope) = Envelope::parse(changed.into()) else { continue };
        // Whatever opens of its shares, the record is another envelope's.
        let record = Record::parse(vector("record").into()).unwrap();
        assert_eq!(record.open(&envelope, &of.key, MAX_CAP).unwrap_err(), Refusal::Envelope, "byte {at}");
        let both = [0, 1].map(|place| envelope.share(place, &keys[place]));
        assert!(both.iter().any(Result::is_err) || envelope.org() != of.envelope.org(), "byte {at}");
    }
    assert_eq!(Envelope::parse([whole.as_slice(), &[0]].concat().into()).unwrap_err(), Refusal::Format);
}

#[test]
fn both_suites_seal_and_open_with_and_without_a_tenants_key() {
    for (suite, tenant) in [(Suite::XWing, true), (Suite::XWing, false), (Suite::X25519, true), (Suite::X25519, false)]
    {
        let (envelope, record, epoch_key, tenant_key) = sealed(suite, tenant, b"{\"a\":1}");
        let record = Record::parse(record).unwrap();
        let share = envelope.share(0, &epoch_key).unwrap();
        let second = tenant_key.as_ref().map(|key| envelope.share(1, key).unwrap());
        let shares: Vec<_> = [Some(&share), second.as_ref()].into_iter().flatten().collect();
        let content = envelope.content_key(&shares).unwrap();
        assert_eq!(record.open(&envelope, &content, 7).unwrap().expose(), b"{\"a\":1}");
        assert_eq!(record.open(&envelope, &content, 6).unwrap_err(), Refusal::Length);
        if tenant {
            // Neither side alone.
            assert!(envelope.content_key(&[&share]).is_err());
            let alone = ContentKey::derive(&envelope.id(), &[&share]);
            assert_eq!(record.open(&envelope, &alone, 7).unwrap_err(), Refusal::Commitment);
        }
        assert_eq!(envelope.share(0, &KeyPair::random(suite).unwrap()).unwrap_err(), Refusal::Stanza);
    }
}

#[test]
fn a_record_does_not_open_under_another_envelope() {
    let (one, record, ..) = sealed(Suite::X25519, false, b"x");
    let (two, _, two_key, _) = sealed(Suite::X25519, false, b"x");
    let record = Record::parse(record).unwrap();
    let share = two.share(0, &two_key).unwrap();
    let key = two.content_key(&[&share]).unwrap();
    assert_eq!(record.open(&two, &key, 9).unwrap_err(), Refusal::Envelope);
    assert_eq!(record.open(&one, &key, 9).unwrap_err(), Refusal::Commitment);
}

/// AES-GCM commits to no key: for two keys and a nonce of each, a ciphertext and a tag can be solved for that both
/// accept. What stands before decryption is the commitment, which fits one of the two at most.
#[test]
fn a_ciphertext_made_for_two_keys_opens_under_one_at_most() {
    let (envelope, record, epoch_key, _) = sealed(Suite::X25519, false, b"first");
    let share = envelope.share(0, &epoch_key).unwrap();
    let first = envelope.content_key(&[&share]).unwrap();
    let second = ContentKey::derive(&envelope.id(), &[&Secret::random()]);
    let record = Record::parse(record).unwrap();
    let front = &record.bytes()[..record.end_of_header()];
    let salt: [u8; 32] = front[40..72].try_into().unwrap();
    // Under each key its own commitment: they differ, so that no record carries both.
    let made = |key: &ContentKey| {
        let sealer = Sealer::new(&envelope, key.clone());
        let made = sealer.seal_with(&front[72..], salt, Zeroizing::new(vec![0; 256])).unwrap();
        made[record.end_of_header()..record.end_of_header() + 32].to_vec()
    };
    let (ours, theirs) = (made(&first), made(&second));
    assert_ne!(ours, theirs);
    for commitment in [ours, theirs] {
        let bytes = [front, &commitment, &record.bytes()[record.end_of_header() + 32..]].concat();
        let record = Record::parse(bytes.into()).unwrap();
        let refused = [&first, &second].map(|key| record.open(&envelope, key, 9).err());
        assert!(refused.contains(&Some(Refusal::Commitment)), "{refused:?}");
    }
}

#[test]
fn a_plaintext_of_another_form_is_refused_after_its_tag() {
    let (envelope, record, epoch_key, _) = sealed(Suite::X25519, false, b"x");
    let share = envelope.share(0, &epoch_key).unwrap();
    let key = envelope.content_key(&[&share]).unwrap();
    let record = Record::parse(record).unwrap();
    let sealer = Sealer::new(&envelope, key.clone());
    let refused = |plaintext: Vec<u8>| {
        let bytes = sealer.seal_with(&record.bytes()[72..record.end_of_header()], [1; 32], Zeroizing::new(plaintext));
        Record::parse(bytes.unwrap()).unwrap().open(&envelope, &key, 1_000).unwrap_err()
    };
    let padded = |front: &[u8], length: usize| [front, &vec![0; length - front.len()]].concat();
    assert_eq!(refused(padded(&[0, 0, 0, 0, 1, 0, 0, 0, 1, 7], 255)), Refusal::Padding);
    assert_eq!(refused(padded(&[0, 0, 0, 0, 1, 0, 0, 0, 1, 7], 272)), Refusal::Padding);
    assert_eq!(refused(padded(&[0, 0, 0, 0, 1, 0, 0, 0, 1, 7, 1], 256)), Refusal::Padding);
    assert_eq!(refused(padded(&[2, 0, 0, 0, 1, 0, 0, 0, 1, 7], 256)), Refusal::Padding);
    assert_eq!(refused(padded(&[0, 0, 0, 0, 1, 0, 0, 9, 1, 7], 256)), Refusal::Padding);
    assert_eq!(refused(padded(&[0, 0, 0, 4, 1, 0, 0, 0, 1, 7], 256)), Refusal::Length);
    assert_eq!(refused(padded(&[0, 0, 0, 0, 2, 0, 0, 0, 1, 7], 256)), Refusal::Length);
    assert_eq!(refused(padded(&[1, 0, 0, 0, 2, 0, 0, 0, 1, 7], 256)), Refusal::Length);
    assert_eq!(refused(Vec::new()), Refusal::Padding);
}

#[test]
fn a_header_that_lies_about_its_epoch_or_has_another_form_is_refused() {
    let good = header(EPOCH);
    assert_eq!(Header::read(&good.write().unwrap()), Ok(good.clone()));
    let bad = |change: &dyn Fn(&mut Header)| {
        let mut changed = good.clone();
        change(&mut changed);
        Header::read(&changed.write().unwrap()).unwrap_err()
    };
    bad(&|h| h.epoch = "2026-11-27.30d".parse().unwrap());
    bad(&|h| h.workspace = String::new());
    bad(&|h| h.plugin = "a\nb".to_owned());
    bad(&|h| h.tool = "x".repeat(1_025));
    let text = String::from_utf8(good.write().unwrap()).unwrap();
    for (from, to) in [
        ("mcpg.payload/1", "mcpg.payload/2"),
        (".000312Z", ".000312+00:00"),
        ("request", "sideways"),
        ("\"tool\":", "\"tool\": "),
    ] {
        assert!(Header::read(text.replacen(from, to, 1).as_bytes()).is_err(), "{to}");
    }
    let unknown = text.replacen("{", "{\"a\":\"b\",", 1);
    assert_eq!(Header::read(unknown.as_bytes()), Ok(good));
}

#[test]
fn text_is_cut_where_a_character_ends() {
    let (content, whole) = Content::new("aé".repeat(4).into_bytes(), 5);
    assert_eq!((content.len(), whole), (4, Some(12)));
    assert_eq!(Content::new(b"abc".to_vec(), 3).1, None);
}

#[test]
fn frames_are_read_as_they_were_written() {
    let (envelope, record, ..) = sealed(Suite::XWing, false, b"x");
    let mut body = Vec::new();
    frames::push(&mut body, envelope.bytes());
    frames::push(&mut body, &record);
    let read = frames::read(&body.clone().into()).unwrap();
    assert!(matches!(&read[0].frame, Frame::Envelope(read) if *read == envelope));
    assert!(matches!(&read[1].frame, Frame::Record(read) if *read.bytes() == record));
    assert_eq!(&body[read[1].at..], &record[..]);
    for cut in 1..body.len() {
        // A cut between two frames leaves a whole one.
        if cut != 4 + envelope.bytes().len() {
            assert!(frames::read(&body[..cut].to_vec().into()).is_err(), "{cut}");
        }
    }
}

#[test]
fn frames_are_counted_before_they_are_read_and_are_no_more_than_so_many() {
    let mut body = Vec::new();
    for _ in 0..=frames::MOST {
        frames::push(&mut body, &[]);
    }
    assert_eq!(frames::count(&body), frames::MOST + 1);
    body.extend_from_slice(&[0, 0, 0, 9, 1]);
    assert_eq!((frames::count(&body), frames::count(&[]), frames::count(&[0, 0, 0])), (frames::MOST + 1, 0, 0));
    let (envelope, ..) = sealed(Suite::X25519, false, b"x");
    let mut body = Vec::new();
    (0..=frames::MOST).for_each(|_| frames::push(&mut body, envelope.bytes()));
    assert_eq!(frames::read(&body.into()).unwrap_err(), (frames::MOST, Refusal::Format));
}

#[test]
fn a_wrapped_key_is_its_orgs_and_its_epochs() {
    let (org, epoch) = ("acme".parse().unwrap(), EPOCH.parse().unwrap());
    let key = KeyPair::random(Suite::XWing).unwrap();
    let inner = plain(&org, epoch, &key);
    assert_eq!(read_plain(&inner, &org, epoch).unwrap().public(), key.public());
    assert!(read_plain(&inner, &"globex".parse().unwrap(), epoch).is_err());
    assert!(read_plain(&inner, &org, "2026-11-27.30d".parse().unwrap()).is_err());
    let other = KeyPair::random(Suite::XWing).unwrap().public().id().to_string();
    let text = String::from_utf8(inner.to_vec()).unwrap().replace(&key.public().id().to_string(), &other);
    assert!(read_plain(text.as_bytes(), &org, epoch).is_err());
    let wrapped = WrappedKey { org: org.clone(), epoch, kek: "file:3".to_owned(), wrapped: vec![1, 2] };
    assert_eq!(WrappedKey::read(&wrapped.write(), &org, epoch), Ok(wrapped.clone()));
    assert!(WrappedKey::read(&wrapped.write(), &"globex".parse().unwrap(), epoch).is_err());
}

#[test]
fn a_key_note_is_read_as_it_was_written_and_is_no_checkpoint() {
    let key = KeyPair::random(Suite::XWing).unwrap();
    let at = |text: &str| DateTime::parse_from_rfc3339(text).unwrap().to_utc();
    let note = KeyNote {
        name: "mcpg.local".to_owned(),
        org: "acme".parse().unwrap(),
        issued: at("2026-11-26T00:00:05Z"),
        expires: at("2026-12-04T00:00:00Z"),
        period: 30,
        plugins: [("github".to_owned(), 7)].into(),
        epochs: [(EPOCH.parse().unwrap(), key.public().clone())].into(),
        recipient: Some(key.public().clone()),
    };
    let text = note.text();
    assert_eq!(KeyNote::read(&text), Ok(note.clone()));
    assert!(text.starts_with("mcpg.local/orgs/acme/payload-keys\nmcpg.payload-keys/1\nissued 2026-11-26T00:00:05Z\n"));
    assert!(text.parse::<crate::audit::Checkpoint>().is_err());
    let date = "2026-11-26".parse().unwrap();
    assert_eq!(note.epoch(date, "github").unwrap().to_string(), "2026-11-26.7d");
    assert_eq!(note.epoch(date, "files").unwrap().to_string(), EPOCH);
    for (from, to) in [
        ("period * 30\n", ""),
        ("period * 30", "period * 0"),
        ("keys/1", "keys/2"),
        ("issued", "made"),
        ("period github 7", "period github 7\nperiod github 8"),
        ("epoch 2", "epoch  2"),
        ("recipient 1", "recipient 3"),
    ] {
        assert!(KeyNote::read(&text.replacen(from, to, 1)).is_err(), "{from:?} → {to:?}");
    }
    assert!(KeyNote::read(&format!("{text}more\n")).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_is_sealed_opens_and_its_length_is_padded(content in prop::collection::vec(any::<u8>(), 0..5_000), compress: bool) {
        let key = KeyPair::random(Suite::X25519).unwrap();
        let recipients = Recipients { epoch: key.public().clone(), tenant: None };
        let (envelope, content_key) = Envelope::seal(&"acme".parse().unwrap(), EPOCH.parse().unwrap(), &recipients).unwrap();
        let (to_seal, _) = Content::new(content.clone(), MAX_CAP);
        let sealed = Sealer::new(&envelope, content_key).seal(&header(EPOCH), &to_seal, compress).unwrap();
        let record = Record::parse(sealed).unwrap();
        let share = envelope.share(0, &key).unwrap();
        let opened = record.open(&envelope, &envelope.content_key(&[&share]).unwrap(), MAX_CAP).unwrap();
        prop_assert_eq!(opened.expose(), &content[..]);
        let body = record.bytes().len() - record.end_of_header() - 32 - 16;
        prop_assert_eq!(super::padme::padded(body), body);
    }

    #[test]
    fn no_bytes_make_a_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let bytes = Bytes::from(bytes);
        let _ = Envelope::parse(bytes.clone());
        let _ = Record::parse(bytes.clone());
        let _ = frames::read(&bytes);
        let _ = Header::read(&bytes);
        let _ = KeyNote::read(&String::from_utf8_lossy(&bytes));
    }
}
