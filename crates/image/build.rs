//! Builds the agent as a static program, for `include_bytes!` in src/initramfs.rs.
//!
//! A nested cargo with its own target directory: the agent is linked statically and for size,
//! which is not how the rest of the workspace is built. It needs nothing from the network: the
//! agent's library is a dependency of this crate, so its dependencies are there already.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "x86_64-unknown-linux-gnu";
const PROFILE: &str = "agent";

fn main() {
    let workspace = PathBuf::from(variable("CARGO_MANIFEST_DIR")).join("../..");
    for watched in [
        "crates/agent/src",
        "crates/agent/Cargo.toml",
        "Cargo.toml",
        "Cargo.lock",
    ] {
        println!(
            "cargo::rerun-if-changed={}",
            workspace.join(watched).display()
        );
    }
    let directory = PathBuf::from(variable("OUT_DIR")).join("agent");
    if let Err(reason) = build(&workspace, &directory) {
        println!("cargo::error=the guest's agent: {reason}");
        return;
    }
    let program = directory.join(TARGET).join(PROFILE).join("favo-agent");
    println!("cargo::rustc-env=FAVO_AGENT={}", program.display());
}

fn build(workspace: &Path, directory: &Path) -> Result<(), String> {
    let mut cargo = Command::new(variable("CARGO"));
    // This build's own settings (flags, wrappers, profiles of check, clippy or coverage runs)
    // must not reach the nested one; where cargo and its registries are must.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let kept = [
            "CARGO_HOME",
            "CARGO_NET_",
            "CARGO_HTTP_",
            "CARGO_REGISTR",
            "CARGO_SOURCE_",
        ];
        let is_cargos = text.starts_with("CARGO") && !kept.iter().any(|k| text.starts_with(k));
        let is_rustcs = text.starts_with("RUSTC") || text.starts_with("RUSTFLAGS");
        if is_cargos || is_rustcs || text.starts_with("CLIPPY") {
            cargo.env_remove(&name);
        }
    }
    let status = cargo
        .current_dir(workspace)
        .args(["build", "--quiet", "--frozen", "--package", "favo-agent"])
        .args([
            "--bin",
            "favo-agent",
            "--profile",
            PROFILE,
            "--target",
            TARGET,
        ])
        .arg("--target-dir")
        .arg(directory)
        .env(
            "RUSTFLAGS",
            "-Ctarget-feature=+crt-static -Crelocation-model=static",
        )
        .status()
        .map_err(|e| format!("run cargo: {e}"))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("cargo build failed ({status})"))
    }
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|e| panic!("{name}: {e}; cargo sets it for build scripts"))
}
