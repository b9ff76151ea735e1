use iced_x86::{Code, Decoder, DecoderOptions};

use super::super::host_has_avx;
use super::*;

fn decode(bytes: &[u8]) -> Instruction {
    Decoder::with_ip(64, bytes, 0x1000, DecoderOptions::NONE).decode()
}

fn run(bytes: &[u8], gpr: &mut [u64; 16], state: &mut ExtendedState, memory: &mut [u8]) -> u64 {
    let native = lookup(&decode(bytes)).expect("this host has SSE2");
    assert!(usize::from(native.form.size) <= memory.len());
    // SAFETY: the operand fits; the tests' buffers are aligned where it matters.
    unsafe { native.run(gpr, state, 0, memory.as_mut_ptr()) }.expect("no exception")
}

#[test]
fn sse_keeps_upper_halves_and_other_registers() {
    let mut state = ExtendedState::default();
    for (n, ymm) in state.ymm.iter_mut().enumerate() {
        ymm.fill(n as u8 + 1);
    }
    // paddb xmm1, xmm9
    run(
        &[0x66, 0x41, 0x0f, 0xfc, 0xc9],
        &mut [0; 16],
        &mut state,
        &mut [],
    );
    assert_eq!(state.ymm[1][..16], [12; 16]);
    if host_has_avx() {
        assert_eq!(state.ymm[1][16..], [2; 16]);
    }
    assert_eq!(state.ymm[2], [3; 32]);
    assert_eq!(state.ymm[9], [10; 32]);
}

#[test]
fn memory_general_registers_and_flags() {
    let mut state = ExtendedState::default();
    let mut gpr = [0; 16];
    let mut memory = *b"0123456789abcdef";
    // movdqu xmm15, [rax + 4*rbx + 0x10]
    run(
        &[0xf3, 0x44, 0x0f, 0x6f, 0x7c, 0x98, 0x10],
        &mut gpr,
        &mut state,
        &mut memory,
    );
    assert_eq!(state.ymm[15][..16], memory);
    // movq r13, xmm15
    run(
        &[0x66, 0x4d, 0x0f, 0x7e, 0xfd],
        &mut gpr,
        &mut state,
        &mut [],
    );
    assert_eq!(gpr[13], u64::from_le_bytes(*b"01234567"));
    // movups [rsp], xmm3
    run(&[0x0f, 0x11, 0x1c, 0x24], &mut gpr, &mut state, &mut memory);
    assert_eq!(memory, [0; 16]);
    // ucomisd xmm3, xmm3: equal
    let flags = run(&[0x66, 0x0f, 0x2e, 0xdb], &mut gpr, &mut state, &mut []);
    assert_eq!(flags & 0x8d5, 0x40);
}

#[test]
fn x87_results_and_the_hosts_unit_stays_empty() {
    let mut state = ExtendedState::default();
    let mut gpr = [0; 16];
    run(&[0xd9, 0xe8], &mut gpr, &mut state, &mut []); // fld1
    run(&[0xd9, 0xeb], &mut gpr, &mut state, &mut []); // fldpi
    run(&[0xde, 0xc1], &mut gpr, &mut state, &mut []); // faddp
    assert_eq!((state.x87.ftw, state.x87.top()), (0x80, 7));
    let mut memory = [0; 8];
    run(&[0xdd, 0x1f], &mut gpr, &mut state, &mut memory); // fstp qword [rdi]
    assert_eq!(f64::from_le_bytes(memory), 1.0 + std::f64::consts::PI);
    assert_eq!(state.x87.ftw, 0);
}

#[test]
fn an_unmasked_exception_changes_only_its_flag() {
    let mut state = ExtendedState::default();
    state.mxcsr &= !(1 << 9); // divide by zero
    state.ymm[0][..4].copy_from_slice(&1f32.to_le_bytes());
    let before = state.ymm;
    // divss xmm0, xmm1
    let native = lookup(&decode(&[0xf3, 0x0f, 0x5e, 0xc1])).expect("SSE");
    // SAFETY: no memory operand.
    let result = unsafe { native.run(&mut [0; 16], &mut state, 0, std::ptr::null_mut()) };
    assert!(result.is_err());
    assert_eq!(state.mxcsr, 0x1f80 & !(1 << 9) | 4);
    assert_eq!(state.ymm, before);
    state.mxcsr = 0x1f80;
    run(&[0xf3, 0x0f, 0x5e, 0xc1], &mut [0; 16], &mut state, &mut []);
    assert_eq!(state.ymm[0][..4], f32::INFINITY.to_le_bytes());
    assert_eq!(state.mxcsr, 0x1f84);
}

#[test]
fn forms_do_not_depend_on_registers_or_addresses() {
    let a = lookup(&decode(&[0x66, 0x0f, 0xfc, 0xc1])).expect("SSE2");
    let b = lookup(&decode(&[0x66, 0x45, 0x0f, 0xfc, 0xfe])).expect("SSE2");
    assert!(std::ptr::eq(a.form, b.form));
    assert_eq!((a.registers, b.registers), ([0, 1, 0, 0], [15, 14, 0, 0]));
}

#[test]
fn instructions_that_touch_no_vector_are_not_ours() {
    for bytes in [
        &[0x90][..],
        &[0x0f, 0xae, 0xe8],
        &[0xf3, 0x0f, 0xb8, 0xc0],
        &[0x0f, 0x77],
    ] {
        assert_eq!(
            lookup(&decode(bytes)).map(|n| n.registers),
            None,
            "{bytes:x?}"
        );
    }
    assert!(matches!(decode(&[0x0f, 0x77]).code(), Code::Emms));
}
