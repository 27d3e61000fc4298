//! Plain types without I/O that every other module speaks: the vocabulary of the contract.

mod caller;
mod causes;
mod clock;
mod org;
mod outcome;
mod random;
pub mod schema;

pub use caller::{CallerKind, CallerName, CallerNameError};
pub(crate) use causes::causes;
pub use clock::{Clock, SystemClock, micros};
pub use org::{Entitlement, OrgName, OrgNameError, Role, Tier};
pub use outcome::{Decision, Outcome};
pub use random::{Random, SystemRandom};
