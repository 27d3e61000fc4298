//! Bounds on a text that is not parsed yet.

use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};

use crate::query::QueryError;

/// Words, symbols and literals of a text.
const MAX_TOKENS: usize = 12_000;
/// Operators of a text. Each may deepen the tree by one, and planning takes time that grows with the square of its
/// depth.
const MAX_OPERATORS: usize = 500;
/// Brackets within brackets.
const MAX_NESTING: usize = 32;

/// Refuses a text of too many words, operators or brackets within brackets.
pub(super) fn check_tokens(tokens: &[TokenWithSpan]) -> Result<(), QueryError> {
    let too_large = |message: String| Err(QueryError::TooLarge(message));
    let (mut count, mut operators, mut nesting) = (0, 0, 0_usize);
    for token in tokens {
        match &token.token {
            Token::Whitespace(_) | Token::EOF => continue,
            Token::LParen | Token::LBracket | Token::LBrace => nesting += 1,
            Token::RParen | Token::RBracket | Token::RBrace => nesting = nesting.saturating_sub(1),
            other if is_operator(other) => operators += 1,
            _ => {}
        }
        count += 1;
        if nesting > MAX_NESTING {
            return too_large(format!("brackets are nested more than {MAX_NESTING} deep"));
        }
        if operators > MAX_OPERATORS {
            return too_large(format!(
                "the query has more than {MAX_OPERATORS} operators; a long list of values belongs in IN (…)"
            ));
        }
        if count > MAX_TOKENS {
            return too_large(format!("the query has more than {MAX_TOKENS} words and symbols"));
        }
    }
    Ok(())
}

/// Whether a token can make the tree deeper: every symbol that is no bracket and no separator, and the words that act
/// like one.
fn is_operator(token: &Token) -> bool {
    match token {
        Token::Word(word) => matches!(
            word.keyword,
            Keyword::AND
                | Keyword::OR
                | Keyword::NOT
                | Keyword::XOR
                | Keyword::IS
                | Keyword::IN
                | Keyword::LIKE
                | Keyword::ILIKE
                | Keyword::RLIKE
                | Keyword::REGEXP
                | Keyword::SIMILAR
                | Keyword::BETWEEN
                | Keyword::COLLATE
                | Keyword::AT
                | Keyword::DIV
                | Keyword::CASE
                | Keyword::PRIOR
                | Keyword::UNION
                | Keyword::EXCEPT
                | Keyword::INTERSECT
                | Keyword::JOIN
        ),
        Token::Comma
        | Token::Period
        | Token::SemiColon
        | Token::Placeholder(_)
        | Token::Number(..)
        | Token::Char(_) => false,
        Token::Whitespace(_) | Token::EOF => false,
        other => literal_text(other).is_none(),
    }
}

/// The text of a string literal.
fn literal_text(token: &Token) -> Option<&str> {
    match token {
        Token::SingleQuotedString(text)
        | Token::DoubleQuotedString(text)
        | Token::TripleSingleQuotedString(text)
        | Token::TripleDoubleQuotedString(text)
        | Token::SingleQuotedByteStringLiteral(text)
        | Token::DoubleQuotedByteStringLiteral(text)
        | Token::TripleSingleQuotedByteStringLiteral(text)
        | Token::TripleDoubleQuotedByteStringLiteral(text)
        | Token::SingleQuotedRawStringLiteral(text)
        | Token::DoubleQuotedRawStringLiteral(text)
        | Token::TripleSingleQuotedRawStringLiteral(text)
        | Token::TripleDoubleQuotedRawStringLiteral(text)
        | Token::NationalStringLiteral(text)
        | Token::EscapedStringLiteral(text)
        | Token::UnicodeStringLiteral(text)
        | Token::HexStringLiteral(text) => Some(text),
        Token::DollarQuotedString(quoted) => Some(&quoted.value),
        Token::QuoteDelimitedStringLiteral(quoted) | Token::NationalQuoteDelimitedStringLiteral(quoted) => {
            Some(&quoted.value)
        }
        _ => None,
    }
}
