//! A virtual machine as a network card sees it, without a processor in the
//! way: one TCP connection over a [`PortLink`], with checksums and cutting
//! left to others, as guests with offloads do it. It copies no user's data:
//! what it measures is the plane. Nothing is lost on the way, so it sends
//! nothing again; a gap ends the measurement.

use std::io;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use favo_net::link::{Link, Offload, PartialChecksum, SegmentKind, Segmentation};
use favo_net::model::MacAddress;
use favo_net::packet::Sum;
use favo_net::queue::PortLink;
use rustix::event::{PollFd, PollFlags, poll};

const HEADERS: usize = 14 + 20 + 20;
/// The window told: 3 MiB, in units of 128 bytes; less than a queue holds.
const WINDOW: u16 = 24_576;
const SCALE: u8 = 7;
/// Nothing acknowledged for so long is a defect, and said with what is known.
const PATIENCE: Duration = Duration::from_secs(2);
/// The most under way, bytes.
const IN_FLIGHT: u32 = 2 << 20;
/// The most under way, frames.
const FRAMES: u32 = 2000;
/// Payload of one frame, at most.
const LARGEST: usize = 65_535 - 40;

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// One end of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Address {
    pub mac: MacAddress,
    pub ip: Ipv4Addr,
    pub port: u16,
}

pub struct Guest {
    link: PortLink,
    frame: Vec<u8>,
    received: Vec<u8>,
    mss: u16,
    /// Payload bytes in a frame.
    length: usize,
    sequence: u32,
    acknowledged: u32,
    expected: u32,
    window: u32,
    scale: u8,
    /// Frames with data, of either direction.
    pub frames: u64,
}

impl Guest {
    /// A guest at `own`, which talks to `peer` only. `length`: payload bytes
    /// of one frame, 0: as many as fit.
    pub fn new(link: PortLink, own: Address, peer: Address, mtu: u16, length: usize) -> Self {
        let mss = mtu - 40;
        let most = match LARGEST / usize::from(mss) * usize::from(mss) {
            0 => usize::from(mss),
            most => most,
        };
        let length = if length == 0 { most } else { length.min(most) };
        let mut frame = vec![0x5a; HEADERS + length];
        frame[..6].copy_from_slice(&peer.mac.0);
        frame[6..12].copy_from_slice(&own.mac.0);
        frame[12..26].copy_from_slice(&[8, 0, 0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0]);
        frame[26..30].copy_from_slice(&own.ip.octets());
        frame[30..34].copy_from_slice(&peer.ip.octets());
        frame[34..36].copy_from_slice(&own.port.to_be_bytes());
        frame[36..38].copy_from_slice(&peer.port.to_be_bytes());
        Self {
            link,
            frame,
            received: Vec::new(),
            mss,
            length,
            sequence: 1000,
            acknowledged: 1000,
            expected: 0,
            window: 0,
            scale: 0,
            frames: 0,
        }
    }

    fn send(&mut self, flags: u8, options: &[u8], length: usize) {
        // Options only come without data, so they can lie where data would.
        let whole = HEADERS + options.len() + length;
        let kept: [u8; 8] = [self.frame[HEADERS]; 8];
        self.frame[HEADERS..HEADERS + options.len()].copy_from_slice(options);
        let frame = &mut self.frame[..whole];
        frame[16..18].copy_from_slice(&((whole - 14) as u16).to_be_bytes());
        frame[24..26].fill(0);
        let sum = Sum::default().bytes(&frame[14..34]).checksum();
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame[38..42].copy_from_slice(&self.sequence.to_be_bytes());
        frame[42..46].copy_from_slice(&self.expected.to_be_bytes());
        frame[46] = ((20 + options.len()) << 2) as u8;
        frame[47] = flags;
        let window = if flags & SYN == 0 { WINDOW } else { u16::MAX };
        frame[48..50].copy_from_slice(&window.to_be_bytes());
        let pseudo = Sum::default()
            .bytes(&frame[26..34])
            .bytes(&[0, 6])
            .bytes(&((whole - 34) as u16).to_be_bytes())
            .fold();
        frame[50..52].copy_from_slice(&pseudo.to_be_bytes());
        let segmentation = (length > usize::from(self.mss)).then_some(Segmentation {
            kind: SegmentKind::Tcp4,
            size: self.mss,
            header: HEADERS as u16,
        });
        let offload = Offload {
            checksum: Some(PartialChecksum {
                start: 34,
                offset: 16,
            }),
            segmentation,
            checked: false,
        };
        self.link.send(&self.frame[..whole], offload);
        let parts = options.len();
        self.frame[HEADERS..HEADERS + parts].copy_from_slice(&kept[..parts]);
        let flagged = u32::from(flags & (SYN | FIN) != 0);
        self.sequence = self.sequence.wrapping_add(length as u32 + flagged);
    }

    fn options(&self) -> [u8; 8] {
        let [high, low] = self.mss.to_be_bytes();
        [2, 4, high, low, 3, 3, SCALE, 1]
    }

    /// The next segment for this guest: its flags and its payload's length.
    fn take(&mut self) -> io::Result<Option<(u8, usize)>> {
        loop {
            self.received.clear();
            if self.link.receive(&mut self.received).is_none() {
                return Ok(None);
            }
            let frame = &self.received;
            if frame.len() < HEADERS || frame[12..14] != [8, 0] || frame[23] != 6 {
                continue;
            }
            let word = |at: usize| {
                u32::from_be_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]])
            };
            let data = 34 + usize::from(frame[46] >> 4) * 4;
            let (flags, mut length) = (frame[47], frame.len() - data);
            if flags & RST != 0 {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            if flags & SYN != 0 {
                self.expected = word(38);
                let options = &frame[HEADERS..data];
                let scale = options.windows(3).find(|option| option[..2] == [3, 3]);
                self.scale = scale.map_or(0, |option| option[2]);
            } else if word(38) != self.expected {
                // On a busy host the way out may send again what is only late.
                let old = self.expected.wrapping_sub(word(38)) as i32;
                if length > 0 && old < 0 {
                    return Err(io::Error::other("a segment is missing"));
                }
                if length <= old.max(0) as usize {
                    return Ok(Some((0, 0)));
                }
                length -= old.max(0) as usize;
            }
            let flagged = u32::from(flags & (SYN | FIN) != 0);
            self.expected = self.expected.wrapping_add(length as u32 + flagged);
            // What was sent again late acknowledges less than is known.
            let newer = word(42).wrapping_sub(self.acknowledged) as i32 >= 0;
            if flags & ACK != 0 && newer {
                self.acknowledged = word(42);
                let scale = if flags & SYN == 0 { self.scale } else { 0 };
                self.window = u32::from(u16::from_be_bytes([frame[48], frame[49]])) << scale;
            }
            return Ok(Some((flags, length)));
        }
    }

    /// Waits for a segment, until `end`.
    fn wait(&mut self, end: Instant) -> io::Result<bool> {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = rustix::time::Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let ready = self.link.ready();
        Ok(poll(&mut [PollFd::new(&ready, PollFlags::IN)], Some(&timeout))? > 0)
    }

    fn expect(&mut self, wanted: u8) -> io::Result<()> {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            match self.take()? {
                Some((flags, _)) if flags & wanted == wanted => return Ok(()),
                Some(_) => {}
                None if self.wait(end)? => {}
                None => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
    }

    pub fn connect(&mut self) -> io::Result<()> {
        let options = self.options();
        self.send(SYN, &options, 0);
        self.link.flush();
        self.expect(SYN | ACK)?;
        self.send(ACK, &[], 0);
        self.link.flush();
        Ok(())
    }

    pub fn accept(&mut self) -> io::Result<()> {
        self.expect(SYN)?;
        let options = self.options();
        self.send(SYN | ACK, &options, 0);
        self.link.flush();
        self.expect(ACK)
    }

    /// Sends until `end`.
    pub fn pour(&mut self, end: Instant) -> io::Result<()> {
        let mut progress = (Instant::now(), self.acknowledged);
        while Instant::now() < end {
            if progress.1 != self.acknowledged {
                progress = (Instant::now(), self.acknowledged);
            } else if progress.0.elapsed() > PATIENCE {
                return Err(io::Error::other(format!(
                    "it stands still: {} sent, {} acknowledged, a window of {}",
                    self.sequence, self.acknowledged, self.window
                )));
            }
            // No more frames than a queue takes, however short they are.
            let window = self.window.min(IN_FLIGHT).min(FRAMES * self.length as u32);
            loop {
                let ahead = self.sequence.wrapping_sub(self.acknowledged);
                if ahead + self.length as u32 > window {
                    break;
                }
                self.send(ACK, &[], self.length);
                self.frames += 1;
            }
            self.link.flush();
            let mut any = false;
            while self.take()?.is_some() {
                any = true;
            }
            if !any {
                self.wait(end.min(Instant::now() + PATIENCE / 4))?;
            }
        }
        self.send(FIN | ACK, &[], 0);
        self.link.flush();
        Ok(())
    }

    /// Receives until the other end is done; gives the bytes.
    pub fn drain(&mut self, end: Instant) -> io::Result<u64> {
        let mut bytes = 0;
        loop {
            match self.take()? {
                Some((flags, length)) => {
                    if length > 0 {
                        bytes += length as u64;
                        self.frames += 1;
                    }
                    self.send(ACK, &[], 0);
                    if flags & FIN != 0 {
                        self.link.flush();
                        return Ok(bytes);
                    }
                }
                None => {
                    self.link.flush();
                    if !self.wait(end)? && Instant::now() >= end {
                        return Ok(bytes);
                    }
                }
            }
        }
    }
}
