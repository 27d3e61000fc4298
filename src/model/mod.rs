//! Plain types without I/O that every other module speaks: the vocabulary of the contract.

mod clock;
mod org;
mod outcome;
mod random;
pub mod schema;

pub use clock::{Clock, SystemClock, micros};
pub use org::{Entitlement, OrgName, OrgNameError, Role, Tier};
pub use outcome::{Decision, Outcome};
pub use random::{Random, SystemRandom};
