//! The configured tokens, by their hashes; they follow the configuration's file while the program runs.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;

use crate::config::{ControlPlane, Token, TokenHash};

/// The tokens of a control plane, which may be replaced while it runs.
#[derive(Debug, Clone)]
pub struct Tokens {
    /// Whether tokens are not required, and everyone may do everything.
    open: bool,
    by_hash: Arc<RwLock<ByHash>>,
}

type ByHash = HashMap<TokenHash, Arc<Token>>;

impl Tokens {
    /// Those of these settings.
    pub(super) fn new(settings: &ControlPlane) -> Self {
        Self { open: settings.is_open(), by_hash: Arc::new(RwLock::new(Self::of(settings))) }
    }

    /// Whether tokens are not required.
    pub(super) fn is_open(&self) -> bool {
        self.open
    }

    fn of(settings: &ControlPlane) -> ByHash {
        let tokens = settings.tokens.iter().flat_map(|token| {
            let shared = Arc::new(token.clone());
            [Some(token.hash), token.previous_hash].into_iter().flatten().map(move |hash| (hash, Arc::clone(&shared)))
        });
        tokens.collect()
    }

    /// Takes the tokens of other settings; says whether anything changed.
    ///
    /// # Errors
    /// When tokens were not required and would be now, or the other way round: the one would open everything, the other
    /// shut it.
    pub fn replace(&self, settings: &ControlPlane) -> Result<bool, &'static str> {
        if settings.is_open() != self.open {
            return Err("whether anyone is asked for a token is settled at the start; restart the control plane");
        }
        let new = Self::of(settings);
        let mut tokens = self.by_hash.write();
        let changed = new != *tokens;
        *tokens = new;
        Ok(changed)
    }

    /// The token of a hash.
    pub(super) fn get(&self, hash: &TokenHash) -> Option<Arc<Token>> {
        self.by_hash.read().get(hash).cloned()
    }
}
