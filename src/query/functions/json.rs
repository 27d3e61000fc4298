//! Functions on JSON text, such as the ledger's `detail`: they lead along a path of keys and places and give what lies
//! there.
//!
//! | function | gives |
//! |---|---|
//! | `json_get_str`, `json_get_int`, `json_get_float`, `json_get_bool` | the value, if it is of that type |
//! | `json_get_json` (`->`) | the value as JSON text, as it was written |
//! | `json_as_text` (`->>`) | the same, but a string without its quotes |
//! | `json_get_array` | the items of an array, each as JSON text |
//! | `json_object_keys` | the keys of an object, in their order |
//! | `json_length` | how many items or members an array or object has |
//! | `json_contains` | whether anything lies there |
//!
//! Names and meaning are those of the package `datafusion-functions-json`. What is not there, or not of the type, is
//! null; a text that is no JSON has nothing anywhere. No value is larger than the text that it was found in. A place
//! counts from 0, or from the end if it is negative.

use std::sync::{Arc, LazyLock};

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanBuilder, Float64Builder, Int64Builder, ListBuilder, StringBuilder, StringViewArray,
};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type};
use datafusion::common::{Result, ScalarValue, plan_err};
use datafusion::logical_expr::{
    ColumnarValue, DocSection, Documentation, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// What a function gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Gives {
    Str,
    Int,
    Float,
    Bool,
    Json,
    Text,
    Array,
    Keys,
    Length,
    Contains,
}

const FUNCTIONS: [(&str, Gives, &str); 10] = [
    ("json_get_str", Gives::Str, "The string at a path in JSON text; null if there is no string."),
    ("json_get_int", Gives::Int, "The whole number at a path in JSON text; null if there is no whole number."),
    ("json_get_float", Gives::Float, "The number at a path in JSON text; null if there is no number."),
    ("json_get_bool", Gives::Bool, "The boolean at a path in JSON text; null if there is no boolean."),
    ("json_get_json", Gives::Json, "What lies at a path in JSON text, as JSON text; the operator ->."),
    ("json_as_text", Gives::Text, "What lies at a path in JSON text, a string without quotes; the operator ->>."),
    ("json_get_array", Gives::Array, "The items of the array at a path in JSON text, each as JSON text."),
    ("json_object_keys", Gives::Keys, "The keys of the object at a path in JSON text."),
    ("json_length", Gives::Length, "How many items or members the array or object at a path in JSON text has."),
    ("json_contains", Gives::Contains, "Whether anything lies at a path in JSON text."),
];

/// All of them.
pub(super) fn functions() -> Vec<Arc<ScalarUDF>> {
    FUNCTIONS.iter().map(|(name, gives, description)| Arc::new(JsonFunction::of(name, *gives, description))).collect()
}

/// `json -> member`.
pub(super) static GET_JSON: LazyLock<ScalarUDF> =
    LazyLock::new(|| JsonFunction::of("json_get_json", Gives::Json, "The operator ->."));
/// `json ->> member`.
pub(super) static AS_TEXT: LazyLock<ScalarUDF> =
    LazyLock::new(|| JsonFunction::of("json_as_text", Gives::Text, "The operator ->>."));

#[derive(Debug, PartialEq, Eq, Hash)]
struct JsonFunction {
    name: &'static str,
    gives: Gives,
    signature: Signature,
    documentation: Documentation,
}

impl JsonFunction {
    fn of(name: &'static str, gives: Gives, description: &str) -> ScalarUDF {
        let section = DocSection { include: true, label: "JSON", description: None };
        ScalarUDF::new_from_impl(Self {
            name,
            gives,
            signature: Signature::user_defined(Volatility::Immutable),
            documentation: Documentation::builder(section, description, format!("{name}(json, key_or_place, …)"))
                .build(),
        })
    }
}

impl ScalarUDFImpl for JsonFunction {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, given: &[DataType]) -> Result<Vec<DataType>> {
        let Some((json, path)) = given.split_first() else {
            return plan_err!("{} takes JSON text, and then keys and places", self.name);
        };
        if !(json.is_string() || json.is_null()) {
            return plan_err!("{} takes JSON text, not a value of type {json}", self.name);
        }
        let step = |step: &DataType| match step {
            text if text.is_string() || text.is_null() => Ok(DataType::Utf8View),
            number if number.is_integer() => Ok(DataType::Int64),
            other => plan_err!("a path in JSON has keys and places, not a value of type {other}"),
        };
        let path = path.iter().map(step).collect::<Result<Vec<_>>>()?;
        Ok([vec![DataType::Utf8View], path].concat())
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(match self.gives {
            Gives::Str | Gives::Json | Gives::Text => DataType::Utf8,
            Gives::Int | Gives::Length => DataType::Int64,
            Gives::Float => DataType::Float64,
            Gives::Bool | Gives::Contains => DataType::Boolean,
            Gives::Array | Gives::Keys => DataType::new_list(DataType::Utf8, true),
        })
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let is_scalar = args.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
        let rows = if is_scalar { 1 } else { args.number_rows };
        let columns = args.args.iter().map(|arg| arg.to_array(rows)).collect::<Result<Vec<_>>>()?;
        let Some((json, path)) = columns.split_first() else { return plan_err!("{} takes JSON text", self.name) };
        let json = cast(json, &DataType::Utf8View)?;
        let steps = path.iter().map(Steps::of).collect::<Result<Vec<_>>>()?;
        let values = self.gives.all(rows, |row| found(json.as_string_view(), &steps, row));
        if is_scalar {
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&values, 0)?));
        }
        Ok(ColumnarValue::Array(values))
    }

    fn documentation(&self) -> Option<&Documentation> {
        Some(&self.documentation)
    }
}

/// A column of keys, or of places.
enum Steps {
    Keys(StringViewArray),
    Places(arrow::array::Int64Array),
}

impl Steps {
    fn of(column: &ArrayRef) -> Result<Self> {
        Ok(match column.data_type() {
            DataType::Int64 => Self::Places(column.as_primitive::<Int64Type>().clone()),
            _ => Self::Keys(cast(column, &DataType::Utf8View)?.as_string_view().clone()),
        })
    }
}

/// What lies at the path of a row, as JSON text.
fn found<'a>(json: &'a StringViewArray, steps: &[Steps], row: usize) -> Option<&'a str> {
    let mut at = json.is_valid(row).then(|| json.value(row))?;
    if steps.is_empty() {
        serde_json::from_str::<&RawValue>(at).ok()?;
    }
    for step in steps {
        at = match step {
            Steps::Keys(keys) => member(at, keys.is_valid(row).then(|| keys.value(row))?)?,
            Steps::Places(places) => item(at, places.is_valid(row).then(|| places.value(row))?)?,
        };
    }
    Some(at)
}

/// The value of a key; of the last one if there are several.
fn member<'a>(json: &'a str, key: &str) -> Option<&'a str> {
    members(json)?.into_iter().rev().find(|(name, _)| name == key).map(|(_, value)| value)
}

fn item(json: &str, place: i64) -> Option<&str> {
    let items = items(json)?;
    let place = if place < 0 {
        items.len().checked_sub(usize::try_from(place.unsigned_abs()).ok()?)?
    } else {
        usize::try_from(place).ok()?
    };
    items.get(place).copied()
}

fn items(json: &str) -> Option<Vec<&str>> {
    let items: Vec<&RawValue> = serde_json::from_str(json).ok()?;
    Some(items.into_iter().map(RawValue::get).collect())
}

/// The members of an object, in their order.
fn members(json: &str) -> Option<Vec<(String, &str)>> {
    struct Members;

    impl<'de> Visitor<'de> for Members {
        type Value = Vec<(String, &'de str)>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
            let mut members = Vec::new();
            while let Some((key, value)) = map.next_entry::<String, &RawValue>()? {
                members.push((key, value.get()));
            }
            Ok(members)
        }
    }

    let mut parser = serde_json::Deserializer::from_str(json);
    let members = parser.deserialize_map(Members).ok()?;
    parser.end().ok()?;
    Some(members)
}

/// How many items or members there are.
fn length(json: &str) -> Option<i64> {
    struct Count;

    impl<'de> Visitor<'de> for Count {
        type Value = i64;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an array or an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<i64, A::Error> {
            let mut count = 0;
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                count += 1;
            }
            Ok(count)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<i64, A::Error> {
            let mut count = 0;
            while list.next_element::<IgnoredAny>()?.is_some() {
                count += 1;
            }
            Ok(count)
        }
    }

    serde_json::Deserializer::from_str(json).deserialize_any(Count).ok()
}

impl Gives {
    /// A column of what lies at each row's path.
    fn all<'a>(self, rows: usize, found: impl Fn(usize) -> Option<&'a str>) -> ArrayRef {
        let each = || (0..rows).map(&found);
        match self {
            Self::Str => text(each().map(|json| serde_json::from_str::<String>(json?).ok())),
            Self::Json => text(each().map(|json| json.map(str::to_owned))),
            Self::Text => text(each().map(|json| {
                let json = json.filter(|json| *json != "null")?;
                Some(serde_json::from_str::<String>(json).unwrap_or_else(|_| json.to_owned()))
            })),
            Self::Int | Self::Length => {
                let mut column = Int64Builder::with_capacity(rows);
                each().for_each(|json| {
                    column.append_option(json.and_then(|json| match self {
                        Self::Length => length(json),
                        _ => serde_json::from_str(json).ok(),
                    }));
                });
                Arc::new(column.finish())
            }
            Self::Float => {
                let mut column = Float64Builder::with_capacity(rows);
                each().for_each(|json| column.append_option(json.and_then(|json| serde_json::from_str(json).ok())));
                Arc::new(column.finish())
            }
            Self::Bool => {
                let mut column = BooleanBuilder::with_capacity(rows);
                each().for_each(|json| column.append_option(json.and_then(|json| serde_json::from_str(json).ok())));
                Arc::new(column.finish())
            }
            Self::Contains => {
                let mut column = BooleanBuilder::with_capacity(rows);
                each().for_each(|json| column.append_value(json.is_some()));
                Arc::new(column.finish())
            }
            Self::Array => lists(each().map(|json| Some(items(json?)?.into_iter().map(str::to_owned).collect()))),
            Self::Keys => lists(each().map(|json| Some(members(json?)?.into_iter().map(|(key, _)| key).collect()))),
        }
    }
}

fn text(values: impl Iterator<Item = Option<String>>) -> ArrayRef {
    let mut column = StringBuilder::new();
    values.for_each(|value| column.append_option(value));
    Arc::new(column.finish())
}

fn lists(values: impl Iterator<Item = Option<Vec<String>>>) -> ArrayRef {
    let mut column = ListBuilder::new(StringBuilder::new());
    for value in values {
        let is_there = value.is_some();
        value.into_iter().flatten().for_each(|item| column.values().append_value(item));
        column.append(is_there);
    }
    Arc::new(column.finish())
}

#[cfg(test)]
mod tests {
    use super::{found, item, length, member, members};
    use arrow::array::StringViewArray;

    #[test]
    fn a_path_leads_to_the_value_as_it_was_written() {
        let json = r#"{"a": {"b": [1.50, "x", null]}, "a\u0062": 1, "a": {"b":[2]}}"#;
        assert_eq!(member(json, "ab"), Some("1"));
        assert_eq!(member(json, "a"), Some(r#"{"b":[2]}"#), "of two members of one name the last counts");
        assert_eq!(item("[1.50, 2]", 0), Some("1.50"));
        assert_eq!(item("[1.50, 2]", -1), Some("2"));
        for place in [2, -3, i64::MIN, i64::MAX] {
            assert_eq!(item("[1.50, 2]", place), None, "{place}");
        }
        assert_eq!(members("{} x"), None);
        assert_eq!((length("[1, [2, 3]]"), length("{}"), length("1")), (Some(2), Some(0), None));
    }

    #[test]
    fn what_is_no_json_has_nothing_anywhere() {
        let texts = StringViewArray::from(vec!["{", "", "[1,", &"[".repeat(10_000)]);
        for row in 0..4 {
            assert_eq!(found(&texts, &[], row), None);
        }
        assert_eq!(member(&"{\"a\":".repeat(10_000), "a"), None);
    }
}
