//! What the runs say together: medians, ratios, and what is wrong with them.

use std::collections::BTreeMap;
use std::fmt;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

use crate::console::{Outcome, Run};
use crate::machine::{self, Machine, Setup};

/// The most a machine's clock may differ from the host's over a run, as a part
/// of the longer of the two.
const CLOCK_TOLERANCE: f64 = 0.10;
/// What a console's delay can make of that in seconds, in a short run.
const CONSOLE_DELAY: f64 = 0.05;

/// The load from which on others disturb the measurement.
const BUSY: f64 = 0.5;

/// Runs as they come in.
pub struct Comparison {
    wanted: Vec<String>,
    pieces: BTreeMap<String, BTreeMap<Machine, Piece>>,
    problems: Vec<String>,
    host_load: Option<f64>,
}

/// One piece on one machine, over the rounds.
#[derive(Default)]
struct Piece {
    seconds: Vec<f64>,
    checksum: Option<u64>,
    unsupported: Option<String>,
}

/// What is printed, and the JSON.
#[derive(Serialize)]
pub struct Report {
    favo: String,
    qemu: String,
    kernel: String,
    host_cpu: String,
    /// When the first round began; the measured machines aren't in it.
    host_load: Option<f64>,
    cpus: u32,
    scale: f64,
    rounds: u32,
    work: Vec<Row>,
    /// Of TCG's seconds over favo's, over the pieces both ran: above 1, favo is
    /// ahead.
    geometric_mean_tcg_over_favo: Option<f64>,
    /// Of favo's seconds over the host's.
    geometric_mean_favo_over_native: Option<f64>,
    /// Why these figures don't count; empty if they do.
    pub problems: Vec<String>,
}

/// One piece of work: seconds are medians over the rounds.
#[derive(Serialize)]
struct Row {
    name: String,
    native: Option<f64>,
    favo: Option<f64>,
    tcg: Option<f64>,
    favo_over_native: Option<f64>,
    tcg_over_favo: Option<f64>,
    checksum: Option<String>,
    seconds: BTreeMap<Machine, Vec<f64>>,
    unsupported: BTreeMap<Machine, String>,
}

impl Comparison {
    /// Of these pieces; of all, if none is named.
    pub fn new(wanted: &[String]) -> Self {
        Self {
            wanted: wanted.to_vec(),
            pieces: BTreeMap::new(),
            problems: Vec::new(),
            host_load: host_load(),
        }
    }

    /// What makes the figures of this host doubtful, though not wrong.
    pub fn warning(&self) -> Option<String> {
        let load = self.host_load.filter(|load| *load >= BUSY)?;
        Some(format!(
            "the host is busy with other work (load {load:.1}): figures will be noisy, ratios too"
        ))
    }

    /// Takes in a run of `machine`, or why there is none.
    pub fn add(&mut self, machine: Machine, run: Result<Run, machine::Error>) {
        let run = match run {
            Ok(run) => run,
            Err(error) => {
                self.problems.push(format!("{machine}: {error}"));
                return;
            }
        };
        let host = run.host.as_secs_f64();
        let apart = (host - run.machine_seconds).abs();
        if apart > CLOCK_TOLERANCE * host.max(run.machine_seconds) + CONSOLE_DELAY {
            self.problems.push(format!(
                "{machine}: its clock is wrong: it counted {:.2} s while the host counted {host:.2} s",
                run.machine_seconds
            ));
        }
        for (name, outcome) in run.outcomes {
            let piece = self.pieces.entry(name.clone()).or_default();
            let piece = piece.entry(machine).or_default();
            match outcome {
                Outcome::Unsupported { reason } => piece.unsupported = Some(reason),
                Outcome::Done { seconds, checksum } => {
                    piece.seconds.push(seconds);
                    // A result that changes from round to round is wrong too.
                    let before = *piece.checksum.get_or_insert(checksum);
                    if before != checksum {
                        piece.checksum = Some(checksum);
                        self.problems.push(format!(
                            "{machine}: two results of {name}: {before:016x} and {checksum:016x}"
                        ));
                    }
                }
            }
        }
    }

    /// Compares, once all runs on `machines` are in.
    pub fn report(mut self, setup: &Setup<'_>, rounds: u32, machines: &[Machine]) -> Report {
        self.find_problems(machines);
        let work: Vec<Row> = self
            .pieces
            .into_iter()
            .map(|(name, piece)| row(name, piece))
            .collect();
        Report {
            favo: machine::version(setup.favo),
            qemu: machine::qemu_version(),
            kernel: setup.kernel.display().to_string(),
            host_cpu: host_cpu(),
            host_load: self.host_load,
            cpus: setup.cpus,
            scale: setup.scale,
            rounds,
            geometric_mean_tcg_over_favo: geometric_mean(
                work.iter().filter_map(|row| row.tcg_over_favo),
            ),
            geometric_mean_favo_over_native: geometric_mean(
                work.iter().filter_map(|row| row.favo_over_native),
            ),
            work,
            problems: self.problems,
        }
    }

    fn find_problems(&mut self, machines: &[Machine]) {
        for name in &self.wanted {
            if !self.pieces.contains_key(name) {
                self.problems.push(format!(
                    "{name}: no machine did this piece of work; is that its name?"
                ));
            }
        }
        for (name, piece) in &self.pieces {
            for machine in machines {
                if !piece.contains_key(machine) {
                    self.problems
                        .push(format!("{machine}: no result of {name}"));
                }
            }
            let results: Vec<_> = piece
                .iter()
                .filter_map(|(machine, piece)| Some((machine, piece.checksum?)))
                .collect();
            if results.windows(2).any(|pair| pair[0].1 != pair[1].1) {
                let each: Vec<_> = results
                    .iter()
                    .map(|(machine, checksum)| format!("{machine} {checksum:016x}"))
                    .collect();
                self.problems
                    .push(format!("{name}: results differ: {}", each.join(", ")));
            }
        }
    }
}

fn row(name: String, mut piece: BTreeMap<Machine, Piece>) -> Row {
    let checksum = piece.values().find_map(|piece| piece.checksum);
    let mut middle = |machine| {
        piece
            .get_mut(&machine)
            .and_then(|piece| median(&mut piece.seconds.clone()))
    };
    let (native, favo, tcg) = (
        middle(Machine::Native),
        middle(Machine::Favo),
        middle(Machine::Tcg),
    );
    let (mut seconds, mut unsupported) = (BTreeMap::new(), BTreeMap::new());
    for (machine, piece) in piece {
        seconds.insert(machine, piece.seconds);
        piece
            .unsupported
            .map(|reason| unsupported.insert(machine, reason));
    }
    Row {
        name,
        native,
        favo,
        tcg,
        favo_over_native: ratio(favo, native),
        tcg_over_favo: ratio(tcg, favo),
        checksum: checksum.map(|checksum| format!("{checksum:016x}")),
        seconds,
        unsupported,
    }
}

fn ratio(over: Option<f64>, under: Option<f64>) -> Option<f64> {
    Some(over? / under.filter(|under| *under > 0.0)?)
}

fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 {
        values.get(middle).copied()
    } else {
        Some((values.get(middle.checked_sub(1)?)? + values.get(middle)?) / 2.0)
    }
}

fn geometric_mean(ratios: impl Iterator<Item = f64>) -> Option<f64> {
    let logarithms: Vec<f64> = ratios.map(f64::ln).collect();
    (!logarithms.is_empty())
        .then(|| (logarithms.iter().sum::<f64>() / logarithms.len() as f64).exp())
}

/// Processes that want to run, averaged over the last minute.
fn host_load() -> Option<f64> {
    let load = std::fs::read_to_string("/proc/loadavg").ok()?;
    load.split(' ').next()?.parse().ok()
}

fn host_cpu() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    info.lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown", |(_, name)| name)
        .to_owned()
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |value: Option<f64>, digits| {
            value.map_or("–".to_owned(), |value| format!("{value:.digits$}"))
        };
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        table.set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(["WORK", "NATIVE", "FAVO", "TCG", "FAVO/NATIVE", "TCG/FAVO"]);
        for row in &self.work {
            table.add_row([
                row.name.clone(),
                number(row.native, 3),
                number(row.favo, 3),
                number(row.tcg, 3),
                number(row.favo_over_native, 2),
                number(row.tcg_over_favo, 2),
            ]);
        }
        table.add_row([
            "geometric mean".to_owned(),
            String::new(),
            String::new(),
            String::new(),
            number(self.geometric_mean_favo_over_native, 2),
            number(self.geometric_mean_tcg_over_favo, 2),
        ]);
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        writeln!(out, "{}", table.trim_fmt())?;
        for row in &self.work {
            for (machine, reason) in &row.unsupported {
                writeln!(out, "{} not done on {machine}: {reason}", row.name)?;
            }
        }
        write!(
            out,
            "seconds, medians of {}; scale {}, {} vCPU; {}; {}; host CPU {}, load {} before",
            self.rounds,
            self.scale,
            self.cpus,
            self.favo,
            self.qemu,
            self.host_cpu,
            number(self.host_load, 1)
        )
    }
}

#[cfg(test)]
#[path = "comparison_test.rs"]
mod test;
