//! Ids for samples and events whose emitter gave none, and the events' salts.

use chrono::{DateTime, Utc};
use rand::Rng;
use rand::rngs::ThreadRng;
use uuid::{Builder, Uuid};

/// Where the ids of samples without one come from: a component, so that tests can foresee them.
pub trait IdSource {
    /// A new id, minted at `now`.
    fn next_id(&mut self, now: DateTime<Utc>) -> Uuid;

    /// A random salt.
    fn next_salt(&mut self) -> [u8; 16];
}

/// Version 7 UUIDs (RFC 9562): the time in ms, then 74 random bits.
#[derive(Debug, Default)]
pub struct RandomIds(ThreadRng);

impl IdSource for RandomIds {
    fn next_id(&mut self, now: DateTime<Utc>) -> Uuid {
        let mut random = [0; 10];
        self.0.fill_bytes(&mut random);
        let millis = u64::try_from(now.timestamp_millis()).unwrap_or(0);
        Builder::from_unix_timestamp_millis(millis, &random).into_uuid()
    }

    fn next_salt(&mut self) -> [u8; 16] {
        let mut salt = [0; 16];
        self.0.fill_bytes(&mut salt);
        salt
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::{IdSource, RandomIds};

    #[test]
    fn minted_ids_are_version_7_of_the_given_time_and_differ() {
        let now = DateTime::from_timestamp_millis(1_800_000_000_123).unwrap();
        let mut ids = RandomIds::default();
        let (one, two) = (ids.next_id(now), ids.next_id(now));
        assert_eq!(one.get_version_num(), 7);
        assert_eq!(one.get_timestamp().unwrap().to_unix(), (1_800_000_000, 123_000_000));
        assert_ne!(one, two);
    }
}
