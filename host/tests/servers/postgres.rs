//! `PostgreSQL`.

use std::process::Command;
use std::sync::OnceLock;
use std::thread;

use verrou::{Fence, Store, Ttl};
use verrou_host::{AnyStore, StoreOptions, StoreUrl};

use crate::cases::{self, Kind};
use crate::fixture::Place;
use crate::running::Running;

/// The server of all cases that leave it alone.
fn server() -> String {
    static SERVER: OnceLock<Running> = OnceLock::new();

    let server = SERVER.get_or_init(|| Running::postgres(&["max_connections=500"]));
    format!("postgres://verrou@127.0.0.1:{}/postgres", server.port)
}

verrou::conformance!(conformance, Place::new(&server(), "schema"));

struct Postgres;

impl Kind for Postgres {
    fn start(&self) -> Running {
        Running::postgres(&["max_connections=700"])
    }

    fn url(&self, port: u16, place: &str) -> String {
        format!("postgres://verrou@127.0.0.1:{port}/postgres?schema={place}")
    }
}

/// What `psql` answers.
fn psql(port: u16, statements: &str) -> String {
    let mut command = Command::new("psql");
    let url = format!("postgres://verrou@127.0.0.1:{port}/postgres");
    command.args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align"]);
    command.args(["--set", "ON_ERROR_STOP=1", &url, "--command", statements]);
    let output = command.output().expect("psql is installed");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn waiters_are_served_in_their_order() {
    cases::first_come_first_served(&Postgres);
}

#[test]
fn who_waited_and_is_gone_is_passed() {
    cases::who_waited_and_is_gone_is_passed(&Postgres);
}

#[test]
fn a_place_is_kept() {
    cases::a_place_is_kept(&Postgres);
}

#[test]
fn many_clients_count() {
    const CLIENTS: u32 = 200;

    let prepare = |port| drop(psql(port, "create table number as select 0 as number"));
    let add = |port: u16, _: Fence| {
        let before: u32 = psql(port, "select number from number")
            .parse()
            .expect("a number");
        psql(port, &format!("update number set number = {}", before + 1));
    };
    let server = cases::many_clients_count(&Postgres, CLIENTS, prepare, add);
    assert_eq!(
        psql(server.port, "select number from number"),
        CLIENTS.to_string()
    );
}

#[test]
fn a_lost_answer_is_asked_for_again() {
    cases::a_lost_answer_is_asked_for_again(&Postgres);
}

#[test]
fn cut_connections_are_made_anew() {
    cases::cut_connections_are_made_anew(&Postgres);
}

#[test]
fn a_stopped_server_is_no_answer() {
    cases::a_stopped_server_is_no_answer(&Postgres);
}

#[test]
fn a_killed_server_keeps_its_locks() {
    cases::a_killed_server_keeps_its_locks(&Postgres);
}

#[test]
fn a_thousand_wait_on_few_connections() {
    cases::a_thousand_wait_on_few_connections(&Postgres);
}

#[test]
fn an_evicted_holder_is_told() {
    cases::an_evicted_holder_is_told(&Postgres);
}

#[test]
fn what_is_no_server_is_told_apart() {
    cases::what_is_no_server_is_told_apart(&Postgres);
}

#[test]
fn the_command_does_the_same() {
    cases::the_command_does_the_same(&Postgres);
}

#[test]
fn nothing_that_was_acknowledged_is_lost() {
    let script = "url=postgres://verrou@127.0.0.1:$PORT/postgres; \
        list=$(psql -qtAX $url -c \"update guarded set fence = $VERROU_FENCE \
        where fence <= $VERROU_FENCE returning list\"); sleep 0.01; \
        psql -qtAX $url -c \"update guarded set list = '$list $WORD', fence = $VERROU_FENCE \
        where fence <= $VERROU_FENCE returning 'ok'\"";
    cases::nothing_that_was_acknowledged_is_lost(
        &Postgres,
        |port| {
            psql(
                port,
                "create table guarded as select '' as list, 0::bigint as fence",
            );
        },
        script,
        |port| psql(port, "select list from guarded"),
    );
}

/// Whatever connections an administrator ends, they are made anew.
#[test]
fn connections_that_are_ended_are_made_anew() {
    let server = Postgres.start();
    let store = cases::open(&Postgres.url(server.port, "ended"));
    let claim = cases::claim(1, Ttl::NEVER);
    let fence = cases::granted(store.acquire(&claim));
    let ended = "select count(pg_terminate_backend(pid)) from pg_stat_activity \
        where application_name = 'verrou'";
    for _ in 0..3 {
        assert_ne!(psql(server.port, ended), "0");
        let asked = cases::in_the_end(|| store.acquire(&claim));
        assert_eq!(cases::granted(Ok(asked)), fence);
    }
}

/// Of twenty who start at once, one makes the schema.
#[test]
fn many_can_be_the_first() {
    let server = Postgres.start();
    let url = Postgres.url(server.port, "first");
    thread::scope(|scope| {
        for owner in 1..=20 {
            let url = &url;
            scope.spawn(move || {
                let store = cases::open(url);
                let claim = cases::claim(owner, Ttl::NEVER);
                store.acquire(&claim).expect("it answers");
            });
        }
    });
}

fn refused(url: &str) -> String {
    let url: StoreUrl = url.parse().expect("a URL");
    let opened = AnyStore::open(&url, &StoreOptions::default());
    opened.expect_err("it is not fit for a store").to_string()
}

/// What is wrong with a server is said, and what to do about it.
#[test]
fn a_server_that_is_not_fit_is_refused() {
    let server = Postgres.start();
    let port = server.port;
    psql(port, "create role guest login; create schema other");
    psql(port, "revoke create on database postgres from public");
    for (url, said) in [
        (
            format!("postgres://guest@127.0.0.1:{port}/postgres"),
            "schema.sql",
        ),
        (
            format!("postgres://nobody@127.0.0.1:{port}/postgres"),
            "nobody",
        ),
        (
            format!("postgres://verrou@127.0.0.1:{port}/nowhere"),
            "nowhere",
        ),
        (
            format!("postgres://verrou@127.0.0.1:{port}/postgres?sslmode=prefer"),
            "verify-full",
        ),
    ] {
        let why = refused(&url);
        assert!(why.contains(said), "{url}: {why}");
    }
    // By hand, with what the guide says.
    let schema = include_str!("../../src/server/postgres/schema.sql").replace("SCHEMA", "byhand");
    psql(port, &schema);
    psql(
        port,
        "grant usage on schema byhand to guest; \
         grant select, insert, update, delete on all tables in schema byhand to guest",
    );
    let store = cases::open(&format!(
        "postgres://guest@127.0.0.1:{port}/postgres?schema=byhand"
    ));
    let claim = cases::claim(1, Ttl::NEVER);
    cases::granted(store.acquire(&claim));
    cases::granted(store.release(&claim));
}

/// A transaction that keeps the row of one name locked holds up no other name.
#[test]
fn a_locked_row_is_no_answer_and_holds_up_nobody_else() {
    let server = Postgres.start();
    let store = cases::open(&format!(
        "{}&timeout=300ms",
        Postgres.url(server.port, "rows")
    ));
    let (one, other) = (cases::claim(1, Ttl::NEVER), cases::claim(2, Ttl::NEVER));
    let other = verrou::Claim {
        name: verrou::Name::new("other").expect("a name"),
        ..other
    };
    cases::granted(store.acquire(&one));
    thread::scope(|scope| {
        let locked =
            "begin; select from rows.lock where name = 'lock' for update; select pg_sleep(3)";
        let locking = scope.spawn(|| psql(server.port, locked));
        let waits = "select count(*) from pg_stat_activity where query like '%pg_sleep(3)%' \
            and wait_event = 'PgSleep'";
        while psql(server.port, waits) == "0" {}
        for _ in 0..4 {
            let err = store.extend(&one).expect_err("the row is locked");
            assert!(err.is_temporary(), "{err:?}");
            cases::granted(store.acquire(&other));
            cases::granted(store.release(&other));
        }
        locking.join().expect("it ends");
    });
    cases::granted(store.extend(&one));
}
