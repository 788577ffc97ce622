//! `PostgreSQL`.

use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use verrou::{Acquired, Fence, Store, Ttl};
use verrou_host::{AnyStore, StoreOptions};

use crate::cases::{self, Kind, refused, waited};
use crate::certificate::certificate;
use crate::fixture::Namespace;
use crate::running::Running;
use crate::store_calls::done;

/// Returns the URL of the server of all cases that do not stop it or change its settings.
fn server() -> String {
    static SERVER: OnceLock<Running> = OnceLock::new();

    let server = SERVER.get_or_init(|| Running::postgres(&["max_connections=500"]));
    format!("postgres://verrou@127.0.0.1:{}/postgres", server.port)
}

verrou::conformance!(conformance, Namespace::new(&server(), "schema"));

cases::tests_of_every_engine!(Postgres);

struct Postgres;

/// More connections than any case needs.
const MANY: &str = "max_connections=700";

impl Kind for Postgres {
    fn start(&self) -> Running {
        Running::postgres(&[MANY])
    }

    fn url(&self, port: u16, namespace: &str) -> String {
        format!("postgres://verrou@127.0.0.1:{port}/postgres?schema={namespace}")
    }

    fn until_one_waits(&self, port: u16, namespace: &str) {
        let waiting = format!("select count(*) from {namespace}.waiter");
        cases::in_time(|| psql(port, &waiting) == "1");
    }
}

/// Runs `psql`, which must succeed, and returns its standard output.
#[track_caller]
fn psql(port: u16, statements: &str) -> String {
    psql_as("verrou", port, statements)
}

/// Runs `psql` as the role `role`, which must succeed, and returns its standard output.
#[track_caller]
fn psql_as(role: &str, port: u16, statements: &str) -> String {
    let output = psql_command(role, port, statements).output();
    let output = output.expect("psql is installed");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn psql_command(role: &str, port: u16, statements: &str) -> Command {
    let mut command = Command::new("psql");
    let url = format!("postgres://{role}@127.0.0.1:{port}/postgres");
    command.args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align"]);
    command.args(["--set", "ON_ERROR_STOP=1", &url, "--command", statements]);
    command
}

/// Returns the statements of `schema.sql` for a schema of that name.
fn schema(name: &str) -> String {
    include_str!("../../servers/src/postgres/schema.sql").replace("SCHEMA", name)
}

/// The setting that the functions of the first version did not have.
const SEARCH_PATH: &str = " set search_path = pg_catalog, pg_temp as $$";

/// Returns the statements that created such a schema in the first version.
fn earlier_schema(name: &str) -> String {
    let earlier = schema(name).replace(SEARCH_PATH, " as $$");
    assert!(!earlier.contains(SEARCH_PATH) && earlier != schema(name));
    earlier
}

/// Creates a role that may create objects in `public`, as every role may by default in versions 12 to 14.
fn hostile_role(port: u16) {
    psql(
        port,
        "create role mallory login; grant create on schema public to mallory",
    );
}

#[track_caller]
fn is_no_superuser(port: u16) {
    let is_superuser = "select rolsuper from pg_roles where rolname = 'mallory'";
    assert_eq!(psql(port, is_superuser), "f", "mallory's code was executed");
}

/// Calls every function of a schema.
fn use_all(store: &AnyStore) {
    let minute = Ttl::new(Duration::from_mins(1)).expect("a ttl");
    let (one, two) = (cases::claim(1, minute), cases::claim(2, minute));
    cases::granted(store.acquire(&one));
    assert!(!store.acquire(&two).expect("an answer").is_granted());
    let second = waited(store, &two, Duration::ZERO);
    done(store.extend(&one));
    assert_eq!(store.list().expect("an answer").len(), 1);
    done(store.release(&one));
    assert!(!store.acquire(&one).expect("an answer").is_granted());
    let _first = waited(store, &one, Duration::ZERO);
    drop(second);
    cases::granted(cases::until_granted(store, &one));
    done(store.force_release(&one.name, None));
}

/// Operators and functions of other roles in `public` that fit the arguments better than those of the
/// system are not executed: neither by a store, whose session does not search `public`, nor by another
/// caller of a store's functions.
#[test]
fn operators_of_other_roles_are_not_executed() {
    let server = Postgres.start();
    let port = server.port;
    hostile_role(port);
    for (left, right, result) in [
        ("bigint", "interval", "interval"),
        ("numeric", "integer", "numeric"),
        ("double precision", "integer", "double precision"),
        ("timestamptz", "bigint", "timestamptz"),
    ] {
        let name = format!("planted_{}", left.replace(' ', "_"));
        psql_as(
            "mallory",
            port,
            &format!(
                "create function public.{name}({left}, {right}) returns {result} language plpgsql as $$ \
                 begin execute 'alter role mallory superuser'; return null; end $$; \
                 create operator public.* (function = public.{name}, leftarg = {left}, rightarg = {right})"
            ),
        );
    }
    psql(port, &earlier_schema("earlier"));
    psql(
        port,
        "create role guest login; grant usage on schema earlier to guest; \
         grant select, insert, update, delete on all tables in schema earlier to guest",
    );
    let unset = "select count(*) from pg_proc where pronamespace = 'earlier'::regnamespace \
        and proconfig is null";
    // A user who may not change the functions uses them safely.
    let guests = format!("postgres://guest@127.0.0.1:{port}/postgres?schema=earlier");
    use_all(&cases::open(&guests));
    assert_eq!(psql(port, unset), "13");
    // The owner of the functions changes them.
    use_all(&cases::open(&Postgres.url(port, "earlier")));
    assert_eq!(psql(port, unset), "0");
    use_all(&cases::open(&Postgres.url(port, "fresh")));
    is_no_superuser(port);
    for schema in ["fresh", "earlier"] {
        psql(
            port,
            &format!(
                "select {schema}.acquire('a', '1', 1000000, 1, '', 'c', 1); \
                 select {schema}.acquire('a', '2', 1000000, 1, '', 'c', 1); \
                 select {schema}.wait('a', '2', 1000000, 'c', false); \
                 select {schema}.extend('a', '1', 1000000, 1, 'c'); \
                 select {schema}.release('a', '1', 1000000); \
                 select {schema}.after(now(), 1), {schema}.length_until(now(), now())"
            ),
        );
    }
    is_no_superuser(port);
}

/// A role that may create a schema cannot have its code executed by a store's users by creating one with the name
/// and the comment of the store's schema.
#[test]
fn schema_that_an_untrusted_role_controls_is_refused() {
    let server = Postgres.start();
    let port = server.port;
    hostile_role(port);
    psql(port, "grant create on database postgres to mallory");
    let hostile = "returns trigger language plpgsql as $$ \
        begin execute 'alter role mallory superuser'; return null; end $$";
    let planted = schema("verrou").replace(
        "  it SCHEMA.lock := SCHEMA.locked(_name);"
            .replace("SCHEMA", "verrou")
            .as_str(),
        "  it verrou.lock := verrou.locked(_name || case when current_user = 'verrou' then \
         query_to_xml('alter role mallory superuser', true, true, '')::text else '' end);",
    );
    psql_as("mallory", port, &planted);
    psql_as(
        "mallory",
        port,
        &format!("create function public.planted() {hostile}"),
    );
    psql(port, &schema("ours"));
    psql(port, "create role guest login");

    let all_of =
        |schema: &str| format!("postgres://verrou@127.0.0.1:{port}/postgres?schema={schema}");
    for (schema, before, said, after) in [
        ("verrou", "", "`mallory` is its owner", ""),
        (
            "ours",
            "alter table ours.waiter owner to mallory",
            "`mallory` is the owner of its table `waiter`",
            "alter table ours.waiter owner to verrou",
        ),
        (
            "ours",
            "alter function ours.first owner to mallory",
            "`mallory` is the owner of its function `ours.first(text,timestamp with time zone)`",
            "alter function ours.first owner to verrou",
        ),
        (
            "ours",
            "grant create on schema ours to guest",
            "`guest` may create objects in it",
            "revoke create on schema ours from guest",
        ),
        (
            "ours",
            "grant create on schema ours to public",
            "`PUBLIC` may create objects in it",
            "revoke create on schema ours from public",
        ),
        (
            "ours",
            "grant all on ours.lock to guest",
            "`guest` may create triggers on `lock`",
            "revoke all on ours.lock from guest",
        ),
        (
            "ours",
            "create trigger planted after insert on ours.lock execute function public.planted()",
            "`mallory` is the owner of the trigger on `lock`",
            "drop trigger planted on ours.lock",
        ),
    ] {
        psql(port, before);
        let why = refused(&all_of(schema));
        for said in [said, &format!("schema `{schema}`"), "?schema=NAME"] {
            assert!(why.contains(said), "{before}: {why}");
        }
        assert_eq!(
            why.contains("schema-owner="),
            !said.contains("PUBLIC"),
            "{why}"
        );
        // Another owner would make hostile code trusted.
        let advice = match after.split_once(" on ") {
            Some((revoke, _)) if revoke.starts_with("revoke") => format!("execute `{revoke}"),
            None | Some(_) => format!("drop schema \"{schema}\" cascade"),
        };
        let advice = advice.replace("all", "trigger");
        assert!(why.contains(&advice), "{advice}: {why}");
        psql(port, after);
    }
    is_no_superuser(port);
    use_all(&cases::open(&all_of("ours")));
}

/// The roles of `schema-owner`, the user itself and the owner of the database are trusted.
#[test]
fn schema_of_a_trusted_role_is_used() {
    let server = Postgres.start();
    let port = server.port;
    hostile_role(port);
    psql(
        port,
        "grant create on database postgres to mallory; create role guest login",
    );
    let all_of =
        |schema: &str| format!("postgres://verrou@127.0.0.1:{port}/postgres?schema={schema}");
    psql_as("mallory", port, &schema("verrou"));
    use_all(&cases::open(&all_of("verrou&schema-owner=mallory")));
    use_all(&cases::open(&all_of(
        "verrou&schema-owner=mallory&schema-owner=guest",
    )));
    psql(
        port,
        "create role \"Odd & Co\"; grant create on schema verrou to \"Odd & Co\"",
    );
    let why = refused(&all_of("verrou&schema-owner=mallory"));
    let added = "schema-owner=Odd%20%26%20Co";
    assert!(why.ends_with(added), "{why}");
    let both = format!("verrou&schema-owner=mallory&{added}");
    use_all(&cases::open(&all_of(&both)));
    psql(port, "revoke create on schema verrou from \"Odd & Co\"");
    let why = refused(&all_of("verrou&schema-owner=guest"));
    assert!(why.contains("`mallory` is its owner"), "{why}");
    use_all(&cases::open(
        &all_of("verrou").replace("//verrou@", "//mallory@"),
    ));
    psql(port, "alter database postgres owner to mallory");
    use_all(&cases::open(&all_of("verrou")));
}

/// A role that renames its schema while a store is opened cannot have it trusted: its existence and its owners
/// are read in one snapshot.
#[test]
fn schema_that_is_renamed_during_the_check_is_refused() {
    /// The number of times that the store is opened.
    const ATTEMPTS: u32 = 60;

    let server = Postgres.start();
    let port = server.port;
    psql(
        port,
        "create role mallory login; create role guest login; \
         grant create on database postgres to mallory; \
         revoke create on database postgres from public; \
         create sequence public.renamed; grant all on sequence public.renamed to mallory",
    );
    psql_as("mallory", port, &schema("verrou"));
    psql_as(
        "mallory",
        port,
        "grant usage on schema verrou to guest; \
         grant select, insert, update, delete on all tables in schema verrou to guest",
    );
    let statement = "do $$ begin for number in 1..2000000000 loop \
        alter schema verrou rename to hidden; commit; \
        alter schema hidden rename to verrou; perform nextval('public.renamed'); commit; \
        end loop; end $$";
    let mut renaming = psql_command("mallory", port, statement)
        .spawn()
        .expect("psql is installed");
    let renamed = || -> u64 {
        let count = psql(port, "select last_value from public.renamed");
        count.parse().expect("a number")
    };
    cases::in_time(|| renamed() > 1);
    let before = renamed();
    let url = format!("postgres://guest@127.0.0.1:{port}/postgres");
    let refusals: Vec<_> = (0..ATTEMPTS)
        .map(|_| {
            let url = url.parse().expect("a URL");
            let opened = AnyStore::open(&url, &StoreOptions::default());
            opened.map(drop).map_err(|why| why.to_string())
        })
        .collect();
    let is_renaming = renamed() > before + u64::from(ATTEMPTS);
    psql(
        port,
        "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'mallory'",
    );
    let _ = renaming.kill();
    renaming.wait().expect("it ends");
    assert!(is_renaming, "the schema is renamed all the time");
    for why in &refusals {
        let why = why.as_ref().expect_err("a hostile schema is refused");
        assert!(
            why.contains("`mallory` is its owner") || why.contains("there is no schema `verrou`"),
            "{why}"
        );
    }
    let is_said = |said| {
        let mut refusals = refusals.iter().filter_map(|why| why.as_ref().err());
        refusals.any(|why| why.contains(said))
    };
    assert!(
        is_said("is its owner") && is_said("there is no schema"),
        "{refusals:?}"
    );
}

/// Privileges that an untrusted role would get by default privileges are revoked when the schema is created, so
/// that it can be opened again. Privileges of a trusted role, and privileges without control, are kept.
#[test]
fn default_privileges_do_not_let_other_roles_control_a_new_schema() {
    let server = Postgres.start();
    let port = server.port;
    psql(
        port,
        "create role guest login; create role trusty login; create role \"Odd & Co\"; \
         alter default privileges grant all on tables to public, guest, \"Odd & Co\", trusty; \
         alter default privileges grant all on schemas to public, guest, \"Odd & Co\", trusty",
    );
    let url = Postgres.url(port, "fresh&schema-owner=trusty");
    use_all(&cases::open(&url));
    use_all(&cases::open(&url));
    let why = refused(&Postgres.url(port, "fresh"));
    assert!(why.contains("`trusty` may create objects in it"), "{why}");
    for (privilege, is_kept) in [
        ("has_schema_privilege('guest', 'fresh', 'create')", "f"),
        ("has_schema_privilege('guest', 'fresh', 'usage')", "t"),
        ("has_table_privilege('guest', 'fresh.lock', 'trigger')", "f"),
        ("has_table_privilege('guest', 'fresh.lock', 'update')", "t"),
        (
            "has_table_privilege('trusty', 'fresh.lock', 'trigger')",
            "t",
        ),
    ] {
        assert_eq!(
            psql(port, &format!("select {privilege}")),
            is_kept,
            "{privilege}"
        );
    }
    // Another user with privileges on the rows can open it, too.
    let guests = url.replace("//verrou@", "//guest@");
    use_all(&cases::open(&format!("{guests}&schema-owner=verrou")));
}

/// A role that may not create schemas cannot delay the creation of the schema, and the wait for a role that may is
/// bounded.
#[test]
fn creation_of_the_schema_waits_for_no_other_role() {
    let server = Postgres.start();
    let port = server.port;
    psql(
        port,
        "create role guest login; create role mallory login; \
         grant create on database postgres to mallory",
    );
    let holds = |role: &str, statement: &str| {
        let statement = format!("begin; {statement}; select pg_sleep(60)");
        let session = psql_command(role, port, &statement).spawn();
        let sleeps = format!(
            "select count(*) from pg_stat_activity where usename = '{role}' and wait_event = 'PgSleep'"
        );
        cases::in_time(|| psql(port, &sleeps) == "1");
        session.expect("psql is installed")
    };
    let ends = |mut session: std::process::Child| {
        session.kill().expect("it runs");
        session.wait().expect("it ends");
        psql(
            port,
            "select pg_terminate_backend(pid) from pg_stat_activity where wait_event = 'PgSleep'",
        );
    };
    // The lock that earlier versions acquired first.
    let session = holds("guest", "select pg_advisory_lock(8105262917346521)");
    use_all(&cases::open(&Postgres.url(port, "free")));
    ends(session);

    let session = holds("mallory", "create schema taken");
    let began = Instant::now();
    let why = refused(&format!("{}&timeout=5s", Postgres.url(port, "taken")));
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "the wait is bounded"
    );
    assert!(
        why.contains("`taken`") && why.contains("has not committed"),
        "{why}"
    );
    ends(session);
    use_all(&cases::open(&Postgres.url(port, "taken")));
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
fn acknowledged_writes_are_not_lost() {
    let script = "url=postgres://verrou@127.0.0.1:$PORT/postgres; \
        list=$(psql -qtAX $url -c \"update guarded set fence = $VERROU_FENCE \
        where fence <= $VERROU_FENCE returning list\"); sleep 0.01; \
        psql -qtAX $url -c \"update guarded set list = '$list $WORD', fence = $VERROU_FENCE \
        where fence <= $VERROU_FENCE returning 'ok'\"";
    cases::acknowledged_writes_are_not_lost(
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

/// Connections that an administrator terminates are opened again.
#[test]
fn terminated_connections_are_reopened() {
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

/// Of twenty stores that are opened at once, one creates the schema.
#[test]
fn concurrent_opens_create_one_schema() {
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

/// The error of an unsuitable server says what is wrong, and what to do about it.
#[test]
fn unsuitable_server_is_refused_with_advice() {
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
            format!("postgres://missing@127.0.0.1:{port}/postgres"),
            "missing",
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
    // Create the schema by hand, as the guide says.
    psql(port, &schema("byhand"));
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
    done(store.release(&claim));
}

/// In transaction mode, a pooler gives a connection to other clients between two transactions.
#[test]
fn pooler_in_transaction_mode_is_refused() {
    let server = Postgres.start();
    let pooler = Running::pgbouncer(server.port, "transaction");
    let url = Postgres.url(pooler.port, "pooled");
    // Later attempts find connections in the state that earlier ones left.
    for _ in 0..10 {
        let why = refused(&url);
        assert!(why.contains("transaction mode"), "{why}");
        assert!(why.contains("session mode"), "{why}");
    }
    let pooler = Running::pgbouncer(server.port, "session");
    let url = Postgres.url(pooler.port, "pooled");
    let (store, other) = (cases::open(&url), cases::open(&url));
    let (one, two) = (cases::claim(1, Ttl::NEVER), cases::claim(2, Ttl::NEVER));
    cases::granted(store.acquire(&one));
    let mut waiter = waited(&other, &two, Duration::ZERO);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| waiter.wait(Duration::from_mins(1)));
        done(store.release(&one));
        let began = Instant::now();
        waiting.join().expect("it ends");
        assert!(began.elapsed() < Duration::from_secs(30), "it is notified");
    });
    cases::granted(other.acquire(&two));
}

/// A standby is refused; after a synchronous standby has taken over, all locks are there.
#[test]
fn standby_takes_over() {
    let mut primary = Postgres.start();
    let standby = Running::standby_of(&primary, &[MANY]);
    psql(
        primary.port,
        "alter system set synchronous_standby_names = '*'",
    );
    psql(primary.port, "select pg_reload_conf()");
    let followed = "select count(*) from pg_stat_replication where sync_state = 'sync'";
    cases::in_time(|| psql(primary.port, followed) == "1");

    let why = refused(&Postgres.url(standby.port, "standby"));
    assert!(
        why.contains("standby") && why.contains("separated by commas"),
        "{why}"
    );
    let store = cases::open(&format!(
        "postgres://verrou@127.0.0.1:{},127.0.0.1:{}/postgres",
        standby.port, primary.port
    ));
    let (one, two) = (cases::claim(1, Ttl::NEVER), cases::claim(2, Ttl::NEVER));
    let fence = cases::granted(store.acquire(&one));
    primary.kill();
    let err = store.extend(&one).expect_err("the standby is read-only");
    assert!(err.is_temporary(), "{err:?}");
    psql(standby.port, "select pg_promote()");
    assert!(cases::in_the_end(|| store.extend(&one)));
    assert!(!cases::in_the_end(|| store.acquire(&two)).is_granted());
    assert!(cases::in_the_end(|| store.release(&one)));
    assert!(cases::granted(store.acquire(&two)) > fence);
}

/// A connection can use TLS, with a certificate of a private authority, and a password.
#[test]
fn connection_can_use_tls_and_password() {
    let server = Postgres.start();
    let port = server.port;
    let directory = tempfile::tempdir().expect("there is room for a directory");
    let (certificate, key) = certificate(directory.path());
    // The server must own the file of the key.
    let key = std::fs::read_to_string(key).expect("it is there");
    let copied = |text: &str, to: &str| {
        let command = format!("umask 077; cat > {to}");
        psql(
            port,
            &format!(
                "copy (select unnest(string_to_array($${text}$$, E'\\n'))) to program '{command}'"
            ),
        );
    };
    copied(&key, "key.pem");
    copied(
        &std::fs::read_to_string(&certificate).expect("it is there"),
        "certificate.pem",
    );
    copied(
        "hostssl all app all scram-sha-256\nhost all verrou all trust",
        "pg_hba.conf",
    );
    for setting in [
        "ssl_key_file = 'key.pem'",
        "ssl_cert_file = 'certificate.pem'",
        "ssl = on",
    ] {
        psql(port, &format!("alter system set {setting}"));
    }
    psql(port, "create role app login password 's3cret'");
    psql(port, "grant create on database postgres to app");
    psql(port, "select pg_reload_conf()");
    let url = |password: &str, options: &str| {
        format!("postgres://app:{password}@localhost:{port}/postgres?{options}")
    };
    // Passwords are hashed slowly, and more so in a debug build on a busy machine.
    let trusted = format!("sslmode=verify-full&ca-file={certificate}&timeout=20s");
    let good = url("s3cret", &trusted);
    cases::in_time(|| {
        let url = good.parse().expect("a URL");
        AnyStore::open(&url, &StoreOptions::default()).is_ok()
    });
    cases::password_is_not_passed_to_command(&good);
    for (url, said) in [
        (url("wr0ng", &trusted), "password"),
        (url("s3cret", "sslmode=verify-full"), "certificate"),
        (url("s3cret", "sslmode=disable"), "sslmode=verify-full"),
        (good.replace("localhost", "127.0.0.1"), "certificate"),
    ] {
        let why = refused(&url);
        assert!(why.contains(said), "{url}: {why}");
        assert!(!why.contains("wr0ng") && !why.contains("s3cret"), "{why}");
    }
    let file = directory.path().join("password");
    std::fs::write(&file, "s3cret\n").expect("there is room for it");
    let named = format!("{trusted}&password-file={}", file.display());
    let named = good.replace(":s3cret", "").replace(&trusted, &named);
    let mode = |mode| {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(&file, mode).expect("it is ours");
    };
    mode(0o644);
    let why = refused(&named);
    assert!(why.contains("0644") && why.contains("chmod 600"), "{why}");
    mode(0o600);
    cases::open(&named);
    // By its address, it is another machine, for which TLS is the default.
    let by_default = named
        .replace("sslmode=verify-full&", "")
        .replace("localhost", "0.0.0.0");
    let why = refused(&by_default);
    assert!(
        why.contains("certificate") && why.contains("sslmode=disable"),
        "{why}"
    );
}

/// The password is not sent without TLS to another machine, unless the URL says so: neither to a server that
/// asks for it, nor to one that says that it has no TLS.
#[test]
fn password_is_not_sent_unencrypted() {
    const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

    let (port, received) = cases::recorded(|received| match received {
        _ if received == SSL_REQUEST => b"N".to_vec(),
        // Request a clear-text password.
        _ => b"R\0\0\0\x08\0\0\0\x03".to_vec(),
    });
    for url in [
        // For the client, this is another machine.
        format!("postgres://app:s3cret@0.0.0.0:{port}/db"),
        format!("postgres://app:s3cret@127.0.0.1:{port},0.0.0.0:{port}/db"),
        format!("postgres://app:s3cret@127.0.0.1:{port}/db?sslmode=require"),
    ] {
        let why = refused(&url);
        assert!(
            why.contains("TLS handshake failed") && why.contains("sslmode=disable"),
            "{why}"
        );
    }
    let received = received.lock().unwrap();
    assert!(!received.is_empty());
    assert_eq!(received.len() % SSL_REQUEST.len(), 0, "{received:?}");
    assert!(
        received
            .chunks(SSL_REQUEST.len())
            .all(|it| it == SSL_REQUEST),
        "{received:?}"
    );

    let server = Postgres.start();
    cases::open(&format!(
        "postgres://verrou:s3cret@0.0.0.0:{}/postgres?sslmode=disable",
        server.port
    ));
}

/// A server with asynchronous commits still commits locks synchronously: a killed server loses none.
#[test]
fn asynchronous_commit_is_overridden() {
    // The longest permitted delay of the WAL writer.
    let settings = ["synchronous_commit=off", "wal_writer_delay=10000ms"];
    let mut server = Running::postgres(&settings);
    let store = cases::open(&Postgres.url(server.port, "forgets"));
    for owner in [1, 3] {
        let (claim, next) = (
            cases::claim(owner, Ttl::NEVER),
            cases::claim(owner + 1, Ttl::NEVER),
        );
        let fence = cases::granted(store.acquire(&claim));
        server.restart();
        assert!(cases::in_the_end(|| store.extend(&claim)));
        assert!(cases::in_the_end(|| store.release(&claim)));
        server.restart();
        let reply = cases::in_the_end(|| store.acquire(&next));
        assert!(cases::granted(Ok(reply)) > fence);
        assert!(cases::in_the_end(|| store.release(&next)));
    }
}

/// A transaction that keeps the row of one name locked delays no other name, however many requests there are for the
/// locked one.
#[test]
fn locked_row_delays_no_other_name() {
    let server = Postgres.start();
    let store = cases::open(&format!("{}&timeout=1s", Postgres.url(server.port, "rows")));
    let (one, other) = (cases::claim(1, Ttl::NEVER), cases::claim(2, Ttl::NEVER));
    let other = other.with_name(verrou::Name::new("other").expect("a name"));
    cases::granted(store.acquire(&one));
    cases::granted(store.acquire(&other));
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let locked =
            "begin; select from rows.lock where name = 'lock' for update; select pg_sleep(10)";
        let locking = scope.spawn(|| psql(server.port, locked));
        let waits = "select count(*) from pg_stat_activity where query like '%pg_sleep(10)%' \
            and wait_event = 'PgSleep'";
        cases::in_time(|| psql(server.port, waits) != "0");
        for owner in 10..20 {
            let (store, is_over) = (&store, &is_over);
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    let reply = store.acquire(&cases::claim(owner, Ttl::NEVER));
                    assert!(!reply.is_ok_and(Acquired::is_granted));
                }
            });
        }
        let err = store.extend(&one).expect_err("the row is locked");
        assert!(err.is_temporary(), "{err:?}");
        for _ in 0..20 {
            done(store.extend(&other));
            thread::sleep(Duration::from_millis(100));
        }
        // The server also cancels the requests that were dropped here.
        let ours = "select count(*) from pg_stat_activity where application_name = 'verrou'";
        cases::in_time(|| {
            psql(server.port, ours)
                .parse::<u32>()
                .is_ok_and(|it| it <= 4)
        });
        is_over.store(true, Ordering::Relaxed);
        locking.join().expect("it ends");
    });
    done(store.extend(&one));
}
