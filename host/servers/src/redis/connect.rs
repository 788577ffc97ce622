//! Connecting to a Redis server, and the check that it keeps locks.

use std::sync::Arc;

use ::redis::aio::{ConnectionManager, ConnectionManagerConfig};
use ::redis::io::tcp::TcpSettings;
use ::redis::{
    Client, ConnectionAddr, ConnectionInfo, FromRedisValue, ProtocolVersion, PushInfo, PushKind,
    RedisConnectionInfo, RedisError, TlsCertificates,
};
use tokio::time::timeout;

use super::error::not_connected;
use crate::error::ServerError;
use crate::notifications::Notifications;
use crate::tls;
use crate::url::ServerUrl;

/// Connects to the server at `url`, which notifies by `notifications`, and checks that it is usable.
pub(super) async fn connection(
    url: &ServerUrl,
    notifications: &Arc<Notifications>,
) -> Result<ConnectionManager, ServerError> {
    let server = url.to_string();
    let setup = |why: String, advice: &str| ServerError::Setup {
        server: server.clone(),
        why,
        advice: advice.to_owned(),
    };
    let client = client(url, &setup)?;
    let received = Arc::clone(notifications);
    let config = ConnectionManagerConfig::new()
        // Callers retry by themselves.
        .set_number_of_retries(0)
        .set_connection_timeout(Some(url.timeout()))
        .set_response_timeout(Some(url.timeout()))
        .set_push_sender(move |push: PushInfo| {
            dispatch(&received, &push);
            Ok::<(), ::redis::aio::SendError>(())
        })
        .set_automatic_resubscription();
    let connecting = ConnectionManager::new_with_config(client, config);
    let late = |_| ServerError::Timeout {
        server: server.clone(),
        after: url.timeout(),
    };
    let mut connection = timeout(url.timeout(), connecting)
        .await
        .map_err(late)?
        .map_err(|err| not_connected(&server, err))?;
    let mut asked = ::redis::pipe();
    asked.cmd("INFO").arg("memory");
    asked.cmd("INFO").arg("replication");
    let info: Result<(String, String), _> = asked.query_async(&mut connection).await;
    // A server that does not permit `INFO` is accepted without these checks.
    if let Ok((memory, replication)) = info {
        is_kept(&memory).map_err(|why| {
            setup(
                why,
                "Redis could evict locks: set maxmemory-policy noeviction, or use another server",
            )
        })?;
        if field(&replication, "role") == Some("slave") {
            return Err(setup(
                "this server is a read-only replica".to_owned(),
                "name its primary server",
            ));
        }
    }
    Ok(connection)
}

/// Passes on a push message of the server.
fn dispatch(notifications: &Arc<Notifications>, push: &PushInfo) {
    match (&push.kind, &push.data[..]) {
        (PushKind::Message, [_, payload]) => {
            notifications.dispatch(&String::from_redis_value_ref(payload).unwrap_or_default());
        }
        // Messages may have been lost.
        (PushKind::Disconnection | PushKind::Subscribe, _) => notifications.notify_all(),
        _ => {}
    }
}

fn client(
    url: &ServerUrl,
    setup: &impl Fn(String, &str) -> ServerError,
) -> Result<Client, ServerError> {
    let unread = |err: std::io::Error| setup(err.to_string(), "name a file that can be read");
    let wrong = |err: RedisError| {
        setup(
            err.to_string(),
            "write rediss://USER:PASSWORD@HOST:PORT/DATABASE, or redis:// on this machine",
        )
    };
    let (host, port) = url.hosts().swap_remove(0);
    let host = host.trim_matches(['[', ']']).to_owned();
    let port = port.unwrap_or(6379);
    let address = if url.is_encrypted() {
        ConnectionAddr::TcpTls {
            host,
            port,
            insecure: false,
            tls_params: None,
        }
    } else {
        ConnectionAddr::Tcp(host, port)
    };
    let database = url.database().unwrap_or_else(|| "0".to_owned());
    let database = database.parse().map_err(|_| {
        setup(
            format!("`{database}` is not the number of a database"),
            "write redis://HOST/0",
        )
    })?;
    let mut settings = RedisConnectionInfo::default()
        // With RESP3, messages and answers share one connection.
        .set_protocol(ProtocolVersion::RESP3)
        .set_db(database)
        .set_lib_name("verrou", env!("CARGO_PKG_VERSION"));
    if let Some(user) = url.user() {
        settings = settings.set_username(user);
    }
    if let Some(password) = url.password()? {
        settings = settings.set_password(password);
    }
    let tcp = TcpSettings::default().set_nodelay(true);
    #[cfg(target_os = "linux")]
    let tcp = tcp.set_user_timeout(url.timeout() * 2);
    let info: ConnectionInfo = ::redis::IntoConnectionInfo::into_connection_info(address)
        .map_err(wrong)?
        .set_tcp_settings(tcp)
        .set_redis_settings(settings);
    if !url.is_encrypted() {
        return Client::open(info).map_err(wrong);
    }
    tls::install();
    let certificates = TlsCertificates {
        client_tls: None,
        root_cert: url.authorities().map_err(unread)?,
    };
    Client::build_with_tls(info, certificates).map_err(wrong)
}

/// Returns the value of the field `name` in a section of `INFO`.
fn field<'a>(section: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = section.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = fields.find(|(field, _)| *field == name)?;
    Some(value.trim())
}

/// Returns an error if a server with this `INFO memory` can evict keys.
fn is_kept(memory: &str) -> Result<(), String> {
    match (
        field(memory, "maxmemory"),
        field(memory, "maxmemory_policy"),
    ) {
        (Some(limit), Some(policy)) if limit != "0" && policy != "noeviction" => Err(format!(
            "when its memory is full, this server evicts keys (maxmemory-policy {policy})"
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_that_evicts_keys_is_refused() {
        let memory = |limit, policy| {
            format!(
                "# Memory\r\nused_memory:1\r\nmaxmemory:{limit}\r\nmaxmemory_policy:{policy}\r\n"
            )
        };
        assert!(is_kept(&memory(0, "allkeys-lru")).is_ok());
        assert!(is_kept(&memory(1000, "noeviction")).is_ok());
        assert!(is_kept("").is_ok());
        let why = is_kept(&memory(1000, "volatile-ttl")).unwrap_err();
        assert!(why.contains("volatile-ttl"), "{why}");
    }
}
