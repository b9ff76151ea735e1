use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use proptest::prelude::*;

use super::*;
use AccessSize::Byte;

/// 2026-11-23 14:41:32.25 UTC, a Monday.
const NOW: i64 = 1_795_444_892_250_000_000;

/// A clock whose host time the test sets.
fn rtc() -> (Rtc, Arc<AtomicI64>) {
    let now = Arc::new(AtomicI64::new(NOW));
    let clock = now.clone();
    let rtc = Rtc::with_clock(Box::new(move || i128::from(clock.load(Ordering::SeqCst))));
    (rtc, now)
}

fn read(rtc: &Rtc, register: usize) -> u8 {
    rtc.write(0, Byte, register as u64);
    rtc.read(1, Byte) as u8
}

fn write(rtc: &Rtc, register: usize, value: u8) {
    rtc.write(0, Byte, register as u64);
    rtc.write(1, Byte, u64::from(value));
}

fn shown(rtc: &Rtc) -> [u8; 8] {
    [CENTURY, YEAR, MONTH, DAY, WEEKDAY, HOURS, MINUTES, SECONDS].map(|at| read(rtc, at))
}

#[test]
fn it_shows_the_hosts_time() {
    let (rtc, now) = rtc();
    assert_eq!(shown(&rtc), [0x20, 0x26, 0x11, 0x23, 2, 0x14, 0x41, 0x32]);
    write(&rtc, STATUS_B, BINARY | HOURS_24);
    assert_eq!(shown(&rtc), [20, 26, 11, 23, 2, 14, 41, 32]);
    write(&rtc, STATUS_B, 0);
    assert_eq!(read(&rtc, HOURS), 0x82, "2 in the afternoon");
    now.fetch_sub(14 * 3_600_000_000_000, Ordering::SeqCst);
    assert_eq!(read(&rtc, HOURS), 0x12, "midnight");
    write(&rtc, STATUS_B, HOURS_24);
    // A leap day.
    now.store(1_709_164_800_000_000_000, Ordering::SeqCst);
    assert_eq!(shown(&rtc), [0x20, 0x24, 2, 0x29, 5, 0, 0, 0]);
}

#[test]
fn an_update_is_announced_and_its_end_can_be_polled() {
    let (rtc, now) = rtc();
    assert_eq!(read(&rtc, STATUS_A), 0x26);
    now.store(NOW + 749_900_000, Ordering::SeqCst);
    assert_eq!(read(&rtc, STATUS_A), 0xa6);
    assert_eq!(read(&rtc, STATUS_C), 0);
    now.store(NOW + 750_000_000, Ordering::SeqCst);
    assert_eq!(read(&rtc, STATUS_A), 0x26);
    assert_eq!(read(&rtc, STATUS_C), UPDATE_ENDED);
    assert_eq!(read(&rtc, STATUS_C), 0);
    assert_eq!(read(&rtc, STATUS_D), VALID);
}

/// As Linux sets it: SET, divider reset, registers, divider, SET off.
fn set(rtc: &Rtc, registers: &[(usize, u8)]) {
    let control = read(rtc, STATUS_B);
    write(rtc, STATUS_B, control | SET);
    let frequency = read(rtc, STATUS_A);
    write(rtc, STATUS_A, frequency | 0x70);
    for (register, value) in registers {
        write(rtc, *register, *value);
    }
    write(rtc, STATUS_B, control);
    write(rtc, STATUS_A, frequency);
}

#[test]
fn a_guest_sets_its_own_time() {
    let (rtc, now) = rtc();
    set(
        &rtc,
        &[
            (SECONDS, 0x59),
            (MINUTES, 0x59),
            (HOURS, 0x23),
            (DAY, 0x31),
            (MONTH, 0x12),
            (YEAR, 0x99),
            (CENTURY, 0x19),
        ],
    );
    assert_eq!(shown(&rtc), [0x19, 0x99, 0x12, 0x31, 6, 0x23, 0x59, 0x59]);
    now.fetch_add(1_000_000_000, Ordering::SeqCst);
    assert_eq!(shown(&rtc), [0x20, 0x00, 1, 1, 7, 0, 0, 0]);
    rtc.reset();
    assert_eq!(read(&rtc, YEAR), 0, "a reset doesn't change the time");
}

#[test]
fn the_clock_stands_while_it_is_set_and_ignores_what_is_no_date() {
    let (rtc, now) = rtc();
    write(&rtc, STATUS_B, SET | HOURS_24);
    now.fetch_add(5_000_000_000, Ordering::SeqCst);
    assert_eq!(read(&rtc, SECONDS), 0x32);
    assert_eq!(read(&rtc, STATUS_A) & UPDATE_IN_PROGRESS, 0);
    write(&rtc, MONTH, 0x13);
    write(&rtc, STATUS_B, HOURS_24);
    assert_eq!(shown(&rtc), [0x20, 0x26, 0x11, 0x23, 2, 0x14, 0x41, 0x37]);
    // One register at a time, without SET.
    write(&rtc, MINUTES, 0x10);
    assert_eq!(shown(&rtc)[6..], [0x10, 0x37]);
}

#[test]
fn interrupts_can_not_be_enabled_and_memory_keeps() {
    let (rtc, _) = rtc();
    write(&rtc, STATUS_B, 0x7f);
    assert_eq!(read(&rtc, STATUS_B), 0x07);
    for register in (0x0e..=0x7f).filter(|register| *register != CENTURY) {
        write(&rtc, register, register as u8 ^ 0x5a);
    }
    for register in (0x0e..=0x7f).filter(|register| *register != CENTURY) {
        assert_eq!(read(&rtc, register), register as u8 ^ 0x5a);
    }
    // Bit 7 of the number is the NMI mask.
    rtc.write(0, Byte, 0x8e);
    assert_eq!(rtc.read(1, Byte), 0x0e ^ 0x5a);
    assert_eq!(rtc.read(0, Byte), 0xff);
}

#[test]
fn state_survives_and_is_checked() {
    let (first, _) = rtc();
    // More nanoseconds away than 64 bits hold.
    set(&first, &[(YEAR, 0x30), (CENTURY, 0x85)]);
    write(&first, 0x40, 7);
    let text = serde_json::to_string(&first.save()).unwrap();
    let state: RtcState = serde_json::from_str(&text).unwrap();
    let (second, _) = rtc();
    second.restore(&state).unwrap();
    assert_eq!(shown(&second), shown(&first));
    assert_eq!(read(&second, 0x40), 7);
    let bad: [&dyn Fn(&mut RtcState); 5] = [
        &|state| state.offset_nanos = 1_000_000_000,
        &|state| state.version = 0,
        &|state| state.index = 128,
        &|state| state.memory[STATUS_B] = 0x40,
        &|state| _ = state.memory.pop(),
    ];
    for change in bad {
        let mut state = state.clone();
        change(&mut state);
        assert!(second.restore(&state).is_err());
    }
}

proptest! {
    /// Nothing panics, whatever the host's clock says and the guest sets.
    #[test]
    fn garbage_does_no_harm(
        start in any::<i64>(),
        accesses in prop::collection::vec((any::<u8>(), any::<u64>(), any::<i64>()), 0..100),
    ) {
        let (rtc, now) = rtc();
        now.store(start, Ordering::SeqCst);
        for (what, value, passes) in accesses {
            let size = AccessSize::from_bytes(1 << (what & 3)).unwrap();
            match what >> 5 {
                0 => rtc.write(value, size, value),
                1 => _ = rtc.read(value, size),
                2 => _ = now.fetch_add(passes, Ordering::SeqCst),
                3..=5 => write(&rtc, usize::from(what & 15), value as u8),
                _ => _ = read(&rtc, value as usize & 0x7f),
            }
        }
        let state = rtc.save();
        rtc.restore(&state).unwrap();
        prop_assert_eq!(rtc.save(), state);
    }

    /// Any time a guest sets is the time it reads, in every format.
    #[test]
    fn what_is_set_is_shown(seconds in 0i64..253_402_300_799, format in 0u8..4) {
        let (source, now) = rtc();
        now.store((seconds % 9_223_372_036) * 1_000_000_000, Ordering::SeqCst);
        let (target, _) = rtc();
        for rtc in [&source, &target] {
            write(rtc, STATUS_B, format << 1);
        }
        let registers = [CENTURY, YEAR, MONTH, DAY, WEEKDAY, HOURS, MINUTES, SECONDS];
        let values: Vec<_> = registers.iter().map(|at| (*at, read(&source, *at))).collect();
        set(&target, &values);
        prop_assert_eq!(shown(&target), shown(&source));
    }
}
