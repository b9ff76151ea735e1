//! `favo net trace`: what would happen to a packet.
//!
//! Machines are described, not asked: by the options they were started with,
//! and, on a network with a name, by the addresses they have there.

use std::net::IpAddr;
use std::process::ExitCode;

use favo_net::model::{METADATA_V4, METADATA_V6, MacAddress, Network, Port, PortId};
use favo_net::program::scene::{Question, Scene, Stop};
use favo_net::program::trace::{Part, SOURCE_PORT};
use favo_net::program::{Origin, Verdict};
use favo_net::segment;
use serde::Serialize;

use super::endpoint::{Endpoint, Station, Target, Transport};
use crate::Failure;
use crate::output::{Format, FormatArgs, print_json, print_line, table};
use crate::run::firewall::FirewallArgs;
use crate::run::network::{Choice, configure, directory, leased, own_network};
use crate::run::publish::Publish;

/// Says what would happen to a packet, stage by stage, and which rule decides.
///
/// Nothing is sent, and no machine need run: the network card is described by
/// the options the machine is, or would be, started with. On a network with a
/// name, machines have the addresses they were given there.
///
/// SOURCE and DESTINATION are an address, guest (the machine itself), gateway,
/// metadata, or another machine's name, and a port. Without a protocol it is
/// TCP to a port, else an echo request (ping).
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  favo net trace guest 1.1.1.1:443                   does HTTPS get out?
  favo net trace guest gateway:53/udp                who answers DNS?
  favo net trace --deny out --allow out:tcp:443 guest 1.1.1.1:25
                                                     which rule stops mail?
  favo net trace --from beyond --publish 8080:80 --answer 9.9.9.9:5555 guest:80
                                                     a client of a published port, and the way back
  favo net trace --network lab --name web guest data:5432
                                                     from one machine to another, at both ends
  favo net trace --source-mac 52:54:00:12:34:56 guest 1.1.1.1
                                                     a packet in another's name")]
pub struct Trace {
    /// Who sends: ADDRESS[:PORT], or guest, gateway, or a machine's name instead of the address.
    #[arg(value_name = "SOURCE")]
    source: Endpoint,
    /// Who is to get it: as SOURCE, then /tcp, /udp or /icmp.
    #[arg(value_name = "DESTINATION[/PROTOCOL]")]
    destination: Target,
    /// The network: user, or the name of one that machines share.
    #[arg(long, default_value = "user", value_name = "NETWORK")]
    network: Choice,
    /// Which machine of the network the packet comes from, or to.
    #[arg(long, default_value = "guest", value_name = "NAME")]
    name: String,
    /// From where the packet reaches the machine's port.
    #[arg(long, value_enum, default_value_t, value_name = "WHERE")]
    from: From,
    /// Follow the answer, too.
    #[arg(long)]
    answer: bool,
    /// Prefer IPv6 where both ends have both.
    #[arg(short = '6', long)]
    ipv6: bool,
    /// The Ethernet address the packet says it comes from.
    #[arg(long, value_name = "MAC")]
    source_mac: Option<MacAddress>,
    /// The Ethernet address the packet is sent to.
    #[arg(long, value_name = "MAC")]
    destination_mac: Option<MacAddress>,
    /// As for favo run.
    #[arg(long, value_name = "[ADDR:]HOSTPORT:GUESTPORT[/udp]")]
    publish: Vec<Publish>,
    #[command(flatten)]
    firewall: FirewallArgs,
    #[command(flatten)]
    format: FormatArgs,
}

/// From where a packet reaches a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
enum From {
    /// The guest sends it.
    #[default]
    Guest,
    /// Another machine of the network sent it.
    Network,
    /// It comes from beyond the network, through a published port.
    Beyond,
}

/// The longest packet; nothing a trace sends comes near it.
const MTU: u16 = 1500;

/// Runs the subcommand.
pub fn run(args: &Trace) -> Result<ExitCode, Failure> {
    let (network, ports) = stations(args)?;
    let own = &ports[0];
    let source = addresses(args, &network, &ports, &args.source.station)?;
    let destination = addresses(args, &network, &ports, &args.destination.endpoint.station)?;
    let ip = pair(&source, &destination, args.ipv6).ok_or_else(|| {
        Failure::new("SOURCE and DESTINATION have no addresses of the same family (IPv4 or IPv6)")
    })?;
    let protocol = args.destination.protocol;
    let question = Question {
        origin: match args.from {
            From::Guest => Origin::Guest,
            From::Network => Origin::Network,
            From::Beyond => Origin::Uplink,
        },
        source_mac: args.source_mac,
        destination_mac: args.destination_mac,
        ip,
        protocol: protocol.number(),
        ports: (
            args.source.port.unwrap_or(SOURCE_PORT),
            args.destination.endpoint.port.unwrap_or(0),
        ),
    };
    let stops = Scene::new(&network, &ports).follow(own.id, &question, args.answer);
    let report = Report {
        network: network.name.clone(),
        protocol: protocol.to_string(),
        source: end(ip.0, question.ports.0, protocol),
        destination: end(ip.1, question.ports.1, protocol),
        stops: stops
            .iter()
            .map(|stop| StopReport::of(stop, &ports))
            .collect(),
    };
    match args.format.output {
        Format::Json => print_json(&report)?,
        Format::Table => print_line(&report.text()),
    }
    Ok(ExitCode::SUCCESS)
}

/// The network and who is on it; first the machine that is asked about.
fn stations(args: &Trace) -> Result<(Network, Vec<Port>), Failure> {
    let (network, mut ports) = match &args.network {
        Choice::None => {
            return Err(Failure::new(
                "--network none has no packets; give user, or a network's name",
            ));
        }
        Choice::User => {
            let (network, port) = own_network(&args.name, MTU);
            (network, vec![port])
        }
        Choice::Shared(name) => {
            let found = segment::inspect(&directory()?, name)?;
            let inspection = found.ok_or_else(|| {
                Failure::new(format!(
                    "nobody was ever on network '{name}'; favo run --network {name} makes it"
                ))
            })?;
            let network = inspection.network;
            let ports = (1..)
                .zip(&inspection.instances)
                .map(|(id, (name, lease))| leased(&network, PortId(id), name, lease));
            let mut ports: Vec<Port> = ports.collect();
            let Some(own) = ports.iter().position(|port| port.name == args.name) else {
                let names: Vec<&str> = ports.iter().map(|port| port.name.as_str()).collect();
                let names = names.join(", ");
                return Err(Failure::new(format!(
                    "no '{}' is on network '{name}'; --name is one of {names}",
                    args.name
                )));
            };
            ports.swap(0, own);
            (network, ports)
        }
    };
    configure(&mut ports[0], &args.publish, &args.firewall);
    Ok((network, ports))
}

fn addresses(
    args: &Trace,
    network: &Network,
    ports: &[Port],
    station: &Station,
) -> Result<Vec<IpAddr>, Failure> {
    let of = |port: &Port| {
        let v4 = port.v4.map(IpAddr::V4);
        v4.into_iter().chain(port.v6.map(IpAddr::V6)).collect()
    };
    Ok(match station {
        Station::Address(address) => vec![*address],
        Station::Guest => of(&ports[0]),
        Station::Gateway => {
            let v4 = network.v4.map(|v4| IpAddr::V4(v4.gateway));
            let v6 = network.v6.map(|v6| IpAddr::V6(v6.gateway));
            v4.into_iter().chain(v6).collect()
        }
        Station::Metadata => vec![METADATA_V4.into(), METADATA_V6.into()],
        Station::Named(name) => match ports.iter().find(|port| port.name == *name) {
            Some(port) => of(port),
            None => {
                let hint = match args.network {
                    Choice::Shared(_) => "",
                    _ => "; --network NAME says on which network it is",
                };
                return Err(Failure::new(format!(
                    "no '{name}' is on network '{}'{hint}",
                    network.name
                )));
            }
        },
    })
}

/// Two addresses of one family.
fn pair(source: &[IpAddr], destination: &[IpAddr], v6: bool) -> Option<(IpAddr, IpAddr)> {
    let both = |wanted_v4: bool| {
        let of = |list: &[IpAddr]| list.iter().copied().find(|ip| ip.is_ipv4() == wanted_v4);
        Some((of(source)?, of(destination)?))
    };
    both(!v6).or_else(|| both(v6))
}

fn end(address: IpAddr, port: u16, protocol: Transport) -> String {
    match protocol {
        Transport::Icmp => address.to_string(),
        Transport::Tcp | Transport::Udp => std::net::SocketAddr::new(address, port).to_string(),
    }
}

#[derive(Serialize)]
struct Report {
    network: String,
    protocol: String,
    source: String,
    destination: String,
    stops: Vec<StopReport>,
}

#[derive(Serialize)]
struct StopReport {
    /// The machine whose port it is.
    at: String,
    /// guest, network or beyond.
    from: &'static str,
    /// The packet is the answer.
    answer: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    source_mac: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    destination_mac: Option<String>,
    steps: Vec<StepReport>,
    verdict: &'static str,
    /// Why it was dropped, as counters name it.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    text: String,
}

#[derive(Serialize)]
struct StepReport {
    layer: String,
    /// The rule's place in its layer, from 1.
    rule: usize,
    name: String,
    action: String,
}

impl StopReport {
    fn of(stop: &Stop, ports: &[Port]) -> Self {
        let at = ports.iter().find(|port| port.id == stop.port);
        let verdict = stop.trace.decision.verdict;
        let mac = |mac: MacAddress| (stop.origin != Origin::Uplink).then(|| mac.to_string());
        let steps = stop.trace.steps.iter().map(|step| StepReport {
            layer: step.rule.layer.to_string(),
            rule: step.rule.index + 1,
            name: step.name.clone(),
            action: step.action.to_string(),
        });
        Self {
            at: at.map_or_else(String::new, |port| port.name.clone()),
            from: match stop.origin {
                Origin::Guest => "guest",
                Origin::Network => "network",
                Origin::Uplink => "beyond",
            },
            answer: stop.part == Part::Answer,
            source_mac: mac(stop.ethernet.0),
            destination_mac: mac(stop.ethernet.1),
            steps: steps.collect(),
            verdict: verdict.name(),
            reason: match verdict {
                Verdict::Drop(reason) => Some(reason.name()),
                _ => None,
            },
            text: verdict.to_string(),
        }
    }
}

impl Report {
    fn text(&self) -> String {
        let Self {
            network,
            protocol,
            source,
            destination,
            stops,
        } = self;
        let mut text =
            format!("{protocol} from {source} to {destination} on network '{network}'\n");
        for stop in stops {
            let what = if stop.answer {
                "the answer"
            } else {
                "the packet"
            };
            let whence = match stop.from {
                "guest" => "from the guest",
                "network" => "from the network",
                _ => "from beyond the network",
            };
            text += &format!("\nat {}: {what}, {whence}", stop.at);
            if let (Some(source), Some(destination)) = (&stop.source_mac, &stop.destination_mac) {
                text += &format!(", {source} to {destination}");
            }
            text.push('\n');
            let mut table = table(&["LAYER", "RULE", "NAME", "ACTION"]);
            for step in &stop.steps {
                table.add_row([
                    step.layer.clone(),
                    step.rule.to_string(),
                    step.name.clone(),
                    step.action.clone(),
                ]);
            }
            text += &table.trim_fmt();
            text += &format!("\n{}", stop.text);
            if let Some(reason) = &stop.reason {
                text += &format!(" ({reason})");
            }
            text.push('\n');
        }
        text.truncate(text.trim_end().len());
        text
    }
}
