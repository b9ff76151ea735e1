//! `favo doctor`: what this host can do, and what favo would use.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use favo_types::ByteCount;
use favo_vmm::engine::{self, EngineSurvey};
use serde::Serialize;

use crate::Failure;
use crate::output::{Format, FormatArgs, print_json, print_line};

/// Arguments of `favo doctor`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    format: FormatArgs,
}

/// What was found.
#[derive(Serialize)]
struct Report {
    processors: usize,
    memory_bytes: ByteCount,
    #[serde(flatten)]
    engines: EngineSurvey,
    state_directory: Option<PathBuf>,
    tools: Vec<Tool>,
}

/// A program that image builds use.
#[derive(Serialize)]
struct Tool {
    name: &'static str,
    package: &'static str,
    present: bool,
}

/// Programs image builds use, with the Debian packages that hold them.
const TOOLS: [(&str, &str); 3] =
    [("mmdebstrap", "mmdebstrap"), ("mke2fs", "e2fsprogs"), ("apt-get", "apt")];

/// Runs `favo doctor`.
pub fn run(args: Args) -> Result<ExitCode, Failure> {
    let report = Report {
        processors: std::thread::available_parallelism().map_or(1, usize::from),
        memory_bytes: favo_vmm::machine::host_memory(),
        engines: engine::survey(),
        state_directory: favo_image::state_directory().ok(),
        tools: TOOLS.map(|(name, package)| tool(name, package)).into(),
    };
    let usable = report.engines.engine.is_some();
    match args.format.output {
        Format::Json => print_json(&report)?,
        Format::Table => print_report(&report),
    }
    Ok(if usable { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn tool(name: &'static str, package: &'static str) -> Tool {
    let present = Command::new("sh").args(["-c", "command -v \"$0\"", name]).output();
    Tool { name, package, present: present.is_ok_and(|output| output.status.success()) }
}

fn print_report(report: &Report) {
    let line = |name: &str, value: String| print_line(&format!("{name:<12} {value}"));
    line("host", format!("{} processors, {} of memory", report.processors, report.memory_bytes));
    for found in &report.engines.engines {
        let state = match (&found.unavailable, found.instructions_per_second) {
            (Some(reason), _) => format!("no: {reason}"),
            (None, Some(speed)) => {
                format!("works, {} instructions a second", engine::millions(speed))
            }
            (None, None) => "works".to_owned(),
        };
        line(&found.engine.to_string(), state);
    }
    let chosen =
        report.engines.engine.map_or_else(|| "none".to_owned(), |engine| engine.to_string());
    line("engine", format!("{chosen}: {}", report.engines.reason));
    let state = report.state_directory.as_ref();
    line("state", state.map_or_else(|| "no home directory".to_owned(), |path| path.display().to_string()));
    for tool in &report.tools {
        let state = if tool.present {
            "there".to_owned()
        } else {
            format!("missing: apt-get install {} (for image builds)", tool.package)
        };
        line(tool.name, state);
    }
}
