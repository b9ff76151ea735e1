//! The 256 bytes of a type 0 configuration space (PCI 3.0, 6.1 and 6.2):
//! values, which bits of them a guest may write, and where capabilities lie.
//!
//! Pure: no device, no bus. A BAR's size is nothing but the mask of its
//! writable bits, so sizing needs no code of its own.

use favo_accel::AccessSize;

use super::{BarIndex, BarKind, BarSpec, Capability, PciIdentity, PciSpec};

/// Bytes of a conventional configuration space.
pub(super) const CONFIG_BYTES: usize = 256;

/// Command register, bit 1: the function decodes its memory BARs.
pub(super) const COMMAND_MEMORY: u16 = 1 << 1;
/// Command register, bit 2: the function may access memory itself.
pub(super) const COMMAND_BUS_MASTER: u16 = 1 << 2;
/// Command register, bit 10: no wired interrupts. Kept, without effect.
const COMMAND_INTX_DISABLE: u16 = 1 << 10;
/// Status register, bit 4: there are capabilities.
const STATUS_CAPABILITIES: u16 = 1 << 4;

const VENDOR: usize = 0x00;
const DEVICE: usize = 0x02;
pub(super) const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const REVISION: usize = 0x08;
const CACHE_LINE: usize = 0x0c;
const BAR0: usize = 0x10;
const SUBSYSTEM_VENDOR: usize = 0x2c;
const SUBSYSTEM: usize = 0x2e;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const FIRST_CAPABILITY: usize = 0x40;

/// Bits 2:1 of a memory BAR: 64 bits wide.
const BAR_64: u32 = 2 << 1;
const BAR_PREFETCHABLE: u32 = 1 << 3;
const BAR_FLAGS: u64 = 0xf;

/// Capability id of MSI-X.
const MSIX_ID: u8 = 0x11;
/// Bytes of the MSI-X capability behind its header.
const MSIX_BODY: usize = 10;

/// Who answers for a byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Owner {
    /// The values and masks here.
    Plain,
    /// The device: capability number, and offset in its body.
    Device(usize, u16),
    /// The MSI-X message control register: byte 0 or 1.
    MsixControl(usize),
}

/// Values, masks and layout.
pub(super) struct ConfigSpace {
    bytes: [u8; CONFIG_BYTES],
    writable: [u8; CONFIG_BYTES],
    bars: Vec<BarSpec>,
    /// First byte, length and number of each dynamic capability's body.
    dynamic: Vec<(usize, usize, usize)>,
    msix_control: Option<usize>,
}

impl ConfigSpace {
    /// The configuration space `spec` describes, or what is wrong with it.
    pub(super) fn new(spec: &PciSpec) -> Result<Self, String> {
        let mut config = Self {
            bytes: [0; CONFIG_BYTES],
            writable: [0; CONFIG_BYTES],
            bars: Vec::new(),
            dynamic: Vec::new(),
            msix_control: None,
        };
        config.set_identity(&spec.identity);
        for bar in &spec.bars {
            config.add_bar(*bar)?;
        }
        let mut free = FIRST_CAPABILITY;
        let mut link = CAPABILITIES;
        for (number, capability) in spec.capabilities.iter().enumerate() {
            let start = config.add_capability(&mut free, &mut link, capability)?;
            if capability.dynamic {
                config
                    .dynamic
                    .push((start + 2, capability.body.len(), number));
            }
        }
        if let Some(msix) = &spec.msix {
            check_msix(spec, msix)?;
            let bar = u32::from(msix.bar.get());
            let mut body = vec![0; 2];
            body.extend_from_slice(&(msix.table_offset | bar).to_le_bytes());
            body.extend_from_slice(&(msix.pending_offset | bar).to_le_bytes());
            debug_assert_eq!(body.len(), MSIX_BODY);
            let capability = Capability {
                id: MSIX_ID,
                body,
                dynamic: false,
            };
            let start = config.add_capability(&mut free, &mut link, &capability)?;
            config.msix_control = Some(start + 2);
        }
        Ok(config)
    }

    /// Who answers for the byte at `offset`.
    pub(super) fn owner(&self, offset: usize) -> Owner {
        if let Some(control) = self.msix_control
            && (control..control + 2).contains(&offset)
        {
            return Owner::MsixControl(offset - control);
        }
        self.dynamic
            .iter()
            .find(|(start, length, _)| (*start..start + length).contains(&offset))
            .map_or(Owner::Plain, |&(start, _, number)| {
                Owner::Device(number, (offset - start) as u16)
            })
    }

    /// A plain byte.
    pub(super) fn read(&self, offset: usize) -> u8 {
        self.bytes.get(offset).copied().unwrap_or(0xff)
    }

    /// Writes the writable bits of a plain byte.
    pub(super) fn write(&mut self, offset: usize, value: u8) {
        if let (Some(byte), Some(mask)) = (self.bytes.get_mut(offset), self.writable.get(offset)) {
            *byte = *byte & !mask | value & mask;
        }
    }

    pub(super) fn command(&self) -> u16 {
        self.read_u16(COMMAND)
    }

    pub(super) fn bars(&self) -> &[BarSpec] {
        &self.bars
    }

    /// Where the guest, or whoever set it up, put a BAR.
    pub(super) fn bar_address(&self, bar: &BarSpec) -> u64 {
        let at = bar_register(bar.index);
        let low = u64::from(self.read_u32(at));
        let high = match bar.kind {
            BarKind::Memory32 => 0,
            BarKind::Memory64 => u64::from(self.read_u32(at + 4)),
        };
        (high << 32 | low) & !BAR_FLAGS
    }

    pub(super) fn set_bar_address(&mut self, bar: &BarSpec, address: u64) {
        let at = bar_register(bar.index);
        let bytes = address.to_le_bytes();
        let width = match bar.kind {
            BarKind::Memory32 => 4,
            BarKind::Memory64 => 8,
        };
        for (index, byte) in bytes[..width].iter().enumerate() {
            self.write(at + index, *byte);
        }
    }

    /// All values, for a saved state.
    pub(super) fn bytes(&self) -> &[u8; CONFIG_BYTES] {
        &self.bytes
    }

    /// Whether `saved` differs from this space only in writable bits; the
    /// offset of the first byte that does not.
    pub(super) fn first_difference(&self, saved: &[u8; CONFIG_BYTES]) -> Option<usize> {
        (0..CONFIG_BYTES).find(|&at| (self.bytes[at] ^ saved[at]) & !self.writable[at] != 0)
    }

    /// Takes over the writable bits of `saved`.
    pub(super) fn load(&mut self, saved: &[u8; CONFIG_BYTES]) {
        for (offset, value) in saved.iter().enumerate() {
            self.write(offset, *value);
        }
    }

    /// Clears every writable bit.
    pub(super) fn reset(&mut self) {
        self.load(&[0; CONFIG_BYTES]);
    }

    fn set_identity(&mut self, identity: &PciIdentity) {
        self.put_u16(VENDOR, identity.vendor);
        self.put_u16(DEVICE, identity.device);
        let class = identity.class << 8 | u32::from(identity.revision);
        self.bytes[REVISION..REVISION + 4].copy_from_slice(&class.to_le_bytes());
        self.put_u16(SUBSYSTEM_VENDOR, identity.subsystem_vendor);
        self.put_u16(SUBSYSTEM, identity.subsystem);
        let command = COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_INTX_DISABLE;
        self.writable[COMMAND..COMMAND + 2].copy_from_slice(&command.to_le_bytes());
        self.writable[CACHE_LINE] = 0xff;
        self.writable[INTERRUPT_LINE] = 0xff;
    }

    fn add_bar(&mut self, bar: BarSpec) -> Result<(), String> {
        let index = bar.index.get();
        let (registers, limit) = match bar.kind {
            BarKind::Memory32 => (1, 1 << 31),
            BarKind::Memory64 => (2, 1 << 62),
        };
        if !bar.size.is_power_of_two() || bar.size < 4096 || bar.size > limit {
            return Err(format!(
                "BAR {index} has {:#x} bytes: a power of two from 0x1000 to {limit:#x} is needed",
                bar.size
            ));
        }
        if usize::from(index) + registers > BarIndex::COUNT {
            return Err(format!("BAR {index} is the last one and can't be 64-bit"));
        }
        let at = bar_register(bar.index);
        let taken = self.writable[at..at + 4 * registers]
            .iter()
            .any(|mask| *mask != 0)
            || self.bars.iter().any(|other| {
                other.kind == BarKind::Memory64 && other.index.get() + 1 == index
                    || other.index == bar.index
            });
        if taken {
            return Err(format!("BAR {index} is used twice"));
        }
        let mut flags = 0;
        if bar.kind == BarKind::Memory64 {
            flags |= BAR_64;
        }
        if bar.prefetchable {
            flags |= BAR_PREFETCHABLE;
        }
        self.bytes[at..at + 4].copy_from_slice(&flags.to_le_bytes());
        let mask = (!(bar.size - 1)).to_le_bytes();
        self.writable[at..at + 4 * registers].copy_from_slice(&mask[..4 * registers]);
        self.bars.push(bar);
        Ok(())
    }

    /// Appends a capability at `free` and links it from `link`.
    fn add_capability(
        &mut self,
        free: &mut usize,
        link: &mut usize,
        capability: &Capability,
    ) -> Result<usize, String> {
        let start = *free;
        let end = start + 2 + capability.body.len();
        if end > CONFIG_BYTES {
            return Err("its capabilities don't fit into 192 bytes".to_owned());
        }
        self.bytes[*link] = start as u8;
        self.bytes[start] = capability.id;
        self.bytes[start + 2..end].copy_from_slice(&capability.body);
        *link = start + 1;
        *free = end.next_multiple_of(4);
        let status = self.read_u16(STATUS) | STATUS_CAPABILITIES;
        self.put_u16(STATUS, status);
        Ok(start)
    }

    fn read_u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    fn read_u32(&self, at: usize) -> u32 {
        u32::from(self.read_u16(at)) | u32::from(self.read_u16(at + 2)) << 16
    }

    fn put_u16(&mut self, at: usize, value: u16) {
        self.bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
}

/// Whether an access that a driver may make: naturally aligned, in the space.
pub(super) fn is_valid_access(offset: u64, size: AccessSize) -> bool {
    size != AccessSize::Qword && offset.is_multiple_of(size.bytes() as u64)
}

fn bar_register(index: BarIndex) -> usize {
    BAR0 + 4 * usize::from(index.get())
}

fn check_msix(spec: &PciSpec, msix: &super::MsixSpec) -> Result<(), String> {
    let bar = spec
        .bars
        .iter()
        .find(|bar| bar.index == msix.bar)
        .ok_or_else(|| format!("MSI-X lies in BAR {}, which it has not", msix.bar.get()))?;
    let table = u64::from(msix.table_offset);
    let pending = u64::from(msix.pending_offset);
    let table_end = table + msix.msix.table_bytes();
    let pending_end = pending + msix.msix.pending_bytes();
    if !table.is_multiple_of(8) || !pending.is_multiple_of(8) {
        return Err("its MSI-X structures are not 8-byte aligned".to_owned());
    }
    if table_end > bar.size || pending_end > bar.size {
        return Err("its MSI-X structures don't fit into their BAR".to_owned());
    }
    if table < pending_end && pending < table_end {
        return Err("its MSI-X structures overlap".to_owned());
    }
    Ok(())
}
