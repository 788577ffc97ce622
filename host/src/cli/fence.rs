//! The resource's side of fencing: `fence check`.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::{self, IsTerminal};
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use verrou::Fence;
use verrou_host::{Checked, FenceError, FenceGate, FileError};

use super::arguments::{self, FenceCheck, Place};
use super::child::Job;
use super::exit::Exit;
use super::report::{self, Failure, say};
use super::run::{Ending, not_started, wait_for_end};
use super::store;

/// Where `verrou run` tells its command the fence.
const VARIABLE: &str = "VERROU_FENCE";

/// Checks a fence, and runs the command, if there is one, before another passes; returns what to end
/// with.
pub(crate) fn check(place: &Place, wish: &FenceCheck) -> Result<u8, Failure> {
    let fence = match wish.fence {
        Some(fence) => fence,
        None => from_environment(env::var_os(VARIABLE))?,
    };
    let gate = FenceGate::open(&wish.file, &store::options(place))?;
    let checked = wait(&gate, wish, fence);
    let [program, arguments @ ..] = &wish.command[..] else {
        if place.json {
            tell(wish, fence, &checked)?;
        }
        drop(checked?);
        return Ok(0);
    };
    let checked = checked?;
    let job = run(program, arguments, fence, &checked)?;
    drop(checked);
    // Only now, when others may pass, may this be the end of this process.
    Ok(job.end())
}

fn from_environment(value: Option<OsString>) -> Result<Fence, Failure> {
    let Some(value) = value else {
        return Err(Failure::new(
            Exit::Usage,
            format!(
                "no fence was given: write one, or run this under `verrou run`, which sets {VARIABLE}"
            ),
        ));
    };
    arguments::fence(&value.to_string_lossy())
        .map_err(|why| Failure::new(Exit::Usage, format!("{VARIABLE}: {why}")))
}

/// Checks the fence; tells the person at the terminal what is waited for, if it takes long enough for
/// a person to notice.
fn wait(gate: &FenceGate, wish: &FenceCheck, fence: Fence) -> Result<Checked, FenceError> {
    const NOTICED: Duration = Duration::from_millis(200);

    let mut at_most = wish.at_most();
    if at_most.is_none_or(|at_most| at_most > NOTICED) && io::stderr().is_terminal() {
        match gate.check_within(fence, NOTICED) {
            Err(FenceError::File(err @ FileError::Busy { .. })) => {
                say(&format!("waiting: {err}"));
                at_most = at_most.map(|at_most| at_most.saturating_sub(NOTICED));
            }
            done => return done,
        }
    }
    match at_most {
        Some(at_most) => gate.check_within(fence, at_most),
        None => gate.check(fence),
    }
}

/// Says whether the fence has passed, for programs.
fn tell(
    wish: &FenceCheck,
    fence: Fence,
    checked: &Result<Checked, FenceError>,
) -> Result<(), Failure> {
    let (passed, highest) = match checked {
        Ok(_) => (true, fence),
        Err(FenceError::Refused { highest, .. }) => (false, *highest),
        Err(_) => return Ok(()),
    };
    let answer = json!({
        "file": wish.file.to_string_lossy(),
        "fence": fence.get(),
        "passed": passed,
        "highest": highest.get(),
    });
    report::answer_json(&answer)
}

/// Runs the command to its end, which inherits what keeps others from passing: should this process be
/// killed, they wait for the command all the same.
fn run(
    program: &OsStr,
    arguments: &[OsString],
    fence: Fence,
    checked: &Checked,
) -> Result<Job, Failure> {
    let mut command = Command::new(program);
    command.args(arguments).env(VARIABLE, fence.to_string());
    // As `run` does: without its password.
    if let Some(url) = store::inherited() {
        command.env("VERROU_STORE", OsString::from(&url));
    }
    let started = checked
        .lifeline()
        .and_then(|lifeline| Job::start(command, Some(lifeline), Ending::default()));
    let mut job = started.map_err(|err| not_started(program, &err))?;
    wait_for_end(&mut job);
    Ok(job)
}
