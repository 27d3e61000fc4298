//! `${NAME}` and `${NAME:-default}` in a value.

use super::Environment;
use super::fault::Collector;
use super::tree::{Node, Step, Value};

/// Replaces the variables in every scalar of the tree. For each that cannot be there is a fault, and the scalar is
/// taken out of the tree.
pub(crate) fn interpolate(root: &mut Node, environment: Environment<'_>, faults: &mut Collector<'_>) {
    let mut found = Vec::new();
    walk(root, &mut Vec::new(), environment, &mut found);
    // The last first, since taking a node out moves those after it.
    for (steps, at, message) in found.into_iter().rev() {
        faults.add(at, root.path(&steps), message);
        root.prune(&steps);
    }
}

type Found = (Vec<Step>, super::fault::Position, String);

fn walk(node: &mut Node, steps: &mut Vec<Step>, environment: Environment<'_>, found: &mut Vec<Found>) {
    match &mut node.value {
        Value::Scalar { text, plain } => {
            if text.contains("${") {
                match replace(text, environment) {
                    Ok(replaced) => {
                        // A secret that happens to read as YAML's null is that secret.
                        *plain = replaced.is_empty() || (*plain && !is_null(&replaced));
                        *text = replaced;
                    }
                    Err(message) => found.push((steps.clone(), node.at, message)),
                }
            }
        }
        Value::List(items) => {
            for (step, (_, item)) in items.iter_mut().enumerate() {
                steps.push(step);
                walk(item, steps, environment, found);
                steps.pop();
            }
        }
        Value::Map(entries) => {
            for (step, entry) in entries.iter_mut().enumerate() {
                steps.push(step);
                walk(&mut entry.node, steps, environment, found);
                steps.pop();
            }
        }
    }
}

/// The text with its variables replaced. A variable's content is taken as it is, never replaced again.
fn replace(text: &str, environment: Environment<'_>) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        if let Some(before) = before.strip_suffix('$') {
            out.push_str(before);
            out.push_str("${");
            rest = after;
            continue;
        }
        out.push_str(before);
        let Some((inside, after)) = after.split_once('}') else {
            return Err("a `${` is not closed; write `${NAME}`, or `$${` for the two characters themselves".to_owned());
        };
        let (name, default) = match inside.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (inside, None),
        };
        if !is_name(name) {
            return Err(format!(
                "`${{{inside}}}` names no environment variable; write `${{NAME}}` or `${{NAME:-default}}`"
            ));
        }
        // As in a shell, `:-` also stands in for a variable that is set to nothing.
        match (environment(name), default) {
            (Some(value), None) => out.push_str(&value),
            (Some(value), Some(_)) if !value.is_empty() => out.push_str(&value),
            (_, Some(default)) => out.push_str(default),
            (None, None) => {
                return Err(format!(
                    "the environment variable {name} is not set; set it, or write `${{{name}:-default}}`"
                ));
            }
        }
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

/// Whether a plain scalar of this text is a null in YAML.
fn is_null(text: &str) -> bool {
    matches!(text, "~" | "null" | "Null" | "NULL")
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::replace;

    fn environment(name: &str) -> Option<String> {
        match name {
            "HOST" => Some("db.example".to_owned()),
            "EMPTY" => Some(String::new()),
            "NESTED" => Some("${HOST}".to_owned()),
            _ => None,
        }
    }

    #[test]
    fn a_variable_is_replaced_anywhere_in_a_value() {
        assert_eq!(replace("https://${HOST}:${PORT:-80}/x", &environment).unwrap(), "https://db.example:80/x");
    }

    #[test]
    fn a_default_stands_in_for_an_unset_and_for_an_empty_variable() {
        assert_eq!(replace("${PORT:-1}${EMPTY:-2}${PORT:-}", &environment).unwrap(), "12");
    }

    #[test]
    fn an_unset_variable_without_a_default_is_a_fault_that_names_it() {
        assert!(replace("${PORT}", &environment).unwrap_err().contains("PORT is not set"));
    }

    #[test]
    fn a_variable_that_holds_a_variable_is_not_replaced_again() {
        assert_eq!(replace("${NESTED}", &environment).unwrap(), "${HOST}");
    }

    #[test]
    fn a_doubled_dollar_is_a_literal_one() {
        assert_eq!(replace("$${HOST} costs $5", &environment).unwrap(), "${HOST} costs $5");
    }

    #[test]
    fn an_unclosed_or_misnamed_variable_is_a_fault() {
        for bad in ["${HOST", "${}", "${A B}", "${1A}", "${HOST:=x}"] {
            assert!(replace(bad, &environment).is_err(), "{bad}");
        }
    }
}
