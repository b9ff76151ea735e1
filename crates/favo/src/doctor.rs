//! `favo doctor`: what this host can do.

use std::path::PathBuf;
use std::process::ExitCode;

use favo_sandbox::survey::{Layer, survey};
use favo_types::ByteCount;
use favo_vmm::engine::{self, EngineSurvey};
use favo_vmm::machine::host_memory;
use serde::Serialize;

use crate::Failure;
use crate::output::{self, Format, FormatArgs};

/// The programs image builds run, and the Debian packages they are in.
const TOOLS: [(&str, &str); 4] = [
    ("mmdebstrap", "mmdebstrap"),
    ("mke2fs", "e2fsprogs"),
    ("apt-get", "apt"),
    ("dpkg-deb", "dpkg"),
];

/// Says what this host can do, and which engine favo would use.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    format: FormatArgs,
}

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    engines: EngineSurvey,
    cpu: String,
    cpus: usize,
    memory: ByteCount,
    kvm_device: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    state_directory: Option<PathBuf>,
    sandbox: Vec<Layer>,
    tools: Vec<Tool>,
}

#[derive(Serialize)]
struct Tool {
    name: &'static str,
    package: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<PathBuf>,
}

/// Runs the subcommand. Succeeds if there is an engine.
pub fn run(args: Args) -> Result<ExitCode, Failure> {
    let report = Report {
        engines: engine::survey(),
        cpu: cpu_model(),
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        memory: host_memory(),
        kvm_device: kvm_device(),
        state_directory: favo_image::state_directory().ok(),
        sandbox: survey(),
        tools: TOOLS
            .into_iter()
            .map(|(name, package)| Tool {
                name,
                package,
                path: find_program(name),
            })
            .collect(),
    };
    match args.format.output {
        Format::Json => output::print_json(&report)?,
        Format::Table => print(&report),
    }
    Ok(match report.engines.engine {
        Some(_) => ExitCode::SUCCESS,
        None => ExitCode::FAILURE,
    })
}

fn print(report: &Report) {
    let line = |name: &str, text: String| output::print_line(&format!("{name:<19}{text}"));
    let EngineSurvey {
        engine,
        reason,
        engines,
    } = &report.engines;
    match engine {
        Some(engine) => line("engine", format!("{engine}: {reason}")),
        None => line("engine", format!("none: {reason}")),
    }
    for other in engines {
        let text = match (other.instructions_per_second, &other.unavailable) {
            (Some(speed), _) => format!("{} instructions a second", engine::millions(speed)),
            (None, Some(reason)) => reason.clone(),
            (None, None) => "not measured".to_owned(),
        };
        line(&format!("  {}", other.engine), text);
    }
    line("cpu", format!("{}, {} threads", report.cpu, report.cpus));
    line("memory", report.memory.to_string());
    line("/dev/kvm", report.kvm_device.clone());
    let state = report.state_directory.as_ref();
    line(
        "state",
        state.map_or_else(
            || "nowhere: set HOME or FAVO_STATE_DIR".to_owned(),
            |path| path.display().to_string(),
        ),
    );
    line("sandbox", String::new());
    for layer in &report.sandbox {
        let not = if layer.in_force { "" } else { "NOT IN FORCE: " };
        line(
            &format!("  {}", layer.layer),
            format!("{not}{}", layer.detail),
        );
    }
    for tool in &report.tools {
        let text = match &tool.path {
            Some(path) => path.display().to_string(),
            None => format!(
                "missing; image builds need it (sudo apt-get install {})",
                tool.package
            ),
        };
        line(tool.name, text);
    }
}

fn cpu_model() -> String {
    std::fs::read_to_string("/proc/cpuinfo")
        .ok()
        .and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        })
        .unwrap_or_else(|| "unknown".to_owned())
}

fn kvm_device() -> String {
    let opened = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm");
    match opened {
        Ok(_) => "can be opened".to_owned(),
        Err(error) => format!("can't be opened: {error}"),
    }
}

fn find_program(name: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .chain(["/sbin".into(), "/usr/sbin".into()])
        .map(|directory| directory.join(name))
        .find(|file| {
            file.metadata()
                .is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
        })
}
