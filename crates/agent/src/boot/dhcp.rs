//! A DHCP client, as far as a guest of favo needs one (RFC 2131, 4.4.1): discover, take the
//! first offer, request it.
//!
//! Messages are smoltcp's; everything in them that matters is checked here, for what a network
//! answers is not to be trusted.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use smoltcp::wire::{DhcpMessageType, DhcpPacket, DhcpRepr, EthernetAddress};

use crate::sys::Interface;

const CLIENT_PORT: u16 = 68;
const SERVER_PORT: u16 = 67;
/// How often a message is sent, and how long an answer may take.
const TRIES: u32 = 4;
const PATIENCE: Duration = Duration::from_secs(1);
/// The longest answer looked at.
const MAX_MESSAGE: usize = 1500;

/// Options asked for: mask, router, DNS, domain, MTU.
const PARAMETERS: [u8; 5] = [1, 3, OPTION_DNS, OPTION_DOMAIN, OPTION_MTU];
const OPTION_DNS: u8 = 6;
const OPTION_DOMAIN: u8 = 15;
const OPTION_MTU: u8 = 26;
/// The smallest MTU of IPv4 (RFC 791).
const MIN_MTU: u16 = 68;

/// What a server leased to us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lease {
    pub address: Ipv4Addr,
    pub mask: Ipv4Addr,
    pub router: Option<Ipv4Addr>,
    pub dns: Vec<Ipv4Addr>,
    pub domain: Option<String>,
    pub mtu: Option<u16>,
    server: Ipv4Addr,
}

/// Leases an address for the card, which is up and has none.
pub(super) fn lease(interface: &Interface, hardware_address: [u8; 6]) -> io::Result<Lease> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, CLIENT_PORT))?;
    interface.bind(&socket)?;
    socket.set_broadcast(true)?;
    let mut client = Client {
        transaction: random()?,
        hardware_address: EthernetAddress(hardware_address),
        began: Instant::now(),
    };
    let offer = exchange(&socket, &mut client, None)?;
    exchange(&socket, &mut client, Some(&offer))
}

/// Sends a discovery, or the request for `offer`, until the right answer comes.
fn exchange(socket: &UdpSocket, client: &mut Client, offer: Option<&Lease>) -> io::Result<Lease> {
    let expected = match offer {
        None => DhcpMessageType::Offer,
        Some(_) => DhcpMessageType::Ack,
    };
    let mut buffer = [0; MAX_MESSAGE];
    let mut unsent = None;
    for _ in 0..TRIES {
        let message = client.message(offer)?;
        // A card may take a moment to be ready.
        unsent = socket
            .send_to(&message, (Ipv4Addr::BROADCAST, SERVER_PORT))
            .err();
        let until = Instant::now() + PATIENCE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            socket.set_read_timeout(Some(left))?;
            let Ok((length, SocketAddr::V4(_))) = socket.recv_from(&mut buffer) else {
                continue;
            };
            match client.parse(&buffer[..length]) {
                Some((kind, lease)) if kind == expected => return Ok(lease),
                Some((DhcpMessageType::Nak, _)) => {
                    return Err(io::Error::other("the DHCP server refused its own offer"));
                }
                _ => {}
            }
        }
    }
    Err(unsent
        .unwrap_or_else(|| io::Error::new(io::ErrorKind::TimedOut, "no DHCP server answered")))
}

fn random() -> io::Result<u32> {
    let mut bytes = [0; 4];
    // Early in a boot there may be no entropy yet: a number from the clock is unlike enough.
    match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::NONBLOCK) {
        Ok(4) => Ok(u32::from_ne_bytes(bytes)),
        _ => {
            let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
            Ok(now.tv_nsec as u32 ^ (now.tv_sec as u32).rotate_left(20))
        }
    }
}

struct Client {
    transaction: u32,
    hardware_address: EthernetAddress,
    began: Instant,
}

impl Client {
    /// A discovery, or the request for `offer`.
    fn message(&self, offer: Option<&Lease>) -> io::Result<Vec<u8>> {
        let repr = DhcpRepr {
            message_type: match offer {
                None => DhcpMessageType::Discover,
                Some(_) => DhcpMessageType::Request,
            },
            transaction_id: self.transaction,
            secs: self.began.elapsed().as_secs().min(u16::MAX.into()) as u16,
            client_hardware_address: self.hardware_address,
            client_ip: Ipv4Addr::UNSPECIFIED,
            your_ip: Ipv4Addr::UNSPECIFIED,
            server_ip: Ipv4Addr::UNSPECIFIED,
            router: None,
            subnet_mask: None,
            relay_agent_ip: Ipv4Addr::UNSPECIFIED,
            // A card without an address takes no packets for one.
            broadcast: true,
            requested_ip: offer.map(|offer| offer.address),
            client_identifier: Some(self.hardware_address),
            server_identifier: offer.map(|offer| offer.server),
            parameter_request_list: Some(&PARAMETERS),
            dns_servers: None,
            max_size: Some(MAX_MESSAGE as u16),
            lease_duration: None,
            renew_duration: None,
            rebind_duration: None,
            additional_options: &[],
        };
        let mut bytes = vec![0; repr.buffer_len()];
        repr.emit(&mut DhcpPacket::new_unchecked(&mut bytes))
            .map_err(|_| io::Error::other("a DHCP message that can't be written"))?;
        Ok(bytes)
    }

    /// An answer to us, if these bytes are one and what it leases makes sense.
    fn parse(&self, bytes: &[u8]) -> Option<(DhcpMessageType, Lease)> {
        let packet = DhcpPacket::new_checked(bytes).ok()?;
        let repr = DhcpRepr::parse(&packet).ok()?;
        if repr.transaction_id != self.transaction
            || repr.client_hardware_address != self.hardware_address
        {
            return None;
        }
        let mut lease = Lease {
            address: repr.your_ip,
            mask: repr.subnet_mask.unwrap_or(Ipv4Addr::new(255, 255, 255, 0)),
            router: repr.router.filter(is_host),
            dns: repr
                .dns_servers
                .iter()
                .flatten()
                .copied()
                .filter(is_host)
                .collect(),
            domain: None,
            mtu: None,
            server: repr.server_identifier?,
        };
        for option in packet.options() {
            match option.kind {
                OPTION_DOMAIN => lease.domain = domain(option.data),
                OPTION_MTU => {
                    let mtu = option.data.try_into().map(u16::from_be_bytes);
                    lease.mtu = mtu.ok().filter(|&mtu| mtu >= MIN_MTU);
                }
                _ => {}
            }
        }
        let refused = repr.message_type == DhcpMessageType::Nak;
        let mask = u32::from(lease.mask);
        let sound = is_host(&lease.address) && mask.leading_ones() == mask.count_ones();
        (refused || sound).then_some((repr.message_type, lease))
    }
}

fn is_host(address: &Ipv4Addr) -> bool {
    !address.is_unspecified()
        && !address.is_broadcast()
        && !address.is_multicast()
        && !address.is_loopback()
}

/// A name that may stand in resolv.conf: letters, digits, dots and hyphens.
fn domain(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?.trim_end_matches('\0');
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '-';
    (!text.is_empty() && text.chars().all(allowed)).then(|| text.to_owned())
}

#[cfg(test)]
#[path = "dhcp_test.rs"]
pub(super) mod test;
