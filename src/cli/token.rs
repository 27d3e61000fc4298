//! `mcpg token`: API tokens and the hashes under which they are configured.

use std::io::Read;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::Subcommand;

use super::{CliError, output};
use crate::config::TokenHash;

/// The longest input that is looked at: no token is as long.
const MAX_INPUT: u64 = 64 << 10;

#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
    /// Read a token on standard input, print its hash alone, for a configuration.
    Hash,
    /// Print a new random token on standard output, and its hash on standard error.
    New,
}

pub(super) fn run(command: &TokenCommand) -> Result<(), CliError> {
    match command {
        TokenCommand::Hash => {
            let mut input = String::new();
            std::io::stdin()
                .take(MAX_INPUT)
                .read_to_string(&mut input)
                .map_err(|error| CliError::could_not("standard input", error))?;
            output::line(&hash(&input)?.to_string())
        }
        TokenCommand::New => {
            let token = new_token(rand::random());
            output::line(&token)?;
            // The hash is a convenience beside the answer; without anyone to read it, it is not missed.
            let _ = std::io::Write::write_all(
                &mut std::io::stderr(),
                format!("hash: {}\n", TokenHash::of(&token)).as_bytes(),
            );
            Ok(())
        }
    }
}

/// The hash of the token in `input`; its last line's end is the terminal's, not the token's.
fn hash(input: &str) -> Result<TokenHash, CliError> {
    let token = input.strip_suffix('\n').unwrap_or(input);
    let token = token.strip_suffix('\r').unwrap_or(token);
    if token.is_empty() {
        return Err(CliError::CouldNot("no token on standard input; `mcpg token new` makes one".to_owned()));
    }
    if !token.bytes().all(|b| b.is_ascii_graphic()) {
        let why = "a token is one line of visible ASCII without blanks, as it must fit into an HTTP header";
        return Err(CliError::CouldNot(why.to_owned()));
    }
    Ok(TokenHash::of(token))
}

/// A token of these 256 random bits. Its prefix tells people and secret scanners what it is.
pub(super) fn new_token(bits: [u8; 32]) -> String {
    format!("mcpg_{}", URL_SAFE_NO_PAD.encode(bits))
}

#[cfg(test)]
mod tests {
    use super::{hash, new_token};
    use crate::config::TokenHash;

    #[test]
    fn the_end_of_the_line_is_not_part_of_the_token() {
        for input in ["secret", "secret\n", "secret\r\n"] {
            assert_eq!(hash(input).unwrap(), TokenHash::of("secret"), "{input:?}");
        }
    }

    #[test]
    fn what_could_not_be_sent_is_no_token() {
        for input in ["", "\n", " secret", "sec ret", "one\ntwo\n", "tokén"] {
            assert!(hash(input).is_err(), "{input:?}");
        }
    }

    #[test]
    fn a_new_token_is_one_that_can_be_sent() {
        let token = new_token([0xff; 32]);
        assert_eq!(token.len(), 5 + 43);
        assert_eq!(hash(&token).unwrap(), TokenHash::of(&token));
    }
}
