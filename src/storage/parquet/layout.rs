//! How a table's columns are laid out in a Parquet file, and in which order its rows are.
//!
//! Chosen by measurement: zstd 1; times and counts as DELTA_BINARY_PACKED; no dictionary for ids and durations, which
//! hardly repeat; ids of calls as DELTA_BYTE_ARRAY, since those of one moment begin alike, and the other ids as
//! DELTA_LENGTH_BYTE_ARRAY, which packs better than lengths among the digits; dictionaries for the rest. No bounds are
//! kept of ids but those of calls.
//!
//! Samples are in order of plugin, tool and time: most queries are for a tool, and columns whose neighbours are alike
//! pack better. Rollups are in order of window, plugin, tool and workspace, so that the partial rows of one series lie
//! side by side. A file says its order in its footer (`sorting_columns`); one of an older version says none, and is in
//! order of arrival.

use arrow::datatypes::{DataType, Schema};
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::metadata::SortingColumn;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use super::super::StorageError;

/// Rows of a row group of a flush's file: a unit of parallel reading and of pruning.
pub const ROW_GROUP_ROWS: usize = 262_144;
/// Rows of a row group of a merged file. Smaller, since merging reads one row group of each of its inputs at a time.
pub const MERGED_ROW_GROUP_ROWS: usize = 98_304;
/// Bytes of one, where its rows are so wide, as those of sealed payloads are, that fewer rows come to as much.
pub const MERGED_ROW_GROUP_BYTES: usize = 16 << 20;
/// How often a bloom filter says that a value may be there when it is not: about 10 bits a value.
const BLOOM_FPP: f64 = 0.01;
/// The order of the rows of samples.
const SAMPLES_ORDER: [&str; 3] = ["plugin", "tool", "started_at"];
/// The order of the rows of rollups: all columns but the org that make a row the one of its series.
const ROLLUP_ORDER: [&str; 4] = ["window_start", "plugin", "tool", "workspace"];
/// The order of the rows of sealed payloads: each is looked for by its call.
const PAYLOADS_ORDER: [&str; 3] = ["invocation_id", "direction", "record_hash"];
/// Ids that single calls are looked for by.
const SOUGHT_IDS: [&str; 4] = ["invocation_id", "request_id", "session_id", "trace_id"];

/// What a file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// It is written by a flush, and will soon be merged.
    Flushed,
    /// It is the result of a merge that will be merged again.
    Merged,
    /// It is likely to stay for as long as its rows are kept: it has bloom filters of ids.
    Kept,
}

/// The columns that the rows of a table are in order of, ascending; none for a table of neither kind.
pub(super) fn order(schema: &Schema) -> &'static [&'static str] {
    let has = |columns: &[&str]| columns.iter().all(|column| schema.column_with_name(column).is_some());
    if has(&PAYLOADS_ORDER) {
        &PAYLOADS_ORDER
    } else if has(&SAMPLES_ORDER) {
        &SAMPLES_ORDER
    } else if has(&ROLLUP_ORDER) {
        &ROLLUP_ORDER
    } else {
        &[]
    }
}

/// Whether the rows of a table are partial: those that are alike in `order` may be folded into one.
pub fn is_partial(schema: &Schema) -> bool {
    order(schema) == ROLLUP_ORDER
}

/// How the stored columns of a table are laid out in Parquet.
///
/// # Errors
/// Never in practice: the compression level is a constant that Parquet takes.
pub fn properties(schema: &Schema, purpose: Purpose) -> Result<WriterProperties, StorageError> {
    let zstd = ZstdLevel::try_new(1).map_err(|e| StorageError::failed("encode", "a Parquet file", e))?;
    let group = if purpose == Purpose::Flushed { ROW_GROUP_ROWS } else { MERGED_ROW_GROUP_ROWS };
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(zstd))
        .set_max_row_group_row_count(Some(group))
        .set_sorting_columns(sorting(schema))
        .set_statistics_enabled(EnabledStatistics::Page);
    if purpose != Purpose::Flushed {
        properties = properties.set_max_row_group_bytes(Some(MERGED_ROW_GROUP_BYTES));
    }
    for field in schema.fields() {
        let column = ColumnPath::from(field.name().as_str());
        properties = match field.data_type() {
            DataType::Timestamp(..) | DataType::Int64 => properties
                .set_column_dictionary_enabled(column.clone(), false)
                .set_column_encoding(column, Encoding::DELTA_BINARY_PACKED),
            DataType::Float64 | DataType::Binary => properties.set_column_dictionary_enabled(column, false),
            DataType::Utf8 if field.name() == "invocation_id" => properties
                .set_column_dictionary_enabled(column.clone(), false)
                .set_column_encoding(column, Encoding::DELTA_BYTE_ARRAY),
            DataType::Utf8 if hardly_repeats(field.name()) => properties
                .set_column_dictionary_enabled(column.clone(), false)
                .set_column_encoding(column.clone(), Encoding::DELTA_LENGTH_BYTE_ARRAY)
                .set_column_statistics_enabled(column, EnabledStatistics::None),
            _ => properties,
        };
        let column = || ColumnPath::from(field.name().as_str());
        properties = match field.name().as_str() {
            // Neither compresses, and their bounds would be copies of them. An envelope is that of thousands of rows.
            "record" => properties
                .set_column_compression(column(), Compression::UNCOMPRESSED)
                .set_column_statistics_enabled(column(), EnabledStatistics::None),
            "envelope" => properties
                .set_column_compression(column(), Compression::UNCOMPRESSED)
                .set_column_dictionary_enabled(column(), true)
                .set_column_statistics_enabled(column(), EnabledStatistics::None),
            _ => properties,
        };
        let is_payload = order(schema) == PAYLOADS_ORDER && field.name() == "invocation_id";
        if is_payload || purpose == Purpose::Kept && SOUGHT_IDS.contains(&field.name().as_str()) {
            let column = ColumnPath::from(field.name().as_str());
            properties = properties
                .set_column_bloom_filter_enabled(column.clone(), true)
                .set_column_bloom_filter_fpp(column.clone(), BLOOM_FPP)
                .set_column_bloom_filter_max_ndv(column, group as u64);
        }
    }
    Ok(properties.build())
}

/// The order as Parquet's footer has it; none if the table has none.
fn sorting(schema: &Schema) -> Option<Vec<SortingColumn>> {
    let columns = order(schema).iter().filter_map(|column| schema.column_with_name(column));
    let columns = columns.filter_map(|(index, _)| i32::try_from(index).ok());
    let columns: Vec<_> =
        columns.map(|column_idx| SortingColumn { column_idx, descending: false, nulls_first: true }).collect();
    Some(columns).filter(|columns| !columns.is_empty())
}

/// Whether nearly every row has another value: a dictionary would be built and thrown away.
pub(super) fn hardly_repeats(column: &str) -> bool {
    matches!(column, "invocation_id" | "request_id" | "trace_id" | "span_id")
}
