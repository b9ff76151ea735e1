//! MOVS, STOS, LODS, CMPS, SCAS, INS, OUTS, with and without REP.
//!
//! One iteration commits before the next begins, and a REP instruction gives
//! up after a bounded number of them with RIP unmoved: it then simply goes on
//! where its registers say, after interrupts have had their chance. MOVS and
//! STOS over plain RAM run a page at a time on the host's own string
//! instructions.

use favo_accel::{AccessSize, VcpuExit};

use super::flow::{count_register, set_count_register};
use crate::cpu::{Cpu, SegmentRegister, gpr, rflags};
use crate::exec::alu::{Binary, Cmp};
use crate::mmu::{Access, Want};
use crate::operation::{Operation, prefix};
use crate::scalar::Scalar;
use crate::trap::{Exec, Trap};

/// Iterations before interrupts get their chance.
const MOST_ITERATIONS: u32 = 256;
/// Bytes a fast move may do before that.
const MOST_BYTES: u64 = 64 << 10;
const PAGE: u64 = 4096;

/// What one iteration says of the next.
#[derive(PartialEq)]
enum Next {
    GoOn,
    Stop,
}

impl Cpu {
    fn direction(&self, size: usize) -> u64 {
        if self.system_flags & rflags::DF != 0 {
            (size as u64).wrapping_neg()
        } else {
            size as u64
        }
    }

    /// Moves (R/E)SI or (R/E)DI in the operation's address size.
    fn step(&mut self, register: usize, op: &Operation, by: u64) {
        let value = self.gpr[register].wrapping_add(by);
        match op.address_shift {
            0 => self.gpr[register] = value,
            32 => self.set_register(register as u8, value as u32),
            _ => self.set_register(register as u8, value as u16),
        }
    }

    fn index_offset(&self, register: usize, op: &Operation) -> u64 {
        self.gpr[register] << op.address_shift >> op.address_shift
    }

    /// The linear address of the source, DS:(R/E)SI or an override.
    fn source(&self, op: &Operation, size: usize) -> Exec<u64> {
        self.string_address(op, op.segment, gpr::RSI, size, false)
    }

    /// The linear address of the destination, always ES:(R/E)DI.
    fn destination(&self, op: &Operation, size: usize, write: bool) -> Exec<u64> {
        self.string_address(op, SegmentRegister::Es as u8, gpr::RDI, size, write)
    }

    fn string_address(
        &self,
        op: &Operation,
        segment: u8,
        register: usize,
        size: usize,
        write: bool,
    ) -> Exec<u64> {
        let offset = self.index_offset(register, op);
        if op.checks_segment {
            return self.checked_address(segment, offset, size, write);
        }
        Ok(self.bases[usize::from(segment)].wrapping_add(offset))
    }

    /// Runs `iteration` once, or as often as (R/E)CX says.
    #[inline(always)]
    fn repeat(
        &mut self,
        op: &Operation,
        mut iteration: impl FnMut(&mut Self) -> Exec<Next>,
    ) -> Exec {
        if op.prefixes & (prefix::REP | prefix::REPNE) == 0 {
            iteration(self)?;
            self.advance(op);
            return Ok(());
        }
        for _ in 0..MOST_ITERATIONS {
            let count = count_register(self, op);
            if count == 0 {
                self.advance(op);
                return Ok(());
            }
            let next = iteration(self)?;
            set_count_register(self, op, count - 1);
            self.log.finish();
            if next == Next::Stop {
                self.advance(op);
                return Ok(());
            }
            if self.system_flags & rflags::TF != 0 {
                break;
            }
        }
        if count_register(self, op) == 0 {
            self.advance(op);
            return Ok(());
        }
        Err(Trap::EndBlock)
    }

    /// How many bytes the fast way may do at once: DF clear, a REP prefix,
    /// and 64-bit or flat addresses that don't wrap.
    fn fast_bytes(&self, op: &Operation, size: u64) -> u64 {
        let usable = op.prefixes & prefix::REP != 0
            && self.system_flags & (rflags::DF | rflags::TF) == 0
            && !op.checks_segment
            && op.address_shift == 0
            && self.debug.dr7 & 0xff == 0
            && self.log.is_empty();
        if !usable {
            return 0;
        }
        count_register(self, op)
            .saturating_mul(size)
            .min(MOST_BYTES)
    }
}

pub(crate) fn movs<T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let mut budget = cpu.fast_bytes(op, T::SIZE as u64);
    while budget >= 16 {
        let moved = move_within_pages::<T>(cpu, op, budget)?;
        if moved == 0 {
            break;
        }
        budget -= moved;
    }
    cpu.repeat(op, |cpu| {
        let from = cpu.source(op, T::SIZE)?;
        let to = cpu.destination(op, T::SIZE, true)?;
        let value = cpu.read_linear::<T>(from, Cpu::operand_access(op))?;
        cpu.write_linear(to, value, Access::Data)?;
        let by = cpu.direction(T::SIZE);
        cpu.step(gpr::RSI, op, by);
        cpu.step(gpr::RDI, op, by);
        Ok(Next::GoOn)
    })
}

/// Moves up to the end of either page; 0 if that is not plain RAM.
fn move_within_pages<T: Scalar>(cpu: &mut Cpu, op: &Operation, budget: u64) -> Exec<u64> {
    let size = T::SIZE as u64;
    let from = cpu.source(op, T::SIZE)?;
    let to = cpu.destination(op, T::SIZE, true)?;
    let room = (PAGE - from % PAGE).min(PAGE - to % PAGE).min(budget);
    let bytes = room - room % size;
    if bytes == 0 {
        return Ok(0);
    }
    let length = bytes as usize;
    let access = Cpu::operand_access(op);
    let Some(source) = cpu.host_range(from, length, access, Want::Read)? else {
        return Ok(0);
    };
    let Some(target) = cpu.host_range(to, length, Access::Data, Want::Write)? else {
        return Ok(0);
    };
    // A forward copy onto itself repeats a pattern; only byte order counts.
    let distance = (target as u64).wrapping_sub(source as u64);
    if distance < bytes {
        return Ok(0);
    }
    // SAFETY: both ranges lie in one page of mapped RAM each, and a forward
    // copy between them reads every byte before it is written.
    unsafe { crate::scalar::copy_forward(target, source, length) };
    cpu.written(to, Access::Data);
    let count = count_register(cpu, op) - bytes / size;
    cpu.step(gpr::RSI, op, bytes);
    cpu.step(gpr::RDI, op, bytes);
    set_count_register(cpu, op, count);
    Ok(bytes)
}

pub(crate) fn stos<T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let value: T = cpu.register(gpr::RAX as u8);
    let mut budget = cpu.fast_bytes(op, T::SIZE as u64);
    while budget >= 16 {
        let stored = store_within_page(cpu, op, value, budget)?;
        if stored == 0 {
            break;
        }
        budget -= stored;
    }
    cpu.repeat(op, |cpu| {
        let to = cpu.destination(op, T::SIZE, true)?;
        cpu.write_linear(to, value, Access::Data)?;
        let by = cpu.direction(T::SIZE);
        cpu.step(gpr::RDI, op, by);
        Ok(Next::GoOn)
    })
}

fn store_within_page<T: Scalar>(cpu: &mut Cpu, op: &Operation, value: T, budget: u64) -> Exec<u64> {
    let size = T::SIZE as u64;
    let to = cpu.destination(op, T::SIZE, true)?;
    let room = (PAGE - to % PAGE).min(budget);
    let count = room / size;
    if count == 0 {
        return Ok(0);
    }
    let bytes = count * size;
    let host = cpu.host_range(to, bytes as usize, Access::Data, Want::Write)?;
    let Some(target) = host else { return Ok(0) };
    // SAFETY: the range lies in one page of mapped RAM.
    unsafe { crate::scalar::fill(target, value, count as usize) };
    cpu.written(to, Access::Data);
    let left = count_register(cpu, op) - count;
    cpu.step(gpr::RDI, op, bytes);
    set_count_register(cpu, op, left);
    Ok(bytes)
}

pub(crate) fn lods<T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    cpu.repeat(op, |cpu| {
        let from = cpu.source(op, T::SIZE)?;
        let value = cpu.read_linear::<T>(from, Cpu::operand_access(op))?;
        cpu.set_register(gpr::RAX as u8, value);
        let by = cpu.direction(T::SIZE);
        cpu.step(gpr::RSI, op, by);
        Ok(Next::GoOn)
    })
}

/// Whether REPE or REPNE goes on after a comparison.
fn goes_on(cpu: &Cpu, op: &Operation) -> Next {
    let wanted = op.prefixes & prefix::REPNE == 0;
    if cpu.arithmetic.zero() == wanted {
        Next::GoOn
    } else {
        Next::Stop
    }
}

pub(crate) fn cmps<T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    cpu.repeat(op, |cpu| {
        let from = cpu.source(op, T::SIZE)?;
        let with = cpu.destination(op, T::SIZE, false)?;
        // The order shows in which of two faults comes first.
        let source = Cpu::operand_access(op);
        let (a, b) = if T::SIZE == 1 && op.prefixes & prefix::REP != 0 {
            let a = cpu.read_linear::<T>(from, source)?;
            (a, cpu.read_linear::<T>(with, Access::Data)?)
        } else {
            let b = cpu.read_linear::<T>(with, Access::Data)?;
            (cpu.read_linear::<T>(from, source)?, b)
        };
        cpu.arithmetic = Cmp::apply(cpu.arithmetic, a, b).1;
        let by = cpu.direction(T::SIZE);
        cpu.step(gpr::RSI, op, by);
        cpu.step(gpr::RDI, op, by);
        Ok(goes_on(cpu, op))
    })
}

pub(crate) fn scas<T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    cpu.repeat(op, |cpu| {
        let with = cpu.destination(op, T::SIZE, false)?;
        let b = cpu.read_linear::<T>(with, Access::Data)?;
        let a = cpu.register(gpr::RAX as u8);
        cpu.arithmetic = Cmp::apply(cpu.arithmetic, a, b).1;
        let by = cpu.direction(T::SIZE);
        cpu.step(gpr::RDI, op, by);
        Ok(goes_on(cpu, op))
    })
}

/// The access size of a port operand.
pub(crate) fn port_size<T: Scalar>() -> AccessSize {
    AccessSize::from_bytes(T::SIZE).unwrap_or(AccessSize::Dword)
}

pub(crate) fn ins<T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let port: u16 = cpu.register(gpr::RDX as u8);
    cpu.check_port_access(port, T::SIZE as u8)?;
    cpu.repeat(op, |cpu| {
        let to = cpu.destination(op, T::SIZE, true)?;
        // Before the device is read, for that may change it.
        cpu.check_writable(to, T::SIZE, Access::Data)?;
        let value = cpu.outside(VcpuExit::PortRead {
            port,
            size: port_size::<T>(),
        })?;
        cpu.watch_port(port, T::SIZE);
        cpu.write_linear(to, T::from_u64(value), Access::Data)?;
        let by = cpu.direction(T::SIZE);
        cpu.step(gpr::RDI, op, by);
        Ok(Next::GoOn)
    })
}

pub(crate) fn outs<T: Scalar>(cpu: &mut Cpu, op: &Operation) -> Exec {
    let port: u16 = cpu.register(gpr::RDX as u8);
    cpu.check_port_access(port, T::SIZE as u8)?;
    cpu.repeat(op, |cpu| {
        let from = cpu.source(op, T::SIZE)?;
        let value = cpu
            .read_linear::<T>(from, Cpu::operand_access(op))?
            .to_u64() as u32;
        cpu.outside(VcpuExit::PortWrite {
            port,
            size: port_size::<T>(),
            value,
        })?;
        cpu.watch_port(port, T::SIZE);
        let by = cpu.direction(T::SIZE);
        cpu.step(gpr::RSI, op, by);
        Ok(Next::GoOn)
    })
}
