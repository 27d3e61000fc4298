//! `information_schema`: what a query can name and call, and nothing of the server.
//!
//! The tables `tables`, `columns`, `schemata`, `views` and `routines`, with the columns of the SQL standard that mean
//! something here. They are the same for every org.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, StringArray};
use arrow::datatypes::{Field, Schema};
use arrow::record_batch::RecordBatch;
use datafusion::common::{DataFusionError, Result};
use datafusion::datasource::MemTable;
use datafusion::logical_expr::Documentation;

use crate::model::schema::{
    AUDIT_LOG, PARTITION_COLUMN, TOOL_INVOCATION_PAYLOADS, TOOL_INVOCATIONS, TOOL_USAGE_DAILY, TOOL_USAGE_HOURLY,
    schemas,
};

use super::catalog::{CATALOG, INFORMATION_SCHEMA, PUBLIC, Tables};
use super::functions::Functions;
use super::types;

const TABLES: [&str; 5] = ["columns", "routines", "schemata", "tables", "views"];

/// The tables of the information schema.
pub(super) fn tables(functions: &Functions) -> Result<Tables> {
    let mut tables = Tables::new();
    for (name, batch) in [
        ("schemata", schemata()?),
        ("tables", table_list()?),
        ("columns", columns()?),
        ("views", views()?),
        ("routines", routines(functions)?),
    ] {
        tables.insert(name.to_owned(), Arc::new(MemTable::try_new(batch.schema(), vec![vec![batch]])?));
    }
    Ok(tables)
}

fn batch<const N: usize>(columns: [(&str, ArrayRef); N]) -> Result<RecordBatch> {
    let fields = columns.iter().map(|(name, array)| Field::new(*name, array.data_type().clone(), true));
    let schema = Schema::new(fields.collect::<Vec<_>>());
    let arrays = columns.into_iter().map(|(_, array)| array).collect();
    Ok(RecordBatch::try_new(Arc::new(schema), arrays)?)
}

fn text<S: AsRef<str>>(values: impl IntoIterator<Item = S>) -> ArrayRef {
    Arc::new(values.into_iter().map(|value| Some(value.as_ref().to_owned())).collect::<StringArray>())
}

fn same(value: &str, rows: usize) -> ArrayRef {
    text(std::iter::repeat_n(value, rows))
}

fn schemata() -> Result<RecordBatch> {
    batch([("catalog_name", same(CATALOG, 2)), ("schema_name", text([INFORMATION_SCHEMA, PUBLIC]))])
}

fn table_list() -> Result<RecordBatch> {
    let public = [
        (AUDIT_LOG, "BASE TABLE"),
        (TOOL_INVOCATION_PAYLOADS, "BASE TABLE"),
        (TOOL_INVOCATIONS, "BASE TABLE"),
        (TOOL_USAGE_DAILY, "VIEW"),
        (TOOL_USAGE_HOURLY, "VIEW"),
    ];
    let rows = TABLES.iter().map(|name| (INFORMATION_SCHEMA, *name, "VIEW"));
    let rows: Vec<_> = rows.chain(public.map(|(name, kind)| (PUBLIC, name, kind))).collect();
    batch([
        ("table_catalog", same(CATALOG, rows.len())),
        ("table_schema", text(rows.iter().map(|(schema, _, _)| schema))),
        ("table_name", text(rows.iter().map(|(_, name, _)| name))),
        ("table_type", text(rows.iter().map(|(_, _, kind)| kind))),
    ])
}

fn views() -> Result<RecordBatch> {
    let names = [TOOL_USAGE_DAILY, TOOL_USAGE_HOURLY];
    batch([
        ("table_catalog", same(CATALOG, names.len())),
        ("table_schema", same(PUBLIC, names.len())),
        ("table_name", text(names)),
    ])
}

/// The columns of the org's tables. A rollup as it is queried has no partition column: its parts are merged, whatever
/// file they are in.
fn columns() -> Result<RecordBatch> {
    let schemas = schemas().map_err(|error| DataFusionError::External(Box::new(error)))?;
    let all = [
        (AUDIT_LOG, &schemas.audit_log, true),
        (TOOL_INVOCATION_PAYLOADS, &schemas.payloads_in_sql, true),
        (TOOL_INVOCATIONS, &schemas.tool_invocations, true),
        (TOOL_USAGE_DAILY, &schemas.tool_usage_daily, false),
        (TOOL_USAGE_HOURLY, &schemas.tool_usage_hourly, false),
    ];
    let rows: Vec<_> = all
        .into_iter()
        .flat_map(|(table, schema, partitioned)| {
            let shown = schema.fields().iter().filter(move |field| partitioned || field.name() != PARTITION_COLUMN);
            shown.zip(1..).map(move |(field, position)| (table, field, position))
        })
        .collect();
    let nullable = |nullable: bool| if nullable { "YES" } else { "NO" };
    batch([
        ("table_catalog", same(CATALOG, rows.len())),
        ("table_schema", same(PUBLIC, rows.len())),
        ("table_name", text(rows.iter().map(|(table, _, _)| table))),
        ("column_name", text(rows.iter().map(|(_, field, _)| field.name()))),
        ("ordinal_position", Arc::new(Int64Array::from_iter_values(rows.iter().map(|(_, _, position)| *position)))),
        ("is_nullable", text(rows.iter().map(|(_, field, _)| nullable(field.is_nullable())))),
        ("data_type", text(rows.iter().map(|(_, field, _)| types::name(field.data_type())))),
    ])
}

fn routines(functions: &Functions) -> Result<RecordBatch> {
    let scalars = functions.scalars.iter().map(|function| (function.name(), "SCALAR", function.documentation()));
    let aggregates =
        functions.aggregates.iter().map(|function| (function.name(), "AGGREGATE", function.documentation()));
    let windows = functions.windows.iter().map(|function| (function.name(), "WINDOW", function.documentation()));
    let tables = functions.tables.iter().map(|function| (function.name(), "TABLE", None));
    let mut rows: Vec<_> = scalars.chain(aggregates).chain(windows).chain(tables).collect();
    rows.sort_by_key(|(name, kind, _)| (*name, *kind));
    let told = |tell: fn(&Documentation) -> &str| -> ArrayRef {
        Arc::new(rows.iter().map(|(_, _, documentation)| documentation.map(tell)).collect::<StringArray>())
    };
    batch([
        ("routine_catalog", same(CATALOG, rows.len())),
        ("routine_schema", same(PUBLIC, rows.len())),
        ("routine_name", text(rows.iter().map(|(name, _, _)| name))),
        ("routine_type", same("FUNCTION", rows.len())),
        ("function_type", text(rows.iter().map(|(_, kind, _)| kind))),
        ("syntax", told(|documentation| &documentation.syntax_example)),
        ("description", told(|documentation| &documentation.description)),
    ])
}
