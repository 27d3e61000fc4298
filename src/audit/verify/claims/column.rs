//! What the rows of a column really are, page by page, and holding what a file says of them against that.

use std::fmt::Display;

use arrow::array::{Array, ArrayRef, AsArray, ListArray, StringArray};
use arrow::datatypes::{DataType, Int64Type, TimestampMicrosecondType};
use parquet::bloom_filter::Sbbf;

use super::super::thrift::{Fields, Thrift};
use super::pages::Page;
use super::{Found, equal, field, known, structs};

/// A value in the order that statistics are of: numbers by their value, texts by their bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Value {
    Number(i64),
    Text(Vec<u8>),
}

impl Value {
    /// A bound as statistics have it.
    fn parse(&self, bytes: &[u8]) -> Option<Self> {
        match self {
            Self::Number(_) => bytes.try_into().ok().map(i64::from_le_bytes).map(Self::Number),
            Self::Text(_) => Some(Self::Text(bytes.to_vec())),
        }
    }
}

impl Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => write!(f, "`{}`", String::from_utf8_lossy(text).escape_debug()),
        }
    }
}

/// What the rows of a page, or of a column chunk, really are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) rows: u64,
    pub(super) nulls: u64,
    /// Bytes of texts.
    pub(super) bytes: u64,
    pub(super) range: Option<(Value, Value)>,
    /// How often each definition level occurs, and each repetition level.
    pub(super) definitions: [u64; 4],
    pub(super) repetitions: [u64; 2],
}

impl Facts {
    pub(super) fn add(&mut self, other: &Self) {
        self.rows += other.rows;
        self.nulls += other.nulls;
        self.bytes += other.bytes;
        self.definitions.iter_mut().zip(other.definitions).for_each(|(sum, more)| *sum += more);
        self.repetitions.iter_mut().zip(other.repetitions).for_each(|(sum, more)| *sum += more);
        for value in other.range.iter().flat_map(|(least, greatest)| [least, greatest]) {
            self.widen(value);
        }
    }

    fn widen(&mut self, value: &Value) {
        match &mut self.range {
            None => self.range = Some((value.clone(), value.clone())),
            Some((least, greatest)) => {
                if value < least {
                    least.clone_from(value);
                } else if value > greatest {
                    greatest.clone_from(value);
                }
            }
        }
    }
}

/// A column, over all row groups.
#[derive(Debug)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) max_definition: i16,
    /// Whether it is a list, with the definition level of an empty one; none where it is not built as lists usually
    /// are.
    pub(super) list: Option<Option<i16>>,
    pub(super) is_text: bool,
    pub(super) pages: Vec<Page>,
    /// A row group's bloom filter.
    pub(super) blooms: Vec<Option<Sbbf>>,
    /// A value that its bloom filter does not have.
    pub(super) missed: Option<(usize, Value)>,
    /// The page that the next value is in, and how many of its values have come.
    pub(super) at: usize,
    pub(super) come: u64,
}

impl Column {
    pub(super) fn take(&mut self, values: &ArrayRef) {
        match values.data_type() {
            DataType::Int64 => self.numbers(values.as_primitive::<Int64Type>().iter()),
            DataType::Timestamp(..) => {
                if let Some(times) = values.as_primitive_opt::<TimestampMicrosecondType>() {
                    self.numbers(times.iter());
                }
            }
            DataType::Utf8 => self.texts(values.as_string::<i32>()),
            DataType::List(_) => self.lists(values.as_list::<i32>()),
            _ => {}
        }
    }

    fn numbers(&mut self, values: impl Iterator<Item = Option<i64>>) {
        values.for_each(|value| self.level(value.map(Value::Number), true, None));
    }

    fn texts(&mut self, texts: &StringArray) {
        for text in texts {
            self.level(text.map(|text| Value::Text(text.as_bytes().to_vec())), true, None);
        }
    }

    fn lists(&mut self, lists: &ListArray) {
        let empty = self.list.flatten().unwrap_or(0);
        for row in 0..lists.len() {
            let items = lists.value(row);
            let items = items.as_string_opt::<i32>().filter(|items| lists.is_valid(row) && !items.is_empty());
            let Some(items) = items else {
                self.level(None, true, Some(if lists.is_null(row) { 0 } else { empty }));
                continue;
            };
            for (at, item) in items.iter().enumerate() {
                self.level(item.map(|item| Value::Text(item.as_bytes().to_vec())), at == 0, None);
            }
        }
    }

    /// The next value: of a new row, or of the list that the one before is in. `definition` is that of a list without
    /// items.
    fn level(&mut self, value: Option<Value>, is_new_row: bool, definition: Option<i16>) {
        while self.pages.get(self.at).is_some_and(|page| self.come >= page.levels) {
            (self.at, self.come) = (self.at + 1, 0);
        }
        let Some(page) = self.pages.get_mut(self.at) else { return };
        self.come += 1;
        let facts = &mut page.facts;
        let missing = definition.unwrap_or(self.max_definition - 1);
        let level = if value.is_some() { self.max_definition } else { missing };
        let counted = usize::try_from(level).ok().and_then(|level| facts.definitions.get_mut(level));
        counted.into_iter().for_each(|count| *count += 1);
        facts.repetitions.get_mut(usize::from(!is_new_row)).into_iter().for_each(|count| *count += 1);
        facts.rows += u64::from(is_new_row);
        let Some(value) = value else {
            facts.nulls += 1;
            return;
        };
        if let Value::Text(text) = &value {
            facts.bytes += text.len() as u64;
        }
        facts.widen(&value);
        if let Some(Some(bloom)) = self.blooms.get(page.group)
            && self.missed.is_none()
        {
            let has = match &value {
                Value::Number(number) => bloom.check(number),
                Value::Text(text) => bloom.check(text.as_slice()),
            };
            self.missed = (!has).then_some((page.group, value));
        }
    }

    /// Whether the page headers announce more values than have come.
    pub(super) fn lacks(&self) -> bool {
        self.pages.iter().skip(self.at).map(|page| page.levels).sum::<u64>() > self.come
    }

    /// Least and greatest value, and nulls.
    pub(super) fn hold_statistics(&self, what: &str, statistics: &Thrift, facts: &Facts) -> Found<()> {
        let fields = statistics.fields().ok_or_else(|| format!("{what} are none"))?;
        known(fields, what, &[1, 2, 3, 5, 6, 7, 8])?;
        if fields.contains_key(&3) {
            equal(&format!("{what}: the number of nulls"), field(fields, 3), facts.nulls)?;
        }
        let exact = |id| field(fields, id).and_then(Thrift::boolean).unwrap_or(false);
        for (least, greatest, least_is_exact, greatest_is_exact) in [(6, 5, exact(8), exact(7)), (2, 1, false, false)] {
            let bound = |id: i16| field(fields, id).map(|bound| bound.bytes().unwrap_or_default());
            self.hold_bound(what, bound(least), facts, true, least_is_exact)?;
            self.hold_bound(what, bound(greatest), facts, false, greatest_is_exact)?;
        }
        Ok(())
    }

    /// A least or greatest value. Texts may be cut, to a bound that is no value; numbers may not.
    fn hold_bound(&self, what: &str, bound: Option<&[u8]>, facts: &Facts, is_least: bool, is_exact: bool) -> Found<()> {
        let Some(bound) = bound else { return Ok(()) };
        let word = if is_least { "least" } else { "greatest" };
        let Some((least, greatest)) = &facts.range else {
            return Err(format!("{what}: there is a {word} value, and all are null"));
        };
        let truth = if is_least { least } else { greatest };
        let told = truth.parse(bound).ok_or_else(|| format!("{what}: the {word} value is none"))?;
        let holds = match () {
            () if is_exact || !self.is_text => told == *truth,
            () if is_least => told <= *truth,
            () => told >= *truth,
        };
        if holds { Ok(()) } else { Err(format!("{what}: the {word} value is {told}, and there is {truth}")) }
    }

    /// Histograms of levels: of a column chunk, or of each page in turn.
    pub(super) fn hold_levels(
        &self,
        repetitions: Option<&Thrift>,
        definitions: Option<&Thrift>,
        facts: &[&Facts],
    ) -> Found<()> {
        let flatten =
            |of: &dyn Fn(&Facts) -> Vec<u64>| -> Vec<u64> { facts.iter().flat_map(|facts| of(facts)).collect() };
        let levels = usize::try_from(self.max_definition).unwrap_or(0) + 1;
        if matches!(self.list, Some(None)) && (repetitions.is_some() || definitions.is_some()) {
            return Err("it has levels of a list that is built unusually".to_owned());
        }
        for (told, truth, what) in [
            (repetitions, flatten(&|facts| facts.repetitions.to_vec()), "repetition"),
            (definitions, flatten(&|facts| facts.definitions.iter().take(levels).copied().collect()), "definition"),
        ] {
            let Some(told) = told.and_then(Thrift::list).filter(|told| !told.is_empty()) else { continue };
            let told: Vec<_> =
                told.iter().map(|count| count.int().and_then(|count| u64::try_from(count).ok())).collect();
            let is_flat = what == "repetition" && self.list.is_none();
            let holds = if is_flat {
                told.iter().copied().map(|count| count.unwrap_or(u64::MAX)).eq(facts.iter().map(|facts| facts.rows))
            } else {
                told.iter().copied().eq(truth.iter().copied().map(Some))
            };
            if !holds {
                return Err(format!("the histogram of {what} levels is not that of the rows"));
            }
        }
        Ok(())
    }

    pub(super) fn hold_offsets(&self, index: &Fields, pages: &[&Page]) -> Found<()> {
        known(index, "the offset index", &[1, 2])?;
        let told = structs(index, 1, "the offset index")?;
        if told.len() != pages.len() {
            return Err(format!("the offset index has {} pages, and there are {}", told.len(), pages.len()));
        }
        let mut rows = 0;
        for (told, page) in told.into_iter().zip(pages) {
            known(told, "the offset index", &[1, 2, 3])?;
            equal("the offset index: a page's place", field(told, 1), page.offset)?;
            equal("the offset index: a page's length", field(told, 2), page.length)?;
            equal("the offset index: a page's first row", field(told, 3), rows)?;
            // A page that goes on with the list of the one before begins with the next row, by the specification.
            rows += page.facts.rows;
        }
        if let Some(bytes) = field(index, 2).and_then(Thrift::list) {
            let told = bytes.iter().map(Thrift::int);
            if !told.eq(pages.iter().map(|page| i64::try_from(page.facts.bytes).ok())) {
                return Err("the offset index: the bytes of texts are not those of the pages".to_owned());
            }
        }
        Ok(())
    }

    pub(super) fn hold_column_index(&self, index: &Fields, pages: &[&Page]) -> Found<()> {
        known(index, "the column index", &[1, 2, 3, 4, 5, 6, 7])?;
        let list = |id| {
            let list = field(index, id).and_then(Thrift::list).filter(|list| list.len() == pages.len());
            list.ok_or("the column index does not tell of each page")
        };
        let (nulls, least, greatest) = (list(1)?, list(2)?, list(3)?);
        let counts = if index.contains_key(&5) { Some(list(5)?) } else { None };
        let mut told = Vec::new();
        for (at, page) in pages.iter().enumerate() {
            let is_null = nulls.get(at).and_then(Thrift::boolean);
            if is_null != Some(page.facts.range.is_none()) {
                return Err("the column index: a page has other nulls".to_owned());
            }
            if let Some(counts) = counts {
                equal("the column index: a page's nulls", counts.get(at), page.facts.nulls)?;
            }
            let Some((truth, _)) = &page.facts.range else { continue };
            let bound = |list: &[Thrift]| list.get(at).and_then(Thrift::bytes).map(<[u8]>::to_vec).unwrap_or_default();
            let (least, greatest) = (bound(least), bound(greatest));
            self.hold_bound("the column index", Some(&least), &page.facts, true, false)?;
            self.hold_bound("the column index", Some(&greatest), &page.facts, false, false)?;
            told.extend(truth.parse(&least).zip(truth.parse(&greatest)));
        }
        let rises = told.is_sorted_by(|a, b| a.0 <= b.0 && a.1 <= b.1);
        let falls = told.is_sorted_by(|a, b| a.0 >= b.0 && a.1 >= b.1);
        match field(index, 4).and_then(Thrift::int) {
            Some(0) => {}
            Some(1) if rises => {}
            Some(2) if falls => {}
            _ => return Err("the column index: the pages are in another order".to_owned()),
        }
        let facts: Vec<&Facts> = pages.iter().map(|page| &page.facts).collect();
        self.hold_levels(field(index, 6), field(index, 7), &facts)
    }
}
