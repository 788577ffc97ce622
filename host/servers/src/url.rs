//! The URL of a lock server.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fmt::{self, Write as _};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use url::Url;
use verrou::Ttl;

use crate::engine::{Engine, InvalidServerUrl};
use crate::error::ServerError;
use crate::password::{marks, password_range};

/// The URL of a lock server: `redis://`, `rediss://`, `postgres://` or `etcd://`, a user and a password,
/// hosts, and options.
///
/// The password is never printed: neither by [`Display`](fmt::Display) or [`Debug`](fmt::Debug), nor in
/// the environment of the command that `verrou run` runs.
///
/// ```
/// # #[cfg(feature = "redis")]
/// # {
/// # use verrou_servers::ServerUrl;
/// let url: ServerUrl = "rediss://app:secret@locks.example:6379/0?prefix=shop:".parse()?;
/// assert_eq!(url.to_string(), "rediss://app@locks.example:6379/0?prefix=shop:");
/// # }
/// # Ok::<(), verrou_servers::InvalidServerUrl>(())
/// ```
#[derive(Clone, Eq, PartialEq)]
pub struct ServerUrl {
    engine: Engine,
    /// The URL without its password, and with its first host only.
    url: Url,
    /// The other hosts, and their ports.
    others: Vec<(String, Option<u16>)>,
    password: Option<String>,
}

/// Returns the user with its password and an `@`, and the hosts, or why a part that is printed may have a
/// password.
fn checked_parts<'a>(authority: &'a str, tail: &str) -> Result<(String, &'a str), String> {
    // The authority may end within a password, and the rest of the password would be printed.
    if tail.contains('@') {
        return Err(
            "write an `@` behind the hosts as %40, and a `/`, `?` or `#` of a password as %2F, %3F, \
                    %23"
                .to_owned(),
        );
    }
    if password_range(tail).is_some() {
        return Err(
            "behind the hosts, the text between a `:` and an `@` may be a password, and would be \
                    printed"
                .to_owned(),
        );
    }
    let (user, hosts) = match authority.rsplit_once('@') {
        Some((user, hosts)) => (format!("{user}@"), hosts),
        None => (String::new(), authority),
    };
    let name = user.split(':').next().unwrap_or_default();
    if marks(name, b':', b"3a").next().is_some() {
        return Err(
            "a user's name cannot contain a `:`; write the `:` before a password as it is, not as %3A"
                .to_owned(),
        );
    }
    if hosts.contains('%') {
        return Err(
            "a host cannot contain a `%`; write the `@` before it as it is, not as %40".to_owned(),
        );
    }
    if !hosts.is_ascii() {
        return Err("a host's name must be ASCII: write it as `xn--…` (RFC 5891)".to_owned());
    }
    // A URL parser ends the hosts at some other characters, such as a backslash behind a port.
    let is_of_a_host = |it: char| it.is_ascii_alphanumeric() || "-._[]:,".contains(it);
    if let Some(found) = hosts.chars().find(|it| !is_of_a_host(*it)) {
        return Err(format!("a host cannot contain a `{found}`"));
    }
    Ok((user, hosts))
}

/// The default of the option `timeout`.
const TIMEOUT: Duration = Duration::from_secs(2);

impl ServerUrl {
    /// Parses `text`, whose scheme is one of `engine`.
    ///
    /// # Errors
    ///
    /// Returns a message that says what is wrong, and does not contain the password.
    fn parse(engine: Engine, text: &str) -> Result<Self, String> {
        // URL parsers drop some of these characters silently.
        if let Some(found) = text.chars().find(|it| it.is_control() || *it == ' ') {
            let written: String = percent_encoding::utf8_percent_encode(
                found.encode_utf8(&mut [0; 4]),
                percent_encoding::NON_ALPHANUMERIC,
            )
            .collect();
            return Err(format!("it contains {found:?}; write it as {written}"));
        }
        let (scheme, rest) = text
            .split_once("://")
            .filter(|(scheme, _)| !scheme.contains(':'))
            .ok_or_else(|| format!("write {}://HOST", engine.feature()))?;
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, tail) = rest.split_at(end);
        let (user, hosts) = checked_parts(authority, tail)?;
        let mut hosts = hosts.split(',');
        let parsed = |text: &str| Url::parse(text).map_err(|why| why.to_string());
        let first = hosts.next().unwrap_or_default();
        let mut url = parsed(&format!("{scheme}://{user}{first}{tail}"))?;
        let mut others = Vec::new();
        for host in hosts {
            let other = parsed(&format!("{scheme}://{host}"))?;
            let named = other.host_str().filter(|host| !host.is_empty());
            others.push((
                named.ok_or("a host between commas is missing")?.to_owned(),
                other.port(),
            ));
        }
        if url.host_str().is_none_or(str::is_empty) {
            return Err("it names no host".to_owned());
        }
        if !others.is_empty() && engine == Engine::Redis {
            return Err("it names several hosts; a Redis store has one server".to_owned());
        }
        if url.fragment().is_some() {
            return Err("it contains a `#`; write it as %23".to_owned());
        }
        let known = engine.options();
        for (option, _) in url.query_pairs() {
            if option == "password" {
                return Err(
                    "write the password before the `@`, or in a file: password-file=FILE"
                        .to_owned(),
                );
            }
            if !known.contains(&&*option) {
                return Err(format!(
                    "`{option}` is not an option of this store; its options are {}",
                    known.join(", ")
                ));
            }
        }
        let decoded = |text: &str| {
            percent_encoding::percent_decode_str(text)
                .decode_utf8()
                .map(Cow::into_owned)
                .map_err(|_| "its password is not UTF-8".to_owned())
        };
        let password = url.password().map(decoded).transpose()?;
        url.set_password(None)
            .map_err(|()| "it has no place for a password".to_owned())?;
        let parsed = Self {
            engine,
            url,
            others,
            password,
        };
        parsed.timeout_or_why()?;
        match parsed.option("tls").as_deref() {
            None => {}
            Some("off") if !parsed.is_encrypted() => {}
            Some(_) => {
                return Err(format!(
                    "`tls` can only be `off`, which permits a password without TLS; write {}:// for TLS",
                    engine.encrypted_scheme()
                ));
            }
        }
        Ok(parsed)
    }

    /// Returns the kind of the server.
    pub fn engine(&self) -> Engine {
        self.engine
    }

    /// Returns whether connections use TLS: by the scheme, or for `PostgreSQL` by `sslmode`, without which
    /// they do unless all hosts are this machine.
    pub(crate) fn is_encrypted(&self) -> bool {
        match self.engine {
            Engine::Redis | Engine::Etcd => matches!(self.url.scheme(), "rediss" | "etcds"),
            Engine::Postgres => match self.option("sslmode") {
                Some(mode) => mode != "disable",
                None => !self.is_local(),
            },
        }
    }

    /// Returns whether all hosts are this machine, by a name or an address that is reserved for it.
    fn is_local(&self) -> bool {
        self.hosts().iter().all(|(host, _)| {
            let host = host.trim_matches(['[', ']']);
            let address = host.parse::<IpAddr>().map(|address| address.to_canonical());
            host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|it| it.is_loopback())
        })
    }

    /// Returns whether a password may be sent without TLS: to this machine, or where the URL permits it.
    fn permits_clear_password(&self) -> bool {
        let (option, value) = match self.engine {
            Engine::Redis | Engine::Etcd => ("tls", "off"),
            Engine::Postgres => ("sslmode", "disable"),
        };
        self.is_local() || self.option(option).as_deref() == Some(value)
    }

    /// Returns all hosts, each with its port if it has one.
    pub fn hosts(&self) -> Vec<(String, Option<u16>)> {
        let first = (
            self.url.host_str().unwrap_or_default().to_owned(),
            self.url.port(),
        );
        std::iter::once(first).chain(self.others.clone()).collect()
    }

    /// Returns the user's name, if there is one.
    pub(crate) fn user(&self) -> Option<String> {
        let user = percent_encoding::percent_decode_str(self.url.username());
        Some(user.decode_utf8_lossy().into_owned()).filter(|user| !user.is_empty())
    }

    /// Returns the password: of the URL, or of the file that the URL names.
    ///
    /// # Errors
    ///
    /// Returns an error if the password would be sent without TLS to another machine, if the file cannot be
    /// read, or if other users can read it.
    pub fn password(&self) -> Result<Option<String>, ServerError> {
        let refused = |(why, advice): (String, String)| ServerError::Setup {
            server: self.to_string(),
            why,
            advice,
        };
        let file = self.option("password-file");
        let has_password = file.is_some() || self.password.is_some();
        if has_password && !self.is_encrypted() && !self.permits_clear_password() {
            return Err(refused((
                "the password would be sent unencrypted".to_owned(),
                format!(
                    "write {}:// for TLS; or, on a network where no other machine can read the traffic, add \
                     tls=off",
                    self.engine.encrypted_scheme()
                ),
            )));
        }
        match file {
            Some(file) => password_of(&file).map(Some).map_err(refused),
            None => Ok(self.password.clone()),
        }
    }

    /// Returns the part between the first `/` and the options.
    #[cfg(any(feature = "redis", feature = "postgres", test))]
    pub(crate) fn database(&self) -> Option<String> {
        let path = self.url.path().trim_start_matches('/');
        let path = percent_encoding::percent_decode_str(path).decode_utf8_lossy();
        Some(path.into_owned()).filter(|path| !path.is_empty())
    }

    /// Returns the value of an option, if it is given; the last one, if it is given several times.
    pub fn option(&self, name: &str) -> Option<String> {
        self.values(name).last()
    }

    /// Returns the values of an option, in their order.
    #[cfg(feature = "postgres")]
    pub(crate) fn options(&self, name: &str) -> Vec<String> {
        self.values(name).collect()
    }

    fn values(&self, name: &str) -> impl Iterator<Item = String> {
        let values = self
            .url
            .query_pairs()
            .filter(move |(option, _)| option == name);
        values.map(|(_, value)| value.into_owned())
    }

    /// Returns how long to wait for an answer of the server.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout_or_why().unwrap_or(TIMEOUT)
    }

    fn timeout_or_why(&self) -> Result<Duration, String> {
        let Some(text) = self.option("timeout") else {
            return Ok(TIMEOUT);
        };
        match Ttl::parse_length(&text) {
            Ok(timeout) if !timeout.is_zero() => Ok(timeout),
            _ => Err(format!(
                "`timeout={text}` is not a length of time; write timeout=2s"
            )),
        }
    }

    /// Returns the certificates, in PEM, of the trusted certificate authorities: those in the file of the option
    /// `ca-file`.
    ///
    /// # Errors
    ///
    /// Returns an error if the file cannot be read.
    pub(crate) fn authorities(&self) -> io::Result<Option<Vec<u8>>> {
        let Some(file) = self.option("ca-file") else {
            return Ok(None);
        };
        let named = |err: io::Error| {
            io::Error::new(
                err.kind(),
                format!("cannot read the certificate file {file}: {err}"),
            )
        };
        fs::read(&file).map(Some).map_err(named)
    }

    /// Returns the URL without its password.
    pub(crate) fn without_password(&self) -> String {
        let mut text = self.url.to_string();
        if self.others.is_empty() {
            return text;
        }
        let authority = self.url.authority();
        let start = text.find("://").map_or(0, |at| at + 3);
        let mut hosts = String::from(authority);
        for (host, port) in &self.others {
            hosts.push(',');
            hosts.push_str(host);
            if let Some(port) = port {
                let _ = write!(hosts, ":{port}");
            }
        }
        text.replace_range(start..start + authority.len(), &hosts);
        text
    }
}

/// Returns the first line of a file that only this user can read. The error is the reason, and the remedy.
fn password_of(file: &str) -> Result<String, (String, String)> {
    let unread = |err: io::Error| {
        (
            format!("cannot read the password file {file}: {err}"),
            "name a file that can be read".to_owned(),
        )
    };
    let mut opened = File::open(file).map_err(unread)?;
    if let Some(mode) = mode_for_others(&opened).map_err(unread)? {
        return Err((
            format!("other users may read the password file {file} (its mode is {mode:04o})"),
            format!(
                "chmod 600 {file}; or, if it is a secret of a container, mount it with defaultMode: \
                 0400 (Kubernetes; 0440 with fsGroup) or mode: 0400 (Compose, Swarm)"
            ),
        ));
    }
    let mut text = String::new();
    opened.read_to_string(&mut text).map_err(unread)?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// Returns the mode of `file` if it permits other users more than libpq does for a file with a secret: a group
/// may read a file of root, and nothing else is permitted.
#[cfg(unix)]
fn mode_for_others(file: &File) -> io::Result<Option<u32>> {
    use std::os::unix::fs::MetadataExt as _;

    let metadata = file.metadata()?;
    let refused = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    let mode = metadata.mode() & 0o7777;
    Ok((mode & refused != 0).then_some(mode))
}

#[cfg(not(unix))]
fn mode_for_others(_: &File) -> io::Result<Option<u32>> {
    Ok(None)
}

impl FromStr for ServerUrl {
    type Err = InvalidServerUrl;

    fn from_str(text: &str) -> Result<Self, InvalidServerUrl> {
        OsStr::new(text).try_into()
    }
}

impl TryFrom<&OsStr> for ServerUrl {
    type Error = InvalidServerUrl;

    fn try_from(text: &OsStr) -> Result<Self, InvalidServerUrl> {
        let lossy = text.to_string_lossy();
        let scheme = lossy.split(':').next().unwrap_or_default();
        let engine = Engine::of_scheme(scheme).ok_or(InvalidServerUrl::UnknownScheme)?;
        if !engine.is_built_in() {
            return Err(engine.not_built_in(scheme));
        }
        let parsed = match text.to_str() {
            Some(text) => Self::parse(engine, text),
            None => Err("it is not UTF-8".to_owned()),
        };
        parsed.map_err(|why| InvalidServerUrl::Invalid {
            scheme: scheme.to_owned(),
            why,
        })
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.without_password())
    }
}

impl fmt::Debug for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ServerUrl")
            .field(&self.without_password())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ServerUrl, String> {
        let engine = Engine::of_scheme(text.split("://").next().unwrap()).unwrap();
        ServerUrl::parse(engine, text)
    }

    #[test]
    fn host_that_is_not_ascii_is_refused() {
        for text in [
            "rediss://a\u{fffd}re//c://hosvy",
            "redis://bücher.example",
            "etcd://one,zwö",
        ] {
            let why = parse(text).unwrap_err();
            assert!(why.contains("xn--"), "{text}: {why}");
        }
        parse("redis://xn--bcher-kva.example").unwrap();
    }

    #[test]
    fn hosts_end_only_at_a_slash_question_mark_or_hash() {
        for text in [
            r"rediss://user@[::1]:6\a:b%40c",
            r"redis://host\path",
            "etcd://one;two",
            "postgres://host:5432=x",
        ] {
            let why = parse(text).unwrap_err();
            assert!(why.contains("a host cannot contain a `"), "{text}: {why}");
        }
        parse("postgres://db_1.example:5432,[::1]:5433/locks").unwrap();
    }

    #[test]
    fn parts_of_url_are_parsed() {
        let url = parse("redis://app:s%40cret@[::1]:7000/3?prefix=shop:&timeout=500ms").unwrap();
        assert_eq!(url.engine(), Engine::Redis);
        assert!(!url.is_encrypted());
        assert_eq!(url.hosts(), [("[::1]".to_owned(), Some(7000))]);
        assert_eq!(url.user().as_deref(), Some("app"));
        assert_eq!(url.password().unwrap().as_deref(), Some("s@cret"));
        assert_eq!(url.database().as_deref(), Some("3"));
        assert_eq!(url.option("prefix").as_deref(), Some("shop:"));
        assert_eq!(url.timeout(), Duration::from_millis(500));

        let url = parse("etcds://one:2379,two,three:1").unwrap();
        assert!(url.is_encrypted());
        assert_eq!(url.password().unwrap(), None);
        let hosts = [("one", Some(2379)), ("two", None), ("three", Some(1))];
        assert_eq!(
            url.hosts(),
            hosts.map(|(host, port)| (host.to_owned(), port))
        );
    }

    #[test]
    fn password_is_not_printed() {
        for text in [
            "rediss://:hidden@host",
            "postgres://user:hidden@one:1,two:2/db?schema=s",
            "etcds://user:hidden@one,two",
        ] {
            let url = parse(text).unwrap();
            let printed = format!("{url} {url:?}");
            assert!(!printed.contains("hidden"), "{printed}");
            assert_eq!(parse(&url.to_string()).unwrap().hosts(), url.hosts());
            assert_eq!(url.password().unwrap().as_deref(), Some("hidden"));
        }
    }

    #[test]
    fn password_is_read_from_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "s@cret\r\nno password\n").unwrap();
        let text = format!("redis://localhost?password-file={}", file.path().display());
        let url = parse(&text).unwrap();
        assert_eq!(url.password().unwrap().as_deref(), Some("s@cret"));
        file.close().unwrap();
        assert!(url.password().unwrap_err().to_string().contains("password"));
    }

    #[cfg(unix)]
    #[test]
    fn password_file_that_others_may_read_is_refused() {
        use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "hidden\n").unwrap();
        let text = format!("redis://localhost?password-file={}", file.path().display());
        let url = parse(&text).unwrap();
        let is_roots = file.path().metadata().unwrap().uid() == 0;
        for (mode, is_permitted) in [
            (0o600, true),
            (0o400, true),
            (0o640, is_roots),
            (0o440, is_roots),
            (0o644, false),
            (0o604, false),
            (0o620, false),
            (0o660, false),
            (0o601, false),
        ] {
            fs::set_permissions(file.path(), fs::Permissions::from_mode(mode)).unwrap();
            match url.password() {
                Ok(password) => {
                    assert_eq!((password.as_deref(), is_permitted), (Some("hidden"), true));
                }
                Err(why) => {
                    let why = why.to_string();
                    assert!(!is_permitted, "{mode:o}: {why}");
                    assert!(why.contains(&format!("{mode:04o}); chmod 600")), "{why}");
                    assert!(why.contains("defaultMode: 0400"), "{why}");
                    assert!(why.contains(" mode: 0400"), "{why}");
                    assert!(!why.contains("hidden"), "{why}");
                }
            }
        }
    }

    #[test]
    fn password_is_not_sent_unencrypted_to_another_machine() {
        for (text, is_encrypted, is_permitted) in [
            ("redis://:hidden@host", false, false),
            ("redis://:hidden@localhost.example", false, false),
            ("redis://:hidden@0.0.0.0", false, false),
            ("redis://:hidden@[fe80::1]", false, false),
            ("redis://:hidden@host?tls=off", false, true),
            ("redis://:hidden@localhost", false, true),
            ("redis://:hidden@127.9.9.9:1", false, true),
            ("redis://:hidden@[::ffff:127.0.0.1]", false, true),
            ("rediss://:hidden@host", true, true),
            ("etcd://u:hidden@[::1],host", false, false),
            ("etcd://u:hidden@[::1],LOCALHOST:3", false, true),
            ("etcds://u:hidden@host", true, true),
            ("postgres://u:hidden@host", true, true),
            ("postgres://u:hidden@127.0.0.1,host", true, true),
            ("postgres://u:hidden@host,127.0.0.1", true, true),
            ("postgres://u:hidden@127.0.0.1,localhost", false, true),
            ("postgres://u:hidden@host?sslmode=disable", false, true),
            ("postgres://u:hidden@[::1]?sslmode=verify-full", true, true),
        ] {
            let url = parse(text).unwrap();
            assert_eq!(url.is_encrypted(), is_encrypted, "{text}");
            match url.password() {
                Ok(password) => {
                    assert_eq!((password.as_deref(), is_permitted), (Some("hidden"), true));
                }
                Err(why) => {
                    assert!(!is_permitted, "{text}: {why}");
                    let why = why.to_string();
                    assert!(why.contains("tls=off") && !why.contains("hidden"), "{why}");
                }
            }
        }
        for (text, said) in [
            ("redis://host?tls=on", "rediss://"),
            ("etcds://host?tls=off", "etcds://"),
        ] {
            assert!(parse(text).unwrap_err().contains(said), "{text}");
        }
    }

    #[test]
    fn invalid_url_is_refused_with_reason() {
        for (text, said) in [
            ("redis:host", "redis://HOST"),
            ("redis:/a,b//c://host", "redis://HOST"),
            ("redis:/\t/a,b//c://host", "%09"),
            ("redis://host?prefix=shop: ", "%20"),
            ("redis://app:/hidden@host", "%2F"),
            ("postgres://u:/hidden@host/db", "%2F"),
            ("postgres://u:12/hidden@host/db", "%2F"),
            ("postgres://u:12?hidden@host/db", "%3F"),
            ("etcd://u:12#hidden@host", "%23"),
            ("redis://", "host"),
            ("redis://:hidden@", "host"),
            ("redis://a:99999", "port"),
            ("redis://a,b", "several"),
            ("etcd://a,,b", "host"),
            ("redis://a?password=hidden", "before the `@`"),
            ("redis://a?schema=x", "`schema` is not an option"),
            ("postgres://a?timeout=soon", "timeout=2s"),
            ("postgres://a#b", "%23"),
            ("redis://app%3Ahidden@host", "%3A"),
            ("redis://app%253ahidden@host", "%3A"),
            ("redis://app%3Ahidden%40host", "%40"),
            ("redis://host/app:hidden%40host", "behind the hosts"),
            (
                "postgres://host/db?schema=app%3Ahidden%2540host",
                "behind the hosts",
            ),
        ] {
            let engine = Engine::of_scheme(text.split(':').next().unwrap()).unwrap();
            let why = ServerUrl::parse(engine, text).unwrap_err();
            assert!(why.contains(said), "{text}: {why}");
            assert!(!why.contains("hidden"), "{why}");
        }
    }
}
