//! A table as a query reads it: the live Parquet files of a Delta table, or the segments of a ledger, and the batches
//! that they do not hold yet, as one.
//!
//! Files are dropped before they are opened when their date or their range of event times, of `seq` or of ids of calls
//! shows that no row can match; what is left is pruned by row group and page inside DataFusion's Parquet source.
//! Strings come out of Parquet as views; the live batches hold plain strings and are turned into views as they are
//! read, only the columns that are asked for.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Date32Array, Int64Array, StringViewArray, TimestampMicrosecondArray, UInt64Array,
};
use arrow::datatypes::{FieldRef, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::config::TableParquetOptions;
use datafusion::common::pruning::PruningStatistics;
use datafusion::common::stats::Precision;
use datafusion::common::{Column, DFSchema, DataFusionError, Result, ScalarValue, Statistics};
use datafusion::datasource::TableType;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::datasource::physical_plan::parquet::CachedParquetFileReaderFactory;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::datasource::table_schema::TableSchema;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, Operator, TableProviderFilterPushDown};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{CastExpr, Column as PhysicalColumn};
use datafusion::physical_optimizer::pruning::PruningPredicateBuilder;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::union::UnionExec;
use object_store::{ObjectMeta, ObjectStore};

use crate::model::schema::PARTITION_COLUMN;
use crate::storage::parquet::SOUGHT_ID;
use crate::storage::table::DataFile;

use super::scanned::Reads;
use super::{QueryError, TableState, types};

const MICROS_A_DAY: i64 = 86_400_000_000;

/// The column that numbers a ledger's entries.
const SEQ_COLUMN: &str = "seq";

/// Columns, and values of columns, so common that reading only the rows that hold them costs more than reading all.
const COMMON_COLUMNS: [&str; 3] = ["org", "workspace", PARTITION_COLUMN];
const COMMON_VALUES: [&str; 2] = ["ok", "permit"];

/// One table of one org at one instant.
#[derive(Debug)]
pub(super) struct EventTable {
    schema: SchemaRef,
    event_time: &'static str,
    state: TableState,
    store_url: ObjectStoreUrl,
    store: Arc<dyn ObjectStore>,
    reads: Option<Reads>,
}

impl EventTable {
    /// A table of `stored` columns, of which `event_time` is what windows are cut by. If the last is the partition
    /// column, no file holds it. Live batches have exactly the stored columns.
    pub(super) fn new(
        stored: &Schema,
        event_time: &'static str,
        state: TableState,
        store_url: ObjectStoreUrl,
        store: Arc<dyn ObjectStore>,
    ) -> Self {
        Self { schema: types::with_views(stored), event_time, state, store_url, store, reads: None }
    }

    /// The table with a bound of what may be read of it before the query is planned.
    pub(super) fn bounded(self, reads: Reads) -> Self {
        Self { reads: Some(reads), ..self }
    }

    /// The partition column, if the table has one.
    fn partition(&self) -> Option<&FieldRef> {
        self.schema.fields().last().filter(|field| field.name() == PARTITION_COLUMN)
    }

    /// The files that may hold rows that all of `filters` keep.
    fn files_for(&self, state: &dyn Session, filters: &[Expr]) -> Result<Vec<&DataFile>> {
        let Some(filter) = conjunction(filters.iter().cloned()) else {
            return Ok(self.state.files.iter().collect());
        };
        let schema = DFSchema::try_from(Arc::clone(&self.schema))?;
        let filter = state.create_physical_expr(filter, &schema)?;
        let pruning = PruningPredicateBuilder::new().with_file_schema(Arc::clone(&self.schema));
        let Some(predicate) = pruning.build(filter) else {
            return Ok(self.state.files.iter().collect());
        };
        let statistics = FileStatistics {
            event_time: self.event_time,
            partitioned: self.partition().is_some(),
            files: &self.state.files,
        };
        let kept = predicate.prune(&statistics)?;
        Ok(self.state.files.iter().zip(kept).filter_map(|(file, kept)| kept.then_some(file)).collect())
    }

    /// Makes sure of files that must be proved. Gives the versions that were found right, in the order of the files.
    async fn prove(&self, files: &[&DataFile]) -> Result<Vec<ObjectMeta>> {
        let Some(evidence) = &self.state.evidence else { return Ok(Vec::new()) };
        if let Some(reads) = &self.reads {
            if !reads.runs {
                return Ok(Vec::new());
            }
            reads.check(files).map_err(|error| DataFusionError::External(Box::new(error)))?;
        }
        let mut proved = Vec::with_capacity(files.len());
        for file in files {
            let meta = evidence.prove(file).await;
            proved.push(meta.map_err(|error| DataFusionError::External(Box::new(QueryError::from_storage(&error))))?);
        }
        Ok(proved)
    }

    fn scan_files(
        &self,
        state: &dyn Session,
        files: &[&DataFile],
        proved: &[ObjectMeta],
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let partition = self.partition();
        let stored = self.schema.fields().len() - partition.iter().len();
        let stored = self.schema.fields().get(..stored).unwrap_or_default();
        let table_schema = TableSchema::builder(Arc::new(Schema::new(stored.to_vec())))
            .with_table_partition_cols(partition.into_iter().map(Arc::clone).collect::<Vec<_>>())
            .build();
        let cache = state.runtime_env().cache_manager.get_file_metadata_cache();
        let late = filters.iter().any(is_selective);
        let evidence = self.state.evidence.as_ref();
        // Rows that were proved say nothing of what a footer says of them: that is not looked at.
        let mut options = TableParquetOptions::default();
        options.global.pruning = evidence.is_none();
        let source = ParquetSource::new(table_schema)
            .with_table_parquet_options(options)
            .with_parquet_file_reader_factory(Arc::new(CachedParquetFileReaderFactory::new(
                evidence.map_or_else(|| Arc::clone(&self.store), |evidence| evidence.store()),
                cache,
            )))
            .with_enable_page_index(evidence.is_none())
            .with_bloom_filter_on_read(evidence.is_none())
            .with_pushdown_filters(late)
            .with_reorder_filters(late);
        let rows = files.iter().map(|file| file.rows).sum::<u64>();
        let statistics = Statistics::new_unknown(&self.schema)
            .with_num_rows(usize::try_from(rows).map_or(Precision::Absent, Precision::Exact));
        let config = FileScanConfigBuilder::new(self.store_url.clone(), Arc::new(source))
            .with_file_groups(balanced(files, proved, state.config().target_partitions(), partition.is_some()))
            .with_statistics(statistics)
            .with_projection_indices(projection.cloned())?
            .with_limit(limit)
            .build();
        Ok(DataSourceExec::from_data_source(config))
    }

    fn scan_live(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let Some(first) = self.state.live.first() else { return Ok(None) };
        let mut partitions = vec![Vec::new(); state.config().target_partitions().clamp(1, self.state.live.len())];
        let count = partitions.len();
        for (index, batch) in self.state.live.iter().enumerate() {
            if let Some(partition) = partitions.get_mut(index % count) {
                partition.push(batch.clone());
            }
        }
        let plain = MemorySourceConfig::try_new_exec(&partitions, first.schema(), projection.cloned())?;
        let wanted = match projection {
            Some(indices) => self.schema.project(indices)?,
            None => self.schema.as_ref().clone(),
        };
        with_types(plain, &wanted).map(Some)
    }
}

/// The plan with its columns cast to the types of `wanted`, where they differ.
fn with_types(plan: Arc<dyn ExecutionPlan>, wanted: &Schema) -> Result<Arc<dyn ExecutionPlan>> {
    let schema = plan.schema();
    if schema.fields().iter().zip(wanted.fields()).all(|(has, wants)| has.data_type() == wants.data_type()) {
        return Ok(plan);
    }
    let columns = schema.fields().iter().zip(wanted.fields()).enumerate().map(|(index, (has, wants))| {
        let column: Arc<dyn PhysicalExpr> = Arc::new(PhysicalColumn::new(has.name(), index));
        let same = has.data_type() == wants.data_type();
        let column = if same { column } else { Arc::new(CastExpr::new(column, wants.data_type().clone(), None)) };
        (column, wants.name().clone())
    });
    Ok(Arc::new(ProjectionExec::try_new(columns.collect::<Vec<_>>(), plan)?))
}

#[async_trait]
impl TableProvider for EventTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    /// Filters prune files, row groups and pages; the engine applies them to the rows all the same.
    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let files = self.files_for(state, filters)?;
        let proved = self.prove(&files).await?;
        let stored = if files.is_empty() {
            None
        } else {
            Some(self.scan_files(state, &files, &proved, projection, filters, limit)?)
        };
        let live = self.scan_live(state, projection)?;
        Ok(match (stored, live) {
            (Some(stored), Some(live)) => UnionExec::try_new(vec![stored, live])?,
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => {
                let schema = projection
                    .map_or_else(|| Ok(Arc::clone(&self.schema)), |p| self.schema.project(p).map(Arc::new))?;
                Arc::new(EmptyExec::new(schema))
            }
        })
    }
}

/// Files dealt out to at most `partitions` groups, each next one, largest first, to the group with the fewest bytes.
fn balanced(files: &[&DataFile], proved: &[ObjectMeta], partitions: usize, partitioned: bool) -> Vec<FileGroup> {
    let mut files: Vec<_> = files.iter().copied().enumerate().collect();
    files.sort_by(|(_, a), (_, b)| b.size.cmp(&a.size).then_with(|| a.path.cmp(&b.path)));
    let mut groups = vec![(0, Vec::new()); partitions.clamp(1, files.len().max(1))];
    for (at, file) in files {
        if let Some((bytes, group)) = groups.iter_mut().min_by_key(|(bytes, _)| *bytes) {
            *bytes += file.size;
            let mut opened = PartitionedFile::new("", file.size);
            opened.object_meta.location = file.path.clone();
            // What is cached of a file's footer is that version's.
            if let Some(meta) = proved.get(at) {
                opened.object_meta = meta.clone();
            }
            let date = partitioned.then_some(ScalarValue::Date32(Some(file.date)));
            group.push(opened.with_partition_values(date.into_iter().collect()));
        }
    }
    groups.into_iter().map(|(_, group)| FileGroup::new(group)).collect()
}

/// Whether a filter keeps few enough rows that the reader gains by applying it while it decodes.
///
/// Measured: it halves a search for one caller or one id, and slows a full scan by a third. So: equality with values
/// that are not the common ones.
fn is_selective(filter: &Expr) -> bool {
    let rare = |column: &Expr, value: &Expr| match (column, value) {
        (Expr::Column(column), Expr::Literal(value, _)) => {
            let text = value.try_as_str().flatten().unwrap_or_default();
            !COMMON_COLUMNS.contains(&column.name.as_str()) && !COMMON_VALUES.contains(&text)
        }
        _ => false,
    };
    match filter {
        Expr::BinaryExpr(binary) => match binary.op {
            Operator::Eq => rare(&binary.left, &binary.right) || rare(&binary.right, &binary.left),
            Operator::And => is_selective(&binary.left) || is_selective(&binary.right),
            Operator::Or => is_selective(&binary.left) && is_selective(&binary.right),
            _ => false,
        },
        Expr::InList(list) => !list.negated && list.list.iter().all(|value| rare(&list.expr, value)),
        _ => false,
    }
}

/// What is known of each file without opening it: its date, its event times, its numbers, its ids, its rows.
struct FileStatistics<'a> {
    event_time: &'a str,
    partitioned: bool,
    files: &'a [DataFile],
}

impl FileStatistics<'_> {
    /// A bound of each file's values of a column, by the ends of its date and, where known, of its event times.
    fn bound(&self, column: &Column, end: impl Fn((i64, i64)) -> i64) -> Option<ArrayRef> {
        if column.name == SEQ_COLUMN {
            let numbers: Option<Vec<_>> = self.files.iter().map(|file| file.seq_range.map(&end)).collect();
            return numbers.map(|numbers| Arc::new(Int64Array::from(numbers)) as ArrayRef);
        }
        if column.name == PARTITION_COLUMN && self.partitioned {
            return Some(Arc::new(Date32Array::from_iter_values(self.files.iter().map(|file| file.date))));
        }
        if column.name != self.event_time {
            return None;
        }
        let times = self.files.iter().map(|file| {
            let midnight = i64::from(file.date).saturating_mul(MICROS_A_DAY);
            let day = (midnight, midnight.saturating_add(MICROS_A_DAY - 1));
            end(file.time_range.unwrap_or(if self.partitioned { day } else { (i64::MIN, i64::MAX) }))
        });
        Some(Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC")))
    }
}

impl<'a> FileStatistics<'a> {
    /// A bound of each file's ids of calls, where it is known.
    fn id(&self, column: &Column, end: impl Fn(&'a (Arc<str>, Arc<str>)) -> &'a str) -> Option<ArrayRef> {
        let bounds = || self.files.iter().map(|file| file.id_range.as_ref().map(&end));
        (column.name == SOUGHT_ID).then(|| Arc::new(bounds().collect::<StringViewArray>()) as ArrayRef)
    }
}

impl PruningStatistics for FileStatistics<'_> {
    fn min_values(&self, column: &Column) -> Option<ArrayRef> {
        self.bound(column, |(least, _)| least).or_else(|| self.id(column, |(least, _)| least))
    }

    fn max_values(&self, column: &Column) -> Option<ArrayRef> {
        self.bound(column, |(_, greatest)| greatest).or_else(|| self.id(column, |(_, greatest)| greatest))
    }

    fn num_containers(&self) -> usize {
        self.files.len()
    }

    fn null_counts(&self, _: &Column) -> Option<ArrayRef> {
        None
    }

    fn row_counts(&self) -> Option<ArrayRef> {
        Some(Arc::new(UInt64Array::from_iter_values(self.files.iter().map(|file| file.rows))))
    }

    fn contained(&self, _: &Column, _: &std::collections::HashSet<ScalarValue>) -> Option<BooleanArray> {
        None
    }
}
