//! The spool as its users see it; `model` plays crashes at every place, `faults` a disk that is full, fails or hangs.

mod faults;
mod model;
mod power;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::disk::{Disk, LocalDisk};
use super::segment::{Header, push_frame};
use super::{Batch, Lane, LaneName, NotRecorded, Sealed, SentUnder, Spool, SpoolError, SpoolParts, SpoolSettings};
use crate::gateway::metrics::GatewayMetrics;
use crate::model::{SystemClock, SystemRandom};

fn settings(folder: &Path) -> SpoolSettings {
    SpoolSettings {
        folder: folder.to_owned(),
        max_bytes: 64 << 20,
        org: "acme".parse().unwrap(),
        samples: true,
        audit: true,
        payloads: None,
    }
}

fn parts_on(disk: Arc<dyn Disk>) -> SpoolParts {
    let metrics = Arc::new(GatewayMetrics::new("acme", "prod"));
    SpoolParts { disk, clock: Arc::new(SystemClock), random: Arc::new(SystemRandom), metrics }
}

fn parts() -> SpoolParts {
    parts_on(Arc::new(LocalDisk))
}

fn open(folder: &Path) -> Spool {
    Spool::open(&settings(folder), &parts()).unwrap()
}

/// A copy of the spool as it is on disk this moment: what `kill -9` would leave.
fn copy_of(folder: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for lane in ["samples", "audit"] {
        std::fs::create_dir(copy.path().join(lane)).unwrap();
        for entry in std::fs::read_dir(folder.join(lane)).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, copy.path().join(lane).join(path.file_name().unwrap())).unwrap();
        }
    }
    copy
}

/// The oldest batch, in hand.
async fn oldest(lane: &Lane) -> (Sealed, Batch) {
    let sealed = timeout(Duration::from_secs(60), lane.oldest()).await.expect("a batch is sealed");
    let batch = lane.read(&sealed).await.unwrap();
    (sealed, batch)
}

fn texts(batch: &Batch) -> Vec<(u64, String)> {
    batch.records().map(|(number, payload)| (number, String::from_utf8(payload.to_vec()).unwrap())).collect()
}

/// Everything that a lane of a spool holds, taken off it.
async fn all(lane: &Lane) -> Vec<(u64, String)> {
    lane.seal_now().await;
    let mut found = Vec::new();
    while !lane.is_empty() {
        let (sealed, batch) = oldest(lane).await;
        assert_eq!(batch.damage, None);
        found.extend(texts(&batch));
        lane.done(&sealed).await;
    }
    found
}

fn numbered(texts: &[&str]) -> Vec<(u64, String)> {
    (0..).zip(texts.iter().map(|text| (*text).to_owned())).collect()
}

#[tokio::test]
async fn a_record_outlives_a_kill_as_soon_as_it_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let spool = open(folder.path());
    spool.samples.as_ref().unwrap().append(b"a call").unwrap();
    spool.audit.as_ref().unwrap().append(b"a decision").unwrap();
    let copy = copy_of(folder.path());
    let after = open(copy.path());
    assert_eq!(all(after.samples.as_ref().unwrap()).await, numbered(&["a call"]));
    assert_eq!(all(after.audit.as_ref().unwrap()).await, numbered(&["a decision"]));
}

#[tokio::test]
async fn a_record_in_a_folder_that_was_removed_is_not_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let spool = open(folder.path());
    let audit = spool.audit.as_ref().unwrap();
    audit.append_durably(b"one").await.unwrap();
    std::fs::remove_dir_all(folder.path()).unwrap();
    assert_eq!(audit.append_durably(b"two").await, Err(NotRecorded::Disk), "an fsync does not say so");
}

#[tokio::test]
async fn a_batch_keeps_its_number_and_its_records_until_it_is_delivered() {
    let folder = tempfile::tempdir().unwrap();
    let spool = open(folder.path());
    let lane = spool.samples.as_ref().unwrap();
    lane.append(b"one").unwrap();
    let (sealed, batch) = oldest(lane).await;
    lane.put_back();
    lane.append(b"two").unwrap();
    let (again, _) = oldest(lane).await;
    assert_eq!((again.sent_under, again.records), (sealed.sent_under, 1), "a later record is not of a sealed batch");
    let copy = copy_of(folder.path());
    let after = open(copy.path());
    let (restarted, same) = oldest(after.samples.as_ref().unwrap()).await;
    assert_eq!((restarted.sent_under, texts(&same)), (sealed.sent_under, texts(&batch)));
    assert_eq!(restarted.org.as_str(), "acme");
}

#[tokio::test]
async fn what_is_delivered_is_gone_and_numbers_go_on_over_restarts() {
    let folder = tempfile::tempdir().unwrap();
    let mut expected = 0;
    for _ in 0..3 {
        let spool = open(folder.path());
        let lane = spool.audit.as_ref().unwrap();
        for _ in 0..2 {
            lane.append_durably(b"event").await.unwrap();
        }
        let numbers: Vec<_> = all(lane).await.into_iter().map(|(number, _)| number).collect();
        assert_eq!(numbers, [expected, expected + 1]);
        expected += 2;
    }
    let left = std::fs::read_dir(folder.path().join("audit")).unwrap();
    let begun = left.filter(|file| std::fs::read(file.as_ref().unwrap().path()).unwrap().starts_with(b"MCPGSPL2"));
    assert_eq!(begun.count(), 1, "the active segment, which says where the numbers go on");
}

#[tokio::test]
async fn past_the_bound_the_oldest_samples_go_and_are_counted_and_audit_stays() {
    let folder = tempfile::tempdir().unwrap();
    let (parts, record) = (parts(), "x".repeat(1000));
    let spool = Spool::open(&SpoolSettings { max_bytes: 200_000, ..settings(folder.path()) }, &parts).unwrap();
    let (samples, audit) = (spool.samples.as_ref().unwrap(), spool.audit.as_ref().unwrap());
    for n in 0..1000_u32 {
        // Past the bound by a segment, a sample is refused until the oldest are gone: that is counted too.
        let _ = samples.append(format!("{n:04} {record}").as_bytes());
    }
    for _ in 0..150 {
        audit.append_durably(record.as_bytes()).await.unwrap();
    }
    samples.seal_now().await;
    let size = |lane: &str| -> u64 {
        let files = std::fs::read_dir(folder.path().join(lane)).unwrap();
        files.map(|file| file.unwrap().metadata().unwrap().len()).sum()
    };
    eventually(|| size("samples") + size("audit") <= 200_000).await;
    assert!(size("audit") > 150_000, "samples made room for it");
    assert_eq!(all(audit).await.len(), 150);
    let kept: Vec<_> = all(samples).await.into_iter().map(|(_, text)| text).collect();
    assert!(kept.is_sorted(), "in order");
    assert_eq!(parts.metrics.samples.all_lost(), 1000 - kept.len() as u64);
    assert_eq!(parts.metrics.audit.all_lost(), 0);
}

#[tokio::test]
async fn when_audit_alone_fills_the_bound_recording_fails_until_something_is_delivered() {
    let folder = tempfile::tempdir().unwrap();
    let parts = parts();
    let spool = Spool::open(&SpoolSettings { max_bytes: 100_000, ..settings(folder.path()) }, &parts).unwrap();
    let audit = spool.audit.as_ref().unwrap();
    let mut taken = 0;
    while audit.append_durably(&[b'x'; 1000]).await.is_ok() {
        taken += 1;
    }
    assert!((90..100).contains(&taken), "{taken}");
    assert_eq!(audit.append_durably(&[b'x'; 1000]).await, Err(super::NotRecorded::Full));
    assert_eq!(parts.metrics.audit.all_lost(), 2);
    assert_eq!(all(audit).await.len(), taken);
    audit.append_durably(b"again").await.unwrap();
    assert_eq!(all(audit).await, [(taken as u64 + 2, "again".to_owned())], "the lost ones left a hole");
}

#[tokio::test]
async fn what_is_sound_of_a_damaged_batch_is_there_and_the_damage_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let spool = open(folder.path());
    let lane = spool.audit.as_ref().unwrap();
    for text in ["first", "second", "third"] {
        lane.append(text.as_bytes()).unwrap();
    }
    let (sealed, _) = oldest(lane).await;
    let path = super::folder::segment_path(&folder.path().join("audit"), sealed.ordinal);
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(6).position(|window| window == b"second").unwrap();
    bytes[at] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let batch = lane.read(&sealed).await.unwrap();
    assert_eq!(texts(&batch), [(0, "first".to_owned()), (2, "third".to_owned())]);
    assert!(batch.damage.is_some());
    lane.set_aside(&sealed).await;
    let aside = super::folder::quarantine_path(&folder.path().join("audit"), LaneName::Audit, sealed.ordinal);
    assert!(aside.is_file() && !path.exists());
}

/// A spool that was closed after its only batch of samples went into the quarantine.
async fn quarantined(folder: &Path) -> Sealed {
    let spool = open(folder);
    let lane = spool.samples.as_ref().unwrap();
    lane.append(b"refused").unwrap();
    let (sealed, _) = oldest(lane).await;
    lane.set_aside(&sealed).await;
    assert!(lane.is_empty());
    sealed
}

#[tokio::test]
async fn a_quarantined_batch_that_is_moved_back_is_a_batch_again() {
    let folder = tempfile::tempdir().unwrap();
    let sealed = quarantined(folder.path()).await;
    let samples = folder.path().join("samples");
    let aside = super::folder::quarantine_path(&samples, LaneName::Samples, sealed.ordinal);
    std::fs::rename(aside, super::folder::segment_path(&samples, sealed.ordinal)).unwrap();
    let spool = open(folder.path());
    let (again, batch) = oldest(spool.samples.as_ref().unwrap()).await;
    assert_eq!((again.sent_under, texts(&batch)), (sealed.sent_under, numbered(&["refused"])));
}

/// What a power cut leaves that takes all segments after the one in the quarantine: their entries were not durable.
#[tokio::test]
async fn the_number_of_a_file_in_the_quarantine_is_not_given_again() {
    let folder = tempfile::tempdir().unwrap();
    let sealed = quarantined(folder.path()).await;
    let samples = folder.path().join("samples");
    for entry in std::fs::read_dir(&samples).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let spool = open(folder.path());
    let lane = spool.samples.as_ref().unwrap();
    lane.append(b"next").unwrap();
    let (next, _) = oldest(lane).await;
    assert!(next.ordinal > sealed.ordinal, "{} after {}", next.ordinal, sealed.ordinal);
}

fn emitter_and_number(sent_under: SentUnder) -> (uuid::Uuid, u64, u64) {
    match sent_under {
        SentUnder::Number { emitter, number, after } => (emitter, number, after),
        SentUnder::Key(key) => panic!("{key}"),
    }
}

#[tokio::test]
async fn each_process_numbers_from_one_under_an_id_of_its_own_and_what_was_left_keeps_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let spool = open(folder.path());
    let lane = spool.audit.as_ref().unwrap();
    let mut sent = Vec::new();
    for text in ["one", "two", "three"] {
        lane.append(text.as_bytes()).unwrap();
        lane.seal_now().await;
    }
    for _ in 0..2 {
        let (sealed, _) = oldest(lane).await;
        sent.push(emitter_and_number(lane.sent_under(&sealed)));
        lane.acknowledge(&sealed);
        lane.done(&sealed).await;
    }
    let emitter = sent[0].0;
    assert_eq!(sent, [(emitter, 1, 0), (emitter, 2, 1)]);
    drop(spool);
    let spool = open(folder.path());
    let lane = spool.audit.as_ref().unwrap();
    lane.append(b"four").unwrap();
    lane.seal_now().await;
    let (left, _) = oldest(lane).await;
    let left_under = emitter_and_number(lane.sent_under(&left));
    assert_eq!((left_under.0, left_under.1), (emitter, 3));
    assert!(left_under.2 < 3, "what was acknowledged when it was begun");
    lane.acknowledge(&left);
    lane.done(&left).await;
    let (own, _) = oldest(lane).await;
    let own = emitter_and_number(lane.sent_under(&own));
    assert!(own.0 != emitter && (own.1, own.2) == (1, 0), "{own:?}");
}

#[tokio::test]
async fn a_segment_of_the_form_before_is_sent_under_its_key() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path()));
    let key = uuid::Uuid::from_u128(42);
    let header = Header {
        sent_under: SentUnder::Key(key),
        lane: "samples".to_owned(),
        org: "acme".parse().unwrap(),
        first: 7,
        created_at: 0,
    };
    let mut bytes = header.encode().unwrap();
    assert!(bytes.starts_with(b"MCPGSPL1"));
    push_frame(&mut bytes, 7, b"from before");
    std::fs::write(super::folder::segment_path(&folder.path().join("samples"), 9), bytes).unwrap();
    let spool = open(folder.path());
    let lane = spool.samples.as_ref().unwrap();
    let (sealed, batch) = oldest(lane).await;
    assert_eq!((lane.sent_under(&sealed), texts(&batch)), (SentUnder::Key(key), vec![(7, "from before".to_owned())]));
    assert!(lane.renew(&sealed).await.is_err(), "a key is never a conflict");
    lane.acknowledge(&sealed);
    lane.done(&sealed).await;
    lane.append(b"after").unwrap();
    lane.seal_now().await;
    let (next, batch) = oldest(lane).await;
    assert!(matches!(next.sent_under, SentUnder::Number { number: 1, .. }));
    assert_eq!(texts(&batch), [(8, "after".to_owned())], "records are numbered on");
}

#[tokio::test]
async fn a_batch_that_gets_a_new_emitter_id_keeps_it_and_its_records_through_crashes() {
    let folder = tempfile::tempdir().unwrap();
    let spool = open(folder.path());
    let lane = spool.samples.as_ref().unwrap();
    for text in ["one", "two"] {
        lane.append(text.as_bytes()).unwrap();
        lane.seal_now().await;
    }
    let (sealed, batch) = oldest(lane).await;
    let before = emitter_and_number(sealed.sent_under);
    lane.renew(&sealed).await.unwrap();
    lane.put_back();
    let (renewed, same) = oldest(lane).await;
    let after = emitter_and_number(lane.sent_under(&renewed));
    assert!(after.0 != before.0 && (after.1, after.2) == (1, 0), "{after:?}");
    assert_eq!((same.damage.as_ref(), texts(&same)), (None, texts(&batch)));

    // A crash in the midst of the next time leaves half a file beside.
    let leftover = super::folder::renewed_path(&folder.path().join("samples"), renewed.ordinal);
    std::fs::write(&leftover, b"MCPGSPL2 half").unwrap();
    let copy = copy_of(folder.path());
    let after_crash = open(copy.path());
    assert!(!copy.path().join("samples").join(leftover.file_name().unwrap()).exists());
    let (found, same) = oldest(after_crash.samples.as_ref().unwrap()).await;
    assert_eq!((found.sent_under, texts(&same)), (renewed.sent_under, texts(&batch)));

    lane.renew(&renewed).await.unwrap();
    assert!(!leftover.exists());
    lane.done(&renewed).await;
    let (second, _) = oldest(lane).await;
    assert_eq!(emitter_and_number(second.sent_under).0, before.0, "what was spooled keeps its id");
    lane.done(&second).await;
    // The segment that was open keeps its number too; those after it are counted under another id.
    for text in ["three", "four"] {
        lane.append(text.as_bytes()).unwrap();
        lane.seal_now().await;
    }
    let (third, _) = oldest(lane).await;
    lane.done(&third).await;
    let (fourth, _) = oldest(lane).await;
    let (third, fourth) = (emitter_and_number(third.sent_under), emitter_and_number(fourth.sent_under));
    assert_eq!(third.0, before.0);
    assert!(fourth.0 != before.0 && fourth.0 != after.0 && fourth.1 == 1, "{fourth:?}");
}

#[tokio::test]
async fn two_gateways_cannot_share_a_spool() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path());
    let second = Spool::open(&settings(folder.path()), &parts());
    assert!(matches!(second, Err(SpoolError::InUse(_))));
    drop(first);
    open(folder.path());
}

#[tokio::test]
async fn a_lane_that_is_not_used_is_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    open(folder.path()).audit.unwrap().append(b"kept").unwrap();
    let spool = Spool::open(&SpoolSettings { audit: false, ..settings(folder.path()) }, &parts()).unwrap();
    assert!(spool.audit.is_none());
    drop(spool);
    assert_eq!(all(open(folder.path()).audit.as_ref().unwrap()).await, numbered(&["kept"]));
}

#[tokio::test]
async fn a_record_that_is_too_large_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let lane = open(folder.path()).samples.unwrap();
    assert_eq!(lane.append(&vec![0; 300 << 10]), Err(super::NotRecorded::TooLarge));
    lane.append(&vec![b'x'; 256 << 10]).unwrap();
    assert_eq!(all(&lane).await.len(), 1);
}

#[test]
fn calls_on_many_threads_are_all_there_once() {
    let folder = tempfile::tempdir().unwrap();
    let spool = open(folder.path());
    let lane = spool.samples.clone().unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let lane = lane.clone();
            scope.spawn(move || (0..500).for_each(|n| lane.append(format!("{thread}-{n}").as_bytes()).unwrap()));
        }
    });
    let copy = copy_of(folder.path());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let found = runtime.block_on(async { all(open(copy.path()).samples.as_ref().unwrap()).await });
    let (numbers, mut texts): (Vec<_>, Vec<_>) = found.into_iter().unzip();
    assert_eq!(numbers, (0..4000).collect::<Vec<_>>());
    texts.sort();
    texts.dedup();
    assert_eq!(texts.len(), 4000);
}

/// Waits for what another thread is about to do.
async fn eventually(mut is: impl FnMut() -> bool) {
    timeout(Duration::from_secs(60), async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("it comes to pass");
}
