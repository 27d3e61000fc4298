//! (to be written)
mod key;
pub use key::{IdempotencyKey, InvalidKey};
