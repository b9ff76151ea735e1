//! System instructions.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::{any_width, has_memory, operand_width, wide};
use crate::exec::{stack, system};
use crate::operation::{Handler, Operation};

/// The handler of a system instruction, `None` if it is none.
pub(super) fn handler(instruction: &Instruction, operation: &mut Operation) -> Option<Handler> {
    moves(instruction).or_else(|| tables(instruction, operation)).or_else(|| others(instruction, operation))
}

/// Instructions behind which nothing may be assumed: modes, mappings, or the
/// interrupt flag may be different.
pub(super) fn ends_block(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Sti
            | Mnemonic::Popf
            | Mnemonic::Popfd
            | Mnemonic::Popfq
            | Mnemonic::Hlt
            | Mnemonic::Invlpg
            | Mnemonic::Wrmsr
            | Mnemonic::Cpuid
            | Mnemonic::Pause
            | Mnemonic::Lmsw
            | Mnemonic::Clts
    )
}

/// MOV with segment, control and debug registers.
fn moves(instruction: &Instruction) -> Option<Handler> {
    if instruction.mnemonic() != Mnemonic::Mov {
        return None;
    }
    let register = |index| match instruction.op_kind(index) {
        OpKind::Register => instruction.op_register(index),
        _ => Register::None,
    };
    let (to, from) = (register(0), register(1));
    let memory = has_memory(instruction);
    Some(if to.is_segment_register() {
        if memory { system::segment_from_memory } else { system::segment_from_register }
    } else if from.is_segment_register() {
        if memory {
            memory_from_segment
        } else {
            wide!(to.size(), system::register_from_segment)
        }
    } else if to.is_cr() {
        system::write_control
    } else if from.is_cr() {
        system::read_control
    } else if to.is_dr() {
        system::write_debug
    } else if from.is_dr() {
        system::read_debug
    } else {
        return None;
    })
}

/// The segment is the only register of this form, so it comes first.
fn memory_from_segment(cpu: &mut crate::cpu::Cpu, op: &Operation) -> crate::trap::Exec {
    let mut op = *op;
    op.second = op.first;
    system::memory_from_segment(cpu, &op)
}

fn tables(instruction: &Instruction, operation: &mut Operation) -> Option<Handler> {
    let memory = has_memory(instruction);
    let width = operand_width(instruction);
    macro_rules! either {
        ($($function:ident),+ $(, $fixed:literal)?) => {
            if memory { system::$($function)+::<$($fixed,)? true> }
            else { system::$($function)+::<$($fixed,)? false> }
        };
    }
    operation.width = width.max(operation.width);
    Some(match instruction.mnemonic() {
        Mnemonic::Lgdt => sized_table(instruction, operation, system::load_gdt),
        Mnemonic::Lidt => sized_table(instruction, operation, system::load_idt),
        Mnemonic::Sgdt => system::store_table::<false>,
        Mnemonic::Sidt => system::store_table::<true>,
        Mnemonic::Lldt => either!(load_ldt),
        Mnemonic::Ltr => either!(load_task),
        Mnemonic::Lmsw => either!(load_machine_status),
        Mnemonic::Sldt | Mnemonic::Str | Mnemonic::Smsw => {
            operation.second = match instruction.mnemonic() {
                Mnemonic::Sldt => 0,
                Mnemonic::Str => 1,
                _ => 2,
            };
            either!(store_system_word)
        }
        Mnemonic::Lar => either!(describe_segment, false),
        Mnemonic::Lsl => either!(describe_segment, true),
        Mnemonic::Verr => either!(verify_segment, false),
        Mnemonic::Verw => either!(verify_segment, true),
        Mnemonic::Lds | Mnemonic::Les | Mnemonic::Lfs | Mnemonic::Lgs | Mnemonic::Lss => {
            operation.second = match instruction.mnemonic() {
                Mnemonic::Les => 0,
                Mnemonic::Lss => 2,
                Mnemonic::Lds => 3,
                Mnemonic::Lfs => 4,
                _ => 5,
            };
            operation.width = super::flow::far_offset_width(instruction);
            system::load_far_pointer
        }
        _ => return None,
    })
}

/// LGDT and LIDT with a 16-bit operand take 24 bits of the base.
fn sized_table(instruction: &Instruction, operation: &mut Operation, handler: Handler) -> Handler {
    use iced_x86::Code;
    let narrow = matches!(instruction.code(), Code::Lgdt_m1632_16 | Code::Lidt_m1632_16);
    operation.width = if narrow { 2 } else { 4 };
    handler
}

fn others(instruction: &Instruction, operation: &mut Operation) -> Option<Handler> {
    let width = operand_width(instruction);
    let base_register = |fs: bool| if fs { 4 } else { 5 };
    Some(match instruction.mnemonic() {
        Mnemonic::Hlt => system::halt,
        Mnemonic::Cli => stack::clear_interrupts,
        Mnemonic::Sti => stack::set_interrupts,
        Mnemonic::Stac => stack::change_alignment_check::<true>,
        Mnemonic::Clac => stack::change_alignment_check::<false>,
        Mnemonic::Clts => system::clear_task_switched,
        Mnemonic::Invlpg => system::invalidate_page,
        Mnemonic::Invpcid => system::invalidate_pcid,
        Mnemonic::Wbinvd | Mnemonic::Invd | Mnemonic::Wbnoinvd => system::privileged_nothing,
        Mnemonic::Swapgs => system::swap_gs,
        Mnemonic::Rdfsbase | Mnemonic::Rdgsbase => {
            operation.second = base_register(instruction.mnemonic() == Mnemonic::Rdfsbase);
            wide!(width, system::read_base)
        }
        Mnemonic::Wrfsbase | Mnemonic::Wrgsbase => {
            operation.second = base_register(instruction.mnemonic() == Mnemonic::Wrfsbase);
            wide!(width, system::write_base)
        }
        Mnemonic::Rdtsc => system::read_time_stamp,
        Mnemonic::Rdtscp => system::read_time_stamp_and_id,
        Mnemonic::Rdpid => wide!(width, system::read_processor_id),
        Mnemonic::Rdpmc => system::read_performance_counter,
        Mnemonic::Cpuid => system::cpuid,
        Mnemonic::Rdmsr => system::read_msr,
        Mnemonic::Wrmsr => system::write_msr,
        Mnemonic::Syscall => system::syscall,
        Mnemonic::Sysret => sized_return(operation, 4, system::sysret),
        Mnemonic::Sysretq => sized_return(operation, 8, system::sysret),
        Mnemonic::Sysenter => system::sysenter,
        Mnemonic::Sysexit => sized_return(operation, 4, system::sysexit),
        Mnemonic::Sysexitq => sized_return(operation, 8, system::sysexit),
        Mnemonic::In => port_read(instruction),
        Mnemonic::Out => port_write(instruction),
        Mnemonic::Cmpxchg8b => system::cmpxchg8b,
        Mnemonic::Cmpxchg16b => system::cmpxchg16b,
        Mnemonic::Mfence | Mnemonic::Lfence | Mnemonic::Sfence => system::fence,
        Mnemonic::Clflush | Mnemonic::Clflushopt | Mnemonic::Clwb => system::flush_line,
        _ => return None,
    })
}

fn sized_return(operation: &mut Operation, width: u8, handler: Handler) -> Handler {
    operation.width = width;
    handler
}

fn port_read(instruction: &Instruction) -> Handler {
    let width = instruction.op0_register().size();
    if instruction.op1_kind() == OpKind::Register {
        any_width!(width, system::input, true)
    } else {
        any_width!(width, system::input, false)
    }
}

fn port_write(instruction: &Instruction) -> Handler {
    let width = instruction.op1_register().size();
    if instruction.op0_kind() == OpKind::Register {
        any_width!(width, system::output, true)
    } else {
        any_width!(width, system::output, false)
    }
}
