//! Why packets are dropped.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::packet::Malformed;

/// Defines the enum, its texts and its list in one place.
macro_rules! reasons {
    ($($name:ident: $text:literal,)*) => {
        /// Why a packet was dropped. Each is counted per port.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum DropReason {
            $(#[doc = $text] $name,)*
        }

        impl DropReason {
            /// All of them, in the order they are counted.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// What counters are called: `spoofed-mac`.
            pub fn name(self) -> String {
                let mut name = String::new();
                for letter in format!("{self:?}").chars() {
                    if letter.is_ascii_uppercase() && !name.is_empty() {
                        name.push('-');
                    }
                    name.push(letter.to_ascii_lowercase());
                }
                name
            }

            /// What a person is told.
            pub const fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

reasons! {
    Truncated: "shorter than its headers say",
    TooLong: "longer than the network's MTU, and not to be cut",
    BadVersion: "an IP version that is not what the frame says",
    BadHeaderChecksum: "a wrong IPv4 header checksum",
    BadExtension: "source routes, or IPv6 extension headers nobody sends",
    BadTransport: "a transport header that is cut off or impossible",
    BadChecksum: "a wrong transport checksum",
    BadOffload: "a virtio-net header that does not fit the packet",
    Fragment: "an IP fragment; the network does not put packets together",
    UnknownProtocol: "an Ethernet frame that is neither ARP, IPv4 nor IPv6",
    SpoofedMac: "a source MAC address that is not the port's",
    SpoofedArp: "an ARP packet in another's name",
    SpoofedIpv4: "an IPv4 source address that is not the port's",
    SpoofedIpv6: "an IPv6 source address that is not the port's",
    SpoofedNeighbour: "neighbour discovery in another's name, or a router's from a guest",
    SpoofedDhcp: "a DHCP server's message from a guest",
    Ignored: "an announcement nobody needs",
    UnknownNeighbour: "an address of the network that nobody has",
    WrongMac: "a destination MAC address that does not lead where the packet goes",
    NotForPort: "a destination address that is not the port's",
    NotFromNetwork: "a source address nobody on the network has",
    Martian: "an address that can be no packet's on this way",
    NotRouted: "a destination beyond a network that has no way out",
    GatewayPort: "a protocol the gateway does not serve",
    Denied: "no rule of a security group allows it",
    DeniedByRule: "a rule of a security group denies it",
    TooManyFlows: "the port has as many conversations as it may have",
    BadRequest: "a request to the gateway that makes no sense",
    QueueFull: "the receiver is too slow",
    LinkDown: "the guest receives on no queue: its driver is not up, or the link is down",
    GatewayBusy: "more requests to the gateway than it takes at a time",
}

impl DropReason {
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl From<Malformed> for DropReason {
    fn from(malformed: Malformed) -> Self {
        match malformed {
            Malformed::Length => Self::Truncated,
            Malformed::Version => Self::BadVersion,
            Malformed::HeaderChecksum => Self::BadHeaderChecksum,
            Malformed::Extension => Self::BadExtension,
            Malformed::Transport => Self::BadTransport,
            Malformed::Fragment => Self::Fragment,
            Malformed::Offload => Self::BadOffload,
        }
    }
}
