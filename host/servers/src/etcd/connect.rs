//! The connection to a server, after checks that the server is usable.

use std::io;

use tonic::transport::{Certificate, ClientTlsConfig};

use super::client::messages::Range;
use super::client::{Client, ConnectOptions};
use super::error::not_fit;
use super::session::of_any;
use crate::error::ServerError;
use crate::url::ServerUrl;

/// Returns a client of the server, after checking that the server is usable.
pub(super) async fn checked_client(
    url: &ServerUrl,
    server: &str,
    prefix: &str,
) -> Result<Client, ServerError> {
    let setup = |why: String, advice: &str| ServerError::Setup {
        server: server.to_owned(),
        why,
        advice: advice.to_owned(),
    };
    let unread = |err: io::Error| setup(err.to_string(), "name a file that can be read");
    let scheme = if url.is_encrypted() { "https" } else { "http" };
    let members: Vec<_> = url
        .hosts()
        .into_iter()
        .map(|(host, port)| format!("{scheme}://{host}:{}", port.unwrap_or(2379)))
        .collect();
    let user = match url.user() {
        Some(user) => {
            let password = url.password()?.unwrap_or_default();
            Some((user, password))
        }
        None => None,
    };
    let tls = if url.is_encrypted() {
        Some(match url.authorities().map_err(unread)? {
            Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
            None => ClientTlsConfig::new().with_enabled_roots(),
        })
    } else {
        None
    };
    let options = ConnectOptions {
        timeout: url.timeout(),
        user,
        tls,
    };
    let refused = |err| not_fit(server, prefix, err);
    let count = members.len();
    // With a user, this requests a token from one member.
    let connecting = of_any(count, &(), |()| Client::connect(&members, &options));
    let client = connecting.await.map_err(refused)?;
    let status = of_any(
        count,
        &client,
        |client| async move { client.status().await },
    );
    let status = status.await.map_err(refused)?;
    if is_too_old(&status.version) {
        return Err(setup(
            format!("this server is etcd {}", status.version),
            "use etcd 3.4 or later",
        ));
    }
    let look = of_any(count, &client, |client| async move {
        let one = Range::prefix(prefix).keys_only().limit(1);
        client.range(one).await
    });
    look.await.map_err(refused)?;
    Ok(client)
}

/// Returns whether this version does not support nested transactions.
fn is_too_old(version: &str) -> bool {
    let mut parts = version.split('.').map(|part| part.parse::<u32>().ok());
    match (parts.next().flatten(), parts.next().flatten()) {
        (Some(major), Some(minor)) => (major, minor) < (3, 4),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_before_3_4_is_too_old() {
        assert!(is_too_old("3.3.25"));
        assert!(is_too_old("2.9.0"));
        assert!(!is_too_old("3.4.23"));
        assert!(!is_too_old("3.10.0-rc.1"));
        assert!(!is_too_old("4.0.0"));
        assert!(!is_too_old("not a version"));
    }
}
