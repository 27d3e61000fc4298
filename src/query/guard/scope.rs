//! What a query would grow to once its common table expressions and computed columns are written out.

use std::collections::HashMap;
use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{Expr, Visit, Visitor};

/// One query within the statement: the common table expressions it defines, and how many tables it reads.
#[derive(Default)]
pub(super) struct Scope {
    /// Where the queries of its common table expressions lie, and the name of each.
    pub(super) pending: HashMap<usize, String>,
    /// How many tables each of them reads.
    pub(super) weights: HashMap<String, u64>,
    /// How many tables it reads itself.
    pub(super) weight: u64,
    /// How many columns an expression of theirs may become, written out in stored columns.
    pub(super) expansions: HashMap<String, u64>,
    /// The greatest such number of what it reads.
    pub(super) sources: u64,
    /// The most columns that one of its computed columns names.
    pub(super) widest: u64,
    /// All columns that it names.
    pub(super) named: u64,
}

impl Scope {
    /// How many stored columns one of its computed columns may become.
    pub(super) fn expansion(&self) -> u64 {
        self.widest.max(1).saturating_mul(self.sources.max(1))
    }
}

/// How many columns a part of a statement names.
pub(super) fn columns_named(part: &impl Visit) -> u64 {
    struct Count(u64);
    impl Visitor for Count {
        type Break = ();

        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
            self.0 += u64::from(matches!(expr, Expr::Identifier(_) | Expr::CompoundIdentifier(_)));
            ControlFlow::Continue(())
        }
    }
    let mut count = Count(0);
    let ControlFlow::Continue(()) = part.visit(&mut count) else { return u64::MAX };
    count.0
}
