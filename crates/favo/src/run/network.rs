//! The network of a machine: `--network`, `--mtu`, `--pcap`, `--publish`,
//! `--allow`, `--deny`, `--rate`.
//!
//! Each machine has a plane with one port; planes of machines on a network
//! with a name find each other in a directory. The plane lives as long as the
//! [`Attachment`], which therefore outlives the machine.

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use favo_accel::EventCounter;
use favo_devices::virtio::net::NetSpec;
use favo_net::link::Link;
use favo_net::model::{Direction, Forward, MacAddress, Network, Port, PortId};
use favo_net::nat::{Nat, NatOptions, Published};
use favo_net::pcap::Capture;
use favo_net::plane::Plane;
use favo_net::program::DropReason;
use favo_net::segment::{self, Lease, Peers, SegmentError};
use favo_net::uplink::Uplink;
use favo_sandbox::Policy;
use favo_vmm::machine::CardSpec;
use serde::{Deserialize, Serialize};

use super::firewall::FirewallArgs;
use super::publish::Publish;
use super::rate::{self, RateArgument};
use crate::Failure;

/// The network's name, from which its addresses follow.
const NAME: &str = "user";
/// Where shared networks are in the state directory.
pub(super) const NETWORKS: &str = "networks";
/// As Ethernet has it.
const DEFAULT_MTU: u16 = 1500;
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
pub(crate) enum Choice {
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

fn parse_all<T: FromStr>(what: &str, texts: &[String]) -> Result<Vec<T>, String>
where
    T::Err: std::fmt::Display,
{
    let parse = |text: &String| {
        text.parse()
            .map_err(|error| format!("{what} '{text}': {error}"))
    };
    texts.iter().map(parse).collect()
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
    #[arg(long, value_name = "BYTES", default_value_t = DEFAULT_MTU,
          value_parser = clap::value_parser!(u16).range(1280..=65520))]
    mtu: u16,
    /// Write what crosses the network card to a file, for tshark and Wireshark (pcapng).
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pcap: Option<PathBuf>,
    /// Join a port of the host to one of the guest: [ADDR:]HOSTPORT:GUESTPORT[/udp]. May be repeated.
    #[arg(long, value_name = "[ADDR:]HOSTPORT:GUESTPORT[/udp]")]
    publish: Vec<Publish>,
    #[command(flatten)]
    firewall: FirewallArgs,
    /// How fast the guest may send (out) or be sent to (in), in bytes or packets (pps) a second,
    /// and how much may pass at once after a pause: in|out:RATE[/BURST], like out:10M or
    /// in:2000pps/100. May be repeated.
    #[arg(long, value_name = "in|out:RATE[/BURST]")]
    rate: Vec<RateArgument>,
}

impl NetworkArgs {
    /// An option that means nothing without a network, as it was written.
    fn first_that_needs_a_network(&self) -> Option<String> {
        let publish = self
            .publish
            .first()
            .map(|publish| format!("--publish {publish}"));
        let pcap = || {
            let file = self.pcap.as_ref()?;
            Some(format!("--pcap {}", file.display()))
        };
        let rate = || self.rate.first().map(|rate| format!("--rate {rate}"));
        publish
            .or_else(pcap)
            .or_else(|| self.firewall.first())
            .or_else(rate)
    }
}

impl NetworkArgs {
    /// What an instance is told of networks.
    ///
    /// # Errors
    /// Which of it can't be, and why.
    pub fn of(
        name: &str,
        network: &str,
        publish: &[String],
        rate: &[String],
    ) -> Result<Self, String> {
        Ok(Self {
            network: network.parse()?,
            name: Some(name.to_owned()),
            mtu: DEFAULT_MTU,
            pcap: None,
            publish: parse_all("published port", publish)?,
            firewall: FirewallArgs::default(),
            rate: parse_all("rate", rate)?,
        })
    }

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
    plane: Option<Plane>,
    /// Keeps the machine's name on a shared network.
    _lock: Option<File>,
}

impl Attachment {
    /// What the machine's port on its network has seen; each drop with its
    /// reason.
    pub fn counters(&self) -> Vec<(String, EventCounter)> {
        let counted = self
            .plane
            .as_ref()
            .and_then(|plane| plane.counters(PORT).ok());
        let Some(counted) = counted.flatten() else {
            return Vec::new();
        };
        let mut counters = vec![
            ("frames-from-guest", None, counted.sent),
            ("bytes-from-guest", None, counted.sent_bytes),
            ("frames-to-guest", None, counted.received),
            ("bytes-to-guest", None, counted.received_bytes),
        ];
        for reason in DropReason::ALL {
            let dropped = |direction| counted.dropped(direction, *reason);
            let name = || Some(reason.name());
            counters.push(("dropped-from-guest", name(), dropped(Direction::Out)));
            counters.push(("dropped-to-guest", name(), dropped(Direction::In)));
        }
        let counter = |(name, detail, count)| EventCounter {
            name,
            detail,
            count,
        };
        let counters = counters.into_iter().map(counter);
        counters
            .map(|counter| ("network".to_owned(), counter))
            .collect()
    }
}

/// A machine's place on a network: who it is there.
struct Place {
    network: Network,
    port: Port,
    peers: Option<Peers>,
    lock: Option<File>,
}

impl Place {
    fn take(choice: &Choice, name: &str, mtu: u16) -> Result<Self, Failure> {
        let Choice::Shared(shared) = choice else {
            let (network, port) = own_network(name, mtu);
            return Ok(Self {
                network,
                port,
                peers: None,
                lock: None,
            });
        };
        let networks = directory()?;
        let membership = segment::join(&networks, shared, name, mtu).map_err(|error| {
            let hint = match error {
                SegmentError::Running(..) => "; --name NAME gives it another",
                _ => "",
            };
            Failure::new(format!("--network {shared}: {error}{hint}"))
        })?;
        Ok(Self {
            port: leased(&membership.network, PORT, name, &membership.lease),
            network: membership.network,
            peers: Some(membership.peers),
            lock: Some(membership.lock),
        })
    }
}

impl NetworkArgs {
    /// What the network's thread reaches by name while the machine runs.
    pub fn policy(&self) -> Result<Policy, Failure> {
        let mut policy = match self.network {
            Choice::None => return Ok(Policy::default()),
            _ => Policy::default().with_network(),
        };
        if let Choice::Shared(name) = &self.network {
            let directory = segment::prepare(&favo_image::state_directory()?.join(NETWORKS), name)?;
            policy.remove.push(directory);
        }
        Ok(policy)
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
        if let Some(option) = args.first_that_needs_a_network() {
            return Err(Failure::new(format!(
                "{option} needs a network; leave --network none out"
            )));
        }
        return Ok((Attachment::default(), Vec::new()));
    }
    let (from_guest, to_guest) = rate::limits(&args.rate).map_err(Failure::new)?;
    let name = args.name.as_deref().unwrap_or(name);
    let place = Place::take(&args.network, name, args.mtu)?;
    let mut port = place.port;
    configure(&mut port, &args.publish, &args.firewall);
    let uplink = uplink(&place.network, &port, &args.publish)?;
    let (mtu, mac) = (place.network.mtu, port.mac);
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
        mtu,
        from_guest,
        to_guest,
        ..NetSpec::new(mac.0)
    };
    let attachment = Attachment {
        plane: Some(plane),
        _lock: place.lock,
    };
    Ok((attachment, vec![CardSpec { card, links }]))
}

/// Where the networks that machines share are.
pub(crate) fn directory() -> Result<PathBuf, Failure> {
    Ok(favo_image::state_directory()?.join("networks"))
}

/// The port of a machine on a network that others may be on.
pub(crate) fn leased(network: &Network, id: PortId, name: &str, lease: &Lease) -> Port {
    Port::new(network, id, name, lease.mac, lease.v4)
}

/// Gives a port what the options say of it.
pub(crate) fn configure(port: &mut Port, publish: &[Publish], firewall: &FirewallArgs) {
    port.forwards = publish
        .iter()
        .map(|publish| Forward {
            protocol: publish.protocol,
            guest_port: publish.guest_port,
        })
        .collect();
    port.groups.extend(firewall.group());
}

/// The network a machine has alone, and its port there.
pub(crate) fn own_network(name: &str, mtu: u16) -> (Network, Port) {
    let network = Network::named(NAME, mtu);
    let v4 = network
        .v4
        .map(|subnet| Ipv4Addr::from(u32::from(subnet.prefix.network()) + HOST_NUMBER));
    let mut port = Port::new(&network, PORT, name, MAC, v4);
    // The guest takes nobody's address.
    port.allow_own_ipv6(&network);
    (network, port)
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
