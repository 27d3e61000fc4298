//! A YAML document as a tree in which everything knows where it stands in the file.

use saphyr_parser::{Event, Parser, ScalarStyle, Span};

use super::fault::{Collector, Position};

/// How deep collections may nest: far more than any setting needs, and little enough that reading cannot exhaust the
/// stack.
const MAX_DEPTH: usize = 32;

/// A value of the document.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    /// Where it starts.
    pub(crate) at: Position,
    /// What it is.
    pub(crate) value: Value,
}

/// What a node is.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    /// Text; `plain` when it was not quoted, so that it may be read as a number, a boolean or null.
    Scalar {
        /// The text, variables replaced.
        text: String,
        /// Whether it stood without quotes.
        plain: bool,
    },
    /// A list; each item with its index in the file, which stays when a faulty neighbour is taken out.
    List(Vec<(usize, Node)>),
    /// A mapping, in the file's order, keys unique.
    Map(Vec<Entry>),
}

/// A key with its value.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// The key.
    pub(crate) key: String,
    /// Where the key starts.
    pub(crate) key_at: Position,
    /// Its value.
    pub(crate) node: Node,
}

/// One step down from a node: the place of a child among its siblings as they are now.
pub(crate) type Step = usize;

impl Node {
    /// Whether it is a key's missing value: nothing, `~` or `null` without quotes.
    pub(crate) fn is_null(&self) -> bool {
        let is_null = |text: &str| matches!(text, "" | "~" | "null" | "Null" | "NULL");
        matches!(&self.value, Value::Scalar { text, plain: true } if is_null(text))
    }

    /// The child that `step` leads to.
    pub(crate) fn child(&self, step: Step) -> Option<&Self> {
        match &self.value {
            Value::Scalar { .. } => None,
            Value::List(items) => items.get(step).map(|(_, node)| node),
            Value::Map(entries) => entries.get(step).map(|entry| &entry.node),
        }
    }

    /// The path as a person writes it, like `tokens[0].hash`.
    pub(crate) fn path(&self, steps: &[Step]) -> String {
        let mut path = String::new();
        let mut node = self;
        for step in steps {
            match &node.value {
                Value::List(items) => {
                    let Some((index, _)) = items.get(*step) else { break };
                    path.push_str(&format!("[{index}]"));
                }
                Value::Map(entries) => {
                    let Some(entry) = entries.get(*step) else { break };
                    if !path.is_empty() {
                        path.push('.');
                    }
                    path.push_str(&entry.key);
                }
                Value::Scalar { .. } => break,
            }
            let Some(child) = node.child(*step) else { break };
            node = child;
        }
        path
    }

    /// Takes the node that `steps` lead to out of the tree; the root becomes an empty mapping.
    pub(crate) fn prune(&mut self, steps: &[Step]) {
        match steps {
            [] => self.value = Value::Map(Vec::new()),
            [last] => match &mut self.value {
                Value::List(items) if *last < items.len() => drop(items.remove(*last)),
                Value::Map(entries) if *last < entries.len() => drop(entries.remove(*last)),
                Value::Scalar { .. } | Value::List(_) | Value::Map(_) => {}
            },
            [first, rest @ ..] => {
                let child = match &mut self.value {
                    Value::List(items) => items.get_mut(*first).map(|(_, node)| node),
                    Value::Map(entries) => entries.get_mut(*first).map(|entry| &mut entry.node),
                    Value::Scalar { .. } => None,
                };
                if let Some(child) = child {
                    child.prune(rest);
                }
            }
        }
    }
}

/// A collection that is being read.
struct Open {
    at: Position,
    /// Where the collection itself belongs in its parent.
    value: OpenValue,
}

enum OpenValue {
    List(Vec<(usize, Node)>),
    Map { entries: Vec<Entry>, key: Option<(String, Position)> },
}

/// Reads one YAML document. Faults go to `faults`; what could be read is returned all the same.
///
/// After a syntax error the rest of the file cannot be read, so the result is `None`. An empty file is an empty
/// mapping.
pub(crate) fn parse(text: &str, faults: &mut Collector<'_>) -> Option<Node> {
    let mut stack: Vec<Open> = Vec::new();
    let mut root: Option<Node> = None;
    for event in Parser::new_from_str(text) {
        let (event, span) = match event {
            Ok(event) => event,
            Err(error) => {
                let marker = error.marker();
                let at = Position { line: marker.line(), column: marker.col() + 1 };
                let variable = text.lines().nth(at.line.saturating_sub(1)).is_some_and(|line| line.contains("${"));
                let hint = if variable { " (inside { } and [ ], put a value with ${…} into quotes)" } else { "" };
                faults.add(at, "", format!("not YAML: {}{hint}", error.info()));
                return None;
            }
        };
        let at = position(&span);
        match event {
            Event::DocumentStart(_) if root.is_some() => {
                faults.add(at, "", "a second document starts here; put all settings into one");
                return root;
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) | Event::DocumentEnd => {}
            Event::Alias(_) => {
                faults.add(at, "", "an alias is not supported; write the value out");
                let nothing = Value::Scalar { text: String::new(), plain: true };
                attach(&mut stack, &mut root, Node { at, value: nothing }, faults);
            }
            Event::Scalar(text, style, anchor, tag) => {
                refuse_decoration(at, anchor, tag.is_some(), faults);
                let value = Value::Scalar { text: text.into_owned(), plain: style == ScalarStyle::Plain };
                attach(&mut stack, &mut root, Node { at, value }, faults);
            }
            Event::SequenceStart(anchor, tag) => {
                refuse_decoration(at, anchor, tag.is_some(), faults);
                stack.push(Open { at, value: OpenValue::List(Vec::new()) });
            }
            Event::MappingStart(anchor, tag) => {
                refuse_decoration(at, anchor, tag.is_some(), faults);
                stack.push(Open { at, value: OpenValue::Map { entries: Vec::new(), key: None } });
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(open) = stack.pop() {
                    let value = match open.value {
                        OpenValue::List(items) => Value::List(items),
                        OpenValue::Map { entries, .. } => Value::Map(entries),
                    };
                    attach(&mut stack, &mut root, Node { at: open.at, value }, faults);
                }
            }
        }
        if stack.len() > MAX_DEPTH {
            faults.add(at, "", format!("nested deeper than {MAX_DEPTH} levels"));
            return None;
        }
    }
    let empty = || Node { at: Position::START, value: Value::Map(Vec::new()) };
    Some(match root {
        Some(root) if root.is_null() => empty(),
        Some(root) => root,
        None => empty(),
    })
}

fn position(span: &Span) -> Position {
    Position { line: span.start.line(), column: span.start.col() + 1 }
}

fn refuse_decoration(at: Position, anchor: usize, tagged: bool, faults: &mut Collector<'_>) {
    if anchor != 0 {
        faults.add(at, "", "an anchor is not supported; write the value out where it is needed");
    }
    if tagged {
        faults.add(at, "", "a tag is not supported; remove it");
    }
}

/// Puts a finished node into the collection that is open, or makes it the root.
fn attach(stack: &mut [Open], root: &mut Option<Node>, node: Node, faults: &mut Collector<'_>) {
    let Some(open) = stack.last_mut() else {
        *root = Some(node);
        return;
    };
    match &mut open.value {
        OpenValue::List(items) => items.push((items.len(), node)),
        OpenValue::Map { entries, key } => match key.take() {
            None => {
                let text = match node.value {
                    Value::Scalar { text, .. } => text,
                    Value::List(_) | Value::Map(_) => {
                        faults.add(node.at, "", "a key must be plain text");
                        String::new()
                    }
                };
                *key = Some((text, node.at));
            }
            Some((key, key_at)) => {
                if let Some(first) = entries.iter().find(|entry| entry.key == key) {
                    let message = format!("the key stands twice, first on line {}; remove one", first.key_at.line);
                    faults.add(key_at, key, message);
                } else {
                    entries.push(Entry { key, key_at, node });
                }
            }
        },
    }
}
