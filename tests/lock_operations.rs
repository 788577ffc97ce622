//! The operations of a lock on all hosts: blocking and async in Rust, polled, WIT, JavaScript, and the command. An
//! operation that is added to one of them has to get a name on the others, or a line here that says why not.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// An operation, by its name on each host. `-` where it does not exist.
struct Operation {
    /// The name in `blocking` and `nonblocking`.
    rust: &'static str,
    /// The name in `polled`.
    polled: &'static str,
    /// The names in WIT.
    wit: &'static [&'static str],
    /// The names in JavaScript.
    js: &'static [&'static str],
    /// The subcommands of `verrou`.
    command: &'static [&'static str],
}

const fn operation(
    rust: &'static str,
    polled: &'static str,
    wit: &'static [&'static str],
    js: &'static [&'static str],
    command: &'static [&'static str],
) -> Operation {
    Operation {
        rust,
        polled,
        wit,
        js,
        command,
    }
}

const OPERATIONS: [Operation; 27] = [
    // A policy is an option in JavaScript and of the command, and an argument in WIT.
    operation(
        "acquire",
        "acquire",
        &["acquire"],
        &["acquire"],
        &["Acquire"],
    ),
    operation("acquire_with", "-", &[], &[], &[]),
    operation(
        "try_acquire",
        "try_acquire",
        &["try-acquire"],
        &["acquireImmediately"],
        &[],
    ),
    // In WIT, the lock is its own guard; JavaScript has `await using`.
    operation("guard", "-", &[], &["Symbol.asyncDispose"], &[]),
    operation("guard_with", "-", &[], &[], &[]),
    operation("try_guard", "-", &[], &[], &[]),
    // WIT has no closures.
    operation("run", "-", &[], &["run"], &["Run"]),
    operation("run_with", "-", &[], &[], &[]),
    operation("try_run", "-", &[], &["runImmediately"], &[]),
    operation(
        "release",
        "release",
        &["release"],
        &["release"],
        &["Release"],
    ),
    operation(
        "force_release",
        "force_release",
        &["force-release"],
        &["forceRelease"],
        &["ForceRelease"],
    ),
    operation(
        "extend",
        "extend",
        &["extend", "extend-for"],
        &["extend"],
        &["Extend"],
    ),
    operation(
        "is_expired",
        "is_expired",
        &["is-expired"],
        &["isExpired"],
        &[],
    ),
    // Verrou's name.
    operation(
        "remaining",
        "remaining",
        &["remaining"],
        &["getRemainingTime"],
        &[],
    ),
    operation("is_locked", "is_locked", &["is-locked"], &["isLocked"], &[]),
    // A custom store of JavaScript may not record owners. `show` of the command prints the holder, if there is one.
    operation("is_held", "is_held", &["is-held"], &[], &[]),
    operation("holders", "holders", &["holders"], &["holder"], &["Show"]),
    operation(
        "serialize",
        "serialize",
        &["serialize"],
        &["serialize"],
        &[],
    ),
    operation("lease", "lease", &["fencing-token"], &["fence"], &[]),
    operation("name", "name", &["name"], &["name"], &[]),
    operation("ttl", "ttl", &["ttl"], &[], &[]),
    // Rust's guards, and the work of `run`, renew.
    operation("-", "keep", &["keep"], &[], &[]),
    // In JavaScript a lock that is dropped keeps its lease.
    operation("detach", "detach", &["detach"], &[], &[]),
    // A factory makes the locks elsewhere.
    operation("-", "new", &["create"], &[], &[]),
    operation("-", "restored", &["restore"], &[], &[]),
    // `serialize` of JavaScript does not wait for the store's reply; this does.
    operation("-", "-", &[], &["handOver"], &[]),
    // The command's own: the locks and the URL of its store, the gate of a resource, and requests of other programs.
    operation("-", "-", &[], &[], &["List", "Store", "Fence", "Serve"]),
];

/// The operations of blocking locks alone. An async program drops the future, and JavaScript has the option `signal`.
const BLOCKING: &[&str] = &["guard_or_cancel"];

/// The operations of async locks alone. A thread renews by a guard, which ends the thread's renewal.
const ASYNC: &[&str] = &["keep"];

fn text_of(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|err| panic!("{}: {err}", path.display()))
}

/// Returns the parts of `text` that begin with a line `begin` and end with a line `end`.
fn blocks<'a>(text: &'a str, begin: &str, end: &str) -> String {
    let parts = text.split(begin).skip(1);
    let parts = parts.map(|part: &'a str| part.split(end).next().unwrap_or_default());
    parts.collect::<Vec<_>>().join("\n")
}

/// Returns the word at the start of `text`.
fn word(text: &str) -> String {
    let is_part = |c: &char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
    text.chars().take_while(is_part).collect()
}

/// Returns the public functions in `text`.
fn functions(text: &str) -> BTreeSet<String> {
    let lines = text.lines().filter_map(|line| {
        let line = line.strip_prefix("    pub ")?;
        let line = line.strip_prefix("$($async)* ").unwrap_or(line);
        let line = line.strip_prefix("async ").unwrap_or(line);
        Some(word(line.strip_prefix("fn ")?))
    });
    lines.collect()
}

fn listed<'a>(names: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    let names = names.into_iter().filter(|name| *name != "-");
    names.map(str::to_owned).collect()
}

#[test]
fn blocking_and_async_locks_have_the_listed_operations() {
    let expected = listed(OPERATIONS.iter().map(|it| it.rust));
    let both = text_of("src/lock_api.rs");
    let both = blocks(&both, "impl<S: $Store, H: $Host> Lock<S, H> {\n", "\n}\n");
    for (path, begin, alone) in [
        (
            "src/blocking.rs",
            "impl<S: Store, H: Host> Lock<S, H> {\n",
            BLOCKING,
        ),
        (
            "src/nonblocking.rs",
            "impl<S: AsyncStore, H: AsyncHost> Lock<S, H> {\n",
            ASYNC,
        ),
    ] {
        let own = blocks(&text_of(path), begin, "\n}\n");
        let mut found = functions(&both);
        found.extend(functions(&own));
        let alone = listed(alone.iter().copied());
        assert_eq!(found, &expected | &alone, "{path}");
    }
}

#[test]
fn polled_locks_have_the_listed_operations() {
    let text = text_of("src/polled.rs");
    let mut found = functions(&blocks(
        &text,
        "impl<S: Store + Clone, C: Clock + Clone> Lock<S, C> {\n",
        "\n}\n",
    ));
    found.extend(functions(&blocks(
        &text,
        "impl<S: Store, C: Clock> Lock<S, C> {\n",
        "\n}\n",
    )));
    assert_eq!(found, listed(OPERATIONS.iter().map(|it| it.polled)));
}

/// The operations of WIT's async locks alone: it has no future to drop where the host cannot cancel a call.
const WIT_ASYNC: &[&str] = &["stop"];

#[test]
fn wit_locks_have_the_listed_operations() {
    for (path, alone) in [
        ("wit/locks.wit", &[][..]),
        ("wit/async/locks.wit", WIT_ASYNC),
    ] {
        let text = text_of(path);
        let resource = blocks(&text, "resource lock {\n", "\n  }\n");
        let found = resource.lines().filter_map(|line| {
            let line = line.trim();
            let is_function = line.starts_with("constructor(") || line.contains("func(");
            (is_function && !line.starts_with("///")).then(|| word(line))
        });
        let expected = OPERATIONS.iter().flat_map(|it| it.wit.iter());
        let expected = expected.chain(alone).copied();
        assert_eq!(found.collect::<BTreeSet<_>>(), listed(expected), "{path}");
    }
}

#[test]
fn javascript_locks_have_the_listed_operations() {
    let text = text_of("src/js/package/index.d.ts");
    let interface = blocks(&text, "export interface Lock {\n", "\n}\n");
    let found = interface.lines().filter_map(|line| {
        let line = line.strip_prefix("  ")?;
        let line = line.strip_prefix("readonly ").unwrap_or(line);
        let line = line.strip_prefix('[').unwrap_or(line);
        let name = word(line);
        (!name.is_empty() && !line.starts_with(' ')).then_some(name)
    });
    let expected = OPERATIONS.iter().flat_map(|it| it.js.iter().copied());
    assert_eq!(found.collect::<BTreeSet<_>>(), listed(expected));
}

#[test]
fn command_has_the_listed_operations() {
    let text = text_of("host/cli/src/arguments.rs");
    let variants = blocks(&text, "pub(crate) enum Command {\n", "\n}\n");
    let found = variants.lines().filter_map(|line| {
        let line = line.strip_prefix("    ")?;
        line.starts_with(char::is_uppercase).then(|| word(line))
    });
    let expected = OPERATIONS.iter().flat_map(|it| it.command.iter().copied());
    assert_eq!(found.collect::<BTreeSet<_>>(), listed(expected));
}
