//! SQL over one org's tables: a session a request, bounded in every direction.
//!
//! A request brings a text, parameters and an [`OrgView`]: one org's tables at one instant. Its way:
//!
//! 1. `guard` tokenises the text, bounds it, parses it, puts the parameters in, and refuses whatever is not one
//!    read-only query over offered functions, before anything is planned.
//! 2. `session` opens a DataFusion session that holds the three tables of that view and an information schema, and
//!    nothing else: no other store, no table by path or URL, no settings to read or to change. So isolation does not
//!    rest on the guard: a name that is not in the view has nothing to resolve to (invariant I4).
//! 3. `admission` lets it in, fairly by org and token.
//! 4. [`LocalEngine`] plans and runs it on threads of its own, with deep stacks, so that neither a long query nor a
//!    nested one touches the rest of the program; `plan` chooses batches that fit into memory; time, rows, memory,
//!    spill and what all queries hold are bounded ([`SqlLimits`]), and each bound has an error of its own
//!    ([`QueryError`]).
//! 5. [`formats`] turns the batches into the body that the client asked for, as they come, on the same threads.
//!
//! The engine is a trait, [`Engine`]: a distributed one can serve the same SQL over the same views.
//!
//! Nothing here is durable. A crash ends the queries under way; what they spilled is in a temporary folder of the
//! engine's own.

mod admission;
mod catalog;
mod engine;
mod error;
mod explain;
pub mod formats;
mod functions;
mod guard;
mod information_schema;
mod limits;
mod metered;
mod params;
mod plan;
mod reach;
mod running;
mod scan;
mod scanned;
mod session;
mod shape;
mod spill;
mod types;
mod usage;
mod view;
mod views;
mod watchdog;
mod workers;
mod yielding;

pub use engine::{Asker, Engine, Lane, LocalEngine, QueryResult, SqlRequest};
pub use error::{Position, QueryError};
pub use limits::SqlLimits;
pub use shape::shape;
pub use view::{Evidence, OrgView, TableState};

#[cfg(test)]
#[path = "../../tests/it/cases/mod.rs"]
mod case;
#[cfg(test)]
#[path = "../../tests/it/harness/cases.rs"]
mod case_files;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod routine_tests;
#[cfg(test)]
mod tests;
