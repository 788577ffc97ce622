//! Hostile names, serialized locks and command lines: each works, or is named in an error.

mod names;
mod serialized_locks;
mod command_lines;

use std::path::Path;
use std::process::{Command, Stdio};

use verrou::is_hidden;

use crate::child_process::Ended;
use crate::results::Findings;
use crate::store_call::Kind;

pub(super) use self::command_lines::command_lines;
pub(super) use self::names::{names_in_the_library, names_on_the_command_line};
pub(super) use self::serialized_locks::{serialized, serialized_on_the_command_line};

/// Checks that a program ended without a panic or a signal, with one of `codes`, and that its error
/// contains one of `said`.
fn check_end(
    findings: &mut Findings,
    command_line: &dyn Fn() -> String,
    ended: &Ended,
    codes: &[i32],
    said: &[&str],
) {
    let code = ended.code().unwrap_or(-1);
    findings.check(!ended.is_abnormal(), || {
        format!(
            "{}: {code} after {:?}: {}",
            command_line(),
            ended.took,
            truncated(&ended.err)
        )
    });
    findings.check(codes.contains(&code), || {
        format!(
            "{}: exit code {code}, expected one of {codes:?}: {}",
            command_line(),
            truncated(&ended.err)
        )
    });
    // Exit codes of CMD have no error message.
    let needs_words = ![0, 1].contains(&code);
    let has_words = said.is_empty() || said.iter().any(|said| ended.err.contains(said));
    findings.check(
        !needs_words || (has_words && ended.err.starts_with("verrou: ")),
        || {
            format!(
                "{}: the error contains none of {said:?}: {}",
                command_line(),
                truncated(&ended.err)
            )
        },
    );
    let raw = ended.err.chars().chain(ended.out.chars());
    let raw: Vec<_> = raw
        .filter(|char| is_hidden(*char) && !"\n\t".contains(*char))
        .collect();
    findings.check(raw.is_empty(), || {
        format!("{}: prints {raw:?} to the terminal", command_line())
    });
}

fn truncated(text: &str) -> &str {
    let text = text.trim_end();
    &text[..text.floor_char_boundary(300)]
}

/// Returns a `verrou` command with a store of leases in `directory`.
fn verrou(program: &Path, directory: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .current_dir("/")
        .env("VERROU_STORE", Kind::Lease.url(directory))
        .env_remove("VERROU_LOCK")
        .stdin(Stdio::null());
    command
}
