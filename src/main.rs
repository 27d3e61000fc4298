//! The `mcpg` program: parse, run, exit code.

use std::process::ExitCode;

/// Many small allocations on many threads, and batches that one thread makes and another frees, are what this allocator
/// is good at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    mcpg::cli::run(std::env::args_os())
}
