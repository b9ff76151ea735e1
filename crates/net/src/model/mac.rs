//! Ethernet addresses.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An Ethernet address (IEEE 802 EUI-48), in the order of transmission.
///
/// Its text is six bytes in hexadecimal, parted by colons.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress(pub [u8; 6]);

/// A text that is no Ethernet address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no MAC address; it is six bytes in hexadecimal, as in 52:54:00:12:34:56")]
pub struct ParseMacError(String);

impl MacAddress {
    /// Every station of the network.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Whether the address names a group of stations (the broadcast address
    /// is one).
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Reads the six bytes at `at`, if there are six.
    pub fn read(bytes: &[u8], at: usize) -> Option<Self> {
        let bytes = bytes.get(at..at.checked_add(6)?)?;
        Some(Self(bytes.try_into().ok()?))
    }

    /// The IPv6 address that stateless autoconfiguration makes of this address
    /// in the /64 of `prefix` (RFC 4291, appendix A: modified EUI-64).
    pub fn eui64(self, prefix: Ipv6Addr) -> Ipv6Addr {
        let mut octets = prefix.octets();
        let [a, b, c, d, e, f] = self.0;
        octets[8..].copy_from_slice(&[a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
        octets.into()
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddress {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, ParseMacError> {
        let error = || ParseMacError(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(error)?;
            if part.len() != 2 || !part.bytes().all(|c| c.is_ascii_hexdigit()) {
                return Err(error());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| error())?;
        }
        if parts.next().is_some() {
            return Err(error());
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for MacAddress {
    type Error = ParseMacError;

    fn try_from(text: String) -> Result<Self, ParseMacError> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> Self {
        mac.to_string()
    }
}

#[cfg(test)]
#[path = "mac_test.rs"]
mod test;
