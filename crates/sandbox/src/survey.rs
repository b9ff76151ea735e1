//! What of the sandbox this host has: `favo doctor`.

use std::fmt::Display;

use favo_thread::ThreadKind;
use landlock::{LandlockStatus, RulesetStatus};
use serde::Serialize;

use crate::{Policy, SandboxError, files, filter, privileges};

/// A layer of the sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Layer {
    /// What it is called.
    pub layer: &'static str,
    /// Whether a machine here is confined by it.
    pub in_force: bool,
    /// What it does, or why it isn't there and what would help.
    pub detail: String,
}

/// Puts up every layer around a thread that ends at once, and tells what came
/// of it.
pub fn survey() -> Vec<Layer> {
    std::thread::spawn(layers).join().unwrap_or_default()
}

fn layers() -> Vec<Layer> {
    let mut layers = Vec::new();
    let mut add = |layer, result: Result<String, String>| {
        layers.push(Layer {
            layer,
            in_force: result.is_ok(),
            detail: result.unwrap_or_else(|reason| reason),
        });
    };
    let limits = privileges::limit_process();
    add(
        "memory",
        told(limits, "no core dump, no debugger, no more descriptors"),
    );
    let rights = rustix::thread::set_no_new_privs(true);
    add("no new privileges", told(rights, "no program gives rights"));
    add("landlock", landlock());
    let capabilities = privileges::drop_capabilities();
    add("capabilities", told(capabilities, "none"));
    let lists = ThreadKind::ALL.len();
    let filters =
        filter::Filters::compile().and_then(|filters| filters.apply(ThreadKind::Launcher));
    let detail = format!("system calls by list, {lists} kinds of threads");
    add("seccomp", told(filters, &detail));
    layers
}

fn told<E: Display>(result: Result<(), E>, detail: &str) -> Result<String, String> {
    match result {
        Ok(()) => Ok(detail.to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn landlock() -> Result<String, String> {
    let status = files::Files::new(&Policy::default())
        .and_then(|files| files.restrict_thread())
        .map_err(|error: SandboxError| error.to_string())?;
    match (status.landlock, status.ruleset) {
        (LandlockStatus::Available { .. }, RulesetStatus::FullyEnforced) => {
            Ok("files, abstract sockets and other processes are out of reach".to_owned())
        }
        (LandlockStatus::Available { .. }, _) => Ok(
            "files are out of reach; this kernel can't do all that newer ones can (6.12 keeps \
             abstract sockets and other processes away, too)"
                .to_owned(),
        ),
        (LandlockStatus::NotEnabled, _) => Err(
            "the kernel has it, but doesn't use it: add landlock to the kernel's lsm= parameter"
                .to_owned(),
        ),
        (LandlockStatus::NotImplemented, _) => {
            Err("the kernel doesn't have it; Linux 5.13 does".to_owned())
        }
    }
}
