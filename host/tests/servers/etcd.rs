//! etcd.

use std::collections::HashSet;
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use verrou::{Fence, Name, Store, Ttl};
use verrou_servers::clients::etcd::messages::{
    Compare, CompareOp, LeaseList, LeaseStatus, Nothing, Order, Range, Txn, TxnOp,
};
use verrou_servers::clients::etcd::{Client, ConnectOptions};

use crate::cases::{self, Kind, refused, waited};
use crate::certificate::certificate;
use crate::fixture::Namespace;
use crate::running::Running;
use crate::store_calls::done;

/// Returns the URL of the server of all cases that do not stop it or change its settings.
fn server() -> String {
    static SERVER: OnceLock<Running> = OnceLock::new();

    let server = SERVER.get_or_init(|| Running::etcd(&[]));
    format!("etcd://127.0.0.1:{}", server.port)
}

verrou::conformance!(
    conformance,
    // etcd rounds the record's lifetime up to four seconds, and revokes expired leases twice a second.
    Namespace::new(&server(), "prefix").counting(
        Duration::from_millis(3900),
        (0, Duration::from_millis(1200))
    )
);

cases::tests_of_every_engine!(Etcd);

struct Etcd;

impl Kind for Etcd {
    fn start(&self) -> Running {
        Running::etcd(&[])
    }

    fn url(&self, port: u16, namespace: &str) -> String {
        format!("etcd://127.0.0.1:{port}?prefix={namespace}/")
    }

    fn until_one_waits(&self, port: u16, namespace: &str) {
        let both = format!("{namespace}/lock/");
        let words = ["get", "--prefix", "--keys-only", &both];
        cases::in_time(|| answer(port, &words).matches(&both).count() == 2);
    }

    /// etcd rounds this up to two seconds, the shortest lease that it grants.
    fn ttl(&self) -> Duration {
        Duration::from_millis(1900)
    }

    fn late(&self) -> Duration {
        Duration::from_millis(1200)
    }
}

/// Runs `etcdctl` and returns its output.
fn etcdctl(port: u16, words: &[&str]) -> Output {
    let mut command = Command::new("etcdctl");
    command.env("ETCDCTL_API", "3");
    command.arg(format!("--endpoints=127.0.0.1:{port}"));
    let output = command.args(words).output();
    output.expect("etcdctl is installed")
}

/// Runs `etcdctl`, which must succeed, and returns its standard output.
#[track_caller]
fn answer(port: u16, words: &[&str]) -> String {
    let output = etcdctl(port, words);
    assert!(output.status.success(), "{words:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// The number is written in the transaction that checks the fencing token.
#[test]
fn many_clients_count() {
    const CLIENTS: u32 = 200;

    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let add = |port: u16, fence: Fence| {
        runtime.block_on(async {
            let options = ConnectOptions {
                timeout: Duration::from_secs(10),
                user: None,
                tls: None,
            };
            let members = [format!("http://127.0.0.1:{port}")];
            let connecting = Client::connect(&members, &options);
            let client = connecting.await.expect("the server is there");
            let got = client.range(Range::prefix("number")).await;
            let got = got.expect("an answer").kvs.pop();
            let before = got.map_or(0, |it| {
                str::from_utf8(&it.value)
                    .unwrap()
                    .parse()
                    .expect("a number")
            });
            let number: u32 = before + 1;
            let first = Range::prefix("count/lock/").by_creation(Order::Ascending);
            let lock = client.range(first.limit(1)).await.unwrap().kvs.remove(0);
            let made = i64::try_from(fence.get()).expect("a revision");
            let write = Txn::new()
                .when([Compare::create_revision(lock.key, CompareOp::Equal, made)])
                .and_then([TxnOp::put("number", number.to_string(), 0)]);
            let written = client.txn(write).await.expect("an answer");
            assert!(written.succeeded, "the lock is held under {fence}");
        });
    };
    let server = cases::many_clients_count(&Etcd, CLIENTS, |_| {}, add);
    let number = answer(server.port, &["get", "number", "--print-value-only"]);
    assert_eq!(number, CLIENTS.to_string());
}

/// The fenced write of a command under the lock, as in `host/servers/ETCD.md`.
const FENCED_WRITE: &str = r#"
key=$(etcdctl get --prefix --keys-only workload/lock/ --sort-by=CREATE --limit=1)
printf 'create("%s") = "%s"\n\nput list "%s"\n\n\n' "$key" $VERROU_FENCE "$list $WORD" | etcdctl txn"#;

#[test]
fn acknowledged_writes_are_not_lost() {
    let script = format!(
        "export ETCDCTL_API=3 ETCDCTL_ENDPOINTS=127.0.0.1:$PORT; \
         list=$(etcdctl get list --print-value-only); sleep 0.01; \
         said=$({FENCED_WRITE}); case $said in SUCCESS*) echo ok;; esac"
    );
    cases::acknowledged_writes_are_not_lost(
        &Etcd,
        |_| {},
        &script,
        |port| answer(port, &["get", "list", "--print-value-only"]),
    );
}

/// When another client revokes the etcd lease of a lock, the holder loses the lock and is notified at once.
#[test]
fn revoked_etcd_lease_notifies_holder() {
    let server = Etcd.start();
    let store = cases::open(&Etcd.url(server.port, "revoked"));
    let claim = cases::claim(1, Ttl::new(Duration::from_mins(10)).expect("a ttl"));
    cases::granted(store.acquire(&claim));
    let watch = store
        .watch(&claim)
        .expect("a store that notifies of losses");
    let leases = answer(server.port, &["lease", "list"]);
    let lease = leases.lines().last().expect("a lease").trim();
    answer(server.port, &["lease", "revoke", lease]);
    let began = Instant::now();
    watch.wait(Duration::from_mins(1));
    assert!(began.elapsed() < Duration::from_secs(30), "it is notified");
    assert!(!store.extend(&claim).expect("an answer"));
}

/// A waiter is served after all revisions were compacted during its wait.
#[test]
fn waiter_survives_compaction() {
    let server = Etcd.start();
    let url = Etcd.url(server.port, "compacted");
    let (store, other) = (cases::open(&url), cases::open(&url));
    let (one, two) = (cases::claim(1, Ttl::NEVER), cases::claim(2, Ttl::NEVER));
    cases::granted(store.acquire(&one));
    let mut waiter = waited(&other, &two, Duration::ZERO);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| waiter.wait(Duration::from_mins(1)));
        let mut revision = String::new();
        for number in 0..20 {
            answer(server.port, &["put", "other", &number.to_string()]);
            let said = answer(server.port, &["get", "other", "--write-out=json"]);
            let (_, rest) = said.split_once("\"revision\":").expect("a revision");
            revision = rest.chars().take_while(char::is_ascii_digit).collect();
        }
        answer(server.port, &["compact", &revision, "--physical"]);
        done(store.release(&one));
        let began = Instant::now();
        waiting.join().expect("it ends");
        assert!(began.elapsed() < Duration::from_secs(30), "it is notified");
    });
    cases::granted(other.acquire(&two));
}

/// A head waiter that does not acquire the free lock is skipped, even while its process runs.
#[test]
fn absent_head_waiter_is_skipped() {
    let server = Etcd.start();
    let store = cases::open(&Etcd.url(server.port, "passed"));
    let one = cases::claim(1, Ttl::NEVER);
    cases::granted(store.acquire(&one));
    let _absent = waited(&store, &cases::claim(2, Ttl::NEVER), Duration::ZERO);
    let three = cases::claim(3, Ttl::NEVER);
    let mut waiter = waited(&store, &three, Duration::ZERO);
    done(store.release(&one));
    let began = Instant::now();
    waiter.wait(Duration::from_mins(1));
    cases::granted(store.acquire(&three));
    // Sooner than a ticket expires.
    let took = began.elapsed();
    assert!(took < Duration::from_secs(8), "{took:?}");
}

/// A waiter keeps its ticket for longer than the ticket of an ended process would last.
#[test]
fn ticket_is_not_recreated_during_long_wait() {
    let server = Etcd.start();
    let store = cases::open(&Etcd.url(server.port, "kept"));
    let (one, two) = (cases::claim(1, Ttl::NEVER), cases::claim(2, Ttl::NEVER));
    cases::granted(store.acquire(&one));
    let mut waiter = waited(&store, &two, Duration::ZERO);
    let made = || {
        let keys = answer(
            server.port,
            &["get", "--prefix", "kept/", "--write-out=fields"],
        );
        let lines = keys.lines().map(str::to_owned);
        lines
            .filter(|line| line.starts_with("\"CreateRevision\""))
            .collect::<Vec<_>>()
    };
    let before = made();
    assert_eq!(before.len(), 2, "{before:?}");
    waiter.wait(Duration::from_secs(14));
    assert_eq!(made(), before);
}

/// A lease that is no longer needed does not stay on the server.
#[test]
fn no_lease_is_left_behind() {
    let server = Etcd.start();
    let store = cases::open(&Etcd.url(server.port, "leases"));
    let claim = |minutes| {
        let ttl = Ttl::new(Duration::from_mins(minutes)).expect("a ttl");
        cases::claim(1, ttl)
    };
    cases::granted(store.acquire(&claim(10)));
    done(store.extend(&claim(10)));
    done(store.extend(&claim(20)));
    let leases = answer(server.port, &["lease", "list"]);
    assert!(leases.contains("found 1 leases"), "{leases}");
    done(store.release(&claim(20)));
    let leases = answer(server.port, &["lease", "list"]);
    assert!(leases.contains("found 0 leases"), "{leases}");
}

/// Names that look like the keys of other names are separate locks.
#[test]
fn names_with_slashes_are_separate_locks() {
    let server = Etcd.start();
    let store = cases::open(&Etcd.url(server.port, "names"));
    for name in ["a", "a/b", "a%2Fb", "a/", "%"] {
        let claim = cases::claim(1, Ttl::NEVER).with_name(Name::new(name).expect("a name"));
        cases::granted(store.acquire(&claim));
    }
}

/// The error of an unsuitable server says what is wrong, and what to do about it.
#[test]
fn unsuitable_server_is_refused_with_advice() {
    let closed = Etcd.start();
    let port = closed.port;
    let why = refused(&format!("etcd://unknown:wr0ng@127.0.0.1:{port}"));
    assert!(why.contains("leave the user out"), "{why}");
    assert!(!why.contains("wr0ng"), "{why}");
    for words in [
        &["user", "add", "root:s3cret"][..],
        &["user", "add", "app:s3cret"],
        &["user", "grant-role", "root", "root"],
        &["role", "add", "locks"],
        &[
            "role",
            "grant-permission",
            "locks",
            "readwrite",
            "--prefix=true",
            "verrou/",
        ],
        &["user", "grant-role", "app", "locks"],
        &["auth", "enable"],
    ] {
        answer(port, words);
    }
    for url in [
        format!("etcd://127.0.0.1:{port}"),
        format!("etcd://app:wr0ng@127.0.0.1:{port}"),
        format!("etcd://unknown:wr0ng@127.0.0.1:{port}"),
    ] {
        let why = refused(&url);
        assert!(why.contains("password") && why.contains("tls=off"), "{why}");
        assert!(!why.contains("wr0ng"), "{why}");
    }
    let why = refused(&format!("etcd://app:s3cret@127.0.0.1:{port}?prefix=other/"));
    assert!(
        why.contains("other/") && why.contains("grant-permission"),
        "{why}"
    );
    assert!(!why.contains("s3cret"), "{why}");
    cases::open(&format!("etcd://app:s3cret@0.0.0.0:{port}?tls=off"));
    // The role in the guide is sufficient.
    let store = cases::open(&format!("etcd://app:s3cret@127.0.0.1:{port}"));
    let claim = cases::claim(1, Ttl::new(Duration::from_mins(1)).expect("a ttl"));
    let other = cases::claim(2, claim.ttl);
    cases::granted(store.acquire(&claim));
    let _waiter = waited(&store, &other, Duration::ZERO);
    done(store.extend(&claim));
    let holder = store.holders(&claim.name).expect("an answer").pop();
    assert!(holder.is_some() && store.holds(&claim, None).expect("an answer"));
    done(store.release(&claim));
    cases::granted(store.acquire(&other));
}

/// The error of a full server says how to make room; locks can still be released.
#[test]
fn full_server_error_says_how_to_make_room() {
    let full = Running::etcd(&["--quota-backend-bytes=1048576"]);
    let url = Etcd.url(full.port, "full");
    let store = cases::open(&url);
    let lasting = Ttl::new(Duration::from_mins(10)).expect("a ttl");
    let claim = cases::claim(1, lasting);
    cases::granted(store.acquire(&claim));
    let big = || etcdctl(full.port, &["put", "big", &"x".repeat(65536)]);
    cases::in_time(|| !big().status.success());
    let other = cases::claim(2, Ttl::NEVER).with_name(Name::new("other").expect("a name"));
    for store in [&store, &cases::open(&url)] {
        let err = store.acquire(&other).expect_err("there is no room");
        assert!(err.is_temporary(), "{err:?}");
        let why = format!("{:?}", err.get_ref());
        assert!(why.contains("etcdctl alarm"), "{why}");
    }
    done(store.extend(&claim));
    let again = cases::open(&url);
    assert!(
        again
            .holders(&claim.name)
            .expect("an answer")
            .pop()
            .is_some()
    );
    done(again.force_release(&claim.name, None));
    assert_eq!(store.holders(&claim.name).expect("an answer").pop(), None);
}

/// The environment of the command that runs under a lock does not contain the password.
#[test]
fn password_is_not_passed_to_command() {
    let server = Etcd.start();
    for words in [
        &["user", "add", "root:s3cret"][..],
        &["user", "grant-role", "root", "root"],
        &["auth", "enable"],
    ] {
        answer(server.port, words);
    }
    let url = format!("etcd://root:s3cret@127.0.0.1:{}", server.port);
    cases::password_is_not_passed_to_command(&url);
}

/// A password is not sent without TLS to another machine, unless the URL says so.
#[test]
fn password_is_not_sent_unencrypted() {
    cases::password_is_not_sent_unencrypted(|port| {
        format!("etcd://app:s3cret@127.0.0.1:{port},0.0.0.0:{port}")
    });
}

/// Starts a server with users: `app` may use the locks, and `mallory` the keys that begin with `other/`.
fn server_with_users() -> Running {
    let server = Etcd.start();
    let permit = |role, prefix| {
        answer(server.port, &["role", "add", role]);
        let words = [
            "role",
            "grant-permission",
            role,
            "readwrite",
            "--prefix=true",
            prefix,
        ];
        answer(server.port, &words);
    };
    permit("locks", "verrou/");
    permit("others", "other/");
    for (user, role) in [("root", "root"), ("app", "locks"), ("mallory", "others")] {
        answer(server.port, &["user", "add", &format!("{user}:s3cret")]);
        answer(server.port, &["user", "grant-role", user, role]);
    }
    answer(server.port, &["auth", "enable"]);
    server
}

/// Runs `etcdctl` as that user and returns its output.
fn etcdctl_as(user: &str, port: u16, words: &[&str]) -> Output {
    let user = format!("--user={user}:s3cret");
    etcdctl(port, &[&[&*user][..], words].concat())
}

/// Runs `etcdctl` as that user, which must succeed, and returns its standard output.
#[track_caller]
fn answer_as(user: &str, port: u16, words: &[&str]) -> String {
    let output = etcdctl_as(user, port, words);
    assert!(output.status.success(), "{words:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Returns the leases that `mallory` can list.
fn leases_seen(port: u16) -> Vec<String> {
    let listed = answer_as("mallory", port, &["lease", "list"]);
    listed.lines().skip(1).map(str::to_owned).collect()
}

/// A user whose role is for other keys can neither read, write, watch nor compare a lock's keys, nor revoke
/// the lease of a holder or a waiter, even with the owner token and the number of the lease.
#[test]
fn role_on_another_prefix_cannot_change_a_lock() {
    let server = server_with_users();
    let port = server.port;
    let store = cases::open(&format!("etcd://app:s3cret@127.0.0.1:{port}"));
    let one = cases::claim(1, Ttl::new(Duration::from_mins(10)).expect("a ttl"));
    let two = cases::claim(2, one.ttl);
    let fence = cases::granted(store.acquire(&one));
    let _waiter = waited(&store, &two, Duration::ZERO);
    let key = format!("verrou/lock/{}", one.owner);
    let leases = leases_seen(port);
    assert_eq!(leases.len(), 2, "{leases:?}");
    let mut refused = vec![
        vec!["get", &key],
        vec!["get", "--prefix", ""],
        vec!["put", &key, "x"],
        vec!["put", "verrou/lock/00000000000000000000000000000000", "x"],
        vec!["del", &key],
        vec!["del", "--prefix", "verrou/"],
        vec!["watch", &key],
        vec![
            "role",
            "grant-permission",
            "others",
            "readwrite",
            "--prefix=true",
            "verrou/",
        ],
        vec!["user", "grant-role", "mallory", "locks"],
        vec!["user", "delete", "app"],
        vec!["auth", "disable"],
        vec!["snapshot", "save", "/dev/null"],
    ];
    let attached: Vec<_> = leases
        .iter()
        .map(|lease| format!("--lease={lease}"))
        .collect();
    for (lease, attached) in leases.iter().zip(&attached) {
        refused.push(vec!["lease", "revoke", lease]);
        refused.push(vec!["put", "other/key", "x", attached]);
    }
    for words in refused {
        let output = etcdctl_as("mallory", port, &words);
        assert!(!output.status.success(), "{words:?}: {output:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("permission denied"), "{words:?}: {said}");
    }
    // A comparison would reveal the contents of a key.
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let compare = Compare::create_revision(&*key, CompareOp::Greater, 0);
        let compared = Txn::new()
            .when([compare])
            .and_then([TxnOp::put("other/key", "x", 0)]);
        let compared = mallory(port).await.txn(compared).await;
        let why = format!("{:?}", compared.expect_err("it may not"));
        assert!(why.contains("permission denied"), "{why}");
    });
    // Every user may compact revisions and keep leases alive.
    answer_as("mallory", port, &["compaction", "3"]);
    for lease in &leases {
        answer_as("mallory", port, &["lease", "keep-alive", "--once", lease]);
    }
    let holders = store.holders(&one.name).expect("an answer");
    let holder = holders.first().expect("it is held");
    assert_eq!(holder.fence, fence);
    assert!(store.holds(&one, fence).expect("an answer"));
    done(store.extend(&one));
    done(store.release(&one));
    cases::granted(store.acquire(&two));
}

/// Returns a client of the user `mallory`.
async fn mallory(port: u16) -> Client {
    let options = ConnectOptions {
        timeout: Duration::from_secs(10),
        user: Some(("mallory".to_owned(), "s3cret".to_owned())),
        tls: None,
    };
    let members = [format!("http://127.0.0.1:{port}")];
    let connecting = Client::connect(&members, &options);
    connecting.await.expect("the server is there")
}

/// A user whose role is for other keys sees each new lease before a key is attached to it, and revokes it. Every
/// fourth lease gets a key of that user instead, by a transaction, for which etcd does not check the lease. No
/// request fails for it within a long timeout.
#[test]
fn new_leases_that_another_user_revokes_are_replaced() {
    /// The number of leases to revoke.
    const REVOKED: u32 = 60;

    let server = server_with_users();
    let port = server.port;
    let store = cases::open(&format!("etcd://app:s3cret@127.0.0.1:{port}?timeout=20s"));
    let (revoked, is_over) = (AtomicU32::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            let runtime = tokio::runtime::Runtime::new().expect("a runtime");
            runtime.block_on(async {
                let (client, mut seen) = (mallory(port).await, HashSet::new());
                while !is_over.load(Ordering::Relaxed) {
                    let listed = client.ask("/etcdserverpb.Lease/LeaseLeases", Nothing {});
                    let listed: LeaseList = listed.await.expect("every user may list them");
                    for LeaseStatus { id } in listed.leases {
                        if !seen.insert(id) {
                            continue;
                        }
                        if seen.len() % 4 == 0 {
                            let put = TxnOp::put(format!("other/{id}"), "x", id);
                            // The lease may be gone.
                            let _ = client.txn(Txn::new().and_then([put])).await;
                        } else if client.lease_revoke(id).await.is_ok() {
                            revoked.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            });
        });
        let minutes = |minutes| {
            let ttl = Ttl::new(Duration::from_mins(minutes)).expect("a ttl");
            cases::claim(1, ttl)
        };
        let began = Instant::now();
        let done = (|| {
            while revoked.load(Ordering::Relaxed) < REVOKED {
                assert!(began.elapsed() < Duration::from_mins(2), "the attack fails");
                for reply in [
                    store.acquire(&minutes(1))?.is_granted(),
                    store.acquire(&minutes(2))?.is_granted(),
                    store.extend(&minutes(3))?,
                    store.release(&minutes(3))?,
                ] {
                    assert!(reply);
                }
            }
            Ok::<_, verrou::StoreError>(())
        })();
        is_over.store(true, Ordering::Relaxed);
        done.expect("no request fails");
    });
}

/// The lease of a process whose waiters have left has no key for a while. If another user revokes it, the next
/// waiter gets a ticket at once.
#[test]
fn lease_of_waiters_that_another_user_revokes_is_replaced() {
    let server = server_with_users();
    let port = server.port;
    let store = cases::open(&format!("etcd://app:s3cret@127.0.0.1:{port}"));
    let (one, two) = (cases::claim(1, Ttl::NEVER), cases::claim(2, Ttl::NEVER));
    cases::granted(store.acquire(&one));
    let tickets = || {
        let words = ["get", "--prefix", "--keys-only", "verrou/lock/"];
        answer_as("app", port, &words)
            .matches("verrou/lock/")
            .count()
    };
    // The store may revoke the lease first.
    cases::in_time(|| {
        let waiter = waited(&store, &two, Duration::ZERO);
        assert_eq!(tickets(), 2);
        drop(waiter);
        cases::in_time(|| tickets() == 1);
        let leases = leases_seen(port);
        let revoke = |lease: &String| etcdctl_as("mallory", port, &["lease", "revoke", lease]);
        let is_revoked = leases.iter().any(|lease| revoke(lease).status.success());
        let waiter = waited(&store, &two, Duration::ZERO);
        assert_eq!(tickets(), 2, "it waits");
        drop(waiter);
        cases::in_time(|| tickets() == 1);
        is_revoked
    });
    let _waiter = waited(&store, &two, Duration::ZERO);
    done(store.release(&one));
    cases::granted(store.acquire(&two));
}

/// etcd lets every user keep every lease alive, so another user can let a lock outlive its holder. It can be
/// released by force.
#[test]
fn lock_that_another_user_keeps_alive_can_be_force_released() {
    let server = server_with_users();
    let port = server.port;
    let store = cases::open(&format!("etcd://app:s3cret@127.0.0.1:{port}"));
    let one = cases::claim(1, Ttl::new(Etcd.ttl()).expect("a ttl"));
    let two = cases::claim(2, Ttl::NEVER);
    cases::granted(store.acquire(&one));
    let lease = leases_seen(port).remove(0);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(5) {
        answer_as("mallory", port, &["lease", "keep-alive", "--once", &lease]);
    }
    assert!(!store.acquire(&two).expect("an answer").is_granted());
    done(store.force_release(&one.name, None));
    cases::granted(store.acquire(&two));
}

/// Another user can also keep the tickets of killed waiters alive, so that an acquire request without waiting is
/// refused the free lock. Only a force-release without a fencing token deletes them, up to the ticket of another
/// process.
#[test]
fn waiter_that_another_user_keeps_alive_can_be_force_released() {
    let server = server_with_users();
    let port = server.port;
    let store = cases::open(&format!("etcd://app:s3cret@127.0.0.1:{port}"));
    let never = |owner| cases::claim(owner, Ttl::NEVER);
    let one = never(1);
    // A killed waiter leaves the same behind: a ticket with a lease.
    let wait = |owner, lease: &str| {
        let key = format!("verrou/lock/{}", never(owner).owner);
        answer_as(
            "app",
            port,
            &["put", &format!("--lease={lease}"), &key, "waits"],
        );
    };
    let lease = || {
        // It lasts as if another user kept it alive.
        let granted = answer_as("app", port, &["lease", "grant", "600"]);
        granted.split(' ').nth(1).expect("a lease").to_owned()
    };
    let (dead, other) = (lease(), lease());
    wait(2, &dead);
    wait(3, &dead);
    wait(4, &other);
    wait(5, &dead);
    for lease in [&dead, &other] {
        answer_as("mallory", port, &["lease", "keep-alive", "--once", lease]);
    }
    let tickets = || {
        let words = ["get", "--prefix", "--keys-only", "verrou/lock/"];
        let listed = answer_as("app", port, &words);
        [2, 3, 4, 5].map(|owner| listed.contains(&never(owner).owner.to_string()))
    };
    assert!(!store.acquire(&one).expect("an answer").is_granted());
    for fence in 1..20 {
        let released = store.force_release(&one.name, Fence::new(fence));
        assert!(!released.expect("an answer"));
    }
    assert_eq!(tickets(), [true; 4]);
    done(store.force_release(&one.name, None));
    assert_eq!(tickets(), [false, false, true, true]);
    done(store.force_release(&one.name, None));
    done(store.force_release(&one.name, None));
    assert_eq!(tickets(), [false; 4]);
    assert!(!store.force_release(&one.name, None).expect("an answer"));
    cases::granted(store.acquire(&one));
}

/// Of several members, an unreachable one is skipped.
#[test]
fn unreachable_member_is_skipped() {
    let server = Etcd.start();
    let away = crate::running::free_port();
    let url = format!("etcd://127.0.0.1:{away},127.0.0.1:{}", server.port);
    let store = cases::open(&url);
    for owner in 0..20 {
        let claim = cases::claim(owner, Ttl::NEVER);
        cases::granted(store.acquire(&claim));
        done(store.release(&claim));
    }
}

/// Locks survive when the leader is killed; without a majority of its members a cluster does not answer.
#[test]
fn cluster_survives_killed_leader() {
    let mut members = Running::etcd_cluster();
    let ports = members.each_ref().map(|member| member.port);
    let hosts = ports.map(|port| format!("127.0.0.1:{port}")).join(",");
    // A request may go to a killed member first.
    let url = format!("etcd://{hosts}?timeout=5s");
    let leads = |port: u16| {
        let said = etcdctl(port, &["endpoint", "status", "--write-out=fields"]);
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        let of = |field: &str| {
            let line = said.lines().find(|line| line.starts_with(field))?;
            line.rsplit(' ').next().map(str::to_owned)
        };
        let leader = of("\"Leader\"").filter(|leader| leader != "0");
        leader.is_some() && leader == of("\"MemberID\"")
    };
    let leading = || ports.iter().position(|&port| leads(port));
    cases::in_time(|| leading().is_some());
    let leader = leading().expect("there is a leader");

    let (store, other) = (cases::open(&url), cases::open(&url));
    let (one, two) = (cases::claim(1, Ttl::NEVER), cases::claim(2, Ttl::NEVER));
    let fence = cases::granted(store.acquire(&one));
    let mut waiter = waited(&other, &two, Duration::ZERO);
    members[leader].kill();
    assert!(!cases::in_the_end(|| other.acquire(&two)).is_granted());
    assert!(cases::in_the_end(|| store.extend(&one)));
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            while !cases::in_the_end(|| other.acquire(&two)).is_granted() {
                waiter.wait(Duration::from_mins(1));
            }
        });
        assert!(cases::in_the_end(|| store.release(&one)));
        waiting.join().expect("it is served");
    });
    let holders = cases::in_the_end(|| store.holders(&two.name));
    let holder = holders.first().expect("it is held");
    assert!(holder.fence > fence);

    let next = (leader + 1) % members.len();
    members[next].kill();
    let err = other.extend(&two).expect_err("most are gone");
    assert!(err.is_temporary(), "{err:?}");
    members[next].restart();
    assert!(cases::in_the_end(|| other.extend(&two)));
    assert!(cases::in_the_end(|| other.release(&two)));
}

/// A connection can use TLS, with a certificate of a private authority.
#[test]
fn connection_can_use_tls() {
    let directory = tempfile::tempdir().expect("there is room for a directory");
    let (certificate, key) = certificate(directory.path());
    let server = Running::etcd(&[
        "--listen-client-urls=https://127.0.0.1:PORT",
        "--advertise-client-urls=https://127.0.0.1:PORT",
        &format!("--cert-file={certificate}"),
        &format!("--key-file={key}"),
    ]);
    let tls = server.port;
    let store = cases::open(&format!("etcds://localhost:{tls}?ca-file={certificate}"));
    let claim = cases::claim(1, Ttl::new(Duration::from_mins(1)).expect("a ttl"));
    cases::granted(store.acquire(&claim));
    refused(&format!("etcds://localhost:{tls}"));
}
