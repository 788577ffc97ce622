//! The command: what was typed, and the doing of it.

mod exit;
mod report;
mod arguments;
mod waiting;
mod store;
mod handover;
mod holders;
#[cfg(unix)]
mod signals;
#[cfg(unix)]
mod terminal;
#[cfg(unix)]
mod child;
// The one split by system: elsewhere there are no signals, groups or terminals to look after.
#[cfg(not(unix))]
#[path = "child_elsewhere.rs"]
mod child;
mod run;
mod fence;
mod serve;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser};

use arguments::{Arguments, Command, FenceCommand};
use exit::Exit;
use report::Failure;

/// Does what the command line says.
pub(crate) fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(err) => return refuse(&without_password(err)),
    };
    let place = &arguments.place;
    let done = match &arguments.command {
        Command::Run(wish) => run::run(place, wish),
        Command::Acquire(wish) => handover::acquire(place, wish).map(|()| 0),
        Command::Extend(wish) => handover::extend(place, wish).map(|()| 0),
        Command::Release(wish) => handover::release(place, wish).map(|()| 0),
        Command::ForceRelease(wish) => holders::force_release(place, wish).map(|()| 0),
        Command::Show(wish) => holders::show(place, wish).map(|()| 0),
        Command::Fence(FenceCommand::Check(wish)) => fence::check(place, wish),
        Command::List => holders::list(place).map(|()| 0),
        Command::Store => holders::store(place).map(|()| 0),
        Command::Serve => serve::serve(place).map(|()| 0),
    };
    let code = done.unwrap_or_else(|failure: Failure| {
        failure.report(place.json);
        failure.exit()
    });
    code.into()
}

/// `err`, which may repeat a server's URL, without what may be a password in it.
fn without_password(mut err: clap::Error) -> clap::Error {
    if let Some(ContextValue::String(value)) = err.get(ContextKind::InvalidValue)
        && let Some((scheme, _)) = value.split_once("://")
    {
        let shortened = format!("{scheme}://…");
        err.insert(ContextKind::InvalidValue, ContextValue::String(shortened));
    }
    err
}

/// Prints the help or the version that was asked for, or what is wrong with the command line.
fn refuse(err: &clap::Error) -> ExitCode {
    let text = err.render().to_string();
    match err.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            match report::answer(text.trim_end()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(failure) => failure.exit().into(),
            }
        }
        ErrorKind::MissingSubcommand => {
            let help = Arguments::command().render_help().to_string();
            let _ = io::stderr().write_all(help.as_bytes());
            Exit::Usage.into()
        }
        // Of a command's commands.
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = io::stderr().write_all(text.as_bytes());
            Exit::Usage.into()
        }
        _ => {
            report::say(text.strip_prefix("error: ").unwrap_or(&text).trim_end());
            Exit::Usage.into()
        }
    }
}
