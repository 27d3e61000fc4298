//! Audit events to a file instead of a control plane: a JSON object a line, with the org, appended and fsynced.
//!
//! Lines come from the spool's batches, in order. When a batch was appended and the gateway ended before the spool
//! knew, the batch comes again; so at the first batch after a start the file's end is read, a line that was torn is cut
//! off, and lines of the batch that are there already are not written again. The file is opened anew for each batch: it
//! may be moved away at any time, and the next batch makes a new one.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::gateway::spool::create_folder;

/// A file that events are appended to.
#[derive(Debug)]
pub(super) struct EventFile {
    path: PathBuf,
    /// Whether a batch was appended since the start.
    begun: bool,
}

impl EventFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, begun: false }
    }

    /// Appends lines, each ending in a line feed; durable when it returns.
    pub(super) fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        let folder = match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        create_folder(folder)?;
        let mut file = File::options().read(true).append(true).create(true).open(&self.path)?;
        if self.begun {
            file.write_all(lines)?;
        } else {
            let there = end_of(&mut file, lines.len())?;
            let there: HashSet<&[u8]> = there.split_inclusive(|byte| *byte == b'\n').collect();
            let missing = lines.split_inclusive(|byte| *byte == b'\n').filter(|line| !there.contains(line));
            file.write_all(&missing.collect::<Vec<_>>().concat())?;
        }
        file.sync_data()?;
        File::open(folder)?.sync_all()?;
        self.begun = true;
        Ok(())
    }
}

/// The last bytes of a file, at least as many as a batch has, after a torn last line was cut off.
fn end_of(file: &mut File, batch: usize) -> io::Result<Vec<u8>> {
    let length = file.metadata()?.len();
    let start = length.saturating_sub(batch as u64 + (1 << 20));
    file.seek(SeekFrom::Start(start))?;
    let mut end = Vec::new();
    file.read_to_end(&mut end)?;
    let whole = end.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    if whole < end.len() {
        file.set_len(start + whole as u64)?;
        end.truncate(whole);
    }
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::EventFile;

    #[test]
    fn lines_are_appended_over_restarts_and_a_batch_that_comes_again_is_there_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/audit.jsonl");
        EventFile::new(path.clone()).append(b"{\"n\":1}\n{\"n\":2}\n").unwrap();
        EventFile::new(path.clone()).append(b"{\"n\":1}\n{\"n\":2}\n").unwrap();
        let mut file = EventFile::new(path.clone());
        file.append(b"{\"n\":3}\n").unwrap();
        file.append(b"{\"n\":4}\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"{\"n\":1}\n{\"n\":2}\n{\"n\":3}\n{\"n\":4}\n");
    }

    #[test]
    fn wherever_an_append_was_torn_the_batch_is_whole_in_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let (before, batch) = (b"{\"n\":1}\n".as_slice(), b"{\"n\":2}\n{\"n\":3}\n".as_slice());
        for cut in 0..=batch.len() {
            std::fs::write(&path, [before, &batch[..cut]].concat()).unwrap();
            EventFile::new(path.clone()).append(batch).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), [before, batch].concat(), "cut at {cut}");
        }
    }

    #[test]
    fn a_file_that_was_moved_away_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let (path, moved) = (folder.path().join("audit.jsonl"), folder.path().join("audit.jsonl.1"));
        let mut file = EventFile::new(path.clone());
        file.append(b"{\"n\":1}\n").unwrap();
        std::fs::rename(&path, &moved).unwrap();
        file.append(b"{\"n\":2}\n").unwrap();
        assert_eq!(std::fs::read(&moved).unwrap(), b"{\"n\":1}\n");
        assert_eq!(std::fs::read(&path).unwrap(), b"{\"n\":2}\n");
    }
}
