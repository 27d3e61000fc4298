//! Randomness as a component: names of files and writers are drawn from here, so that a test can replay them.

use std::fmt::Debug;

use uuid::Uuid;

/// Where random names come from, injected at the top of the program.
pub trait Random: Debug + Send + Sync + 'static {
    /// A random UUID.
    fn uuid(&self) -> Uuid;
}

/// The operating system's randomness.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemRandom;

impl Random for SystemRandom {
    fn uuid(&self) -> Uuid {
        Uuid::new_v4()
    }
}
