//! MSI-X: a function's interrupt vectors (PCI 3.0, 6.8.2).
//!
//! One object is shared by the device, which signals vectors, and by its
//! [`PciFunction`](super::PciFunction), which lets the guest program them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use favo_accel::{AccessSize, Msi};
use serde::{Deserialize, Serialize};

use crate::interrupt::MsiSender;
use crate::state::{StateError, check_version};

/// Message control, bit 15: MSI-X enable.
const CONTROL_ENABLE: u16 = 1 << 15;
/// Message control, bit 14: function mask.
const CONTROL_MASK: u16 = 1 << 14;
/// Vector control, bit 0: mask.
const VECTOR_MASK: u32 = 1;

/// Bytes of a table entry.
const ENTRY_BYTES: u64 = 16;

/// The interrupt vectors of one function.
pub struct Msix {
    sender: Arc<dyn MsiSender>,
    count: u16,
    inner: Mutex<Inner>,
}

struct Inner {
    enabled: bool,
    masked: bool,
    vectors: Vec<MsixVectorState>,
}

/// One vector: a table entry and its pending bit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MsixVectorState {
    /// The message it sends.
    pub message: Msi,
    /// Whether the guest masked it.
    pub masked: bool,
    /// Whether it was signalled while it was masked.
    pub pending: bool,
}

impl Default for MsixVectorState {
    /// As after reset: masked (6.8.2.9).
    fn default() -> Self {
        Self {
            message: Msi::default(),
            masked: true,
            pending: false,
        }
    }
}

/// All vectors of one function.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MsixState {
    /// [`MsixState::VERSION`] when it was written.
    pub version: u32,
    /// MSI-X is on.
    pub enabled: bool,
    /// All vectors are masked.
    pub masked: bool,
    /// Each vector.
    pub vectors: Vec<MsixVectorState>,
}

impl MsixState {
    /// The version of the layout described here.
    pub const VERSION: u32 = 1;
}

impl Msix {
    /// The most vectors a function can have.
    pub const MAX_VECTORS: u16 = 2048;

    /// `vectors` vectors that send through `sender`; at least 1 and at most
    /// [`Msix::MAX_VECTORS`] (other numbers are brought into that range).
    pub fn new(vectors: u16, sender: Arc<dyn MsiSender>) -> Arc<Self> {
        let count = vectors.clamp(1, Self::MAX_VECTORS);
        Arc::new(Self {
            sender,
            count,
            inner: Mutex::new(Inner {
                enabled: false,
                masked: false,
                vectors: vec![MsixVectorState::default(); usize::from(count)],
            }),
        })
    }

    /// How many vectors there are.
    pub fn vectors(&self) -> u16 {
        self.count
    }

    /// Bytes the table takes.
    pub fn table_bytes(&self) -> u64 {
        u64::from(self.count) * ENTRY_BYTES
    }

    /// Bytes the pending bits take.
    pub fn pending_bytes(&self) -> u64 {
        u64::from(self.count).div_ceil(64) * 8
    }

    /// Whether the guest turned MSI-X on.
    pub fn enabled(&self) -> bool {
        self.lock().enabled
    }

    /// Interrupts. If the vector is masked it is sent when it is unmasked. A
    /// vector that does not exist, and any vector while MSI-X is off, is
    /// ignored.
    pub fn signal(&self, vector: u16) {
        let mut inner = self.lock();
        let held_back = inner.masked;
        if !inner.enabled {
            return;
        }
        let Some(vector) = inner.vectors.get_mut(usize::from(vector)) else {
            return;
        };
        if held_back || vector.masked {
            vector.pending = true;
        } else {
            let message = vector.message;
            // Sent under the lock: once a guest's write that masks the vector
            // has returned, nothing may arrive any more.
            self.sender.send(message);
        }
    }

    /// Reads the table.
    pub fn read_table(&self, offset: u64, size: AccessSize) -> u64 {
        let inner = self.lock();
        read_bytes(offset, size, |offset| {
            let vector = inner.vectors.get((offset / ENTRY_BYTES) as usize)?;
            let entry = entry_bytes(vector);
            entry.get((offset % ENTRY_BYTES) as usize).copied()
        })
    }

    /// Writes the table. Aligned 4 and 8 byte writes have an effect; others
    /// are undefined by the specification and ignored.
    pub fn write_table(&self, offset: u64, size: AccessSize, value: u64) {
        let mut inner = self.lock();
        match size {
            AccessSize::Dword if offset.is_multiple_of(4) => {
                inner.write_dword(offset, value as u32);
            }
            AccessSize::Qword if offset.is_multiple_of(8) => {
                inner.write_dword(offset, value as u32);
                inner.write_dword(offset + 4, (value >> 32) as u32);
            }
            _ => return,
        }
        inner.send_pending(&*self.sender);
    }

    /// Reads the pending bits. They are read-only.
    pub fn read_pending(&self, offset: u64, size: AccessSize) -> u64 {
        let inner = self.lock();
        read_bytes(offset, size, |offset| {
            let first = usize::try_from(offset).ok()?.checked_mul(8)?;
            let vectors = inner.vectors.iter().skip(first).take(8);
            Some(vectors.enumerate().fold(0, |byte, (bit, vector)| {
                byte | u8::from(vector.pending) << bit
            }))
        })
    }

    /// The capability's message control register.
    pub fn control(&self) -> u16 {
        let inner = self.lock();
        let mut control = self.count - 1;
        if inner.enabled {
            control |= CONTROL_ENABLE;
        }
        if inner.masked {
            control |= CONTROL_MASK;
        }
        control
    }

    /// Writes the message control register; only enable and mask are writable.
    pub fn set_control(&self, control: u16) {
        let mut inner = self.lock();
        inner.enabled = control & CONTROL_ENABLE != 0;
        inner.masked = control & CONTROL_MASK != 0;
        inner.send_pending(&*self.sender);
    }

    /// Back to power-on.
    pub fn reset(&self) {
        let mut inner = self.lock();
        inner.enabled = false;
        inner.masked = false;
        inner.vectors.fill(MsixVectorState::default());
    }

    /// Everything the guest programmed, and what is pending.
    pub fn save(&self) -> MsixState {
        let inner = self.lock();
        MsixState {
            version: MsixState::VERSION,
            enabled: inner.enabled,
            masked: inner.masked,
            vectors: inner.vectors.clone(),
        }
    }

    /// Whether [`Msix::restore`] would accept `state`.
    pub fn check(&self, state: &MsixState) -> Result<(), StateError> {
        check_version("MSI-X", state.version, MsixState::VERSION)?;
        if state.vectors.len() != usize::from(self.count) {
            return Err(StateError::invalid(
                "MSI-X",
                format!(
                    "it has {} vectors, this device has {}",
                    state.vectors.len(),
                    self.count
                ),
            ));
        }
        Ok(())
    }

    /// Takes over a saved state. Sends nothing.
    pub fn restore(&self, state: &MsixState) -> Result<(), StateError> {
        self.check(state)?;
        let mut inner = self.lock();
        inner.enabled = state.enabled;
        inner.masked = state.masked;
        inner.vectors.copy_from_slice(&state.vectors);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn write_dword(&mut self, offset: u64, value: u32) {
        let Some(vector) = usize::try_from(offset / ENTRY_BYTES)
            .ok()
            .and_then(|index| self.vectors.get_mut(index))
        else {
            return;
        };
        let address = vector.message.address;
        match offset % ENTRY_BYTES {
            // Bits 1:0 of the address are zero (6.8.2.7).
            0 => vector.message.address = address & !0xffff_ffff | u64::from(value & !3),
            4 => vector.message.address = address & 0xffff_ffff | u64::from(value) << 32,
            8 => vector.message.data = value,
            _ => vector.masked = value & VECTOR_MASK != 0,
        }
    }

    fn send_pending(&mut self, sender: &dyn MsiSender) {
        if !self.enabled || self.masked {
            return;
        }
        for vector in &mut self.vectors {
            if vector.pending && !vector.masked {
                vector.pending = false;
                sender.send(vector.message);
            }
        }
    }
}

fn entry_bytes(vector: &MsixVectorState) -> [u8; ENTRY_BYTES as usize] {
    let mut bytes = [0; ENTRY_BYTES as usize];
    bytes[..8].copy_from_slice(&vector.message.address.to_le_bytes());
    bytes[8..12].copy_from_slice(&vector.message.data.to_le_bytes());
    bytes[12..].copy_from_slice(&u32::from(vector.masked).to_le_bytes());
    bytes
}

/// Reads byte by byte; what `byte` doesn't have is 0.
fn read_bytes(offset: u64, size: AccessSize, byte: impl Fn(u64) -> Option<u8>) -> u64 {
    (0..size.bytes() as u64).rev().fold(0, |value, index| {
        let next = offset.checked_add(index).and_then(&byte).unwrap_or(0);
        value << 8 | u64::from(next)
    })
}

#[cfg(test)]
#[path = "msix_test.rs"]
mod test;
