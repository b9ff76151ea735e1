//! Messages over a byte stream: a length, then that many bytes of postcard.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 4 | length of the body, little-endian, 1 to [`MAX_BODY`] |
//! | 4 | length | one message, all of it and nothing after it |
//!
//! The reader is incremental and never holds more than one frame and one read beyond it.

use serde::{Serialize, de::DeserializeOwned};

/// The most bytes a frame's body may have. Room for a chunk of data, and for a command line of
/// Linux's own customary limit (128 KiB) with its environment.
pub const MAX_BODY: usize = 256 * 1024;

const HEADER: usize = 4;

/// What is wrong with a frame. The connection is of no use after any of them.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum FrameError {
    /// The length field is zero or above [`MAX_BODY`].
    #[error("a frame of {length} bytes (allowed are 1 to {MAX_BODY})")]
    Length {
        /// What the length field, or the message to be sent, said.
        length: usize,
    },
    /// The body is not one whole message of this protocol.
    #[error("a frame that does not decode: {reason}")]
    Body {
        /// The decoder's reason.
        reason: String,
    },
}

/// Appends `message`, framed, to `out`. On error `out` is as it was.
pub fn encode(message: &impl Serialize, out: &mut Vec<u8>) -> Result<(), FrameError> {
    let body = postcard::to_stdvec(message).map_err(|e| FrameError::Body {
        reason: e.to_string(),
    })?;
    if body.is_empty() || body.len() > MAX_BODY {
        return Err(FrameError::Length { length: body.len() });
    }
    out.extend_from_slice(&(body.len() as u32).to_le_bytes());
    out.extend_from_slice(&body);
    Ok(())
}

/// Puts a stream of bytes, cut anywhere, back into messages.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    bytes: Vec<u8>,
    /// Where the next frame starts in `bytes`.
    start: usize,
}

impl FrameDecoder {
    /// Takes in what was read from the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole message, or `None` until more bytes come.
    pub fn next_message<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        let rest = &self.bytes[self.start..];
        let Some((header, rest)) = rest.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*header) as usize;
        if length == 0 || length > MAX_BODY {
            return Err(FrameError::Length { length });
        }
        let Some(body) = rest.get(..length) else {
            return Ok(None);
        };
        let (message, after) =
            postcard::take_from_bytes::<T>(body).map_err(|e| FrameError::Body {
                reason: e.to_string(),
            })?;
        if !after.is_empty() {
            return Err(FrameError::Body {
                reason: format!("{} bytes after the message", after.len()),
            });
        }
        self.start += HEADER + length;
        Ok(Some(message))
    }

    /// Whether a frame has begun that is not complete: the stream was cut in the middle.
    pub fn is_mid_frame(&self) -> bool {
        self.start < self.bytes.len()
    }
}

#[cfg(test)]
#[path = "frame_test.rs"]
mod test;
