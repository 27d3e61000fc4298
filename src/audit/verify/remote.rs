//! A ledger behind a control plane's HTTP API, which hands out the files as they lie on its store.

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use reqwest::{Client, Response, StatusCode};
use serde::Deserialize;
use tokio::runtime::Handle;
use url::Url;

use super::source::{Blob, SMALL, Source, SourceError};
use super::spool;
use crate::config::Secret;
use crate::model::causes;

/// Requests at once.
const AT_ONCE: usize = 16;

/// A [`Source`] over a control plane's HTTP API.
#[derive(Debug)]
pub struct Remote {
    client: Client,
    /// `…/v1/orgs/{org}/audit`.
    root: Url,
    token: Option<Secret>,
    runtime: Handle,
}

#[derive(Debug, Deserialize)]
struct Files {
    files: Vec<Listed>,
}

#[derive(Debug, Deserialize)]
struct Listed {
    path: String,
}

impl Remote {
    /// The ledger at `root`, `…/v1/orgs/{org}/audit`, read by means of `runtime`, which must not be the caller's own
    /// thread.
    pub fn new(client: Client, root: Url, token: Option<Secret>, runtime: Handle) -> Self {
        Self { client, root, token, runtime }
    }

    /// An answer, if there is such a file. That there is no such org, or no right to read it, is an error.
    async fn get(&self, path: &str) -> Result<Option<Response>, SourceError> {
        let failed = |reason: String| SourceError::new(format!("{}/{path}", self.root), reason);
        let mut url = self.root.clone();
        let segments = url.path_segments_mut().map(|mut segments| {
            segments.pop_if_empty().extend(path.split('/'));
        });
        segments.map_err(|()| failed("it is no http:// URL".to_owned()))?;
        let mut request = self.client.get(url);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.expose());
        }
        let response = request.send().await.map_err(|error| failed(causes(&error)))?;
        match response.status() {
            StatusCode::OK => Ok(Some(response)),
            status => {
                let problem: serde_json::Value = response.json().await.unwrap_or_default();
                let said =
                    |name: &str| problem.get(name).and_then(serde_json::Value::as_str).unwrap_or_default().to_owned();
                if status == StatusCode::NOT_FOUND && said("code") == "not_in_ledger" {
                    return Ok(None);
                }
                Err(failed(format!("{status} {}", said("detail"))))
            }
        }
    }

    async fn small(&self, path: &str) -> Result<Option<Bytes>, SourceError> {
        let Some(response) = self.get(path).await? else { return Ok(None) };
        let (mut bytes, mut chunks) = (Vec::new(), response.bytes_stream());
        while (bytes.len() as u64) < SMALL
            && let Some(chunk) = chunks.next().await
        {
            bytes.extend_from_slice(&chunk.map_err(|error| SourceError::new(path, causes(&error)))?);
        }
        Ok(Some(bytes.into()))
    }
}

impl Source for Remote {
    fn list(&self, folder: &str) -> Result<Vec<String>, SourceError> {
        let list = async {
            let Some(response) = self.get("files").await? else { return Ok(Vec::new()) };
            let files: Files = response.json().await.map_err(|error| SourceError::new("files", causes(&error)))?;
            let name = |file: Listed| Some(file.path.strip_prefix(folder)?.strip_prefix('/')?.to_owned());
            Ok(files.files.into_iter().filter_map(name).collect())
        };
        self.runtime.block_on(list)
    }

    fn open(&self, path: &str) -> Result<Option<Blob>, SourceError> {
        let open = async {
            let Some(response) = self.get(path).await? else { return Ok(None) };
            spool::keep(response.bytes_stream()).await.map(Some).map_err(|error| SourceError::new(path, causes(&error)))
        };
        self.runtime.block_on(open)
    }

    fn read(&self, paths: &[String]) -> Result<Vec<Option<Bytes>>, SourceError> {
        let reads = futures::stream::iter(paths).map(|path| self.small(path));
        self.runtime.block_on(reads.buffered(AT_ONCE).try_collect())
    }
}
