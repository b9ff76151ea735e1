//! FNSTENV, FLDENV, FNSAVE and FRSTOR: the x87 environment in memory, in its
//! four layouts (SDM vol. 1, 8.1.10).

use iced_x86::Code;

use crate::cpu::Cpu;
use crate::native::{EXCEPTION_FLAGS, X87Image};
use crate::operation::{Handler, Operation};
use crate::trap::Exec;

/// Size of the environment with 32-bit and 16-bit operands.
const WIDE: usize = 28;
const NARROW: usize = 14;
/// The data registers behind it.
const REGISTERS: usize = 80;

/// The handler of `code`.
pub(super) fn handler(code: Code) -> Option<Handler> {
    Some(match code {
        Code::Fnstenv_m14byte => store::<NARROW, false>,
        Code::Fnstenv_m28byte => store::<WIDE, false>,
        Code::Fnsave_m94byte => store::<NARROW, true>,
        Code::Fnsave_m108byte => store::<WIDE, true>,
        Code::Fldenv_m14byte => load::<NARROW, false>,
        Code::Fldenv_m28byte => load::<WIDE, false>,
        Code::Frstor_m94byte => load::<NARROW, true>,
        Code::Frstor_m108byte => load::<WIDE, true>,
        _ => return None,
    })
}

/// FNSTENV, and with `SAVE` FNSAVE.
fn store<const SIZE: usize, const SAVE: bool>(cpu: &mut Cpu, operation: &Operation) -> Exec {
    cpu.check_x87()?;
    let size = SIZE + if SAVE { REGISTERS } else { 0 };
    let address = cpu.address(operation, size, true)?;
    let access = Cpu::operand_access(operation);
    let mut bytes = [0; WIDE + REGISTERS];
    cpu.environment::<SIZE>(&mut bytes[..SIZE]);
    if SAVE {
        for (to, from) in bytes[SIZE..].chunks_exact_mut(10).zip(&cpu.extended.x87.st) {
            to.copy_from_slice(&from[..10]);
        }
    }
    // The first field, then the last byte: it shows in the address of a fault.
    cpu.check_writable(address, SIZE / 7, access)?;
    cpu.check_writable(address.wrapping_add(size as u64 - 1), 1, access)?;
    cpu.write_pieces(address, &bytes[..size], access)?;
    if SAVE {
        cpu.initialize_x87();
    } else {
        cpu.extended.x87.fcw |= EXCEPTION_FLAGS as u16;
        cpu.extended.x87.normalize();
    }
    cpu.advance(operation);
    Ok(())
}

/// FLDENV, and with `SAVE` FRSTOR.
fn load<const SIZE: usize, const SAVE: bool>(cpu: &mut Cpu, operation: &Operation) -> Exec {
    cpu.check_x87()?;
    cpu.check_pending_x87()?;
    let size = SIZE + if SAVE { REGISTERS } else { 0 };
    let address = cpu.address(operation, size, false)?;
    let access = Cpu::operand_access(operation);
    let mut bytes = [0; WIDE + REGISTERS];
    cpu.read_pieces(address, &mut bytes[..size], access)?;
    cpu.set_environment::<SIZE>(&bytes[..SIZE]);
    if SAVE {
        for (from, to) in bytes[SIZE..].chunks_exact(10).zip(&mut cpu.extended.x87.st) {
            to[..10].copy_from_slice(from);
        }
    }
    cpu.advance(operation);
    Ok(())
}

/// A little-endian field of an environment.
fn field(bytes: &[u8], number: usize) -> u32 {
    let width = bytes.len() / 7;
    let bytes = &bytes[number * width..][..width];
    bytes
        .iter()
        .rev()
        .fold(0, |value, byte| value << 8 | u32::from(*byte))
}

impl Cpu {
    /// Real-address mode and virtual-8086 mode have linear pointers.
    fn has_linear_pointers(&self) -> bool {
        !self.protected()
    }

    /// The environment in seven fields of SIZE / 7 bytes.
    fn environment<const SIZE: usize>(&self, bytes: &mut [u8]) {
        let x87 = &self.extended.x87;
        let (fip, fdp) = (self.extended.fip as u32, self.extended.fdp as u32);
        let fop = u32::from(self.extended.fop);
        let wide = SIZE == WIDE;
        // Unused upper halves read as ones.
        let upper = if wide { 0xffff_0000 } else { 0 };
        let mut fields = [0; 7];
        fields[0] = upper | u32::from(x87.fcw);
        fields[1] = upper | u32::from(x87.fsw);
        fields[2] = upper | u32::from(full_tags(x87));
        if self.has_linear_pointers() {
            let fip = (u32::from(self.extended.fcs) << 4).wrapping_add(fip);
            let fdp = (u32::from(self.extended.fds) << 4).wrapping_add(fdp);
            let mask = if wide { 0x0fff_f000 } else { 0xf000 };
            fields[3] = upper | fip & 0xffff;
            fields[4] = fip >> 4 & mask | fop;
            fields[5] = upper | fdp & 0xffff;
            fields[6] = fdp >> 4 & mask;
        } else {
            fields[3] = fip;
            fields[4] = u32::from(self.extended.fcs) | if wide { fop << 16 } else { 0 };
            fields[5] = fdp;
            fields[6] = upper | u32::from(self.extended.fds);
        }
        let width = SIZE / 7;
        for (to, value) in bytes.chunks_exact_mut(width).zip(fields) {
            to.copy_from_slice(&value.to_le_bytes()[..width]);
        }
    }

    fn set_environment<const SIZE: usize>(&mut self, bytes: &[u8]) {
        let field = |number| field(bytes, number);
        let wide = SIZE == WIDE;
        let linear = self.has_linear_pointers();
        let extended = &mut self.extended;
        let fsw = field(1) as u16;
        extended.x87.rotate_to(usize::from(fsw >> 11 & 7));
        extended.x87.fcw = field(0) as u16;
        extended.x87.fsw = fsw;
        extended.x87.ftw = (0..8)
            .filter(|n| field(2) >> (2 * n) & 3 != 3)
            .fold(0, |tags, n| tags | 1 << n);
        extended.x87.normalize();
        let low = if wide { u32::MAX } else { 0xffff };
        if linear {
            let mask = if wide { 0x0fff_f000 } else { 0xf000 };
            extended.fip = (field(3) & 0xffff | (field(4) & mask) << 4).into();
            extended.fdp = (field(5) & 0xffff | (field(6) & mask) << 4).into();
            extended.fop = field(4) as u16 & 0x7ff;
            extended.fcs = 0;
            extended.fds = 0;
        } else {
            extended.fip = (field(3) & low).into();
            extended.fdp = (field(5) & low).into();
            extended.fcs = field(4) as u16;
            extended.fds = field(6) as u16;
            extended.fop = if wide {
                (field(4) >> 16) as u16 & 0x7ff
            } else {
                0
            };
        }
    }
}

/// The tag word with two bits a register: 0 valid, 1 zero, 2 special, 3 empty.
fn full_tags(x87: &X87Image) -> u16 {
    (0..8usize).fold(0, |tags, physical| {
        let st = &x87.st[(physical + 8 - x87.top()) & 7];
        let exponent = u16::from_le_bytes([st[8], st[9]]) & 0x7fff;
        let empty = x87.ftw >> physical & 1 == 0;
        let tag = if empty {
            3
        } else if exponent == 0 && st[..8].iter().all(|byte| *byte == 0) {
            1
        } else if exponent == 0 || exponent == 0x7fff || st[7] & 0x80 == 0 {
            2
        } else {
            0
        };
        tags | tag << (2 * physical)
    })
}
