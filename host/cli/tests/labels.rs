//! The description of a holder: the label, and whether the lease is detached from its process.
#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use common::{KINDS, Started, TestDir, code, ends_with, open_store, stderr, stdout};
use serde_json::{Value, json};
use verrou::{Claim, Name, Owner, Store, Ttl};
use verrou_host::{AnyStore, StoreOptions, StoreUrl};

fn shown(dir: &TestDir, name: &str) -> Value {
    let output = ends_with(&mut dir.verrou(["show", "--json", name]), 0);
    serde_json::from_str(stdout(&output)).unwrap()
}

#[test]
fn detached_lease_is_described_as_such() {
    let dir = TestDir::new("lease");
    ends_with(&mut dir.verrou(["acquire", "k", "--ttl", "1h"]), 0);
    let json = shown(&dir, "k");
    assert_eq!(json["detached"], true);
    let taker = json["process"]["id"].as_u64().unwrap();
    let show = ends_with(&mut dir.verrou(["show", "k"]), 0);
    let refused = ends_with(&mut dir.run(&["--no-wait"], "true"), 75);
    for text in [stdout(&show), stderr(&refused)] {
        let taker = format!("held by a detached lease, acquired by process {taker} on ");
        assert!(text.contains(&taker), "{text}");
        assert!(
            text.contains("(verrou acquire)") && text.contains(" ago, fence 1"),
            "{text}"
        );
        assert!(text.contains("its lease expires in 59m"), "{text}");
    }
    let list = ends_with(&mut dir.verrou(["list"]), 0);
    assert!(
        stdout(&list).contains("detached, acquired by process"),
        "{list:?}"
    );

    for kind in KINDS {
        let dir = TestDir::new(kind);
        let (_holder, _) = dir.start(&[], "echo $$ > pid; exec sleep 1000");
        assert_eq!(shown(&dir, "k")["detached"], false);
        let list = ends_with(&mut dir.verrou(["list"]), 0);
        assert!(!stdout(&list).contains("detached"), "{list:?}");
    }
}

#[test]
fn label_says_what_a_lock_is_held_for() {
    for kind in KINDS {
        let dir = TestDir::new(kind);
        let options = ["--label", "nightly\nreport", "--ttl", "1h"];
        let (_holder, _) = dir.start(&options, "echo $$ > pid; exec sleep 1000");
        for words in [&["show", "k"][..], &["list"]] {
            let output = ends_with(&mut dir.verrou(words), 0);
            assert!(stdout(&output).contains("(nightly\\nreport)"), "{output:?}");
            assert!(!stdout(&output).contains("sleep"), "{output:?}");
        }
        assert_eq!(shown(&dir, "k")["process"]["command"], "nightly\nreport");
    }
    let dir = TestDir::new("lease");
    ends_with(&mut dir.verrou(["acquire", "k", "--label", "deploy 7"]), 0);
    assert_eq!(shown(&dir, "k")["process"]["command"], "deploy 7");
}

#[test]
fn requests_can_have_labels() {
    let dir = TestDir::new("lease");
    let mut serve = dir.verrou(["serve", "--label", "web shop"]);
    let serve = serve.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = serve.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("protocol"));
    let claim = |name: &str| {
        let owner = "00112233445566778899aabbccddeeff";
        json!({ "name": name, "owner": owner, "ttl": 60_000_000_000_u64, "ephemeral": true })
    };
    let mut ask = |request: Value| {
        writeln!(input, "{request}").unwrap();
        serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap()
    };
    for (name, label, said) in [
        ("a", Some(json!("invoice 12")), "invoice 12"),
        ("b", None, "web shop"),
        ("c", Some(Value::Null), "web shop"),
        ("d", Some(json!("invoice 13")), "invoice 13"),
    ] {
        let mut claim = claim(name);
        if let Some(label) = label {
            claim["label"] = label;
        }
        let answer = ask(json!({ "acquire": claim }));
        assert!(answer["granted"].is_u64(), "{answer}");
        let shown = shown(&dir, name);
        assert_eq!(shown["process"]["command"], said);
        assert_eq!(shown["process"]["id"], child.id());
        assert_eq!(shown["detached"], false);
    }
    assert_eq!(shown(&dir, "a")["process"]["command"], "invoice 12");
    ask(json!({ "detach": claim("a") }));
    assert_eq!(shown(&dir, "a")["detached"], true);
    drop(input);
    assert!(child.wait().unwrap().success());
}

#[test]
fn programs_can_label_their_grants() {
    for kind in KINDS {
        let dir = TestDir::new(kind);
        let url: StoreUrl = dir.store().parse().unwrap();
        let mut options = StoreOptions::default();
        options.label = Some("the program".to_owned());
        let store = AnyStore::open(&url, &options).unwrap();
        for (name, label, said) in [
            ("a", Some("invoice 12"), "invoice 12"),
            ("b", None, "the program"),
        ] {
            store.set_label(label);
            let claim = Claim::new(
                Name::new(name).unwrap(),
                Owner::from_bytes([7; 16]),
                Ttl::DEFAULT,
            )
            .ephemeral(true);
            assert!(store.acquire(&claim).unwrap().is_granted());
            assert_eq!(shown(&dir, name)["process"]["command"], said);
        }
    }
}

/// Returns all bytes of all files in the directory of the store.
fn recorded(dir: &TestDir) -> String {
    let files = fs::read_dir(dir.locks()).unwrap();
    let texts = files.map(|entry| fs::read(entry.unwrap().path()).unwrap());
    texts
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .collect()
}

#[test]
fn arguments_are_not_recorded() {
    for kind in KINDS {
        let dir = TestDir::new(kind);
        let script = "echo $$ > pid; until test -e end; do sleep 0.01; done";
        let arguments = ["run", "k", "--", "/bin/sh", "-c", script, "sh", "-pSECRET"];
        let holder = Started::new(&mut dir.verrou(arguments));
        dir.pid();
        assert_eq!(shown(&dir, "k")["process"]["command"], "sh");
        for words in [&["show", "k"][..], &["list"], &["list", "--json"]] {
            let output = ends_with(&mut dir.verrou(words), 0);
            assert!(!stdout(&output).contains("SECRET"), "{output:?}");
        }
        let refused = ends_with(&mut dir.run(&["--no-wait"], "true"), 75);
        assert!(stderr(&refused).contains("(sh)"), "{refused:?}");
        assert!(!recorded(&dir).contains("SECRET"));
        fs::write(dir.path("end"), "").unwrap();
        assert_eq!(code(&holder.end()), 0);
        assert!(!recorded(&dir).contains("SECRET"));

        // A program that uses the library.
        let store = open_store(&dir.store());
        let claim = Claim::new(
            Name::new("k").unwrap(),
            Owner::from_bytes([7; 16]),
            Ttl::DEFAULT,
        )
        .ephemeral(true);
        assert!(store.acquire(&claim).unwrap().is_granted());
        let program = std::env::args_os().next().unwrap();
        let name = Path::new(&program).file_name().unwrap().to_str().unwrap();
        assert_eq!(shown(&dir, "k")["process"]["command"], name);
    }
}

#[test]
fn program_that_locks_a_file_is_shown_without_its_arguments() {
    let dir = TestDir::new("file");
    let path = dir.path("data");
    fs::write(&path, "").unwrap();
    let script = "echo $$ > pid; exec sleep 1000";
    let mut flock = Command::new("flock");
    let flock = flock.args(["data", "sh", "-c", script, "sh", "-pSECRET"]);
    let _holder = Started::new(flock.current_dir(dir.path("")));
    dir.pid();
    let output = ends_with(&mut dir.verrou(["show", "--file", "data"]), 0);
    assert!(stdout(&output).contains("(flock)"), "{output:?}");
    assert!(!stdout(&output).contains("SECRET"), "{output:?}");
}
