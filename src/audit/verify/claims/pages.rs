//! The headers of a column chunk's pages, which its metadata must agree with.

use std::collections::BTreeMap;
use std::io::Read;

use parquet::file::reader::ChunkReader;

use super::super::source::Blob;
use super::super::thrift::{Fields, Thrift, read};
use super::column::Facts;
use super::{Found, field, known};

/// Kinds of pages.
const DATA: i64 = 0;
const DICTIONARY: i64 = 2;
const DATA_V2: i64 = 3;
/// Encodings of levels.
const RLE: i64 = 3;
const BIT_PACKED: i64 = 4;
/// The most bytes of a page header.
const MAX_PAGE_HEADER: u64 = 1 << 20;

/// A data page, as its header describes it.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) group: usize,
    pub(super) offset: u64,
    /// Bytes, its header among them.
    pub(super) length: u64,
    /// Values, nulls and empty lists among them.
    pub(super) levels: u64,
    /// Of a page of version 2: nulls and rows.
    pub(super) counts: Option<(i64, i64)>,
    pub(super) statistics: Option<Fields>,
    pub(super) facts: Facts,
}

/// Reads the headers of a column chunk's pages.
pub(super) fn walk(blob: &Blob, group: usize, metadata: &Fields, pages: &mut Vec<Page>) -> Found<()> {
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

/// The kind of a page, where both versions of data pages are one: some writers count those of version 2 as of version
/// 1.
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
