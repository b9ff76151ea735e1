//! IPv4 and IPv6 headers with what follows them, up to the ports.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::checksum::{Sum, transport_sum};
use crate::link::{Offload, SegmentKind};

/// IP's numbers for what a packet carries.
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;

    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const DESTINATION_OPTIONS: u8 = 60;
}

/// ICMP's and ICMPv6's types.
pub mod icmp {
    /// ICMP: the answer to an echo.
    pub const ECHO_REPLY_4: u8 = 0;
    /// ICMP: destination unreachable.
    pub const UNREACHABLE_4: u8 = 3;
    /// ICMP: an echo is asked for.
    pub const ECHO_REQUEST_4: u8 = 8;
    /// ICMP: time exceeded.
    pub const TIME_EXCEEDED_4: u8 = 11;
    /// ICMP: parameter problem.
    pub const PARAMETER_4: u8 = 12;
    /// ICMPv6: destination unreachable; up to [`PARAMETER_6`] all are errors.
    pub const UNREACHABLE_6: u8 = 1;
    /// ICMPv6: parameter problem.
    pub const PARAMETER_6: u8 = 4;
    /// ICMPv6: an echo is asked for.
    pub const ECHO_REQUEST_6: u8 = 128;
    /// ICMPv6: the answer to an echo.
    pub const ECHO_REPLY_6: u8 = 129;
    /// ICMPv6: multicast listener report (RFC 2710).
    pub const LISTENER_REPORT: u8 = 131;
    /// ICMPv6: multicast listener done (RFC 2710).
    pub const LISTENER_DONE: u8 = 132;
    /// ICMPv6: router solicitation.
    pub const ROUTER_SOLICITATION: u8 = 133;
    /// ICMPv6: router advertisement.
    pub const ROUTER_ADVERTISEMENT: u8 = 134;
    /// ICMPv6: neighbour solicitation.
    pub const NEIGHBOUR_SOLICITATION: u8 = 135;
    /// ICMPv6: neighbour advertisement.
    pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    /// ICMPv6: redirect.
    pub const REDIRECT: u8 = 137;
    /// ICMPv6: multicast listener report (RFC 3810).
    pub const LISTENER_REPORT_V2: u8 = 143;
}

/// How many IPv6 extension headers a packet may have before it is taken for
/// an attack.
const EXTENSION_HEADERS: usize = 6;

/// Why a packet can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Shorter than its header, or its header says longer than it is.
    Length,
    /// The version in the header isn't 4 or 6, or not what the frame said.
    Version,
    /// The IPv4 header's checksum is wrong.
    HeaderChecksum,
    /// Source routes, options that loop, unknown or too many extension headers.
    Extension,
    /// The transport's header is cut off or says impossible lengths.
    Transport,
    /// A fragment. Not malformed, but nothing here puts packets together.
    Fragment,
    /// What virtio-net's header says doesn't fit the packet.
    Offload,
}

/// TCP's flags that change a connection's state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// The sender has no more to say.
    pub const fn fin(self) -> bool {
        self.0 & 1 != 0
    }
    /// A connection is opened.
    pub const fn syn(self) -> bool {
        self.0 & 2 != 0
    }
    /// The connection is gone.
    pub const fn rst(self) -> bool {
        self.0 & 4 != 0
    }
    /// Something is acknowledged.
    pub const fn ack(self) -> bool {
        self.0 & 16 != 0
    }
}

/// What an IP packet says, up to its transport's ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip {
    /// Who sent it.
    pub source: IpAddr,
    /// Who it is for.
    pub destination: IpAddr,
    /// Hops left: IPv4's time to live.
    pub hop_limit: u8,
    /// The protocol above IP, after all extension headers.
    pub protocol: u8,
    /// Where the transport's header begins, from the IP header, in bytes.
    pub transport: usize,
    /// Length of the packet from the IP header on, in bytes; what follows is
    /// padding of the frame.
    pub length: usize,
    /// Source and destination port for TCP and UDP; the identifier of an ICMP
    /// echo, on the side that asked; else zeroes.
    pub ports: (u16, u16),
    /// Type and code of ICMP and ICMPv6.
    pub icmp: Option<(u8, u8)>,
    /// TCP's flags.
    pub flags: TcpFlags,
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

impl Ip {
    /// Reads the packet that begins at the IP header.
    ///
    /// # Errors
    /// Says why nobody should look at it further.
    pub fn parse(packet: &[u8]) -> Result<Self, Malformed> {
        let mut ip = match packet.first().ok_or(Malformed::Length)? >> 4 {
            4 => Self::parse_v4(packet)?,
            6 => Self::parse_v6(packet)?,
            _ => return Err(Malformed::Version),
        };
        ip.parse_transport(&packet[..ip.length])?;
        Ok(ip)
    }

    /// RFC 791, section 3.1.
    fn parse_v4(packet: &[u8]) -> Result<Self, Malformed> {
        let fixed: &[u8; 20] = packet.first_chunk().ok_or(Malformed::Length)?;
        let header = usize::from(fixed[0] & 15) * 4;
        let length = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
        if header < 20 || length < header || length > packet.len() {
            return Err(Malformed::Length);
        }
        if Sum::default().bytes(&packet[..header]).fold() != 0xffff {
            return Err(Malformed::HeaderChecksum);
        }
        if header > 20 {
            check_options(&packet[20..header])?;
        }
        if u16::from_be_bytes([fixed[6], fixed[7]]) & 0x3fff != 0 {
            return Err(Malformed::Fragment);
        }
        Ok(Self {
            source: IpAddr::V4(Ipv4Addr::new(fixed[12], fixed[13], fixed[14], fixed[15])),
            destination: IpAddr::V4(Ipv4Addr::new(fixed[16], fixed[17], fixed[18], fixed[19])),
            hop_limit: fixed[8],
            protocol: fixed[9],
            transport: header,
            length,
            ports: (0, 0),
            icmp: None,
            flags: TcpFlags::default(),
        })
    }

    /// RFC 8200, sections 3 and 4.
    fn parse_v6(packet: &[u8]) -> Result<Self, Malformed> {
        let fixed: &[u8; 40] = packet.first_chunk().ok_or(Malformed::Length)?;
        let length = 40 + usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
        if length > packet.len() {
            return Err(Malformed::Length);
        }
        let address = |at: usize| {
            let mut octets = [0; 16];
            octets.copy_from_slice(&fixed[at..at + 16]);
            IpAddr::V6(Ipv6Addr::from(octets))
        };
        let mut next = fixed[6];
        let mut at = 40;
        for _ in 0..EXTENSION_HEADERS {
            match next {
                protocol::HOP_BY_HOP if at == 40 => {}
                protocol::DESTINATION_OPTIONS => {}
                protocol::FRAGMENT => return Err(Malformed::Fragment),
                protocol::HOP_BY_HOP | protocol::ROUTING => return Err(Malformed::Extension),
                _ => {
                    return Ok(Self {
                        source: address(8),
                        destination: address(24),
                        hop_limit: fixed[7],
                        protocol: next,
                        transport: at,
                        length,
                        ports: (0, 0),
                        icmp: None,
                        flags: TcpFlags::default(),
                    });
                }
            }
            let header = packet[..length].get(at..at + 2).ok_or(Malformed::Length)?;
            next = header[0];
            at += (usize::from(header[1]) + 1) * 8;
            if at > length {
                return Err(Malformed::Length);
            }
        }
        Err(Malformed::Extension)
    }

    /// Reads ports, flags and types. `packet` ends where the IP header says.
    fn parse_transport(&mut self, packet: &[u8]) -> Result<(), Malformed> {
        let segment = &packet[self.transport..];
        match (self.protocol, self.source) {
            (protocol::TCP, _) => {
                let header: &[u8; 20] = segment.first_chunk().ok_or(Malformed::Transport)?;
                let length = usize::from(header[12] >> 4) * 4;
                if length < 20 || length > segment.len() {
                    return Err(Malformed::Transport);
                }
                self.ports = read_ports(header);
                self.flags = TcpFlags(header[13]);
            }
            (protocol::UDP, _) => {
                let header: &[u8; 8] = segment.first_chunk().ok_or(Malformed::Transport)?;
                let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
                if length < 8 || length > segment.len() {
                    return Err(Malformed::Transport);
                }
                self.ports = read_ports(header);
            }
            (protocol::ICMP, IpAddr::V4(_)) | (protocol::ICMPV6, IpAddr::V6(_)) => {
                let header: &[u8; 8] = segment.first_chunk().ok_or(Malformed::Transport)?;
                self.icmp = Some((header[0], header[1]));
                let identifier = u16::from_be_bytes([header[4], header[5]]);
                match (self.protocol, header[0]) {
                    (protocol::ICMP, icmp::ECHO_REQUEST_4)
                    | (protocol::ICMPV6, icmp::ECHO_REQUEST_6) => self.ports = (identifier, 0),
                    (protocol::ICMP, icmp::ECHO_REPLY_4)
                    | (protocol::ICMPV6, icmp::ECHO_REPLY_6) => self.ports = (0, identifier),
                    _ => {}
                }
            }
            // ICMP of the other family means nothing to anyone.
            (protocol::ICMP | protocol::ICMPV6, _) => return Err(Malformed::Transport),
            _ => {}
        }
        Ok(())
    }

    /// Whether the packet reports an error with another packet, which it
    /// quotes.
    pub fn is_icmp_error(&self) -> bool {
        match (self.protocol, self.icmp) {
            (protocol::ICMP, Some((kind, _))) => {
                matches!(
                    kind,
                    icmp::UNREACHABLE_4 | icmp::TIME_EXCEEDED_4 | icmp::PARAMETER_4
                )
            }
            (protocol::ICMPV6, Some((kind, _))) => {
                (icmp::UNREACHABLE_6..=icmp::PARAMETER_6).contains(&kind)
            }
            _ => false,
        }
    }

    /// Whether the packet asks for an echo.
    pub fn is_echo_request(&self) -> bool {
        matches!(
            (self.protocol, self.icmp),
            (protocol::ICMP, Some((icmp::ECHO_REQUEST_4, 0)))
                | (protocol::ICMPV6, Some((icmp::ECHO_REQUEST_6, 0)))
        )
    }

    /// The packet an ICMP error quotes: addresses and ports only, as far as
    /// they are quoted. `packet` is the one this was read from.
    pub fn quoted(&self, packet: &[u8]) -> Option<Self> {
        if !self.is_icmp_error() {
            return None;
        }
        let quote = packet.get(self.transport + 8..self.length)?;
        let (source, destination, protocol, transport): (IpAddr, IpAddr, u8, usize);
        match quote.first()? >> 4 {
            4 => {
                let fixed: &[u8; 20] = quote.first_chunk()?;
                if u16::from_be_bytes([fixed[6], fixed[7]]) & 0x1fff != 0 {
                    return None;
                }
                source = Ipv4Addr::new(fixed[12], fixed[13], fixed[14], fixed[15]).into();
                destination = Ipv4Addr::new(fixed[16], fixed[17], fixed[18], fixed[19]).into();
                protocol = fixed[9];
                transport = usize::from(fixed[0] & 15) * 4;
            }
            6 => {
                let fixed: &[u8; 40] = quote.first_chunk()?;
                let octets = |at: usize| -> Option<Ipv6Addr> {
                    Some(Ipv6Addr::from(
                        <[u8; 16]>::try_from(&fixed[at..at + 16]).ok()?,
                    ))
                };
                source = octets(8)?.into();
                destination = octets(24)?.into();
                protocol = fixed[6];
                transport = 40;
            }
            _ => return None,
        }
        let ports = match protocol {
            protocol::TCP | protocol::UDP => (word(quote, transport)?, word(quote, transport + 2)?),
            protocol::ICMP | protocol::ICMPV6 => match *quote.get(transport)? {
                icmp::ECHO_REQUEST_4 | icmp::ECHO_REQUEST_6 => (word(quote, transport + 4)?, 0),
                icmp::ECHO_REPLY_4 | icmp::ECHO_REPLY_6 => (0, word(quote, transport + 4)?),
                _ => (0, 0),
            },
            _ => (0, 0),
        };
        Some(Self {
            source,
            destination,
            hop_limit: 0,
            protocol,
            transport,
            length: quote.len(),
            ports,
            icmp: None,
            flags: TcpFlags::default(),
        })
    }

    /// Whether what virtio-net's header promises can be kept. `base` is where
    /// the IP header begins in what `offload` counts from.
    ///
    /// # Errors
    /// [`Malformed::Offload`], if not.
    pub fn check_offload(&self, offload: &Offload, base: usize) -> Result<(), Malformed> {
        if let Some(checksum) = offload.checksum {
            let offset = match self.protocol {
                protocol::TCP => 16,
                protocol::UDP => 6,
                // Drivers leave ICMPv6 to themselves.
                _ => return Err(Malformed::Offload),
            };
            if usize::from(checksum.start) != base + self.transport || checksum.offset != offset {
                return Err(Malformed::Offload);
            }
        }
        if let Some(segmentation) = offload.segmentation {
            let fits = match segmentation.kind {
                SegmentKind::Tcp4 => self.protocol == protocol::TCP && self.source.is_ipv4(),
                SegmentKind::Tcp6 => self.protocol == protocol::TCP && self.source.is_ipv6(),
                SegmentKind::Udp => self.protocol == protocol::UDP,
            };
            if !fits || segmentation.size == 0 || offload.checksum.is_none() {
                return Err(Malformed::Offload);
            }
        }
        Ok(())
    }

    /// Whether the transport's checksum is right, or somebody vouches for it,
    /// or there is none to check. `packet` is the one this was read from.
    pub fn transport_checksum_holds(&self, packet: &[u8], offload: &Offload) -> bool {
        if offload.checksum.is_some() || offload.checked {
            return true;
        }
        let Some(segment) = packet.get(self.transport..self.length) else {
            return false;
        };
        match (self.protocol, self.source) {
            (protocol::UDP, IpAddr::V4(_)) if word(segment, 6) == Some(0) => true,
            (protocol::UDP, _) => {
                let length = word(segment, 4).map_or(0, usize::from);
                segment.get(..length).is_some_and(|datagram| {
                    transport_sum(self.source, self.destination, self.protocol, datagram) == 0xffff
                })
            }
            (protocol::TCP | protocol::ICMPV6, _) => {
                transport_sum(self.source, self.destination, self.protocol, segment) == 0xffff
            }
            (protocol::ICMP, _) => Sum::default().bytes(segment).fold() == 0xffff,
            _ => true,
        }
    }
}

fn read_ports<const N: usize>(header: &[u8; N]) -> (u16, u16) {
    (
        u16::from_be_bytes([header[0], header[1]]),
        u16::from_be_bytes([header[2], header[3]]),
    )
}

/// IPv4's options (RFC 791, section 3.1): refuses what changes the route
/// (RFC 7126, sections 4.3 and 4.4) and what doesn't end.
fn check_options(mut options: &[u8]) -> Result<(), Malformed> {
    while let [kind, rest @ ..] = options {
        options = match kind {
            0 => return Ok(()),
            1 => rest,
            // Loose and strict source route.
            131 | 137 => return Err(Malformed::Extension),
            _ => {
                let length = usize::from(*rest.first().ok_or(Malformed::Extension)?);
                if length < 2 {
                    return Err(Malformed::Extension);
                }
                options.get(length..).ok_or(Malformed::Extension)?
            }
        };
    }
    Ok(())
}

#[cfg(test)]
#[path = "ip_test.rs"]
mod test;
