//! One file a subcommand.

pub mod loadgen;
