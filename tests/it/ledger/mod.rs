//! The audit ledger as an auditor sees it: what the program's own verifier says of ledgers that the real server wrote, sound and
//! spoiled in every way; whether verifiers that are not ours agree; and whether the ledger keeps what was acknowledged.

mod auditors;
mod crash;
mod forms;
mod given;
mod merged;
mod pages;
mod random;
mod spoil;
mod tamper;
