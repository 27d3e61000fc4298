//! The audit ledger as an auditor sees it: what the program's own verifier says of ledgers that the real server wrote,
//! sound and spoiled in every way; whether verifiers that are not ours agree; and whether the ledger keeps what was
//! acknowledged.

mod auditors;
pub(crate) mod chain;
mod crash;
mod events;
mod forms;
mod given;
mod merged;
mod pages;
mod random;
mod retention;
mod rotation;
pub(crate) mod spoil;
mod tamper;
mod witness;
