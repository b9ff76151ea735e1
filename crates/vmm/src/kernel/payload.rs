//! The compressed kernel inside a bzImage, in any format Linux packs it with
//! on x86 and that distributions use: LZ4, zstd, gzip, xz, and none.
//!
//! Behind the compressed data the payload may hold four bytes of its size;
//! they are ignored.

use std::io::Read;

use favo_types::ByteCount;

/// LZ4's legacy frame: this magic, then blocks of at most 8 MiB unpacked, each
/// behind its packed length.
const LZ4_LEGACY: &[u8] = &[0x02, 0x21, 0x4c, 0x18];
const LZ4_BLOCK: usize = 8 << 20;

/// Unpacks a payload to at most `limit` bytes; the error is a reason for
/// people.
pub fn unpack(payload: &[u8], limit: ByteCount) -> Result<Vec<u8>, String> {
    match payload {
        [0x7f, b'E', b'L', b'F', ..] => Ok(payload.to_vec()),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let decoder = zstd::stream::read::Decoder::new(payload)
                .map_err(|error| broken("zstd", &error))?
                .single_frame();
            read_all("zstd", decoder, limit)
        }
        [0x1f, 0x8b, ..] => read_all("gzip", flate2::read::GzDecoder::new(payload), limit),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            read_all("xz", liblzma::read::XzDecoder::new(payload), limit)
        }
        _ if payload.starts_with(LZ4_LEGACY) => unpack_lz4(&payload[LZ4_LEGACY.len()..], limit),
        _ => Err(
            "it is packed in a format favo does not know (LZ4, zstd, gzip and xz are known); \
                  give the unpacked vmlinux"
                .to_owned(),
        ),
    }
}

fn read_all(format: &str, reader: impl Read, limit: ByteCount) -> Result<Vec<u8>, String> {
    let mut unpacked = Vec::new();
    let read = reader
        .take(limit.bytes() + 1)
        .read_to_end(&mut unpacked)
        .map_err(|error| broken(format, &error))?;
    if read as u64 > limit.bytes() {
        Err(too_large(limit))
    } else {
        Ok(unpacked)
    }
}

fn unpack_lz4(mut input: &[u8], limit: ByteCount) -> Result<Vec<u8>, String> {
    let mut unpacked = Vec::new();
    let mut block = vec![0; LZ4_BLOCK];
    while let Some((length, rest)) = input.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        // Shorter than its length says: what follows is the size trailer.
        let Some(packed) = rest.get(..length).filter(|_| length != 0) else {
            break;
        };
        let size = lz4_flex::block::decompress_into(packed, &mut block)
            .map_err(|error| broken("LZ4", &error))?;
        unpacked.extend_from_slice(&block[..size]);
        if unpacked.len() as u64 > limit.bytes() {
            return Err(too_large(limit));
        }
        input = &rest[length..];
    }
    Ok(unpacked)
}

fn broken(format: &str, error: &dyn std::fmt::Display) -> String {
    format!("its {format} data is broken ({error})")
}

fn too_large(limit: ByteCount) -> String {
    format!("it unpacks to more than {limit}")
}
