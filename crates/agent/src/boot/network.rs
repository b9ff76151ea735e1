//! The network of a guest whose commands the agent runs: there is no init to set it up.
//!
//! Every Ethernet card comes up. Its IPv4 address is leased by DHCP; its IPv6 addresses and
//! routes the kernel takes from router advertisements by itself. The lease is not renewed: the
//! network favo gives a guest keeps an address for the port as long as the guest lives.
//!
//! Nothing here is vital: what fails is said on the console, and the guest goes on without.

use std::fs;
use std::io;
use std::path::Path;

use super::dhcp::{self, Lease};
use crate::sys::Interface;

const INTERFACES: &str = "/sys/class/net";
/// `ARPHRD_ETHER`.
const ETHERNET: &str = "1";
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// What is put over [`RESOLV_CONF`], so that a disk that is kept keeps its own.
const OWN_RESOLV_CONF: &str = "/run/favo-resolv.conf";

/// Brings the network up.
pub(super) fn configure() {
    if let Err(e) = Interface::new("lo").and_then(|lo| lo.up()) {
        eprintln!("favo-agent: interface lo: {e}");
    }
    let mut leases = Vec::new();
    for name in cards() {
        match configure_card(&name) {
            Ok(lease) => leases.push(lease),
            Err(e) => eprintln!("favo-agent: interface {name}: {e}"),
        }
    }
    if leases.iter().any(|lease| !lease.dns.is_empty())
        && let Err(e) = write_resolv_conf(&leases)
    {
        eprintln!("favo-agent: {RESOLV_CONF}: {e}");
    }
}

/// The names of all Ethernet cards, in order.
fn cards() -> Vec<String> {
    let Ok(entries) = fs::read_dir(INTERFACES) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .flatten()
        .filter(|entry| {
            let kind = fs::read_to_string(entry.path().join("type")).unwrap_or_default();
            kind.trim() == ETHERNET && entry.path().join("device").exists()
        })
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

fn configure_card(name: &str) -> io::Result<Lease> {
    let interface = Interface::new(name)?;
    interface.up()?;
    let lease = dhcp::lease(&interface, hardware_address(name)?)?;
    if let Some(mtu) = lease.mtu {
        // A card that can't take it goes on with its own.
        if let Err(e) = interface.set_mtu(mtu) {
            eprintln!("favo-agent: interface {name}: an MTU of {mtu}: {e}");
        }
    }
    interface.set_address(lease.address, lease.mask)?;
    if let Some(router) = lease.router {
        interface.set_default_route(router)?;
    }
    Ok(lease)
}

fn hardware_address(name: &str) -> io::Result<[u8; 6]> {
    let text = fs::read_to_string(Path::new(INTERFACES).join(name).join("address"))?;
    parse_hardware_address(text.trim()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn parse_hardware_address(text: &str) -> Option<[u8; 6]> {
    let mut address = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut address {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    parts.next().is_none().then_some(address)
}

/// resolv.conf(5) of these leases.
fn resolv_conf(leases: &[Lease]) -> String {
    let mut text = String::new();
    if let Some(domain) = leases.iter().find_map(|lease| lease.domain.as_ref()) {
        text.push_str(&format!("search {domain}\n"));
    }
    for server in leases.iter().flat_map(|lease| &lease.dns) {
        text.push_str(&format!("nameserver {server}\n"));
    }
    text
}

/// Puts the file over the root disk's own; where that is a link into /run that leads nowhere
/// without its init, it is made there.
fn write_resolv_conf(leases: &[Lease]) -> io::Result<()> {
    let text = resolv_conf(leases);
    let target = Path::new(RESOLV_CONF);
    if target.exists() {
        fs::write(OWN_RESOLV_CONF, text)?;
        return Ok(rustix::mount::mount_bind(OWN_RESOLV_CONF, RESOLV_CONF)?);
    }
    let target = match fs::read_link(target) {
        Ok(link) => Path::new("/etc").join(link),
        Err(_) => target.to_owned(),
    };
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(target, text)
}

#[cfg(test)]
#[path = "network_test.rs"]
mod test;
