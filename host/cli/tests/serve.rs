//! `verrou serve`, used as a program in another language would use it.
#![cfg(target_os = "linux")]

mod common;

use std::collections::VecDeque;
use std::fmt::Display;
use std::fs::{DirBuilder, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use common::{
    KINDS, Started, TestDir, code, done, ends_with, eventually, prefixed, stderr, stdout, switches,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

const ONE: &str = "00112233445566778899aabbccddeeff";
const TWO: &str = "ffeeddccbbaa99887766554433221100";
const MINUTE: u64 = 60_000_000_000;

/// A `verrou serve`, and both ends of its pipes.
struct Served {
    child: Child,
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    /// The notifications that were read before an answer.
    notified: VecDeque<Value>,
}

/// The first fence of a store whose counter [`count_from_first`] has set.
const FIRST: u64 = 101;

impl Served {
    fn new(dir: &TestDir) -> Self {
        count_from_first(dir);
        Self::of(dir.verrou(["serve"]))
    }

    /// Starts `verrou serve` with the options `limit` of the shell's `ulimit`.
    fn limited(dir: &TestDir, limit: &str) -> Self {
        let verrou = dir.verrou(["serve"]);
        let script = format!("ulimit {limit} && exec \"$@\"");
        Self::of(prefixed(&["sh", "-c", &script, "sh"], &verrou))
    }

    fn of(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let requests = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().unwrap());
        let mut served = Self {
            child,
            requests,
            answers,
            notified: VecDeque::new(),
        };
        let greeting = json!({ "protocol": "verrou serve", "version": 1 });
        assert_eq!(served.read(), greeting);
        served
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn write(&mut self, line: impl AsRef<[u8]>) {
        let requests = self.requests.as_mut().unwrap();
        requests.write_all(line.as_ref()).unwrap();
    }

    fn read(&mut self) -> Value {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|err| panic!("{line:?}: {err}"))
    }

    fn ask(&mut self, request: impl Display) -> Value {
        self.write(format!("{request}\n"));
        loop {
            let answer = self.read();
            if answer.get("notified").is_none() {
                return answer;
            }
            self.notified.push_back(answer);
        }
    }

    /// Returns the next notification.
    fn notification(&mut self) -> Value {
        self.notified.pop_front().unwrap_or_else(|| self.read())
    }

    /// Requests an operation with a claim on `x`.
    fn operate(&mut self, operation: &str, owner: &str, ttl: impl Into<Value>) -> Value {
        let ttl: Value = ttl.into();
        let claim = json!({ "name": "x", "owner": owner, "ttl": ttl, "ephemeral": true });
        self.ask(json!({ operation: claim }))
    }

    fn holder(&mut self) -> Value {
        self.ask(json!({ "inspect": { "name": "x" } }))["holder"].take()
    }

    /// Sends an invalid request, and returns the message of its permanent error.
    #[track_caller]
    fn complaint(&mut self, request: impl Display) -> String {
        let answer = self.ask(request);
        let error = &answer["error"];
        assert_eq!(error["temporary"], false, "{answer}");
        error["message"].as_str().unwrap().to_owned()
    }

    /// Closes its input, and waits for its end.
    fn end(mut self) {
        drop(self.requests.take());
        for line in self.answers.by_ref().lines() {
            let line = line.unwrap();
            assert!(line.starts_with("{\"notified\":"), "{line}");
        }
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes the fences of the store begin with [`FIRST`] if there is no store yet. A new counter would begin
/// by the clock.
fn count_from_first(dir: &TestDir) {
    if dir.locks().exists() {
        return;
    }
    let mut counter = [0; 24];
    counter[..8].copy_from_slice(b"VERROUF\n");
    counter[12] = 1;
    counter[16..].copy_from_slice(&(FIRST - 1).to_le_bytes());
    let checksum = crc32c::crc32c(&counter[12..]);
    counter[8..12].copy_from_slice(&checksum.to_le_bytes());
    DirBuilder::new().mode(0o700).create(dir.locks()).unwrap();
    let mut options = File::options();
    let options = options.write(true).create_new(true).mode(0o600);
    let mut file = options.open(dir.locks().join("fences")).unwrap();
    file.write_all(&counter).unwrap();
}

fn granted(token: u64) -> Value {
    json!({ "granted": token })
}

/// Returns whether `answer` is a grant, with or without a fencing token: only a reply to `acquire` must have one.
fn is_granted(answer: &Value) -> bool {
    answer.get("granted").is_some()
}

/// Returns the words of `texts` that can be owner tokens, cut to the length of one.
fn owners_in(texts: &[String]) -> Vec<String> {
    let words = texts.iter().flat_map(|text| {
        text.split(|char: char| !char.is_ascii_hexdigit())
            .filter(|word| word.len() >= 32)
    });
    words.map(|word| word[..32].to_owned()).collect()
}

/// Another client reads all that `serve`, `show` and `list` print about a lock, and tries to release and
/// extend the lock with it.
#[test]
fn other_client_reads_no_owner_token_and_cannot_release() {
    for kind in KINDS {
        let dir = TestDir::new(kind);
        let (mut holder, mut other) = (Served::new(&dir), Served::new(&dir));
        assert!(is_granted(&holder.operate("acquire", ONE, MINUTE)));
        let mut seen = vec![
            other.operate("acquire", TWO, MINUTE).to_string(),
            other.operate("extend", TWO, MINUTE).to_string(),
            other.operate("queue", TWO, MINUTE).to_string(),
            other.ask(json!({ "inspect": { "name": "x" } })).to_string(),
            other
                .ask(json!({ "inspect": { "name": "x", "owner": TWO } }))
                .to_string(),
        ];
        other.operate("give_up", TWO, MINUTE);
        for arguments in [
            &["show", "x"][..],
            &["show", "x", "--json"],
            &["list"],
            &["list", "--json"],
        ] {
            let said = ends_with(&mut dir.verrou(arguments), 0);
            seen.push(format!("{}{}", stdout(&said), stderr(&said)));
        }
        for owner in owners_in(&seen) {
            other.operate("extend", &owner, 1);
            other.operate("release", &owner, MINUTE);
        }
        assert!(seen.iter().all(|text| !text.contains(ONE)), "{seen:?}");
        let mine = |owner: &str| json!({ "inspect": { "name": "x", "owner": owner } });
        assert_eq!(other.ask(mine(TWO))["holder"]["mine"], false);
        assert_eq!(holder.ask(mine(ONE))["holder"]["mine"], true);
        let complaint = other.complaint(mine("x"));
        assert!(complaint.contains("owner"), "{complaint}");
        assert!(is_granted(&holder.operate("release", ONE, MINUTE)));
        assert_eq!(holder.ask(mine(ONE))["holder"], Value::Null);
    }
}

#[test]
fn every_operation_of_a_lease_store_is_served() {
    let dir = TestDir::new("lease");
    let (mut one, mut two) = (Served::new(&dir), Served::new(&dir));
    let all = json!({
        "expires": true, "ephemeral": true, "transfers": true, "evicts": true, "fences": true,
        "revives": true,
    });
    assert_eq!(one.ask(json!({ "abilities": {} }))["abilities"], all);
    assert_eq!(one.holder(), Value::Null);

    assert_eq!(one.operate("acquire", ONE, MINUTE), granted(FIRST));
    let refused = two.operate("acquire", TWO, MINUTE);
    let left = refused["refused"].as_u64().unwrap();
    assert!(0 < left && left <= MINUTE, "{left}");
    let holder = two.holder();
    assert_eq!(holder["fencing_token"], json!(FIRST));
    assert!(!holder.to_string().contains(ONE), "{holder}");
    assert!(holder["remaining"].as_u64().unwrap() <= MINUTE);

    assert!(is_granted(&one.operate("extend", ONE, Value::Null)));
    assert_eq!(two.holder()["remaining"], Value::Null);
    let renew = |ttl: u64, token: u64| {
        json!({ "renew": {
            "name": "x", "owner": ONE, "ttl": ttl, "ephemeral": true, "fencing_token": token,
        } })
    };
    assert_eq!(
        one.ask(renew(MINUTE, FIRST)),
        json!({ "renewed": "granted" })
    );
    assert_eq!(two.holder()["remaining"], Value::Null, "it is no shorter");
    assert_eq!(
        one.ask(renew(MINUTE, FIRST + 1)),
        json!({ "renewed": "lost" })
    );
    assert!(one.complaint(renew(MINUTE, 0)).contains("fencing_token"));
    assert!(two.operate("extend", TWO, MINUTE).get("refused").is_some());
    assert!(two.operate("release", TWO, MINUTE).get("refused").is_some());
    assert!(is_granted(&two.operate("release", ONE, MINUTE)));
    assert_eq!(
        one.ask(renew(MINUTE, FIRST)),
        json!({ "renewed": "released" })
    );
    assert_eq!(two.operate("acquire", TWO, MINUTE), granted(FIRST + 1));

    let force_release = |only: Value| json!({ "evict": { "name": "x", "only": only } });
    assert!(
        one.ask(force_release(json!(FIRST)))
            .get("refused")
            .is_some()
    );
    assert!(is_granted(&one.ask(force_release(json!(FIRST + 1)))));
    assert!(one.ask(force_release(Value::Null)).get("refused").is_some());
    assert_eq!(one.operate("acquire", ONE, MINUTE), granted(FIRST + 2));
    one.end();
    two.end();
}

#[test]
fn file_store_declares_its_missing_capabilities() {
    let dir = TestDir::new("file");
    let mut served = Served::new(&dir);
    let can = served.ask(json!({ "abilities": {} }))["abilities"].take();
    assert_eq!(
        (&can["evicts"], &can["transfers"]),
        (&json!(false), &json!(false))
    );
    assert_eq!(served.operate("acquire", ONE, MINUTE), granted(FIRST));
    let said = served.complaint(json!({ "evict": { "name": "x", "only": null } }));
    assert!(!said.is_empty());
    assert!(
        Served::new(&dir)
            .operate("release", ONE, MINUTE)
            .get("refused")
            .is_some()
    );
    assert!(is_granted(&served.operate("release", ONE, MINUTE)));
    served.end();
}

#[test]
fn invalid_request_is_an_error_and_serving_continues() {
    let dir = TestDir::new("lease");
    let mut served = Served::new(&dir);
    let claim = |member: &str, value: Value| {
        let mut claim = json!({ "name": "x", "owner": ONE, "ttl": MINUTE, "ephemeral": true });
        claim[member] = value;
        json!({ "acquire": claim }).to_string()
    };
    let without = |member: &str| {
        let mut claim = json!({ "name": "x", "owner": ONE, "ttl": MINUTE, "ephemeral": true });
        claim.as_object_mut().unwrap().remove(member);
        json!({ "acquire": claim }).to_string()
    };
    let long = "n".repeat(1025);
    let cases = [
        (String::new(), "invalid request"),
        ("{".to_owned(), "`verrou serve --help`"),
        ("[]".to_owned(), "invalid request"),
        ("{}".to_owned(), "invalid request"),
        ("\"abilities\"".to_owned(), "invalid request"),
        ("{\"abilities\":{}} {}".to_owned(), "trailing characters"),
        ("{\"steal\":{}}".to_owned(), "`steal`"),
        ("{\"abilities\":{\"x\":1}}".to_owned(), "`x`"),
        (
            "{\"abilities\":{},\"inspect\":{\"name\":\"x\"}}".to_owned(),
            "invalid request",
        ),
        (claim("name", json!("")), "E_INVALID_NAME"),
        (claim("name", json!(long)), "E_INVALID_NAME"),
        (claim("name", json!(7)), "expected a string"),
        (claim("owner", json!("")), "32 hexadecimal digits"),
        (
            claim("owner", json!("é".repeat(16))),
            "32 hexadecimal digits",
        ),
        (claim("ttl", json!(0)), "E_INVALID_TTL"),
        (claim("ttl", json!(u64::MAX)), "E_INVALID_TTL"),
        (claim("ttl", json!(-1)), "-1"),
        (claim("ttl", json!(1.5)), "1.5"),
        (claim("ttl", json!("1s")), "\"1s\""),
        (claim("epehmeral", json!(true)), "`epehmeral`"),
        (without("ttl"), "`ttl`"),
        (without("ephemeral"), "`ephemeral`"),
        ("{\"evict\":{\"name\":\"x\"}}".to_owned(), "`only`"),
        (
            "{\"evict\":{\"name\":\"x\",\"only\":0}}".to_owned(),
            "`only` is 0",
        ),
        (
            "{\"inspect\":{\"name\":\"\\ud800\"}}".to_owned(),
            "invalid request",
        ),
        (
            "{\"wait\":{\"name\":\"\",\"at_most\":0}}".to_owned(),
            "E_INVALID_NAME",
        ),
        ("[".repeat(60_000), "invalid request"),
    ];
    for (request, expected) in &cases {
        let said = served.complaint(request);
        assert!(
            said.contains(expected),
            "{request:.200} was answered by: {said}"
        );
    }
    assert_eq!(served.holder(), Value::Null, "no request had an effect");
    assert_eq!(served.operate("acquire", ONE, MINUTE), granted(FIRST));
    served.end();
}

#[test]
fn line_that_is_too_long_or_not_utf_8_fails_alone() {
    let dir = TestDir::new("lease");
    let mut served = Served::new(&dir);
    let name = "n".repeat(1 << 20);
    let said = served.complaint(json!({ "inspect": { "name": name } }));
    assert!(said.contains("65536 bytes"), "{said}");
    served.write(b"{\"inspect\":{\"name\":\"\xff\"}}\n");
    let said = served.read()["error"]["message"].to_string();
    assert!(said.contains("invalid request"), "{said}");
    // The longest name there is, in its longest spelling.
    let name = "\\u0001".repeat(1024);
    let holder = served.ask(format!("{{\"inspect\":{{\"name\":\"{name}\"}}}}"));
    assert_eq!(holder, json!({ "holder": null }));
    // A last line may lack its end.
    served.write("{\"inspect\":{\"name\":\"x\"}}");
    drop(served.requests.take());
    assert_eq!(served.read(), json!({ "holder": null }));
    served.end();
}

#[test]
fn many_requests_at_once_are_answered_in_order() {
    let dir = TestDir::new("lease");
    let mut served = Served::new(&dir);
    for round in 0..10 {
        served.operate("acquire", ONE, MINUTE);
        let requests = [
            "{\"inspect\":{\"name\":\"x\"}}\n",
            "{\"inspect\":{\"name\":\"y\"}}\n",
        ];
        served.write(requests.concat().repeat(20));
        for _ in 0..20 {
            assert_eq!(
                served.read()["holder"]["fencing_token"],
                json!(FIRST + round)
            );
            assert_eq!(served.read()["holder"], Value::Null);
        }
        served.operate("release", ONE, MINUTE);
    }
    served.end();
}

#[test]
fn an_ephemeral_lease_ends_with_the_input() {
    let dir = TestDir::new("lease");
    let mut served = Served::new(&dir);
    assert_eq!(served.operate("acquire", ONE, Value::Null), granted(FIRST));
    served.end();
    assert_eq!(
        Served::new(&dir).operate("acquire", TWO, MINUTE),
        granted(FIRST + 1)
    );
}

#[test]
fn an_ephemeral_lease_ends_with_a_killed_process() {
    for kind in KINDS {
        let dir = TestDir::new(kind);
        let mut served = Served::new(&dir);
        assert_eq!(served.operate("acquire", ONE, Value::Null), granted(FIRST));
        let mut other = Served::new(&dir);
        assert!(
            other
                .operate("acquire", TWO, MINUTE)
                .get("refused")
                .is_some()
        );
        served.child.kill().unwrap();
        served.child.wait().unwrap();
        eventually("the kernel has unlocked it", || {
            let answer = other.operate("acquire", TWO, MINUTE);
            answer["granted"]
                .as_u64()
                .is_some_and(|token| token > FIRST)
        });
    }
}

#[test]
fn detached_and_non_ephemeral_leases_outlive_the_process() {
    let dir = TestDir::new("lease");
    let mut served = Served::new(&dir);
    assert_eq!(served.operate("acquire", ONE, MINUTE), granted(FIRST));
    assert!(is_granted(&served.operate("detach", ONE, MINUTE)));
    assert!(
        served
            .operate("detach", TWO, MINUTE)
            .get("refused")
            .is_some()
    );
    let lasting = json!({ "name": "y", "owner": TWO, "ttl": null, "ephemeral": false });
    assert!(is_granted(&served.ask(json!({ "acquire": lasting }))));
    served.child.kill().unwrap();
    served.child.wait().unwrap();

    let mut other = Served::new(&dir);
    assert!(
        other
            .operate("acquire", TWO, MINUTE)
            .get("refused")
            .is_some()
    );
    assert!(is_granted(&other.operate("release", ONE, MINUTE)));
    assert!(is_granted(&other.ask(json!({ "release": lasting }))));
}

#[test]
fn a_wait_ends_when_the_lock_is_free_and_after_a_second() {
    let dir = TestDir::new("lease");
    let (mut one, mut two) = (Served::new(&dir), Served::new(&dir));
    one.operate("acquire", ONE, Value::Null);
    let began = Instant::now();
    let waited = two.ask(json!({ "wait": { "name": "x", "at_most": u64::MAX } }));
    assert_eq!(waited, json!({ "waited": true }));
    assert!(
        began.elapsed() >= Duration::from_millis(900),
        "the lock is not free"
    );
    assert!(began.elapsed() < Duration::from_secs(30));
    one.operate("release", ONE, Value::Null);
    let waited = two.ask(json!({ "wait": { "name": "x", "at_most": u64::MAX } }));
    assert_eq!(waited, json!({ "waited": true }));
    assert_eq!(two.operate("acquire", TWO, MINUTE), granted(FIRST + 1));
}

#[test]
fn wait_sleeps_and_wakes_no_other_process() {
    for kind in KINDS {
        let dir = TestDir::new(kind);
        let (mut one, mut two) = (Served::new(&dir), Served::new(&dir));
        one.operate("acquire", ONE, Value::Null);
        let mut other = Started::new(&mut dir.verrou(["run", "x", "--", "true"]));
        let id = other.pid();
        eventually("the process waits", || {
            let before = switches(id);
            std::thread::sleep(Duration::from_millis(300));
            (1..5).contains(&(switches(id) - before))
        });
        let before = (switches(id), switches(two.pid()));
        let began = Instant::now();
        for _ in 0..5 {
            let waited = two.ask(json!({ "wait": { "name": "x", "at_most": u64::MAX } }));
            assert_eq!(waited, json!({ "waited": true }));
        }
        let turns = u64::try_from(began.elapsed().as_millis() / 250).unwrap();
        assert!(turns >= 16, "{kind}: the lock is not free");
        // `serve` wakes up for the request and at each attempt; the other process at its own attempts.
        let woken = (switches(id) - before.0, switches(two.pid()) - before.1);
        assert!(
            woken.0 <= turns + 2 && woken.1 <= turns + 30,
            "{kind}: {woken:?}"
        );
        one.operate("release", ONE, Value::Null);
        assert!(other.wait().unwrap().success());
    }
}

/// A release without waiters changes the lock's file only if a process watches it.
#[test]
fn a_wait_ends_with_the_release() {
    for kind in KINDS {
        let dir = TestDir::new(kind);
        let (mut one, mut two) = (Served::new(&dir), Served::new(&dir));
        for _ in 0..5 {
            one.operate("acquire", ONE, Value::Null);
            let before = switches(two.pid());
            let wait = json!({ "wait": { "name": "x", "at_most": u64::MAX } });
            two.write(format!("{wait}\n"));
            eventually("the process waits", || switches(two.pid()) > before);
            one.operate("release", ONE, Value::Null);
            two.read();
            assert_eq!(two.holder(), Value::Null, "{kind}");
        }
    }
}

#[test]
fn commands_see_the_locks_of_serve() {
    let dir = TestDir::new("lease");
    let mut served = Served::new(&dir);
    served.operate("acquire", ONE, MINUTE);
    let shown = ends_with(&mut dir.verrou(["show", "x"]), 0);
    assert!(
        stdout(&shown).contains("(verrou serve)"),
        "{}",
        stdout(&shown)
    );

    let text = json!({
        "version": 1, "name": "x", "owner": ONE, "ttl": 60_000, "expires": null, "fence": FIRST,
    });
    ends_with(&mut dir.verrou(["release", &text.to_string()]), 0);
    assert_eq!(served.holder(), Value::Null);
    assert!(
        served
            .operate("release", ONE, MINUTE)
            .get("refused")
            .is_some()
    );
}

#[test]
fn store_that_cannot_be_opened_is_the_error_in_place_of_the_greeting() {
    let dir = TestDir::new("lease");
    for (store, exit, said) in [
        ("lease:/proc/nothing", 73, "/proc/nothing"),
        ("file:/proc/nothing", 73, "/proc/nothing"),
    ] {
        let output = done(&mut dir.verrou(["serve", "--store", store]));
        assert_eq!(code(&output), exit, "{}", stderr(&output));
        let answer: Value = serde_json::from_str(stdout(&output)).expect("one line of JSON");
        assert_eq!(answer["error"]["temporary"], false, "{answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(stderr(&output).contains(message), "{}", stderr(&output));
        assert!(stderr(&output).contains(said), "{}", stderr(&output));
    }
}

/// A service manager sends SIGTERM, and a closed terminal SIGHUP, to all processes of a service: the client still
/// needs its locks until it ends itself.
#[test]
fn serve_outlives_the_signals_that_its_client_gets_too() {
    let dir = TestDir::new("lease");
    let mut served = Served::new(&dir);
    assert!(is_granted(&served.operate("acquire", ONE, MINUTE)));
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        kill_process(served.pid(), signal).unwrap();
        assert!(is_granted(&served.operate("extend", ONE, MINUTE)));
    }
    served.end();
}

/// Returns a request to be notified with the number `id` when `owner` may acquire `name`.
fn notify(id: u64, name: &str, owner: &str) -> Value {
    let wait = json!({ "name": name, "owner": owner, "ttl": MINUTE, "ephemeral": true, "id": id });
    json!({ "notify": wait })
}

fn acquire(name: &str, owner: &str) -> Value {
    let claim = json!({ "name": name, "owner": owner, "ttl": MINUTE, "ephemeral": true });
    json!({ "acquire": claim })
}

/// Acquires the lock `name(id)` for `owner` when it is notified of that. A wait may end without a reason: then the
/// attempt is refused.
fn acquire_when_notified(served: &mut Served, id: u64, name: impl Fn(u64) -> String, owner: &str) {
    let began = Instant::now();
    loop {
        assert!(began.elapsed() < Duration::from_secs(30), "it is granted");
        let notified = served.notification()["notified"].as_u64().unwrap();
        if is_granted(&served.ask(acquire(&name(notified), owner))) {
            assert_eq!(notified, id);
            return;
        }
    }
}

#[test]
fn many_waits_of_one_client_are_notified_while_it_does_other_things() {
    const NAMES: u64 = 20;

    for kind in KINDS {
        let dir = TestDir::new(kind);
        let (mut holder, mut served) = (Served::new(&dir), Served::new(&dir));
        let name = |id: u64| format!("lock {id}");
        for id in 0..NAMES {
            assert!(is_granted(&holder.ask(acquire(&name(id), ONE))));
            assert!(!is_granted(&served.ask(acquire(&name(id), TWO))));
            let queued = served.ask(notify(id, &name(id), TWO));
            assert_eq!(queued, json!({ "queued": true }), "{kind}");
        }
        // Other requests are answered meanwhile, and the head waiters are notified in the order of the releases.
        assert_eq!(served.holder(), Value::Null);
        for id in (0..NAMES).rev() {
            let claim = json!({ "name": name(id), "owner": ONE, "ttl": MINUTE, "ephemeral": true });
            assert!(is_granted(&holder.ask(json!({ "release": claim }))));
            acquire_when_notified(&mut served, id, name, TWO);
        }
        served.end();
        holder.end();
    }
}

#[test]
fn notified_waiters_of_several_clients_are_served_in_order() {
    for kind in KINDS {
        let dir = TestDir::new(kind);
        let mut holder = Served::new(&dir);
        assert!(is_granted(&holder.operate("acquire", ONE, MINUTE)));
        let owners = [0xa, 0xb, 0xc].map(|digit: u128| format!("{digit:032x}"));
        let mut clients = owners.map(|owner| {
            let mut client = Served::new(&dir);
            assert!(!is_granted(&client.operate("acquire", &owner, MINUTE)));
            assert_eq!(
                client.ask(notify(7, "x", &owner)),
                json!({ "queued": true })
            );
            (client, owner)
        });
        // The second one leaves the queue, and so no lock is reserved for it.
        let (second, owner) = &mut clients[1];
        let left = second.operate("give_up", owner, MINUTE);
        assert_eq!(left, json!({ "queued": false }));
        assert!(is_granted(&holder.operate("release", ONE, MINUTE)));
        assert!(
            !is_granted(&holder.operate("acquire", ONE, MINUTE)),
            "{kind}"
        );
        for waiter in [0, 2] {
            let (client, owner) = &mut clients[waiter];
            acquire_when_notified(client, 7, |_| "x".to_owned(), owner);
            assert!(is_granted(&client.operate("release", owner, MINUTE)));
        }
        assert!(
            is_granted(&holder.operate("acquire", ONE, MINUTE)),
            "{kind}"
        );
    }
}

/// A killed client closes its pipe: its waiters leave the queue.
#[test]
fn end_of_the_input_ends_all_waits() {
    for kind in KINDS {
        let dir = TestDir::new(kind);
        let (mut holder, mut served) = (Served::new(&dir), Served::new(&dir));
        assert!(is_granted(&holder.operate("acquire", ONE, MINUTE)));
        assert_eq!(served.ask(notify(1, "x", TWO)), json!({ "queued": true }));
        served.end();
        assert!(is_granted(&holder.operate("release", ONE, MINUTE)));
        assert!(
            is_granted(&holder.operate("acquire", ONE, MINUTE)),
            "{kind}"
        );
    }
}

#[test]
fn serve_ends_when_its_output_is_closed() {
    let dir = TestDir::new("lease");
    let mut served = Served::new(&dir);
    let pipe = std::mem::replace(&mut served.answers, BufReader::new(silent()));
    drop(pipe);
    // A process that another test is just starting has a copy of the pipe until it executes its program.
    let mut requests = served.requests.take().unwrap();
    eventually("`serve` ends", || {
        let _ = requests.write_all(b"{\"abilities\":{}}\n");
        served.child.try_wait().unwrap().is_some()
    });
    assert_eq!(served.child.wait().unwrap().code(), Some(0));
}

/// Returns the output of a process that prints nothing.
fn silent() -> ChildStdout {
    let mut child = Command::new("true").stdout(Stdio::piped()).spawn().unwrap();
    child.wait().unwrap();
    child.stdout.take().unwrap()
}

#[test]
fn the_limit_of_open_files_is_raised_and_is_named_when_it_is_reached() {
    let dir = TestDir::new("lease");
    let acquire = |served: &mut Served, number: u32| {
        let name = format!("lock {number}");
        served.ask(json!({
            "acquire": { "name": name, "owner": ONE, "ttl": MINUTE, "ephemeral": true }
        }))
    };
    // Only the soft limit, which exists for programs that use select(2).
    let mut served = Served::limited(&dir, "-S -n 64");
    for number in 0..200 {
        let answer = acquire(&mut served, number);
        assert!(answer["granted"].is_u64(), "{answer}");
    }
    drop(served);

    let mut served = Served::limited(&dir, "-n 64");
    let mut held = 0;
    let refused = loop {
        let answer = acquire(&mut served, held);
        if answer["granted"].is_null() {
            break answer;
        }
        held += 1;
    };
    assert!(50 < held, "{held}: {refused}");
    let error = &refused["error"];
    assert_eq!(error["temporary"], false, "{refused}");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("64 (`ulimit -n`)"), "{message}");
}
