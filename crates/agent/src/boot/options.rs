//! What the kernel's command line tells the agent.

use std::time::Duration;

use crate::protocol::DEFAULT_VSOCK_PORT;

/// Which life process 1 leads once the root disk is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Serve the host: run its commands, then power off.
    Run,
    /// Become the distribution's own init.
    #[default]
    Boot,
}

/// The agent's part of the command line: parameters that begin with `favo.`; all others are
/// the kernel's or the init's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// `favo.mode=run|boot`; without it, boot.
    pub mode: Mode,
    /// `favo.root=DEVICE`, by default `/dev/vda`.
    pub root: String,
    /// `favo.rootfstype=TYPE`, by default `ext4`.
    pub root_type: String,
    /// `favo.rootflags=OPTIONS`, the file system's mount options.
    pub root_flags: String,
    /// `favo.ro`: mount the root read-only.
    pub read_only: bool,
    /// `favo.timeout=SECONDS` to wait for the root disk, by default 30.
    pub root_timeout: Duration,
    /// `favo.port=PORT` of the host to connect to over vsock, by default
    /// [`DEFAULT_VSOCK_PORT`].
    pub port: u32,
    /// `favo.hostname=NAME`; without it /etc/hostname.
    pub hostname: Option<String>,
    /// `favo.init=PROGRAM` instead of the distribution's own.
    pub init: Option<String>,
    /// `favo.stay`: in mode boot, an agent stays beside the init and serves the
    /// host.
    pub stay: bool,
}

/// A parameter the agent cannot follow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{parameter}: {expected}")]
pub struct OptionsError {
    parameter: String,
    expected: &'static str,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            root: "/dev/vda".into(),
            root_type: "ext4".into(),
            root_flags: String::new(),
            read_only: false,
            root_timeout: Duration::from_secs(30),
            port: DEFAULT_VSOCK_PORT,
            hostname: None,
            init: None,
            stay: false,
        }
    }
}

impl Options {
    /// Reads a command line. An unknown `favo.` parameter is an error: it was meant for us.
    pub fn parse(command_line: &str) -> Result<Self, OptionsError> {
        let mut options = Self::default();
        for parameter in split(command_line) {
            let Some(own) = parameter.strip_prefix("favo.") else {
                continue;
            };
            let error = |expected| OptionsError {
                parameter: parameter.clone(),
                expected,
            };
            let (name, value) = own.split_once('=').unwrap_or((own, ""));
            match name {
                "mode" => {
                    options.mode = match value {
                        "run" => Mode::Run,
                        "boot" => Mode::Boot,
                        _ => return Err(error("the mode is `run` or `boot`")),
                    }
                }
                "root" if value.starts_with("/dev/") => options.root = value.into(),
                "root" => return Err(error("the root is a device under /dev/")),
                "rootfstype" => options.root_type = value.into(),
                "rootflags" => options.root_flags = value.into(),
                "ro" => options.read_only = true,
                "timeout" => {
                    let seconds = value.parse().map_err(|_| error("a number of seconds"))?;
                    options.root_timeout = Duration::from_secs(seconds);
                }
                "port" => options.port = value.parse().map_err(|_| error("a port number"))?,
                "hostname" => options.hostname = Some(value.into()),
                "init" => options.init = Some(value.into()),
                "stay" => options.stay = true,
                _ => return Err(error("the agent knows no such parameter")),
            }
        }
        Ok(options)
    }
}

/// The parameters that [`Options::parse`] reads as these options: what the host adds to a
/// kernel's command line. Defaults are left out.
impl std::fmt::Display for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let default = Self::default();
        let mode = match self.mode {
            Mode::Run => "run",
            Mode::Boot => "boot",
        };
        write!(f, "favo.mode={mode}")?;
        let texts = [
            ("root", Some(&self.root), Some(&default.root)),
            (
                "rootfstype",
                Some(&self.root_type),
                Some(&default.root_type),
            ),
            (
                "rootflags",
                Some(&self.root_flags),
                Some(&default.root_flags),
            ),
            ("hostname", self.hostname.as_ref(), None),
            ("init", self.init.as_ref(), None),
        ];
        for (name, value, default) in texts {
            match value {
                Some(value) if Some(value) != default => write!(f, " \"favo.{name}={value}\"")?,
                _ => {}
            }
        }
        if self.read_only {
            f.write_str(" favo.ro")?;
        }
        if self.stay {
            f.write_str(" favo.stay")?;
        }
        if self.root_timeout != default.root_timeout {
            write!(f, " favo.timeout={}", self.root_timeout.as_secs())?;
        }
        if self.port != default.port {
            write!(f, " favo.port={}", self.port)?;
        }
        Ok(())
    }
}

/// Splits as the kernel does: at blanks that are not between double quotes.
fn split(command_line: &str) -> Vec<String> {
    let (mut parameters, mut current, mut quoted) = (Vec::new(), String::new(), false);
    for c in command_line.chars() {
        match c {
            '"' => quoted = !quoted,
            c if c.is_ascii_whitespace() && !quoted => {
                if !current.is_empty() {
                    parameters.push(std::mem::take(&mut current));
                }
            }
            c => current.push(c),
        }
    }
    if !current.is_empty() {
        parameters.push(current);
    }
    parameters
}

#[cfg(test)]
#[path = "options_test.rs"]
mod test;
