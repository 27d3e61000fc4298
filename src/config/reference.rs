//! Whether a reference file shows all that can be set, for the tests that keep `deploy/` in step.

use serde::Serialize;
use serde_json::Value;

/// The paths of all keys of the settings, list items as `[]`.
pub(super) fn keys(settings: &impl Serialize) -> Vec<String> {
    let mut keys = Vec::new();
    collect(&serde_json::to_value(settings).unwrap(), "", &mut keys);
    keys
}

fn collect(value: &Value, path: &str, out: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let path = format!("{path}.{key}");
                collect(value, &path, out);
                out.push(path);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, &format!("{path}[]"), out)),
        _ => {}
    }
}

/// Those whose key begins no line of the file.
pub(super) fn absent<'a>(keys: &'a [String], file: &str) -> Vec<&'a str> {
    let is_shown = |path: &str| {
        let key = path.rsplit('.').next().unwrap();
        file.lines().any(|line| line.trim_start_matches([' ', '-']).starts_with(&format!("{key}:")))
    };
    keys.iter().map(String::as_str).filter(|path| !is_shown(path)).collect()
}
