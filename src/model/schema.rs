//! The tables' Arrow schemas, read once from the DDL in `schemas/*.sql`. Code never repeats a column list.

use std::sync::{Arc, LazyLock};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::sql::sqlparser::ast::{ColumnOption, DataType as SqlType, Statement};
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
}

static SCHEMAS: LazyLock<Result<Schemas, SchemaError>> = LazyLock::new(|| {
    Ok(Schemas {
        tool_invocations: parse("tool_invocations.sql", include_str!("../../schemas/tool_invocations.sql"))?,
        tool_usage_hourly: parse("tool_usage_hourly.sql", include_str!("../../schemas/tool_usage_hourly.sql"))?,
        tool_usage_daily: parse("tool_usage_daily.sql", include_str!("../../schemas/tool_usage_daily.sql"))?,
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
            SqlType::Binary(_) => DataType::Binary,
            SqlType::Date => DataType::Date32,
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
        for schema in [&all.tool_invocations, &all.tool_usage_hourly, &all.tool_usage_daily] {
            assert_eq!(schema.fields().last().unwrap().name(), PARTITION_COLUMN);
        }
        assert_eq!(all.tool_invocations.fields().len(), 22);
    }
}
