//! Durations on the command line.
#![cfg(target_os = "linux")]

mod common;

use common::{TestDir, ends_with, json, stderr, stdout};
use serde_json::Value;

/// Returns the `ttl` that `verrou acquire --ttl text` prints, in milliseconds.
fn acquired_for(dir: &TestDir, text: &str) -> Value {
    let output = ends_with(&mut dir.verrou(["acquire", text, "--ttl", text]), 0);
    json(stdout(&output))["ttl"].clone()
}

#[test]
fn a_bare_number_is_refused_with_both_readings() {
    let dir = TestDir::new("lease");
    for option in ["--ttl", "--wait", "--grace", "--retry-delay"] {
        for number in ["10", "1.5", "1e3", "+5", " 10 ", ".5"] {
            let output = ends_with(&mut dir.run(&[option, number], ": > ran"), 64);
            let (text, number) = (stderr(&output), number.trim());
            let code = if option == "--ttl" {
                "E_INVALID_TTL"
            } else {
                "E_INVALID_RETRY"
            };
            for part in [
                option,
                code,
                &format!("`{number}s`"),
                &format!("`{number}ms`"),
            ] {
                assert!(
                    text.contains(part),
                    "{option} {number}: no {part} in {text}"
                );
            }
        }
    }
    let gate = dir.path("gate");
    let gate = gate.to_str().unwrap();
    for (wait, exit) in [("10", 64), ("0", 0), ("10s", 0)] {
        let mut check = dir.verrou(["fence", "check", "--file", gate, "--wait", wait, "7"]);
        ends_with(&mut check, exit);
    }
    assert!(!dir.path("ran").exists());
    assert!(!dir.locks().exists(), "refused before a store is made");
}

#[test]
fn zero_needs_no_unit() {
    let dir = TestDir::new("lease");
    ends_with(&mut dir.run(&["--wait", "0", "--grace", "0"], "true"), 0);
    let output = ends_with(&mut dir.run(&["--ttl", "0"], "true"), 64);
    assert!(stderr(&output).contains("E_INVALID_TTL"));
}

#[test]
fn a_capital_m_is_refused_with_both_readings() {
    let dir = TestDir::new("lease");
    for option in ["--ttl", "--wait", "--grace", "--retry-delay"] {
        let output = ends_with(&mut dir.run(&[option, "1M"], "true"), 64);
        let text = stderr(&output);
        assert!(text.contains("write 1m or 1month"), "{text}");
    }
}

#[test]
fn number_with_a_unit_is_accepted() {
    let dir = TestDir::new("lease");
    for (text, millis) in [
        ("10s", 10_000),
        ("1S", 1_000),
        ("1 Day", 86_400_000),
        (".5m", 30_000),
        ("1m 30s", 90_000),
        ("1500ms", 1_500),
        ("1month", 2_630_016_000_u64),
    ] {
        assert_eq!(acquired_for(&dir, text), millis, "{text}");
    }
    assert_eq!(acquired_for(&dir, "none"), Value::Null);
    let output = ends_with(&mut dir.verrou(["acquire", "x", "--ttl", "100 msecs"]), 64);
    assert!(stderr(&output).contains("E_INVALID_TTL"));
}
