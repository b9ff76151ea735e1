use std::io::Write;

use proptest::prelude::*;

use super::*;

/// An ELF kernel of one segment at 1 MiB.
fn vmlinux() -> Vec<u8> {
    let code = [0xf4u8; 64];
    let mut file = Vec::new();
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend(2u16.to_le_bytes());
    file.extend(EM_X86_64.to_le_bytes());
    file.extend(1u32.to_le_bytes());
    file.extend(0x10_0010u64.to_le_bytes());
    file.extend(64u64.to_le_bytes());
    file.extend(0u64.to_le_bytes());
    file.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 64, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    file.extend(PT_LOAD.to_le_bytes());
    file.extend(5u32.to_le_bytes());
    for word in [120u64, 0xffff_ffff_8010_0000, 0x10_0000, 64, 4096, 4096] {
        file.extend(word.to_le_bytes());
    }
    assert_eq!(file.len(), 120);
    file.extend(code);
    file
}

fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 1024];
    file[header::SETUP_SECTORS] = 1;
    file[header::BOOT_FLAG..][..2].copy_from_slice(&[0x55, 0xaa]);
    file[header::JUMP_LENGTH] = 0x6a;
    file[header::MAGIC..][..4].copy_from_slice(b"HdrS");
    file[header::VERSION..][..2].copy_from_slice(&0x20fu16.to_le_bytes());
    file[header::XLOADFLAGS] = 1;
    file[header::PAYLOAD_OFFSET..][..4].copy_from_slice(&16u32.to_le_bytes());
    file[header::PAYLOAD_LENGTH..][..4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    file.extend([0; 16]);
    file.extend(payload);
    file
}

fn lz4(data: &[u8]) -> Vec<u8> {
    let mut packed = LZ4_MAGIC.to_vec();
    let block = lz4_flex::block::compress(data);
    packed.extend((block.len() as u32).to_le_bytes());
    packed.extend(block);
    packed.extend((data.len() as u32).to_le_bytes());
    packed
}

const LZ4_MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];

fn packed(data: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(data).unwrap();
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
    xz.write_all(data).unwrap();
    let mut zstd = zstd::encode_all(data, 1).unwrap();
    zstd.extend((data.len() as u32).to_le_bytes());
    vec![
        ("none", data.to_vec()),
        ("lz4", lz4(data)),
        ("gzip", gzip.finish().unwrap()),
        ("xz", xz.finish().unwrap()),
        ("zstd", zstd),
    ]
}

#[test]
fn finds_the_kernel_in_every_packing() {
    for (format, payload) in packed(&vmlinux()) {
        let kernel = Kernel::parse(bzimage(&payload)).unwrap_or_else(|e| panic!("{format}: {e:?}"));
        assert_eq!(kernel.entry, GuestAddress(0x10_0010), "{format}");
        assert_eq!(kernel.segments.len(), 1);
        assert_eq!(kernel.segments[0].memory_size, ByteCount(4096));
        let header = kernel.setup_header.unwrap();
        assert_eq!(&header[0x202 - 0x1f1..][..4], b"HdrS");
        assert_eq!(header.len(), 0x202 + 0x6a - 0x1f1);
    }
    let plain = Kernel::parse(vmlinux()).unwrap();
    assert!(plain.setup_header.is_none());
    assert_eq!(&plain.image[plain.segments[0].file.clone()], [0xf4; 64]);
}

#[test]
fn says_what_is_wrong_with_what_is_no_kernel() {
    let no_kernel = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(no_kernel.path(), b"#!/bin/sh\necho hello\n").unwrap();
    let message = Kernel::open(no_kernel.path()).unwrap_err().to_string();
    assert!(message.contains("is not a Linux kernel"), "{message}");

    let missing = Kernel::open(Path::new("/nonexistent/vmlinuz")).unwrap_err();
    assert!(matches!(missing, KernelError::Read { .. }));

    let mut old = bzimage(&vmlinux());
    old[header::VERSION..][..2].copy_from_slice(&0x20au16.to_le_bytes());
    let mut narrow = bzimage(&vmlinux());
    narrow[header::XLOADFLAGS] = 0;
    let mut whole = bzimage(&lz4(&vmlinux()));
    whole.truncate(whole.len() - 20);
    let mut elf_outside = vmlinux();
    elf_outside.truncate(130);
    for (file, reason) in [
        (old, "boot protocol is 2.10"),
        (narrow, "32-bit"),
        (whole, "not copied completely"),
        (bzimage(b"BZh9 whatever"), "format favo does not know"),
        (elf_outside, "outside the file"),
    ] {
        match Kernel::parse(file) {
            Err(ParseError::Unusable(text)) => assert!(text.contains(reason), "{text}"),
            other => panic!("{reason}: {other:?}"),
        }
    }
}

#[test]
fn a_bomb_is_bounded() {
    let bomb = zstd::encode_all(&vec![0u8; 4 << 20][..], 1).unwrap();
    let error = payload::unpack(&bomb, ByteCount::mib(1)).unwrap_err();
    assert!(error.contains("more than 1 MiB"), "{error}");
}

proptest! {
    #[test]
    fn damaged_files_never_panic(
        which in 0usize..6,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in any::<prop::sample::Index>(),
        truncate in any::<bool>(),
    ) {
        let mut file = match packed(&vmlinux()).get(which) {
            Some((_, payload)) => bzimage(payload),
            None => vmlinux(),
        };
        for (index, byte) in damage {
            let at = index.index(file.len());
            file[at] = byte;
        }
        if truncate {
            file.truncate(cut.index(file.len()));
        }
        let _ = Kernel::parse(file);
    }
}
