use std::os::fd::AsFd;
use std::process::Command;

use etherparse::PacketBuilder;
use pcap_file::pcapng::{Block, PcapNgReader};

use super::*;
use crate::link::PartialChecksum;

/// Sends every frame back.
struct Echo {
    frames: Vec<(Vec<u8>, Offload)>,
    ready: File,
}

impl Link for Echo {
    fn send(&mut self, frame: &[u8], offload: Offload) {
        self.frames.push((frame.to_vec(), offload));
    }

    fn flush(&mut self) {}

    fn receive(&mut self, frame: &mut Vec<u8>) -> Option<Offload> {
        let (next, offload) = self.frames.pop()?;
        frame.extend(next);
        Some(offload)
    }

    fn ready(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }
}

fn echo() -> Box<dyn Link> {
    Box::new(Echo {
        frames: Vec::new(),
        ready: File::open("/dev/null").unwrap(),
    })
}

/// A right datagram, and the same with its checksum left out.
fn datagram(payload: &[u8]) -> (Vec<u8>, Vec<u8>, Offload) {
    let mut right = Vec::new();
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .udp(49_152, 49_153)
        .write(&mut right, payload)
        .unwrap();
    let mut left_out = right.clone();
    let length = (8 + payload.len()) as u64;
    let pseudo = crate::offload::add(17 + length, &right[26..34]);
    left_out[40..42].copy_from_slice(&crate::offload::fold(pseudo).to_be_bytes());
    let offload = Offload {
        checksum: Some(PartialChecksum {
            start: 34,
            offset: 6,
        }),
        ..Offload::default()
    };
    (right, left_out, offload)
}

#[test]
fn a_capture_holds_both_directions_with_right_checksums() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("port.pcapng");
    let capture = Capture::create(&path, "favo0").unwrap();
    let mut link = capture.wrap(echo());
    let (right, left_out, offload) = datagram(b"hello");
    link.send(&left_out, offload);
    link.flush();
    let mut frame = Vec::new();
    // What goes through is not touched.
    assert_eq!(link.receive(&mut frame), Some(offload));
    assert_eq!(frame, left_out);
    assert_eq!(link.receive(&mut frame), None);

    let mut reader = PcapNgReader::new(File::open(&path).unwrap()).unwrap();
    let mut seen = Vec::new();
    while let Some(block) = reader.next_block() {
        if let Block::EnhancedPacket(packet) = block.unwrap().into_owned() {
            let age = SystemTime::now()
                .duration_since(UNIX_EPOCH + packet.timestamp)
                .unwrap();
            assert!(age.as_secs() < 600);
            seen.push((packet.data.into_owned(), packet.options));
        }
    }
    let flags = |direction| vec![EnhancedPacketOption::Flags(direction)];
    assert_eq!(
        seen,
        [(right.clone(), flags(OUTBOUND)), (right, flags(INBOUND))]
    );
}

#[test]
fn tshark_reads_a_capture() {
    if Command::new("tshark").arg("-v").output().is_err() {
        eprintln!("skipped: there is no tshark (Debian package tshark)");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("port.pcapng");
    let capture = Capture::create(&path, "favo0").unwrap();
    let mut link = capture.wrap(echo());
    for length in [0, 1, 2, 3, 1400, 60_000] {
        let (_, frame, offload) = datagram(&vec![7; length]);
        link.send(&frame, offload);
    }
    link.flush();
    let output = Command::new("tshark")
        .args(["-o", "udp.check_checksum:TRUE", "-T", "fields"])
        .args(["-e", "frame.len", "-e", "udp.checksum.status"])
        .args(["-e", "_ws.malformed", "-e", "frame.time_delta", "-r"])
        .arg(&path)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split('\t').collect())
        .collect();
    assert!(output.status.success());
    assert_eq!(lines.len(), 6, "{text}");
    for (line, length) in lines.iter().zip([42, 43, 44, 45, 1442, 60_042]) {
        // 1: the checksum is good.
        assert_eq!(line[..3], [length.to_string().as_str(), "1", ""], "{text}");
        assert!(line[3].parse::<f64>().unwrap() < 60.0, "{text}");
    }
}

#[test]
fn a_full_disk_ends_the_capture_and_not_the_traffic() {
    let full = Path::new("/dev/full");
    assert!(Capture::create(full, "favo0").is_err());
    let capture = Capture(Arc::new(Mutex::new(Writer {
        path: full.to_owned(),
        file: Some(
            PcapNgWriter::new(BufWriter::new(
                File::options().write(true).open(full).unwrap(),
            ))
            .unwrap(),
        ),
        frame: Vec::new(),
    })));
    let mut link = capture.wrap(echo());
    let (frame, ..) = datagram(b"hello");
    for _ in 0..3 {
        link.send(&frame, Offload::default());
        link.flush();
        assert!(link.receive(&mut Vec::new()).is_some());
    }
    assert!(capture.lock().file.is_none());
}
