//! A file of any length from elsewhere, kept for as long as it is read in a temporary file that has no name.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use uuid::Uuid;

use super::source::Blob;

/// Keeps the bytes of `chunks`; the files are only ever read whole by their own processes, so a crash leaves nothing.
///
/// # Errors
/// When the temporary file cannot be written, or a chunk does not come.
pub(super) async fn keep<E>(chunks: impl Stream<Item = Result<Bytes, E>>) -> io::Result<Blob>
where
    E: std::error::Error + Send + Sync + 'static,
{
    let mut file = nameless()?;
    let mut chunks = std::pin::pin!(chunks);
    while let Some(chunk) = chunks.next().await {
        file.write_all(&chunk.map_err(io::Error::other)?)?;
    }
    Blob::of(file)
}

fn nameless() -> io::Result<File> {
    let path = std::env::temp_dir().join(format!("mcpg-{}", Uuid::new_v4().simple()));
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}
