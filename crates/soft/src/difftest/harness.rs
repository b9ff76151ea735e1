//! Runs cases on both sides and compares.

use iced_x86::{Code, Decoder, FlowControl, Instruction};

use super::{
    DATA_BYTES, Fault, Generated, MachineState, Oracle, READ_ONLY, READ_WRITE, Random, START,
    generate, report, undefined,
};

/// What is tested: an implementation of the processor, in 64-bit mode at CPL 3,
/// with the pages of [`super`] mapped as they are here.
pub trait Engine {
    /// Puts `code` at [`START`].
    fn load_code(&mut self, code: &[u8]);
    /// Overwrites data.
    fn write(&mut self, address: u64, bytes: &[u8]);
    /// Reads data.
    fn read(&mut self, address: u64, bytes: &mut [u8]);
    /// Arithmetic flags at a fault are exact even where the instructions
    /// behind it would overwrite them all.
    fn keeps_flags_at_faults(&self) -> bool {
        true
    }
    /// Runs `instructions` instructions, or up to a fault.
    fn run(&mut self, state: &MachineState, instructions: usize) -> Outcome;
}

/// The result of one run.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The state after it, or at the fault.
    pub state: MachineState,
    /// The fault, if one ended it.
    pub fault: Option<Fault>,
}

/// A case whose two outcomes differ.
#[derive(Debug)]
pub struct Failure {
    /// The instructions, for people.
    pub title: String,
    /// What differs, and everything needed to do it again.
    pub report: String,
}

/// What a run of cases came to.
#[derive(Debug, Default)]
pub struct Summary {
    /// Cases compared.
    pub cases: u64,
    /// Of those, how many faulted.
    pub faults: u64,
    /// Forms that could not be encoded.
    pub not_encodable: Vec<Code>,
    /// The differences, at most one for each form.
    pub failures: Vec<Failure>,
}

/// Runs `cases` cases over `codes`, each of 1 to `longest` instructions.
pub fn run(
    engine: &mut dyn Engine,
    codes: &[Code],
    seed: u64,
    cases: u64,
    longest: usize,
) -> std::io::Result<Summary> {
    let mut tester = Tester {
        oracle: Oracle::new()?,
        engine,
        summary: Summary::default(),
        before: vec![0; DATA_BYTES],
        after: vec![0; DATA_BYTES],
    };
    let mut failed = vec![false; codes.len()];
    tester.refill(&mut Random::new(seed));
    let mut missing = vec![0u32; codes.len()];
    for case in 0..cases {
        let case_seed = seed.wrapping_add(case).wrapping_mul(0x2545_f491_4f6c_dd1d);
        let mut random = Random::new(case_seed);
        let first = (case % codes.len() as u64) as usize;
        if failed[first] {
            continue;
        }
        let length = if continues(codes[first]) {
            1 + random.below(longest as u64) as usize
        } else {
            1
        };
        let mut generated = Vec::with_capacity(length);
        let mut chain = undefined::Chain::default();
        for n in 0..length {
            let code = if n == 0 {
                codes[first]
            } else {
                random.pick(codes)
            };
            if n > 0 && !continues(code) {
                continue;
            }
            // Some choices of operands have no encoding: AH beside REX.
            let made = (0..16).find_map(|_| generate::instruction(code, &mut random));
            match made {
                Some(made) if length == 1 || chain.accepts(&made.bytes) => generated.push(made),
                None if n == 0 => missing[first] += 1,
                _ => {}
            }
        }
        if generated.is_empty() {
            continue;
        }
        if random.one_in(64) {
            tester.refill(&mut random);
        }
        let state = generate::state(&generated, &mut random);
        if let Err(failure) = tester.case(&generated, &state, seed, case) {
            failed[first] = true;
            tester.summary.failures.push(failure);
            tester.refill(&mut random);
        }
    }
    tester.summary.not_encodable = codes
        .iter()
        .zip(missing)
        .filter(|(_, times)| *times > 0)
        .map(|(code, _)| *code)
        .collect();
    Ok(tester.summary)
}

/// Whether what follows in memory is what runs next: a jump into the middle of
/// an instruction could be a jump to anything.
fn continues(code: Code) -> bool {
    let mut instruction = Instruction::default();
    instruction.set_code(code);
    instruction.flow_control() == FlowControl::Next
}

struct Tester<'a> {
    oracle: Oracle,
    engine: &'a mut dyn Engine,
    summary: Summary,
    before: Vec<u8>,
    after: Vec<u8>,
}

impl Tester<'_> {
    /// New random data on both sides.
    fn refill(&mut self, random: &mut Random) {
        random.fill(&mut self.before);
        self.oracle.load(&[], &self.before);
        let mut offset = 0;
        for (start, end) in READ_WRITE.into_iter().chain([READ_ONLY]) {
            let size = (end - start) as usize;
            self.engine
                .write(start, &self.before[offset..offset + size]);
            offset += size;
        }
    }

    fn case(
        &mut self,
        generated: &[Generated],
        state: &MachineState,
        seed: u64,
        case: u64,
    ) -> Result<(), Failure> {
        let bytes: Vec<u8> = generated
            .iter()
            .flat_map(|g| g.bytes.iter().copied())
            .collect();
        let instructions = decode(&bytes);
        if may_hit_processor(&instructions, state) {
            return Ok(());
        }
        self.oracle.load_code(&bytes);
        self.engine.load_code(&bytes);
        let mut soft = self.engine.run(state, instructions.len());
        let somewhere_low = |address: &u64| LOW.contains(address);
        let fault_address = soft.fault.map(|fault| fault.address);
        if fault_address
            .iter()
            .chain([&soft.state.rip])
            .any(somewhere_low)
        {
            self.refill(&mut Random::new(case));
            return Ok(());
        }
        let (mut host_state, mut host_fault) = self.oracle.run(state);
        if let Some(fault) = host_fault
            && fault.vector == 14
            && fault.error_code & 0x10 != 0
            && host_state.rip == fault.address
        {
            // A jump to nowhere: complete, the next fetch faults.
            host_fault = None;
        }
        let host = {
            host_state.flags &= !(1 << 16);
            Outcome {
                state: host_state,
                fault: host_fault,
            }
        };
        let mut host = host;
        for outcome in [&mut host, &mut soft] {
            if let Some(fault) = &mut outcome.fault
                && fault.vector == 14
                && !(super::CODE..super::DATA + super::DATA_SIZE).contains(&fault.address)
            {
                // The kernel's pages are present on the host.
                fault.error_code &= !1;
            }
        }
        self.summary.cases += 1;
        self.summary.faults += u64::from(host.fault.is_some());
        if undefined::misaligned_mode(&instructions, &host) {
            self.refill(&mut Random::new(case));
            return Ok(());
        }
        let mut differences = compare(&instructions, state, &host, &soft);
        if host.fault.is_some() && !self.engine.keeps_flags_at_faults() {
            differences.retain(|difference| !difference.starts_with("flags"));
        }
        let stack = differences.len();
        self.compare_memory(&mut differences);
        if host.fault.is_some_and(|fault| fault.vector == 13)
            && !self.engine.keeps_flags_at_faults()
            && instructions
                .iter()
                .any(|i| i.flow_control() == FlowControl::IndirectCall)
        {
            // A call to no address has written below the stack already.
            differences.truncate(stack);
            self.refill(&mut Random::new(case));
        }
        if instructions
            .iter()
            .any(|i| undefined::result(i, state.gpr[1]))
        {
            differences.retain(|difference| difference.starts_with("fault"));
            let mut random = Random::new(case);
            self.refill(&mut random);
        }
        if differences.is_empty() {
            return Ok(());
        }
        Err(report::failure(&report::Case {
            seed,
            number: case,
            bytes: &bytes,
            instructions: &instructions,
            state,
            differences: &differences,
            host: &host,
            soft: &soft,
        }))
    }

    /// Appends where data differ; makes what the host has the new `before`.
    fn compare_memory(&mut self, differences: &mut Vec<String>) {
        let mut offset = 0;
        for (start, end) in READ_WRITE.into_iter().chain([READ_ONLY]) {
            let size = (end - start) as usize;
            let host = self.oracle.read(start, size);
            self.engine.read(start, &mut self.after[..size]);
            if host != &self.after[..size] {
                let at = host
                    .iter()
                    .zip(&self.after)
                    .position(|(a, b)| a != b)
                    .unwrap_or(0);
                let from = at & !15;
                let to = (from + 48).min(size);
                differences.push(format!(
                    "memory from {:#x}: before {:02x?}, host {:02x?}, soft {:02x?}",
                    start + from as u64,
                    &self.before[offset + from..offset + to],
                    &host[from..to],
                    &self.after[from..to],
                ));
            }
            self.before[offset..offset + size].copy_from_slice(host);
            offset += size;
        }
    }
}

/// Where the processor under test keeps itself: `crate::low`. The host's
/// instruction must not touch it.
const LOW: std::ops::Range<u64> = 0x4000_0000..0x8000_0000;

/// Only truncated addresses come there by chance.
fn may_hit_processor(instructions: &[Instruction], state: &MachineState) -> bool {
    let truncated = |i: &Instruction| i.memory_base().is_gpr32() || i.memory_index().is_gpr32();
    let register = |register: iced_x86::Register, element: usize, size: usize| {
        if register.is_vector_register() {
            let bytes = &state.fpu.ymm[register.number() % 16];
            let at = (element * size).min(32 - size);
            let mut value = [0; 8];
            value[..size].copy_from_slice(&bytes[at..at + size]);
            return Some(u64::from_le_bytes(value));
        }
        if register.is_segment_register() {
            return Some(0);
        }
        let number = register.full_register().number() % 16;
        let value = state.gpr[number];
        Some(if register.size() == 4 {
            value & 0xffff_ffff
        } else {
            value
        })
    };
    instructions.iter().enumerate().any(|(n, instruction)| {
        truncated(instruction) && n > 0
            || (0..instruction.op_count())
                .filter(|n| instruction.op_kind(*n) == iced_x86::OpKind::Memory)
                .any(|operand| {
                    (0..8).any(|element| {
                        instruction
                            .virtual_address(operand, element, register)
                            .is_some_and(|address| {
                                LOW.contains(&(address & 0xffff_ffff)) && address >> 32 == 0
                            })
                    })
                })
    })
}

fn decode(bytes: &[u8]) -> Vec<Instruction> {
    Decoder::with_ip(64, bytes, START, crate::decode::decoder_options())
        .into_iter()
        .collect()
}

/// Names what differs between two outcomes.
fn compare(
    instructions: &[Instruction],
    before: &MachineState,
    host: &Outcome,
    soft: &Outcome,
) -> Vec<String> {
    let mut differences = Vec::new();
    let mut differ = |name: String, host: String, soft: String| {
        if host != soft {
            differences.push(format!("{name}: host {host}, soft {soft}"));
        }
    };
    differ(
        "fault".into(),
        format!("{:x?}", host.fault),
        format!("{:x?}", soft.fault),
    );
    if instructions
        .iter()
        .any(|i| undefined::result(i, before.gpr[1]))
    {
        return differences;
    }
    let (h, s) = (&host.state, &soft.state);
    differ(
        "rip".into(),
        format!("{:#x}", h.rip),
        format!("{:#x}", s.rip),
    );
    for (n, (h, s)) in h.gpr.iter().zip(&s.gpr).enumerate() {
        if h != s {
            differ(format!("gpr {n}"), format!("{h:#x}"), format!("{s:#x}"));
        }
    }
    // AC, ID and the rest of the system flags do not change here; RF is the
    // signal's.
    let undefined: u64 = instructions.iter().fold(0, |m, i| m | undefined::flags(i));
    let mask = 0xdd5 & !undefined;
    differ(
        "flags".into(),
        format!("{:#x}", h.flags & mask),
        format!("{:#x}", s.flags & mask),
    );
    let vector = host.fault.map(|fault| fault.vector);
    let ignored = undefined::mxcsr(instructions, vector, h.fpu.mxcsr);
    compare_fpu(h, s, ignored, &mut differ);
    differences
}

fn compare_fpu(
    h: &MachineState,
    s: &MachineState,
    ignored_mxcsr: u32,
    differ: &mut impl FnMut(String, String, String),
) {
    let (h, s) = (&h.fpu, &s.fpu);
    if h == s {
        return;
    }
    let mxcsr = |value: u32| format!("{:#x}", value & !ignored_mxcsr);
    differ("mxcsr".into(), mxcsr(h.mxcsr), mxcsr(s.mxcsr));
    differ(
        "fcw".into(),
        format!("{:#x}", h.fcw),
        format!("{:#x}", s.fcw),
    );
    differ(
        "fsw".into(),
        format!("{:#x}", h.fsw),
        format!("{:#x}", s.fsw),
    );
    differ(
        "ftw".into(),
        format!("{:#x}", h.ftw),
        format!("{:#x}", s.ftw),
    );
    for n in 0..8 {
        if h.st[n] != s.st[n] {
            differ(
                format!("st{n}"),
                format!("{:02x?}", h.st[n]),
                format!("{:02x?}", s.st[n]),
            );
        }
    }
    for n in 0..16 {
        if h.ymm[n] != s.ymm[n] {
            differ(
                format!("ymm{n}"),
                format!("{:02x?}", h.ymm[n]),
                format!("{:02x?}", s.ymm[n]),
            );
        }
    }
}
