//! The `mcpg` program: parse, run, exit code.

fn main() {}
