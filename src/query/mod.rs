//! (to be written)
mod view;
pub use view::{OrgView, TableState};
