//! Which engine runs a machine's processors, and why that one.
//!
//! Opening `/dev/kvm` proves nothing: on some clouds it interprets guests at a
//! million instructions a second. So the choice is made by measuring a tiny
//! guest on each engine ([`favo_accel::probe`]).

use std::fmt;
use std::sync::Arc;

use favo_accel::probe::{Speed, probe};
use favo_accel::{AccelError, Accelerator, EngineKind};
use favo_kvm::KvmAccelerator;
use favo_soft::SoftAccelerator;
use serde::Serialize;

/// What a user asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum EngineChoice {
    /// The faster of those there are.
    #[default]
    Auto,
    /// This one or none.
    Only(EngineKind),
}

/// An engine, opened, and why it was taken.
pub struct Engine {
    /// The engine.
    pub accelerator: Arc<dyn Accelerator>,
    /// Why this one: a sentence for people.
    pub reason: String,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("kind", &self.accelerator.kind())
            .field("reason", &self.reason)
            .finish()
    }
}

/// An engine on this host, measured.
#[derive(Clone, Debug, Serialize)]
pub struct EngineReport {
    /// Which engine.
    pub engine: EngineKind,
    /// How fast it is; absent if it can't be had.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instructions_per_second: Option<u64>,
    /// Why it can't be had, and what would help.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unavailable: Option<String>,
}

/// What was found on this host.
#[derive(Clone, Debug, Serialize)]
pub struct EngineSurvey {
    /// Which engine `--accel auto` takes; absent if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine: Option<EngineKind>,
    /// Why.
    pub reason: String,
    /// Each engine.
    pub engines: Vec<EngineReport>,
}

struct Candidate {
    kind: EngineKind,
    opened: Result<(Arc<dyn Accelerator>, Speed), AccelError>,
}

/// Opens an engine. [`EngineChoice::Auto`] measures those there are, which
/// takes some ten milliseconds.
pub fn open(choice: EngineChoice) -> Result<Engine, AccelError> {
    match choice {
        EngineChoice::Only(kind) => Ok(Engine {
            accelerator: open_kind(kind)?,
            reason: "it was asked for".to_owned(),
        }),
        EngineChoice::Auto => {
            let candidates = measure();
            let (index, reason) = choose(&speeds(&candidates));
            let mut candidates = candidates;
            match index {
                Some(index) => {
                    let (accelerator, _) = candidates.swap_remove(index).opened?;
                    Ok(Engine {
                        accelerator,
                        reason,
                    })
                }
                // The software engine's reason comes last, as it is always meant to be there.
                None => Err(candidates
                    .into_iter()
                    .filter_map(|candidate| candidate.opened.err())
                    .next_back()
                    .unwrap_or(AccelError::Unsupported(reason))),
            }
        }
    }
}

/// Measures every engine, for a report.
pub fn survey() -> EngineSurvey {
    let candidates = measure();
    let (index, reason) = choose(&speeds(&candidates));
    EngineSurvey {
        engine: index.map(|index| candidates[index].kind),
        reason,
        engines: candidates
            .iter()
            .map(|candidate| EngineReport {
                engine: candidate.kind,
                instructions_per_second: candidate
                    .opened
                    .as_ref()
                    .ok()
                    .map(|(_, speed)| speed.instructions_per_second),
                unavailable: candidate.opened.as_ref().err().map(ToString::to_string),
            })
            .collect(),
    }
}

fn open_kind(kind: EngineKind) -> Result<Arc<dyn Accelerator>, AccelError> {
    Ok(match kind {
        EngineKind::Soft => Arc::new(SoftAccelerator::new()?),
        EngineKind::Kvm => Arc::new(KvmAccelerator::open()?),
    })
}

fn measure() -> Vec<Candidate> {
    [EngineKind::Kvm, EngineKind::Soft]
        .into_iter()
        .map(|kind| Candidate {
            kind,
            opened: open_kind(kind).and_then(|accelerator| {
                let speed = probe(accelerator.as_ref())?;
                Ok((accelerator, speed))
            }),
        })
        .collect()
}

fn speeds(candidates: &[Candidate]) -> Vec<(EngineKind, Result<u64, String>)> {
    candidates
        .iter()
        .map(|candidate| {
            let speed = match &candidate.opened {
                Ok((_, speed)) => Ok(speed.instructions_per_second),
                Err(error) => Err(error.to_string()),
            };
            (candidate.kind, speed)
        })
        .collect()
}

/// The fastest, and why it is taken.
fn choose(speeds: &[(EngineKind, Result<u64, String>)]) -> (Option<usize>, String) {
    let fastest = speeds
        .iter()
        .enumerate()
        .filter_map(|(index, (_, speed))| Some((index, *speed.as_ref().ok()?)))
        .max_by_key(|(_, speed)| *speed);
    let Some((index, speed)) = fastest else {
        return (None, "no engine can be had here".to_owned());
    };
    let others: Vec<String> = speeds
        .iter()
        .enumerate()
        .filter(|(other, _)| *other != index)
        .map(|(_, (kind, speed))| match speed {
            Ok(speed) => format!("{kind} does {}", millions(*speed)),
            Err(reason) => reason.clone(),
        })
        .collect();
    let mut reason = format!("it runs {} instructions a second", millions(speed));
    if !others.is_empty() {
        reason = format!("{reason}; {}", others.join("; "));
    }
    (Some(index), reason)
}

/// A speed as people read it: `1.6 million`.
pub fn millions(per_second: u64) -> String {
    let tenths = per_second / 100_000;
    if tenths >= 1000 {
        format!("{} million", tenths / 10)
    } else {
        format!("{}.{} million", tenths / 10, tenths % 10)
    }
}

#[cfg(test)]
#[path = "engine_test.rs"]
mod test;
