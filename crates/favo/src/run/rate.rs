//! `--rate in|out:RATE[/BURST]`: how fast a network card may go.

use std::fmt;
use std::str::FromStr;

use favo_devices::virtio::net::limit::{Rate, RateLimit};
use favo_types::ByteCount;
use serde::{Deserialize, Serialize};

/// One limit of one direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RateArgument {
    /// From the guest.
    out: bool,
    /// Packets instead of bytes.
    packets: bool,
    rate: Rate,
}

/// What a burst is at least, if none is given: a large frame to be cut.
const LEAST_BYTES: u64 = 64 << 10;
const LEAST_PACKETS: u64 = 16;

/// The unit of packets.
const PACKETS: &str = "pps";

impl TryFrom<String> for RateArgument {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<RateArgument> for String {
    fn from(value: RateArgument) -> Self {
        value.to_string()
    }
}

impl FromStr for RateArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let example = "like out:10M, in:5M/1M or out:1000pps";
        let (out, rate) = match text.split_once(':') {
            Some(("in", rate)) => (false, rate),
            Some(("out", rate)) => (true, rate),
            _ => {
                return Err(format!(
                    "give a direction and bytes or packets a second, {example}"
                ));
            }
        };
        let (rate, burst) = match rate.split_once('/') {
            Some((rate, burst)) => (rate, Some(burst)),
            None => (rate, None),
        };
        let (rate, packets) = match rate.strip_suffix(PACKETS) {
            Some(rate) => (rate, true),
            None => (rate, false),
        };
        let number = |text: &str| -> Result<u64, String> {
            let number = if packets {
                text.parse()
                    .map_err(|_| format!("'{text}' is no number of packets"))?
            } else {
                let bytes: ByteCount = text
                    .parse()
                    .map_err(|error| format!("'{text}' is no number of bytes: {error}"))?;
                bytes.0
            };
            match number {
                0 => Err(format!(
                    "a rate or burst of 0 would stop all traffic; give one {example}"
                )),
                number => Ok(number),
            }
        };
        let per_second = number(rate)?;
        let least = if packets { LEAST_PACKETS } else { LEAST_BYTES };
        let burst = match burst {
            Some(burst) => number(burst)?,
            None => (per_second / 10).max(least),
        };
        Ok(Self {
            out,
            packets,
            rate: Rate { per_second, burst },
        })
    }
}

impl fmt::Display for RateArgument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = if self.out { "out" } else { "in" };
        let unit = if self.packets { PACKETS } else { "" };
        let Rate { per_second, burst } = self.rate;
        write!(f, "{direction}:{per_second}{unit}/{burst}")
    }
}

/// The limits from the guest and to it.
///
/// # Errors
/// Two limits are of the same kind.
pub fn limits(arguments: &[RateArgument]) -> Result<(RateLimit, RateLimit), String> {
    let (mut from_guest, mut to_guest) = (RateLimit::default(), RateLimit::default());
    for argument in arguments {
        let limit = if argument.out {
            &mut from_guest
        } else {
            &mut to_guest
        };
        let rate = if argument.packets {
            &mut limit.packets
        } else {
            &mut limit.bytes
        };
        if rate.replace(argument.rate).is_some() {
            return Err(format!(
                "--rate {argument} is the second of its kind; leave one out"
            ));
        }
    }
    Ok((from_guest, to_guest))
}

#[cfg(test)]
#[path = "rate_test.rs"]
mod test;
