//! Integers as the guest's memory sees them.
//!
//! Guest memory is shared with other processors and devices, so it lies
//! outside Rust's memory model: it is touched only by single machine
//! instructions, which give exactly the atomicity and order the guest's own
//! would have had.

use std::arch::asm;

/// An integer of one, two, four or eight bytes.
pub trait Scalar: Copy + Eq + Default + std::fmt::Debug + 'static {
    /// Bytes.
    const SIZE: usize;
    /// Bits.
    const BITS: u32;
    /// All bits set, zero-extended.
    const MASK: u64;

    /// The low bits of `value`.
    fn from_u64(value: u64) -> Self;
    /// Zero-extended.
    fn to_u64(self) -> u64;
    /// Sign-extended.
    fn to_i64(self) -> i64;

    /// One load instruction.
    ///
    /// # Safety
    /// `address` must be mapped readable for `SIZE` bytes.
    unsafe fn load(address: *const u8) -> Self;

    /// One store instruction.
    ///
    /// # Safety
    /// `address` must be mapped writable for `SIZE` bytes.
    unsafe fn store(address: *mut u8, value: Self);

    /// LOCK CMPXCHG: what was there; it was replaced if that equals `old`.
    ///
    /// # Safety
    /// `address` must be mapped writable for `SIZE` bytes.
    unsafe fn compare_exchange(address: *mut u8, old: Self, new: Self) -> Self;

    /// XCHG: what was there.
    ///
    /// # Safety
    /// `address` must be mapped writable for `SIZE` bytes.
    unsafe fn exchange(address: *mut u8, value: Self) -> Self;
}

macro_rules! scalar {
    ($type:ty, $signed:ty, $class:ident, $acc:tt, $form:literal) => {
        impl Scalar for $type {
            const SIZE: usize = size_of::<$type>();
            const BITS: u32 = <$type>::BITS;
            const MASK: u64 = <$type>::MAX as u64;

            #[inline(always)]
            fn from_u64(value: u64) -> Self {
                value as $type
            }

            #[inline(always)]
            fn to_u64(self) -> u64 {
                self as u64
            }

            #[inline(always)]
            fn to_i64(self) -> i64 {
                self as $signed as i64
            }

            #[inline(always)]
            unsafe fn load(address: *const u8) -> Self {
                let value: $type;
                // SAFETY: the caller vouches for the address; one load, no
                // stack, no flags. Not `nomem`/`pure`: others write there.
                unsafe {
                    asm!(
                        concat!("mov {0", $form, "}, [{1}]"),
                        out($class) value, in(reg) address,
                        options(nostack, preserves_flags, readonly),
                    );
                }
                value
            }

            #[inline(always)]
            unsafe fn store(address: *mut u8, value: Self) {
                // SAFETY: as above, one store.
                unsafe {
                    asm!(
                        concat!("mov [{1}], {0", $form, "}"),
                        in($class) value, in(reg) address,
                        options(nostack, preserves_flags),
                    );
                }
            }

            #[inline(always)]
            unsafe fn compare_exchange(address: *mut u8, old: Self, new: Self) -> Self {
                let found: $type;
                // SAFETY: as above, one locked instruction.
                unsafe {
                    asm!(
                        concat!("lock cmpxchg [{1}], {0", $form, "}"),
                        in($class) new, in(reg) address, inout($acc) old => found,
                        options(nostack),
                    );
                }
                found
            }

            #[inline(always)]
            unsafe fn exchange(address: *mut u8, value: Self) -> Self {
                let found: $type;
                // SAFETY: as above, one locked instruction.
                unsafe {
                    asm!(
                        concat!("xchg [{1}], {0", $form, "}"),
                        inout($class) value => found, in(reg) address,
                        options(nostack, preserves_flags),
                    );
                }
                found
            }
        }
    };
}

scalar!(u8, i8, reg_byte, "al", "");
scalar!(u16, i16, reg, "ax", ":x");
scalar!(u32, i32, reg, "eax", ":e");
scalar!(u64, i64, reg, "rax", ":r");

/// LOCK CMPXCHG16B: what was there; it was replaced if that equals `old`.
///
/// # Safety
/// `address` must be mapped writable for 16 bytes and 16-byte aligned.
pub(crate) unsafe fn compare_exchange_16(address: *mut u8, old: u128, new: u128) -> u128 {
    let (low, high): (u64, u64);
    // SAFETY: the caller vouches for the address. RBX is LLVM's own: it is
    // swapped in and out around the instruction.
    unsafe {
        asm!(
            "xchg {new_low}, rbx",
            "lock cmpxchg16b [{address}]",
            "mov rbx, {new_low}",
            new_low = inout(reg) new as u64 => _,
            address = in(reg) address,
            in("rcx") (new >> 64) as u64,
            inout("rax") old as u64 => low,
            inout("rdx") (old >> 64) as u64 => high,
            options(nostack),
        );
    }
    u128::from(low) | u128::from(high) << 64
}

/// REP MOVSB: copies upwards, byte after byte as far as anyone can tell.
///
/// # Safety
/// Both ranges must be mapped, `to` writable.
pub(crate) unsafe fn copy_forward(to: *mut u8, from: *const u8, bytes: usize) {
    // SAFETY: the caller vouches for the ranges; DF is clear in Rust code.
    unsafe {
        asm!(
            "rep movsb",
            inout("rcx") bytes => _, inout("rsi") from => _, inout("rdi") to => _,
            options(nostack, preserves_flags),
        );
    }
}

/// REP STOS: `count` copies of `value`.
///
/// # Safety
/// The range must be mapped writable.
pub(crate) unsafe fn fill<T: Scalar>(to: *mut u8, value: T, count: usize) {
    let value = value.to_u64();
    // SAFETY: the caller vouches for the range; DF is clear in Rust code.
    unsafe {
        match T::SIZE {
            1 => {
                asm!("rep stosb", inout("rcx") count => _, inout("rdi") to => _, in("al") value as u8,
                options(nostack, preserves_flags))
            }
            2 => {
                asm!("rep stosw", inout("rcx") count => _, inout("rdi") to => _, in("ax") value as u16,
                options(nostack, preserves_flags))
            }
            4 => {
                asm!("rep stosd", inout("rcx") count => _, inout("rdi") to => _, in("eax") value as u32,
                options(nostack, preserves_flags))
            }
            _ => asm!("rep stosq", inout("rcx") count => _, inout("rdi") to => _, in("rax") value,
                options(nostack, preserves_flags)),
        }
    }
}
