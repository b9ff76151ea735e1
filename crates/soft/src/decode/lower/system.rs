//! System instructions, ports, and what does nothing.

use iced_x86::{Code, Instruction, Mnemonic, Register};

use crate::cpu::{CodeSize, SegmentRegister};
use crate::decode::operand::{Place, place, width};
use crate::decode::pick::{by_bytes, by_flag, by_word};
use crate::exec::system;
use crate::operation::{Handler, Operation, prefix};

pub(super) fn handler(
    instruction: &Instruction,
    operation: &mut Operation,
    size: CodeSize,
) -> Option<Handler> {
    tables(instruction, operation)
        .or_else(|| segments(instruction, operation, size))
        .or_else(|| ports(instruction))
        .or_else(|| control(instruction, operation))
        .or_else(|| nothing(instruction))
}

/// Descriptor tables and selectors.
fn tables(instruction: &Instruction, operation: &mut Operation) -> Option<Handler> {
    use Mnemonic::*;
    let memory = place(instruction, 0) == Place::Memory;
    let from_memory = place(instruction, 1) == Place::Memory;
    operation.width = match instruction.code() {
        Code::Lgdt_m1632_16 | Code::Lidt_m1632_16 => 2,
        Code::Lgdt_m1632 | Code::Lidt_m1632 => 4,
        _ => width(instruction, 0),
    };
    Some(match instruction.mnemonic() {
        Lgdt => system::load_gdt,
        Lidt => system::load_idt,
        Sgdt => by_flag!(false, system::store_table),
        Sidt => by_flag!(true, system::store_table),
        Lldt => by_flag!(memory, system::load_ldt),
        Ltr => by_flag!(memory, system::load_task),
        Lmsw => by_flag!(memory, system::load_machine_status),
        Sldt | Str | Smsw => {
            operation.second = match instruction.mnemonic() {
                Sldt => 0,
                Str => 1,
                _ => 2,
            };
            by_flag!(memory, system::store_system_word)
        }
        Lar if from_memory => system::describe_segment::<false, true>,
        Lar => system::describe_segment::<false, false>,
        Lsl if from_memory => system::describe_segment::<true, true>,
        Lsl => system::describe_segment::<true, false>,
        Verr if memory => system::verify_segment::<false, true>,
        Verr => system::verify_segment::<false, false>,
        Verw if memory => system::verify_segment::<true, true>,
        Verw => system::verify_segment::<true, false>,
        Arpl => by_flag!(memory, system::adjust_privilege),
        _ => return None,
    })
}

fn segments(
    instruction: &Instruction,
    operation: &mut Operation,
    size: CodeSize,
) -> Option<Handler> {
    use Mnemonic::*;
    let far = match instruction.mnemonic() {
        Les => Some(SegmentRegister::Es),
        Lds => Some(SegmentRegister::Ds),
        Lss => Some(SegmentRegister::Ss),
        Lfs => Some(SegmentRegister::Fs),
        Lgs => Some(SegmentRegister::Gs),
        _ => None,
    };
    if let Some(segment) = far {
        operation.second = segment as u8;
        operation.width = width(instruction, 0);
        return Some(system::load_far_pointer);
    }
    let wide = width(instruction, 0) == 8;
    let (segment, write) = match instruction.mnemonic() {
        Rdfsbase => (SegmentRegister::Fs, false),
        Rdgsbase => (SegmentRegister::Gs, false),
        Wrfsbase => (SegmentRegister::Fs, true),
        Wrgsbase => (SegmentRegister::Gs, true),
        Swapgs if size == CodeSize::Bits64 => return Some(system::swap_gs),
        _ => return None,
    };
    operation.second = segment as u8;
    Some(match (write, wide) {
        (false, false) => system::read_base::<u32>,
        (false, true) => system::read_base::<u64>,
        (true, false) => system::write_base::<u32>,
        (true, true) => system::write_base::<u64>,
    })
}

fn ports(instruction: &Instruction) -> Option<Handler> {
    Some(match instruction.mnemonic() {
        Mnemonic::In => {
            let in_dx = instruction.op1_register() == Register::DX;
            by_bytes!(width(instruction, 0), system::input, in_dx)
        }
        Mnemonic::Out => {
            let in_dx = instruction.op0_register() == Register::DX;
            by_bytes!(width(instruction, 1), system::output, in_dx)
        }
        _ => return None,
    })
}

fn control(instruction: &Instruction, operation: &mut Operation) -> Option<Handler> {
    use Mnemonic::*;
    Some(match instruction.mnemonic() {
        Clts => system::clear_task_switched,
        Hlt => system::halt,
        Invlpg => system::invalidate_page,
        Invpcid => system::invalidate_pcid,
        Invd | Wbinvd | Wbnoinvd => system::privileged_nothing,
        Rdtsc => system::read_time_stamp,
        Rdtscp => system::read_time_stamp_and_id,
        Rdpid => by_word!(width(instruction, 0), system::read_processor_id),
        Rdpmc => system::read_performance_counter,
        Rdmsr => system::read_msr,
        Wrmsr => system::write_msr,
        Mnemonic::Cpuid => system::cpuid,
        Syscall => {
            operation.prefixes |= prefix::NEW_TRAP_FLAG;
            system::syscall
        }
        Sysret | Sysretq => {
            operation.prefixes |= prefix::NEW_TRAP_FLAG;
            operation.width = if instruction.code() == Code::Sysretq {
                8
            } else {
                4
            };
            system::sysret
        }
        Sysenter => system::sysenter,
        Sysexit | Sysexitq => {
            operation.width = if instruction.code() == Code::Sysexitq {
                8
            } else {
                4
            };
            system::sysexit
        }
        Cmpxchg8b => system::cmpxchg8b,
        Cmpxchg16b => system::cmpxchg16b,
        _ => return None,
    })
}

/// 0F 0D, the prefetches, with a register: AMD's processors have no such
/// instruction, Intel's do nothing.
fn has_no_register_form(instruction: &Instruction) -> bool {
    use iced_x86::Code::*;
    let prefetch = matches!(
        instruction.code(),
        Reservednop_rm16_r16_0F0D | Reservednop_rm32_r32_0F0D | Reservednop_rm64_r64_0F0D
    );
    prefetch && instruction.op0_kind() == iced_x86::OpKind::Register && crate::native::host_is_amd()
}

fn nothing(instruction: &Instruction) -> Option<Handler> {
    use Mnemonic::*;
    Some(match instruction.mnemonic() {
        Reservednop if has_no_register_form(instruction) => return None,
        Nop | Reservednop | Prefetchit0 | Prefetchit1 | Endbr32 | Endbr64 | Prefetch
        | Prefetchw | Prefetchwt1 | Prefetcht0 | Prefetcht1 | Prefetcht2 | Prefetchnta
        | Cldemote => system::nothing,
        // Shadow stacks are never on: these then do nothing.
        Rdsspd | Rdsspq => system::nothing,
        Pause => system::pause,
        Lfence | Mfence | Sfence => system::fence,
        Clflush | Clflushopt | Clwb => system::flush_line,
        _ => return None,
    })
}
