//! The `verrou` command: parses the command line, and runs the subcommand.

mod exit;
mod standard_output;
mod output;
mod value_parsers;
mod arguments;
mod wait_notice;
mod nested;
mod store;
mod lease_commands;
mod inspect_commands;
mod ending;
#[cfg(unix)]
mod signals;
#[cfg(unix)]
mod terminal;
#[cfg(unix)]
mod broken_pipe;
#[cfg(unix)]
mod process_group;
#[cfg(unix)]
mod guardian;
#[cfg(unix)]
mod job;
// The command's only split by system: other systems have no signals, process groups or terminals.
#[cfg(not(unix))]
#[path = "job_fallback.rs"]
mod job;
mod run;
mod fence;
mod notifier;
mod serve;

use std::env;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use verrou_host::password_range;

use arguments::{Arguments, Command, FenceCommand};
use exit::Exit;
use output::Failure;

/// Runs the subcommand of the command line, and returns its exit code.
fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(err) => return refuse(&err),
    };
    #[cfg(unix)]
    signals::end_by_signals();
    #[cfg(unix)]
    signals::report_file_size_limit();
    let global = &arguments.global;
    #[cfg(feature = "tracing")]
    output::print_events(global.verbose);
    let done = match &arguments.command {
        Command::Run(args) => run::run(global, args),
        Command::Acquire(args) => lease_commands::acquire(global, args).map(|()| 0),
        Command::Extend(args) => lease_commands::extend(global, args).map(|()| 0),
        Command::Release(args) => lease_commands::release(global, args).map(|()| 0),
        Command::ForceRelease(args) => inspect_commands::force_release(global, args).map(|()| 0),
        Command::Show(args) => inspect_commands::show(global, args).map(|()| 0),
        Command::Fence(FenceCommand::Check(args)) => fence::check(global, args),
        Command::Fence(FenceCommand::Reset(args)) => fence::reset(global, args).map(|()| 0),
        Command::List => inspect_commands::list(global).map(|()| 0),
        Command::Store => inspect_commands::store(global).map(|()| 0),
        Command::Serve(args) => serve::serve(global, args).map(|()| 0),
    };
    let code = done.unwrap_or_else(|failure: Failure| {
        failure.report(global.json);
        failure.exit()
    });
    code.into()
}

/// Returns `text`, which may repeat the URL of a server from the command line, with possible passwords
/// removed.
fn without_password(mut text: String) -> String {
    for word in env::args_os().skip(1) {
        let shown = word.to_string_lossy();
        if let Some((_, rest)) = shown.split_once("://")
            && !rest.is_empty()
        {
            text = text.replace(&format!("://{rest}"), "://…");
        }
        if let Some(password) = password_range(&shown) {
            text = text.replace(&shown[password], ":…@");
        }
    }
    text
}

/// Prints the requested help or version, or the error in the command line.
fn refuse(err: &clap::Error) -> ExitCode {
    let text = without_password(err.render().to_string());
    let help = match err.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            return match output::answer_lines(text.trim_end()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(failure) => failure.exit().into(),
            };
        }
        ErrorKind::MissingSubcommand => Some(Arguments::command().render_help().to_string()),
        // The help of a subcommand that has subcommands.
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => Some(text.clone()),
        _ => None,
    };
    let text = text.strip_prefix("error: ").unwrap_or(&text).trim_end();
    if wants_json() {
        let what = match help {
            Some(_) => "a command is missing; `verrou --help` lists them",
            None => text,
        };
        usage_failure(what).report(true);
    } else if let Some(help) = help {
        let _ = io::stderr().write_all(help.as_bytes());
    } else {
        output::say_lines(text);
    }
    Exit::Usage.into()
}

/// Returns whether a command line that cannot be parsed asks for errors as JSON.
fn wants_json() -> bool {
    let mut words = env::args_os().skip(1).take_while(|word| word != "--");
    words.any(|word| word == "--json")
}

/// Returns the failure for an error text of clap, without its hints. An error code in parentheses at
/// the end of the text becomes the code of the failure.
fn usage_failure(text: &str) -> Failure {
    let what = text.split("\n\n").next().unwrap_or_default();
    let what = what.split_whitespace().collect::<Vec<_>>().join(" ");
    let coded = what
        .strip_suffix(')')
        .and_then(|it| it.rsplit_once(" ("))
        .and_then(|(what, code)| Some((what, output::code(code)?)));
    match coded {
        Some((what, code)) => Failure::coded(Exit::Usage, code, what),
        None => Failure::new(Exit::Usage, what),
    }
}
