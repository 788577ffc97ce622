//! The command's output, output that cannot be written, and the format of errors.
#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};

use common::{KINDS, TestDir, code, ends_with, json, stderr, stdout};

/// Runs `script` in a shell in the test's directory, with `verrou` as `$1` and pipes for its output.
fn shell(dir: &TestDir, script: &str) -> Output {
    let like = dir.verrou::<&str>([]);
    let program = like.get_program();
    let mut shell = Command::new("sh");
    shell.args(["-c", script, "sh"]).arg(program);
    shell
        .current_dir(dir.path(""))
        .env("VERROU_STORE", dir.store())
        .env("XDG_STATE_HOME", dir.path("state"))
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[test]
#[cfg(feature = "tracing")]
fn verbose_command_prints_the_events_of_its_lock_without_the_owner_token() {
    for kind in KINDS {
        let dir = TestDir::new(kind);
        let quiet = shell(&dir, "exec \"$1\" run k -- true");
        assert_eq!(stderr(&quiet), "");
        let verbose = shell(
            &dir,
            "exec \"$1\" -v run k -- sh -c 'echo \"$VERROU_LOCK\"'",
        );
        let text = stderr(&verbose);
        for event in ["granted name=k fence=", "released name=k fence="] {
            assert!(text.contains(event), "{kind}: {text}");
        }
        if kind == "lease" {
            let lock = json(stdout(&verbose));
            let owner = lock["owner"].as_str().unwrap();
            assert!(!text.contains(owner), "{text}");
        }
    }
}

#[test]
fn closed_output_is_an_error_and_the_lock_is_released() {
    let dir = TestDir::new("lease");
    let output = shell(&dir, "exec \"$1\" acquire k --ttl 1h >&-");
    assert_eq!(code(&output), 74, "{output:?}");
    assert!(stderr(&output).contains("it is closed"), "{output:?}");
    assert!(stderr(&output).contains("was released"), "{output:?}");
    assert!(!dir.is_held());
    for line in [
        "store",
        "list --json",
        "show k",
        "--help",
        "--version",
        "serve",
    ] {
        let output = shell(&dir, &format!("exec \"$1\" {line} >&-"));
        assert_eq!(code(&output), 74, "{line}: {output:?}");
    }
    // A closed output of the command of `run` is not an error of `verrou`.
    assert_eq!(code(&shell(&dir, "exec \"$1\" run k -- true >&-")), 0);
    // A standard output that discards the text is accepted.
    let output = shell(&dir, "exec \"$1\" acquire k --ttl 1h 1<>/dev/null");
    assert_eq!(code(&output), 0, "{output:?}");
    assert!(dir.is_held());
}

#[test]
fn a_limit_of_file_sizes_is_an_error_and_no_signal() {
    for kind in KINDS {
        let dir = TestDir::new(kind);
        let output = shell(&dir, "ulimit -f 0; exec \"$1\" run k -- touch ran");
        assert_eq!(code(&output), 74, "{output:?}");
        assert!(
            stderr(&output).contains("E_LOCK_STORAGE_ERROR"),
            "{output:?}"
        );
        assert!(!dir.path("ran").exists());
        // SIGXFSZ ends the command, or is ignored by it, as without `verrou`.
        let big = "head -c 200000 /dev/zero > big";
        let limited = format!("ulimit -f 100; exec \"$1\" run k -- sh -c '{big}'");
        assert_eq!(code(&shell(&dir, &limited)), 128 + 25);
        let ignored = format!("trap '' XFSZ; {limited}");
        assert_eq!(code(&shell(&dir, &ignored)), 1);
    }
}

#[test]
fn label_with_hidden_characters_is_one_line() {
    let dir = TestDir::new("lease");
    let label =
        "echo $$ > pid\nexec \\\n\tsleep 1000 # \u{202e}\u{2066}\u{200b}\u{feff}\u{ad}\u{e0041}\r";
    let options = ["--ttl", "1h", "--label", label];
    let (holder, _) = dir.start(&options, "echo $$ > pid; exec sleep 1000");
    let list = ends_with(&mut dir.verrou(["list"]), 0);
    let show = ends_with(&mut dir.verrou(["show", "k"]), 0);
    let no_wait = ends_with(&mut dir.run(&["--no-wait"], "true"), 75);
    for (text, lines) in [
        (stdout(&list), 2),
        (stdout(&show), 1),
        (stderr(&no_wait), 1),
    ] {
        assert_eq!(text.lines().count(), lines, "{text}");
        assert!(text.contains("echo $$ > pid\\nexec"), "{text}");
        assert!(
            !text.contains(|char| char != '\n' && verrou::is_hidden(char)),
            "{text:?}"
        );
    }
    let list = ends_with(&mut dir.verrou(["list", "--json"]), 0);
    assert!(!stdout(&list).trim_end().contains(verrou::is_hidden));
    assert_eq!(json(stdout(&list))[0]["process"]["command"], label);
    drop(holder);

    // A name with control characters is one line, too.
    let name = "a\nb\u{202e}c";
    let mut run = dir.verrou(["run", name, "--no-wait", "--", "sh", "-c"]);
    let script = "verrou=$1; shift; \"$verrou\" run \"$VERROU_NAME\" --no-wait -- true";
    let program = dir.verrou::<&str>([]).get_program().to_owned();
    let output = ends_with(run.arg(script).arg("sh").arg(program), 75);
    assert_eq!(stderr(&output).lines().count(), 1, "{output:?}");
    assert!(stderr(&output).contains("`a\\nb\\u{202e}c`"), "{output:?}");
}

#[test]
fn usage_errors_are_json_with_the_json_option() {
    let dir = TestDir::new("lease");
    for (words, error, said) in [
        (
            &["run", "k", "--json", "--ttl", "soon", "--", "true"][..],
            "E_INVALID_TTL",
            "`soon`",
        ),
        (
            &["--json", "run", "k", "--wait", "10", "--", "true"],
            "E_INVALID_RETRY",
            "`10s`",
        ),
        (
            &["--json", "--store", "memory:", "list"],
            "E_INVALID_STORE",
            "no other process",
        ),
        (&["show", "/x", "--json"], "E_INVALID_NAME", "--file"),
        (&["run", "--json", "--", "true"], "", "<NAME>"),
        (&["run", "--json", "k"], "", "<CMD>"),
        (&["runs", "--json"], "", "runs"),
        (&["--json"], "", "command is missing"),
        (&["fence", "--json"], "", "command is missing"),
    ] {
        let output = ends_with(&mut dir.verrou(words), 64);
        let text = stderr(&output);
        assert_eq!(text.lines().count(), 1, "{words:?}: {text}");
        let line = json(text);
        assert_eq!(line["exit"], 64);
        assert_eq!(line["error"].as_str().unwrap_or_default(), error, "{text}");
        assert!(line["message"].as_str().unwrap().contains(said), "{text}");
    }
    // A `--json` behind `--` belongs to the command.
    let output = ends_with(
        &mut dir.verrou(["run", "k", "--wait", "10", "--", "x", "--json"]),
        64,
    );
    assert!(stderr(&output).starts_with("verrou: "));
}

#[test]
fn wrong_command_line_repeats_no_password() {
    let dir = TestDir::new("lease");
    for words in [
        &["list", "redis://u:s3cret@h"][..],
        &["show", "k", "redis://u:s3cret@h"],
        &["redis://u:s3cret@h"],
        &["fence", "redis://u:s3cret@h"],
        &["list", "--url=redis://u:s3cret@h"],
        &["list", "--redis://u:s3cret@h"],
        &["run", "k", "--redis://u:s3cret@h", "--", "true"],
        &["run", "k", "--ttl", "redis://u:s3cret@h", "--", "true"],
        &["run", "k", "--no-wait=redis://u:s3cret@h", "--", "true"],
        &["show", "--redis://u:s3cret@h"],
    ] {
        for json in [&[][..], &["--json"]] {
            let words = json.iter().chain(words);
            let output = ends_with(&mut dir.verrou(words.clone()), 64);
            let text = stderr(&output);
            assert!(!text.contains("s3cret"), "{words:?}: {text}");
        }
    }
    let output = ends_with(&mut dir.verrou(["list", "redis://u:s3cret@h"]), 64);
    let text = stderr(&output);
    assert!(text.contains("'redis://…'"), "{text}");
}

#[test]
fn removed_or_replaced_file_is_reported() {
    for end in ["rm x", "echo > y; mv y x"] {
        let dir = TestDir::new("lease");
        let script = format!("{end}; exec sleep 1000");
        let mut run = dir.verrou(["run", "--file", "x", "--ttl", "1s", "--", "sh", "-c"]);
        let output = ends_with(run.arg(script), 76);
        let text = stderr(&output);
        assert!(text.contains("`x` was removed or replaced"), "{text}");
        assert!(text.contains("E_LOCK_LOST"), "{text}");
    }
    // A force-released lock is not reported as removed.
    let dir = TestDir::new("lease");
    let (holder, _) = dir.start(&[], "echo $$ > pid; exec sleep 1000");
    ends_with(&mut dir.verrou(["force-release", "k"]), 0);
    let output = holder.end();
    assert_eq!(code(&output), 76);
    assert!(!stderr(&output).contains("removed"), "{output:?}");
}

/// Runs the README's example with `make_report` as the script `make-report`.
fn report(dir: &TestDir, make_report: &str) -> Output {
    let page = include_str!("../../../README.md");
    let mut blocks = page.split("```").skip(1).step_by(2);
    let example = blocks.find(|block| block.contains("make-report")).unwrap();
    let script = example.strip_prefix("sh\n").unwrap();
    fs::create_dir_all(dir.path("bin")).unwrap();
    let tool = dir.path("bin/make-report");
    fs::write(&tool, format!("#!/bin/sh\n{make_report}\n")).unwrap();
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).unwrap();
    let directory = "PATH=$PWD/bin:${1%/*}:$PATH\n";
    shell(dir, &format!("{directory}{script}"))
}

#[test]
fn readme_example_publishes_only_complete_reports() {
    let dir = TestDir::new("lease");
    assert_eq!(code(&report(&dir, "echo whole")), 0);
    assert_eq!(dir.read("report"), "whole\n");
    assert_eq!(code(&report(&dir, "echo half; exit 3")), 3);
    assert_eq!(dir.read("report"), "whole\n");
    assert_eq!(code(&report(&dir, "echo new")), 0);
    assert_eq!(dir.read("report"), "new\n");
}

/// A missing descriptor is a permanent failure, so a `run` without `--wait` must not wait for one.
#[test]
fn a_process_without_descriptors_ends() {
    for kind in KINDS {
        for limit in 4..13 {
            let dir = TestDir::new(kind);
            let limited = |options: &str| {
                let line = format!("exec \"$1\" run {options} -- true");
                let output = shell(&dir, &format!("ulimit -n {limit}; {line}"));
                let code = code(&output);
                assert!([0, 73, 74, 126, 127].contains(&code), "{limit}: {output:?}");
            };
            // The store has to be created, or exists; then the lock of `--file`.
            limited("k");
            ends_with(&mut dir.run(&[], "true"), 0);
            limited("k");
            limited("--file x");
        }
    }
}
