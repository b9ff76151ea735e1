//! Bit instructions: tests, scans, BMI1, BMI2, ADX, CRC32, random numbers.

use favo_accel::cpuid::CpuidTable;
use iced_x86::{Instruction, Mnemonic};

use super::feature;
use crate::decode::operand::{Place, place, width};
use crate::decode::pick::{by_bytes, by_word};
use crate::exec::bits::{self, BitChange};
use crate::operation::{Handler, Operation};

pub(super) fn handler(
    cpuid: &CpuidTable,
    instruction: &Instruction,
    operation: &mut Operation,
) -> Option<Handler> {
    use Mnemonic::*;
    let bytes = width(instruction, 0);
    let memory = place(instruction, 1) == Place::Memory;
    let third_is_memory = place(instruction, 2) == Place::Memory;
    let test = |change| {
        let immediate = place(instruction, 1) == Place::Immediate;
        bits::bit_test(
            change,
            place(instruction, 0) == Place::Memory,
            immediate,
            bytes,
        )
    };
    Some(match instruction.mnemonic() {
        Bt => test(BitChange::Test),
        Bts => test(BitChange::Set),
        Btr => test(BitChange::Reset),
        Btc => test(BitChange::Complement),
        // Without the feature the prefix that makes them is ignored.
        Tzcnt if feature::has_bmi1(cpuid) => bits::scan::<bits::CountZeros<false>>(memory, bytes),
        Lzcnt if feature::has_lzcnt(cpuid) => bits::scan::<bits::CountZeros<true>>(memory, bytes),
        Bsf | Tzcnt => bits::scan::<bits::BitScan<false>>(memory, bytes),
        Bsr | Lzcnt => bits::scan::<bits::BitScan<true>>(memory, bytes),
        Popcnt => bits::scan::<bits::PopulationCount>(memory, bytes),
        Blsi => bits::scan::<bits::LowestBit<0>>(memory, bytes),
        Blsmsk => bits::scan::<bits::LowestBit<1>>(memory, bytes),
        Blsr => bits::scan::<bits::LowestBit<2>>(memory, bytes),
        Adcx => bits::scan::<bits::AddWithFlag<false>>(memory, bytes),
        Adox => bits::scan::<bits::AddWithFlag<true>>(memory, bytes),
        // The plain source comes in the middle: destination, plain, general.
        Andn | Pdep | Pext | Mulx => {
            std::mem::swap(&mut operation.second, &mut operation.third);
            match instruction.mnemonic() {
                Andn => bits::vex::<bits::Andn>(third_is_memory, bytes),
                Pdep => bits::vex::<bits::Pdep>(third_is_memory, bytes),
                Pext => bits::vex::<bits::Pext>(third_is_memory, bytes),
                _ => bits::vex::<bits::Mulx>(third_is_memory, bytes),
            }
        }
        // It comes last: destination, general, plain.
        Bextr | Bzhi | Shlx | Shrx | Sarx => {
            if memory {
                operation.third = operation.second;
            }
            match instruction.mnemonic() {
                Bextr => bits::vex::<bits::Bextr>(memory, bytes),
                Bzhi => bits::vex::<bits::Bzhi>(memory, bytes),
                Shlx => bits::vex::<bits::VexShift<0>>(memory, bytes),
                Shrx => bits::vex::<bits::VexShift<1>>(memory, bytes),
                _ => bits::vex::<bits::VexShift<2>>(memory, bytes),
            }
        }
        Rorx => bits::vex::<bits::Rorx>(memory, bytes),
        Crc32 => by_bytes!(width(instruction, 1), bits::crc32, memory),
        Rdrand | Rdseed => by_word!(bytes, bits::random),
        _ => return None,
    })
}
