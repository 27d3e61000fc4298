//! The audit ledger, on the real program.

mod chain;
mod events;
mod retention;
mod rotation;
mod witness;
