//! Where the plane's packets go: batches for guests, the uplink, services.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::link::Offload;
use crate::model::PortId;
use crate::packet::ETHERNET_LENGTH;
use crate::program::Service;
use crate::queue::{Batch, Queue};
use crate::segment::Peers;
use crate::switch::{Outlets, PeerId};
use crate::uplink::Uplink;

/// Everything a switch's packets may go to.
pub(super) struct PlaneOutlets {
    pub(super) guests: BTreeMap<PortId, GuestQueues>,
    pub(super) uplink: Box<dyn Uplink>,
    /// The other processes of the network.
    pub(super) peers: Option<Peers>,
    /// Frames for services, taken after each frame that made them.
    pub(super) for_services: Vec<(PortId, Service, Vec<u8>, Offload)>,
}

/// How many frames for services may gather in a round: services answer
/// questions, they move no bulk.
const MAXIMUM_FOR_SERVICES: usize = 256;

/// What has gathered for a guest, one batch per queue.
pub(super) struct GuestQueues {
    pub(super) queues: Vec<(Batch, Arc<Queue>)>,
}

impl GuestQueues {
    /// The queue for a packet: one the guest receives on. If there is none,
    /// the first, which drops and counts it.
    fn choose(&self, packet: &[u8]) -> usize {
        let active = || {
            let queues = self.queues.iter().enumerate();
            queues.filter(|(_, (_, queue))| queue.is_active())
        };
        match active().count() {
            0 => 0,
            many => active()
                .nth(spread(packet) % many)
                .map_or(0, |(index, _)| index),
        }
    }

    /// Hands over what has gathered.
    pub(super) fn flush(&mut self) {
        for (batch, queue) in &mut self.queues {
            queue.put(batch);
        }
    }
}

impl Outlets for PlaneOutlets {
    fn guest(
        &mut self,
        port: PortId,
        header: [u8; ETHERNET_LENGTH],
        packet: &[u8],
        offload: Offload,
    ) {
        let Some(guest) = self.guests.get_mut(&port) else {
            return;
        };
        let index = match guest.queues.len() {
            0 => return,
            1 => 0,
            _ => guest.choose(packet),
        };
        let (batch, queue) = &mut guest.queues[index];
        batch.push([&header, packet], offload);
        if batch.is_large() {
            queue.put(batch);
        }
    }

    fn uplink(&mut self, port: PortId, packet: &[u8], offload: Offload) {
        self.uplink.send(port, packet, offload);
    }

    fn service(&mut self, port: PortId, service: Service, frame: &[u8], offload: Offload) -> bool {
        let has_room = self.for_services.len() < MAXIMUM_FOR_SERVICES;
        if has_room {
            self.for_services
                .push((port, service, frame.to_vec(), offload));
        }
        has_room
    }

    fn peer(&mut self, to: Option<PeerId>, frame: &[u8], offload: Offload) -> bool {
        match &mut self.peers {
            Some(peers) => peers.send(to, frame, offload),
            None => true,
        }
    }
}

/// A number that is the same for all packets of a conversation: from the
/// addresses and, where there are no options, the ports.
fn spread(packet: &[u8]) -> usize {
    let words = match packet.first().map(|byte| byte >> 4) {
        Some(4) => packet.get(12..24),
        _ => packet.get(8..44),
    };
    words.unwrap_or(&[]).iter().fold(0, |hash: usize, byte| {
        hash.wrapping_mul(31).wrapping_add(usize::from(*byte))
    })
}
