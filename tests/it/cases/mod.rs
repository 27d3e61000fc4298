//! SQL cases: readable YAML documents, run against the engine by the unit tests and against a real server by the
//! end-to-end tests.
//!
//! Both put `data/acme.ndjson` into the org `acme`, which asks, and `data/globex.ndjson` into the org `globex`, which
//! must stay unseen.
//!
//! ```yaml
//! name: what it shows
//! sql: SELECT 1{terms}
//! repeat: { terms: ["+1", 2] }       # optional: {terms} stands for this text, that many times
//! params: [1, "a"]                   # optional
//! refused: [query_too_large]         # the codes of which one must come; or
//! columns: [[a, bigint], [b, string]] # optional: names and types of the columns
//! rows: [[1, "a"]]                   # the rows; or
//! harmless: why                      # any answer and any refusal that is the client's is fine
//! ```

use serde_json::Value;

/// A text that stands in every column of `globex` and in no case.
pub(crate) const FOREIGN: &str = "gx7f3a9c";

/// A query and what must come of it.
#[derive(Debug)]
pub(crate) struct Case {
    /// The file and the case's name.
    pub(crate) name: String,
    /// The statement.
    pub(crate) sql: String,
    /// Its parameters.
    pub(crate) params: Vec<Value>,
    /// What must come of it.
    pub(crate) expected: Expected,
}

/// What must come of a query.
#[derive(Debug)]
pub(crate) enum Expected {
    /// One of these codes.
    Refused(Vec<String>),
    /// These columns, if given, as `[name, type]`, and these rows.
    Rows { columns: Option<Vec<(String, String)>>, rows: Vec<Value> },
    /// Any answer, or any refusal that is the client's.
    Harmless,
}

impl Case {
    /// The case that a document of `file` tells.
    pub(crate) fn of(file: &str, document: &Value) -> Self {
        let name = format!("{file}: {}", text(&document["name"]));
        let mut sql = text(&document["sql"]);
        for (key, repeated) in document["repeat"].as_object().into_iter().flatten() {
            let times = usize::try_from(repeated[1].as_u64().unwrap()).unwrap();
            sql = sql.replace(&format!("{{{key}}}"), &text(&repeated[0]).repeat(times));
        }
        let params = document["params"].as_array().cloned().unwrap_or_default();
        let columns = document["columns"].as_array();
        let columns = columns.map(|pairs| pairs.iter().map(|pair| (text(&pair[0]), text(&pair[1]))).collect());
        let expected = match (&document["refused"], document["rows"].as_array(), &document["harmless"]) {
            (Value::String(code), None, Value::Null) => Expected::Refused(vec![code.clone()]),
            (Value::Array(codes), None, Value::Null) => Expected::Refused(codes.iter().map(text).collect()),
            (Value::Null, Some(rows), Value::Null) => Expected::Rows { columns, rows: rows.clone() },
            (Value::Null, None, Value::String(_)) => Expected::Harmless,
            _ => panic!("{name}: a case has one of refused, rows, harmless"),
        };
        Self { name, sql, params, expected }
    }

    /// Whether an answer, as JSON, or the code and text of a refusal is what must come; if not, what came.
    pub(crate) fn check(&self, outcome: Result<&Value, (&str, &str)>) -> Result<(), String> {
        let came = outcome.map_or_else(|(code, text)| format!("{code}: {text}"), Value::to_string);
        let good = !came.contains(FOREIGN)
            && match (&self.expected, outcome) {
                (Expected::Refused(codes), Err((code, _))) => codes.iter().any(|expected| expected == code),
                (Expected::Rows { columns, rows }, Ok(answer)) => {
                    let got =
                        answer["columns"].as_array().unwrap().iter().map(|c| (text(&c["name"]), text(&c["type"])));
                    columns.as_ref().is_none_or(|columns| got.eq(columns.iter().cloned()))
                        && same(&Value::Array(rows.clone()), &answer["rows"])
                }
                (Expected::Harmless, Ok(_)) => true,
                (Expected::Harmless, Err((code, _))) => !["internal_error", "storage_unavailable"].contains(&code),
                (Expected::Refused(_), Ok(_)) | (Expected::Rows { .. }, Err(_)) => false,
            };
        if good {
            Ok(())
        } else {
            Err(format!("{}\n  should be {:?}\n  but came {came:.2000}", self.name, self.expected))
        }
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Equality, but for the last digits of fractions and for how a whole number is written.
fn same(expected: &Value, got: &Value) -> bool {
    match (expected, got) {
        (Value::Array(expected), Value::Array(got)) => {
            expected.len() == got.len() && expected.iter().zip(got).all(|(expected, got)| same(expected, got))
        }
        (Value::Number(expected), Value::Number(got)) => {
            expected == got || {
                let (expected, got) = (expected.as_f64().unwrap(), got.as_f64().unwrap());
                (expected - got).abs() <= 1e-9 * expected.abs()
            }
        }
        _ => expected == got,
    }
}
