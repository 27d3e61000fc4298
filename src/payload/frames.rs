//! Envelopes and records on their way: frames of a length (u32) and as many bytes, an envelope before its records.

use bytes::Bytes;

use super::{Envelope, Record, Refusal};

/// The media type of a request of frames.
pub const MEDIA: &str = "application/vnd.mcpg.payload.v1";

/// The most bytes of a request, unpacked.
pub const MAX_BYTES: usize = 64 << 20;

/// The most frames of a request: what is kept of one beside its bytes is bounded by it.
pub const MOST: usize = 65_536;

/// One frame.
#[derive(Debug, Clone)]
pub enum Frame {
    /// An envelope, for records after it.
    Envelope(Envelope),
    /// A record.
    Record(Record),
}

/// Adds a frame.
pub fn push(out: &mut Vec<u8>, bytes: &[u8]) {
    // Nothing that is sealed comes near 4 GiB.
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(bytes);
}

/// Where a frame's bytes lie in a body, and what it is.
#[derive(Debug, Clone)]
pub struct Placed {
    /// Where its bytes begin, after its length.
    pub at: usize,
    /// What it is.
    pub frame: Frame,
}

/// The end of the frame whose length stands at a place.
fn end(body: &[u8], at: usize) -> Option<usize> {
    let length = body.get(at..)?.first_chunk::<4>().map(|length| u32::from_be_bytes(*length))?;
    (at + 4).checked_add(usize::try_from(length).ok()?).filter(|end| *end <= body.len())
}

/// How many frames a body has, whatever is in them, up to the first that is cut off.
pub fn count(body: &[u8]) -> usize {
    std::iter::successors(end(body, 0), |at| end(body, *at)).count()
}

/// Reads all frames of a body, [`MOST`] of them. The number of the first that is malformed comes with the reason.
///
/// # Errors
/// The place of the first frame that is neither an envelope nor a record, and why.
pub fn read(body: &Bytes) -> Result<Vec<Placed>, (usize, Refusal)> {
    let (mut frames, mut at) = (Vec::new(), 0);
    while at < body.len() {
        let number = frames.len();
        let fault = |refusal| (number, refusal);
        let begin = at + 4;
        let end = end(body, at).filter(|_| number < MOST).ok_or((number, Refusal::Format))?;
        let bytes = body.slice(begin..end);
        let frame = if bytes.starts_with(b"MCPE") {
            Frame::Envelope(Envelope::parse(bytes).map_err(fault)?)
        } else {
            Frame::Record(Record::parse(bytes).map_err(fault)?)
        };
        frames.push(Placed { at: begin, frame });
        at = end;
    }
    Ok(frames)
}
