//! Time, all of it from one clock: the host's time stamp counter.
//!
//! The guest's TSC is the host's plus an offset; the local APIC's timer and
//! kvmclock are computed from the TSC. So nothing drifts against anything.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use favo_accel::cpuid;

/// The local APIC timer's input clock: 1 GHz, as KVM has it.
pub(crate) const APIC_HZ: u64 = 1_000_000_000;

/// The host's time stamp counter.
#[inline(always)]
pub(crate) fn host_tsc() -> u64 {
    // SAFETY: RDTSC touches nothing; the engine is refused on hosts where it
    // is not available to user programs.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// The host TSC's frequency in kHz: as the hypervisor or the processor says,
/// or measured once.
pub(crate) fn tsc_khz() -> u32 {
    static KHZ: OnceLock<u32> = OnceLock::new();
    *KHZ.get_or_init(|| {
        from_hypervisor()
            .or_else(from_processor)
            .unwrap_or_else(measured)
    })
}

/// Leaf 4000_0010H, where a hypervisor offers it.
fn from_hypervisor() -> Option<u32> {
    let has_hypervisor = cpuid::host(1, 0).ecx >> 31 != 0;
    let highest = if has_hypervisor {
        cpuid::host(0x4000_0000, 0).eax
    } else {
        0
    };
    (0x4000_0010..=0x4000_ffff)
        .contains(&highest)
        .then(|| cpuid::host(0x4000_0010, 0).eax)
        .filter(|khz| *khz > 100_000)
}

/// Leaf 15H: the crystal's frequency and the ratio to it.
fn from_processor() -> Option<u32> {
    if cpuid::host(0, 0).eax < 0x15 {
        return None;
    }
    let leaf = cpuid::host(0x15, 0);
    let hz = u64::from(leaf.ecx) * u64::from(leaf.ebx) / u64::from(leaf.eax.max(1));
    u32::try_from(hz / 1000).ok().filter(|khz| *khz > 100_000)
}

fn measured() -> u32 {
    let run = || {
        let (start, from) = (Instant::now(), host_tsc());
        std::thread::sleep(Duration::from_millis(20));
        let (ticks, elapsed) = (host_tsc().wrapping_sub(from), start.elapsed());
        (u128::from(ticks) * 1_000_000 / elapsed.as_nanos().max(1)) as u32
    };
    // The middle of three: one of them may have been interrupted at its ends.
    let mut samples = [run(), run(), run()];
    samples.sort_unstable();
    samples[1].max(1)
}

/// Turns TSC ticks into nanoseconds and back, exactly as a guest does with
/// the figures in its kvmclock page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Scale {
    /// Nanoseconds per tick, after the shift, in 1/2³².
    pub multiplier: u32,
    /// Ticks are first shifted left by this, or right if it is negative.
    pub shift: i8,
}

impl Scale {
    /// For a counter of `khz`.
    pub(crate) fn for_khz(khz: u32) -> Self {
        const SECOND: u64 = 1_000_000_000;
        let mut hz = u64::from(khz.max(1)) * 1000;
        let mut shift = 0;
        while hz > 2 * SECOND {
            hz >>= 1;
            shift -= 1;
        }
        while hz <= SECOND {
            hz <<= 1;
            shift += 1;
        }
        let multiplier = ((u128::from(SECOND) << 32) / u128::from(hz)) as u32;
        Self { multiplier, shift }
    }

    /// Nanoseconds in `ticks`.
    pub(crate) fn nanoseconds(self, ticks: u64) -> u64 {
        let shifted = if self.shift >= 0 {
            u128::from(ticks) << self.shift
        } else {
            u128::from(ticks) >> -self.shift
        };
        ((shifted * u128::from(self.multiplier)) >> 32) as u64
    }
}

/// Ticks of a counter of `khz` in `nanoseconds`, rounded up.
pub(crate) fn ticks(nanoseconds: u64, khz: u32) -> u64 {
    (u128::from(nanoseconds) * u128::from(khz))
        .div_ceil(1_000_000)
        .min(u64::MAX.into()) as u64
}

#[cfg(test)]
#[path = "clock_test.rs"]
mod test;
