//! A private key as it lies in the key store, wrapped by a KEK.
//!
//! The object `<org>/<epoch>` is RFC 8785 JSON: `v`, `org`, `epoch`, `kek`, `wrapped` (base64). What is wrapped is RFC
//! 8785 JSON too, and says again whose it is: `v`, `org`, `epoch`, `suite`, `seed`, `key_id`. So the binding holds with
//! every kind of KEK.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use zeroize::{Zeroize, Zeroizing};

use super::jcs::Object;
use super::read::{hex, hex32};
use super::{Epoch, KeyPair, Refusal, Secret, Suite};
use crate::model::OrgName;

const VERSION: &str = "mcpg.payload-key/1";

/// A wrapped key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrappedKey {
    /// Whose.
    pub org: OrgName,
    /// Of which epoch.
    pub epoch: Epoch,
    /// What wrapped it, with its version: `file:3`.
    pub kek: String,
    /// What the KEK made of it.
    pub wrapped: Vec<u8>,
}

impl WrappedKey {
    /// Its bytes.
    pub fn write(&self) -> Vec<u8> {
        let mut object = Object::default();
        object.text("v", VERSION);
        object.text("org", self.org.as_str());
        object.text("epoch", self.epoch.to_string());
        object.text("kek", &self.kek);
        object.text("wrapped", BASE64.encode(&self.wrapped));
        object.write()
    }

    /// Reads what lies in the key store under the name of an org and an epoch.
    ///
    /// # Errors
    /// [`Refusal::Format`] when it is no wrapped key, or another's.
    pub fn read(bytes: &[u8], org: &OrgName, epoch: Epoch) -> Result<Self, Refusal> {
        let object = Object::read(bytes)?;
        let is_ours = object.get("v")? == VERSION
            && object.get("org")? == org.as_str()
            && object.get("epoch")? == epoch.to_string()
            && object.has_only(&["v", "org", "epoch", "kek", "wrapped"]);
        if !is_ours {
            return Err(Refusal::Format);
        }
        let wrapped = BASE64.decode(object.get("wrapped")?).map_err(|_| Refusal::Format)?;
        Ok(Self { org: org.clone(), epoch, kek: object.get("kek")?.to_owned(), wrapped })
    }
}

/// What a KEK is given to wrap.
pub fn plain(org: &OrgName, epoch: Epoch, key: &KeyPair) -> Zeroizing<Vec<u8>> {
    let mut object = Object::default();
    object.text("v", VERSION);
    object.text("org", org.as_str());
    object.text("epoch", epoch.to_string());
    object.text("suite", key.public().suite().byte().to_string());
    object.text("seed", hex(key.seed().expose()));
    object.text("key_id", key.public().id().to_string());
    Zeroizing::new(object.write())
}

/// Reads what a KEK has unwrapped: all of it is compared, and the key id with that of the public key that the seed
/// makes.
///
/// # Errors
/// [`Refusal::Format`] when it is another key's.
pub fn read_plain(bytes: &[u8], org: &OrgName, epoch: Epoch) -> Result<KeyPair, Refusal> {
    let object = Object::read(bytes)?;
    let is_ours = object.get("v")? == VERSION
        && object.get("org")? == org.as_str()
        && object.get("epoch")? == epoch.to_string()
        && object.has_only(&["v", "org", "epoch", "suite", "seed", "key_id"]);
    let suite = match object.get("suite")? {
        "1" => Suite::XWing,
        "2" => Suite::X25519,
        _ => return Err(Refusal::Suite),
    };
    let mut seed = hex32(object.get("seed")?).ok_or(Refusal::Format)?;
    let key = KeyPair::of(suite, Secret::new(&seed));
    seed.zeroize();
    let key = key?;
    if is_ours && key.public().id().to_string() == object.get("key_id")? { Ok(key) } else { Err(Refusal::Format) }
}
