//! The network of a machine: `--network`, `--mtu`, `--pcap`, `--publish`.
//!
//! Each machine has a plane with one port; planes of machines on a network
//! with a name find each other in a directory. The plane lives as long as the
//! [`Attachment`], which therefore outlives the machine.

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use favo_devices::virtio::net::NetSpec;
use favo_net::link::Link;
use favo_net::model::{Forward, MacAddress, Network, Port, PortId};
use favo_net::nat::{Nat, NatOptions, Published};
use favo_net::pcap::Capture;
use favo_net::plane::Plane;
use favo_net::segment::{self, Peers, SegmentError};
use favo_net::uplink::Uplink;
use favo_vmm::machine::CardSpec;
use serde::{Deserialize, Serialize};

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
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Choice {
    /// A network of its own, which reaches what you reach.
    User,
    /// No network card.
    None,
    /// A network that others may be on, too; it reaches what you reach.
    Shared(String),
}

impl TryFrom<String> for Choice {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Choice> for String {
    fn from(choice: Choice) -> Self {
        match choice {
            Choice::User => "user".to_owned(),
            Choice::None => "none".to_owned(),
            Choice::Shared(name) => name,
        }
    }
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "user" => Ok(Self::User),
            "none" => Ok(Self::None),
            name if segment::is_name(name) => Ok(Self::Shared(name.to_owned())),
            other => Err(format!(
                "'{other}' is no network: user (the machine reaches what you reach), none, or a \
                 name of 1 to 63 letters, digits and hyphens that others on it give, too"
            )),
        }
    }
}

/// What `favo run` is told of networks. A snapshot keeps it.
#[derive(Clone, Debug, clap::Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkArgs {
    /// The network: user (the machine reaches what you reach), none, or a name: all machines that
    /// are started with it reach each other, by name, and what you reach.
    #[arg(long, default_value = "user", value_name = "NETWORK")]
    network: Choice,
    /// What the machine is called on its network; the image's name if left out.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// The longest packet on the network, in bytes: 1280 to 65520.
    #[arg(long, value_name = "BYTES", default_value_t = 1500,
          value_parser = clap::value_parser!(u16).range(1280..=65520))]
    mtu: u16,
    /// Write what crosses the network card to a file, for tshark and Wireshark (pcapng).
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pcap: Option<PathBuf>,
    /// Join a port of the host to one of the guest: [ADDR:]HOSTPORT:GUESTPORT[/udp]. May be repeated.
    #[arg(long, value_name = "[ADDR:]HOSTPORT:GUESTPORT[/udp]")]
    publish: Vec<Publish>,
}

impl NetworkArgs {
    /// Whether other machines may be on the network.
    pub fn is_shared(&self) -> bool {
        matches!(self.network, Choice::Shared(_))
    }

    /// Takes the published ports away.
    pub fn publish_nothing(&mut self) {
        self.publish.clear();
    }
}

/// A machine's plug in its network.
#[derive(Default)]
pub struct Attachment {
    /// Ends with this value.
    _plane: Option<Plane>,
    /// Keeps the machine's name on a shared network.
    _lock: Option<File>,
}

/// A machine's place on a network: who it is there.
struct Place {
    network: Network,
    mtu: u16,
    mac: MacAddress,
    v4: Option<Ipv4Addr>,
    /// Nobody else is on the network.
    alone: bool,
    peers: Option<Peers>,
    lock: Option<File>,
}

impl Place {
    fn take(choice: &Choice, name: &str, mtu: u16) -> Result<Self, Failure> {
        let Choice::Shared(shared) = choice else {
            let network = Network::named(NAME, mtu);
            let v4 = network
                .v4
                .map(|subnet| Ipv4Addr::from(u32::from(subnet.prefix.network()) + HOST_NUMBER));
            return Ok(Self {
                network,
                mtu,
                mac: MAC,
                v4,
                alone: true,
                peers: None,
                lock: None,
            });
        };
        let networks = favo_image::state_directory()?.join("networks");
        let membership = segment::join(&networks, shared, name, mtu).map_err(|error| {
            let hint = match error {
                SegmentError::Running(..) => "; --name NAME gives it another",
                _ => "",
            };
            Failure::new(format!("--network {shared}: {error}{hint}"))
        })?;
        Ok(Self {
            mtu: membership.network.mtu,
            network: membership.network,
            mac: membership.lease.mac,
            v4: membership.lease.v4,
            alone: false,
            peers: Some(membership.peers),
            lock: Some(membership.lock),
        })
    }
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
        return Ok((Attachment::default(), Vec::new()));
    }
    let name = args.name.as_deref().unwrap_or(name);
    let place = Place::take(&args.network, name, args.mtu)?;
    let port = port(&place, name, &args.publish);
    let uplink = uplink(&place.network, &port, &args.publish)?;
    let plane = Plane::start(place.network, uplink)?;
    let queues = cpus.clamp(1, MOST_QUEUES) as usize;
    let links = plane
        .add_port(port, queues)?
        .into_iter()
        .map(|link| Box::new(link) as Box<dyn Link>);
    if let Some(peers) = place.peers {
        plane.join(peers)?;
    }
    let links = match &args.pcap {
        Some(file) => {
            let capture = capture(file)?;
            links.map(|link| capture.wrap(link)).collect()
        }
        None => links.collect(),
    };
    let card = NetSpec {
        mtu: place.mtu,
        ..NetSpec::new(place.mac.0)
    };
    let attachment = Attachment {
        _plane: Some(plane),
        _lock: place.lock,
    };
    Ok((attachment, vec![CardSpec { card, links }]))
}

fn port(place: &Place, name: &str, publish: &[Publish]) -> Port {
    let mut port = Port::new(&place.network, PORT, name, place.mac, place.v4);
    if place.alone {
        // The guest takes nobody's address.
        port.allow_own_ipv6(&place.network);
    }
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
