//! The resource's side of fencing: `fence check` and `fence reset`.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::{self, IsTerminal};
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use verrou::Fence;
use verrou_host::{Checked, FenceError, FenceGate, FileError};

use crate::arguments::{FenceCheck, FenceReset, GlobalOptions};
use crate::ending::{Ending, Lifeline};
use crate::exit::Exit;
use crate::job::Job;
use crate::output::{self, Failure, say};
use crate::run::{not_started, wait_for_end};
use crate::{store, value_parsers};

/// The environment variable in which `verrou run` passes the fencing token to its command.
const VARIABLE: &str = "VERROU_FENCE";

/// Checks a fencing token, and runs the command, if there is one, before another token can be accepted.
/// Returns the exit code.
pub(crate) fn check(global: &GlobalOptions, args: &FenceCheck) -> Result<u8, Failure> {
    let fence = match args.fence {
        Some(fence) => fence,
        None => from_environment(env::var_os(VARIABLE))?,
    };
    let gate = FenceGate::open(&args.file, &store::options(global))?;
    let checked = wait(&gate, args, fence);
    let [program, arguments @ ..] = &args.command[..] else {
        if global.json {
            print_result(args, fence, &checked)?;
        }
        drop(checked.map_err(|err| failure(args, err))?);
        return Ok(0);
    };
    let checked = checked.map_err(|err| failure(args, err))?;
    let job = run(args, program, arguments, fence, &checked)?;
    drop(checked);
    // Not earlier: this may end this process, and other checks wait until the gate is unlocked.
    Ok(job.end())
}

/// Returns the failure of a check, with advice if the file's number is one that no store grants.
fn failure(args: &FenceCheck, err: FenceError) -> Failure {
    let is_poisoned = matches!(&err, FenceError::Refused { highest, .. } if *highest > Fence::LAST);
    let failure = Failure::from(err);
    if is_poisoned {
        let file = args.file.display();
        return failure.advising(&format!(
            "no store grants that token; the file's owner can set another one with `verrou fence reset --file {file} \
             --to N`"
        ));
    }
    failure
}

/// Sets the number in a gate's file.
pub(crate) fn reset(global: &GlobalOptions, args: &FenceReset) -> Result<(), Failure> {
    let gate = FenceGate::open(&args.file, &store::options(global))?;
    let before = gate.reset(args.to)?;
    if global.json {
        return output::answer_json(&json!({
            "file": args.file.to_string_lossy(),
            "before": before.map(Fence::get),
            "highest": args.to.get(),
        }));
    }
    let before = match before {
        Some(before) => format!("was {before}"),
        None => "was not set, or corrupt".to_owned(),
    };
    output::answer_lines(&format!(
        "{}: the greatest fencing token {before}, and is {} now; every token from there on is accepted, also that of \
         an earlier holder that has lost the lock",
        args.file.display(),
        args.to,
    ))
}

fn from_environment(value: Option<OsString>) -> Result<Fence, Failure> {
    let Some(value) = value else {
        return Err(Failure::new(
            Exit::Usage,
            format!(
                "no fencing token was given: write one, or run this under `verrou run`, which sets {VARIABLE}"
            ),
        ));
    };
    value_parsers::fence(&value.to_string_lossy())
        .map_err(|why| Failure::new(Exit::Usage, format!("{VARIABLE}: {why}")))
}

/// Checks the fencing token. If that takes long enough for a user to notice, prints to a terminal what
/// the check waits for.
fn wait(gate: &FenceGate, args: &FenceCheck, fence: Fence) -> Result<Checked, FenceError> {
    const NOTICED: Duration = Duration::from_millis(200);

    let mut at_most = args.at_most();
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

/// Prints as JSON whether the fencing token was accepted.
fn print_result(
    args: &FenceCheck,
    fence: Fence,
    checked: &Result<Checked, FenceError>,
) -> Result<(), Failure> {
    let (passed, highest) = match checked {
        Ok(_) => (true, fence),
        Err(FenceError::Refused { highest, .. }) => (false, *highest),
        Err(_) => return Ok(()),
    };
    let answer = json!({
        "file": args.file.to_string_lossy(),
        "fence": fence.get(),
        "passed": passed,
        "highest": highest.get(),
    });
    output::answer_json(&answer)
}

/// Runs the command to its end. Other checks wait for the command even if this process is killed.
fn run(
    args: &FenceCheck,
    program: &OsStr,
    arguments: &[OsString],
    fence: Fence,
    checked: &Checked,
) -> Result<Job, Failure> {
    let mut command = Command::new(program);
    command.args(arguments).env(VARIABLE, fence.to_string());
    // The URL without its password, as `verrou run` passes it.
    if let Some(url) = store::inherited() {
        command.env("VERROU_STORE", OsString::from(&url));
    }
    let started = checked
        .lifeline()
        .map(|file| Lifeline {
            file,
            is_inherited: !args.close,
        })
        .and_then(|lifeline| Job::start(command, Some(lifeline), Ending::default()));
    let mut job = started.map_err(|err| not_started(program, &err))?;
    wait_for_end(&mut job);
    Ok(job)
}
