//! The command line's output and exit codes.
#![cfg(target_os = "linux")]

mod common;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};

use common::{KINDS, Started, TestDir, code, done, ends_with, json, stderr, stdout};

/// Runs `verrou acquire k`, and returns the line that it printed.
fn acquired(dir: &TestDir, options: &[&str]) -> String {
    let output = ends_with(&mut dir.verrou(["acquire", "k"].iter().chain(options)), 0);
    let text = stdout(&output);
    assert_eq!(text.lines().count(), 1);
    text.trim_end().to_owned()
}

#[test]
fn help_and_version_are_no_errors() {
    let dir = TestDir::new("lease");
    for arguments in [vec!["--help"], vec!["-h"], vec!["run", "--help"]] {
        let output = ends_with(&mut dir.verrou(&arguments), 0);
        assert!(stdout(&output).contains("Usage:"), "{arguments:?}");
        for exit in ["64", "73", "74", "75", "76", "77", "126", "127", "128+n"] {
            assert!(stdout(&output).contains(exit), "{exit} {arguments:?}");
        }
    }
    let output = ends_with(&mut dir.verrou(["--version"]), 0);
    assert_eq!(
        stdout(&output),
        format!("verrou {}\n", env!("CARGO_PKG_VERSION"))
    );
    let output = ends_with(&mut dir.verrou::<&str>([]), 64);
    assert!(stderr(&output).contains("force-release"));
    assert!(!dir.locks().exists(), "help needs no store");
}

#[test]
fn invalid_argument_is_named_in_the_error() {
    let dir = TestDir::new("lease");
    let long = "n".repeat(1025);
    let run = |options: &[&str]| {
        let words = ["run", "k"].iter().chain(options).chain(&["--", "true"]);
        words.map(ToString::to_string).collect::<Vec<_>>()
    };
    let words = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
    for (arguments, said) in [
        (words(&["run", "", "--", "true"]), "E_INVALID_NAME"),
        (words(&["run", &long, "--", "true"]), "E_INVALID_NAME"),
        (words(&["show", ""]), "E_INVALID_NAME"),
        (run(&["--ttl", "0"]), "E_INVALID_TTL"),
        (run(&["--ttl", "-1"]), "E_INVALID_TTL"),
        (run(&["--ttl", "nan"]), "E_INVALID_TTL"),
        (run(&["--ttl", "abc"]), "E_INVALID_TTL"),
        (run(&["--ttl", "99999999999d"]), "E_INVALID_TTL"),
        (run(&["--attempts", "0"]), "E_INVALID_RETRY"),
        (run(&["--attempts", "-1"]), "E_INVALID_RETRY"),
        (run(&["--retry-delay", "0"]), "E_INVALID_RETRY"),
        (run(&["--wait", "soon"]), "not a length of time"),
        (run(&["--wait", "1s", "--no-wait"]), "cannot be used with"),
        (run(&["--grace", "later"]), "not a length of time"),
        (run(&["--on-lost", "cry"]), "possible values"),
        (run(&["--file", "x"]), "cannot be used with"),
        (run(&["-E", "256"]), "0..=255"),
        (run(&["-E", "-1"]), "0..=255"),
        (run(&["--store", "memory:"]), "no other process"),
        (run(&["--store", "lease:"]), "no directory"),
        (run(&["--store", "redis"]), "E_INVALID_STORE"),
        (words(&["run", "k"]), "<CMD>"),
        (words(&["run", "--", "true"]), "<NAME>"),
        (words(&["release", "{}"]), "E_INVALID_SERIALIZED_LOCK"),
        (words(&["release", "-"]), "E_INVALID_SERIALIZED_LOCK"),
        (words(&["extend", r#"{"version":9}"#]), "version 9"),
        (words(&["release"]), "VERROU_LOCK"),
        (words(&["force-release", "k", "--fence", "0"]), "fence"),
        (words(&["runs"]), "runs"),
    ] {
        let output = ends_with(&mut dir.verrou(&arguments), 64);
        let text = stderr(&output);
        assert!(text.contains(said), "{arguments:?} printed {text}");
        assert!(text.starts_with("verrou: "), "{arguments:?} printed {text}");
        assert_eq!(stdout(&output), "", "{arguments:?}");
    }
}

#[test]
fn a_store_is_named_by_option_or_environment() {
    let dir = TestDir::new("lease");
    let output = ends_with(dir.verrou(["list"]).env("VERROU_STORE", "memory:"), 64);
    assert!(stderr(&output).contains("lease:DIR"));

    let elsewhere = format!("file:{}", dir.path("elsewhere").display());
    let mut run = dir.verrou(["--store", &elsewhere, "run", "k", "--", "true"]);
    ends_with(&mut run, 0);
    assert!(dir.path("elsewhere").exists() && !dir.locks().exists());

    let mut by_default = dir.verrou(["run", "k", "--", "true"]);
    ends_with(by_default.env_remove("VERROU_STORE"), 0);
    assert!(dir.path("state/verrou").exists());
}

#[test]
fn an_option_wins_over_the_environment() {
    let dir = TestDir::new("lease");
    let elsewhere = format!("lease:{}", dir.path("elsewhere").display());
    for bad in [
        "memory:",
        "nonsense",
        "",
        // Without a client of Redis, and with one.
        "redis://user:secret@localhost:port",
        "lease:~/x",
    ] {
        let mut run = dir.verrou(["--store", &elsewhere, "run", "k", "--", "true"]);
        ends_with(run.env("VERROU_STORE", bad), 0);
        let file = dir.path("flocked");
        let mut run = dir.verrou(["run", "--file", file.to_str().unwrap(), "--", "true"]);
        ends_with(run.env("VERROU_STORE", bad), 0);
        if bad.is_empty() {
            continue;
        }
        let output = ends_with(dir.verrou(["show", "k"]).env("VERROU_STORE", bad), 64);
        let text = stderr(&output);
        assert!(
            text.starts_with("verrou: the environment variable VERROU_STORE: "),
            "{text}"
        );
        assert!(
            text.contains("E_INVALID_STORE") && !text.contains("secret"),
            "{text}"
        );
    }
    let output = ends_with(&mut dir.verrou(["--store", "memory:", "show", "k"]), 64);
    assert!(
        !stderr(&output).contains("VERROU_STORE"),
        "the invalid URL is that of the option"
    );
    assert!(dir.path("elsewhere").exists());
}

#[test]
fn an_empty_variable_is_unset() {
    let dir = TestDir::new("lease");
    let mut run = dir.verrou(["run", "k", "--", "true"]);
    ends_with(run.env("VERROU_STORE", ""), 0);
    assert!(dir.path("state/verrou").exists());
}

#[test]
fn a_leading_tilde_is_refused() {
    let dir = TestDir::new("lease");
    for store in ["lease:~", "lease:~/locks", "file:~root/locks"] {
        let output = ends_with(
            &mut dir.verrou(["--store", store, "run", "k", "--", "true"]),
            64,
        );
        assert!(
            stderr(&output).contains("$HOME"),
            "the error names an alternative"
        );
        let output = ends_with(
            dir.verrou(["run", "k", "--", "true"])
                .env("VERROU_STORE", store),
            64,
        );
        assert!(stderr(&output).contains("VERROU_STORE"));
    }
    assert!(!dir.path("~").exists() && !dir.path("~root").exists());
    ends_with(
        &mut dir.verrou(["--store", "lease:./~", "run", "k", "--", "true"]),
        0,
    );
    assert!(dir.path("~").exists());
}

#[test]
fn name_that_looks_like_a_path_is_refused() {
    let dir = TestDir::new("lease");
    fs::write(dir.path("app.lock"), "").unwrap();
    fs::create_dir(dir.path("directory")).unwrap();
    let absolute = dir.path("absolute");
    let absolute = absolute.to_str().unwrap();
    for name in [
        "/var/lock/x",
        "./x",
        "../x",
        "app.lock",
        "directory/../app.lock",
        absolute,
    ] {
        for command in [&["run"][..], &["acquire"], &["show"], &["force-release"]] {
            let end: &[&str] = if command[0] == "run" {
                &["--", "true"]
            } else {
                &[]
            };
            let line = |words: &[&str]| {
                let words = command.iter().chain(words).chain(end);
                dir.verrou(words)
            };
            let output = ends_with(&mut line(&[name]), 64);
            let text = stderr(&output);
            assert!(text.contains(&format!("--file {name}`")), "{text}");
            assert!(text.contains("E_INVALID_NAME"), "{text}");
            ends_with(&mut line(&["--name", name]), 0);
            if command[0] == "acquire" {
                ends_with(&mut dir.verrou(["force-release", "--name", name]), 0);
            }
        }
    }
    // A lock is often named after the directory or the file that its job works on.
    fs::write(dir.path("report"), "").unwrap();
    for name in ["directory", "report", "a/b", "other.lock"] {
        ends_with(&mut dir.verrou(["run", name, "--", "true"]), 0);
    }
}

#[test]
fn a_name_that_begins_with_a_hyphen_can_be_written() {
    let dir = TestDir::new("lease");
    for name in ["-x", "--json", "-"] {
        for words in [
            vec![format!("--name={name}")],
            vec!["--name".to_owned(), name.to_owned()],
        ] {
            let mut run = vec!["run".to_owned()];
            run.extend(words);
            run.extend(["--", "sh", "-c", "printf %s \"$VERROU_NAME\""].map(str::to_owned));
            let output = ends_with(&mut dir.verrou(run), 0);
            assert_eq!(stdout(&output), name);
        }
    }
    for words in [
        &["run", "a", "--name", "b", "--", "true"][..],
        &["run", "--name", "b", "--file", "c", "--", "true"],
        &["run", "a", "--file", "c", "--", "true"],
        &["acquire", "a", "--name", "b"],
    ] {
        ends_with(&mut dir.verrou(words), 64);
    }
}

#[test]
fn store_that_cannot_be_opened_exits_73() {
    for kind in KINDS {
        let dir = TestDir::new(kind);
        ends_with(&mut dir.run(&["--group", "no such group"], "true"), 73);
        fs::write(dir.locks(), "a file").unwrap();
        let output = ends_with(&mut dir.run(&[], "true"), 73);
        assert!(
            stderr(&output).contains("locks"),
            "the error names the directory"
        );
    }
}

#[test]
fn corrupt_file_exits_74_and_is_never_free() {
    for kind in KINDS {
        let dir = TestDir::new(kind);
        ends_with(&mut dir.run(&[], "true"), 0);
        for entry in fs::read_dir(dir.locks()).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some() {
                fs::write(path, "not a lock").unwrap();
            }
        }
        let output = ends_with(&mut dir.run(&[], "touch ran"), 74);
        assert!(stderr(&output).contains("E_LOCK_STORAGE_ERROR"));
        assert!(!dir.path("ran").exists());
    }
}

#[test]
fn lock_is_transferred_between_processes() {
    let dir = TestDir::new("lease");
    let first = acquired(&dir, &["--ttl", "10m"]);
    ends_with(&mut dir.run(&["--no-wait"], "true"), 75);

    // As an argument.
    let output = ends_with(&mut dir.verrou(["extend", "--ttl", "1h", &first]), 0);
    let second = stdout(&output).trim_end().to_owned();
    assert_eq!(json(&first)["owner"], json(&second)["owner"]);
    assert_eq!(json(&first)["fence"], json(&second)["fence"]);
    let expires = |text: &str| json(text)["expires"].as_u64().unwrap();
    assert!(expires(&second) > expires(&first) + 40 * 60 * 1000);

    // From the environment; without `--ttl` the lock's own ttl applies again.
    let output = ends_with(dir.verrou(["extend"]).env("VERROU_LOCK", &second), 0);
    assert!(expires(stdout(&output)) < expires(&second));

    // From the standard input.
    let mut release = dir.verrou(["release", "-"]);
    let mut release = Started::new(release.stdin(Stdio::piped()));
    let mut input = release.stdin.take().unwrap();
    writeln!(input, "{second}").unwrap();
    drop(input);
    assert_eq!(code(&release.end()), 0);
    assert!(!dir.is_held());

    let output = ends_with(&mut dir.verrou(["release", &second]), 77);
    assert!(stderr(&output).contains("E_LOCK_NOT_OWNER"));
    ends_with(&mut dir.verrou(["extend", &second]), 77);
}

#[test]
fn wrong_owner_token_exits_77() {
    let dir = TestDir::new("lease");
    let mine = acquired(&dir, &[]);
    let owner = json(&mine)["owner"].as_str().unwrap().to_owned();
    let forged = mine.replace(&owner, &"0".repeat(32));
    for command in ["extend", "release"] {
        ends_with(&mut dir.verrou([command, &forged]), 77);
    }
    assert!(dir.is_held());
    ends_with(&mut dir.verrou(["release", &mine]), 0);
}

#[test]
fn acquired_lock_expires_by_its_ttl() {
    let dir = TestDir::new("lease");
    let mine = acquired(&dir, &["--ttl", "100ms"]);
    ends_with(&mut dir.run(&["--wait", "30s"], "true"), 0);
    ends_with(&mut dir.verrou(["extend", &mine]), 77);
    ends_with(&mut dir.verrou(["release", &mine]), 77);
}

#[test]
fn kernel_locks_cannot_be_transferred() {
    let dir = TestDir::new("file");
    let output = ends_with(&mut dir.verrou(["acquire", "k"]), 64);
    assert!(stderr(&output).contains("E_LOCK_NOT_SERIALIZABLE"));
    assert!(
        stderr(&output).contains("verrou run"),
        "the error names an alternative"
    );
    assert!(!dir.is_held());

    let text = acquired(&TestDir::new("lease"), &[]);
    for command in ["extend", "release"] {
        let output = ends_with(&mut dir.verrou([command, &text]), 64);
        assert!(stderr(&output).contains("E_LOCK_NOT_SERIALIZABLE"));
    }
}

#[test]
fn lock_that_cannot_be_printed_is_released() {
    let dir = TestDir::new("lease");
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut command = dir.verrou(["acquire", "k", "--ttl", "1h"]);
    let output = command
        .stdout(full)
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(code(&output), 74);
    assert!(stderr(&output).contains("was released"));
    assert!(!dir.is_held());

    let mut command = dir.verrou(["acquire", "k", "--ttl", "1h"]);
    let output = command.stdout(unread()).output().unwrap();
    assert_eq!(code(&output), 74);
    assert!(!dir.is_held());
}

/// Returns the writing end of a pipe without a reader.
fn unread() -> std::io::PipeWriter {
    std::io::pipe().unwrap().1
}

#[test]
fn closed_reader_causes_no_panic() {
    let dir = TestDir::new("lease");
    acquired(&dir, &[]);
    for arguments in [
        &["--help"][..],
        &["--version"],
        &["list"],
        &["list", "--json"],
        &["show", "k"],
    ] {
        let mut command = dir.verrou(arguments);
        let output = command.stdout(unread()).stderr(Stdio::piped()).output();
        let output = output.unwrap();
        assert_eq!(
            code(&output),
            0,
            "{arguments:?} printed {}",
            stderr(&output)
        );
        assert_eq!(stderr(&output), "");
    }
    let mut wordless = dir.verrou(["nonsense"]);
    assert_eq!(code(&wordless.stderr(unread()).output().unwrap()), 64);
}

#[test]
fn any_lease_can_be_force_released() {
    let dir = TestDir::new("lease");
    ends_with(&mut dir.run(&[], "true"), 0);
    let output = ends_with(&mut dir.verrou(["force-release", "k"]), 0);
    assert_eq!(stdout(&output), "the lock `k` is not held\n");
    ends_with(&mut dir.verrou(["force-release", "k", "--fence", "1"]), 77);

    let mine = acquired(&dir, &[]);
    let fence = json(&mine)["fence"].as_u64().unwrap();
    let other = (fence + 1).to_string();
    let output = ends_with(
        &mut dir.verrou(["force-release", "k", "--fence", &other]),
        77,
    );
    assert!(stderr(&output).contains(&format!("fence {fence}")));
    assert!(dir.is_held());
    ends_with(
        &mut dir.verrou(["force-release", "k", "--fence", &fence.to_string()]),
        0,
    );
    assert!(!dir.is_held());
    ends_with(&mut dir.verrou(["release", &mine]), 77);

    acquired(&dir, &[]);
    let output = ends_with(&mut dir.verrou(["force-release", "k", "--json"]), 0);
    assert_eq!(json(stdout(&output))["freed"], true);
    assert!(!dir.is_held());
}

#[test]
fn kernel_locks_cannot_be_force_released() {
    let dir = TestDir::new("file");
    let (holder, _) = dir.start(&[], "echo $$ > pid; exec sleep 1000");
    let output = ends_with(&mut dir.verrou(["force-release", "k"]), 64);
    assert!(
        stderr(&output).contains("end that process"),
        "the error names an alternative"
    );
    assert!(
        !stderr(&output).contains("E_LOCK_STORAGE_ERROR"),
        "the store works"
    );
    assert!(dir.is_held());
    drop(holder);
}

#[test]
fn holders_are_shown_without_owner_tokens() {
    for kind in KINDS {
        let dir = TestDir::new(kind);
        ends_with(&mut dir.run(&[], "true"), 0);
        let output = ends_with(&mut dir.verrou(["show", "k"]), 0);
        let free = format!("the lock `k` is free in {}\n", dir.store());
        assert_eq!(stdout(&output), free);
        assert_eq!(stdout(&ends_with(&mut dir.verrou(["list"]), 0)), "");
        let output = ends_with(&mut dir.verrou(["list", "--json"]), 0);
        assert_eq!(stdout(&output), "[]\n");

        let script = "echo \"$VERROU_LOCK\" > lock; echo $$ > pid; exec sleep 1000";
        let (holder, _) = dir.start(&["--ttl", "1h"], script);
        let odd = ["run", "an odd\n\u{1b}[31mname", "--", "sh", "-c"];
        let odd = odd.iter().copied().chain([": > odd; exec sleep 1000"]);
        let _odd = Started::new(&mut dir.verrou(odd));
        common::eventually("both run", || dir.path("odd").exists());

        let mut said = String::new();
        for arguments in [&["show", "k"][..], &["list"]] {
            let output = ends_with(&mut dir.verrou(arguments), 0);
            assert!(stdout(&output).contains("(sh)"), "{arguments:?}");
            assert!(stdout(&output).contains("59m"), "{arguments:?}");
            assert!(!stdout(&output).contains('\u{1b}'), "{arguments:?}");
            said.push_str(stdout(&output));
        }
        assert_eq!(said.lines().count(), 4, "{said}");

        let shown = ends_with(&mut dir.verrou(["show", "k", "--json"]), 0);
        let listed = ends_with(&mut dir.verrou(["list", "--json"]), 0);
        said.push_str(stdout(&shown));
        said.push_str(stdout(&listed));
        let shown = json(stdout(&shown));
        assert_eq!(shown["held"], true);
        assert_eq!(shown["process"]["id"], holder.id());
        assert!(shown["remaining"].as_u64().unwrap() > 59 * 60 * 1000);
        let listed = json(stdout(&listed));
        assert_eq!(listed.as_array().unwrap().len(), 2);
        assert_eq!(listed[1]["name"], "k");
        assert_eq!(listed[1]["fence"], shown["fence"]);

        if kind == "lease" {
            let owner = json(&dir.read("lock"))["owner"].clone();
            assert!(!said.contains(owner.as_str().unwrap()));
        }
    }
}

/// JSON allows control characters, and a terminal executes them.
#[test]
fn json_output_contains_no_control_characters() {
    let dir = TestDir::new("lease");
    let name = "a\u{7f}b\u{85}c\u{9b}31md\u{1b}[31me\n";
    let mut said = vec![stdout(&ends_with(&mut dir.verrou(["acquire", name]), 0)).to_owned()];
    for arguments in [
        &["show", "--json", name][..],
        &["list", "--json"],
        &["force-release", "--json", name],
    ] {
        said.push(stdout(&ends_with(&mut dir.verrou(arguments), 0)).to_owned());
    }
    ends_with(&mut dir.verrou(["acquire", name]), 0);
    let again = ["acquire", "--no-wait", "--json", name];
    said.push(stderr(&ends_with(&mut dir.verrou(again), 75)).to_owned());
    for text in &said {
        let text = text.strip_suffix('\n').unwrap();
        assert!(!text.contains(char::is_control), "{text:?}");
        json(text);
    }
    assert_eq!(json(&said[0])["name"], name);
    assert_eq!(json(&said[1])["name"], name);
    assert_eq!(json(&said[2])[0]["name"], name);
}

#[test]
fn lock_in_the_environment_that_is_not_utf_8_is_an_error() {
    let dir = TestDir::new("lease");
    let no_text = OsStr::from_bytes(b"\xff");
    for command in ["extend", "release"] {
        let output = ends_with(dir.verrou([command]).env("VERROU_LOCK", no_text), 64);
        assert!(
            stderr(&output).contains("VERROU_LOCK is not UTF-8"),
            "{output:?}"
        );
    }
}

#[test]
fn errors_can_be_read_by_programs() {
    let dir = TestDir::new("lease");
    acquired(&dir, &[]);
    let output = ends_with(&mut dir.run(&["--no-wait", "--json"], "true"), 75);
    let error = json(stderr(&output));
    assert_eq!(error["error"], "E_LOCK_TIMEOUT");
    assert_eq!(error["exit"], 75);
    assert!(error["message"].as_str().unwrap().contains("held by"));
}

#[test]
fn flock_and_verrou_exclude_each_other() {
    let dir = TestDir::new("lease");
    let path = dir.path("file");
    let path = path.to_str().unwrap();

    let mut flock = Command::new("flock");
    let flock = flock.args([path, "sh", "-c", "echo $$ > pid; exec sleep 1000"]);
    let flock = Started::new(flock.current_dir(dir.path("")));
    let sleeper = dir.pid();
    let file = ["run", "--file", path, "--no-wait", "--"];
    let try_it = |program: &[&str]| dir.verrou(file.iter().chain(program));
    let output = ends_with(&mut try_it(&["true"]), 75);
    assert!(stderr(&output).contains(path), "the error names the file");
    rustix::process::kill_process(sleeper, rustix::process::Signal::KILL).unwrap();
    flock.end();

    ends_with(&mut try_it(&["flock", "-n", path, "true"]), 1);
    let output = ends_with(&mut try_it(&["sh", "-c", "env | grep ^VERROU_"]), 0);
    let said = stdout(&output);
    assert!(said.contains("VERROU_FENCE="), "{said}");
    assert!(said.contains(&format!("VERROU_NAME={path}")), "{said}");
    let store = format!("VERROU_STORE={}\n", dir.store());
    assert!(said.contains(&store), "{said}");
    assert!(!said.contains("VERROU_LOCK="), "{said}");
    assert_eq!(fs::read(path).unwrap(), b"", "nothing is written to it");
    assert_eq!(
        code(&done(Command::new("flock").args(["-n", path, "true"]))),
        0
    );
}

#[test]
fn a_bad_file_hides_no_other_from_the_list() {
    let dir = TestDir::new("lease");
    ends_with(&mut dir.verrou(["acquire", "k"]), 0);
    std::os::unix::fs::symlink("/nowhere", dir.locks().join("zzz.lease")).unwrap();
    let output = ends_with(&mut dir.verrou(["list"]), 74);
    assert!(stdout(&output).contains("(verrou acquire)"));
    assert!(stderr(&output).contains("zzz.lease"));
    let output = ends_with(&mut dir.verrou(["list", "--json"]), 74);
    assert!(stdout(&output).starts_with("[{"));
}

#[test]
fn ttl_too_short_to_renew_is_refused() {
    let dir = TestDir::new("lease");
    let output = ends_with(&mut dir.run(&["--ttl", "9ms"], "true"), 64);
    assert!(stderr(&output).contains("E_INVALID_TTL"));
    ends_with(&mut dir.run(&["--ttl", "1s"], "true"), 0);
}
