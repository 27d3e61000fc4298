//! Multipart uploads to a folder.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use object_store::path::Path;
use object_store::{MultipartUpload, PutPayload, PutResult, Result, UploadPart};

use super::{FsyncLocal, generic};

/// A multipart upload: parts are written to a staged file as they come, which is fsynced and put in its place when it
/// completes.
#[derive(Debug)]
pub(super) struct StagedUpload {
    pub(super) store: FsyncLocal,
    pub(super) location: Path,
    pub(super) path: PathBuf,
    pub(super) file: Arc<File>,
    pub(super) size: u64,
}

#[async_trait]
impl MultipartUpload for StagedUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (file, mut at) = (Arc::clone(&self.file), self.size);
        self.size += data.content_length() as u64;
        let write = move || {
            for chunk in &data {
                file.write_all_at(chunk, at)?;
                at += chunk.len() as u64;
            }
            io::Result::Ok(())
        };
        Box::pin(async move { tokio::task::spawn_blocking(write).await.map_err(generic)?.map_err(generic) })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let target = self.store.reads.path_to_filesystem(&self.location)?;
        let (folders, file, staged) = (Arc::clone(&self.store.folders), Arc::clone(&self.file), self.path.clone());
        let place = move || {
            let folder = target.parent().ok_or_else(|| io::Error::other("object path has no folder"))?;
            folders.ensure(folder)?;
            file.sync_all()?;
            fs::rename(&staged, &target)?;
            (folders.sync)(folder)
        };
        tokio::task::spawn_blocking(place).await.map_err(generic)?.map_err(generic)?;
        Ok(PutResult { e_tag: None, version: None })
    }

    async fn abort(&mut self) -> Result<()> {
        let staged = self.path.clone();
        tokio::task::spawn_blocking(move || fs::remove_file(staged)).await.map_err(generic)?.map_err(generic)
    }
}

impl Drop for StagedUpload {
    fn drop(&mut self) {
        // Of one that was completed the staged name is gone; of any other it is of no use, and looked for at the next
        // start.
        let _ = fs::remove_file(&self.path);
    }
}
