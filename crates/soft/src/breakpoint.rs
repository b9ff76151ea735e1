//! Hardware breakpoints (SDM vol. 3, 18.2).
//!
//! Pages with a data breakpoint are kept out of the translation tables, so
//! that every access to them takes the slow way, which asks here. While any
//! breakpoint is enabled the processor runs one instruction at a time.

use crate::cpu::{Cpu, cr4};
use crate::trap::{Exception, Exec};

/// What a breakpoint waits for: DR7's R/W field.
mod kind {
    pub const EXECUTE: u64 = 0;
    pub const WRITE: u64 = 1;
    pub const PORT: u64 = 2;
}

/// One enabled breakpoint.
#[derive(Clone, Copy)]
struct Breakpoint {
    /// Its bit in DR6.
    bit: u16,
    kind: u64,
    start: u64,
    length: u64,
}

impl Breakpoint {
    fn overlaps(&self, start: u64, length: u64) -> bool {
        start.wrapping_sub(self.start) < self.length || self.start.wrapping_sub(start) < length
    }
}

impl Cpu {
    fn breakpoints(&self) -> impl Iterator<Item = Breakpoint> {
        let debug = self.debug;
        (0..4)
            .filter(move |number| debug.dr7 >> (2 * number) & 3 != 0)
            .map(move |number| {
                let length = match debug.dr7 >> (18 + 4 * number) & 3 {
                    0 => 1,
                    1 => 2,
                    2 => 8,
                    _ => 4,
                };
                Breakpoint {
                    bit: 1 << number,
                    kind: debug.dr7 >> (16 + 4 * number) & 3,
                    start: debug.address[number as usize] & !(length - 1),
                    length,
                }
            })
    }

    /// The debug registers changed.
    pub(crate) fn breakpoints_changed(&mut self) {
        let pages: Vec<u64> = self
            .breakpoints()
            .filter(|breakpoint| !matches!(breakpoint.kind, kind::EXECUTE | kind::PORT))
            .flat_map(|breakpoint| [breakpoint.start, breakpoint.start | (breakpoint.length - 1)])
            .collect();
        self.watch_pages(&pages);
    }

    /// #DB before the instruction, if a breakpoint says so.
    pub(crate) fn check_instruction_breakpoint(&mut self) -> Exec {
        if self.debug.dr7 & 0xff == 0 {
            return Ok(());
        }
        let linear = self.rip.wrapping_add(self.bases[1]);
        let hits = self
            .breakpoints()
            .filter(|breakpoint| breakpoint.kind == kind::EXECUTE && breakpoint.start == linear)
            .fold(0, |bits, breakpoint| bits | breakpoint.bit);
        if hits == 0 {
            Ok(())
        } else {
            Err(Exception::DebugFault(hits).into())
        }
    }

    /// Notes the data breakpoints an access meets.
    #[inline]
    pub(crate) fn watch_data(&mut self, address: u64, size: usize, write: bool) {
        if self.debug.dr7 & 0xff == 0 {
            return;
        }
        let met = |breakpoint: &Breakpoint| {
            let wanted = match breakpoint.kind {
                kind::EXECUTE | kind::PORT => false,
                kind::WRITE => write,
                _ => true,
            };
            wanted && breakpoint.overlaps(address, size as u64)
        };
        let hits = self
            .breakpoints()
            .filter(met)
            .fold(0, |bits, b| bits | b.bit);
        self.breakpoint_hits |= hits;
    }

    /// Notes the I/O breakpoints an access to a port meets.
    #[inline]
    pub(crate) fn watch_port(&mut self, port: u16, size: usize) {
        if self.debug.dr7 & 0xff == 0 || self.cr4 & cr4::DE == 0 {
            return;
        }
        let met = |b: &Breakpoint| b.kind == kind::PORT && b.overlaps(port.into(), size as u64);
        let hits = self
            .breakpoints()
            .filter(met)
            .fold(0, |bits, b| bits | b.bit);
        self.breakpoint_hits |= hits;
    }
}
