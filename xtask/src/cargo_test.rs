//! Runs `cargo test`, and lists the tests that failed.

use std::io::{BufRead, BufReader, Write, stdout};
use std::process::{Command, Stdio};

use anyhow::{Result, bail};
use xshell::Cmd;

/// Runs `command`, prints its output, and fails with the names of the tests that failed.
pub(crate) fn run(command: Cmd<'_>) -> Result<()> {
    let mut child = Command::from(command).stdout(Stdio::piped()).spawn()?;
    let mut failed = Vec::new();
    for line in child.stdout.take().into_iter().flat_map(lines) {
        let line = line?;
        writeln!(stdout(), "{line}")?;
        failed.extend(failed_test(&line).map(str::to_owned));
    }
    let status = child.wait()?;
    if status.success() {
        return Ok(());
    }
    if failed.is_empty() {
        bail!("{status}");
    }
    bail!("{status}; failed tests: {}", failed.join(", "))
}

fn lines(output: impl std::io::Read) -> impl Iterator<Item = std::io::Result<String>> {
    let lines = BufReader::new(output).split(b'\n');
    lines.map(|line| Ok(String::from_utf8_lossy(&line?).into_owned()))
}

/// Returns the test that `line` of the output of libtest reports as failed.
fn failed_test(line: &str) -> Option<&str> {
    line.strip_prefix("test ")?.strip_suffix(" ... FAILED")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_tests_are_named() {
        assert_eq!(failed_test("test a::b ... FAILED"), Some("a::b"));
        assert_eq!(failed_test("test a::b ... ok"), None);
        assert_eq!(failed_test("test result: FAILED. 0 passed"), None);
    }
}
