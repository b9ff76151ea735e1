//! Registers and memory as operands.

use crate::cpu::{CodeSize, Cpu, SegmentRegister, rflags};
use crate::mmu::Access;
use crate::operation::{NO_SEGMENT, Operation, RIP_BASE, prefix};
use crate::scalar::Scalar;
use crate::trap::{Exception, Exec, GP0};

/// Number of the first high-byte register, AH.
pub(crate) const HIGH_BYTES: u8 = 16;

impl Cpu {
    /// Reads a register; 16 to 19 are AH, CH, DH and BH for bytes.
    #[inline(always)]
    pub(crate) fn register<T: Scalar>(&self, number: u8) -> T {
        if T::SIZE == 1 && number >= HIGH_BYTES {
            return T::from_u64(self.gpr[usize::from(number - HIGH_BYTES)] >> 8);
        }
        T::from_u64(self.gpr[usize::from(number)])
    }

    /// Writes a register: 32 bits clear the upper half, 8 and 16 keep it.
    #[inline(always)]
    pub(crate) fn set_register<T: Scalar>(&mut self, number: u8, value: T) {
        let value = value.to_u64();
        if T::SIZE == 1 && number >= HIGH_BYTES {
            let register = &mut self.gpr[usize::from(number - HIGH_BYTES)];
            *register = *register & !0xff00 | value << 8;
            return;
        }
        let register = &mut self.gpr[usize::from(number)];
        *register = if T::SIZE >= 4 {
            value
        } else {
            *register & !T::MASK | value
        };
    }

    /// Moves RIP behind the operation.
    #[inline(always)]
    pub(crate) fn advance(&mut self, operation: &Operation) {
        self.rip = self.rip.wrapping_add(operation.length.into());
    }

    /// The memory operand's offset in its segment.
    #[inline(always)]
    pub(crate) fn offset(&self, operation: &Operation) -> u64 {
        let base = if operation.base == RIP_BASE {
            self.rip.wrapping_add(operation.length.into())
        } else {
            self.gpr[usize::from(operation.base)]
        };
        let index = self.gpr[usize::from(operation.index)] << operation.scale;
        let offset = base
            .wrapping_add(index)
            .wrapping_add(operation.displacement);
        offset << operation.address_shift >> operation.address_shift
    }

    /// The linear address of the memory operand, its segment checked for an
    /// access of `size` bytes.
    #[inline(always)]
    pub(crate) fn address(&self, operation: &Operation, size: usize, write: bool) -> Exec<u64> {
        let offset = self.offset(operation);
        if operation.checks_segment {
            return self.checked_address(operation.segment, offset, size, write);
        }
        Ok(self.bases[usize::from(operation.segment)].wrapping_add(offset))
    }

    /// A linear address outside 64-bit mode, or the segment's fault.
    pub(crate) fn checked_address(
        &self,
        segment: u8,
        offset: u64,
        size: usize,
        write: bool,
    ) -> Exec<u64> {
        if segment == NO_SEGMENT || self.code_size == CodeSize::Bits64 {
            return Ok(self.bases[usize::from(segment)].wrapping_add(offset));
        }
        let register = &self.segments[usize::from(segment)];
        let fault = if segment == SegmentRegister::Ss as u8 {
            Exception::Stack(0)
        } else {
            Exception::GeneralProtection(0)
        };
        if register.unusable() {
            return Err(Exception::GeneralProtection(0).into());
        }
        let kind = register.kind();
        let code = kind & 8 != 0;
        if self.protected() {
            let forbidden = if write {
                code || kind & 2 == 0
            } else {
                code && kind & 2 == 0
            };
            if forbidden {
                return Err(fault.into());
            }
        }
        let last = offset.wrapping_add(size as u64 - 1);
        let limit = u64::from(register.limit);
        let inside = if !code && kind & 4 != 0 {
            // Expand down: everything above the limit.
            let top = if register.big() { 0xffff_ffff } else { 0xffff };
            offset > limit && last <= top && last >= offset
        } else {
            last <= limit && last >= offset
        };
        if !inside {
            return Err(fault.into());
        }
        Ok(register.base.wrapping_add(offset) & 0xffff_ffff)
    }

    #[inline(always)]
    pub(crate) fn operand_access(operation: &Operation) -> Access {
        if operation.segment == SegmentRegister::Ss as u8 {
            Access::Stack
        } else {
            Access::Data
        }
    }

    /// Reads the memory operand.
    #[inline(always)]
    pub(crate) fn read_operand<T: Scalar>(&mut self, operation: &Operation) -> Exec<T> {
        let address = self.address(operation, T::SIZE, false)?;
        self.read_linear(address, Self::operand_access(operation))
    }

    /// Writes the memory operand.
    #[inline(always)]
    pub(crate) fn write_operand<T: Scalar>(&mut self, operation: &Operation, value: T) -> Exec {
        let address = self.address(operation, T::SIZE, true)?;
        self.write_linear(address, value, Self::operand_access(operation))
    }

    /// Reads the memory operand, hands the value to `change`, and writes what
    /// it returns; atomically with a LOCK prefix. The flags of the last call
    /// of `change` count.
    #[inline(always)]
    pub(crate) fn change_operand<T: Scalar>(
        &mut self,
        operation: &Operation,
        mut change: impl FnMut(&mut Self, T) -> T,
    ) -> Exec<T> {
        let address = self.address(operation, T::SIZE, true)?;
        let access = Self::operand_access(operation);
        if operation.prefixes & prefix::LOCK != 0 {
            return self.change_locked(address, access, change);
        }
        self.change_plain(address, access, &mut change)
    }

    #[inline(always)]
    fn change_plain<T: Scalar>(
        &mut self,
        address: u64,
        access: Access,
        change: &mut impl FnMut(&mut Self, T) -> T,
    ) -> Exec<T> {
        let flags = self.arithmetic;
        let old = match self.read_linear::<T>(address, access) {
            Ok(old) => old,
            Err(trap) => return Err(self.as_write(trap, address, T::SIZE, access)),
        };
        let new = change(self, old);
        let written = self.write_linear(address, new, access);
        if written.is_err() {
            self.arithmetic = flags;
        }
        written.map(|()| old)
    }

    /// A read-modify-write faults as a write does: at the first page that may
    /// not be written, readable or not.
    #[cold]
    fn as_write(
        &mut self,
        trap: crate::trap::Trap,
        address: u64,
        size: usize,
        access: Access,
    ) -> crate::trap::Trap {
        match trap {
            crate::trap::Trap::Exception(Exception::PageFault { .. }) => self
                .check_writable(address, size, access)
                .err()
                .unwrap_or(trap),
            other => other,
        }
    }

    /// The LOCK form.
    pub(crate) fn change_locked<T: Scalar>(
        &mut self,
        address: u64,
        access: Access,
        mut change: impl FnMut(&mut Self, T) -> T,
    ) -> Exec<T> {
        let flags = self.arithmetic;
        if let Some(host) = self.locked_host(address, T::SIZE, access)? {
            loop {
                // SAFETY: `locked_host` vouches for the bytes.
                let old = unsafe { T::load(host) };
                self.arithmetic = flags;
                let new = change(self, old);
                // SAFETY: as above.
                if unsafe { T::compare_exchange(host, old, new) } == old {
                    self.written(address, access);
                    return Ok(old);
                }
            }
        }
        let _bus = crate::buslock::lock();
        self.change_plain(address, access, &mut change)
    }

    /// The host address of bytes to change atomically, unless they cross a
    /// page or lie outside RAM.
    pub(crate) fn locked_host(
        &mut self,
        address: u64,
        size: usize,
        access: Access,
    ) -> Exec<Option<*mut u8>> {
        if (address & 0xfff) as usize + size > 0x1000 {
            return Ok(None);
        }
        self.host_range(address, size, access, crate::mmu::Want::Write)
    }

    /// All of RFLAGS.
    pub fn rflags(&self) -> u64 {
        self.system_flags | self.arithmetic.bits() | rflags::FIXED
    }

    /// Replaces the bits of RFLAGS in `mask`.
    pub fn set_rflags_masked(&mut self, value: u64, mask: u64) {
        let merged = self.rflags() & !mask | value & mask;
        self.arithmetic = crate::flags::ArithmeticFlags::from_bits(merged);
        self.system_flags = merged & !rflags::ARITHMETIC & !rflags::FIXED;
        self.update_mmu_mode();
    }

    /// Recomputes what follows from CR0, CR4, EFER, CS, SS and EFLAGS.AC.
    pub fn update_mode(&mut self) {
        use crate::cpu::{cr0, efer};
        self.long_mode = self.efer & efer::LMA != 0;
        let cs = self.segments[1];
        self.code_size = if self.long_mode && cs.long() {
            CodeSize::Bits64
        } else if self.cr0 & cr0::PE != 0 && cs.big() {
            CodeSize::Bits32
        } else {
            CodeSize::Bits16
        };
        self.cpl = if self.cr0 & cr0::PE == 0 {
            0
        } else {
            (cs.selector & 3) as u8
        };
        for (base, segment) in self.bases.iter_mut().zip(&self.segments) {
            *base = segment.base;
        }
        if self.code_size == CodeSize::Bits64 {
            // Only FS and GS have bases in 64-bit mode.
            self.bases[..4].fill(0);
        }
        self.update_mmu_mode();
    }

    /// #GP(0) unless the processor is at level 0; for handlers.
    pub(crate) fn ring0(&self) -> Exec {
        if self.cpl == 0 { Ok(()) } else { Err(GP0) }
    }
}
