//! `favo daemon` and `favo up`.

use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use favo_api::host::Host;
use favo_api::sign_in::SignInLink;
use favo_client::{Client, ClientError, Method};
use favo_daemon::daemon::{self, Options};
use tokio::signal::unix::{SignalKind, signal};

use crate::output::print_line;
use crate::run::Accel;
use crate::{Failure, exit};

/// Where the page is, unless somebody says otherwise.
const PAGE: &str = "127.0.0.1:8420";
/// How long a daemon may take until it answers.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs the daemon in the foreground: the service manager's way.
///
/// It keeps instances as they should be, and serves the API on a socket in the
/// state directory. Ending it leaves the machines running; the next one finds
/// them.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  favo daemon                 until a signal ends it
  favo up                     in the background, if it does not run yet")]
pub struct Args {
    /// Which engine runs the machines.
    #[arg(long, value_enum, default_value_t, value_name = "ENGINE")]
    accel: Accel,
    /// Where the page is served, to this host only; a free port, if this one is taken.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = PAGE)]
    listen: SocketAddr,
    /// Serve no page, and nothing over TCP.
    #[arg(long)]
    no_page: bool,
}

/// Runs the subcommand.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    use clap::ValueEnum;
    let engine = args.accel.to_possible_value();
    let engine = engine.map_or_else(String::new, |value| value.get_name().to_owned());
    let options = Options {
        state: favo_image::state_directory()?,
        program: std::env::current_exe()?,
        machine_options: vec!["--accel".to_owned(), engine],
        listen: Some(args.listen).filter(|_| !args.no_page),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let end = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        daemon::run(options, end).await?;
        Ok::<(), Failure>(())
    })?;
    // What blocks in a worker is looked at again by the next daemon.
    runtime.shutdown_background();
    Ok(ExitCode::SUCCESS)
}

/// Starts the daemon in the background, if it does not run yet.
#[derive(clap::Args)]
pub struct UpArgs {
    /// Which engine runs the machines.
    #[arg(long, value_enum, default_value_t, value_name = "ENGINE")]
    accel: Accel,
}

/// `favo up`.
pub fn up(args: &UpArgs) -> Result<ExitCode, Failure> {
    use clap::ValueEnum;
    let state = favo_image::state_directory()?;
    let socket = daemon::socket(&state);
    let client = Client::new(&socket)?;
    if let Ok(host) = client.get::<Host>("/v1/host") {
        print_line(&format!(
            "favo runs on {}: {} instances up",
            host.name, host.running
        ));
        return invite(&client);
    }
    std::fs::create_dir_all(&state)?;
    let path = state.join("daemon.log");
    let log = File::options().create(true).append(true).open(&path)?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["-v", "daemon"]);
    if let Some(engine) = args.accel.to_possible_value() {
        command.args(["--accel", engine.get_name()]);
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // The terminal's signals are not for it.
        .process_group(0)
        .spawn()?;
    let begin = Instant::now();
    loop {
        match client.get::<Host>("/v1/host") {
            Ok(host) => {
                print_line(&format!(
                    "favo runs on {} now; its log is {}",
                    host.name,
                    path.display()
                ));
                return invite(&client);
            }
            Err(ClientError::NoDaemon { .. }) if begin.elapsed() < PATIENCE => {}
            Err(error) => return Err(error.into()),
        }
        if let Some(status) = child.try_wait()? {
            let message = format!(
                "the daemon ended at once ({status}): see {}",
                path.display()
            );
            return Err(Failure::with_status(message, exit::FAILED));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Prints a link to the page, if it is served.
fn invite(client: &Client) -> Result<ExitCode, Failure> {
    match client.ask::<(), SignInLink>(Method::POST, "/v1/sign-in-links", None) {
        Ok(link) => print_line(&format!("sign in once, within ten minutes: {}", link.url)),
        Err(error) => eprintln!("{error}"),
    }
    Ok(ExitCode::SUCCESS)
}
