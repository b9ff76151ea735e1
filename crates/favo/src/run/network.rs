//! The network of a machine: `--network`, `--mtu`, `--pcap`, `--publish`.
//!
//! A machine is alone on its network: a plane with one port. The plane lives
//! as long as the [`Attachment`], which therefore outlives the machine.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use favo_devices::virtio::net::NetSpec;
use favo_net::link::Link;
use favo_net::model::{Forward, MacAddress, Network, Port, PortId};
use favo_net::nat::{Nat, NatOptions, Published};
use favo_net::pcap::Capture;
use favo_net::plane::Plane;
use favo_net::uplink::Uplink;
use favo_vmm::machine::CardSpec;

use super::publish::Publish;
use crate::Failure;

/// The network's name, from which its addresses follow.
const NAME: &str = "user";
const PORT: PortId = PortId(1);
/// The card's address. Nobody else is on the network, so all may have the
/// same, and a disk that is kept meets the same card again.
const MAC: MacAddress = MacAddress([0x0e, 0xfa, 0x40, 0, 0, 2]);
/// The card's place in the subnet; the gateway has the first.
const HOST_NUMBER: u32 = 2;
/// More queue pairs than this gain nothing with one plane.
const MOST_QUEUES: u32 = 4;

/// Which network the machine is on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Choice {
    /// A network of its own, which reaches what you reach.
    #[default]
    User,
    /// No network card.
    None,
}

/// What `favo run` is told of networks.
#[derive(clap::Args)]
pub struct NetworkArgs {
    /// The network: user (the machine reaches what you reach) or none.
    #[arg(long, value_enum, default_value_t, value_name = "NETWORK")]
    network: Choice,
    /// The longest packet on the network, in bytes: 1280 to 65520.
    #[arg(long, value_name = "BYTES", default_value_t = 1500,
          value_parser = clap::value_parser!(u16).range(1280..=65520))]
    mtu: u16,
    /// Write what crosses the network card to a file, for tshark and Wireshark (pcapng).
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,
    /// Join a port of the host to one of the guest: [ADDR:]HOSTPORT:GUESTPORT[/udp]. May be repeated.
    #[arg(long, value_name = "[ADDR:]HOSTPORT:GUESTPORT[/udp]")]
    publish: Vec<Publish>,
}

/// A machine's place on its network.
pub struct Attachment {
    /// Ends with this value.
    _plane: Option<Plane>,
}

/// Makes the network and plugs the machine in: its cards, and what must live
/// as long as the machine does. `name` is what the guest is called on it.
pub fn attach(
    args: &NetworkArgs,
    name: &str,
    cpus: u32,
) -> Result<(Attachment, Vec<CardSpec>), Failure> {
    if args.network == Choice::None {
        if let Some(publish) = args.publish.first() {
            return Err(Failure::new(format!(
                "--publish {publish} needs a network; leave --network none out"
            )));
        }
        if let Some(file) = &args.pcap {
            return Err(Failure::new(format!(
                "--pcap {} needs a network; leave --network none out",
                file.display()
            )));
        }
        return Ok((Attachment { _plane: None }, Vec::new()));
    }
    let network = Network::named(NAME, args.mtu);
    let port = port(&network, name, &args.publish);
    let uplink = uplink(&network, &port, &args.publish)?;
    let plane = Plane::start(network, uplink)?;
    let queues = cpus.clamp(1, MOST_QUEUES) as usize;
    let links = plane
        .add_port(port, queues)?
        .into_iter()
        .map(|link| Box::new(link) as Box<dyn Link>);
    let links = match &args.pcap {
        Some(file) => {
            let capture = capture(file)?;
            links.map(|link| capture.wrap(link)).collect()
        }
        None => links.collect(),
    };
    let card = NetSpec {
        mtu: args.mtu,
        ..NetSpec::new(MAC.0)
    };
    let attachment = Attachment {
        _plane: Some(plane),
    };
    Ok((attachment, vec![CardSpec { card, links }]))
}

fn port(network: &Network, name: &str, publish: &[Publish]) -> Port {
    let v4 = network
        .v4
        .map(|subnet| Ipv4Addr::from(u32::from(subnet.prefix.network()) + HOST_NUMBER));
    let mut port = Port::new(network, PORT, name, MAC, v4);
    // Alone on its network, the guest takes nobody's address.
    port.allow_own_ipv6(network);
    port.forwards = publish
        .iter()
        .map(|publish| Forward {
            protocol: publish.protocol,
            guest_port: publish.guest_port,
        })
        .collect();
    port
}

/// The way out, with the ways in bound: a port in use is known before the
/// machine starts.
fn uplink(network: &Network, port: &Port, publish: &[Publish]) -> Result<Box<dyn Uplink>, Failure> {
    let mut nat = Nat::new(NatOptions::of(network))?;
    for publish in publish {
        nat.publish(Published {
            protocol: publish.protocol,
            address: publish.address,
            host_port: publish.host_port,
            port: port.id,
            v4: port.v4,
            v6: port.v6,
            guest_port: publish.guest_port,
        })
        .map_err(|error| Failure::new(format!("--publish {publish}: {error}")))?;
    }
    Ok(Box::new(nat))
}

fn capture(file: &Path) -> Result<Capture, Failure> {
    Capture::create(file, NAME)
        .map_err(|error| Failure::new(format!("creating the capture {}: {error}", file.display())))
}
