//! The host's apt: which Debian archive it uses, and packages through it.
//!
//! Nothing here names a mirror. apt itself reads the host's sources, in whichever form they
//! are, and tells what it has understood (`apt-get indextargets`). It does not tell which key
//! a source is signed by; that is looked up in the file apt names for the source.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::IoContext;
use crate::tool::Tool;
use crate::{ImageError, NoProgress, Progress};

/// Debian's own keys, for suites the host has no source for.
const DEBIAN_KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Suites of Debian's own archive that a host may have, with other suites beside each.
const DEBIAN_SUITES: [&str; 12] = [
    "buster",
    "bullseye",
    "bookworm",
    "trixie",
    "forky",
    "duke",
    "sid",
    "oldoldstable",
    "oldstable",
    "stable",
    "testing",
    "unstable",
];

/// One archive with some of its suites: a stanza of a deb822 sources file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AptSource {
    uri: String,
    suites: Vec<String>,
    signed_by: Option<String>,
}

/// A source the host has, one suite of it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct HostTarget {
    uri: String,
    suite: String,
    codename: Option<String>,
    component: String,
    label: Option<String>,
    /// The file and the number of the entry in it.
    file: Option<PathBuf>,
}

/// The sources for a Debian suite: the host's own where it has that suite, else its Debian
/// archive with the other suite; or `mirror` instead of both.
pub(super) fn debian_sources(
    suite: &str,
    mirror: Option<&str>,
) -> Result<Vec<AptSource>, ImageError> {
    if let Some(uri) = mirror {
        return Ok(vec![AptSource {
            uri: uri.into(),
            suites: vec![suite.into(), format!("{suite}-updates")],
            signed_by: debian_keyring(),
        }]);
    }
    let format = "$(CREATED_BY)|$(REPO_URI)|$(RELEASE)|$(CODENAME)|$(COMPONENT)|$(LABEL)|\
                  $(SOURCESENTRY)";
    let listing = Tool::new("apt-get")
        .args(["indextargets", "--format", format])
        .run(&NoProgress, |_| {})?;
    choose(
        suite,
        &parse_targets(&listing),
        &signed_by,
        debian_keyring(),
    )
    .ok_or_else(|| ImageError::NoAptSource {
        reason: format!("none of its sources is a Debian archive that could have {suite}"),
    })
}

fn debian_keyring() -> Option<String> {
    Path::new(DEBIAN_KEYRING)
        .exists()
        .then(|| DEBIAN_KEYRING.into())
}

/// Reads what indextargets printed; what apt does not know stays as `$(NAME)`.
fn parse_targets(listing: &str) -> Vec<HostTarget> {
    let known = |field: &str| (!field.starts_with("$(") && !field.is_empty()).then(|| field.into());
    listing
        .lines()
        .filter_map(|line| {
            let [created_by, uri, suite, codename, component, label, entry] =
                line.split('|').collect::<Vec<_>>().try_into().ok()?;
            (created_by == "Packages").then(|| HostTarget {
                uri: uri.trim_end_matches('/').into(),
                suite: suite.trim_end_matches('/').into(),
                codename: known(codename),
                component: component.into(),
                label: known(label),
                file: known(entry).and_then(|entry| Some(PathBuf::from(entry.rsplit_once(':')?.0))),
            })
        })
        .collect()
}

/// The part of Debian a target is of: the archive itself, or its security updates.
fn is_debian(target: &HostTarget) -> bool {
    target.component == "main"
        && DEBIAN_SUITES.contains(&target.suite.as_str())
        && target
            .label
            .as_deref()
            .is_none_or(|label| label == "Debian")
}

fn is_security(target: &HostTarget) -> bool {
    target.component == "main"
        && target
            .suite
            .strip_suffix("-security")
            .is_some_and(|base| DEBIAN_SUITES.contains(&base))
}

fn choose(
    suite: &str,
    targets: &[HostTarget],
    signed_by: &dyn Fn(&HostTarget) -> Option<String>,
    keyring: Option<String>,
) -> Option<Vec<AptSource>> {
    let archive = targets.iter().find(|target| is_debian(target))?;
    let security = targets.iter().find(|target| is_security(target));
    let is_of_suite = |target: &HostTarget| {
        let plain = target.codename.as_deref().unwrap_or(&target.suite);
        plain == suite
    };
    let own = targets.iter().find(|t| is_debian(t) && is_of_suite(t));
    let source = |target: &HostTarget, suites: &[String], same: bool| AptSource {
        uri: target.uri.clone(),
        suites: suites.to_vec(),
        signed_by: signed_by(target).or_else(|| keyring.clone().filter(|_| !same)),
    };
    let updates = format!("{suite}-updates");
    let has_updates = targets
        .iter()
        .any(|target| target.uri == archive.uri && target.suite.ends_with("-updates"));
    let mut suites = vec![suite.to_string()];
    if has_updates {
        suites.push(updates);
    }
    let mut sources = vec![source(own.unwrap_or(archive), &suites, own.is_some())];
    if let Some(security) = security {
        sources.push(source(
            security,
            &[format!("{suite}-security")],
            own.is_some(),
        ));
    }
    Some(sources)
}

/// The Signed-By of a target's source: of the stanza or line in its file that names its
/// archive.
fn signed_by(target: &HostTarget) -> Option<String> {
    let file = target.file.as_ref()?;
    let text = fs::read_to_string(file).ok()?;
    signed_by_in(&text, &target.uri)
}

fn signed_by_in(text: &str, uri: &str) -> Option<String> {
    // deb822: stanzas of fields, a value going on in indented lines.
    for stanza in text.split("\n\n") {
        let names_uri = stanza
            .lines()
            .filter(|line| !line.starts_with('#'))
            .flat_map(str::split_ascii_whitespace)
            .any(|word| word.trim_end_matches('/') == uri);
        if !names_uri {
            continue;
        }
        let mut lines = stanza
            .lines()
            .skip_while(|line| !line.to_ascii_lowercase().starts_with("signed-by:"));
        if let Some(first) = lines.next() {
            let mut value = first["signed-by:".len()..].trim().to_string();
            for line in lines.take_while(|line| line.starts_with([' ', '\t'])) {
                let _ = write!(value, "\n{line}");
            }
            return Some(value);
        }
    }
    // One line: deb [arch=amd64 signed-by=/path] uri suite component…
    text.lines()
        .filter(|line| line.starts_with("deb "))
        .filter(|line| {
            line.split_ascii_whitespace()
                .any(|word| word.trim_end_matches('/') == uri)
        })
        .find_map(|line| {
            let options = line.split_once('[')?.1.split_once(']')?.0;
            options
                .split_ascii_whitespace()
                .find_map(|option| option.strip_prefix("signed-by="))
                .map(str::to_string)
        })
}

/// The sources as the text of a deb822 file.
pub(super) fn to_deb822(sources: &[AptSource]) -> String {
    let stanza = |source: &AptSource| {
        let mut text = format!(
            "Types: deb\nURIs: {}\nSuites: {}\nComponents: main\n",
            source.uri,
            source.suites.join(" ")
        );
        if let Some(key) = &source.signed_by {
            let _ = writeln!(text, "Signed-By: {key}");
        }
        text
    };
    sources.iter().map(stanza).collect::<Vec<_>>().join("\n")
}

/// The host's proxies and other network settings of apt, as configuration lines.
pub(super) fn network_options() -> Result<Vec<String>, ImageError> {
    let dump = Tool::new("apt-config")
        .args(["dump", "--format", "%F %v%n", "Acquire"])
        .run(&NoProgress, |_| {})?;
    Ok(dump
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(name, value)| {
            let name = name.to_ascii_lowercase();
            !value.is_empty() && name.contains("::proxy")
        })
        .map(|(name, value)| format!("{name} \"{value}\";"))
        .collect())
}

/// An apt of its own, beside the host's: the host's keys and network settings, but no file of
/// the host's package state is read or written, so no rights are needed.
#[derive(Debug)]
pub(super) struct PrivateApt {
    directory: PathBuf,
}

impl PrivateApt {
    /// Fetches the package lists of `sources`.
    pub fn new(
        directory: PathBuf,
        sources: &[AptSource],
        progress: &dyn Progress,
    ) -> Result<Self, ImageError> {
        for part in [
            "lists/partial",
            "cache/archives/partial",
            "parts",
            "packages",
        ] {
            let path = directory.join(part);
            fs::create_dir_all(&path).during("create", path)?;
        }
        for (file, text) in [
            ("debian.sources", to_deb822(sources)),
            ("status", String::new()),
        ] {
            let path = directory.join("parts").join(file);
            fs::write(&path, text).during("write", path)?;
        }
        let this = Self { directory };
        this.tool("apt-get")
            .args(["update", "--error-on=any"])
            .run(progress, |line| progress.note(line))?;
        Ok(this)
    }

    /// The packages `package` depends on whose names begin with `prefix`.
    pub fn dependencies(&self, package: &str, prefix: &str) -> Result<Vec<String>, ImageError> {
        let listing = self
            .tool("apt-cache")
            .args(["depends", "--important", package])
            .run(&NoProgress, |_| {})?;
        Ok(listing
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .filter(|name| name.starts_with(prefix))
            .map(str::to_string)
            .collect())
    }

    /// Downloads packages, verified; returns their files.
    pub fn download(
        &self,
        packages: &[&str],
        progress: &dyn Progress,
    ) -> Result<Vec<PathBuf>, ImageError> {
        let into = self.directory.join("packages");
        self.tool("apt-get")
            .arg("download")
            .args(packages.iter().copied())
            .directory(&into)
            .run(progress, |line| progress.note(line))?;
        packages
            .iter()
            .map(|package| {
                let prefix = format!("{package}_");
                fs::read_dir(&into)
                    .during("read", &into)?
                    .flatten()
                    .find(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
                    .map(|entry| entry.path())
                    .ok_or_else(|| ImageError::Content {
                        what: format!("package {package}"),
                        reason: "apt did not download it".into(),
                    })
            })
            .collect()
    }

    fn tool(&self, program: &str) -> Tool {
        let mut tool = Tool::new(program);
        for (option, part) in [
            ("Dir::Etc::SourceList", "/dev/null"),
            ("Dir::Etc::SourceParts", "parts"),
            ("Dir::State", ""),
            ("Dir::State::Lists", "lists"),
            ("Dir::State::Status", "parts/status"),
            ("Dir::Cache", "cache"),
        ] {
            let path = self.directory.join(part);
            tool = tool.arg("-o").arg(format!("{option}={}", path.display()));
        }
        for option in [
            "APT::Architecture=amd64",
            "APT::Architectures=amd64",
            "APT::Sandbox::User=root",
            "Acquire::Languages=none",
            // The host's extras (contents, component metadata, hooks) are of no use here.
            "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false",
            "APT::Update::Post-Invoke-Success=",
            "Dpkg::Use-Pty=0",
            "quiet=1",
        ] {
            tool = tool.arg("-o").arg(option);
        }
        tool
    }
}

#[cfg(test)]
#[path = "apt_test.rs"]
mod test;
