//! The verbs that change instances. They wait until it is so.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use favo_api::instance::{Action, Create, Patch, Power, Restart, Spec};
use favo_api::task::{Accepted, Task, TaskState};
use favo_client::Method;
use favo_types::ByteCount;
use indicatif::ProgressBar;

use super::form::FormArgs;
use super::{Daemon, show};
use crate::output::print_line;
use crate::{Failure, exit};

/// How often a task is asked for.
const INTERVAL: Duration = Duration::from_millis(50);

/// Whether to wait.
#[derive(clap::Args)]
pub struct WaitingArgs {
    /// Don't wait until it is so.
    #[arg(long)]
    no_wait: bool,
}

/// `favo launch` and `favo create`.
#[derive(clap::Args)]
pub struct CreateArgs {
    /// The image, like debian:12; see favo image list.
    image: String,
    /// What to call it: lower-case letters, digits and hyphens. Made up from the image's if left
    /// out.
    name: Option<String>,
    /// Virtual processors.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: u32,
    /// Memory, like 512M or 2G.
    #[arg(long, value_name = "SIZE", default_value = "1G")]
    memory: ByteCount,
    /// The network: user, none, or a name, which others may be on, too.
    #[arg(long, default_value = "user", value_name = "NETWORK")]
    network: String,
    /// Join a port of the host to one of the guest. May be repeated.
    #[arg(long, value_name = "[ADDR:]HOSTPORT:GUESTPORT[/udp]")]
    publish: Vec<String>,
    /// Limit its network. May be repeated.
    #[arg(long, value_name = "in|out:RATE[/BURST]")]
    rate: Vec<String>,
    /// What to do when its guest ends on its own.
    #[arg(long, value_enum, default_value_t = RestartArg::OnFailure)]
    restart: RestartArg,
    /// Don't start it with the host.
    #[arg(long)]
    no_autostart: bool,
    /// A label to find it by. May be repeated.
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = label)]
    label: Vec<(String, String)>,
    #[command(flatten)]
    waiting: WaitingArgs,
    #[command(flatten)]
    form: FormArgs,
}

/// What to do when a guest ends on its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum RestartArg {
    /// Leave it off.
    Never,
    /// Start it again if it failed.
    OnFailure,
    /// Start it again.
    Always,
}

impl From<RestartArg> for Restart {
    fn from(restart: RestartArg) -> Self {
        match restart {
            RestartArg::Never => Self::Never,
            RestartArg::OnFailure => Self::OnFailure,
            RestartArg::Always => Self::Always,
        }
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("a label is KEY=VALUE".to_owned()),
    }
}

/// Makes an instance.
pub fn create(args: &CreateArgs, start: bool) -> Result<ExitCode, Failure> {
    let client = Daemon::of_state()?;
    let spec = Spec {
        cpus: args.cpus,
        memory: args.memory.bytes(),
        network: args.network.clone(),
        publish: args.publish.clone(),
        rate: args.rate.clone(),
        power: if start {
            Power::Running
        } else {
            Power::Stopped
        },
        restart: args.restart.into(),
        autostart: !args.no_autostart,
        labels: args.label.iter().cloned().collect(),
        ..Spec::of_image(&args.image)
    };
    let name = match &args.name {
        Some(name) => name.clone(),
        None => free_name(&client, &args.image)?,
    };
    let create = Create { name, spec };
    let accepted: Accepted = client.ask(Method::POST, "/v1/instances", Some(&create))?;
    if !args.waiting.no_wait {
        wait_for(&client, &accepted)?;
    }
    show::print(&client, &create.name, args.form.output)
}

/// The first of `debian`, `debian-2` and so on that is free.
fn free_name(client: &Daemon, image: &str) -> Result<String, Failure> {
    let stem = image.rsplit('/').next().unwrap_or(image);
    let stem = stem.split(':').next().unwrap_or(stem).to_lowercase();
    let taken = show::all(client)?;
    let numbered = (2..).map(|number| format!("{stem}-{number}"));
    let free = std::iter::once(stem.clone())
        .chain(numbered)
        .find(|name| taken.iter().all(|instance| instance.name != *name));
    free.ok_or_else(|| Failure::new("no name is free"))
}

/// Names of instances.
#[derive(clap::Args)]
pub struct NamesArgs {
    /// Which.
    #[arg(required = true, value_name = "NAME", add = clap_complete::ArgValueCandidates::new(crate::completion::instances))]
    names: Vec<String>,
    #[command(flatten)]
    waiting: WaitingArgs,
}

/// Does something with instances.
pub fn act(args: &NamesArgs, action: Action) -> Result<ExitCode, Failure> {
    each(&args.names, args.waiting.no_wait, |client, name| {
        let path = format!("/v1/instances/{name}/{}", action.name());
        client.ask::<(), _>(Method::POST, &path, None)
    })
}

/// `favo stop`.
#[derive(clap::Args)]
pub struct StopArgs {
    #[command(flatten)]
    names: NamesArgs,
    /// At once, without asking the guest: what it has not written is lost.
    #[arg(long)]
    force: bool,
}

/// Stops instances.
pub fn stop(args: &StopArgs) -> Result<ExitCode, Failure> {
    act(
        &args.names,
        if args.force {
            Action::Kill
        } else {
            Action::Stop
        },
    )
}

/// `favo delete`.
#[derive(clap::Args)]
pub struct DeleteArgs {
    #[command(flatten)]
    names: NamesArgs,
    /// For good, disk and all.
    #[arg(long)]
    purge: bool,
}

/// Deletes instances.
pub fn delete(args: &DeleteArgs) -> Result<ExitCode, Failure> {
    each(
        &args.names.names,
        args.names.waiting.no_wait,
        |client, name| {
            let path = format!("/v1/instances/{name}?purge={}", args.purge);
            client.ask::<(), _>(Method::DELETE, &path, None)
        },
    )
}

/// `favo set`.
#[derive(clap::Args)]
pub struct SetArgs {
    /// Which.
    #[arg(add = clap_complete::ArgValueCandidates::new(crate::completion::instances))]
    name: String,
    /// Virtual processors.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: Option<u32>,
    /// Memory, like 512M or 2G.
    #[arg(long, value_name = "SIZE")]
    memory: Option<ByteCount>,
    /// All its published ports. May be repeated; an empty one is none.
    #[arg(long, value_name = "[ADDR:]HOSTPORT:GUESTPORT[/udp]")]
    publish: Option<Vec<String>>,
    /// All limits of its network. May be repeated; an empty one is none.
    #[arg(long, value_name = "in|out:RATE[/BURST]")]
    rate: Option<Vec<String>>,
    /// What to do when its guest ends on its own.
    #[arg(long, value_enum)]
    restart: Option<RestartArg>,
    /// Whether it starts with the host.
    #[arg(long, value_name = "true|false")]
    autostart: Option<bool>,
    /// Whether it can't be deleted.
    #[arg(long, value_name = "true|false")]
    protect: Option<bool>,
    /// A label to set, or KEY- to remove one. May be repeated.
    #[arg(short, long, value_name = "KEY=VALUE|KEY-", value_parser = label_change)]
    label: Vec<(String, Option<String>)>,
}

fn label_change(text: &str) -> Result<(String, Option<String>), String> {
    match text.strip_suffix('-') {
        Some(key) if !key.contains('=') => Ok((key.to_owned(), None)),
        _ => label(text).map(|(key, value)| (key, Some(value))),
    }
}

/// Changes what an instance should be.
pub fn set(args: &SetArgs) -> Result<ExitCode, Failure> {
    let given = |texts: &Option<Vec<String>>| {
        let texts = texts.as_ref()?;
        Some(
            texts
                .iter()
                .filter(|text| !text.is_empty())
                .cloned()
                .collect(),
        )
    };
    let patch = Patch {
        cpus: args.cpus,
        memory: args.memory.map(ByteCount::bytes),
        publish: given(&args.publish),
        rate: given(&args.rate),
        restart: args.restart.map(Restart::from),
        autostart: args.autostart,
        protect: args.protect,
        labels: args.label.iter().cloned().collect::<BTreeMap<_, _>>(),
    };
    let client = Daemon::of_state()?;
    let path = format!("/v1/instances/{}", args.name);
    let accepted: Accepted = client.ask(Method::PATCH, &path, Some(&patch))?;
    if accepted.task.is_none() {
        eprintln!("{} is so already", args.name);
    }
    wait_for(&client, &accepted)?;
    let instance = show::get(&client, &args.name)?;
    if instance.status.needs_restart {
        eprintln!(
            "its size changes at its next start: favo restart {}",
            args.name
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks for something with each instance, then waits for all. One that fails
/// doesn't keep the others from it.
fn each(
    names: &[String],
    no_wait: bool,
    ask: impl Fn(&Daemon, &str) -> Result<Accepted, Failure>,
) -> Result<ExitCode, Failure> {
    let client = Daemon::of_state()?;
    let mut status = 0;
    let mut failed = |failure: Failure| {
        eprintln!("favo: {}", failure.message);
        status = failure.status;
    };
    let mut accepted = Vec::new();
    for name in names {
        match ask(&client, name) {
            Ok(answer) => accepted.push(answer),
            Err(failure) => failed(failure),
        }
    }
    for answer in accepted {
        let waited = match no_wait {
            true => Ok(()),
            false => wait_for(&client, &answer),
        };
        match waited {
            Ok(()) => print_line(&answer.instance.name),
            Err(failure) => failed(failure),
        }
    }
    Ok(ExitCode::from(status))
}

/// Waits for what was asked for.
pub fn wait_for(client: &Daemon, accepted: &Accepted) -> Result<(), Failure> {
    let Some(task) = &accepted.task else {
        return Ok(());
    };
    let bar = match std::io::stderr().is_terminal() {
        true => ProgressBar::new_spinner(),
        false => ProgressBar::hidden(),
    };
    bar.enable_steady_tick(Duration::from_millis(100));
    let path = format!("/v1/tasks/{}", task.id);
    let ended = loop {
        let now: Task = client.get(&path)?;
        if now.state != TaskState::Running {
            break now;
        }
        bar.set_message(format!("{} {}", now.action, now.instance));
        std::thread::sleep(INTERVAL);
    };
    bar.finish_and_clear();
    match ended.state {
        TaskState::Failed => Err(Failure::with_status(
            format!(
                "could not {} {}: {}\nhint: favo logs {} shows its console",
                ended.action, ended.instance, ended.message, ended.instance
            ),
            exit::FAILED,
        )),
        TaskState::Done | TaskState::Running => Ok(()),
    }
}
