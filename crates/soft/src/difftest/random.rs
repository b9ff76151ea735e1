//! Seeded random values, weighted towards the edges.

/// SplitMix64: small, good enough, and the same everywhere.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 random bits.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.draw()) * u128::from(bound)) >> 64) as u64
    }

    /// True once in `n`.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of `choices`.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// An integer, often one where something happens.
    pub fn integer(&mut self) -> u64 {
        let edge = [
            0,
            1,
            2,
            0x7f,
            0x80,
            0xff,
            0x7fff,
            0x8000,
            0xffff,
            0x7fff_ffff,
            0x8000_0000,
        ];
        match self.below(8) {
            0 => self.pick(&edge),
            1 => self.pick(&edge).wrapping_neg(),
            2 => self.pick(&[i64::MAX as u64, i64::MIN as u64, 0xffff_ffff, 1 << 32]),
            3 => 1 << self.below(64),
            4 => self.draw() >> self.below(64),
            5 => self.below(70),
            _ => self.draw(),
        }
    }

    fn f32(&mut self) -> u32 {
        let sign = (self.draw() as u32) & 1 << 31;
        let fraction = (self.draw() as u32) & 0x7f_ffff;
        sign | match self.below(12) {
            0 => 0,
            1 => 0x7f80_0000,
            2 => 0x7fc0_0000 | fraction,
            3 => 0x7f80_0000 | fraction & 0x3f_ffff | 1,
            4 => fraction,
            5 => self.pick(&[
                1,
                0x7f_ffff,
                0x80_0000,
                0x7f7f_ffff,
                0x3f80_0000,
                0x3f00_0000,
            ]),
            6 => (127 + self.below(40) as u32) << 23 | fraction & self.pick(&[!0, 0x70_0000, 0]),
            7 => (100 + self.below(50) as u32) << 23 | fraction,
            8 => (self.below(30) as u32) << 23 | fraction,
            9 => (225 + self.below(30) as u32) << 23 | fraction,
            _ => (self.draw() as u32) & 0x7fff_ffff,
        }
    }

    fn f64(&mut self) -> u64 {
        let sign = self.draw() & 1 << 63;
        let fraction = self.draw() & ((1 << 52) - 1);
        sign | match self.below(12) {
            0 => 0,
            1 => 0x7ff << 52,
            2 => 0x7ff8 << 48 | fraction,
            3 => 0x7ff << 52 | fraction >> 1 | 1,
            4 => fraction,
            5 => self.pick(&[
                1,
                (1 << 52) - 1,
                1 << 52,
                (0x7ff << 52) - 1,
                0x3ff << 52,
                0x3fe << 52,
            ]),
            6 => (1023 + self.below(70)) << 52 | fraction & self.pick(&[!0, 0x7 << 49, 0]),
            7 => (900 + self.below(250)) << 52 | fraction,
            8 => self.below(60) << 52 | fraction,
            9 => (1980 + self.below(60)) << 52 | fraction,
            _ => self.draw() & i64::MAX as u64,
        }
    }

    /// 32 bytes: integers or floats of one width.
    pub fn vector(&mut self) -> [u8; 32] {
        let mut bytes = [0; 32];
        match self.below(8) {
            0..=2 => {
                for lane in bytes.chunks_exact_mut(4) {
                    lane.copy_from_slice(&self.f32().to_le_bytes());
                }
            }
            3..=5 => {
                for lane in bytes.chunks_exact_mut(8) {
                    lane.copy_from_slice(&self.f64().to_le_bytes());
                }
            }
            6 => {
                for lane in bytes.chunks_exact_mut(8) {
                    lane.copy_from_slice(&self.integer().to_le_bytes());
                }
            }
            _ => {
                let width = self.pick(&[1, 2]);
                for lane in bytes.chunks_exact_mut(width) {
                    let value = self.integer() >> self.pick(&[0, 8, 48]);
                    lane.copy_from_slice(&value.to_le_bytes()[..width]);
                }
            }
        }
        bytes
    }

    /// An x87 register: every class of value, those no operation makes too.
    pub fn extended(&mut self) -> [u8; 10] {
        let sign = (self.draw() as u16) & 0x8000;
        let fraction = self.draw() >> 1;
        let integer_bit = 1u64 << 63;
        let (exponent, significand) = match self.below(12) {
            0 => (0, 0),
            1 => (0x7fff, integer_bit),
            2 => (0x7fff, 3 << 62 | fraction),
            3 => (0x7fff, integer_bit | fraction >> 1 | 1),
            4 => (0, fraction),
            5 => (0, integer_bit | fraction),
            6 => (self.below(0x7fff) as u16, fraction),
            7 => (0x3fff, integer_bit | self.pick(&[0, 1, fraction])),
            8 => (0x3fff + self.below(70) as u16, integer_bit | fraction),
            9 => (0x3fff - self.below(70) as u16, integer_bit | fraction),
            10 => (0x7fff, fraction),
            _ => (self.below(0x7fff) as u16, integer_bit | fraction),
        };
        let mut bytes = [0; 10];
        bytes[..8].copy_from_slice(&significand.to_le_bytes());
        bytes[8..].copy_from_slice(&(sign | exponent).to_le_bytes());
        bytes
    }

    /// Bytes for memory: integers, floats of each width, decimal digits.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(32) {
            let vector = if self.one_in(6) {
                let mut digits = [0; 32];
                for half in digits.chunks_exact_mut(16) {
                    let kind = self.below(2);
                    half[..10].copy_from_slice(&self.extended());
                    if kind == 0 {
                        for digit in &mut half[..9] {
                            *digit = (self.below(10) << 4 | self.below(10)) as u8;
                        }
                    }
                }
                digits
            } else {
                self.vector()
            };
            chunk.copy_from_slice(&vector[..chunk.len()]);
        }
    }
}
