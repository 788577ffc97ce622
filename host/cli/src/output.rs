//! The output of the command, for users and for programs.

use std::error::Error as StdError;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use verrou::{Error, Holder, InvalidSerializedLock, Name, Printable, is_hidden};
use verrou_host::{FenceError, FileError, OpenError, OpenStoreError};

use crate::exit::Exit;
use crate::standard_output;

/// The reason why the command failed.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: u8,
    code: Option<&'static str>,
    what: String,
    is_temporary: bool,
}

impl Failure {
    /// Returns a failure with the exit code `exit` and the message `what`.
    pub(crate) fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self {
            exit: exit.code(),
            code: None,
            what: what.into(),
            is_temporary: false,
        }
    }

    /// Returns a failure with a stable error code.
    pub(crate) fn coded(exit: Exit, code: &'static str, what: impl Into<String>) -> Self {
        Self {
            code: Some(code),
            ..Self::new(exit, what)
        }
    }

    /// Returns the same failure with another exit code.
    pub(crate) fn exiting(self, exit: u8) -> Self {
        Self { exit, ..self }
    }

    /// Returns the same failure, with `advice` appended to its message.
    pub(crate) fn advising(mut self, advice: &str) -> Self {
        self.what.push_str("; ");
        self.what.push_str(advice);
        self
    }

    /// Returns the exit code.
    pub(crate) fn exit(&self) -> u8 {
        self.exit
    }

    /// Returns the message.
    pub(crate) fn what(&self) -> &str {
        &self.what
    }

    /// Returns whether the same command line may succeed later.
    pub(crate) fn is_temporary(&self) -> bool {
        self.is_temporary
    }

    /// Prints the failure to standard error.
    pub(crate) fn report(&self, json: bool) {
        if json {
            let line = json!({ "error": self.code, "message": self.what, "exit": self.exit });
            to_stderr(&in_json(&line));
        } else if let Some(code) = self.code {
            say(&format!("{} ({code})", self.what));
        } else {
            say(&self.what);
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::coded(Exit::from(&error), error.code(), chain(&error))
    }
}

impl From<OpenStoreError> for Failure {
    fn from(error: OpenStoreError) -> Self {
        Self {
            is_temporary: error.is_temporary(),
            ..Self::coded(Exit::NoStore, "E_LOCK_STORAGE_ERROR", chain(&error))
        }
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        OpenStoreError::from(error).into()
    }
}

impl From<FenceError> for Failure {
    fn from(error: FenceError) -> Self {
        let code = match &error {
            FenceError::Refused { .. } => "E_FENCE_REFUSED",
            FenceError::File(FileError::Busy { .. }) => "E_FENCE_TIMEOUT",
            _ => "E_LOCK_STORAGE_ERROR",
        };
        Self::coded(Exit::from(&error), code, chain(&error))
    }
}

impl From<InvalidSerializedLock> for Failure {
    fn from(error: InvalidSerializedLock) -> Self {
        Error::from(error).into()
    }
}

/// Returns the messages of `error` and its causes, as one line.
pub(crate) fn chain(error: &dyn StdError) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        // Some errors repeat the message of their cause.
        if !line.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        cause = error.source();
    }
    line
}

/// Prints `what` to standard error, as one line.
pub(crate) fn say(what: &str) {
    to_stderr(&format!("verrou: {}", one_line(what)));
}

/// Prints `what` to standard error, as one or several lines.
pub(crate) fn say_lines(what: &str) {
    to_stderr(&format!("verrou: {}", printable(what)));
}

/// Prints the warning `what` to standard error. The command still does its work.
pub(crate) fn warn(json: bool, what: &str) {
    if json {
        to_stderr(&in_json(&json!({ "warning": what })));
    } else {
        say(&format!("warning: {what}"));
    }
}

/// Returns `text` with hidden characters escaped, except for line feeds: names and labels are not trusted.
fn printable(text: &str) -> String {
    let lines: Vec<_> = text.split('\n').map(one_line).collect();
    lines.join("\n")
}

/// Returns `text` as [`printable`] does, on one line.
pub(crate) fn one_line(text: &str) -> String {
    Printable(text).to_string()
}

/// Returns `value` as one line of JSON that is safe to print to a terminal.
fn in_json(value: &Value) -> String {
    let text = value.to_string();
    let mut safe = String::with_capacity(text.len());
    for char in text.chars() {
        if is_hidden(char) {
            // Such characters occur only in JSON strings.
            for unit in char.encode_utf16(&mut [0; 2]) {
                let _ = write!(safe, "\\u{unit:04x}");
            }
        } else {
            safe.push(char);
        }
    }
    safe
}

/// Returns the stable error code whose text is `text`, if there is one.
pub(crate) fn code(text: &str) -> Option<&'static str> {
    const CODES: [&str; 5] = [
        "E_INVALID_NAME",
        "E_INVALID_RETRY",
        "E_INVALID_SERIALIZED_LOCK",
        "E_INVALID_STORE",
        "E_INVALID_TTL",
    ];
    CODES.into_iter().find(|&code| code == text)
}

/// Writes `line` to standard error. A failure cannot be reported.
fn to_stderr(line: &str) {
    let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// Writes `text` and a line feed to standard output, and flushes it.
pub(crate) fn print(text: &str) -> io::Result<()> {
    standard_output::check()?;
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.write_all(b"\n")?;
    out.flush()
}

/// Prints the result of the command, as one line. A pipe that its reader has closed is not a failure.
pub(crate) fn answer(text: &str) -> Result<(), Failure> {
    answer_lines(&one_line(text))
}

/// Prints the result of the command, as one or several lines.
pub(crate) fn answer_lines(text: &str) -> Result<(), Failure> {
    match print(&printable(text)) {
        Err(err) if err.kind() != io::ErrorKind::BrokenPipe => Err(unwritten(&err)),
        _ => Ok(()),
    }
}

/// Prints the result of the command as JSON.
pub(crate) fn answer_json(value: &Value) -> Result<(), Failure> {
    answer(&in_json(value))
}

/// Returns the failure for a result that could not be written.
pub(crate) fn unwritten(why: &io::Error) -> Failure {
    Failure::new(
        Exit::Storage,
        format!("cannot write to standard output: {why}"),
    )
}

/// Returns a description of the holder: `held by process 12 on web1 (sleep 9) for 3s, fence 7, …`.
pub(crate) fn holder(holder: &Holder) -> String {
    let mut text = match &holder.process {
        Some(process) if holder.detached => {
            format!("held by a detached lease, acquired by {process}")
        }
        Some(process) => format!("held by {process}"),
        None => "held by an unknown process".to_owned(),
    };
    match age(holder) {
        Some(age) if holder.detached => {
            let _ = write!(text, " {} ago", length(age));
        }
        Some(age) => {
            let _ = write!(text, " for {}", length(age));
        }
        None => {}
    }
    if let Some(fence) = holder.fence {
        let _ = write!(text, ", fence {fence}");
    }
    match holder.remaining {
        Some(left) if left.is_zero() => {
            text.push_str(", its lease has expired but its processes still run");
        }
        Some(left) => {
            let _ = write!(text, ", its lease expires in {}", length(left));
        }
        None => {}
    }
    text
}

/// Returns the holder of the lock `name` as JSON, without its owner token: with the token, any process
/// can release the lock.
pub(crate) fn holder_json(name: &Name, holder: Option<&Holder>) -> Value {
    let Some(holder) = holder else {
        return json!({ "name": name.as_str(), "held": false });
    };
    let process = holder.process.as_ref().map(
        |process| json!({ "id": process.id, "host": process.host, "command": process.command }),
    );
    json!({
        "name": name.as_str(),
        "held": true,
        "fence": holder.fence.map(verrou::Fence::get),
        "since": holder.since.map(millis),
        "remaining": holder.remaining.map(millis),
        "process": process,
        "detached": holder.detached,
    })
}

fn millis(length: Duration) -> u64 {
    length.as_millis().try_into().unwrap_or(u64::MAX)
}

/// Returns how long the lock has been held, by the wall clock.
pub(crate) fn age(holder: &Holder) -> Option<Duration> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    now.checked_sub(holder.since?)
}

/// Returns a length of time for users: in whole seconds from 10 s, in milliseconds below.
pub(crate) fn length(length: Duration) -> String {
    let rounded = if length >= Duration::from_secs(10) {
        Duration::from_secs(length.as_secs())
    } else {
        Duration::from_millis(millis(length))
    };
    humantime::format_duration(rounded).to_string()
}

/// Prints the events of locks to standard error from now on, if `verbose` is greater than zero: warnings and
/// the events of a lock's life, or all.
#[cfg(feature = "tracing")]
pub(crate) fn print_events(verbose: u8) {
    let most = match verbose {
        0 => return,
        1 => tracing::Level::INFO,
        _ => tracing::Level::DEBUG,
    };
    tracing_subscriber::fmt()
        .with_max_level(most)
        .with_target(false)
        .with_ansi(false)
        .with_writer(io::stderr)
        .init();
}
