//! Reading parts of a Parquet file out of the store: the footer with its page index, and the pages that hold what is
//! looked for.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::arrow::arrow_reader::ArrowReaderOptions;
use parquet::arrow::async_reader::{AsyncFileReader, ParquetRecordBatchStreamBuilder};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader};

/// A file of the store.
#[derive(Debug)]
pub struct StoredFile {
    objects: Arc<dyn ObjectStore>,
    path: Path,
    size: u64,
}

/// Opens a file of this size, with its page index.
///
/// # Errors
/// What the store says, or that it is no Parquet file.
pub async fn open(
    objects: &Arc<dyn ObjectStore>,
    path: &Path,
    size: u64,
) -> Result<ParquetRecordBatchStreamBuilder<StoredFile>> {
    let file = StoredFile { objects: Arc::clone(objects), path: path.clone(), size };
    let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Optional);
    ParquetRecordBatchStreamBuilder::new_with_options(file, options).await
}

impl AsyncFileReader for StoredFile {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes>> {
        async move {
            let read = self.objects.get_range(&self.path, range).await;
            read.map_err(|e| ParquetError::External(Box::new(e)))
        }
        .boxed()
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, Result<Vec<Bytes>>> {
        async move {
            let read = self.objects.get_ranges(&self.path, &ranges).await;
            read.map_err(|e| ParquetError::External(Box::new(e)))
        }
        .boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        _: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, Result<Arc<ParquetMetaData>>> {
        async move {
            let size = self.size;
            let reader = ParquetMetaDataReader::new().with_page_index_policy(PageIndexPolicy::Optional);
            reader.load_and_finish(self, size).await.map(Arc::new)
        }
        .boxed()
    }
}
