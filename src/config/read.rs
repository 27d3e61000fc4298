//! A file to settings, through the four steps of the module's doc.

use serde::de::DeserializeOwned;

use super::fault::{Collector, Faults};
use super::interpolate::interpolate;
use super::tree::{self, Node};
use super::{Environment, decode};

/// Reads settings from `text`, the content of `file`; `check` adds what is wrong with them as a whole.
///
/// # Errors
/// Every fault of the file at once.
pub(super) fn read<T: DeserializeOwned + Default>(
    file: &str,
    text: &str,
    environment: Environment<'_>,
    check: impl FnOnce(&T, &Node, &mut Collector<'_>),
) -> Result<T, Faults> {
    let mut faults = Collector::new(file);
    let mut settings = T::default();
    if let Some(mut root) = tree::parse(text, &mut faults) {
        interpolate(&mut root, environment, &mut faults);
        if let Some(read) = decode::decode(&mut root, &mut faults) {
            check(&read, &root, &mut faults);
            settings = read;
        }
    }
    faults.finish(settings)
}
