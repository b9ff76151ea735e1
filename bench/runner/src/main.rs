//! Runs fixed pieces of work (`bench/guest`) natively, on favo's software CPU
//! and on QEMU's TCG, in turn, and says how they compare.
//!
//! `bench/work` calls it, with everything it needs built. It never prints a
//! figure without having checked it: the checksum of each piece must be the
//! same everywhere, and a guest's clock must agree with the host's.
#![forbid(unsafe_code)]

mod comparison;
mod console;
mod initramfs;
mod machine;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use comparison::Comparison;
use machine::{Machine, Setup};

/// Fixed pieces of work, natively, on favo and on QEMU's TCG
#[derive(Parser)]
#[command(name = "bench/work")]
struct Args {
    /// The program of the pieces of work, statically linked
    #[arg(long, value_name = "FILE")]
    program: PathBuf,

    /// The favo to measure
    #[arg(long, value_name = "FILE")]
    favo: PathBuf,

    /// The kernel the guests boot
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,

    /// How much of each piece to do: 0.1 is a tenth
    #[arg(long, default_value = "1", value_name = "FACTOR", value_parser = positive)]
    scale: f64,

    /// Only these pieces of work
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    only: Vec<String>,

    /// Only on these
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = Machine::ALL, value_name = "MACHINE,…")]
    on: Vec<Machine>,

    /// How often; the table shows medians
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,

    /// Processors of each guest, and how many the native program may use
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: u32,

    /// Memory of each guest, in MiB
    #[arg(long, default_value_t = 512, value_name = "MIB", value_parser = clap::value_parser!(u32).range(256..=65536))]
    memory: u32,

    /// The longest one run may take, in seconds
    #[arg(long, default_value_t = 1800, value_name = "SECONDS")]
    timeout: u64,

    /// How to print it
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Format {
    /// For people
    #[default]
    Table,
    /// For programs
    Json,
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number <= 1000.0 => Ok(number),
        _ => Err("a number above 0, at most 1000".to_owned()),
    }
}

#[derive(thiserror::Error, Debug)]
enum Error {
    #[error("the initial RAM disk can't be made: {0}")]
    Initramfs(std::io::Error),
    #[error("the result can't be printed as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<ExitCode, Error> {
    let initrd = initramfs::with_init(&args.program).map_err(Error::Initramfs)?;
    let setup = Setup {
        program: &args.program,
        favo: &args.favo,
        kernel: &args.kernel,
        initrd: initrd.path(),
        pieces: &args.only,
        scale: args.scale,
        cpus: args.cpus,
        memory_mib: args.memory,
        timeout: Duration::from_secs(args.timeout),
    };

    let mut comparison = Comparison::new(&args.only);
    if let Some(warning) = comparison.warning() {
        eprintln!("bench: warning: {warning}");
    }
    for round in 1..=args.rounds {
        for &machine in &args.on {
            eprintln!("bench: round {round} of {}: {machine}", args.rounds);
            comparison.add(machine, setup.run(machine));
        }
    }
    let report = comparison.report(&setup, args.rounds, &args.on);
    match args.output {
        Format::Table => println!("{report}"),
        Format::Json => println!("{}", serde_json::to_string_pretty(&report)?),
    }
    for problem in &report.problems {
        eprintln!("bench: WRONG: {problem}");
    }
    Ok(if report.problems.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
