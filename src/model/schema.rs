//! The tables' Arrow schemas, read once from the DDL in `schemas/*.sql`. Code never repeats a column list.

use std::sync::{Arc, LazyLock};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::sql::sqlparser::ast::{ArrayElemTypeDef, ColumnOption, DataType as SqlType, Statement};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::Parser;

/// Name of the partition column of every table: a UTC date.
pub const PARTITION_COLUMN: &str = "date";

/// The name of the samples' table.
pub const TOOL_INVOCATIONS: &str = "tool_invocations";
/// The name of the hourly rollup's table.
pub const TOOL_USAGE_HOURLY: &str = "tool_usage_hourly";
/// The name of the daily rollup's table.
pub const TOOL_USAGE_DAILY: &str = "tool_usage_daily";

/// The name of the sealed payloads' table.
pub const TOOL_INVOCATION_PAYLOADS: &str = "tool_invocation_payloads";
/// Its columns that no query sees.
pub const SEALED_BYTES: [&str; 2] = ["envelope", "record"];

/// The name of the ledger's table.
pub const AUDIT_LOG: &str = "audit_log";
/// The columns that an entry gets when it is put into the ledger: its place, and what chains it.
pub const SEALED_COLUMNS: [&str; 3] = ["seq", "prev_hash", "entry_hash"];

/// Why a DDL file is no schema.
#[derive(Debug, Clone, thiserror::Error)]
#[error("schemas/{file}: {reason}")]
pub struct SchemaError {
    file: &'static str,
    reason: String,
}

/// The schemas of all tables.
#[derive(Debug, Clone)]
pub struct Schemas {
    /// Samples, see `schemas/tool_invocations.sql`.
    pub tool_invocations: SchemaRef,
    /// Partial hourly rollups, see `schemas/tool_usage_hourly.sql`.
    pub tool_usage_hourly: SchemaRef,
    /// Partial daily rollups, see `schemas/tool_usage_daily.sql`.
    pub tool_usage_daily: SchemaRef,
    /// Entries of the ledger, see `schemas/audit_log.sql`.
    pub audit_log: SchemaRef,
    /// Events that have no place in the ledger yet: `audit_log` without [`SEALED_COLUMNS`].
    pub audit_event: SchemaRef,
    /// Sealed payloads, see `schemas/tool_invocation_payloads.sql`.
    pub payloads: SchemaRef,
    /// The same as queries see it: without [`SEALED_BYTES`].
    pub payloads_in_sql: SchemaRef,
    /// A payload as the log and the live buffer have it: the columns that queries see, then where its bytes lie
    /// ([`PAYLOAD_BODY`]).
    pub payload_rows: SchemaRef,
}

/// Where the bytes of a payload lie before they are in the table: the object, and places and lengths in it.
pub const PAYLOAD_BODY: [&str; 5] = ["body", "envelope_at", "envelope_bytes", "record_at", "record_bytes"];

/// The schemas of payloads: as stored, as queries see them, as the log has them.
fn payloads() -> Result<[SchemaRef; 3], SchemaError> {
    let stored = parse("tool_invocation_payloads.sql", include_str!("../../schemas/tool_invocation_payloads.sql"))?;
    let seen: Vec<_> =
        stored.fields().iter().filter(|field| !SEALED_BYTES.contains(&field.name().as_str())).cloned().collect();
    let body = PAYLOAD_BODY.iter().map(|name| {
        let data_type = if *name == "body" { DataType::Utf8 } else { DataType::Int64 };
        Arc::new(Field::new(*name, data_type, false))
    });
    let rows = Schema::new(seen.iter().cloned().chain(body).collect::<Vec<_>>());
    Ok([stored, Arc::new(Schema::new(seen)), Arc::new(rows)])
}

static SCHEMAS: LazyLock<Result<Schemas, SchemaError>> = LazyLock::new(|| {
    let audit_log = parse("audit_log.sql", include_str!("../../schemas/audit_log.sql"))?;
    let unsealed = audit_log.fields().iter().filter(|field| !SEALED_COLUMNS.contains(&field.name().as_str()));
    let [payloads, payloads_in_sql, payload_rows] = payloads()?;
    Ok(Schemas {
        tool_invocations: parse("tool_invocations.sql", include_str!("../../schemas/tool_invocations.sql"))?,
        tool_usage_hourly: parse("tool_usage_hourly.sql", include_str!("../../schemas/tool_usage_hourly.sql"))?,
        tool_usage_daily: parse("tool_usage_daily.sql", include_str!("../../schemas/tool_usage_daily.sql"))?,
        audit_event: Arc::new(Schema::new(unsealed.cloned().collect::<Vec<_>>())),
        audit_log,
        payloads,
        payloads_in_sql,
        payload_rows,
    })
});

/// The schemas of all tables, parsed at the first call.
///
/// # Errors
/// When a DDL file compiled into the program does not parse; a test keeps that from happening.
pub fn schemas() -> Result<&'static Schemas, SchemaError> {
    SCHEMAS.as_ref().map_err(Clone::clone)
}

fn parse(file: &'static str, ddl: &str) -> Result<SchemaRef, SchemaError> {
    let fault = |reason: String| SchemaError { file, reason };
    let statements = Parser::parse_sql(&GenericDialect {}, ddl).map_err(|e| fault(e.to_string()))?;
    let [Statement::CreateTable(table)] = statements.as_slice() else {
        return Err(fault("expected one CREATE TABLE".to_owned()));
    };
    let mut fields = Vec::with_capacity(table.columns.len());
    for column in &table.columns {
        let data_type = match &column.data_type {
            SqlType::Varchar(_) => DataType::Utf8,
            SqlType::Timestamp(..) => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            SqlType::Double(_) => DataType::Float64,
            SqlType::BigInt(_) => DataType::Int64,
            SqlType::Boolean => DataType::Boolean,
            SqlType::Binary(_) => DataType::Binary,
            SqlType::Date => DataType::Date32,
            SqlType::Array(ArrayElemTypeDef::SquareBracket(item, None)) if matches!(**item, SqlType::Varchar(_)) => {
                DataType::new_list(DataType::Utf8, true)
            }
            other => return Err(fault(format!("column {}: no mapping for type {other}", column.name))),
        };
        let not_null = column.options.iter().any(|option| matches!(option.option, ColumnOption::NotNull));
        fields.push(Field::new(column.name.value.clone(), data_type, !not_null));
    }
    Ok(Arc::new(Schema::new(fields)))
}

#[cfg(test)]
mod tests {
    use super::{PARTITION_COLUMN, schemas};

    #[test]
    fn every_ddl_parses_and_ends_with_the_partition_column() {
        let all = schemas().unwrap();
        for schema in [&all.tool_invocations, &all.tool_usage_hourly, &all.tool_usage_daily, &all.payloads] {
            assert_eq!(schema.fields().last().unwrap().name(), PARTITION_COLUMN);
        }
        assert_eq!(all.tool_invocations.fields().len(), 28);
    }

    #[test]
    fn what_queries_see_of_payloads_has_no_bytes_and_no_length() {
        let all = schemas().unwrap();
        let names =
            |schema: &super::SchemaRef| schema.fields().iter().map(|field| field.name().clone()).collect::<Vec<_>>();
        let seen = names(&all.payloads_in_sql);
        assert!(
            seen.iter().all(|name| !name.contains("bytes") && !super::SEALED_BYTES.contains(&name.as_str())),
            "{seen:?}"
        );
        assert_eq!((names(&all.payloads).len(), seen.len()), (19, 17));
        assert_eq!(names(&all.payload_rows)[..17], seen[..]);
    }

    #[test]
    fn an_event_has_the_columns_of_the_ledger_but_for_those_that_its_place_gives_it() {
        let all = schemas().unwrap();
        assert_eq!((all.audit_log.fields().len(), all.audit_event.fields().len()), (22, 19));
        let lists = all.audit_log.fields().iter().filter(|field| field.data_type().is_nested());
        assert_eq!(lists.map(|field| field.name().as_str()).collect::<Vec<_>>(), ["policy_ids", "obligations"]);
    }
}
