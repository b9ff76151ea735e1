//! Captures: what crosses a cable, written down for tshark and its like.
//!
//! A [`Capture`] is one pcapng file; [`Capture::wrap`] puts it around a
//! [`Link`]. Frames are written as they cross the cable, large ones whole, with
//! their checksums finished and the direction as the guest's card sees it.
//!
//! A capture never harms the traffic: a file that can't be written any more
//! (a full disk) is said once, ends the capture, and frames go on.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::{DataLink, PcapError};

use crate::link::{Link, MAX_FRAME_LENGTH, Offload};
use crate::offload::finish_checksum;

/// Timestamps are in units of 10⁻⁹ seconds.
const NANOSECONDS: u8 = 9;
/// Direction, in a packet's flags: bits 1:0 (pcapng, `epb_flags`).
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

/// A file that captured frames go to. Clones write to the same file.
#[derive(Clone)]
pub struct Capture(Arc<Mutex<Writer>>);

struct Writer {
    path: PathBuf,
    /// Gone after an error.
    file: Option<PcapNgWriter<BufWriter<File>>>,
    frame: Vec<u8>,
}

impl Capture {
    /// Creates the file, over an older one. `interface` is the name the
    /// capture gives the guest's card.
    pub fn create(path: &Path, interface: &str) -> io::Result<Self> {
        let file = BufWriter::with_capacity(1 << 18, File::create(path)?);
        let mut file = PcapNgWriter::new(file).map_err(io_error)?;
        let description = InterfaceDescriptionBlock {
            linktype: DataLink::ETHERNET,
            snaplen: MAX_FRAME_LENGTH as u32,
            options: vec![
                InterfaceDescriptionOption::IfName(Cow::Borrowed(interface)),
                InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
            ],
        };
        file.write_pcapng_block(description).map_err(io_error)?;
        // Whoever looks sees a capture, if an empty one.
        file.get_mut().flush()?;
        Ok(Self(Arc::new(Mutex::new(Writer {
            path: path.to_owned(),
            file: Some(file),
            frame: Vec::new(),
        }))))
    }

    /// `link`, with everything that crosses it captured.
    pub fn wrap(&self, link: Box<dyn Link>) -> Box<dyn Link> {
        Box::new(CapturedLink {
            link,
            capture: self.clone(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Writer> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writer {
    fn write(&mut self, frame: &[u8], offload: Offload, direction: u32) {
        let Some(file) = &mut self.file else {
            return;
        };
        let mut data = Cow::Borrowed(frame);
        if let Some(checksum) = offload.checksum {
            self.frame.clear();
            self.frame.extend_from_slice(frame);
            if finish_checksum(&mut self.frame, checksum).is_some() {
                data = Cow::Borrowed(&self.frame);
            }
        }
        let block = EnhancedPacketBlock {
            interface_id: 0,
            timestamp: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default(),
            original_len: frame.len() as u32,
            data,
            options: vec![EnhancedPacketOption::Flags(direction)],
        };
        let written = file.write_pcapng_block(block);
        self.check(written.map(|_| ()).map_err(io_error));
    }

    /// Lets readers see what was captured.
    fn flush(&mut self) {
        if let Some(file) = &mut self.file {
            let flushed = file.get_mut().flush();
            self.check(flushed);
        }
    }

    fn check(&mut self, result: io::Result<()>) {
        if let Err(error) = result {
            let path = self.path.display();
            tracing::error!(%error, "writing the capture {path}; it ends here");
            self.file = None;
        }
    }
}

fn io_error(error: PcapError) -> io::Error {
    match error {
        PcapError::IoError(error) => error,
        other => io::Error::other(other),
    }
}

struct CapturedLink {
    link: Box<dyn Link>,
    capture: Capture,
}

impl Link for CapturedLink {
    fn send(&mut self, frame: &[u8], offload: Offload) {
        self.capture.lock().write(frame, offload, OUTBOUND);
        self.link.send(frame, offload);
    }

    fn flush(&mut self) {
        self.link.flush();
        self.capture.lock().flush();
    }

    fn receive(&mut self, frame: &mut Vec<u8>) -> Option<Offload> {
        let received = self.link.receive(frame);
        let mut capture = self.capture.lock();
        match received {
            Some(offload) => capture.write(frame, offload, INBOUND),
            None => capture.flush(),
        }
        received
    }

    fn ready(&self) -> BorrowedFd<'_> {
        self.link.ready()
    }

    fn set_active(&mut self, active: bool) {
        self.link.set_active(active);
    }
}

#[cfg(test)]
#[path = "pcap_test.rs"]
mod test;
