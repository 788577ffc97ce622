//! Connecting to the server: the settings, the checks, and the connection that receives notifications.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{Hook, HookError, Manager, ManagerConfig, Pool, RecyclingMethod};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_postgres::config::{SslMode, TargetSessionAttrs};
use tokio_postgres::{AsyncMessage, Client, Config, SimpleQueryMessage};
use tokio_postgres_rustls::MakeRustlsConnect;
use verrou::Owner;
use verrou::blocking::Host;
use verrou_machine::{StoreOptions, System};

use super::PostgresStore;
use super::error::{connect_error, failed, not_connected, setup, shared_connections};
use super::schema::{Schema, quoted};
use super::statements::Statements;
use super::store::PostgresShared;
use crate::cancelled_acquire::CancelledRequests;
use crate::error::ServerError;
use crate::notifications::Notifications;
use crate::store::About;
use crate::url::ServerUrl;

/// The number of connections for operations.
const CONNECTIONS: usize = 3;

/// The first statement of each session: no operator and no function of another schema is called.
const SEARCH_PATH: &str = "set search_path = pg_catalog, pg_temp";

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
            unnotified: Semaphore::new(CONNECTIONS - 1),
            listener: listener.abort_handle(),
            settings,
            cancelled: CancelledRequests::new(runtime.clone()),
            runtime,
        })))
    }
}

/// The settings of a connection.
pub(super) struct Settings {
    config: Config,
    pub(super) tls: MakeRustlsConnect,
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
    crate::tls::install();
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
