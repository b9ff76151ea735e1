//! What came from a guest before the bytes that belong in front of it.
//!
//! Without it everything behind a lost segment would have to come again, and
//! a sender without selective acknowledgments repeats one segment for each
//! round trip. It holds no more than the window told, in few pieces; a guest
//! that sends confetti loses what is too many.

/// Pieces kept at a time.
const PARTS: usize = 32;

/// Pieces that don't touch, in the order of their sequence numbers.
#[derive(Debug, Default)]
pub(super) struct Reassembly {
    parts: Vec<Part>,
}

#[derive(Debug)]
struct Part {
    at: u32,
    bytes: Vec<u8>,
}

impl Part {
    fn end(&self) -> u32 {
        self.at.wrapping_add(self.bytes.len() as u32)
    }
}

impl Reassembly {
    /// Bytes it holds.
    pub(super) fn len(&self) -> usize {
        self.parts.iter().map(|part| part.bytes.len()).sum()
    }

    /// Keeps `bytes`, which begin at `at`, as far as they lie within `room`
    /// bytes from `next`, the byte that is missing, and are new.
    pub(super) fn keep(&mut self, next: u32, at: u32, bytes: &[u8], room: usize) {
        let start = at.wrapping_sub(next) as usize;
        if start >= room {
            return;
        }
        let mut bytes = &bytes[..bytes.len().min(room - start)];
        let mut at = at;
        // The first part that ends behind the first new byte.
        let place = |part: &Part| (part.end().wrapping_sub(next) as usize) < start;
        let index = self.parts.partition_point(place);
        if let Some(part) = self.parts.get(index)
            && (part.at.wrapping_sub(next) as usize) <= start
        {
            let known = part.end().wrapping_sub(at) as usize;
            bytes = bytes.get(known..).unwrap_or(&[]);
            at = part.end();
            if bytes.is_empty() {
                return;
            }
            let after = self.parts.get(index + 1);
            bytes = until(after, at, bytes);
            self.parts[index].bytes.extend_from_slice(bytes);
        } else {
            bytes = until(self.parts.get(index), at, bytes);
            if bytes.is_empty() || self.parts.len() >= PARTS {
                return;
            }
            let bytes = bytes.to_vec();
            self.parts.insert(index, Part { at, bytes });
        }
    }

    /// What goes on at `next`, if it is there: out it goes.
    pub(super) fn take(&mut self, next: u32) -> Option<Vec<u8>> {
        loop {
            let first = self.parts.first()?;
            let old = next.wrapping_sub(first.at) as i32;
            if old < 0 {
                return None;
            }
            let mut part = self.parts.remove(0);
            if (old as usize) < part.bytes.len() {
                part.bytes.drain(..old as usize);
                return Some(part.bytes);
            }
        }
    }
}

/// The bytes from `at` that lie before `part`.
fn until<'a>(part: Option<&Part>, at: u32, bytes: &'a [u8]) -> &'a [u8] {
    let free = part.map_or(usize::MAX, |part| part.at.wrapping_sub(at) as usize);
    &bytes[..bytes.len().min(free)]
}

#[cfg(test)]
#[path = "reassembly_test.rs"]
mod test;
