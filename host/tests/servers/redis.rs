//! Redis.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use verrou::Fence;

use crate::cases::{self, Kind, refused};
use crate::certificate::certificate;
use crate::fixture::Namespace;
use crate::running::Running;
use crate::store_calls::done;

/// Returns the URL of the server of all cases that do not stop it or change its settings.
fn server() -> String {
    static SERVER: OnceLock<Running> = OnceLock::new();

    let server = SERVER.get_or_init(|| Running::redis(&[]));
    format!("redis://127.0.0.1:{}", server.port)
}

verrou::conformance!(conformance, Namespace::new(&server(), "prefix"));

cases::tests_of_every_engine!(Redis);

struct Redis;

impl Kind for Redis {
    fn start(&self) -> Running {
        Running::redis(&["--appendonly", "yes", "--appendfsync", "always"])
    }

    fn url(&self, port: u16, namespace: &str) -> String {
        format!("redis://127.0.0.1:{port}?prefix={namespace}:")
    }

    fn until_one_waits(&self, port: u16, namespace: &str) {
        let queue = format!("{namespace}:{{lock}}:queue");
        cases::in_time(|| redis_cli(port, &["ZCARD", &queue]) == "1");
    }
}

/// Runs `redis-cli` and returns its standard output.
fn redis_cli(port: u16, words: &[&str]) -> String {
    let mut command = Command::new("redis-cli");
    let output = command.args(["-p", &port.to_string()]).args(words).output();
    let output = output.expect("redis-cli is installed");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn many_clients_count() {
    const CLIENTS: u32 = 200;

    let add = |port: u16, _: Fence| {
        let before: u32 = redis_cli(port, &["GET", "number"]).parse().unwrap_or(0);
        assert_eq!(
            redis_cli(port, &["SET", "number", &(before + 1).to_string()]),
            "OK"
        );
    };
    let server = cases::many_clients_count(&Redis, CLIENTS, |_| {}, add);
    assert_eq!(
        redis_cli(server.port, &["GET", "number"]),
        CLIENTS.to_string()
    );
}

/// The script of a fenced read, as in `host/servers/REDIS.md`.
const FENCED_READ: &str = "\
local seen = tonumber(redis.call('GET', KEYS[1] .. ':fence') or '0')
if tonumber(ARGV[1]) > seen then redis.call('SET', KEYS[1] .. ':fence', ARGV[1]) end
return redis.call('GET', KEYS[1]) or ''";

/// The script of a fenced write, as in `host/servers/REDIS.md`.
const FENCED_WRITE: &str = "\
local seen = tonumber(redis.call('GET', KEYS[1] .. ':fence') or '0')
if tonumber(ARGV[2]) < seen then return 'stale' end
redis.call('SET', KEYS[1] .. ':fence', ARGV[2])
redis.call('SET', KEYS[1], ARGV[1])
return 'ok'";

#[test]
fn acknowledged_writes_are_not_lost() {
    let script = format!(
        "list=$(redis-cli -p $PORT EVAL \"{FENCED_READ}\" 1 list $VERROU_FENCE); sleep 0.01; \
         redis-cli -p $PORT EVAL \"{FENCED_WRITE}\" 1 list \"$list $WORD\" $VERROU_FENCE"
    );
    cases::acknowledged_writes_are_not_lost(
        &Redis,
        |_| {},
        &script,
        |port| redis_cli(port, &["GET", "list"]),
    );
}

/// Scripts are loaded again after the server has flushed them.
#[test]
fn flushed_scripts_are_loaded_again() {
    let server = Redis.start();
    let store = cases::open(&Redis.url(server.port, "scripts"));
    let claim = cases::claim(1, verrou::Ttl::NEVER);
    cases::granted(verrou::Store::acquire(&store, &claim));
    assert_eq!(redis_cli(server.port, &["SCRIPT", "FLUSH"]), "OK");
    done(verrou::Store::extend(&store, &claim));
}

/// The error of an unsuitable server says what is wrong, and what to do about it.
#[test]
fn unsuitable_server_is_refused_with_advice() {
    let evicts = Running::redis(&["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]);
    let why = refused(&format!("redis://127.0.0.1:{}", evicts.port));
    assert!(
        why.contains("allkeys-lru") && why.contains("noeviction"),
        "{why}"
    );

    let followed = Running::redis(&[]);
    let follows = followed.port.to_string();
    let replica = Running::redis(&["--replicaof", "127.0.0.1", &follows]);
    let why = refused(&format!("redis://127.0.0.1:{}", replica.port));
    assert!(why.contains("replica"), "{why}");

    let closed = Running::redis(&["--requirepass", "s3cret"]);
    let port = closed.port;
    for url in [
        format!("redis://127.0.0.1:{port}"),
        format!("redis://:wr0ng@127.0.0.1:{port}"),
        format!("redis://unknown:wr0ng@127.0.0.1:{port}"),
    ] {
        let why = refused(&url);
        assert!(why.contains("password") && why.contains("tls=off"), "{why}");
        assert!(!why.contains("wr0ng"), "{why}");
    }
    cases::open(&format!("redis://:s3cret@127.0.0.1:{port}"));
    let why = refused(&format!("redis://:s3cret@127.0.0.1:{port}/no-number"));
    assert!(why.contains("no-number"), "{why}");
    assert!(!why.contains("s3cret"), "{why}");
}

/// Redis before version 6 does not send messages on the connection of its answers.
#[test]
fn old_server_is_refused() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let port = listener.local_addr().expect("it has an address").port();
    thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            while client.read(&mut [0; 1024]).is_ok_and(|length| length > 0) {
                let _ = client.write_all(
                    &b"-ERR unknown command `HELLO`, with args beginning with: `3`\r\n".repeat(3),
                );
            }
        }
    });
    let why = refused(&format!("redis://127.0.0.1:{port}"));
    assert!(why.contains("Redis 6"), "{why}");
}

/// The environment of the command that runs under a lock does not contain the password.
#[test]
fn password_is_not_passed_to_command() {
    let closed = Running::redis(&["--requirepass", "s3cret"]);
    let url = format!("redis://:s3cret@127.0.0.1:{}", closed.port);
    cases::password_is_not_passed_to_command(&url);
}

/// The output of the command does not repeat a password, for any error in the URL.
#[test]
fn command_prints_no_password() {
    let unused = crate::running::free_port();
    for url in [
        "redis://:s3cret@".to_owned(),
        "redis://:s3cret@host?wrong=1".to_owned(),
        "redis://:s3cret@host/?timeout=never".to_owned(),
        "redis://s3cret:s3cret@[::1".to_owned(),
        "redos://:s3cret@host".to_owned(),
        "redis//app:s3cret@host".to_owned(),
        "app:s3cret@host".to_owned(),
        "redis:/app:s3cret@host".to_owned(),
        "redis%3A%2F%2Fapp%3As3cret%40host".to_owned(),
        "redis://app%3As3cret@host".to_owned(),
        "redis://app:x@s3cret@host/?wrong=1".to_owned(),
        "redis://host/app:s3cret%40other".to_owned(),
        "lease:redis://app:s3cret@host".to_owned(),
        "file://app:s3cret@host".to_owned(),
        format!("redis://:s3cret@127.0.0.1:{unused}"),
    ] {
        for words in [&["list"] as &[_], &["list", "--json"], &["list", "--help"]] {
            for is_typed in [true, false] {
                let mut command = Command::new(cases::command_path());
                if is_typed && words.len() > 1 {
                    command.arg(format!("--store={url}"));
                } else if is_typed {
                    command.args(["--store", &url]);
                } else {
                    command.env("VERROU_STORE", &url);
                }
                let output = command.args(words).output().expect("it can be run");
                let said = [output.stdout, output.stderr].concat();
                let said = String::from_utf8_lossy(&said);
                assert!(!said.contains("s3cret"), "{url}: {said}");
            }
        }
    }
}

/// A URL in the position of another argument is not repeated with its password.
#[test]
fn misplaced_url_is_repeated_without_its_password() {
    for words in [
        &["redis//app:s3cret@host"][..],
        &["list", "redis://app:s3cret@host"],
        &["list", "--wrong=redis//app:s3cret@host"],
        &["run", "k", "--ttl", "app:s3cret@host", "--", "true"],
        &["list", "--json", "app%3As3cret%40host"],
    ] {
        let mut command = Command::new(cases::command_path());
        let output = command.args(words).output().expect("it can be run");
        assert_eq!(output.status.code(), Some(64), "{words:?}: {output:?}");
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(!said.contains("s3cret"), "{words:?}: {said}");
    }
}

/// A password is not sent without TLS to another machine, unless the URL says so. For the client, 0.0.0.0 is
/// another machine.
#[test]
fn password_is_not_sent_unencrypted() {
    cases::password_is_not_sent_unencrypted(|port| format!("redis://app:s3cret@0.0.0.0:{port}"));
    let closed = Running::redis(&["--requirepass", "s3cret"]);
    cases::open(&format!("redis://:s3cret@0.0.0.0:{}?tls=off", closed.port));
}

/// A connection can use TLS, with a certificate of a private authority.
#[test]
fn connection_can_use_tls() {
    let directory = tempfile::tempdir().expect("there is room for a directory");
    let (certificate, key) = certificate(directory.path());
    let tls = crate::running::free_port().to_string();
    let _server = Running::redis(&[
        "--tls-port",
        &tls,
        "--tls-cert-file",
        &certificate,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &certificate,
        "--tls-auth-clients",
        "no",
    ]);
    let store = cases::open(&format!("rediss://localhost:{tls}?ca-file={certificate}"));
    let claim = cases::claim(1, verrou::Ttl::new(Duration::from_mins(1)).expect("a ttl"));
    cases::granted(verrou::Store::acquire(&store, &claim));
    let why = refused(&format!("rediss://localhost:{tls}"));
    assert!(why.contains("connection failed"), "{why}");
}
