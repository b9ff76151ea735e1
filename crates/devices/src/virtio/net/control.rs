//! What a driver sets through the control queue (virtio 1.2, 5.1.6.5): its
//! address, what it wants to receive, how many queue pairs it uses.
//!
//! [`Control`] is the state; [`Control::execute`] one command. Commands are a
//! guest's bytes: what is malformed, unknown or not negotiated is answered
//! with an error and changes nothing.

use serde::{Deserialize, Serialize};

use super::feature;

/// A MAC address.
pub type Mac = [u8; 6];

/// The most addresses of one kind a driver's table holds; a longer one turns
/// into "all of that kind".
pub const MAX_TABLE: usize = 64;
/// The longest command: a class, a code, and two tables of more addresses than
/// any guest has.
pub const MAX_COMMAND: usize = 2 + 2 * (4 + 6 * 1024);

const CLASS_RX: u8 = 0;
const CLASS_MAC: u8 = 1;
const CLASS_ANNOUNCE: u8 = 3;
const CLASS_MQ: u8 = 4;

const MAC_TABLE_SET: u8 = 0;
const MAC_ADDR_SET: u8 = 1;
const ANNOUNCE_ACK: u8 = 0;
const MQ_PAIRS_SET: u8 = 0;

/// The driver's answer: `VIRTIO_NET_OK` and `VIRTIO_NET_ERR`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Ack {
    /// It is done.
    Ok = 0,
    /// It is not, and nothing changed.
    Error = 1,
}

/// What the driver wants to receive besides its own address, as the commands
/// of class `VIRTIO_NET_CTRL_RX` say, by their number.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
struct ReceiveMode {
    promiscuous: bool,
    all_multicast: bool,
    all_unicast: bool,
    no_multicast: bool,
    no_unicast: bool,
    no_broadcast: bool,
}

impl ReceiveMode {
    fn flag(&mut self, command: u8) -> Option<&mut bool> {
        Some(match command {
            0 => &mut self.promiscuous,
            1 => &mut self.all_multicast,
            2 => &mut self.all_unicast,
            3 => &mut self.no_multicast,
            4 => &mut self.no_unicast,
            5 => &mut self.no_broadcast,
            _ => return None,
        })
    }
}

/// Addresses of one kind; `None` stands for all.
type Table = Option<Vec<Mac>>;

/// What was set.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Control {
    /// The card's address.
    pub mac: Mac,
    /// The driver is to announce itself on its networks.
    pub announce: bool,
    /// Queue pairs the driver receives on.
    pub active_pairs: u16,
    mode: ReceiveMode,
    unicast: Table,
    multicast: Table,
}

impl Control {
    /// As after a reset. Everything is received until the driver says what it
    /// wants, for one without a control queue can't.
    pub fn new(mac: Mac) -> Self {
        Self {
            mac,
            announce: false,
            active_pairs: 1,
            mode: ReceiveMode {
                promiscuous: true,
                ..ReceiveMode::default()
            },
            unicast: Some(Vec::new()),
            multicast: Some(Vec::new()),
        }
    }

    /// Whether a loaded state could have come about.
    pub fn is_plausible(&self, pairs: u16) -> bool {
        let short = |table: &Table| table.as_ref().is_none_or(|table| table.len() <= MAX_TABLE);
        (1..=pairs).contains(&self.active_pairs) && short(&self.unicast) && short(&self.multicast)
    }

    /// Whether the driver wants a frame for `destination`.
    pub fn wants(&self, destination: &Mac) -> bool {
        let mode = &self.mode;
        let listed = |table: &Table| {
            table
                .as_ref()
                .is_none_or(|table| table.contains(destination))
        };
        if mode.promiscuous {
            true
        } else if *destination == [0xff; 6] {
            !mode.no_broadcast
        } else if destination[0] & 1 != 0 {
            !mode.no_multicast && (mode.all_multicast || listed(&self.multicast))
        } else {
            !mode.no_unicast
                && (mode.all_unicast || *destination == self.mac || listed(&self.unicast))
        }
    }

    /// Runs one command: its class, its code and its data.
    pub fn execute(&mut self, command: &[u8], features: u64, pairs: u16) -> Ack {
        let done = match command {
            [CLASS_RX, code, data @ ..] => self.set_mode(*code, data, features),
            [CLASS_MAC, MAC_TABLE_SET, data @ ..] if features & feature::CTRL_RX != 0 => {
                self.set_tables(data)
            }
            [CLASS_MAC, MAC_ADDR_SET, data @ ..] if features & feature::CTRL_MAC_ADDR != 0 => {
                self.set_mac(data)
            }
            [CLASS_ANNOUNCE, ANNOUNCE_ACK] if features & feature::GUEST_ANNOUNCE != 0 => {
                self.announce = false;
                Some(())
            }
            [CLASS_MQ, MQ_PAIRS_SET, low, high] if features & feature::MQ != 0 => {
                self.set_pairs(u16::from_le_bytes([*low, *high]), pairs)
            }
            _ => None,
        };
        if done.is_some() { Ack::Ok } else { Ack::Error }
    }

    fn set_mode(&mut self, code: u8, data: &[u8], features: u64) -> Option<()> {
        let needed = if code < 2 {
            feature::CTRL_RX
        } else {
            feature::CTRL_RX_EXTRA
        };
        let &[on] = data else { return None };
        if features & needed == 0 || on > 1 {
            return None;
        }
        *self.mode.flag(code)? = on == 1;
        Some(())
    }

    fn set_mac(&mut self, data: &[u8]) -> Option<()> {
        let mac: Mac = data.try_into().ok()?;
        // A group's address, or none, is no card's.
        if mac[0] & 1 != 0 || mac == [0; 6] {
            return None;
        }
        self.mac = mac;
        Some(())
    }

    fn set_tables(&mut self, data: &[u8]) -> Option<()> {
        let (unicast, rest) = table(data)?;
        let (multicast, rest) = table(rest)?;
        if !rest.is_empty() {
            return None;
        }
        (self.unicast, self.multicast) = (unicast, multicast);
        Some(())
    }

    fn set_pairs(&mut self, wanted: u16, pairs: u16) -> Option<()> {
        if !(1..=pairs).contains(&wanted) {
            return None;
        }
        self.active_pairs = wanted;
        Some(())
    }
}

/// `struct virtio_net_ctrl_mac`, and what lies behind it.
fn table(data: &[u8]) -> Option<(Table, &[u8])> {
    let (count, rest) = data.split_first_chunk::<4>()?;
    let count = usize::try_from(u32::from_le_bytes(*count)).ok()?;
    let (addresses, rest) = rest.split_at_checked(count.checked_mul(6)?)?;
    let table = (count <= MAX_TABLE).then(|| addresses.as_chunks::<6>().0.to_vec());
    Some((table, rest))
}

#[cfg(test)]
#[path = "control_test.rs"]
mod test;
