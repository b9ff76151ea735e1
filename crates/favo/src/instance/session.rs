//! The verbs that talk to an instance's guest: exec, shell, console, logs,
//! wait.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use favo_agent::client::ExecOutcome;
use favo_agent::{AgentClient, ClientError};
use favo_api::instance::State;
use rustix::event::{PollFd, PollFlags, poll};

use super::Daemon;
use super::show::get;
use crate::mailbox::Mailbox;
use crate::run::guest::{Left, converse};
use crate::run::killed_by;
use crate::terminal::{self, RawMode};
use crate::{Failure, exit};

/// How long an agent may take to say its first word.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a state is asked for.
const INTERVAL: Duration = Duration::from_millis(100);
/// The exit status of a wait that took too long, as timeout(1) has it.
const TIMED_OUT: u8 = 124;

/// `favo exec`.
#[derive(clap::Args)]
pub struct ExecArgs {
    /// Which.
    #[arg(add = clap_complete::ArgValueCandidates::new(crate::completion::instances))]
    name: String,
    /// Give the command a terminal.
    #[arg(short, long)]
    tty: bool,
    /// What to run.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Runs a command.
pub fn exec(args: &ExecArgs) -> Result<ExitCode, Failure> {
    run(&args.name, &args.command, args.tty)
}

/// `favo shell`.
#[derive(clap::Args)]
pub struct ShellArgs {
    /// Which.
    #[arg(add = clap_complete::ArgValueCandidates::new(crate::completion::instances))]
    name: String,
}

/// Opens a shell.
pub fn shell(args: &ShellArgs) -> Result<ExitCode, Failure> {
    run(&args.name, &[], terminal::is_interactive())
}

fn run(name: &str, command: &[String], tty: bool) -> Result<ExitCode, Failure> {
    let mut agent = agent(&Daemon::of_state()?, name)?;
    let mailbox = Mailbox::with_signals()?;
    let (result, left) = converse(&mut agent, command, tty, &mailbox)?;
    match (result, left) {
        (Ok(ExecOutcome::Exited(status)), _) => Ok(ExitCode::from(status.shell_status())),
        (Ok(ExecOutcome::Left), Some(Left::Signal(signal))) => Ok(killed_by(signal)),
        (Ok(ExecOutcome::Left), _) => Ok(ExitCode::from(exit::STOPPED)),
        (Err(ClientError::ExecFailed { status, message }), _) => {
            Err(Failure::with_status(message, status))
        }
        (Err(error), _) => Err(Failure::new(format!("{error}; did {name} stop?"))),
    }
}

/// A connection to the agent of an instance's guest.
pub fn agent(client: &Daemon, name: &str) -> Result<AgentClient<UnixStream>, Failure> {
    // For the nearest name, if there is none.
    get(client, name)?;
    let stream = client.upgrade(&format!("/v1/instances/{name}/agent"), "favo-agent")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let agent = AgentClient::connect(stream)?;
    agent.stream().set_read_timeout(None)?;
    Ok(agent)
}

/// `favo console`.
#[derive(clap::Args)]
pub struct ConsoleArgs {
    /// Which.
    #[arg(add = clap_complete::ArgValueCandidates::new(crate::completion::instances))]
    name: String,
}

/// Joins standard input and output to the console until the escape key, the
/// end of input, or the machine's end.
pub fn console(args: &ConsoleArgs) -> Result<ExitCode, Failure> {
    let client = Daemon::of_state()?;
    get(&client, &args.name)?;
    let path = format!("/v1/instances/{}/console", args.name);
    let stream = client.upgrade(&path, "favo-console")?;
    let raw = RawMode::enter()?;
    if raw.is_some() {
        eprint!("Ctrl-] leaves the console of {}\r\n", args.name);
    }
    let result = join(&stream, raw.is_some());
    drop(raw);
    Ok(result.map(|()| ExitCode::SUCCESS)?)
}

fn join(mut stream: &UnixStream, interactive: bool) -> std::io::Result<()> {
    let (mut stdin, mut stdout) = (std::io::stdin().lock(), std::io::stdout().lock());
    let input = rustix::stdio::stdin();
    let mut hears = true;
    let mut buffer = [0; 4096];
    loop {
        let mut fds = vec![PollFd::new(stream, PollFlags::IN)];
        if hears {
            fds.push(PollFd::from_borrowed_fd(input, PollFlags::IN));
        }
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        if ready[0] {
            match stream.read(&mut buffer)? {
                0 => return Ok(()),
                count => stdout.write_all(&buffer[..count])?,
            }
            stdout.flush()?;
        }
        if ready.get(1) == Some(&true) {
            let count = stdin.read(&mut buffer)?;
            let typed = &buffer[..count];
            if interactive && typed.contains(&terminal::ESCAPE) {
                return Ok(());
            }
            // A pipe that ends leaves the guest to say its last words.
            hears = count > 0;
            stream.write_all(typed)?;
        }
    }
}

/// `favo logs`.
#[derive(clap::Args)]
pub struct LogsArgs {
    /// Which.
    #[arg(add = clap_complete::ArgValueCandidates::new(crate::completion::instances))]
    name: String,
}

/// Prints what the console said.
pub fn logs(args: &LogsArgs) -> Result<ExitCode, Failure> {
    let client = Daemon::of_state()?;
    get(&client, &args.name)?;
    let path = format!("/v1/instances/{}/logs", args.name);
    let bytes = client.bytes(&path)?;
    // A reader that went away is not an error.
    let _ = std::io::stdout().write_all(&bytes);
    Ok(ExitCode::SUCCESS)
}

/// `favo wait`.
#[derive(clap::Args)]
pub struct WaitArgs {
    /// Which.
    #[arg(required = true, value_name = "NAME", add = clap_complete::ArgValueCandidates::new(crate::completion::instances))]
    names: Vec<String>,
    /// Until when.
    #[arg(long = "for", value_enum, value_name = "CONDITION")]
    condition: Condition,
    /// At most so many seconds; then the exit status is 124.
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    timeout: u64,
}

/// What can be waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Condition {
    /// It runs.
    Running,
    /// It is off.
    Stopped,
    /// It is paused.
    Paused,
    /// Its guest's agent answers.
    Agent,
}

/// Waits.
pub fn wait(args: &WaitArgs) -> Result<ExitCode, Failure> {
    let client = Daemon::of_state()?;
    let deadline = Instant::now() + Duration::from_secs(args.timeout);
    for name in &args.names {
        while !holds(&client, name, args.condition)? {
            if Instant::now() >= deadline {
                let message = format!("{name} is not so after {} seconds", args.timeout);
                return Err(Failure::with_status(message, TIMED_OUT));
            }
            std::thread::sleep(INTERVAL);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn holds(client: &Daemon, name: &str, condition: Condition) -> Result<bool, Failure> {
    let state = get(client, name)?.status.state;
    Ok(match condition {
        Condition::Running => state == State::Running,
        Condition::Stopped => matches!(state, State::Stopped | State::Failed | State::Trashed),
        Condition::Paused => state == State::Paused,
        Condition::Agent => state == State::Running && agent(client, name).is_ok(),
    })
}
