//! Where a server is, as one line of text.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::fs;
use std::io;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use url::Url;
use verrou::Ttl;

use super::Engine;
use crate::open::{InvalidStoreUrl, StoreUrl};

/// A lock server, as one line of text: `redis://`, `rediss://`, `postgres://` or `etcd://`, a user and
/// a password, hosts, and options.
///
/// Whatever prints it leaves the password out; it is not part of [`Display`](fmt::Display) or
/// [`Debug`](fmt::Debug), nor of what `verrou run` tells its command.
///
/// ```
/// # #[cfg(feature = "redis")]
/// # {
/// use verrou_host::StoreUrl;
///
/// let url: StoreUrl = "redis://app:secret@locks.example:6379/0?prefix=shop:".parse()?;
/// assert_eq!(url.to_string(), "redis://app@locks.example:6379/0?prefix=shop:");
/// # }
/// # Ok::<(), verrou_host::InvalidStoreUrl>(())
/// ```
#[derive(Clone, Eq, PartialEq)]
pub struct ServerUrl {
    engine: Engine,
    /// Without its password, and with its first host alone.
    url: Url,
    /// Hosts and ports of the others.
    others: Vec<(String, Option<u16>)>,
    password: Option<String>,
}

/// How long a server is given to answer, unless the option `timeout` says otherwise.
const TIMEOUT: Duration = Duration::from_secs(2);

impl ServerUrl {
    /// `text`, of which the scheme says that it is an `engine`'s.
    ///
    /// # Errors
    ///
    /// What is wrong with it, in words that do not repeat its password.
    pub(crate) fn parse(engine: Engine, text: &str) -> Result<Self, String> {
        // Readers of URLs drop some of these without a word.
        if let Some(found) = text.chars().find(|it| it.is_control() || *it == ' ') {
            let written: String = percent_encoding::utf8_percent_encode(
                found.encode_utf8(&mut [0; 4]),
                percent_encoding::NON_ALPHANUMERIC,
            )
            .collect();
            return Err(format!("it holds {found:?}, which is written as {written}"));
        }
        let (scheme, rest) = text
            .split_once("://")
            .filter(|(scheme, _)| !scheme.contains(':'))
            .ok_or_else(|| format!("write {}://HOST", engine.feature()))?;
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, tail) = rest.split_at(end);
        // What ends here may be the beginning of a password, and the rest of it would be printed.
        if tail.contains('@') {
            return Err("an `@` is written as %40 behind the hosts, and a `/`, `?` or `#` of a password as \
                        %2F, %3F, %23"
                .to_owned());
        }
        let (user, hosts) = match authority.rsplit_once('@') {
            Some((user, hosts)) => (format!("{user}@"), hosts),
            None => (String::new(), authority),
        };
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
            return Err("locks are kept by one Redis server, and it names several".to_owned());
        }
        if url.fragment().is_some() {
            return Err("`#` has no meaning here; write it as %23".to_owned());
        }
        let known = engine.options();
        for (option, _) in url.query_pairs() {
            if option == "password" {
                return Err(
                    "a password is written before the `@`, or in a file: password-file=FILE"
                        .to_owned(),
                );
            }
            if !known.contains(&&*option) {
                return Err(format!(
                    "`{option}` is no option of it; there are {}",
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
        Ok(parsed)
    }

    /// What kind of server it is.
    pub fn engine(&self) -> Engine {
        self.engine
    }

    /// Whether the scheme asks for TLS.
    #[cfg(any(feature = "redis", feature = "etcd", test))]
    pub(crate) fn is_encrypted(&self) -> bool {
        matches!(self.url.scheme(), "rediss" | "etcds")
    }

    /// All hosts, and their ports where they are named.
    pub(crate) fn hosts(&self) -> Vec<(String, Option<u16>)> {
        let first = (
            self.url.host_str().unwrap_or_default().to_owned(),
            self.url.port(),
        );
        std::iter::once(first).chain(self.others.clone()).collect()
    }

    /// The user's name, if there is one.
    pub(crate) fn user(&self) -> Option<String> {
        let user = percent_encoding::percent_decode_str(self.url.username());
        Some(user.decode_utf8_lossy().into_owned()).filter(|user| !user.is_empty())
    }

    /// The password: of the URL, or of the file that it names.
    ///
    /// # Errors
    ///
    /// That the file cannot be read.
    pub(crate) fn password(&self) -> io::Result<Option<String>> {
        match self.option("password-file") {
            Some(file) => {
                let text = fs::read_to_string(Path::new(&file)).map_err(|err| {
                    io::Error::new(err.kind(), format!("the password's file {file}: {err}"))
                })?;
                Ok(Some(text.lines().next().unwrap_or_default().to_owned()))
            }
            None => Ok(self.password.clone()),
        }
    }

    /// What is between the first `/` and the options.
    #[cfg(any(feature = "redis", feature = "postgres", test))]
    pub(crate) fn database(&self) -> Option<String> {
        let path = self.url.path().trim_start_matches('/');
        let path = percent_encoding::percent_decode_str(path).decode_utf8_lossy();
        Some(path.into_owned()).filter(|path| !path.is_empty())
    }

    /// The value of an option, if it is there; the last, if it is there several times.
    pub(crate) fn option(&self, name: &str) -> Option<String> {
        let values = self.url.query_pairs().filter(|(option, _)| option == name);
        values.map(|(_, value)| value.into_owned()).last()
    }

    /// How long the server is given to answer.
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
                "`timeout={text}` is no time to wait; write timeout=2s"
            )),
        }
    }

    /// The certificates, in PEM, of those who are trusted to name the server: of the file in the option
    /// `ca-file`.
    ///
    /// # Errors
    ///
    /// That the file cannot be read.
    pub(crate) fn authorities(&self) -> io::Result<Option<Vec<u8>>> {
        let Some(file) = self.option("ca-file") else {
            return Ok(None);
        };
        let named = |err: io::Error| {
            io::Error::new(err.kind(), format!("the certificates' file {file}: {err}"))
        };
        fs::read(&file).map(Some).map_err(named)
    }

    /// The text, without its password.
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

impl FromStr for ServerUrl {
    type Err = InvalidStoreUrl;

    /// Of a [`StoreUrl`] that is a server's.
    fn from_str(text: &str) -> Result<Self, InvalidStoreUrl> {
        match text.parse()? {
            StoreUrl::Server(url) => Ok(*url),
            files => Err(InvalidStoreUrl::Unknown {
                url: files.to_string(),
            }),
        }
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
    fn a_url_is_taken_apart() {
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
    fn a_password_is_not_printed() {
        for text in [
            "redis://:hidden@host",
            "postgres://user:hidden@one:1,two:2/db?schema=s",
            "etcd://user:hidden@one,two",
        ] {
            let url = parse(text).unwrap();
            let printed = format!("{url} {url:?}");
            assert!(!printed.contains("hidden"), "{printed}");
            assert_eq!(parse(&url.to_string()).unwrap().hosts(), url.hosts());
            assert_eq!(url.password().unwrap().as_deref(), Some("hidden"));
        }
    }

    #[test]
    fn a_password_can_be_in_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "s@cret\r\nno password\n").unwrap();
        let text = format!("redis://host?password-file={}", file.path().display());
        let url = parse(&text).unwrap();
        assert_eq!(url.password().unwrap().as_deref(), Some("s@cret"));
        file.close().unwrap();
        assert!(url.password().unwrap_err().to_string().contains("password"));
    }

    #[test]
    fn what_is_wrong_is_said() {
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
            ("redis://a?schema=x", "`schema` is no option"),
            ("postgres://a?timeout=soon", "timeout=2s"),
            ("postgres://a#b", "%23"),
        ] {
            let engine = Engine::of_scheme(text.split(':').next().unwrap()).unwrap();
            let why = ServerUrl::parse(engine, text).unwrap_err();
            assert!(why.contains(said), "{text}: {why}");
            assert!(!why.contains("hidden"), "{why}");
        }
    }
}
