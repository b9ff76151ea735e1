//! Instructions in the modes the differential tester does not reach, and
//! whatever bytes a guest may make up.

use proptest::prelude::*;

use crate::cpu::{cr4, efer, gpr, rflags};
use crate::testing::{CODE, DATA, REAL_CODE, STACK, TestCpu};
use crate::trap::{Exception, GP0, Trap, UD};

#[test]
fn real_mode_code_runs() {
    let mut test = TestCpu::real_mode();
    // mov ax, 0x1234; mov ds, ax; mov word [0x10], 0xbeef; push ax; pop cx; hlt
    let code = [
        0xb8, 0x34, 0x12, 0x8e, 0xd8, 0xc7, 0x06, 0x10, 0x00, 0xef, 0xbe, 0x50, 0x59, 0xf4,
    ];
    assert_eq!(test.run(&code), Trap::Halt);
    assert_eq!(test.get(0x12350) & 0xffff, 0xbeef);
    assert_eq!(test.reg(gpr::RCX), 0x1234);
    assert_eq!(test.reg(gpr::RSP), REAL_CODE);
}

#[test]
fn real_mode_wraps_at_64_kib() {
    let mut test = TestCpu::real_mode();
    test.cpu.gpr[gpr::RBX] = 0xfff0;
    // mov al, [bx+0x20]
    test.write(0x10, &[0x5a]);
    assert_eq!(test.run(&[0x8a, 0x47, 0x20, 0xf4]), Trap::Halt);
    assert_eq!(test.reg(gpr::RAX), 0x5a);
    // A word at FFFFH is beyond the limit.
    test.cpu.rip = REAL_CODE;
    test.cpu.gpr[gpr::RBX] = 0xffff;
    assert_eq!(test.run(&[0x8b, 0x07]), GP0);
}

#[test]
fn thirty_two_bit_code_runs() {
    let mut test = TestCpu::protected_mode();
    // mov ecx, 5; xor eax, eax; l: add eax, ecx; loop l; pusha; popa;
    // call f; hlt; f: enter 8, 0; leave; ret
    let code = [
        0xb9, 5, 0, 0, 0, 0x31, 0xc0, 0x01, 0xc8, 0xe2, 0xfc, 0x60, 0x61, 0xe8, 1, 0, 0, 0, 0xf4,
        0xc8, 8, 0, 0, 0xc9, 0xc3,
    ];
    assert_eq!(test.run(&code), Trap::Halt);
    assert_eq!(test.reg(gpr::RAX), 15);
    assert_eq!(test.reg(gpr::RSP), STACK);
}

#[test]
fn decimal_arithmetic() {
    let mut test = TestCpu::protected_mode();
    // mov al, 0x79; add al, 0x35; daa; hlt
    assert_eq!(test.run(&[0xb0, 0x79, 0x04, 0x35, 0x27, 0xf4]), Trap::Halt);
    assert_eq!(test.reg(gpr::RAX) as u8, 0x14);
    assert!(test.cpu.arithmetic.carry());
    // mov al, 12; aam; hlt
    test.cpu.rip = CODE;
    assert_eq!(test.run(&[0xb0, 12, 0xd4, 0x0a, 0xf4]), Trap::Halt);
    assert_eq!(test.reg(gpr::RAX) as u16, 0x0102);
}

#[test]
fn a_segment_limit_is_a_limit() {
    let mut test = TestCpu::protected_mode();
    test.cpu.segments[3].limit = 0x30_0fff;
    // mov eax, [0x300ffc]; mov eax, [0x300ffd]
    let code = [0xa1, 0xfc, 0x0f, 0x30, 0, 0xa1, 0xfd, 0x0f, 0x30, 0];
    assert_eq!(test.run(&code), GP0);
    assert_eq!(test.cpu.rip, CODE + 5);
    // Code beyond the limit, even by its last byte.
    let mut test = TestCpu::protected_mode();
    test.cpu.segments[1].limit = CODE as u32 + 3;
    assert_eq!(test.run(&[0xb8, 0, 0, 0, 0]), GP0);
    assert_eq!(test.run(&[0x31, 0xc0, 0x90, 0xf4]), Trap::Halt);
}

#[test]
fn more_than_fifteen_bytes_are_too_many() {
    let mut test = TestCpu::long_mode();
    let mut code = [0x66; 16];
    code[15] = 0x90;
    assert_eq!(test.run(&code), GP0);
    code[14] = 0x90;
    code[15] = 0xf4;
    assert_eq!(test.run(&code), Trap::Halt);
}

#[test]
fn lock_needs_a_destination_in_memory() {
    let mut test = TestCpu::long_mode();
    assert_eq!(test.run(&[0xf0, 0x01, 0xc8]), UD);
    assert_eq!(test.run(&[0xf0, 0x39, 0x08]), UD);
}

#[test]
fn a_missing_instruction_is_counted_by_name() {
    let mut test = TestCpu::with_cpuid(favo_accel::cpuid::CpuidTable::new());
    // popcnt ax, ax
    assert_eq!(test.run(&[0xf3, 0x0f, 0xb8, 0xc0]), UD);
    assert_eq!(test.cpu.counters.undefined.get("popcnt"), Some(&1));
}

#[test]
fn repeated_moves_propagate_forwards() {
    let mut test = TestCpu::long_mode();
    test.write(DATA, &[1, 2, 3]);
    test.cpu.gpr[gpr::RSI] = DATA;
    test.cpu.gpr[gpr::RDI] = DATA + 3;
    test.cpu.gpr[gpr::RCX] = 9000;
    assert_eq!(test.run(&[0xf3, 0xa4, 0xf4]), Trap::Halt);
    assert_eq!(test.reg(gpr::RDI), DATA + 9003);
    let mut bytes = [0; 9003];
    test.memory
        .read(favo_types::GuestAddress(DATA), &mut bytes)
        .unwrap();
    assert!(
        bytes
            .iter()
            .zip([1, 2, 3].iter().cycle())
            .all(|(a, b)| a == b)
    );
}

#[test]
fn a_fault_inside_a_repeated_move_leaves_what_was_done() {
    let mut test = TestCpu::long_mode();
    let end = crate::testing::MEMORY;
    test.cpu.gpr[gpr::RAX] = 0x5a;
    test.cpu.gpr[gpr::RDI] = end - 100;
    test.cpu.gpr[gpr::RCX] = 1000;
    let trap = test.run(&[0xf3, 0xaa, 0xf4]);
    assert_eq!(trap, Exception::PageFault { error_code: 2 }.into());
    assert_eq!((test.reg(gpr::RDI), test.reg(gpr::RCX)), (end, 900));
    assert_eq!((test.cpu.rip, test.cpu.fault_address), (CODE, end));
    assert_eq!(test.get(end - 8), 0x5a5a_5a5a_5a5a_5a5a);
}

#[test]
fn the_trap_flag_steps() {
    let mut test = TestCpu::long_mode();
    test.cpu.system_flags |= rflags::TF;
    assert_eq!(test.run(&[0x90, 0xf4]), Exception::Debug(1 << 14).into());
    assert_eq!(test.cpu.rip, CODE + 1);
    // MOV SS holds it back for one instruction.
    let mut test = TestCpu::protected_mode();
    test.put(0x5010, 0x00cf_9300_0000_ffff);
    test.cpu.gdtr = favo_accel::state::DescriptorTable {
        base: 0x5000,
        limit: 0x1f,
    };
    test.cpu.system_flags |= rflags::TF;
    test.cpu.gpr[gpr::RAX] = 0x10;
    assert_eq!(
        test.run(&[0x8e, 0xd0, 0x90, 0xf4]),
        Exception::Debug(1 << 14).into()
    );
    assert_eq!(test.cpu.rip, CODE + 3);
}

#[test]
fn breakpoints_are_met() {
    // Instruction breakpoint in register 0, at the second NOP.
    let mut test = TestCpu::long_mode();
    test.cpu.write_dr(0, CODE + 1).unwrap();
    test.cpu.write_dr(7, 1).unwrap();
    assert_eq!(
        test.run(&[0x90, 0x90, 0xf4]),
        Exception::DebugFault(1).into()
    );
    assert_eq!(test.cpu.rip, CODE + 1);
    test.cpu.system_flags |= rflags::RF;
    assert_eq!(test.go(), Trap::Halt);
    // Writes of four bytes in register 1: a read passes, a write beside it
    // passes, one that touches it does not.
    let mut test = TestCpu::long_mode();
    test.cpu
        .write_linear(DATA, 0u64, crate::mmu::Access::Data)
        .unwrap();
    test.cpu.write_dr(1, DATA + 4).unwrap();
    test.cpu.write_dr(7, 1 << 2 | 1 << 20 | 3 << 22).unwrap();
    test.cpu.gpr[gpr::RDI] = DATA;
    // mov eax, [rdi+4]; mov [rdi], eax; mov [rdi+7], al; hlt
    let code = [0x8b, 0x47, 4, 0x89, 0x07, 0x88, 0x47, 7, 0xf4];
    assert_eq!(test.run(&code), Exception::Debug(2).into());
    assert_eq!(test.cpu.rip, CODE + 8);
    // A port in register 2.
    let mut test = TestCpu::long_mode();
    test.cpu.cr4 |= cr4::DE;
    test.cpu.write_dr(2, 0x80).unwrap();
    test.cpu.write_dr(7, 1 << 4 | 2 << 24).unwrap();
    assert_eq!(test.run(&[0xe6, 0x80, 0xf4]), Trap::Exit);
    test.cpu.log.answer(0);
    assert_eq!(test.go(), Exception::Debug(4).into());
    assert_eq!(test.cpu.rip, CODE + 2);
}

#[test]
fn device_memory_is_answered_and_the_instruction_completes() {
    let mut test = TestCpu::long_mode();
    // Beyond RAM: map the third gigabyte.
    test.put(0x2000 + 24, 3 << 30 | 0x87);
    test.cpu.gpr[gpr::RDI] = 3 << 30;
    // add dword [rdi], 5; hlt
    assert_eq!(test.run(&[0x83, 0x07, 5, 0xf4]), Trap::Exit);
    let read = test.cpu.exit;
    assert!(
        matches!(read, favo_accel::VcpuExit::MmioRead { .. }),
        "{read:?}"
    );
    test.cpu.log.answer(37);
    assert_eq!(test.go(), Trap::Exit);
    assert!(
        matches!(
            test.cpu.exit,
            favo_accel::VcpuExit::MmioWrite { value: 42, .. }
        ),
        "{:?}",
        test.cpu.exit
    );
    test.cpu.log.answer(0);
    assert_eq!(test.go(), Trap::Halt);
    assert!(test.cpu.log.is_empty());
}

/// Runs for a while whatever is there, delivering exceptions and answering
/// exits.
fn survive(test: &mut TestCpu, rounds: usize) {
    for _ in 0..rounds {
        match test.cpu.run(Some(0)) {
            Trap::EndBlock | Trap::Halt => {}
            Trap::Exit => test.cpu.log.answer(0xffff_ffff_ffff_ffff),
            Trap::TripleFault => return,
            Trap::Exception(exception) => {
                if test.cpu.deliver_exception(exception).is_err() {
                    return;
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_do_no_harm(
        mode in 0..4,
        code in proptest::collection::vec(any::<u8>(), 1..200),
        registers in any::<[u64; 16]>(),
        near in any::<u16>(),
        flags in any::<u64>(),
        table in any::<[u8; 64]>(),
    ) {
        let mut test = match mode {
            0 => TestCpu::real_mode(),
            1 => TestCpu::protected_mode(),
            2 => TestCpu::long_mode(),
            _ => TestCpu::user_mode(),
        };
        // Descriptor tables of noise in low memory.
        for slot in 0..64 {
            test.write(0x6000 + 64 * slot, &table);
        }
        test.cpu.gdtr = favo_accel::state::DescriptorTable { base: 0x6000, limit: 0xfff };
        if mode != 0 {
            test.cpu.idtr = favo_accel::state::DescriptorTable { base: 0x6000, limit: 0xfff };
        }
        for (number, value) in registers.into_iter().enumerate() {
            test.cpu.gpr[number] = if near >> number & 1 != 0 { DATA + value % 4096 } else { value };
        }
        test.cpu.gpr[gpr::RSP] = STACK;
        test.cpu.set_rflags_masked(flags, 0x24_4fd5);
        test.load(&code);
        survive(&mut test, 300);
        let cpu = &test.cpu;
        prop_assert_eq!(cpu.gpr[16], 0);
        prop_assert_eq!(cpu.efer & !(cpu.limits.efer | efer::LMA), 0);
        prop_assert_eq!(cpu.system_flags & rflags::ARITHMETIC, 0);
    }
}
