//! What would happen to a packet at a switch's ports. Changes nothing.

use std::net::SocketAddr;

use super::{Place, Switch};
use crate::link::Offload;
use crate::model::PortId;
use crate::program::oracle::FlowMap;
use crate::program::trace::{Trace, probe, trace};
use crate::program::{Origin, Verdict};

impl Switch {
    /// What would happen to a frame a port's guest sends, or to a packet that
    /// comes for it, at first sight.
    pub fn trace(
        &self,
        id: PortId,
        origin: Origin,
        frame: &[u8],
        offload: &Offload,
    ) -> Option<Trace> {
        let port = self.ports.get(&id)?;
        Some(trace(
            port.executor.program(),
            &FlowMap::default(),
            0,
            origin,
            frame,
            offload,
        ))
    }

    /// What would happen to the first packet a port's guest sends to
    /// `destination`; see [`probe`]. Where it goes to another port of this
    /// process, what that port does with it follows.
    pub fn trace_to(
        &self,
        id: PortId,
        protocol: u8,
        destination: SocketAddr,
    ) -> Option<Vec<(PortId, Trace)>> {
        let port = self.ports.get(&id)?;
        let mut frame = probe(port.executor.program(), protocol, destination)?;
        let here = self.trace(id, Origin::Guest, &frame, &Offload::default())?;
        let verdict = here.decision.verdict;
        let mut traces = vec![(id, here)];
        if let Verdict::Neighbour(mac) = verdict
            && let Some(Place::Here(there)) = self.places.get(&mac)
        {
            frame[..6].copy_from_slice(&mac.0);
            let trace = self.trace(*there, Origin::Network, &frame, &Offload::default())?;
            traces.push((*there, trace));
        }
        Some(traces)
    }
}
