//! Parameters: `$1`, `$2` … or a `?` each, given as JSON values.
//!
//! A value takes its placeholder's place in the parsed statement, as the literal it is: it cannot become anything but a
//! value, and it is typed as the same literal would be, so a string compares with a timestamp.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{Statement, Value, ValueWithSpan, VisitMut, VisitorMut};
use serde_json::Value as Json;

use super::QueryError;

/// Puts the parameters in.
///
/// # Errors
/// When a placeholder has no value, a value no placeholder, both styles are mixed, or a value is no scalar.
pub(super) fn bind(statement: &mut Statement, params: &[Json]) -> Result<(), QueryError> {
    let values =
        params.iter().enumerate().map(|(index, json)| literal(index + 1, json)).collect::<Result<Vec<_>, _>>()?;
    let mut binder = Binder { used: vec![false; values.len()], values, anonymous: 0, numbered: false };
    if let ControlFlow::Break(message) = statement.visit(&mut binder) {
        return Err(QueryError::InvalidParameter(message));
    }
    match binder.used.iter().position(|used| !used) {
        Some(index) => Err(QueryError::InvalidParameter(format!(
            "{} parameters were given, and number {} has no placeholder (${} or ?) in the query",
            binder.used.len(),
            index + 1,
            index + 1
        ))),
        None => Ok(()),
    }
}

fn literal(number: usize, json: &Json) -> Result<Value, QueryError> {
    match json {
        Json::Null => Ok(Value::Null),
        Json::Bool(value) => Ok(Value::Boolean(*value)),
        Json::String(text) => Ok(Value::SingleQuotedString(text.clone())),
        Json::Number(value) if value.is_i64() || value.is_f64() => Ok(Value::Number(value.to_string(), false)),
        Json::Number(value) => {
            Err(QueryError::InvalidParameter(format!("parameter {number}: {value} does not fit a 64-bit integer")))
        }
        Json::Array(_) | Json::Object(_) => Err(QueryError::InvalidParameter(format!(
            "parameter {number} is an array or an object; give a string, a number, a boolean or null"
        ))),
    }
}

struct Binder {
    values: Vec<Value>,
    used: Vec<bool>,
    anonymous: usize,
    numbered: bool,
}

impl Binder {
    fn index(&mut self, placeholder: &str) -> Result<usize, String> {
        if placeholder == "?" {
            self.anonymous += 1;
        } else {
            self.numbered = true;
        }
        if self.anonymous > 0 && self.numbered {
            return Err("the query mixes ? with numbered placeholders; use one style".to_owned());
        }
        if placeholder == "?" {
            return Ok(self.anonymous - 1);
        }
        let number = placeholder.strip_prefix(['$', '?']).and_then(|digits| digits.parse::<usize>().ok());
        number
            .and_then(|number| number.checked_sub(1))
            .ok_or_else(|| format!("{placeholder} is no placeholder; use $1, $2, … or ?"))
    }
}

impl VisitorMut for Binder {
    type Break = String;

    fn pre_visit_value(&mut self, value: &mut ValueWithSpan) -> ControlFlow<String> {
        let Value::Placeholder(placeholder) = &value.value else { return ControlFlow::Continue(()) };
        let index = match self.index(placeholder) {
            Ok(index) => index,
            Err(message) => return ControlFlow::Break(message),
        };
        match (self.values.get(index), self.used.get_mut(index)) {
            (Some(given), Some(used)) => {
                *used = true;
                value.value = given.clone();
                ControlFlow::Continue(())
            }
            _ => ControlFlow::Break(format!("parameter {} is missing: {} were given", index + 1, self.values.len())),
        }
    }
}

#[cfg(test)]
mod tests {
    use datafusion::sql::sqlparser::dialect::GenericDialect;
    use datafusion::sql::sqlparser::parser::Parser;
    use serde_json::{Value, json};

    use super::bind;

    fn bound(sql: &str, params: &Value) -> Result<String, String> {
        let mut statement = Parser::parse_sql(&GenericDialect {}, sql).unwrap().remove(0);
        bind(&mut statement, params.as_array().unwrap()).map_err(|error| error.to_string())?;
        Ok(statement.to_string())
    }

    #[test]
    fn each_placeholder_gets_its_value_as_a_literal() {
        assert_eq!(
            bound("SELECT $2, $1 WHERE a = $2 LIMIT $3", &json!(["it's", -1.5, 7])).unwrap(),
            "SELECT -1.5, 'it''s' WHERE a = -1.5 LIMIT 7"
        );
        assert_eq!(bound("SELECT ?, ?", &json!([true, null])).unwrap(), "SELECT true, NULL");
    }

    #[test]
    fn a_value_cannot_become_anything_but_a_value() {
        assert_eq!(bound("SELECT $1", &json!(["' OR 1=1; --"])).unwrap(), "SELECT ''' OR 1=1; --'");
    }

    #[test]
    fn the_parameter_that_is_missing_or_superfluous_is_named() {
        assert!(bound("SELECT $1, $3", &json!([1, 2])).unwrap_err().contains("parameter 3 is missing"));
        assert!(bound("SELECT $1", &json!([1, 2])).unwrap_err().contains("number 2 has no placeholder"));
        assert!(bound("SELECT ?, $1", &json!([1])).unwrap_err().contains("mixes"));
        assert!(bound("SELECT $name", &json!([1])).unwrap_err().contains("$name"));
        assert!(bound("SELECT $0", &json!([1])).unwrap_err().contains("$0"));
    }

    #[test]
    fn what_has_no_literal_is_refused() {
        assert!(bound("SELECT $1", &json!([[1]])).unwrap_err().contains("parameter 1"));
        assert!(bound("SELECT $1", &json!([u64::MAX])).unwrap_err().contains("64-bit"));
    }
}
