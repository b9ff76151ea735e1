//! Completion for shells, and manual pages: both are made from the commands'
//! own descriptions.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::CompletionCandidate;

use crate::instance::Daemon;
use crate::output::print_line;
use crate::{Cli, Failure};

/// `favo completion`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  source <(favo completion bash)                  in ~/.bashrc
  source <(favo completion zsh)                   in ~/.zshrc
  favo completion fish | source                   in ~/.config/fish/config.fish")]
pub struct Args {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

/// Shells that are completed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Shell {
    /// GNU Bash.
    Bash,
    /// Z shell.
    Zsh,
    /// fish.
    Fish,
}

/// Prints what the shell is to read.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    use clap_complete::env::{Bash, EnvCompleter, Fish, Zsh};
    let completer: &dyn EnvCompleter = match args.shell {
        Shell::Bash => &Bash,
        Shell::Zsh => &Zsh,
        Shell::Fish => &Fish,
    };
    let program = std::env::current_exe()?;
    let program = program.to_string_lossy();
    let mut script = Vec::new();
    completer.write_registration("COMPLETE", "favo", "favo", &program, &mut script)?;
    print_line(String::from_utf8_lossy(&script).trim_end());
    Ok(ExitCode::SUCCESS)
}

/// Answers a shell that asks what may follow, if one does, and ends.
pub fn answer() {
    clap_complete::CompleteEnv::with_factory(Cli::command).complete();
}

/// The names of instances, for whoever types one. Without a daemon there are
/// none.
pub fn instances() -> Vec<CompletionCandidate> {
    let names = Daemon::of_state().and_then(|daemon| crate::instance::names(&daemon));
    let names = names.unwrap_or_default().into_iter();
    names.map(CompletionCandidate::new).collect()
}

/// `favo man`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  favo man ~/.local/share/man/man1         then: man favo-launch")]
pub struct ManArgs {
    /// The directory to write them to.
    directory: PathBuf,
}

/// Writes a manual page for each command.
pub fn man(args: &ManArgs) -> Result<ExitCode, Failure> {
    std::fs::create_dir_all(&args.directory)?;
    clap_mangen::generate_to(Cli::command(), &args.directory)?;
    Ok(ExitCode::SUCCESS)
}
