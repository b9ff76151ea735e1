//! Landlock: which files a thread still reaches by name.
//!
//! One rule set is made for the process; every thread restricts itself with
//! it. Descriptors that are open stay usable.

use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, Erratum, LandlockStatus, PathBeneath,
    PathFd, RestrictionStatus, Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr,
    RulesetStatus, Scope,
};

use crate::{Policy, SandboxError};

/// The newest version of Landlock whose rights are known here; an older kernel
/// enforces those it has.
const NEWEST: ABI = ABI::V7;

/// The process' rule set.
pub(crate) struct Files {
    rules: RulesetCreated,
}

impl Files {
    /// On a kernel without Landlock it restricts nothing.
    pub(crate) fn new(policy: &Policy) -> Result<Self, SandboxError> {
        let failed = |error| SandboxError::new("making Landlock's rules", error);
        let mut rules = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(NEWEST))
            .map_err(failed)?
            .scope(scopes())
            .map_err(failed)?
            .create()
            .map_err(failed)?;
        let allowed = policy
            .read
            .iter()
            .map(|path| (path, AccessFs::ReadFile))
            .chain(
                policy
                    .remove
                    .iter()
                    .map(|path| (path, AccessFs::RemoveFile)),
            );
        for (path, access) in allowed {
            rules = allow(rules, path, access.into()).map_err(failed)?;
        }
        Ok(Self { rules })
    }

    /// Restricts the calling thread. Tells what the kernel enforces.
    pub(crate) fn restrict_thread(&self) -> Result<RestrictionStatus, SandboxError> {
        let failed = |reason: String| SandboxError::new("restricting files by Landlock", reason);
        let status = self
            .rules
            .try_clone()
            .map_err(|error| failed(error.to_string()))?
            .restrict_self()
            .map_err(|error| failed(error.to_string()))?;
        match (&status.ruleset, &status.landlock) {
            (RulesetStatus::NotEnforced, LandlockStatus::Available { .. }) => {
                Err(failed("the kernel enforces nothing".to_owned()))
            }
            _ => Ok(status),
        }
    }
}

/// A path that isn't there needs no rule.
fn allow(
    rules: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, landlock::RulesetError> {
    match PathFd::new(path) {
        Ok(fd) => rules.add_rule(PathBeneath::new(fd, access)),
        Err(_) => Ok(rules),
    }
}

/// Each thread is a domain of its own. Kernels with a certain defect would
/// keep them from sending each other signals, which stop KVM's processors.
fn scopes() -> BitFlags<Scope> {
    let mut scopes = Scope::AbstractUnixSocket.into();
    if Erratum::current().contains(Erratum::ScopedSignalHandling) {
        scopes |= Scope::Signal;
    }
    scopes
}
