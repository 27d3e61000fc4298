//! The arguments of a call as Cedar can hold them.
//!
//! Cedar's records have the shape that the schema says, and arguments have any shape. So each argument is a *tag*,
//! under its JSON pointer, of one of five entities, one for each kind of value:
//!
//! | `context.arguments.…` | holds |
//! |---|---|
//! | `text` | strings |
//! | `number` | whole numbers; beyond 64 bits as the greatest or the least |
//! | `decimal` | all numbers, to four places; beyond Cedar's range as the greatest or the least |
//! | `flag` | true and false |
//! | `list` | of each array the strings in it, as a set |
//!
//! Only what the policies ask for is put in, found by its pointer, so that large arguments cost nothing. Where policies
//! ask by a computed key, all of it is put in, up to a bound past which the call is denied.

use std::collections::BTreeSet;

use cedar_policy::{Entity, EntityTypeName, EntityUid, RestrictedExpression};
use serde_json::{Map, Number, Value};

/// The most values that are put in, and how deep they may lie, where all are.
const MAX_VALUES: usize = 10_000;
const MAX_DEPTH: usize = 64;

/// The greatest decimal of Cedar's that is a whole number. The least is its negative.
const MAX_DECIMAL: f64 = 922_337_203_685_476.0;

/// The kinds of values, in the order of [`Kind`].
pub(super) const KINDS: [(&str, &str); 5] =
    [("text", "Texts"), ("number", "Numbers"), ("decimal", "Decimals"), ("flag", "Flags"), ("list", "Lists")];

/// The kind of a value: an index into [`KINDS`].
#[derive(Debug, Clone, Copy)]
enum Kind {
    Text,
    Number,
    Decimal,
    Flag,
    List,
}

/// The arguments hold more than can be put in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooMany;

/// Which arguments the policies look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Those at these JSON pointers.
    At(BTreeSet<String>),
    /// Any.
    All,
}

impl Wanted {
    /// Whether it is empty.
    pub(super) fn is_none(&self) -> bool {
        matches!(self, Self::At(pointers) if pointers.is_empty())
    }
}

type Tags = [Vec<(String, RestrictedExpression)>; KINDS.len()];

/// The ids of the five entities.
pub(super) fn uids(types: &[EntityTypeName; KINDS.len()]) -> [EntityUid; KINDS.len()] {
    types.clone().map(|name| EntityUid::from_type_name_and_id(name, cedar_policy::EntityId::new("arguments")))
}

/// The five entities, with what is wanted of the arguments.
pub(super) fn entities(
    uids: &[EntityUid; KINDS.len()],
    arguments: Option<&Map<String, Value>>,
    wanted: &Wanted,
) -> Result<Vec<Entity>, TooMany> {
    let mut tags = Tags::default();
    if let Some(arguments) = arguments {
        match wanted {
            Wanted::At(pointers) => {
                for pointer in pointers {
                    if let Some(value) = at(arguments, pointer) {
                        put(&mut tags, pointer, value);
                    }
                }
            }
            Wanted::All => {
                let mut budget = MAX_VALUES;
                let mut path = String::new();
                for (key, value) in arguments {
                    put_all(&mut tags, &mut path, key, value, MAX_DEPTH, &mut budget)?;
                }
            }
        }
    }
    uids.iter()
        .zip(tags)
        .map(|(uid, tags)| Entity::new_with_tags(uid.clone(), [], [], tags).map_err(|_| TooMany))
        .collect()
}

/// The value at a JSON pointer.
fn at<'a>(arguments: &'a Map<String, Value>, pointer: &str) -> Option<&'a Value> {
    let rest = pointer.strip_prefix('/')?;
    let (first, rest) = rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash));
    arguments.get(&first.replace("~1", "/").replace("~0", "~"))?.pointer(rest)
}

/// Puts one value in under each of its kinds.
fn put(tags: &mut Tags, pointer: &str, value: &Value) {
    let mut tag = |kind: Kind, value| {
        if let Some(tags) = tags.get_mut(kind as usize) {
            tags.push((pointer.to_owned(), value));
        }
    };
    match value {
        Value::String(text) => tag(Kind::Text, RestrictedExpression::new_string(text.clone())),
        Value::Bool(flag) => tag(Kind::Flag, RestrictedExpression::new_bool(*flag)),
        Value::Number(number) => {
            if let Some(whole) = whole(number) {
                tag(Kind::Number, RestrictedExpression::new_long(whole));
            }
            tag(Kind::Decimal, RestrictedExpression::new_decimal(decimal(number)));
        }
        Value::Array(items) => {
            let texts =
                items.iter().filter_map(Value::as_str).map(|text| RestrictedExpression::new_string(text.into()));
            tag(Kind::List, RestrictedExpression::new_set(texts));
        }
        Value::Null | Value::Object(_) => {}
    }
}

fn put_all(
    tags: &mut Tags,
    path: &mut String,
    key: &str,
    value: &Value,
    depth: usize,
    budget: &mut usize,
) -> Result<(), TooMany> {
    *budget = budget.checked_sub(1).ok_or(TooMany)?;
    let depth = depth.checked_sub(1).ok_or(TooMany)?;
    let length = path.len();
    path.push('/');
    path.push_str(&key.replace('~', "~0").replace('/', "~1"));
    put(tags, path, value);
    match value {
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                put_all(tags, path, &index.to_string(), item, depth, budget)?;
            }
        }
        Value::Object(map) => {
            for (key, value) in map {
                put_all(tags, path, key, value, depth, budget)?;
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
    path.truncate(length);
    Ok(())
}

/// A number as a whole one of 64 bits, if it is one; beyond them the greatest or the least.
fn whole(number: &Number) -> Option<i64> {
    if let Some(whole) = number.as_i64() {
        return Some(whole);
    }
    if number.is_u64() {
        return Some(i64::MAX);
    }
    // A cast of a float stops at the ends of the range.
    number.as_f64().filter(|number| number.fract() == 0.0).map(|number| number as i64)
}

/// A number as Cedar writes decimals.
fn decimal(number: &Number) -> String {
    let number = number.as_f64().unwrap_or(0.0).clamp(-MAX_DECIMAL, MAX_DECIMAL);
    format!("{number:.4}")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{at, decimal, whole};

    #[test]
    fn a_value_is_found_by_its_pointer() {
        let Value::Object(arguments) = json!({ "a": { "b/c": [1, { "d~": 2 }] }, "": 3 }) else { panic!() };
        assert_eq!(at(&arguments, "/a/b~1c/1/d~0"), Some(&json!(2)));
        assert_eq!(at(&arguments, "/"), Some(&json!(3)));
        assert_eq!((at(&arguments, "/a/x"), at(&arguments, "a"), at(&arguments, "")), (None, None, None));
    }

    #[test]
    fn a_number_out_of_range_is_the_greatest_or_the_least() {
        let whole = |text: &str| whole(&serde_json::from_str(text).unwrap());
        assert_eq!(whole("12"), Some(12));
        assert_eq!(whole("1e3"), Some(1000));
        assert_eq!(whole("1.5"), None);
        assert_eq!(whole("18446744073709551615"), Some(i64::MAX));
        assert_eq!(whole("-1e300"), Some(i64::MIN));
        let decimal = |text: &str| decimal(&serde_json::from_str(text).unwrap());
        assert_eq!(decimal("0.12345"), "0.1235");
        assert_eq!(decimal("-2"), "-2.0000");
        assert_eq!(decimal("1e300"), "922337203685476.0000");
    }
}
