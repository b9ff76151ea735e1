//! Page walks against a slow walker that follows the manual's figures, and
//! what the translation tables remember.

use proptest::prelude::*;

use super::*;
use crate::cpu::{efer, gpr};
use crate::testing::{CODE, DATA, MEMORY, TestCpu};
use crate::trap::Trap;

/// Where the random tables lie: 64 pages of them.
const TABLES: u64 = 0x40_0000;
const TABLE_PAGES: u64 = 64;

/// A paging mode.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Paging {
    Legacy,
    Pae,
    Long,
}

/// What decides about an access besides the tables.
#[derive(Clone, Copy, Debug)]
struct Case {
    paging: Paging,
    linear: u64,
    want: Want,
    user: bool,
    write_protect: bool,
    smep: bool,
    smap: bool,
    ac: bool,
    no_execute: bool,
    page_size: bool,
}

/// What the slow walker says: the address, or the error code.
type Answer = Result<u64, u32>;

/// SDM vol. 3, 4.3 to 4.6, written down as it reads.
fn reference(test: &TestCpu, case: &Case) -> Answer {
    let physical_bits = u64::from(test.cpu.limits.physical_bits);
    let present = |entry: u64| entry & 1 != 0;
    let code = |protection: bool, reserved: bool| {
        u32::from(protection)
            | u32::from(case.want == Want::Write) << 1
            | u32::from(case.user) << 2
            | u32::from(reserved) << 3
            | u32::from(
                case.want == Want::Execute
                    && (case.smep || case.no_execute && case.paging != Paging::Legacy),
            ) << 4
    };
    let bits = |value: u64, high: u64, low: u64| value >> low & ((2u64 << (high - low)) - 1);
    let read = |address: u64, wide: bool| {
        if address >= MEMORY {
            return 0;
        }
        let word = test.get(address & !7);
        if wide {
            word
        } else if address & 4 != 0 {
            word >> 32
        } else {
            word & 0xffff_ffff
        }
    };
    // (entry, size of what it maps as bits, rights count, may be large)
    let steps: Vec<(u64, bool, bool)> = match case.paging {
        Paging::Legacy => vec![(22, true, case.page_size), (12, true, false)],
        Paging::Pae => vec![(30, false, false), (21, true, true), (12, true, false)],
        Paging::Long => {
            vec![
                (39, true, false),
                (30, true, true),
                (21, true, true),
                (12, true, false),
            ]
        }
    };
    let wide = case.paging != Paging::Legacy;
    let mut base = test.cpu.cr3;
    if case.paging == Paging::Pae {
        base &= 0xffff_ffe0;
    } else {
        base &= 0x000f_ffff_ffff_f000;
    }
    let (mut writable, mut user, mut executable) = (true, true, true);
    for (shift, has_rights, may_be_large) in steps {
        let index = match (case.paging, shift) {
            (Paging::Legacy, _) => bits(case.linear, shift + 9, shift),
            (Paging::Pae, 30) => bits(case.linear, 31, 30),
            _ => bits(case.linear, shift + 8, shift),
        };
        let entry = read(base + index * if wide { 8 } else { 4 }, wide);
        if !present(entry) {
            return Err(code(false, false));
        }
        let leaf = shift == 12 || may_be_large && entry & 0x80 != 0;
        let mut reserved = false;
        if wide {
            reserved |= bits(entry, 51, physical_bits) != 0;
            reserved |= !case.no_execute && entry >> 63 != 0;
        }
        match case.paging {
            Paging::Legacy => reserved |= leaf && shift == 22 && entry & 1 << 21 != 0,
            Paging::Pae => {
                reserved |= bits(entry, 62, 52) != 0;
                if shift == 30 {
                    reserved |= entry >> 63 != 0 || entry & 0x1e6 != 0;
                }
                reserved |= leaf && shift == 21 && bits(entry, 20, 13) != 0;
            }
            Paging::Long => {
                reserved |= shift == 39 && entry & 0x80 != 0;
                reserved |= leaf && shift == 30 && bits(entry, 29, 13) != 0;
                reserved |= leaf && shift == 21 && bits(entry, 20, 13) != 0;
            }
        }
        if reserved {
            return Err(code(true, true));
        }
        if has_rights {
            writable &= entry & 2 != 0;
            user &= entry & 4 != 0;
            executable &= !(case.no_execute && wide && entry >> 63 != 0);
        }
        if !leaf {
            base = if wide {
                entry & 0x000f_ffff_ffff_f000
            } else {
                entry & 0xffff_f000
            };
            continue;
        }
        let refused = if case.user {
            !user
                || case.want == Want::Write && !writable
                || case.want == Want::Execute && !executable
        } else {
            match case.want {
                Want::Execute => !executable || case.smep && user,
                Want::Read => case.smap && user && !case.ac,
                Want::Write => case.smap && user && !case.ac || case.write_protect && !writable,
            }
        };
        if refused {
            return Err(code(true, false));
        }
        let offset = bits(case.linear, shift - 1, 0);
        let frame = match (case.paging, shift) {
            (Paging::Legacy, 22) => entry & 0xffc0_0000 | bits(entry, 20, 13) << 32,
            (Paging::Legacy, _) => entry & 0xffff_f000,
            _ => entry & 0x000f_ffff_ffff_f000 & !((1 << shift) - 1),
        };
        return Ok(frame | offset);
    }
    unreachable!("the last step is a leaf")
}

/// An entry: most lead to another table of the test, some are strange.
fn entry() -> impl Strategy<Value = u64> {
    let target = (0..TABLE_PAGES).prop_map(|page| TABLES + page * PAGE_SIZE);
    let flags = prop_oneof![
        4 => Just(0x67u64),
        2 => 0u64..0x1000,
        1 => (0u64..0x1000).prop_map(|flags| flags | 1),
    ];
    let odd = prop_oneof![
        8 => Just(0u64),
        1 => Just(1u64 << 63),
        1 => (12u64..63).prop_map(|bit| 1 << bit),
    ];
    (target, flags, odd).prop_map(|(target, flags, odd)| target | flags | odd)
}

fn case() -> impl Strategy<Value = Case> {
    let paging = prop_oneof![Just(Paging::Legacy), Just(Paging::Pae), Just(Paging::Long)];
    let want = prop_oneof![Just(Want::Read), Just(Want::Write), Just(Want::Execute)];
    (paging, any::<u64>(), want, any::<[bool; 7]>()).prop_map(|(paging, linear, want, flags)| {
        let [user, write_protect, smep, smap, ac, no_execute, page_size] = flags;
        let linear = match paging {
            Paging::Long => ((linear << 16) as i64 >> 16) as u64,
            _ => linear & 0xffff_ffff,
        };
        Case {
            paging,
            linear,
            want,
            user,
            write_protect,
            smep,
            smap,
            ac,
            no_execute,
            page_size,
        }
    })
}

fn apply(test: &mut TestCpu, case: &Case) {
    let cpu = &mut test.cpu;
    let set = |word: &mut u64, bit: u64, on: bool| *word = *word & !bit | if on { bit } else { 0 };
    set(&mut cpu.cr0, cr0::PG | cr0::PE, true);
    set(&mut cpu.cr0, cr0::WP, case.write_protect);
    set(&mut cpu.cr4, cr4::PAE, case.paging != Paging::Legacy);
    set(&mut cpu.cr4, cr4::PSE, case.page_size);
    set(&mut cpu.cr4, cr4::SMEP, case.smep);
    set(&mut cpu.cr4, cr4::SMAP, case.smap);
    set(&mut cpu.efer, efer::NXE, case.no_execute);
    set(
        &mut cpu.efer,
        efer::LMA | efer::LME,
        case.paging == Paging::Long,
    );
    set(&mut cpu.system_flags, rflags::AC, case.ac);
    cpu.cr3 = TABLES;
    cpu.update_mode();
    cpu.cpl = if case.user { 3 } else { 0 };
    cpu.update_mmu_mode();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn a_walk_ends_as_the_manual_says(
        case in case(),
        entries in proptest::collection::vec(entry(), 1..24),
        same in any::<bool>(),
    ) {
        let mut test = TestCpu::long_mode();
        // Every table holds the same few entries over and over, so that walks
        // get deep whatever the address.
        for page in 0..TABLE_PAGES {
            let mut bytes = Vec::new();
            for slot in 0..512 {
                let step = if same { 0 } else { slot + page as usize };
                bytes.extend_from_slice(&entries[step % entries.len()].to_le_bytes());
            }
            test.write(TABLES + page * PAGE_SIZE, &bytes);
        }
        apply(&mut test, &case);
        let expected = reference(&test, &case);
        let found = match test.cpu.translate(case.linear, Access::Data, case.want) {
            Ok(translation) => Ok(translation.physical),
            Err(Trap::Exception(Exception::PageFault { error_code })) => {
                prop_assert_eq!(test.cpu.fault_address, case.linear);
                Err(error_code)
            }
            Err(trap) => return Err(TestCaseError::fail(format!("{trap:?}"))),
        };
        prop_assert_eq!(found, expected, "{:?}", case);
        if found.is_ok() {
            // Marking entries must not change what they say.
            prop_assert_eq!(reference(&test, &case), expected);
        }
    }
}

#[test]
fn accessed_and_dirty_bits_are_set_when_they_should_be() {
    let mut test = TestCpu::long_mode();
    let leaf = 0x3000 + 8;
    test.put(leaf, 1 << 21 | 0x87);
    test.cpu.read_linear::<u8>(1 << 21, Access::Data).unwrap();
    assert_eq!(test.get(leaf) & 0x60, 0x20);
    test.cpu.write_linear(1 << 21, 1u8, Access::Data).unwrap();
    assert_eq!(test.get(leaf) & 0x60, 0x60);
    // A fault marks nothing.
    test.put(leaf, 1 << 21 | 0x85);
    test.cpu.flush_tlb_all();
    test.cpu
        .write_linear(1 << 21, 1u8, Access::Data)
        .unwrap_err();
    assert_eq!(test.get(leaf) & 0x60, 0);
}

#[test]
fn a_page_stays_translated_until_it_is_invalidated() {
    let mut test = TestCpu::long_mode();
    let (page, offset) = (2u64 << 21, 0x5008u64);
    test.put(page + offset, 11);
    test.put((1 << 21) + offset, 22);
    assert_eq!(
        test.cpu.read_linear::<u64>(page + offset, Access::Data),
        Ok(11)
    );
    test.put(0x3000 + 16, 1 << 21 | 0x87);
    // Invalidating any address of the large page drops all of it.
    test.cpu.flush_tlb_page(page + 0x10_0000);
    assert_eq!(
        test.cpu.read_linear::<u64>(page + offset, Access::Data),
        Ok(22)
    );
    test.put(0x3000 + 16, 2 << 21 | 0x87);
    test.cpu.flush_tlb_non_global();
    assert_eq!(
        test.cpu.read_linear::<u64>(page + offset, Access::Data),
        Ok(11)
    );
}

#[test]
fn global_pages_survive_a_change_of_address_space() {
    let mut test = TestCpu::long_mode();
    let (global, local) = (1u64 << 21, 2u64 << 21);
    test.put(0x3000 + 8, global | 0x187);
    test.put(global, 1);
    test.put(local, 2);
    let read = |test: &mut TestCpu, address| test.cpu.read_linear::<u64>(address, Access::Data);
    assert_eq!(read(&mut test, global), Ok(1));
    assert_eq!(read(&mut test, local), Ok(2));
    test.put(0x3000 + 8, 0);
    test.put(0x3000 + 16, 0);
    test.cpu.flush_tlb_non_global();
    assert_eq!(read(&mut test, global), Ok(1));
    assert!(read(&mut test, local).is_err());
    test.cpu.flush_tlb_all();
    assert!(read(&mut test, global).is_err());
}

#[test]
fn no_byte_is_written_if_one_of_two_pages_refuses() {
    let mut test = TestCpu::long_mode();
    // The last page of RAM's mapping: behind it nothing is mapped.
    let edge = MEMORY - 4;
    test.put(MEMORY - 8, 0);
    let outcome = test.cpu.write_linear(edge, u64::MAX, Access::Data);
    assert_eq!(outcome, Err(Exception::PageFault { error_code: 2 }.into()));
    assert_eq!(test.cpu.fault_address, MEMORY);
    assert_eq!(test.get(MEMORY - 8), 0);
}

#[test]
fn an_address_that_is_not_canonical_is_a_general_protection_fault() {
    let mut test = TestCpu::long_mode();
    let outcome = test.cpu.read_linear::<u64>(0x7fff_ffff_fffc, Access::Data);
    assert_eq!(outcome, Err(GP0));
    let outcome = test.cpu.read_linear::<u64>(1 << 47, Access::Stack);
    assert_eq!(outcome, Err(Exception::Stack(0).into()));
}

#[test]
fn code_that_writes_itself_is_seen_by_the_next_instruction() {
    let mut test = TestCpu::long_mode();
    // mov byte [rip+1], 7; mov al, 1; hlt
    let code = [0xc6, 0x05, 1, 0, 0, 0, 7, 0xb0, 1, 0xf4];
    assert_eq!(test.run(&code), Trap::Halt);
    assert_eq!(test.reg(gpr::RAX) as u8, 7);
    // Again, now that the page is known as code.
    test.cpu.rip = CODE;
    assert_eq!(test.run(&code), Trap::Halt);
    assert_eq!(test.reg(gpr::RAX) as u8, 7);
}

#[test]
fn an_instruction_across_two_pages_follows_both() {
    let mut test = TestCpu::long_mode();
    // Small pages under DATA, so that the second one can be remapped.
    test.put(0x3000 + 8 * (DATA >> 21), 0x7007);
    let first = DATA & !0x1f_ffff;
    for page in 0..512 {
        test.put(0x7000 + 8 * page, (first + page * PAGE_SIZE) | 7);
    }
    let start = DATA + PAGE_SIZE - 2;
    test.write(start, &[0xb8, 0x11, 0x22, 0x33, 0x44, 0xf4]);
    test.write(DATA + 3 * PAGE_SIZE, &[0x55, 0x66, 0x77, 0xf4]);
    let slot = 0x7000 + 8 * ((DATA + PAGE_SIZE - first) >> 12);
    let run = |test: &mut TestCpu| {
        test.cpu.rip = start;
        (test.go(), test.reg(gpr::RAX))
    };
    assert_eq!(run(&mut test), (Trap::Halt, 0x4433_2211));
    test.put(slot, (DATA + 3 * PAGE_SIZE) | 7);
    test.cpu.flush_tlb_page(DATA + PAGE_SIZE);
    assert_eq!(run(&mut test), (Trap::Halt, 0x7766_5511));
    test.put(slot, 0);
    test.cpu.flush_tlb_page(DATA + PAGE_SIZE);
    assert!(matches!(
        run(&mut test).0,
        Trap::Exception(Exception::PageFault { error_code: 0x10 })
    ));
    assert_eq!(
        (test.cpu.fault_address, test.cpu.rip),
        (DATA + PAGE_SIZE, start)
    );
}
