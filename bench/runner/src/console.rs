//! What the program of the pieces of work says (`bench/guest/main.c`), line by
//! line, as a guest's console or the program's own output brings it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// What became of one piece of work.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It ran.
    Done {
        /// On the machine's own clock.
        seconds: f64,
        /// Of its result.
        checksum: u64,
    },
    /// The machine lacks what the piece needs.
    Unsupported {
        /// What that is.
        reason: String,
    },
}

/// One complete run of the program on one machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// By the names of the pieces.
    pub outcomes: BTreeMap<String, Outcome>,
    /// From begin to end on the machine's own clock, in seconds.
    pub machine_seconds: f64,
    /// The same by the host's clock.
    pub host: Duration,
}

/// Reads lines until the run is complete.
#[derive(Default)]
pub struct Console {
    begun: Option<Instant>,
    outcomes: BTreeMap<String, Outcome>,
    last_lines: Vec<String>,
}

/// What a line led to.
#[derive(Debug, PartialEq)]
pub enum Progress {
    /// More is to come.
    Running,
    /// That was the last line.
    Complete(Run),
    /// The program says it failed.
    Failed(String),
}

/// Lines kept to show if the machine stops early.
const KEPT_LINES: usize = 12;

impl Console {
    /// Takes in a line that came at `time`. Whatever is not the program's, like
    /// the kernel's messages, is passed over.
    pub fn line(&mut self, time: Instant, line: &str) -> Progress {
        let line = line.trim();
        if line.is_empty() {
            return Progress::Running;
        }
        if self.last_lines.len() == KEPT_LINES {
            self.last_lines.remove(0);
        }
        self.last_lines.push(line.to_owned());

        if let Some(said) = line.strip_prefix("bench: ") {
            return self.marker(time, said);
        }
        if self.begun.is_some()
            && let Some((name, outcome)) = outcome(line)
        {
            self.outcomes.insert(name, outcome);
        }
        Progress::Running
    }

    fn marker(&mut self, time: Instant, said: &str) -> Progress {
        if let Some(why) = said.strip_prefix("failed: ") {
            return Progress::Failed(why.to_owned());
        }
        if said == "begin" {
            self.begun = Some(time);
            return Progress::Running;
        }
        let machine_seconds = said.strip_prefix("end ").and_then(seconds);
        match (machine_seconds, self.begun) {
            (Some(machine_seconds), Some(begun)) => Progress::Complete(Run {
                outcomes: std::mem::take(&mut self.outcomes),
                machine_seconds,
                host: time.duration_since(begun),
            }),
            _ => Progress::Running,
        }
    }

    /// The last lines there were, for an error to show.
    pub fn last_lines(&self) -> String {
        self.last_lines.join("\n  ")
    }
}

fn seconds(text: &str) -> Option<f64> {
    text.parse::<f64>()
        .ok()
        .filter(|seconds| seconds.is_finite() && *seconds >= 0.0)
}

/// `NAME SECONDS CHECKSUM` or `NAME unsupported REASON`.
fn outcome(line: &str) -> Option<(String, Outcome)> {
    let (name, rest) = line.split_once(' ')?;
    let (word, rest) = rest.split_once(' ')?;
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return None;
    }
    let outcome = if word == "unsupported" {
        Outcome::Unsupported {
            reason: rest.to_owned(),
        }
    } else {
        if rest.len() != 16 {
            return None;
        }
        Outcome::Done {
            seconds: seconds(word)?,
            checksum: u64::from_str_radix(rest, 16).ok()?,
        }
    };
    Some((name.to_owned(), outcome))
}

#[cfg(test)]
#[path = "console_test.rs"]
mod test;
