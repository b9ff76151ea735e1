//! `favo apply` and `favo export`: an environment of instances as one YAML
//! file.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use favo_api::instance::{Create, Instance, Patch, Spec};
use favo_api::task::Accepted;
use favo_client::Method;
use favo_types::ByteCount;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::change::wait_for;
use super::{Daemon, show};
use crate::output::print_line;
use crate::{Failure, exit};

/// What the file has.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Environment {
    instances: Vec<Create>,
}

/// `favo apply`.
#[derive(clap::Args)]
pub struct ApplyArgs {
    /// The file; - is standard input.
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
}

/// What has to be done for an instance to be as the file has it.
enum Step {
    Create,
    /// Fields, with what they are and shall be.
    Change(Patch, Vec<String>),
    Nothing,
}

/// Makes instances as the file has them. Those it doesn't name are left alone.
pub fn apply(args: &ApplyArgs) -> Result<ExitCode, Failure> {
    let wanted = read(&args.file)?;
    let daemon = Daemon::of_state()?;
    let there = show::all(&daemon)?;
    // All of it is looked at before anything is done.
    let mut steps = Vec::new();
    for instance in wanted.instances {
        let found = there.iter().find(|found| found.name == instance.name);
        let step = match found {
            None => Step::Create,
            Some(found) => difference(&instance.name, &found.spec, &instance.spec)?,
        };
        steps.push((instance, step));
    }
    let mut accepted: Vec<Accepted> = Vec::new();
    for (instance, step) in steps {
        let name = &instance.name;
        match step {
            Step::Nothing => print_line(&format!("{name} is as it should be")),
            Step::Create => {
                print_line(&format!("{name} is created"));
                if !args.dry_run {
                    let path = "/v1/instances";
                    accepted.push(daemon.ask(Method::POST, path, Some(&instance))?);
                }
            }
            Step::Change(patch, lines) => {
                for line in lines {
                    print_line(&format!("{name}: {line}"));
                }
                if !args.dry_run {
                    let path = format!("/v1/instances/{name}");
                    accepted.push(daemon.ask(Method::PATCH, &path, Some(&patch))?);
                }
            }
        }
    }
    for accepted in &accepted {
        wait_for(&daemon, accepted)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn read(file: &Path) -> Result<Environment, Failure> {
    let failed = |error: &dyn std::fmt::Display| {
        let message = format!("{}: {error}", file.display());
        Failure::with_status(message, exit::FAILED)
    };
    let mut text = String::new();
    match file == Path::new("-") {
        true => std::io::stdin().read_to_string(&mut text),
        false => std::fs::File::open(file).and_then(|mut file| file.read_to_string(&mut text)),
    }
    .map_err(|error| failed(&error))?;
    let mut value: Value = serde_yaml_ng::from_str(&text).map_err(|error| failed(&error))?;
    // People write sizes as they say them.
    let instances = value["instances"].as_array_mut();
    for instance in instances.into_iter().flatten() {
        let memory = instance.pointer_mut("/spec/memory");
        if let Some(memory) = memory
            && let Some(text) = memory.as_str()
        {
            let size: ByteCount = text.parse().map_err(|error| failed(&error))?;
            *memory = size.bytes().into();
        }
    }
    serde_json::from_value(value).map_err(|error| failed(&error))
}

fn difference(name: &str, is: &Spec, shall: &Spec) -> Result<Step, Failure> {
    for (field, is, shall) in [
        ("image", &is.image, &shall.image),
        ("network", &is.network, &shall.network),
    ] {
        if is != shall {
            return Err(Failure::with_status(
                format!(
                    "{name}: its {field} is {is} and can't become {shall}; delete it first, or \
                     give the other one another name"
                ),
                exit::CONFLICT,
            ));
        }
    }
    let removed = is
        .labels
        .keys()
        .filter(|key| !shall.labels.contains_key(*key));
    let set = shall
        .labels
        .iter()
        .filter(|(key, value)| is.labels.get(*key) != Some(value));
    let patch = Patch {
        cpus: Some(shall.cpus).filter(|cpus| *cpus != is.cpus),
        memory: Some(shall.memory).filter(|memory| *memory != is.memory),
        publish: Some(shall.publish.clone()).filter(|publish| *publish != is.publish),
        rate: Some(shall.rate.clone()).filter(|rate| *rate != is.rate),
        restart: Some(shall.restart).filter(|restart| *restart != is.restart),
        autostart: Some(shall.autostart).filter(|autostart| *autostart != is.autostart),
        protect: Some(shall.protect).filter(|protect| *protect != is.protect),
        labels: removed
            .map(|key| (key.clone(), None))
            .chain(set.map(|(key, value)| (key.clone(), Some(value.clone()))))
            .collect(),
    };
    if patch == Patch::default() {
        return Ok(Step::Nothing);
    }
    let (before, after) = (serde_json::to_value(is)?, serde_json::to_value(&patch)?);
    let fields = after.as_object().into_iter().flatten();
    let lines = fields.map(|(field, value)| format!("{field}: {} → {value}", before[field]));
    let lines = lines.collect();
    Ok(Step::Change(patch, lines))
}

/// `favo export`.
#[derive(clap::Args)]
pub struct ExportArgs {
    /// Which; all, if none is named.
    #[arg(value_name = "NAME", add = clap_complete::ArgValueCandidates::new(crate::completion::instances))]
    names: Vec<String>,
}

/// Prints instances as a file for `favo apply`.
pub fn export(args: &ExportArgs) -> Result<ExitCode, Failure> {
    let daemon = Daemon::of_state()?;
    let instances: Vec<Instance> = match args.names.is_empty() {
        true => show::all(&daemon)?,
        false => {
            let names = args.names.iter();
            names
                .map(|name| show::get(&daemon, name))
                .collect::<Result<_, _>>()?
        }
    };
    let environment = Environment {
        instances: instances
            .into_iter()
            .map(|instance| Create {
                name: instance.name,
                spec: instance.spec,
            })
            .collect(),
    };
    print_line(serde_yaml_ng::to_string(&environment)?.trim_end());
    Ok(ExitCode::SUCCESS)
}
