//! The way in: ports of the host that lead to a guest's.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};

use crate::model::{ForwardProtocol, PortId};

/// A port of the host that leads to a guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// TCP or UDP.
    pub protocol: ForwardProtocol,
    /// The host's address; `None`: all of them.
    pub address: Option<IpAddr>,
    /// The host's port number; 0: one that is free.
    pub host_port: u16,
    /// Where the guest is plugged in.
    pub port: PortId,
    /// The guest's IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// The guest's IPv6 address.
    pub v6: Option<Ipv6Addr>,
    /// The guest's port number.
    pub guest_port: u16,
}

impl Published {
    /// The guest's end, for a client of `family`'s family; in the other family
    /// if the guest has no such address.
    pub(super) fn guest(&self, family: IpAddr) -> Option<SocketAddr> {
        let (v4, v6) = (self.v4.map(IpAddr::V4), self.v6.map(IpAddr::V6));
        let address = if family.is_ipv4() {
            v4.or(v6)
        } else {
            v6.or(v4)
        };
        Some(SocketAddr::new(address?, self.guest_port))
    }
}

/// A port that can't be published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// Somebody has it already.
    #[error("port {} of {} is in use; publish another, or stop what uses it", .0.port(), .0.ip())]
    InUse(SocketAddr),
    /// It is for root only.
    #[error(
        "port {} of {} needs a privilege you don't have; publish one from 1024 on", .0.port(), .0.ip()
    )]
    Privileged(SocketAddr),
    /// No such address, or no descriptors left.
    #[error("listening at {0}: {1}")]
    Host(SocketAddr, #[source] io::Error),
}

/// The sockets of a published port.
pub(super) fn open(published: &Published) -> Result<Vec<(OwnedFd, SocketAddr)>, PublishError> {
    let at = |address: IpAddr| SocketAddr::new(address, published.host_port);
    let Some(address) = published.address else {
        let (socket, bound) = open_at(published.protocol, at(Ipv4Addr::UNSPECIFIED.into()))?;
        let v6 = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), bound.port());
        let mut sockets = vec![(socket, bound)];
        match open_at(published.protocol, v6) {
            Ok(socket) => sockets.push(socket),
            // A host without IPv6.
            Err(PublishError::Host(..)) => {}
            Err(error) => return Err(error),
        }
        return Ok(sockets);
    };
    Ok(vec![open_at(published.protocol, at(address))?])
}

fn open_at(
    protocol: ForwardProtocol,
    address: SocketAddr,
) -> Result<(OwnedFd, SocketAddr), PublishError> {
    let open = || -> Result<(OwnedFd, SocketAddr), Errno> {
        let family = match address {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let kind = match protocol {
            ForwardProtocol::Tcp => SocketType::STREAM,
            ForwardProtocol::Udp => SocketType::DGRAM,
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(family, kind, flags, None)?;
        if address.is_ipv6() {
            sockopt::set_ipv6_v6only(&socket, true)?;
        }
        if protocol == ForwardProtocol::Tcp {
            // Connections that linger don't keep a restart from listening.
            sockopt::set_socket_reuseaddr(&socket, true)?;
        }
        bind(&socket, &address)?;
        if protocol == ForwardProtocol::Tcp {
            listen(&socket, 1024)?;
        }
        let bound = SocketAddr::try_from(rustix::net::getsockname(&socket)?)?;
        Ok((socket, bound))
    };
    open().map_err(|error| match error {
        Errno::ADDRINUSE => PublishError::InUse(address),
        Errno::ACCESS | Errno::PERM => PublishError::Privileged(address),
        error => PublishError::Host(address, error.into()),
    })
}
