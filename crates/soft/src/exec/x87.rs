//! x87: arithmetic goes to the host's unit; control instructions and
//! everything that shows instruction and operand pointers is done here, for
//! the host's pointers must not be seen.

mod environment;

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::cpu::{Cpu, SegmentRegister, cr0};
use crate::exec::vector::{Buffer, native_of};
use crate::mmu::Want;
use crate::native::{self, EXCEPTION_FLAGS, FSW_B, FSW_ES, Form, MemoryAccess};
use crate::operation::{Handler, NO_SEGMENT, Operation};
use crate::trap::{Exception, Exec};

/// PE in the status word.
const PRECISION: u16 = 1 << 5;

/// The handler of an x87 instruction that runs natively. Its opcode goes where
/// other instructions have register numbers; x87 forms have none.
pub(crate) fn native_handler(form: &Form, bytes: &[u8], operation: &mut Operation) -> Handler {
    [operation.first, operation.second] = opcode(bytes).to_le_bytes();
    match form.access {
        MemoryAccess::None => registers,
        MemoryAccess::Read => load,
        MemoryAccess::Write => store,
    }
}

/// The opcode as FOP has it: the low three bits of the first byte, and the
/// second byte. No prefix looks like a first byte.
pub(crate) fn opcode(bytes: &[u8]) -> u16 {
    let Some(first) = bytes.iter().position(|byte| byte & 0xf8 == 0xd8) else {
        return 0;
    };
    let second = bytes.get(first + 1).copied().unwrap_or(0);
    u16::from(bytes[first] & 7) << 8 | u16::from(second)
}

/// The handler of an x87 control instruction.
pub(crate) fn control_handler(instruction: &Instruction) -> Option<Handler> {
    use Mnemonic::*;
    Some(match instruction.mnemonic() {
        Fldcw => fldcw,
        Fnstcw => fnstcw,
        Fnstsw if instruction.op0_kind() == OpKind::Register => fnstsw_ax,
        Fnstsw => fnstsw,
        Fnclex => fnclex,
        Fninit => fninit,
        Wait => wait,
        Fnop => fnop,
        // Once for the 8087 and the 287; they do nothing.
        Fneni | Fndisi | Fnsetpm => ignored,
        Fnstenv | Fldenv | Fnsave | Frstor => return environment::handler(instruction.code()),
        _ => return None,
    })
}

impl Cpu {
    /// #NM before any x87 instruction (SDM vol. 3, 2.5).
    #[inline(always)]
    pub(crate) fn check_x87(&self) -> Exec {
        if self.cr0 & (cr0::EM | cr0::TS) != 0 {
            return Err(Exception::DeviceNotAvailable.into());
        }
        Ok(())
    }

    /// The same, and #MF, before those that wait.
    #[inline(always)]
    fn check_waiting_x87(&self) -> Exec {
        self.check_x87()?;
        self.check_pending_x87()
    }

    /// The instruction pointer, operand pointer and opcode after an x87
    /// instruction that is not a control instruction.
    fn note_x87(&mut self, operation: &Operation, memory: bool) {
        let code = self.segments[SegmentRegister::Cs as usize].selector;
        let data = if memory {
            let segment = match operation.segment {
                NO_SEGMENT => SegmentRegister::Ds as usize,
                segment => usize::from(segment),
            };
            Some((self.offset(operation), self.segments[segment].selector))
        } else {
            None
        };
        let extended = &mut self.extended;
        extended.fip = self.rip;
        extended.fcs = code;
        extended.fop = u16::from_le_bytes([operation.first, operation.second]) & 0x7ff;
        if let Some((offset, selector)) = data {
            extended.fdp = offset;
            extended.fds = selector;
        }
    }
}

/// The form of an x87 operation, without the opcode that is in it.
#[inline(always)]
fn native(operation: &Operation) -> native::Native {
    native::Native {
        registers: [0; 4],
        ..native_of(operation)
    }
}

fn registers(cpu: &mut Cpu, operation: &Operation) -> Exec {
    cpu.check_waiting_x87()?;
    cpu.execute_native(native(operation), std::ptr::null_mut())?;
    cpu.note_x87(operation, false);
    cpu.advance(operation);
    Ok(())
}

fn load(cpu: &mut Cpu, operation: &Operation) -> Exec {
    cpu.check_waiting_x87()?;
    let native = native(operation);
    let size = usize::from(native.form.size);
    let address = cpu.address(operation, size, false)?;
    let access = Cpu::operand_access(operation);
    if (address & 0xfff) as usize + size <= 0x1000
        && let Some(host) = cpu.host_range(address, size, access, Want::Read)?
    {
        cpu.execute_native(native, host)?;
    } else {
        let mut buffer = Buffer::default();
        cpu.read_pieces(address, &mut buffer.0[..size], access)?;
        cpu.execute_native(native, buffer.0.as_mut_ptr())?;
    }
    cpu.note_x87(operation, true);
    cpu.advance(operation);
    Ok(())
}

fn store(cpu: &mut Cpu, operation: &Operation) -> Exec {
    cpu.check_waiting_x87()?;
    let native = native(operation);
    let size = usize::from(native.form.size);
    let address = cpu.address(operation, size, true)?;
    let access = Cpu::operand_access(operation);
    if (address & 0xfff) as usize + size <= 0x1000
        && let Some(host) = cpu.host_range(address, size, access, Want::Write)?
    {
        cpu.execute_native(native, host)?;
        cpu.written(address, access);
    } else {
        cpu.check_writable(address, size, access)?;
        let before = cpu.extended.clone();
        let mut buffer = Buffer::default();
        cpu.execute_native(native, buffer.0.as_mut_ptr())?;
        // An unmasked exception other than PE left memory alone.
        let unmasked = cpu.extended.x87.fsw & !cpu.extended.x87.fcw & EXCEPTION_FLAGS as u16;
        if unmasked & !PRECISION == 0
            && let Err(trap) = cpu.write_pieces(address, &buffer.0[..size], access)
        {
            cpu.extended = before;
            return Err(trap);
        }
    }
    cpu.note_x87(operation, true);
    cpu.advance(operation);
    Ok(())
}

/// Waits, and loads the control word.
fn fldcw(cpu: &mut Cpu, operation: &Operation) -> Exec {
    cpu.check_waiting_x87()?;
    cpu.extended.x87.fcw = cpu.read_operand(operation)?;
    cpu.extended.x87.normalize();
    cpu.advance(operation);
    Ok(())
}

fn fnstcw(cpu: &mut Cpu, operation: &Operation) -> Exec {
    cpu.check_x87()?;
    cpu.write_operand(operation, cpu.extended.x87.fcw)?;
    cpu.advance(operation);
    Ok(())
}

fn fnstsw(cpu: &mut Cpu, operation: &Operation) -> Exec {
    cpu.check_x87()?;
    cpu.write_operand(operation, cpu.extended.x87.fsw)?;
    cpu.advance(operation);
    Ok(())
}

fn fnstsw_ax(cpu: &mut Cpu, operation: &Operation) -> Exec {
    cpu.check_x87()?;
    cpu.set_register(crate::cpu::gpr::RAX as u8, cpu.extended.x87.fsw);
    cpu.advance(operation);
    Ok(())
}

/// Clears the exceptions, stack fault included.
fn fnclex(cpu: &mut Cpu, operation: &Operation) -> Exec {
    cpu.check_x87()?;
    cpu.extended.x87.fsw &= !(FSW_B | FSW_ES | 0x7f);
    cpu.advance(operation);
    Ok(())
}

fn fninit(cpu: &mut Cpu, operation: &Operation) -> Exec {
    cpu.check_x87()?;
    cpu.initialize_x87();
    cpu.advance(operation);
    Ok(())
}

fn wait(cpu: &mut Cpu, operation: &Operation) -> Exec {
    const BOTH: u64 = cr0::MP | cr0::TS;
    if cpu.cr0 & BOTH == BOTH {
        return Err(Exception::DeviceNotAvailable.into());
    }
    cpu.check_pending_x87()?;
    cpu.advance(operation);
    Ok(())
}

/// The one control instruction that shows in the instruction pointer.
fn fnop(cpu: &mut Cpu, operation: &Operation) -> Exec {
    cpu.check_waiting_x87()?;
    cpu.note_x87(operation, false);
    cpu.advance(operation);
    Ok(())
}

fn ignored(cpu: &mut Cpu, operation: &Operation) -> Exec {
    cpu.check_x87()?;
    cpu.advance(operation);
    Ok(())
}

impl Cpu {
    /// What FNINIT does; also the end of FNSAVE.
    fn initialize_x87(&mut self) {
        let extended = &mut self.extended;
        extended.x87.initialize();
        extended.fip = 0;
        extended.fdp = 0;
        extended.fop = 0;
        extended.fcs = 0;
        extended.fds = 0;
    }
}
