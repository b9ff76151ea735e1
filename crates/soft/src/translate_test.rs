//! What only translated code can get wrong: links, jump tables, windows, and
//! registers that lie in the host's.

use std::arch::global_asm;

use favo_types::GuestAddress;

use super::machine::JUMPS;
use super::*;
use crate::cpu::gpr;
use crate::testing::{CODE, DATA, STACK, TestCpu};
use crate::trap::{Exception, Trap};

// Guest programs; they never run on the host.
global_asm!(
    ".globl favo_test_fib, favo_test_fib_end, favo_test_patch, favo_test_patch_end",
    ".globl favo_test_flags, favo_test_flags_end, favo_test_vector, favo_test_vector_end",
    ".globl favo_test_x87, favo_test_x87_end, favo_test_table, favo_test_table_end",
    // EAX = fib(EDI), recursively.
    "favo_test_fib:",
    "call 3f",
    "hlt",
    "3: push rbx",
    "push r10",
    "mov ebx, edi",
    "mov eax, edi",
    "cmp edi, 2",
    "jb 4f",
    "lea edi, [rbx - 1]",
    "call 3b",
    "mov r10d, eax",
    "lea edi, [rbx - 2]",
    "call 3b",
    "add eax, r10d",
    "4: pop r10",
    "pop rbx",
    "ret",
    "favo_test_fib_end:",
    // Counts RCX rounds in RAX; half way it patches what it adds.
    "favo_test_patch:",
    "xor eax, eax",
    "2: add eax, 1",
    "dec ecx",
    "cmp ecx, 500",
    "jne 3f",
    "mov byte ptr [rip + 2b + 2], 3",
    "3: test ecx, ecx",
    "jnz 2b",
    "hlt",
    "favo_test_patch_end:",
    // Flags across a store to a page that is touched for the first time.
    "favo_test_flags:",
    "xor eax, eax",
    "mov ecx, 64",
    "2: stc",
    "mov [rdi], rcx",
    "adc eax, 0",
    "lea rdi, [rdi + 4096]",
    "dec ecx",
    "jnz 2b",
    "hlt",
    "favo_test_flags_end:",
    // XMM15 counts while every store leaves for the interpreter.
    "favo_test_vector:",
    "pxor xmm15, xmm15",
    "pcmpeqd xmm1, xmm1",
    "mov ecx, 64",
    "2: psubd xmm15, xmm1",
    "mov [rdi], rcx",
    "lea rdi, [rdi + 4096]",
    "dec ecx",
    "jnz 2b",
    "movd eax, xmm15",
    "divss xmm2, xmm3",
    "hlt",
    "favo_test_vector_end:",
    // The sum of 1 to 64 on the x87 stack, in the same way.
    "favo_test_x87:",
    "fninit",
    "fldz",
    "mov ecx, 64",
    "2: mov [rdi], ecx",
    "fild dword ptr [rdi]",
    "faddp",
    "lea rdi, [rdi + 4096]",
    "dec ecx",
    "jnz 2b",
    "fistp dword ptr [rsi]",
    "hlt",
    "favo_test_x87_end:",
    // A jump through a table of two, by turns.
    "favo_test_table:",
    "xor eax, eax",
    "mov ecx, 1000",
    "2: lea rdx, [rip + 3f]",
    "lea rbx, [rip + 4f]",
    "test ecx, 1",
    "cmovz rdx, rbx",
    "jmp rdx",
    ".balign 16",
    "3: add eax, 1",
    "jmp 5f",
    ".balign 16",
    "4: add eax, 100",
    "5: dec ecx",
    "jnz 2b",
    "hlt",
    "favo_test_table_end:",
);

macro_rules! program {
    ($start:ident, $end:ident) => {{
        unsafe extern "C" {
            static $start: u8;
            static $end: u8;
        }
        // SAFETY: two labels around bytes of this program.
        unsafe {
            let (start, end) = (&raw const $start, &raw const $end);
            std::slice::from_raw_parts(start, end as usize - start as usize)
        }
    }};
}

fn machine() -> TestCpu {
    let mut test = TestCpu::long_mode();
    test.translate_at_once();
    test
}

fn is_translated(test: &TestCpu) -> bool {
    test.cpu.counters.units_translated > 0 || !test.cpu.translator.is_on()
}

#[test]
fn calls_and_returns_find_their_way() {
    // At each of these the stack lies across another page's end.
    for offset in (0..4096).step_by(264) {
        let mut test = machine();
        test.cpu.gpr[gpr::RSP] = STACK - offset;
        test.cpu.gpr[gpr::RDI] = 15;
        let trap = test.run(program!(favo_test_fib, favo_test_fib_end));
        assert_eq!(trap, Trap::Halt, "stack at {:#x}", STACK - offset);
        assert_eq!(test.reg(gpr::RAX), 610);
        assert_eq!(test.reg(gpr::RSP), STACK - offset);
        assert!(is_translated(&test));
    }
}

#[test]
fn code_that_patches_itself_runs_patched() {
    let mut test = machine();
    test.cpu.gpr[gpr::RCX] = 1000;
    let trap = test.run(program!(favo_test_patch, favo_test_patch_end));
    assert_eq!(trap, Trap::Halt);
    assert_eq!(test.reg(gpr::RAX), 500 + 3 * 500);
    assert!(test.cpu.counters.code_pages_changed > 0 || !test.cpu.translator.is_on());
}

#[test]
fn flags_survive_what_is_not_in_the_table() {
    let mut test = machine();
    test.cpu.gpr[gpr::RDI] = DATA;
    let trap = test.run(program!(favo_test_flags, favo_test_flags_end));
    assert_eq!((trap, test.reg(gpr::RAX)), (Trap::Halt, 64));
    assert_eq!(test.get(DATA + 4096), 63);
}

#[test]
fn vector_registers_survive_the_interpreter() {
    let mut test = machine();
    test.cpu.cr4 |= crate::cpu::cr4::OSFXSR | crate::cpu::cr4::OSXMMEXCPT;
    test.cpu.xcr0 = crate::native::xcr0();
    test.cpu.gpr[gpr::RDI] = DATA;
    let code = program!(favo_test_vector, favo_test_vector_end);
    assert_eq!(test.run(code), Trap::Halt);
    assert_eq!(test.reg(gpr::RAX), 64);
    // 0 / 0: invalid, masked.
    assert_eq!(test.cpu.extended.mxcsr & 1, 1);

    // Unmasked, it is raised at its instruction with everything before done.
    test.cpu.extended.mxcsr = 0x1f80 & !(1 << 7);
    test.cpu.extended.ymm[2] = [0; 32];
    test.cpu.gpr[gpr::RDI] = DATA;
    test.cpu.rip = CODE;
    assert_eq!(test.go(), Trap::Exception(Exception::SimdFloatingPoint));
    assert_eq!(test.reg(gpr::RAX), 64);
    assert_eq!(test.cpu.rip, CODE + code.len() as u64 - 5);
}

#[test]
fn x87_registers_survive_the_interpreter() {
    let mut test = machine();
    test.cpu.gpr[gpr::RDI] = DATA;
    test.cpu.gpr[gpr::RSI] = DATA;
    let trap = test.run(program!(favo_test_x87, favo_test_x87_end));
    assert_eq!(trap, Trap::Halt);
    assert_eq!(test.get(DATA) as u32, 64 * 65 / 2);
    assert_eq!(test.cpu.extended.x87.ftw, 0);
}

#[test]
fn indirect_jumps_find_every_target() {
    let mut test = machine();
    let trap = test.run(program!(favo_test_table, favo_test_table_end));
    assert_eq!((trap, test.reg(gpr::RAX)), (Trap::Halt, 500 + 50_000));
}

#[test]
fn code_written_by_a_device_runs_as_written() {
    // mov eax, 1; jmp +0; hlt: two units, linked.
    let mut test = machine();
    let code = [0xb8, 1, 0, 0, 0, 0xeb, 0, 0xf4];
    assert_eq!(test.run(&code), Trap::Halt);
    for value in 2..5 {
        test.write(CODE + 1, &[value]);
        test.cpu.rip = CODE;
        assert_eq!(test.go(), Trap::Halt);
        assert_eq!(test.reg(gpr::RAX), u64::from(value));
    }
}

#[test]
fn a_page_mapped_elsewhere_runs_what_is_there() {
    // One large page of code is mapped to 6 MiB: jump there, and back.
    let mut test = machine();
    let far = 6u64 << 20;
    // mov rbx, imm32; mov ecx, 3; loop: call rbx; dec ecx; jnz; hlt.
    let mut code = vec![0x48, 0xc7, 0xc3];
    code.extend((far as u32).to_le_bytes());
    code.extend([0xb9, 3, 0, 0, 0, 0xff, 0xd3, 0xff, 0xc9, 0x75, 0xfa, 0xf4]);
    // mov eax, N; ret.
    test.write(far, &[0xb8, 11, 0, 0, 0, 0xc3]);
    test.write(4 << 20, &[0xb8, 22, 0, 0, 0, 0xc3]);
    assert_eq!(test.run(&code), Trap::Halt);
    assert_eq!(test.reg(gpr::RAX), 11);
    // The tables of `long_mode` lie at 1000H; the third is at 3000H.
    test.put(0x3000 + 8 * 3, 2 << 21 | 0x87);
    test.cpu.flush_tlb_page(far);
    test.cpu.rip = CODE;
    assert_eq!(test.go(), Trap::Halt);
    assert_eq!(test.reg(gpr::RAX), 22);
}

#[test]
fn late_news_of_a_change_is_no_trap() {
    // The code is decoded and translated anew before the mail about the write
    // is read: another processor wrote, told the page, and then told this one.
    let mut test = machine();
    // mov ecx, 100; loop: dec ecx; jnz; hlt.
    let code = [0xb9, 100, 0, 0, 0, 0xff, 0xc9, 0x75, 0xfc, 0xf4];
    assert_eq!(test.run(&code), Trap::Halt);
    assert!(is_translated(&test));
    test.cpu.translator.page_changed(CODE & !0xfff);
    test.cpu.rip = CODE;
    let limit = crate::clock::host_tsc() + 10_000_000_000;
    assert_eq!(test.cpu.run(Some(limit)), Trap::Halt);
    assert_eq!(test.reg(gpr::RCX), 0);
}

#[test]
fn an_endless_loop_ends_when_it_shall() {
    // jmp self, then one that calls itself through a register.
    for code in [
        &[0xeb, 0xfe][..],
        &[0x48, 0x8d, 0x05, 0xf9, 0xff, 0xff, 0xff, 0xff, 0xe0],
    ] {
        let mut test = machine();
        test.load(code);
        assert_eq!(test.cpu.run(Some(0)), Trap::EndBlock);
    }
}

#[test]
fn everything_can_be_given_up_at_any_time() {
    let mut test = machine();
    test.cpu.gpr[gpr::RDI] = 12;
    test.load(program!(favo_test_fib, favo_test_fib_end));
    for _ in 0..10_000 {
        if let Some(machine) = &mut test.cpu.translator.machine {
            machine.clear();
        }
        match test.cpu.run(Some(0)) {
            Trap::EndBlock => {}
            trap => {
                assert_eq!((trap, test.reg(gpr::RAX)), (Trap::Halt, 144));
                return;
            }
        }
    }
    panic!("it does not come to an end");
}

#[test]
fn the_oldest_code_makes_room() {
    // More code than there is room for, each piece calling the next, and all
    // of it again and again: links and jumps lead to what is there.
    for segments in [1, 2, 5] {
        let mut test = machine();
        if let Some(machine) = &mut test.cpu.translator.machine {
            machine.code.divide(8192, segments);
        }
        // mov ecx, 20
        let mut code = vec![0xb9, 20, 0, 0, 0];
        let start = code.len();
        for piece in 0..400u32 {
            // add eax, N; test eax, eax; jz +5 (over the jump); jmp +0.
            code.push(0x05);
            code.extend(piece.to_le_bytes());
            code.extend([0x85, 0xc0, 0x74, 5, 0xe9, 0, 0, 0, 0]);
        }
        // dec ecx; jnz start; hlt.
        code.extend([0xff, 0xc9, 0x0f, 0x85]);
        let back = start as i32 - (code.len() as i32 + 4);
        code.extend(back.to_le_bytes());
        code.push(0xf4);
        assert_eq!(test.run(&code), Trap::Halt);
        assert_eq!(test.reg(gpr::RAX), 20 * (399 * 400 / 2));
        let counters = &test.cpu.counters;
        assert!(counters.code_evictions > 0 || !test.cpu.translator.is_on());
    }
}

#[test]
fn a_target_that_is_no_address_faults_at_the_jump() {
    let mut test = machine();
    test.cpu.gpr[gpr::RAX] = 1 << 63;
    // push rax; ret.
    assert_eq!(
        test.run(&[0x50, 0xc3]),
        Trap::Exception(Exception::GeneralProtection(0))
    );
    assert_eq!(test.cpu.rip, CODE + 1);
    assert_eq!(test.reg(gpr::RSP), STACK - 8);
    let mut bytes = [0; 8];
    test.memory
        .read(GuestAddress(STACK - 8), &mut bytes)
        .expect("RAM");
    assert_eq!(u64::from_le_bytes(bytes), 1 << 63);
}

#[test]
fn every_index_has_a_key_that_nothing_matches() {
    for index in 1..JUMPS {
        assert_ne!(jump_index(empty_key(index).wrapping_neg()), index);
    }
}
