use super::*;

/// What the SDM says of ADD and SUB, bit by bit.
fn expected(a: u64, b: u64, carry_in: u64, subtract: bool, bits: u32) -> (u64, u64) {
    let mask = if bits == 64 {
        u64::MAX
    } else {
        (1 << bits) - 1
    };
    let (a, b) = (u128::from(a & mask), u128::from(b & mask));
    let wide = if subtract {
        a.wrapping_sub(b).wrapping_sub(carry_in.into())
    } else {
        a + b + u128::from(carry_in)
    };
    let result = wide as u64 & mask;
    let top = 1u64 << (bits - 1);
    let (sa, sb, sr) = (a as u64 & top != 0, b as u64 & top != 0, result & top != 0);
    let overflow = if subtract {
        sa != sb && sr != sa
    } else {
        sa == sb && sr != sa
    };
    let mut flags = 0;
    flags |= if wide >> bits & 1 != 0 { CF } else { 0 };
    flags |= if (result as u8).count_ones().is_multiple_of(2) {
        PF
    } else {
        0
    };
    flags |= if (a as u64 ^ b as u64 ^ result) & 0x10 != 0 {
        AF
    } else {
        0
    };
    flags |= if result == 0 { ZF } else { 0 };
    flags |= if sr { SF } else { 0 };
    flags |= if overflow { OF } else { 0 };
    (result, flags)
}

#[test]
fn additions_and_subtractions_of_every_width() {
    const VALUES: [u64; 14] = [
        0,
        1,
        2,
        7,
        8,
        15,
        0x7f,
        0x80,
        0xff,
        0x7fff,
        0x8000,
        0x7fff_ffff,
        0x8000_0000,
        u64::MAX,
    ];
    for bits in [8, 16, 32, 64] {
        let mask = if bits == 64 {
            u64::MAX
        } else {
            (1 << bits) - 1
        };
        for a in VALUES.into_iter().chain([i64::MIN as u64, i64::MAX as u64]) {
            for b in VALUES {
                for carry in [0, 1] {
                    let (a, b) = (a & mask, b & mask);
                    let (result, flags) = expected(a, b, carry, false, bits);
                    let got = ArithmeticFlags::after_add(a, b, result, bits).bits();
                    assert_eq!(got, flags, "{a:#x} + {b:#x} + {carry}, {bits} bits");
                    let (result, flags) = expected(a, b, carry, true, bits);
                    let got = ArithmeticFlags::after_sub(a, b, result, bits).bits();
                    assert_eq!(got, flags, "{a:#x} - {b:#x} - {carry}, {bits} bits");
                }
            }
        }
    }
}

#[test]
fn every_combination_survives_a_round_trip() {
    for n in 0..64u64 {
        let bits = [CF, PF, AF, ZF, SF, OF]
            .iter()
            .enumerate()
            .map(|(i, flag)| if n >> i & 1 != 0 { *flag } else { 0 })
            .sum();
        let flags = ArithmeticFlags::from_bits(bits);
        assert_eq!(flags.bits(), bits);
        for (carry, overflow) in [(false, false), (false, true), (true, false), (true, true)] {
            let changed = flags.with_carry_overflow(carry, overflow);
            let want =
                bits & !(CF | OF) | if carry { CF } else { 0 } | if overflow { OF } else { 0 };
            assert_eq!(changed.bits(), want);
        }
    }
}

#[test]
fn increments_keep_the_carry() {
    for before in [0, CF, OF | CF, ARITHMETIC] {
        let before = ArithmeticFlags::from_bits(before);
        for (a, result) in [(0x7fu64, 0x80u64), (0xff, 0), (0, 1)] {
            let plain = ArithmeticFlags::after_add(a, 1, result, 8);
            let flags = plain.with_carry_of(before);
            assert_eq!(flags.carry(), before.carry());
            assert_eq!(flags.bits() & !CF, plain.bits() & !CF);
        }
    }
}
