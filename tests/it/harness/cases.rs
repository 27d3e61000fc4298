//! Cases written as readable YAML files, beside the tests that run them.

use std::path::Path;

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Value};

/// The documents of every YAML file in `tests/it/cases/<folder>`, with the name of their file, in the files' order.
pub(crate) fn cases(folder: &str) -> Vec<(String, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/cases").join(folder);
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    let mut found = Vec::new();
    for file in files {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&file).unwrap();
        found.extend(yaml(&name, &text).into_iter().map(|document| (name.clone(), document)));
    }
    found
}

/// The documents of a YAML text; `name` is what failures call it.
pub(crate) fn yaml(name: &str, text: &str) -> Vec<Value> {
    let mut events = Parser::new_from_str(text).map(|event| event.unwrap_or_else(|e| panic!("{name}: {e}")).0);
    let mut found = Vec::new();
    while let Some(event) = events.next() {
        if let Event::DocumentStart(_) = event {
            let root = events.next().unwrap();
            found.push(node(root, &mut events));
        }
    }
    found
}

/// The node that starts with `event`.
fn node<'a>(event: Event<'a>, events: &mut impl Iterator<Item = Event<'a>>) -> Value {
    match event {
        Event::Scalar(text, ScalarStyle::Plain, ..) => plain(&text),
        Event::Scalar(text, ..) => Value::String(text.into_owned()),
        Event::SequenceStart(..) => {
            let mut items = Vec::new();
            loop {
                match events.next().unwrap() {
                    Event::SequenceEnd => return Value::Array(items),
                    item => items.push(node(item, events)),
                }
            }
        }
        Event::MappingStart(..) => {
            let mut entries = Map::new();
            loop {
                match events.next().unwrap() {
                    Event::MappingEnd => return Value::Object(entries),
                    Event::Scalar(key, ..) => {
                        let first = events.next().unwrap();
                        entries.insert(key.into_owned(), node(first, events));
                    }
                    other => panic!("a key is a plain text, not {other:?}"),
                }
            }
        }
        other => panic!("no plain YAML: {other:?}"),
    }
}

/// A word without quotes: null, a boolean or a number if it reads as one, else text.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" => Value::Null,
        word => {
            serde_json::from_str(word).ok().filter(|value: &Value| !value.is_string()).unwrap_or_else(|| word.into())
        }
    }
}
