//! The store in a `PostgreSQL` database: its connections, its schema and its operations.

use std::collections::HashSet;
use std::fmt;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use deadpool_postgres::{
    Hook, HookError, Manager, ManagerConfig, Object, Pool, PoolError, RecyclingMethod,
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};
use tokio_postgres::config::{SslMode, TargetSessionAttrs};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{AsyncMessage, Client, Config, Row, SimpleQueryMessage};
use tokio_postgres_rustls::MakeRustlsConnect;
use verrou::blocking::Host;
use verrou::{
    Abilities, AsyncStore, Claim, Fence, Holder, Name, Owner, Renewed, Reply, StoreError,
};

use crate::System;
use crate::server::cancelled_acquire::{CancelGuard, CancelledRequests};
use crate::server::notifications::Notifications;
use crate::server::queue_heartbeat::QueueHeartbeat;
use crate::server::store::{
    ABILITIES, About, RESERVATION, WAITER_TIMEOUT, drift, record_ttl, request_timeout,
};
use crate::server::{ServerError, ServerUrl};
use crate::store::{Listed, StoreOptions};

/// Leases in a `PostgreSQL` database, version 12 or later.
///
/// Its operations run in the tokio runtime in which it was [connected](Self::connect). Four connections
/// serve all operations and all waiters. `host/POSTGRES.md` lists its guarantees.
pub struct PostgresStore(Arc<PostgresShared>);

struct PostgresShared {
    pool: Pool,
    server: String,
    statements: Statements,
    timeout: Duration,
    about: String,
    /// The channel on which this process's waiters and holders are notified.
    channel: String,
    notifications: Arc<Notifications>,
    heartbeat: Arc<QueueHeartbeat>,
    /// The waiters that were notified to try the lock.
    notified: Mutex<HashSet<Owner>>,
    /// Bounds the connections of waiters that were not notified: one connection is left to holders and to
    /// notified waiters, however many others wait.
    unnotified: Semaphore,
    listener: AbortHandle,
    settings: Arc<Settings>,
    cancelled: CancelledRequests,
    runtime: Handle,
}

/// The statements of all operations.
struct Statements {
    acquire: String,
    extend: String,
    release: String,
    evict: String,
    inspect: String,
    list: String,
    wait: String,
    leave: String,
}

/// The characters of a name that are percent-encoded: NUL, which no text in a database can contain, and `%`.
const NUL: &AsciiSet = &AsciiSet::EMPTY.add(0).add(b'%');

/// The number of connections for operations.
const CONNECTIONS: usize = 3;

const SCHEMA: &str = include_str!("schema.sql");

/// The comment of a schema of this version.
const VERSION: &str = "Verrou 1";

/// The first statement of each session: no operator and no function of another schema is called.
const SEARCH_PATH: &str = "set search_path = pg_catalog, pg_temp";

/// Selects the comment of schema `$1`, and the first object in it that an untrusted role controls: the kind of
/// control, the object's name, the role, and the statement that revokes it if it is a privilege. Returns no row
/// if there is no such schema. Trusted roles are superusers, the current user, the owner of the database, and
/// those in `$2`. Only catalogs are read, so that nothing of the schema is executed.
///
/// It is one statement, which has one snapshot: between two of them a role could rename its schema, so that the
/// first finds the schema and the second nothing in it.
///
/// The owner of a schema or an object can replace it. A role that can create objects in the schema can
/// overload its functions, and one that can create triggers on a table executes code as all who write it.
const EXAMINED: &str = "
with space as (
  select oid, nspname, nspowner, coalesce(nspacl, acldefault('n', nspowner)) as acl
  from pg_namespace where nspname = $1
), relation as (
  select c.oid, c.relname, c.relowner, c.relkind, c.relacl
  from pg_class as c join space on c.relnamespace = space.oid where c.relkind not in ('i', 'I', 'c')
), object (rank, kind, name, role, revoke) as (
  select 1, 'is its owner', '', nspowner, null from space
  union all select 2, 'is the owner of its table', relname::text, relowner, null from relation
  union all select 3, 'is the owner of its function', p.oid::regprocedure::text, p.proowner, null
    from pg_proc as p join space on p.pronamespace = space.oid
  union all select 4, 'is the owner of the trigger on', r.relname::text, p.proowner, null
    from relation as r join pg_trigger as t on t.tgrelid = r.oid join pg_proc as p on p.oid = t.tgfoid
    where not t.tgisinternal
  union all select 5, 'may create objects in it', '', entry.grantee,
    format('revoke create on schema %I', nspname)
    from space, aclexplode(acl) as entry where entry.privilege_type = 'CREATE'
  union all select 6, 'may create triggers on', r.relname::text, entry.grantee,
    format('revoke trigger on %I.%I', nspname, r.relname)
    from space, relation as r, aclexplode(r.relacl) as entry where entry.privilege_type = 'TRIGGER'
), untrusted as (
  select object.kind, object.name, role.rolname::text as role,
    object.revoke || ' from ' || coalesce(quote_ident(role.rolname), 'public') as revoke
  from object left join pg_roles as role on role.oid = object.role
  where not coalesce(role.rolsuper, false)
    and object.role <> (select datdba from pg_database where datname = current_database())
    and coalesce(role.rolname::text <> all (array[current_user::text, 'pg_database_owner'] || $2), true)
  order by object.rank, object.name limit 1
)
select d.description, untrusted.kind, untrusted.name, untrusted.role, untrusted.revoke
from space left join untrusted on true left join pg_description as d
  on d.objoid = space.oid and d.classoid = 'pg_namespace'::regclass and d.objsubid = 0";

/// The characters that are percent-encoded in a role's name in a URL.
const ROLE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_');

/// Selects one statement for each function of schema `$1` that does not set `search_path`: schemas that
/// earlier versions made have such functions. Sessions of this version set it for them.
const UNSET: &str = "
select format('alter function %s set search_path = pg_catalog, pg_temp', p.oid::regprocedure)
from pg_proc as p join pg_namespace as n on n.oid = p.pronamespace
where n.nspname = $1 and p.prokind = 'f'
  and not coalesce(p.proconfig, '{}') @> '{\"search_path=pg_catalog, pg_temp\"}'
  and pg_has_role(p.proowner, 'usage')";

impl PostgresStore {
    /// Connects to the store at `url`, and creates its schema if it does not exist.
    ///
    /// # Errors
    ///
    /// Returns [`ServerError`], which says what is wrong with the server, and what to do about it.
    pub async fn connect(url: &ServerUrl, options: &StoreOptions) -> Result<Self, ServerError> {
        let server = url.to_string();
        let late = |_| ServerError::Timeout {
            server: server.clone(),
            after: url.timeout(),
        };
        timeout(url.timeout(), Self::connected(url, options))
            .await
            .map_err(late)?
    }

    async fn connected(url: &ServerUrl, options: &StoreOptions) -> Result<Self, ServerError> {
        let server = url.to_string();
        let settings = Arc::new(Settings {
            config: config(url)?,
            tls: tls(url)?,
        });
        let manager = Manager::from_config(
            settings.config.clone(),
            settings.tls.clone(),
            ManagerConfig {
                recycling_method: RecyclingMethod::Fast,
            },
        );
        let session = session(url.timeout());
        let ready = Hook::async_fn(move |client: &mut deadpool_postgres::ClientWrapper, _| {
            let session = session.clone();
            Box::pin(async move {
                let set = client.batch_execute(&session).await;
                set.map_err(HookError::Backend)
            })
        });
        let pool = Pool::builder(manager).max_size(CONNECTIONS);
        let pool = pool.post_create(ready).build();
        let pool = pool.map_err(|err| {
            setup(
                &server,
                &err.to_string(),
                "internal error, please report it",
            )
        })?;
        let schema = url.option("schema").unwrap_or_else(|| "verrou".to_owned());
        let client = pool
            .get()
            .await
            .map_err(|err| not_connected(&server, err))?;
        check_server(&client, &server).await?;
        let id = Owner::from_bytes(System.random());
        let channel = format!("verrou_{id}");
        let notifications = Arc::new(Notifications::default());
        let (listening, connection) = settings.listen(&server, &channel, &notifications).await?;
        let backends = (backend(&client).await, backend(&listening).await);
        if let (Ok(one), Ok(other)) = backends
            && one == other
        {
            return Err(shared_connections(&server));
        }
        // A notification that is sent on one connection must arrive on the other.
        let subscription = notifications.subscribe(id);
        let notify = format!("notify \"{channel}\", '{id}'");
        let notified = client.batch_execute(&notify).await;
        notified.map_err(|err| failed(&server, err))?;
        if timeout(url.timeout() / 2, subscription.notified())
            .await
            .is_err()
        {
            return Err(shared_connections(&server));
        }
        drop(subscription);
        let schema = Schema {
            name: &schema,
            trusted: url.options("schema-owner"),
            server: &server,
        };
        schema.prepare(&client, url.timeout() / 2).await?;
        let statements = Statements::new(&quoted(schema.name));
        drop(client);
        let runtime = Handle::current();
        let listener = {
            let (notifications, channel, server) =
                (Arc::clone(&notifications), channel.clone(), server.clone());
            let settings = Arc::clone(&settings);
            runtime.spawn(async move {
                let mut listening = (listening, connection);
                loop {
                    // The task ends with its connection.
                    let _ = (&mut listening.1).await;
                    listening = settings
                        .listen_again(&server, &channel, &notifications)
                        .await;
                    // Notifications may have been lost.
                    notifications.notify_all();
                }
            })
        };
        Ok(Self(Arc::new(PostgresShared {
            pool,
            server,
            statements,
            timeout: url.timeout(),
            about: About::this(options).to_json(),
            channel,
            notifications,
            heartbeat: Arc::default(),
            notified: Mutex::default(),
            unnotified: Semaphore::new(CONNECTIONS - 1),
            listener: listener.abort_handle(),
            settings,
            cancelled: CancelledRequests::new(runtime.clone()),
            runtime,
        })))
    }

    /// Returns the names that are held now, and their holders.
    ///
    /// # Errors
    ///
    /// Returns [`StoreError`] if the server does not answer, or refuses the request.
    pub async fn list(&self) -> Result<Vec<Listed>, StoreError> {
        let shared = &self.0;
        let rows = shared
            .rows(&shared.statements.list, &[], shared.timeout)
            .await?;
        let listed = rows.iter().filter_map(|row| {
            let name = row.try_get::<_, String>("name").ok()?;
            let name = percent_decode_str(&name).decode_utf8().ok()?;
            Some(Ok((Name::new(&name).ok()?, holder(row)?)))
        });
        Ok(listed.collect())
    }

    /// Takes a ticket, which `at_most` does not limit, and then waits for a notification for at most
    /// `at_most`.
    pub(crate) async fn wait_in_queue(
        &self,
        claim: &Claim,
        at_most: Duration,
    ) -> Result<(), ServerError> {
        let shared = &self.0;
        let subscription = shared.notifications.subscribe(claim.owner);
        let Some(turn) = shared.take_turn(claim.owner, shared.timeout).await? else {
            return Ok(());
        };
        // Before the request: if this future is dropped before the answer, `give_up` deletes the ticket.
        shared.keep_ticket(claim);
        let is_free = shared.wait(&claim.owner, &claim.name, false).await?;
        drop(turn);
        if is_free || timeout(at_most, subscription.notified()).await == Ok(true) {
            shared.notified().insert(claim.owner);
        }
        Ok(())
    }

    /// Leaves the queue as [`AsyncStore::give_up`] does, and waits until that is done.
    pub(crate) async fn leave(&self, claim: &Claim) {
        if self.0.forget_ticket(&claim.owner) {
            // After an error, other waiters skip the ticket when its reservation or its deadline has passed.
            let _ = self.0.leave(claim).await;
        }
    }
}

impl PostgresShared {
    async fn rows(
        &self,
        statement: &str,
        parameters: &[&(dyn ToSql + Sync)],
        limit: Duration,
    ) -> Result<Vec<Row>, ServerError> {
        let mut client = ClientGuard {
            client: None,
            shared: self,
        };
        let asked = async {
            let client = client
                .client
                .insert(self.pool.get().await.map_err(|err| self.no_client(err))?);
            let statement = client.prepare_cached(statement).await;
            let statement = statement.map_err(|err| failed(&self.server, err))?;
            let rows = client.query(&statement, parameters).await;
            rows.map_err(|err| failed(&self.server, err))
        };
        let answer = timeout(limit, asked).await;
        if answer.is_ok() {
            drop(client.client.take());
        }
        answer.unwrap_or_else(|_| {
            Err(ServerError::Timeout {
                server: self.server.clone(),
                after: limit,
            })
        })
    }

    /// Returns the one row that a function returns.
    async fn row(
        &self,
        statement: &str,
        parameters: &[&(dyn ToSql + Sync)],
        limit: Duration,
    ) -> Result<Row, ServerError> {
        let rows = self.rows(statement, parameters, limit).await?;
        rows.into_iter().next().ok_or_else(|| {
            setup(
                &self.server,
                "a function of the schema returned no row",
                "recreate the schema with the schema.sql of this version",
            )
        })
    }

    async fn asked<T: for<'a> tokio_postgres::types::FromSql<'a>>(
        &self,
        statement: &str,
        parameters: &[&(dyn ToSql + Sync)],
        limit: Duration,
    ) -> Result<T, ServerError> {
        let row = self.row(statement, parameters, limit).await?;
        row.try_get(0).map_err(|err| failed(&self.server, err))
    }

    /// Takes a ticket, or with `keep` only renews an existing one. Returns whether `owner` is to try the lock now.
    async fn wait(&self, owner: &Owner, name: &Name, keep: bool) -> Result<bool, ServerError> {
        self.asked(
            &self.statements.wait,
            &[
                &text(name),
                &owner.to_string(),
                &micros(WAITER_TIMEOUT),
                &self.channel,
                &keep,
            ],
            self.timeout,
        )
        .await
    }

    async fn leave(&self, claim: &Claim) -> Result<(), ServerError> {
        let owner = claim.owner.to_string();
        let reservation = micros(RESERVATION);
        self.row(
            &self.statements.leave,
            &[&text(&claim.name), &owner, &reservation],
            self.timeout,
        )
        .await
        .map(drop)
    }

    /// Renews the ticket of `claim`'s owner until the owner is removed from the heartbeat.
    fn keep_ticket(self: &Arc<Self>, claim: &Claim) {
        if !self.heartbeat.add(claim) {
            return;
        }
        let shared = Arc::downgrade(self);
        self.runtime.spawn(self.heartbeat.run(move |owner, name| {
            let shared = shared.upgrade();
            async move {
                let Some(shared) = shared else {
                    return;
                };
                // After an error, the next heartbeat comes before the ticket's deadline.
                if let Ok(true) = shared.wait(&owner, &name, true).await {
                    shared.notifications.notify(&owner);
                }
            }
        }));
    }

    /// Waits until `owner` may use a connection: at once if it was notified; otherwise until one of the permits for
    /// waiters that were not notified is free.
    async fn take_turn(
        &self,
        owner: Owner,
        limit: Duration,
    ) -> Result<Option<SemaphorePermit<'_>>, ServerError> {
        let subscription = self.notifications.subscribe(owner);
        if self.notified().contains(&owner) {
            return Ok(None);
        }
        let is_notified = async { while !subscription.notified().await {} };
        tokio::select! {
            () = is_notified => {
                self.notified().insert(owner);
                Ok(None)
            }
            turn = timeout(limit, self.unnotified.acquire()) => match turn {
                Ok(turn) => Ok(turn.ok()),
                Err(_) => Err(ServerError::Timeout {
                    server: self.server.clone(),
                    after: limit,
                }),
            },
        }
    }

    /// Releases the lock that a dropped request may have acquired.
    fn release_cancelled(self: &Arc<Self>, claim: &Claim) {
        let (shared, claim) = (Arc::clone(self), claim.clone());
        let late = self.timeout;
        self.cancelled.release_later(claim.owner, late, move || {
            let (shared, claim) = (Arc::clone(&shared), claim.clone());
            async move {
                let _ = shared.release(&claim).await;
            }
        });
    }

    async fn release(&self, claim: &Claim) -> Result<Reply, ServerError> {
        let owner = claim.owner.to_string();
        let reservation = micros(RESERVATION);
        let done = self
            .asked(
                &self.statements.release,
                &[&text(&claim.name), &owner, &reservation],
                request_timeout(self.timeout, claim),
            )
            .await?;
        Ok(reply(done))
    }

    /// Stops the renewal of the ticket of `owner`. Returns whether it was a waiter.
    fn forget_ticket(&self, owner: &Owner) -> bool {
        self.notified().remove(owner);
        self.heartbeat.remove(owner)
    }

    fn notified(&self) -> MutexGuard<'_, HashSet<Owner>> {
        self.notified.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn no_client(&self, err: PoolError) -> ServerError {
        not_connected(&self.server, err)
    }
}

/// The connection of a request in flight.
struct ClientGuard<'a> {
    client: Option<Object>,
    shared: &'a PostgresShared,
}

impl Drop for ClientGuard<'_> {
    /// Cancels the query of a dropped request and closes its connection, so that no other request waits behind it,
    /// neither in the pool nor on the server.
    fn drop(&mut self) {
        let Some(client) = self.client.take() else {
            return;
        };
        let (cancel, settings) = (client.cancel_token(), Arc::clone(&self.shared.settings));
        drop(Object::take(client));
        let at_most = self.shared.timeout;
        self.shared.runtime.spawn(async move {
            let _ = timeout(at_most, cancel.cancel_query(settings.tls.clone())).await;
        });
    }
}

impl Drop for PostgresShared {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

impl AsyncStore for PostgresStore {
    async fn acquire(&self, claim: &Claim) -> Result<Reply, StoreError> {
        let shared = &self.0;
        shared.cancelled.stop(&claim.owner).await;
        let lasts = record_ttl(claim.ttl).map(micros);
        let ttl = claim.ttl.duration().map(micros);
        let limit = request_timeout(shared.timeout, claim);
        let turn = shared.take_turn(claim.owner, limit).await?;
        let guard = CancelGuard::new(|| shared.release_cancelled(claim));
        let row = shared
            .row(
                &shared.statements.acquire,
                &[
                    &text(&claim.name),
                    &claim.owner.to_string(),
                    &lasts,
                    &ttl,
                    &shared.about,
                    &shared.channel,
                    &micros(RESERVATION),
                ],
                limit,
            )
            .await;
        guard.disarm();
        drop(turn);
        let row = row?;
        let failed = |err| failed(&shared.server, err);
        let number = row.try_get::<_, Option<i64>>("number").map_err(failed)?;
        let number = number.and_then(|number| u64::try_from(number).ok());
        if row.try_get("granted").map_err(failed)? {
            shared.forget_ticket(&claim.owner);
            let fence = number.and_then(Fence::new);
            return Ok(Reply::Granted { fence });
        }
        // It waits for the next notification.
        shared.notified().remove(&claim.owner);
        let remaining = number.map(Duration::from_micros);
        Ok(Reply::Refused { remaining })
    }

    async fn extend(&self, claim: &Claim) -> Result<Reply, StoreError> {
        let shared = &self.0;
        let lasts = record_ttl(claim.ttl).map(micros);
        let ttl = claim.ttl.duration().map(micros);
        let owner = claim.owner.to_string();
        let done = shared
            .asked(
                &shared.statements.extend,
                &[&text(&claim.name), &owner, &lasts, &ttl, &shared.channel],
                request_timeout(shared.timeout, claim),
            )
            .await?;
        Ok(reply(done))
    }

    async fn renew(&self, claim: &Claim, _: Option<Fence>) -> Result<Renewed, StoreError> {
        Ok(self.extend(claim).await?.into())
    }

    async fn release(&self, claim: &Claim) -> Result<Reply, StoreError> {
        self.0.forget_ticket(&claim.owner);
        let guard = CancelGuard::new(|| self.0.release_cancelled(claim));
        let released = self.0.release(claim).await;
        guard.disarm();
        Ok(released?)
    }

    async fn evict(&self, name: &Name, only: Option<Fence>) -> Result<Reply, StoreError> {
        let shared = &self.0;
        let only = match only.map(|only| i64::try_from(only.get())) {
            Some(Ok(only)) => Some(only),
            // This fencing token has never been granted.
            Some(Err(_)) => return Ok(Reply::REFUSED),
            None => None,
        };
        let reservation = micros(RESERVATION);
        let parameters: [&(dyn ToSql + Sync); 3] = [&text(name), &only, &reservation];
        let done = shared
            .asked(&shared.statements.evict, &parameters, shared.timeout)
            .await?;
        Ok(reply(done))
    }

    async fn inspect(&self, name: &Name) -> Result<Option<Holder>, StoreError> {
        let shared = &self.0;
        let rows = shared
            .rows(&shared.statements.inspect, &[&text(name)], shared.timeout)
            .await?;
        Ok(rows.first().and_then(holder))
    }

    async fn holds(&self, claim: &Claim, _fence: Option<Fence>) -> Result<bool, StoreError> {
        let shared = &self.0;
        let rows = shared
            .rows(
                &shared.statements.inspect,
                &[&text(&claim.name)],
                shared.timeout,
            )
            .await?;
        let owner = rows
            .first()
            .and_then(|row| row.try_get::<_, &str>("owner").ok());
        Ok(owner == Some(claim.owner.to_string().as_str()))
    }

    async fn wait(&self, claim: &Claim, at_most: Duration) {
        if self.wait_in_queue(claim, at_most).await.is_err() {
            // The next operation returns the error.
            std::future::pending::<()>().await;
        }
    }

    async fn lost(&self, claim: &Claim) {
        let subscription = self.0.notifications.subscribe(claim.owner);
        // After an error, the renewal of the lease notices the loss.
        if self.holds(claim, None).await.unwrap_or(true) {
            subscription.notified().await;
        }
    }

    fn give_up(&self, claim: &Claim) {
        if !self.0.forget_ticket(&claim.owner) {
            return;
        }
        let (shared, claim) = (Arc::clone(&self.0), claim.clone());
        self.0
            .runtime
            .spawn(async move { shared.leave(&claim).await });
    }

    fn abilities(&self) -> Abilities {
        ABILITIES
    }
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore")
            .field("server", &self.0.server)
            .finish_non_exhaustive()
    }
}

impl Statements {
    fn new(schema: &str) -> Self {
        // The columns of `Holder`, and the owner.
        let columns = "name, owner, fence, ttl, about, \
                       (extract(epoch from since) * 1000000)::bigint as since, \
                       (extract(epoch from expires - pg_catalog.clock_timestamp()) * 1000000)::bigint \
                       as remaining";
        let held =
            "owner is not null and (expires is null or expires > pg_catalog.clock_timestamp())";
        Self {
            acquire: format!(
                "select granted, number from {schema}.acquire($1, $2, $3, $4, $5, $6, $7)"
            ),
            extend: format!("select {schema}.extend($1, $2, $3, $4, $5)"),
            release: format!("select {schema}.release($1, $2, $3)"),
            evict: format!("select {schema}.evict($1, $2, $3)"),
            inspect: format!("select {columns} from {schema}.lock where name = $1 and {held}"),
            list: format!("select {columns} from {schema}.lock where {held} order by name"),
            wait: format!("select {schema}.wait($1, $2, $3, $4, $5)"),
            leave: format!("select {schema}.leave($1, $2, $3)"),
        }
    }
}

/// The settings of a connection.
struct Settings {
    config: Config,
    tls: MakeRustlsConnect,
}

type Listener = (Client, tokio::task::JoinHandle<()>);

impl Settings {
    /// Opens a connection that listens on `channel`, and a task that ends with it.
    async fn listen(
        &self,
        server: &str,
        channel: &str,
        notifications: &Arc<Notifications>,
    ) -> Result<Listener, ServerError> {
        let connected = self.config.connect(self.tls.clone()).await;
        let (client, mut connection) = connected.map_err(|err| connect_error(server, err))?;
        let notifications = Arc::clone(notifications);
        let task = tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await
            {
                if let AsyncMessage::Notification(notification) = message {
                    notifications.dispatch(notification.payload());
                }
            }
        });
        let listened = format!("{SEARCH_PATH}; listen \"{channel}\"");
        let listened = client.batch_execute(&listened).await;
        listened.map_err(|err| failed(server, err))?;
        Ok((client, task))
    }

    /// Retries [`listen`](Self::listen) until it succeeds.
    async fn listen_again(
        &self,
        server: &str,
        channel: &str,
        notifications: &Arc<Notifications>,
    ) -> Listener {
        const LONGEST: Duration = Duration::from_secs(1);
        const LATE: Duration = Duration::from_secs(10);

        let mut pause = Duration::from_millis(10);
        loop {
            sleep(pause).await;
            let listening = timeout(LATE, self.listen(server, channel, notifications));
            if let Ok(Ok(listening)) = listening.await {
                return listening;
            }
            pause = (pause * 2).min(LONGEST);
        }
    }
}

/// Returns the first statements of each connection for operations.
fn session(timeout: Duration) -> String {
    // After `timeout`, no caller waits for the answer. Committed transactions are on the disk, even where the
    // server is set up to commit asynchronously.
    format!(
        "{SEARCH_PATH}; \
         set statement_timeout = {}; \
         set default_transaction_isolation = 'read committed'; \
         select pg_catalog.set_config('synchronous_commit', 'on', false) \
         where pg_catalog.current_setting('synchronous_commit') = 'off'",
        timeout.as_millis().max(1)
    )
}

/// Checks the server's version, and that it is writable.
async fn check_server(client: &Client, server: &str) -> Result<(), ServerError> {
    let get = |err| failed(server, err);
    let statement = "select pg_catalog.current_setting('server_version_num')::int, \
         pg_catalog.pg_is_in_recovery()";
    let row = client.query_typed_one(statement, &[]).await.map_err(get)?;
    let version: i32 = row.try_get(0).map_err(get)?;
    if version < 120_000 {
        return Err(setup(
            server,
            &format!(
                "this version of PostgreSQL is too old ({})",
                version / 10_000
            ),
            "use PostgreSQL 12 or later",
        ));
    }
    if row.try_get(1).map_err(get)? {
        return Err(setup(
            server,
            "this server is a read-only standby",
            "name the primary server, or all servers, separated by commas",
        ));
    }
    Ok(())
}

/// The schema of a store.
struct Schema<'a> {
    name: &'a str,
    /// The roles of the options `schema-owner`.
    trusted: Vec<String>,
    server: &'a str,
}

/// The description of a schema in the catalogs.
struct Examined {
    comment: Option<String>,
    untrusted: Option<Untrusted>,
}

/// An untrusted role that controls a schema.
struct Untrusted {
    kind: String,
    /// The object that the role controls; empty for the schema itself.
    object: String,
    /// The role's name; `None` for `PUBLIC`, every role.
    role: Option<String>,
    /// The statement that revokes the control, if it is a privilege.
    revoke: Option<String>,
}

impl Schema<'_> {
    /// Checks the schema, after creating it if it does not exist.
    ///
    /// The unique name of a schema decides which of several concurrent sessions creates it. No role that
    /// may not create it can delay that, as it could by a lock that every role can acquire.
    async fn prepare(&self, client: &Object, at_most: Duration) -> Result<(), ServerError> {
        while !self.is_usable(client).await? {
            let Err(err) = self.create(client, at_most).await else {
                continue;
            };
            let _ = client.batch_execute("rollback").await;
            match err.code() {
                Some(&SqlState::DUPLICATE_SCHEMA | &SqlState::UNIQUE_VIOLATION) => {}
                Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                    return Err(self.setup(
                        &format!(
                            "there is no schema `{}`, and this user may not create it",
                            self.name
                        ),
                        "let an administrator run schema.sql, as POSTGRES.md says",
                    ));
                }
                Some(&SqlState::LOCK_NOT_AVAILABLE) => {
                    let why = format!(
                        "another session creates a schema `{}` and has not committed that within \
                         {}; pg_stat_activity shows it",
                        self.name,
                        humantime::format_duration(at_most)
                    );
                    return Err(ServerError::Unavailable {
                        server: self.server.to_owned(),
                        source: why.into(),
                    });
                }
                _ => return Err(self.failed(err)),
            }
        }
        Ok(())
    }

    /// Creates the schema, and revokes what untrusted roles would get by default privileges, in one transaction.
    async fn create(
        &self,
        client: &Object,
        at_most: Duration,
    ) -> Result<(), tokio_postgres::Error> {
        let statements = SCHEMA.replace("SCHEMA", &quoted(self.name));
        let millis = at_most.as_millis().max(1);
        let statements = format!("begin; set local lock_timeout = {millis}; {statements}");
        client.batch_execute(&statements).await?;
        let mut revoked = HashSet::new();
        while let Some(revoke) = self.excessive_privilege(client).await? {
            client.batch_execute(&revoke).await?;
            if !revoked.insert(revoke) {
                break;
            }
        }
        client.batch_execute("commit").await
    }

    /// Returns the statement that revokes a privilege by which an untrusted role controls the schema.
    async fn excessive_privilege(
        &self,
        client: &Object,
    ) -> Result<Option<String>, tokio_postgres::Error> {
        let untrusted = self.examine(client).await?.and_then(|it| it.untrusted);
        Ok(untrusted.and_then(|untrusted| untrusted.revoke))
    }

    /// Returns the description of the schema in the catalogs, in one snapshot, or `None` if there is no schema.
    async fn examine(&self, client: &Object) -> Result<Option<Examined>, tokio_postgres::Error> {
        let parameters: &[(&(dyn ToSql + Sync), Type)] =
            &[(&self.name, Type::TEXT), (&self.trusted, Type::TEXT_ARRAY)];
        let rows = client.query_typed(EXAMINED, parameters).await?;
        let Some(row) = rows.first() else {
            return Ok(None);
        };
        let untrusted = match row.try_get::<_, Option<String>>(1)? {
            Some(kind) => Some(Untrusted {
                kind,
                object: row.try_get(2)?,
                role: row.try_get(3)?,
                revoke: row.try_get(4)?,
            }),
            None => None,
        };
        Ok(Some(Examined {
            comment: row.try_get(0)?,
            untrusted,
        }))
    }

    /// Returns whether the schema exists.
    ///
    /// # Errors
    ///
    /// Returns an error if the schema exists, and is not of this version, or is controlled by an untrusted role.
    async fn is_usable(&self, client: &Object) -> Result<bool, ServerError> {
        let examined = self.examine(client).await;
        let Some(examined) = examined.map_err(|err| self.failed(err))? else {
            return Ok(false);
        };
        if let Some(untrusted) = examined.untrusted {
            return Err(self.untrusted(&untrusted));
        }
        let comment = examined.comment.unwrap_or_default();
        if comment != VERSION {
            return Err(self.setup(
                &format!(
                    "the schema `{}` is not Verrou's, or of another version (`{comment}`)",
                    self.name
                ),
                "name a separate schema: ?schema=NAME",
            ));
        }
        self.set_search_path(client).await?;
        Ok(true)
    }

    /// Returns the error that an untrusted role controls the schema.
    fn untrusted(&self, untrusted: &Untrusted) -> ServerError {
        let Untrusted {
            kind,
            object,
            role,
            revoke,
        } = untrusted;
        let object = match object.as_str() {
            "" => String::new(),
            object => format!(" `{object}`"),
        };
        // An owner may have planted code in the schema, which another owner would not remove.
        let mut advice = match revoke {
            Some(revoke) => format!(
                "let an administrator execute `{revoke}`, or name another schema (?schema=NAME)"
            ),
            None => format!(
                "name another schema (?schema=NAME), or let an administrator drop this one, whose code may be \
                 hostile (`drop schema {} cascade`)",
                quoted(self.name)
            ),
        };
        if let Some(role) = role {
            let role = utf8_percent_encode(role, ROLE);
            advice = format!("{advice}; or, if you trust the role, add schema-owner={role}");
        }
        self.setup(
            &format!(
                "the schema `{}` is not trusted: `{}` {kind}{object}, so this role could execute code as each \
                 user of the schema, and it is neither this user, nor the database's owner, nor a superuser",
                self.name,
                role.as_deref().unwrap_or("PUBLIC")
            ),
            &advice,
        )
    }

    /// Lets each function of the schema set `search_path`, where this user may change the function.
    ///
    /// A failure is ignored: the sessions of this store are safe without it, and the next store that
    /// is opened tries again. It fails if several stores are opened at the same time.
    async fn set_search_path(&self, client: &Object) -> Result<(), ServerError> {
        let unset = client
            .query_typed(UNSET, &[(&self.name, Type::TEXT)])
            .await
            .map_err(|err| self.failed(err))?;
        for row in unset {
            let statement: String = row.try_get(0).map_err(|err| self.failed(err))?;
            if client.batch_execute(&statement).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    fn setup(&self, why: &str, advice: &str) -> ServerError {
        setup(self.server, why, advice)
    }

    fn failed(&self, err: tokio_postgres::Error) -> ServerError {
        failed(self.server, err)
    }
}

/// Returns the process number of the backend that serves `client`.
async fn backend(client: &Client) -> Result<Option<String>, tokio_postgres::Error> {
    let answer = client
        .simple_query("select pg_catalog.pg_backend_pid()")
        .await?;
    let number = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    Ok(number.map(str::to_owned))
}

/// Returns a quoted SQL identifier.
fn quoted(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

fn config(url: &ServerUrl) -> Result<Config, ServerError> {
    let server = url.to_string();
    let mut config = Config::new();
    for (host, port) in url.hosts() {
        config.host(host.trim_matches(['[', ']']));
        config.port(port.unwrap_or(5432));
    }
    if let Some(user) = url.user() {
        config.user(user);
    }
    if let Some(password) = url.password()? {
        config.password(password);
    }
    if let Some(database) = url.database() {
        config.dbname(database);
    }
    match url.option("sslmode").as_deref() {
        None | Some("disable" | "require" | "verify-full") => {}
        Some(other) => {
            return Err(setup(
                &server,
                &format!("sslmode={other} is not supported"),
                "write sslmode=verify-full, or disable",
            ));
        }
    }
    // Never `prefer`: a machine on the way to the server could refuse TLS.
    config.ssl_mode(if url.is_encrypted() {
        SslMode::Require
    } else {
        SslMode::Disable
    });
    if url.hosts().len() > 1 {
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
    }
    let timeout = url.timeout();
    config
        .application_name("verrou")
        .connect_timeout(timeout)
        .tcp_user_timeout(timeout * 2)
        .keepalives_idle(Duration::from_secs(10))
        .keepalives_interval(Duration::from_secs(5))
        .keepalives_retries(3);
    Ok(config)
}

fn tls(url: &ServerUrl) -> Result<MakeRustlsConnect, ServerError> {
    let server = url.to_string();
    let wrong = |why: String| setup(&server, &why, "name a file of certificates: ?ca-file=FILE");
    crate::server::tls::install();
    let mut roots = RootCertStore::empty();
    match url.authorities().map_err(|err| wrong(err.to_string()))? {
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(&pem) {
                let certificate = certificate.map_err(|err| wrong(err.to_string()))?;
                roots
                    .add(certificate)
                    .map_err(|err| wrong(err.to_string()))?;
            }
        }
        // The system's certificates; if there are none, no server is trusted.
        None if url.is_encrypted() => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        None => {}
    }
    let config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}

fn text(name: &Name) -> String {
    utf8_percent_encode(name.as_str(), NUL).to_string()
}

/// Returns a length in whole microseconds, rounded up.
fn micros(length: Duration) -> i64 {
    // A length that the server can add to any time.
    const LONGEST: u128 = 1 << 60;

    let micros = length.as_nanos().div_ceil(1000).min(LONGEST);
    i64::try_from(micros).unwrap_or(i64::MAX)
}

fn reply(done: bool) -> Reply {
    if done {
        Reply::Granted { fence: None }
    } else {
        Reply::REFUSED
    }
}

/// Returns the holder that a row describes.
fn holder(row: &Row) -> Option<Holder> {
    let number = |column| {
        let number: Option<i64> = row.try_get(column).ok()?;
        number.and_then(|number| u64::try_from(number).ok())
    };
    let micros = |column| number(column).map(Duration::from_micros);
    // Subtract the time by which the record outlives the lease at its holder; never return zero.
    let remaining = row.try_get::<_, Option<i64>>("remaining").ok()?;
    let remaining = remaining.map(|_| {
        let drift = micros("ttl").map_or(Duration::ZERO, drift);
        let left = micros("remaining").unwrap_or_default();
        left.saturating_sub(drift).max(Duration::from_micros(1))
    });
    Some(Holder {
        fence: number("fence").and_then(Fence::new),
        since: micros("since"),
        remaining,
        process: row
            .try_get::<_, Option<&str>>("about")
            .ok()?
            .and_then(About::process_of),
        detached: false,
    })
}

fn setup(server: &str, why: &str, advice: &str) -> ServerError {
    ServerError::Setup {
        server: server.to_owned(),
        why: why.to_owned(),
        advice: advice.to_owned(),
    }
}

fn not_connected(server: &str, err: PoolError) -> ServerError {
    match err {
        PoolError::Backend(err) | PoolError::PostCreateHook(HookError::Backend(err)) => {
            connect_error(server, err)
        }
        err => ServerError::Unavailable {
            server: server.to_owned(),
            source: err.into(),
        },
    }
}

/// The error of `tokio-postgres` for a server without TLS, or with a certificate that is refused.
const NO_TLS: &str = "error performing TLS handshake";

/// Returns the error for a connection that could not be made.
fn connect_error(server: &str, err: tokio_postgres::Error) -> ServerError {
    let Some(code) = err.code() else {
        let cause = std::error::Error::source(&err).map(ToString::to_string);
        let is_io = std::error::Error::source(&err).is_some_and(|source| {
            source
                .downcast_ref::<std::io::Error>()
                .is_some_and(|source| {
                    source.kind() != std::io::ErrorKind::InvalidData
                        && source.kind() != std::io::ErrorKind::InvalidInput
                })
        });
        if is_io || err.is_closed() {
            return failed(server, err);
        }
        let why = cause.unwrap_or_else(|| err.to_string());
        if err.to_string().starts_with(NO_TLS) {
            return setup(
                server,
                &format!("the TLS handshake failed ({why})"),
                "give the server a certificate for its name, by an authority that the system or ca-file=FILE trusts; \
                 or, on a network where no other machine can read or change the traffic, add sslmode=disable",
            );
        }
        return setup(
            server,
            &format!("the server at this address is not PostgreSQL ({why})"),
            "name its host and port, and sslmode=verify-full if it expects TLS",
        );
    };
    let why = err.as_db_error().map_or("", |err| err.message());
    match *code {
        SqlState::INVALID_PASSWORD => setup(
            server,
            why,
            "write postgres://USER:PASSWORD@HOST/DATABASE, or password-file=FILE",
        ),
        SqlState::INVALID_AUTHORIZATION_SPECIFICATION => setup(
            server,
            why,
            "write postgres://USER@HOST/DATABASE, and sslmode=verify-full if it expects TLS",
        ),
        SqlState::INVALID_CATALOG_NAME => setup(server, why, "write postgres://USER@HOST/DATABASE"),
        _ => failed(server, err),
    }
}

/// Returns the error for a pooler that gives a connection to other clients between two transactions.
fn shared_connections(server: &str) -> ServerError {
    setup(
        server,
        "a pooler in transaction mode shares this connection with other clients",
        "name the server itself, or a pooler in session mode",
    )
}

/// Classifies the error of a failed request.
fn failed(server: &str, err: tokio_postgres::Error) -> ServerError {
    let server = server.to_owned();
    let Some(code) = err.code() else {
        return ServerError::Disconnected {
            server,
            source: err.into(),
        };
    };
    if [
        SqlState::DUPLICATE_PSTATEMENT,
        SqlState::INVALID_SQL_STATEMENT_NAME,
    ]
    .contains(code)
    {
        // The statements of another client, which have the same names.
        return shared_connections(&server);
    }
    let class = code.code().get(..2).unwrap_or_default();
    let is_temporary = match class {
        // Connections, resources, operator intervention, and conflicts between transactions.
        "08" | "40" | "53" | "55" | "57" => true,
        _ => *code == SqlState::READ_ONLY_SQL_TRANSACTION,
    };
    let source = err.into();
    if is_temporary {
        ServerError::Unavailable { server, source }
    } else {
        ServerError::Refused { server, source }
    }
}
