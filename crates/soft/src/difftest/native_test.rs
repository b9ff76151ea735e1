//! The stubs alone against the host: every form that runs natively, without
//! the interpreter around it.

use favo_accel::state::FpuState;
use iced_x86::{Decoder, DecoderOptions, Register};

use super::*;
use crate::native::{self, ExtendedState, MemoryAccess, Unit};

struct Stubs {
    code: Vec<u8>,
    data: Vec<u8>,
}

impl Stubs {
    /// Offset of `address` in `data`.
    fn offset(address: u64, write: bool) -> Option<usize> {
        let within = |r: &(u64, u64)| r.0 <= address && address < r.1;
        if within(&READ_WRITE[0]) {
            Some((address - READ_WRITE[0].0) as usize)
        } else if within(&READ_ONLY) && !write {
            Some((address - READ_ONLY.0) as usize + 0x2000)
        } else {
            None
        }
    }
}

impl Engine for Stubs {
    fn load_code(&mut self, code: &[u8]) {
        self.code = code.to_vec();
    }
    fn write(&mut self, address: u64, bytes: &[u8]) {
        let offset = Self::offset(address, false).expect("data");
        self.data[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
    fn read(&mut self, address: u64, bytes: &mut [u8]) {
        let offset = Self::offset(address, false).expect("data");
        bytes.copy_from_slice(&self.data[offset..offset + bytes.len()]);
    }
    fn run(&mut self, before: &MachineState, _: usize) -> Outcome {
        let instruction = Decoder::with_ip(64, &self.code, START, DecoderOptions::NONE).decode();
        let native = native::lookup(&instruction)
            .unwrap_or_else(|| panic!("{:?} {:x?}", instruction.code(), self.code));
        let form = native.form;
        let mut state = before.clone();
        let mut extended = ExtendedState::from(&before.fpu);
        let fail = |vector, error_code, address| Outcome {
            state: before.clone(),
            fault: Some(Fault {
                vector,
                error_code,
                address,
            }),
        };
        if matches!(form.unit, Unit::X87 | Unit::Mmx | Unit::MmxSse)
            && extended.x87.exception_pending()
        {
            return fail(16, 0, 0);
        }
        let mut buffer = [0u8; 64];
        let buffer = &mut buffer[..];
        let aligned = buffer.as_ptr().align_offset(32);
        let operand = &mut buffer[aligned..aligned + 32];
        let mut addresses = Vec::new();
        if form.access != MemoryAccess::None {
            let value = |register: Register, _, _| match register {
                Register::ES | Register::CS | Register::SS | Register::DS => Some(0),
                r => {
                    let value = before.gpr[r.full_register().number()];
                    Some(if r.size() == 4 {
                        value & 0xffff_ffff
                    } else {
                        value
                    })
                }
            };
            let operand_number = (0..instruction.op_count())
                .find(|n| instruction.op_kind(*n) == iced_x86::OpKind::Memory)
                .expect("it has one");
            let address = instruction
                .virtual_address(operand_number, 0, value)
                .expect("simple");
            if !address.is_multiple_of(u64::from(form.alignment)) {
                return fail(13, 0, 0);
            }
            let last = address.wrapping_add(u64::from(form.size) - 1);
            if [address, last]
                .iter()
                .any(|a| (*a as i64) << 16 >> 16 != *a as i64)
            {
                let stack = instruction.memory_segment() == Register::SS;
                return fail(if stack { 12 } else { 13 }, 0, 0);
            }
            let write = form.access == MemoryAccess::Write;
            for n in 0..u64::from(form.size) {
                let Some(offset) = Self::offset(address + n, write) else {
                    let present = Self::offset(address + n, false).is_some();
                    let code = 4 | u32::from(write) << 1 | u32::from(present);
                    return fail(14, code, address + n);
                };
                operand[n as usize] = self.data[offset];
                addresses.push(offset);
            }
        }
        // SAFETY: the operand is 32 bytes, aligned for the widest vector.
        let result = unsafe {
            native.run(
                &mut state.gpr,
                &mut extended,
                before.flags,
                operand.as_mut_ptr(),
            )
        };
        state.fpu = FpuState::from(&extended);
        match result {
            Err(_) => {
                let mut outcome = fail(19, 0, 0);
                outcome.state.fpu = state.fpu;
                return outcome;
            }
            Ok(flags) if form.writes_flags() => {
                state.flags = state.flags & !0x8d5 | flags & 0x8d5;
            }
            Ok(_) => {}
        }
        if form.access == MemoryAccess::Write {
            for (n, offset) in addresses.into_iter().enumerate() {
                self.data[offset] = operand[n];
            }
        }
        state.rip += instruction.len() as u64;
        Outcome { state, fault: None }
    }
}

#[test]
fn stubs_do_what_the_host_does() {
    let mut random = Random::new(1);
    let codes: Vec<_> = codes()
        .into_iter()
        .filter(|code| {
            (0..64).any(|_| {
                instruction(*code, &mut random).is_some_and(|g| {
                    let i = Decoder::with_ip(64, &g.bytes, START, DecoderOptions::NONE).decode();
                    native::lookup(&i).is_some()
                })
            })
        })
        .collect();
    let cases = std::env::var("FAVO_DIFF_CASES")
        .ok()
        .and_then(|n| n.parse().ok());
    let mut stubs = Stubs {
        code: Vec::new(),
        data: vec![0; DATA_BYTES],
    };
    let summary = run(&mut stubs, &codes, 0x1234, cases.unwrap_or(200_000), 1).expect("mappings");
    println!(
        "{} forms, {} cases, {} faults, not encodable {:?}",
        codes.len(),
        summary.cases,
        summary.faults,
        summary.not_encodable
    );
    for failure in &summary.failures {
        println!("{}", failure.report);
    }
    assert!(
        summary.failures.is_empty(),
        "{} forms differ",
        summary.failures.len()
    );
    assert!(codes.len() > 300);
}
