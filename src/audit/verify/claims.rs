//! What a segment's file says about its rows beside the rows: column statistics, page indexes, page headers, bloom filters, counts.
//!
//! Query engines skip rows by these, so a false one hides entries whose hashes are all right: a greatest `actor` that is less than
//! the true one makes `WHERE actor = …` find nothing. New segments say none of it; those of the first design, and what other
//! programs wrote, may. Each such statement is held against the rows that were decoded. One that is false, that nothing here
//! understands, or that cannot be compared is a fault.
//!
//! | checked | against |
//! |---|---|
//! | rows of the file, rows of a row group, values of a column chunk | page headers, rows |
//! | encodings, offsets, lengths of a column chunk | page headers |
//! | least, greatest, nulls of a chunk, a page (header and column index) | rows |
//! | histograms of levels, bytes of strings | rows |
//! | offset index: place, length, first row of each page | page headers, rows |
//! | bloom filter: every value is in it | rows |
//! | sort order, distinct values, paths to other files, encryption, fields without a known meaning | refused |
//!
//! Left aside, since they say nothing of rows: `created_by`, uncompressed sizes, offsets and ordinals of row groups and column chunks that
//! Parquet has twice, checksums of pages, column orders, names within the schema other than the columns', types of older versions beside the
//! newer ones, metadata under other keys than `mcpg.v` and `mcpg.origin`, and bytes that no page and no index is at.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::Read;

use arrow::array::{Array, ArrayRef, AsArray, ListArray, StringArray};
use arrow::datatypes::{DataType, Int64Type, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use parquet::bloom_filter::Sbbf;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::ChunkReader;

use super::rows::path;
use super::source::Blob;
use super::thrift::{Fields, Thrift, read};
use super::{Fault, Kind};
use crate::audit::segment::SegmentName;

/// The length of a footer and the magic number after it.
const TAIL: u64 = 8;
/// Kinds of pages.
const DATA: i64 = 0;
const DICTIONARY: i64 = 2;
const DATA_V2: i64 = 3;
/// Encodings of levels.
const RLE: i64 = 3;
const BIT_PACKED: i64 = 4;
/// The most bytes of a page header.
const MAX_PAGE_HEADER: u64 = 1 << 20;
/// The most bytes of a page index of one column chunk.
const MAX_INDEX: u64 = 64 << 20;

/// A value in the order that statistics are of: numbers by their value, texts by their bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Value {
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
struct Facts {
    rows: u64,
    nulls: u64,
    /// Bytes of texts.
    bytes: u64,
    range: Option<(Value, Value)>,
    /// How often each definition level occurs, and each repetition level.
    definitions: [u64; 4],
    repetitions: [u64; 2],
}

impl Facts {
    fn add(&mut self, other: &Self) {
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

/// A data page, as its header tells of it.
#[derive(Debug)]
struct Page {
    group: usize,
    offset: u64,
    /// Bytes, its header among them.
    length: u64,
    /// Values, nulls and empty lists among them.
    levels: u64,
    /// Of a page of version 2: nulls and rows.
    counts: Option<(i64, i64)>,
    statistics: Option<Fields>,
    facts: Facts,
}

/// A column, over all row groups.
#[derive(Debug)]
struct Column {
    name: String,
    max_definition: i16,
    /// Whether it is a list, with the definition level of an empty one; none where it is not built as lists usually are.
    list: Option<Option<i16>>,
    is_text: bool,
    pages: Vec<Page>,
    /// A row group's bloom filter.
    blooms: Vec<Option<Sbbf>>,
    /// A value that its bloom filter does not have.
    missed: Option<(usize, Value)>,
    /// The page that the next value is in, and how many of its values have come.
    at: usize,
    come: u64,
}

/// A fault in words; the file and the entry are added at the end.
type Found<T> = Result<T, String>;

/// See the module's doc.
#[derive(Debug)]
pub(super) struct Claims {
    name: SegmentName,
    blob: Blob,
    footer: Fields,
    columns: Vec<Column>,
    /// Whether something is said that only the rows can confirm.
    needs_rows: bool,
    rows: u64,
}

impl Claims {
    /// What the file says, of which nothing is believed yet. `metadata` is the footer as the rows are decoded by.
    pub(super) fn open(name: SegmentName, blob: Blob, metadata: &ParquetMetaData) -> Result<Self, Fault> {
        Self::read(name, blob, metadata).map_err(|why| fault(name, why))
    }

    fn read(name: SegmentName, blob: Blob, metadata: &ParquetMetaData) -> Found<Self> {
        let footer = footer(&blob)?;
        known(&footer, "the footer", &[1, 2, 3, 4, 5, 6, 7])?;
        let mut columns: Vec<Column> = Vec::new();
        let schema = metadata.file_metadata().schema_descr();
        for leaf in schema.columns() {
            let parts = leaf.path().parts();
            let list =
                (leaf.max_rep_level() > 0).then(|| {
                    let is_optional =
                        i16::from(schema.root_schema().get_fields().iter().any(|field| {
                            Some(field.name()) == parts.first().map(String::as_str) && field.is_optional()
                        }));
                    let usual = leaf.max_rep_level() == 1 && parts.len() == 3;
                    // Lists of three levels: the list may be null, it may be empty, an item may be null.
                    (usual && (1..=2).contains(&(leaf.max_def_level() - is_optional))).then_some(is_optional)
                });
            columns.push(Column {
                name: parts.first().cloned().unwrap_or_default(),
                max_definition: leaf.max_def_level(),
                list,
                is_text: leaf.physical_type() == parquet::basic::Type::BYTE_ARRAY,
                pages: Vec::new(),
                blooms: Vec::new(),
                missed: None,
                at: 0,
                come: 0,
            });
        }
        let mut claims = Self { name, blob, footer, columns, needs_rows: false, rows: 0 };
        claims.look(metadata)?;
        Ok(claims)
    }

    /// Walks through all pages, and finds out whether there is something to hold against rows.
    fn look(&mut self, metadata: &ParquetMetaData) -> Found<()> {
        for (group, fields) in structs(&self.footer, 4, "the row groups")?.into_iter().enumerate() {
            known(fields, "a row group", &[1, 2, 3, 5, 6, 7])?;
            let chunks = structs(fields, 1, "the column chunks")?;
            if chunks.len() != self.columns.len() {
                return Err(format!("row group {group} has {} columns, not {}", chunks.len(), self.columns.len()));
            }
            for (at, (chunk, column)) in chunks.into_iter().zip(&mut self.columns).enumerate() {
                known(chunk, &column.name, &[2, 3, 4, 5, 6, 7])?;
                let chunk_metadata =
                    field(chunk, 3).and_then(Thrift::fields).ok_or("a column chunk has no metadata")?;
                known(chunk_metadata, &column.name, &[1, 2, 3, 4, 5, 6, 7, 9, 11, 12, 13, 14, 15, 16])?;
                walk(&self.blob, group, chunk_metadata, &mut column.pages)
                    .map_err(|why| format!("column {}, row group {group}: {why}", column.name))?;
                let bloom = match chunk_metadata.contains_key(&14) {
                    true => {
                        let decoded = metadata.row_group(group).column(at);
                        Some(Sbbf::read_from_column_chunk(decoded, &self.blob).ok().flatten().ok_or_else(|| {
                            format!("column {}, row group {group}: its bloom filter cannot be read", column.name)
                        })?)
                    }
                    false => None,
                };
                self.needs_rows |= bloom.is_some() || [12, 16].iter().any(|id| chunk_metadata.contains_key(id));
                self.needs_rows |= [4, 6].iter().any(|id| chunk.contains_key(id));
                column.blooms.push(bloom);
            }
        }
        let in_headers = |page: &Page| page.statistics.is_some() || page.counts.is_some();
        self.needs_rows |= self.columns.iter().any(|column| column.pages.iter().any(in_headers));
        Ok(())
    }

    /// Takes the next rows of the file.
    pub(super) fn take(&mut self, batch: &RecordBatch) {
        self.rows += batch.num_rows() as u64;
        if !self.needs_rows {
            return;
        }
        for column in &mut self.columns {
            let Some(values) = batch.column_by_name(&column.name) else { continue };
            column.take(values);
        }
    }

    /// Holds what the file says against the rows, all of which have been taken.
    pub(super) fn judge(self) -> Result<(), Fault> {
        self.hold().map_err(|why| fault(self.name, why))
    }

    fn hold(&self) -> Found<()> {
        equal("the footer's number of rows", field(&self.footer, 3), self.rows)?;
        let mut before = 0;
        for (group, fields) in structs(&self.footer, 4, "the row groups")?.into_iter().enumerate() {
            let rows = field(fields, 3).and_then(Thrift::int).and_then(|rows| u64::try_from(rows).ok());
            let rows = rows.ok_or_else(|| format!("row group {group} has no number of rows"))?;
            for (chunk, column) in structs(fields, 1, "the column chunks")?.into_iter().zip(&self.columns) {
                let told = |why: String| format!("column {}, row group {group}: {why}", column.name);
                self.hold_chunk(group, rows, chunk, column).map_err(told)?;
            }
            before += rows;
        }
        equal("the row groups' number of rows", Some(&Thrift::Int(i64::try_from(before).unwrap_or(-1))), self.rows)
    }

    fn hold_chunk(&self, group: usize, rows: u64, chunk: &Fields, column: &Column) -> Found<()> {
        let pages: Vec<&Page> = column.pages.iter().filter(|page| page.group == group).collect();
        let levels: u64 = pages.iter().map(|page| page.levels).sum();
        let metadata = field(chunk, 3).and_then(Thrift::fields).ok_or("it has no metadata")?;
        equal("the number of values", field(metadata, 5), levels)?;
        if column.list.is_none() && levels != rows {
            return Err(format!("the row group has {rows} rows, and its pages {levels}"));
        }
        if !self.needs_rows {
            return Ok(());
        }
        if column.lacks() {
            return Err("the page headers tell of more values than there are rows".to_owned());
        }
        if let Some((at, value)) = &column.missed
            && *at == group
        {
            return Err(format!("its bloom filter does not have {value}, which is there"));
        }
        let mut facts = Facts::default();
        pages.iter().for_each(|page| facts.add(&page.facts));
        if facts.rows != rows {
            return Err(format!("the row group says {rows} rows, and there are {}", facts.rows));
        }
        if let Some(statistics) = field(metadata, 12) {
            column.hold_statistics("the statistics", statistics, &facts)?;
        }
        if let Some(sizes) = field(metadata, 16) {
            let sizes = sizes.fields().ok_or("its size statistics are none")?;
            known(sizes, "the size statistics", &[1, 2, 3])?;
            if sizes.contains_key(&1) {
                equal("the bytes of its texts", field(sizes, 1), facts.bytes)?;
            }
            column.hold_levels(field(sizes, 2), field(sizes, 3), &[&facts])?;
        }
        for page in &pages {
            if let Some(statistics) = &page.statistics {
                column.hold_statistics("a page header", &Thrift::Struct(statistics.clone()), &page.facts)?;
            }
            if let Some((nulls, rows)) = page.counts {
                equal("a page header's number of nulls", Some(&Thrift::Int(nulls)), page.facts.nulls)?;
                equal("a page header's number of rows", Some(&Thrift::Int(rows)), page.facts.rows)?;
            }
        }
        if let Some(index) = self.index(chunk, 4, 5, "the offset index")? {
            column.hold_offsets(&index, &pages)?;
        }
        if let Some(index) = self.index(chunk, 6, 7, "the column index")? {
            column.hold_column_index(&index, &pages)?;
        }
        Ok(())
    }

    /// Reads an index of pages.
    fn index(&self, chunk: &Fields, offset: i16, length: i16, what: &str) -> Found<Option<Fields>> {
        let number = |id| field(chunk, id).and_then(Thrift::int).and_then(|number| u64::try_from(number).ok());
        let (offset, length) = match (number(offset), number(length)) {
            (None, None) if !chunk.contains_key(&offset) && !chunk.contains_key(&length) => return Ok(None),
            (Some(offset), Some(length)) if length <= MAX_INDEX => (offset, length),
            _ => return Err(format!("{what} has no place")),
        };
        let bytes = usize::try_from(length).ok().and_then(|length| self.blob.get_bytes(offset, length).ok());
        let bytes = bytes.ok_or_else(|| format!("{what} reaches beyond the file's end"))?;
        let read = read(&bytes).filter(|(_, taken)| *taken == bytes.len());
        read.map(|(fields, _)| Some(fields)).ok_or_else(|| format!("{what} cannot be read"))
    }
}

fn fault(name: SegmentName, why: String) -> Fault {
    Fault { kind: Kind::FalseStatistics, seq: Some(name.first), file: path(name), why }
}

impl Column {
    fn take(&mut self, values: &ArrayRef) {
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

    /// The next value: of a new row, or of the list that the one before is in. `definition` is that of a list without items.
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

    /// Whether the page headers tell of more values than have come.
    fn lacks(&self) -> bool {
        self.pages.iter().skip(self.at).map(|page| page.levels).sum::<u64>() > self.come
    }

    /// Least and greatest value, and nulls.
    fn hold_statistics(&self, what: &str, statistics: &Thrift, facts: &Facts) -> Found<()> {
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
    fn hold_levels(&self, repetitions: Option<&Thrift>, definitions: Option<&Thrift>, facts: &[&Facts]) -> Found<()> {
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

    fn hold_offsets(&self, index: &Fields, pages: &[&Page]) -> Found<()> {
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

    fn hold_column_index(&self, index: &Fields, pages: &[&Page]) -> Found<()> {
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

fn field(fields: &Fields, id: i16) -> Option<&Thrift> {
    fields.get(&id)
}

fn equal(what: &str, told: Option<&Thrift>, truth: u64) -> Found<()> {
    match told.and_then(Thrift::int) {
        Some(told) if u64::try_from(told) == Ok(truth) => Ok(()),
        Some(told) => Err(format!("{what} is {told}, and there are {truth}")),
        None => Err(format!("{what} is not there")),
    }
}

/// Whether a struct has no fields but these. What else it says, nothing here can hold against the rows.
fn known(fields: &Fields, what: &str, ids: &[i16]) -> Found<()> {
    match fields.keys().find(|id| !ids.contains(id)) {
        Some(id) => Err(format!("{what}: field {id} says what cannot be held against the rows")),
        None => Ok(()),
    }
}

fn structs<'a>(fields: &'a Fields, id: i16, what: &str) -> Found<Vec<&'a Fields>> {
    let list = field(fields, id).and_then(Thrift::list);
    let structs = list.and_then(|list| list.iter().map(Thrift::fields).collect());
    structs.ok_or_else(|| format!("{what} are not there"))
}

/// The footer of the file, all of it.
fn footer(blob: &Blob) -> Found<Fields> {
    let cannot = || "the footer cannot be read".to_owned();
    let tail =
        blob.length().checked_sub(TAIL).and_then(|at| blob.get_bytes(at, TAIL as usize).ok()).ok_or_else(cannot)?;
    let length = tail.first_chunk().copied().map(u32::from_le_bytes).ok_or_else(cannot)?;
    let start = blob.length().checked_sub(TAIL + u64::from(length)).ok_or_else(cannot)?;
    let bytes = blob.get_bytes(start, length as usize).map_err(|_| cannot())?;
    read(&bytes).filter(|(_, taken)| *taken == bytes.len()).map(|(fields, _)| fields).ok_or_else(cannot)
}

/// Reads the headers of a column chunk's pages.
fn walk(blob: &Blob, group: usize, metadata: &Fields, pages: &mut Vec<Page>) -> Found<()> {
    let number = |id| field(metadata, id).and_then(Thrift::int).and_then(|number| u64::try_from(number).ok());
    let (data, dictionary) = (number(9).ok_or("it has no data")?, number(11));
    if metadata.contains_key(&11) && dictionary.is_none_or(|dictionary| dictionary >= data) {
        return Err("its dictionary has no place before its data".to_owned());
    }
    let start = dictionary.unwrap_or(data);
    let length = number(7).ok_or("it has no length")?;
    let end =
        start.checked_add(length).filter(|end| *end <= blob.length()).ok_or("it reaches beyond the file's end")?;
    let encodings = field(metadata, 2).and_then(Thrift::list).unwrap_or_default();
    let (mut at, mut is_first, mut counted) = (start, true, BTreeMap::<(i64, i64), i64>::new());
    let mut first_data = None;
    while at < end {
        let (header, taken) = page_header(blob, at, end)?;
        known(&header, "a page header", &[1, 2, 3, 4, 5, 7, 8])?;
        let compressed = field(&header, 3).and_then(Thrift::int).and_then(|size| u64::try_from(size).ok());
        let next = compressed.and_then(|size| (at + taken).checked_add(size)).filter(|next| *next <= end);
        let next = next.ok_or("a page reaches beyond its end")?;
        let kind = field(&header, 1).and_then(Thrift::int).unwrap_or(-1);
        let of = |id: i16, ids: &[i16]| {
            let fields =
                field(&header, id).and_then(Thrift::fields).ok_or("a page header has not what its kind needs")?;
            known(fields, "a page header", ids)?;
            Ok::<_, String>(fields)
        };
        let encoding = match kind {
            DATA | DATA_V2 => {
                let (fields, encoding, counts, statistics) = if kind == DATA {
                    let fields = of(5, &[1, 2, 3, 4, 5])?;
                    (fields, field(fields, 2), None, field(fields, 5))
                } else {
                    let fields = of(8, &[1, 2, 3, 4, 5, 6, 7, 8])?;
                    let count = |id| field(fields, id).and_then(Thrift::int).unwrap_or(-1);
                    (fields, field(fields, 4), Some((count(2), count(3))), field(fields, 8))
                };
                let levels = field(fields, 1).and_then(Thrift::int).and_then(|count| u64::try_from(count).ok());
                let levels = levels.ok_or("a page has no number of values")?;
                let statistics = statistics.and_then(Thrift::fields).cloned();
                let (offset, length, facts) = (at, next - at, Facts::default());
                pages.push(Page { group, offset, length, levels, counts, statistics, facts });
                first_data.get_or_insert(at);
                encoding
            }
            DICTIONARY if is_first && dictionary.is_some() => field(of(7, &[1, 2, 3])?, 2),
            _ => return Err("a page of a kind that has no place here".to_owned()),
        };
        let encoding = encoding.and_then(Thrift::int).ok_or("a page has no encoding")?;
        if !encodings.contains(&Thrift::Int(encoding)) {
            return Err(format!("a page has the encoding {encoding}, which its metadata does not name"));
        }
        *counted.entry((kind_of(kind), encoding)).or_default() += 1;
        (at, is_first) = (next, false);
    }
    // Levels are in RLE, or in version 1's bit-packed form, and no page header counts them.
    let of_levels = [Thrift::Int(RLE), Thrift::Int(BIT_PACKED)];
    let is_used = |encoding: &Thrift| counted.keys().any(|(_, used)| *encoding == Thrift::Int(*used));
    if encodings.iter().any(|encoding| !of_levels.contains(encoding) && !is_used(encoding)) {
        return Err("its metadata names an encoding that none of its pages has".to_owned());
    }
    if first_data != Some(data) {
        return Err("its data does not begin where it says".to_owned());
    }
    if let Some(told) = field(metadata, 13) {
        let mut sums = BTreeMap::<(i64, i64), i64>::new();
        for stats in told.list().unwrap_or_default() {
            let number = |id| stats.fields().filter(|fields| fields.len() == 3)?.get(&id)?.int();
            let one = number(1).zip(number(2)).zip(number(3));
            let ((kind, encoding), count) = one.ok_or("its pages' encodings cannot be read")?;
            let sum = sums.entry((kind_of(kind), encoding)).or_default();
            *sum = sum.saturating_add(count);
        }
        if sums != counted {
            return Err("its pages have other encodings than it says".to_owned());
        }
    }
    Ok(())
}

/// The kind of a page, where both versions of data pages are one: some writers count those of version 2 as of version 1.
fn kind_of(kind: i64) -> i64 {
    if kind == DATA_V2 { DATA } else { kind }
}

/// Reads the page header at `at`; gives its length too. Most are short, so little is read at first.
fn page_header(blob: &Blob, at: u64, end: u64) -> Found<(Fields, u64)> {
    let mut most = 256;
    loop {
        let mut bytes = Vec::new();
        let read_bytes = blob.get_read(at).map(|reader| reader.take(most.min(end - at)).read_to_end(&mut bytes));
        if !matches!(read_bytes, Ok(Ok(_))) {
            return Err("a page header cannot be read".to_owned());
        }
        if let Some((header, taken)) = read(&bytes) {
            return Ok((header, taken as u64));
        }
        if most >= MAX_PAGE_HEADER || most >= end - at {
            return Err("a page header cannot be read".to_owned());
        }
        most *= 64;
    }
}
