//! What the assembler writes, read back by another decoder.

use iced_x86::{Decoder, DecoderOptions};
use proptest::prelude::*;

use super::*;

fn text(bytes: &[u8]) -> String {
    let instruction = Decoder::with_ip(64, bytes, 0x1000, DecoderOptions::NONE).decode();
    assert_eq!(instruction.len(), bytes.len(), "{bytes:x?}");
    instruction.to_string()
}

fn one(write: impl FnOnce(&mut Assembler)) -> String {
    let mut assembler = Assembler::new(0x1000);
    write(&mut assembler);
    text(&assembler.finish())
}

#[test]
fn single_instructions() {
    assert_eq!(one(|a| a.load(8, at(host::RSP, 0))), "mov r8,[rsp]");
    assert_eq!(
        one(|a| a.load(0, absolute(0x4000_1234))),
        "mov rax,[40001234h]"
    );
    assert_eq!(
        one(|a| a.lea(11, Rm::Memory(Some(13), Some((9, 3)), -8))),
        "lea r11,[r13+r9*8-8]"
    );
    assert_eq!(one(|a| a.set32(10, 5)), "mov r10d,5");
    assert_eq!(one(|a| a.set64(10, 1 << 40)), "mov r10,10000000000h");
    assert_eq!(one(|a| a.jump(0x2000)), "jmp 0000000000002000h");
    assert_eq!(
        one(|a| a.jump_memory(Rm::Memory(None, Some((10, 3)), 0x5000))),
        "jmp qword ptr [r10*8+5000h]"
    );
    assert_eq!(one(|a| a.test_dword(64)), "cmp dword ptr [40h],0");
}

proptest! {
    #[test]
    fn addresses_survive(
        base in prop::option::of(0u8..16),
        index in prop::option::of((0u8..16, 0u8..4)),
        displacement: i32,
        reg in 0u8..16,
    ) {
        prop_assume!(index.is_none_or(|(index, _)| index != host::RSP));
        let mut assembler = Assembler::new(0);
        assembler.load(reg, Rm::Memory(base, index, displacement));
        let bytes = assembler.finish();
        let instruction = Decoder::with_ip(64, &bytes, 0, DecoderOptions::NONE).decode();
        prop_assert_eq!(instruction.len(), bytes.len());
        prop_assert_eq!(instruction.op0_register().number(), usize::from(reg));
        let number = |register: iced_x86::Register| {
            (register != iced_x86::Register::None).then(|| register.number() as u8)
        };
        prop_assert_eq!(number(instruction.memory_base()), base);
        prop_assert_eq!(number(instruction.memory_index()), index.map(|(index, _)| index));
        prop_assert_eq!(instruction.memory_displacement64() as i64, i64::from(displacement));
        if let Some((_, scale)) = index {
            prop_assert_eq!(instruction.memory_index_scale(), 1 << scale);
        }
    }
}
