//! The shape of a query: its text with every literal as a `?`, for logs.

use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};

/// The longest shape.
const MOST: usize = 2_000;

/// The text with literals as `?` and without comments, cut after so many characters. A text that has no tokens has no
/// shape.
pub fn shape(text: &str) -> String {
    let Ok(tokens) = Tokenizer::new(&GenericDialect {}, text).tokenize() else {
        return "(not SQL)".to_owned();
    };
    let mut shape = String::new();
    for token in tokens {
        match token {
            Token::Whitespace(_) if shape.ends_with(' ') || shape.is_empty() => {}
            Token::Whitespace(_) => shape.push(' '),
            // What is in double quotes is a name: as it is written by a program, and perhaps a text by one who took
            // them for such.
            Token::Word(word) if word.quote_style.is_none() => shape.push_str(&word.value),
            Token::Word(_) => shape.push_str("\"?\""),
            Token::Comma
            | Token::Period
            | Token::LParen
            | Token::RParen
            | Token::LBracket
            | Token::RBracket
            | Token::Eq
            | Token::Neq
            | Token::Lt
            | Token::Gt
            | Token::LtEq
            | Token::GtEq
            | Token::Plus
            | Token::Minus
            | Token::Mul
            | Token::Div
            | Token::Mod
            | Token::Colon
            | Token::DoubleColon
            | Token::SemiColon
            | Token::StringConcat
            | Token::Tilde
            | Token::Arrow
            | Token::LongArrow => shape.push_str(&token.to_string()),
            Token::EOF => {}
            _ => shape.push('?'),
        }
        if shape.len() > MOST {
            return shape.chars().take(MOST).chain(['…']).collect();
        }
    }
    shape.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::shape;

    #[test]
    fn no_literal_is_in_a_shape() {
        let text = "SELECT  tool, 'secret' -- secret\n FROM tool_invocations /* secret */ WHERE caller = 'user:secret' \
                    AND duration_ms > 4711 AND tool IN ($1, E'secret', $$secret$$, \"secret\") AND x ~ 'secret'";
        let told = shape(text);
        assert_eq!(
            told,
            "SELECT tool, ? FROM tool_invocations WHERE caller = ? AND duration_ms > ? AND tool IN (?, ?, ?, \"?\") AND x ~ ?"
        );
        assert!(!shape("SELECT 'secret").contains("secret"));
        assert!(shape(&"SELECT ".repeat(1_000)).chars().count() <= 2_001);
    }
}
