//! A network that several processes of one user share, without a daemon.
//!
//! Each network has a directory. A process that joins finds there what the
//! network is, takes an address for its instance, and the sockets of those
//! that joined before; it connects to each of them, so all are connected with
//! all, and frames go directly from plane to plane ([`Peers`]).
//!
//! What is in the directory:
//!
//! | file | what | written |
//! |---|---|---|
//! | `lock` | held while anything here is changed or a process joins | never |
//! | `network.json` | the [`Network`] | once, by the first that joins |
//! | `NAME.lease` | an instance's [`Lease`]; locked while it is on the network | when it first joins |
//! | `PID-N.sock` | where a process is reached | removed when it leaves, or by whoever finds it dead |
//!
//! A process that is killed leaves its lease, so its instance has the same
//! address next time, and a socket nobody answers.
//!
//! All processes run as one user and trust each other not to lie about the
//! addresses of their ports; guests are not trusted, each plane filters what
//! its own send and receive. A hostile process of the same user could read the
//! guests' memory anyway.

mod peers;

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::model::{MacAddress, Network};

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use peers::fuzz_message;
pub use peers::{PeerEvent, Peers};

/// What can't be joined.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// The host refuses something.
    #[error("network '{network}' can't be joined: {action} {}: {error}", path.display())]
    Host {
        /// The network.
        network: String,
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the host said.
        error: std::io::Error,
    },
    /// A name that can't be one.
    #[error(
        "'{0}' can't be a name on a network; it is 1 to 63 letters, digits and hyphens, and begins with a letter or digit"
    )]
    Name(String),
    /// It runs already.
    #[error("'{1}' is already on network '{0}'; give this one another name")]
    Running(String, String),
    /// No address left.
    #[error("network '{0}' has no free address; remove leases of instances that are gone from {path}", path = .1.display())]
    Full(String, PathBuf),
    /// The description of the network can't be read.
    #[error("network '{network}' is described by {}, which can't be read: {error}; remove it if no instance is on the network", path.display())]
    Description {
        /// The network.
        network: String,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: String,
    },
}

/// What an instance has on a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Its card's address.
    pub mac: MacAddress,
    /// Its IPv4 address, if the network has such.
    pub v4: Option<Ipv4Addr>,
}

/// A place on a network. Dropping it gives it up; the lease stays.
#[derive(Debug)]
pub struct Membership {
    /// The network, the same for all that join.
    pub network: Network,
    /// What the instance has on it.
    pub lease: Lease,
    /// The way to the others; for [`crate::plane::Plane::join`].
    pub peers: Peers,
    /// The locked lease.
    pub lock: File,
}

/// Whether a name can be a file's and a host's (RFC 1123, section 2.1).
pub fn is_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !name.starts_with('-')
}

/// Makes the directory of the network `name`, if it isn't there, and tells
/// where it is.
///
/// # Errors
/// The host refuses it.
pub fn prepare(networks: &Path, name: &str) -> Result<PathBuf, SegmentError> {
    if !is_name(name) {
        return Err(SegmentError::Name(name.to_owned()));
    }
    let directory = Directory {
        network: name.to_owned(),
        path: networks.join(name),
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&directory.path)
        .map_err(|error| directory.error("making", &directory.path, error))?;
    Ok(directory.path)
}

/// Joins the network `name` as `instance`; `networks` is the directory of all
/// networks. The first that joins makes the network, with `mtu`.
///
/// # Errors
/// Says what is in the way; nothing is left behind but the directory.
pub fn join(
    networks: &Path,
    name: &str,
    instance: &str,
    mtu: u16,
) -> Result<Membership, SegmentError> {
    for name in [name, instance] {
        if !is_name(name) {
            return Err(SegmentError::Name(name.to_owned()));
        }
    }
    let directory = Directory {
        network: name.to_owned(),
        path: prepare(networks, name)?,
    };
    let lock = directory.open("lock")?;
    flock(&lock, FlockOperation::LockExclusive)
        .map_err(|error| directory.error("locking", &directory.path.join("lock"), error.into()))?;
    let network = directory.network(mtu)?;
    let (lease, lease_file) = directory.lease(&network, instance)?;
    let peers = Peers::join(&directory.path)
        .map_err(|error| directory.error("connecting in", &directory.path, error))?;
    // `lock` is let go of here: whoever joins next finds our socket.
    Ok(Membership {
        network,
        lease,
        peers,
        lock: lease_file,
    })
}

/// A network as its directory tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// The network.
    pub network: Network,
    /// Who has an address on it, by name, be it running or not.
    pub instances: Vec<(String, Lease)>,
}

/// What a network is and who has an address on it, be it running or not;
/// `None`, if nobody ever joined it. Changes nothing.
///
/// # Errors
/// The directory can't be read, or what is in it.
pub fn inspect(networks: &Path, name: &str) -> Result<Option<Inspection>, SegmentError> {
    if !is_name(name) {
        return Err(SegmentError::Name(name.to_owned()));
    }
    let directory = Directory {
        network: name.to_owned(),
        path: networks.join(name),
    };
    let Some(network) = directory.read_network()? else {
        return Ok(None);
    };
    let mut instances: Vec<(String, Lease)> = directory
        .leases("")?
        .into_iter()
        .filter_map(|(path, lease)| Some((path.file_stem()?.to_str()?.to_owned(), lease)))
        .collect();
    instances.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(Some(Inspection { network, instances }))
}

/// A network's directory, locked by the caller.
struct Directory {
    network: String,
    path: PathBuf,
}

impl Directory {
    fn error(&self, action: &'static str, path: &Path, error: std::io::Error) -> SegmentError {
        SegmentError::Host {
            network: self.network.clone(),
            action,
            path: path.to_owned(),
            error,
        }
    }

    fn open(&self, name: &str) -> Result<File, SegmentError> {
        let path = self.path.join(name);
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|error| self.error("opening", &path, error))
    }

    fn description(&self) -> PathBuf {
        self.path.join("network.json")
    }

    fn wrong(&self, error: impl ToString) -> SegmentError {
        SegmentError::Description {
            network: self.network.clone(),
            path: self.description(),
            error: error.to_string(),
        }
    }

    /// Reads what the network is, if anyone has said it.
    fn read_network(&self) -> Result<Option<Network>, SegmentError> {
        match std::fs::read(self.description()) {
            Ok(bytes) => {
                let network: Network =
                    serde_json::from_slice(&bytes).map_err(|error| self.wrong(error))?;
                network.check().map_err(|error| self.wrong(error))?;
                Ok(Some(network))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.error("reading", &self.description(), error)),
        }
    }

    /// Reads what the network is, or says it.
    fn network(&self, mtu: u16) -> Result<Network, SegmentError> {
        if let Some(network) = self.read_network()? {
            return Ok(network);
        }
        let network = Network::named(&self.network, mtu);
        network.check().map_err(|error| self.wrong(error))?;
        let bytes = serde_json::to_vec_pretty(&network).map_err(|error| self.wrong(error))?;
        // Whole or not at all, whenever we are killed.
        let new = self.path.join("network.json.new");
        std::fs::write(&new, bytes)
            .and_then(|()| std::fs::rename(&new, self.description()))
            .map_err(|error| self.error("writing", &self.description(), error))?;
        Ok(network)
    }

    /// Takes an instance's lease, or gives it one.
    fn lease(&self, network: &Network, instance: &str) -> Result<(Lease, File), SegmentError> {
        let name = format!("{instance}.lease");
        let mut file = self.open(&name)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(SegmentError::Running(
                    self.network.clone(),
                    instance.to_owned(),
                ));
            }
            Err(error) => return Err(self.error("locking", &self.path.join(name), error.into())),
        }
        let others = self.leases(&name)?;
        let fits = |lease: &Lease| {
            !others
                .iter()
                .any(|(_, other)| other.v4 == lease.v4 || other.mac == lease.mac)
                && lease.v4.is_some() == network.v4.is_some()
                && lease
                    .v4
                    .is_none_or(|v4| network.v4.is_some_and(|net| net.hosts_contain(v4)))
        };
        let mut text = String::new();
        let _ = file.read_to_string(&mut text);
        if let Ok(lease) = serde_json::from_str::<Lease>(&text)
            && fits(&lease)
        {
            return Ok((lease, file));
        }
        let lease = match free_lease(network, &others) {
            Some(lease) => lease,
            None => self.reclaim(&others)?,
        };
        let text = serde_json::to_vec(&lease).unwrap_or_default();
        file.rewind()
            .and_then(|()| file.set_len(0))
            .and_then(|()| file.write_all(&text))
            .map_err(|error| self.error("writing", &self.path.join(&name), error))?;
        Ok((lease, file))
    }

    /// Everyone else's leases.
    fn leases(&self, own: &str) -> Result<Vec<(PathBuf, Lease)>, SegmentError> {
        let failed = |error| self.error("listing", &self.path, error);
        let mut leases = Vec::new();
        for entry in std::fs::read_dir(&self.path).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let is_own = path.file_name().is_some_and(|name| name == own);
            if is_own
                || path
                    .extension()
                    .is_none_or(|extension| extension != "lease")
            {
                continue;
            }
            // A lease that can't be read is nobody's: its owner died before
            // it was written.
            if let Ok(text) = std::fs::read(&path)
                && let Ok(lease) = serde_json::from_slice(&text)
            {
                leases.push((path, lease));
            }
        }
        Ok(leases)
    }

    /// Takes away the lease of an instance that isn't running.
    fn reclaim(&self, others: &[(PathBuf, Lease)]) -> Result<Lease, SegmentError> {
        for (path, lease) in others {
            let Ok(file) = File::open(path) else { continue };
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
                && std::fs::remove_file(path).is_ok()
            {
                return Ok(*lease);
            }
        }
        Err(SegmentError::Full(self.network.clone(), self.path.clone()))
    }
}

/// The lowest address nobody has. The card's address is made of it, so that it
/// is nobody else's either.
fn free_lease(network: &Network, others: &[(PathBuf, Lease)]) -> Option<Lease> {
    let mac = |number: u32| {
        let [a, b, c, d] = number.to_be_bytes();
        MacAddress([0x52, 0x54, a, b, c, d])
    };
    let is_free = |lease: &Lease| {
        !others.iter().any(|(_, other)| {
            other.mac == lease.mac || (lease.v4.is_some() && other.v4 == lease.v4)
        })
    };
    match network.v4 {
        Some(subnet) => subnet
            .prefix
            .hosts()
            .filter(|address| *address != subnet.gateway)
            .map(|address| Lease {
                mac: mac(address.into()),
                v4: Some(address),
            })
            .find(is_free),
        None => (1..1 << 24)
            .map(|number| Lease {
                mac: mac(number),
                v4: None,
            })
            .find(is_free),
    }
}

#[cfg(test)]
#[path = "segment_test.rs"]
mod test;
