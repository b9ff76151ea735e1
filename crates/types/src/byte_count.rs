//! Sizes, as people write and read them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A number of bytes.
///
/// Written by people with a binary unit: `512M`, `2G`, `2GiB`, `1.5G`, `4096`.
/// `K`, `M`, `G` and `T` are powers of 1024, as everywhere in virtualization.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct ByteCount(pub u64);

impl ByteCount {
    /// `n` × 1024 bytes.
    pub const fn kib(n: u64) -> Self {
        Self(n << 10)
    }

    /// `n` × 1024² bytes.
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// `n` × 1024³ bytes.
    pub const fn gib(n: u64) -> Self {
        Self(n << 30)
    }

    /// The plain number.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// The next multiple of `alignment`, or `None` where that passes 2⁶⁴.
    pub fn checked_align_up(self, alignment: ByteCount) -> Option<Self> {
        self.0.checked_next_multiple_of(alignment.0).map(Self)
    }
}

/// Why a text is not a size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseByteCountError {
    /// There is no number in front.
    #[error("'{0}' is not a size: write a number and a unit, like 512M or 2G")]
    NotANumber(String),
    /// The letters behind the number are no unit.
    #[error(
        "'{unit}' in '{text}' is not a unit: use K, M, G or T (KiB, MiB, GiB and TiB work too)"
    )]
    UnknownUnit {
        /// The whole text.
        text: String,
        /// The part that is no unit.
        unit: String,
    },
    /// More than 2⁶⁴ − 1 bytes, or a fraction of a byte.
    #[error("'{0}' is not a whole number of bytes below 16 EiB")]
    OutOfRange(String),
}

impl FromStr for ByteCount {
    type Err = ParseByteCountError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let trimmed = text.trim();
        let split = trimmed
            .find(|c: char| !(c.is_ascii_digit() || c == '.'))
            .unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(split);
        let shift = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            _ => {
                return Err(if number.is_empty() {
                    ParseByteCountError::NotANumber(text.to_owned())
                } else {
                    ParseByteCountError::UnknownUnit {
                        text: text.to_owned(),
                        unit: unit.trim().to_owned(),
                    }
                });
            }
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() || fraction.contains('.') || fraction.len() > 18 {
            return Err(ParseByteCountError::NotANumber(text.to_owned()));
        }
        let out_of_range = || ParseByteCountError::OutOfRange(text.to_owned());
        let digits: u128 = format!("{whole}{fraction}")
            .parse()
            .map_err(|_| out_of_range())?;
        let scale = 10u128.pow(fraction.len() as u32);
        let scaled = digits.checked_mul(1 << shift).ok_or_else(out_of_range)?;
        if scaled % scale != 0 {
            return Err(out_of_range());
        }
        u64::try_from(scaled / scale)
            .map(Self)
            .map_err(|_| out_of_range())
    }
}

/// The shortest exact form down to one decimal: `512 MiB`, `1.5 GiB`, `317 B`.
impl fmt::Display for ByteCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
        for (unit, shift) in UNITS {
            if self.0 >> shift == 0 {
                continue;
            }
            // Tenths, rounded down: a display never promises more than there is.
            let tenths = (u128::from(self.0) * 10) >> shift;
            let text = if tenths % 10 == 0 {
                format!("{} {unit}", tenths / 10)
            } else {
                format!("{}.{} {unit}", tenths / 10, tenths % 10)
            };
            return f.pad(&text);
        }
        f.pad(&format!("{} B", self.0))
    }
}

#[cfg(test)]
#[path = "byte_count_test.rs"]
mod test;
