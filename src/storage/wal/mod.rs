//! The write-ahead log: what was acknowledged, in one total order for all nodes.
//!
//! Every group commit of every node is one object `wal/<seq>`, `seq` in 20 digits from 1 up without gaps. A node that
//! wants to commit reads the log to its end and creates the next number if it is absent; whoever loses the race reads
//! the winner and tries the number after. So there is one order that every node agrees on without talking to the
//! others, and whatever is a function of that order (which retry was the first, which series came under the cap, the
//! counters) is the same on every node.
//!
//! An object that exists is durable. A torn one (possible only on a store whose writes are not atomic) was never
//! acknowledged: it is passed over when the object after it says so, or when there is none after it. See [`Object`]
//! for the format, which tells a torn object from a damaged one.
//!
//! Trimming: an object's header announces a *floor*. Objects up to the floor hold nothing that tables and snapshots do
//! not hold, and are deleted, in ascending order, once the announcement itself is in the log. A reader that finds its
//! next object absent, and the one before it too, was left behind by trimming and must start again from the snapshots.

mod log;
mod object;

pub use log::{Created, Log, Slot};
pub use object::{Front, Header, Marks, Merge, Object, ObjectId, Parsed, Section, SectionHeader, SectionKind};
