//! Instances: `favo launch`, `list`, `start`, `exec` and the other verbs at
//! the top. Each asks the daemon; none does anything itself.

mod apply;
mod change;
mod copy;
mod form;
mod session;
mod show;

use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use clap::Subcommand;
use favo_api::instance::Action;
use favo_client::{Client, ClientError, Method};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Failure;

/// The verbs.
#[derive(Subcommand)]
pub enum Verb {
    /// Make an instance from an image and start it.
    #[command(after_help = "\
Examples:
  favo launch debian:12 web                                    1 processor, 1 GiB
  favo launch debian:12 mail --cpus 2 --memory 2G --publish 2525:25
  favo launch minimal -o json                                  a name is made up")]
    Launch(change::CreateArgs),
    /// Make an instance from an image without starting it.
    #[command(after_help = "\
Examples:
  favo create debian:12 web --memory 512M
  favo start web")]
    Create(change::CreateArgs),
    /// List instances.
    #[command(
        visible_alias = "ls",
        after_help = "\
Examples:
  favo list                          those there are
  favo list --all -o wide            those in the trash, too, with more columns
  favo list -l role=web -o json      by label, for programs"
    )]
    List(show::ListArgs),
    /// Show an instance.
    #[command(after_help = "Examples:\n  favo show web\n  favo show web -o json")]
    Show(show::ShowArgs),
    /// Start instances.
    #[command(after_help = "Examples:\n  favo start web mail")]
    Start(change::NamesArgs),
    /// Shut instances down: their guests are asked, and ended after a minute.
    #[command(after_help = "\
Examples:
  favo stop web mail
  favo stop --force web        at once, without asking the guest")]
    Stop(change::StopArgs),
    /// Stop instances and start them again.
    #[command(after_help = "Examples:\n  favo restart web")]
    Restart(change::NamesArgs),
    /// Let instances stand still, with all they have in memory.
    #[command(after_help = "Examples:\n  favo pause web")]
    Pause(change::NamesArgs),
    /// Let paused instances go on.
    #[command(after_help = "Examples:\n  favo resume web")]
    Resume(change::NamesArgs),
    /// Put instances into the trash, or remove them for good.
    #[command(
        visible_alias = "rm",
        after_help = "\
Examples:
  favo delete web              favo undelete web brings it back
  favo delete --purge web      disk and all"
    )]
    Delete(change::DeleteArgs),
    /// Take instances out of the trash.
    #[command(after_help = "Examples:\n  favo undelete web")]
    Undelete(change::NamesArgs),
    /// Change what an instance should be; sizes count from its next start.
    #[command(after_help = "\
Examples:
  favo set web --cpus 4 --memory 4G
  favo set web --protect=true --label role=web --label old-")]
    Set(change::SetArgs),
    /// Make instances as a YAML file has them.
    #[command(after_help = "\
Examples:
  favo apply -f office.yaml --dry-run       what would be done
  favo apply -f office.yaml
  favo export | ssh other favo apply -f -")]
    Apply(apply::ApplyArgs),
    /// Print instances as a YAML file for favo apply.
    #[command(after_help = "Examples:\n  favo export web mail >office.yaml")]
    Export(apply::ExportArgs),
    /// Run a command in an instance, by its agent.
    #[command(after_help = "\
Examples:
  favo exec web -- systemctl status nginx
  tar c . | favo exec web -- tar x -C /srv      its input and output are yours")]
    Exec(session::ExecArgs),
    /// Open a shell in an instance.
    #[command(after_help = "Examples:\n  favo shell web")]
    Shell(session::ShellArgs),
    /// Copy files and directories into an instance, or out of it.
    #[command(after_help = "\
Examples:
  favo cp site web:/var/www            the directory becomes /var/www/site, or /var/www if none
  favo cp web:/etc/nginx nginx-of-web")]
    Cp(copy::CopyArgs),
    /// Join the terminal to an instance's console; Ctrl-] leaves it.
    #[command(after_help = "Examples:\n  favo console web")]
    Console(session::ConsoleArgs),
    /// Print what an instance's console said.
    #[command(after_help = "Examples:\n  favo logs web | tail")]
    Logs(session::LogsArgs),
    /// Wait until instances are in a state.
    #[command(after_help = "\
Examples:
  favo wait web --for stopped
  favo wait web --for agent --timeout 120")]
    Wait(session::WaitArgs),
    /// List what was asked for and how far it is.
    #[command(after_help = "Examples:\n  favo tasks\n  favo tasks -o json")]
    Tasks(show::TasksArgs),
    /// Print changes as they happen, one JSON object a line.
    #[command(after_help = "Examples:\n  favo events\n  favo events --from 120")]
    Events(show::EventsArgs),
    /// Say what an error's code means, and what to do.
    #[command(after_help = "Examples:\n  favo explain not-found")]
    Explain(show::ExplainArgs),
}

/// Runs a verb.
pub fn run(verb: Verb) -> Result<ExitCode, Failure> {
    match verb {
        Verb::Launch(args) => change::create(&args, true),
        Verb::Create(args) => change::create(&args, false),
        Verb::List(args) => show::list(&args),
        Verb::Show(args) => show::show(&args),
        Verb::Start(args) => change::act(&args, Action::Start),
        Verb::Stop(args) => change::stop(&args),
        Verb::Restart(args) => change::act(&args, Action::Restart),
        Verb::Pause(args) => change::act(&args, Action::Pause),
        Verb::Resume(args) => change::act(&args, Action::Resume),
        Verb::Delete(args) => change::delete(&args),
        Verb::Undelete(args) => change::act(&args, Action::Undelete),
        Verb::Set(args) => change::set(&args),
        Verb::Apply(args) => apply::apply(&args),
        Verb::Export(args) => apply::export(&args),
        Verb::Exec(args) => session::exec(&args),
        Verb::Shell(args) => session::shell(&args),
        Verb::Cp(args) => copy::copy(&args),
        Verb::Console(args) => session::console(&args),
        Verb::Logs(args) => session::logs(&args),
        Verb::Wait(args) => session::wait(&args),
        Verb::Tasks(args) => show::tasks(&args),
        Verb::Events(args) => show::events(&args),
        Verb::Explain(args) => show::explain(&args),
    }
}

/// The daemon of this state directory. Its refusals have the exit statuses of
/// their codes.
pub struct Daemon(Client);

impl Daemon {
    /// Nothing is sent yet.
    pub fn of_state() -> Result<Self, Failure> {
        let state = favo_image::state_directory()?;
        Ok(Self(Client::new(&favo_daemon::daemon::socket(&state))?))
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.0.get(path).map_err(refused)
    }

    fn ask<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<T, Failure> {
        self.0.ask(method, path, body).map_err(refused)
    }

    fn bytes(&self, path: &str) -> Result<Vec<u8>, Failure> {
        self.0.bytes::<()>(Method::GET, path, None).map_err(refused)
    }

    fn upgrade(&self, path: &str, protocol: &str) -> Result<UnixStream, Failure> {
        self.0.upgrade(path, protocol).map_err(refused)
    }
}

/// The names of all instances.
pub fn names(daemon: &Daemon) -> Result<Vec<String>, Failure> {
    let all = show::all(daemon)?.into_iter();
    Ok(all.map(|instance| instance.name).collect())
}

fn refused(error: ClientError) -> Failure {
    Failure::with_status(&error, error.code().exit_status())
}
