//! The verbs that show instances, tasks, events and what errors mean.

use std::process::ExitCode;

use favo_api::List;
use favo_api::error::Code;
use favo_api::instance::Instance;
use favo_api::task::Task;
use favo_types::ByteCount;
use jiff::Timestamp;

use super::form::{Column, Form, FormArgs, print_list, print_one};
use super::{Daemon, refused};
use crate::output::print_line;
use crate::{Failure, exit};

/// `favo list`.
#[derive(clap::Args)]
pub struct ListArgs {
    /// Those in the trash, too.
    #[arg(short, long)]
    all: bool,
    /// Only those with this label. May be repeated.
    #[arg(short, long, value_name = "KEY=VALUE")]
    label: Vec<String>,
    #[command(flatten)]
    form: FormArgs,
}

/// Lists instances.
pub fn list(args: &ListArgs) -> Result<ExitCode, Failure> {
    let labels = args.label.join(",");
    let path = format!("/v1/instances?all={}&label={}", args.all, encode(&labels));
    let list: List<Instance> = Daemon::of_state()?.get(&path)?;
    print_list(args.form.output, &list.items, COLUMNS)?;
    if list.items.is_empty() && args.form.output == Form::Table {
        eprintln!("there are none; 'favo launch debian:12 NAME' makes one");
    }
    Ok(ExitCode::SUCCESS)
}

/// What may not stand in a query as it is (RFC 3986 §3.4).
fn encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(byte.into());
            }
            other => encoded.push_str(&format!("%{other:02X}")),
        }
    }
    encoded
}

const COLUMNS: &[Column<'_, Instance>] = &[
    ("name", false, &|instance| instance.name.clone()),
    ("state", false, &|instance| {
        instance.status.state.name().to_owned()
    }),
    ("image", false, &|instance| instance.spec.image.clone()),
    ("cpus", false, &|instance| instance.spec.cpus.to_string()),
    ("memory", false, &|instance| {
        ByteCount(instance.spec.memory).to_string()
    }),
    ("publish", false, &|instance| {
        instance.spec.publish.join(" ")
    }),
    ("age", false, &|instance| age(instance.created)),
    ("network", true, &|instance| instance.spec.network.clone()),
    ("engine", true, &|instance| {
        instance.status.engine.clone().unwrap_or_default()
    }),
    ("pid", true, &|instance| {
        instance
            .status
            .pid
            .map_or_else(String::new, |pid| pid.to_string())
    }),
    ("resident", true, &|instance| {
        let resident = instance.status.resident;
        resident.map_or_else(String::new, |bytes| ByteCount(bytes).to_string())
    }),
    ("labels", true, &|instance| {
        let labels = instance.spec.labels.iter();
        labels
            .map(|(key, value)| format!("{key}={value}"))
            .collect::<Vec<_>>()
            .join(" ")
    }),
    ("message", true, &|instance| instance.status.message.clone()),
];

fn age(since: Timestamp) -> String {
    let seconds = Timestamp::now().duration_since(since).as_secs().max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// `favo show`.
#[derive(clap::Args)]
pub struct ShowArgs {
    /// Which.
    #[arg(add = clap_complete::ArgValueCandidates::new(crate::completion::instances))]
    name: String,
    #[command(flatten)]
    form: FormArgs,
}

/// Shows an instance.
pub fn show(args: &ShowArgs) -> Result<ExitCode, Failure> {
    print(&Daemon::of_state()?, &args.name, args.form.output)
}

/// An instance. If there is none, the nearest name is in the error.
pub fn get(client: &Daemon, name: &str) -> Result<Instance, Failure> {
    let found = client.get::<Instance>(&format!("/v1/instances/{}", encode(name)));
    found.map_err(|mut failure| {
        if failure.status == exit::NOT_FOUND
            && let Ok(all) = all(client)
            && let Some(near) = nearest(name, &all)
        {
            failure.message.push_str(&format!("\ndid you mean {near}?"));
        }
        failure
    })
}

/// All instances, those in the trash included.
pub fn all(client: &Daemon) -> Result<Vec<Instance>, Failure> {
    let list: List<Instance> = client.get("/v1/instances?all=true")?;
    Ok(list.items)
}

fn nearest<'a>(name: &str, all: &'a [Instance]) -> Option<&'a str> {
    let distance = |other: &str| strsim::damerau_levenshtein(name, other);
    let names = all.iter().map(|instance| instance.name.as_str());
    names
        .min_by_key(|other| distance(other))
        .filter(|other| distance(other) <= 2)
}

/// Prints an instance.
pub fn print(client: &Daemon, name: &str, form: Form) -> Result<ExitCode, Failure> {
    print_one(form, &get(client, name)?, COLUMNS)?;
    Ok(ExitCode::SUCCESS)
}

/// `favo tasks`.
#[derive(clap::Args)]
pub struct TasksArgs {
    /// At most so many, the youngest first.
    #[arg(long, default_value_t = 50)]
    limit: usize,
    #[command(flatten)]
    form: FormArgs,
}

/// Lists tasks.
pub fn tasks(args: &TasksArgs) -> Result<ExitCode, Failure> {
    let list: List<Task> = Daemon::of_state()?.get(&format!("/v1/tasks?limit={}", args.limit))?;
    let columns: &[Column<'_, Task>] = &[
        ("id", false, &|task| task.id.clone()),
        ("action", false, &|task| task.action.clone()),
        ("instance", false, &|task| task.instance.clone()),
        ("state", false, &|task| task.state.name().to_owned()),
        ("age", false, &|task| age(task.created)),
        ("message", false, &|task| task.message.clone()),
    ];
    print_list(args.form.output, &list.items, columns)?;
    Ok(ExitCode::SUCCESS)
}

/// `favo events`.
#[derive(clap::Args)]
pub struct EventsArgs {
    /// Begin with the changes of this revision, instead of those to come.
    #[arg(long, value_name = "REVISION")]
    from: Option<u64>,
}

/// Prints events until the daemon ends.
pub fn events(args: &EventsArgs) -> Result<ExitCode, Failure> {
    let daemon = Daemon::of_state()?;
    let watched = daemon.0.events(args.from, |event| {
        match serde_json::to_string(&event) {
            Ok(line) => print_line(&line),
            Err(error) => eprintln!("favo: {error}"),
        }
        true
    });
    watched.map_err(refused)?;
    Ok(ExitCode::SUCCESS)
}

/// `favo explain`.
#[derive(clap::Args)]
pub struct ExplainArgs {
    /// The code in an error's brackets; without one, all are listed.
    code: Option<String>,
}

/// Explains a code.
pub fn explain(args: &ExplainArgs) -> Result<ExitCode, Failure> {
    let Some(wanted) = &args.code else {
        for code in Code::ALL {
            print_line(code.name());
        }
        return Ok(ExitCode::SUCCESS);
    };
    let found = Code::ALL.into_iter().find(|code| code.name() == wanted);
    let code = found.ok_or_else(|| {
        let names = Code::ALL.map(Code::name).join(", ");
        Failure::with_status(
            format!("no error has the code '{wanted}'; there are {names}"),
            exit::NOT_FOUND,
        )
    })?;
    print_line(code.explanation());
    print_line(&format!(
        "HTTP status {}, exit status {}",
        code.http_status(),
        code.exit_status()
    ));
    Ok(ExitCode::SUCCESS)
}
