//! A fixture in a program in another language, which executes the operations of a store *through the
//! component*.
//!
//! Each line of its input requests one operation of one client, and has the time:
//! `{"client": 1, "now": 5000, "step": {"inspect": {"name": "x"}}}`. The operations and their answers are
//! those of `verrou serve`; `{"drop": {}}` ends a client.

#![allow(dead_code, reason = "each test file uses some of it")]

use std::fmt;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{self, Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use verrou::conformance::{Fixture, TestClock};
use verrou::{
    Acquired, Capabilities, Claim, Clock, Fence, Holder, Name, Renewed, Store, StoreError,
};

/// Ends the tests because of `why`; no test counts as passed.
pub(crate) fn not_run(why: &str) -> ! {
    // The captured output of a test is not printed.
    let _ = io::stderr().write_all(format!("\nNOT RUN: {why}\n").as_bytes());
    process::exit(0);
}

/// Returns the directory of an example in JavaScript, if its `component` has the built file `made`.
pub(crate) fn built(example: &str, made: &str) -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let directory = package.with_file_name("examples").join(example);
    if !directory.join("component").join(made).exists() {
        not_run(&format!(
            "the tests of stores in JavaScript, because examples/{example} is not built; \
             `cargo xtask test` builds it, and runs them"
        ));
    }
    directory
}

/// A fixture in a process of its own, which has the time of the test's clock.
pub(crate) struct Foreign {
    process: Arc<Process>,
    clients: AtomicU32,
}

impl Foreign {
    pub(crate) fn new(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|err| panic!("{command:?}: {err}"));
        let pipe = Pipe {
            asked: child.stdin.take().expect("it is a pipe"),
            answers: BufReader::new(child.stdout.take().expect("it is a pipe")),
        };
        let process = Process {
            clock: TestClock::still(),
            pipe: Mutex::new(pipe),
            child: Mutex::new(child),
        };
        Self {
            process: Arc::new(process),
            clients: AtomicU32::new(0),
        }
    }
}

impl Fixture for Foreign {
    type Store = Client;
    type Host = TestClock;

    fn client(&self) -> Client {
        Client {
            process: Arc::clone(&self.process),
            number: self.clients.fetch_add(1, Ordering::Relaxed),
        }
    }

    fn host(&self) -> TestClock {
        self.process.clock.clone()
    }

    fn pass(&self, time: Duration) {
        self.process.clock.advance(time);
    }
}

/// The process that executes the operations of all clients of a fixture.
struct Process {
    clock: TestClock,
    pipe: Mutex<Pipe>,
    child: Mutex<Child>,
}

struct Pipe {
    asked: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Process {
    /// Requests one operation, and returns its answer.
    fn ask(&self, client: u32, operation: &Value) -> io::Result<Value> {
        let mut pipe = self.pipe.lock().unwrap_or_else(PoisonError::into_inner);
        // The clock is read while the pipe is locked; otherwise the time in the process could go back.
        let now = nanos(self.clock.now().since_start());
        let line = json!({ "client": client, "now": now, "step": operation });
        pipe.asked.write_all(format!("{line}\n").as_bytes())?;
        let mut answer = String::new();
        pipe.answers.read_line(&mut answer)?;
        Ok(serde_json::from_str(&answer)?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let child = self.child.get_mut().unwrap_or_else(PoisonError::into_inner);
        // The process needs no cleanup.
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// One instance of the component.
pub(crate) struct Client {
    process: Arc<Process>,
    number: u32,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl Client {
    #[track_caller]
    fn ask(&self, operation: &Value) -> Result<Value, StoreError> {
        let answer = self.process.ask(self.number, operation);
        let answer =
            answer.unwrap_or_else(|err| panic!("the program did not answer to {operation}: {err}"));
        let Some(error) = answer.get("error") else {
            return Ok(answer);
        };
        let message = error["message"].as_str().expect("a message").to_owned();
        Err(if error["temporary"].as_bool().expect("a bool") {
            StoreError::temporary(message)
        } else {
            StoreError::permanent(message)
        })
    }

    #[track_caller]
    fn is_done(&self, operation: &Value) -> Result<bool, StoreError> {
        let answer = self.ask(operation)?;
        let is_done = answer.get("granted").is_some();
        assert!(is_done || answer.get("refused").is_some(), "{answer}");
        Ok(is_done)
    }
}

impl Store for Client {
    fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
        let answer = self.ask(&json!({ "acquire": members(claim) }))?;
        if let Some(token) = answer.get("granted") {
            let fence = number(token).map(|token| Fence::new(token).expect("a fencing token"));
            return Ok(Acquired::Granted { fence });
        }
        let remaining = answer.get("refused").expect("a reply");
        Ok(Acquired::Busy {
            remaining: number(remaining).map(Duration::from_nanos),
        })
    }

    fn extend(&self, claim: &Claim) -> Result<bool, StoreError> {
        self.is_done(&json!({ "extend": members(claim) }))
    }

    fn renew(&self, claim: &Claim, fence: Option<Fence>) -> Result<Renewed, StoreError> {
        let mut renewal = members(claim);
        renewal["fencing_token"] = json!(fence.map(Fence::get));
        let answer = self.ask(&json!({ "renew": renewal }))?;
        Ok(match answer["renewed"].as_str() {
            Some("granted") => Renewed::Granted,
            Some("released") => Renewed::Released,
            Some("lost") => Renewed::Lost,
            _ => panic!("{answer}"),
        })
    }

    fn release(&self, claim: &Claim) -> Result<bool, StoreError> {
        self.is_done(&json!({ "release": members(claim) }))
    }

    fn force_release(&self, name: &Name, only: Option<Fence>) -> Result<bool, StoreError> {
        let only = only.map(Fence::get);
        self.is_done(&json!({ "evict": { "name": name.as_str(), "only": only } }))
    }

    fn holders(&self, name: &Name) -> Result<Vec<Holder>, StoreError> {
        let answer = self.ask(&json!({ "inspect": { "name": name.as_str() } }))?;
        assert!(
            !has_owner(&answer.to_string()),
            "the answer has an owner token: {answer}"
        );
        let holder = answer.get("holder").expect("a holder, or none");
        if holder.is_null() {
            return Ok(Vec::new());
        }
        Ok(vec![Holder::new(
            number(&holder["fencing_token"]).and_then(Fence::new),
            number(&holder["remaining"]).map(Duration::from_nanos),
        )])
    }

    fn detach(&self, claim: &Claim) -> Result<bool, StoreError> {
        self.is_done(&json!({ "detach": members(claim) }))
    }

    fn capabilities(&self) -> Capabilities {
        let answer = self.ask(&json!({ "abilities": {} })).expect("an answer");
        let can = |ability| answer["abilities"][ability].as_bool().expect("a bool");
        let mut capabilities = Capabilities::NONE;
        capabilities.expires = can("expires");
        capabilities.ephemeral = can("ephemeral");
        capabilities.transfers = can("transfers");
        capabilities.force_releases = can("evicts");
        capabilities.fences = can("fences");
        capabilities.revives = can("revives");
        capabilities
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // A process that has ended has no clients left.
        let _ = self.process.ask(self.number, &json!({ "drop": {} }));
    }
}

fn members(claim: &Claim) -> Value {
    json!({
        "name": claim.name.as_str(),
        "owner": claim.owner.to_string(),
        "ttl": claim.ttl.duration().map(nanos),
        "ephemeral": claim.ephemeral,
    })
}

#[track_caller]
fn number(value: &Value) -> Option<u64> {
    assert!(value.is_null() || value.is_u64(), "{value} is not a number");
    value.as_u64()
}

fn nanos(length: Duration) -> u64 {
    length.as_nanos().try_into().expect("it fits")
}

/// Returns whether a word of `text` can be an owner token.
fn has_owner(text: &str) -> bool {
    let words = text.split(|char: char| !char.is_ascii_hexdigit());
    words.into_iter().any(|word| word.len() == 32)
}
