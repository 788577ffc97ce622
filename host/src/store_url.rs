//! Store URLs, and the URL of the default store.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::{env, fmt};

use verrou_machine::{StoreOptions, process};
#[cfg(feature = "server")]
use verrou_servers::ServerUrl;
use verrou_servers::{Engine, InvalidServerUrl, password_range};

use crate::local_schemes::{LOCAL_SCHEMES, LocalScheme};

/// The location of a store as one line of text: `lease:DIR`, `file:DIR` or `wasi:DIR`, or, with the features for
/// them, `redis://HOST`, `postgres://HOST/DATABASE` or `etcd://HOST`. A directory that is shared with a
/// group is `lease:DIR?group=G`, and so on.
///
/// A directory need not be Unicode: an [`OsStr`] is parsed, and an [`OsString`] returned, without loss.
/// The text form is lossy.
///
/// ```
/// use verrou_host::StoreUrl;
///
/// let url: StoreUrl = "lease:/var/lib/verrou".parse()?;
/// assert_eq!(url.scheme(), "lease");
/// assert_eq!(url.directory().unwrap().path.to_str(), Some("/var/lib/verrou"));
/// assert_eq!(url.to_string(), "lease:/var/lib/verrou");
/// # Ok::<(), verrou_host::InvalidStoreUrl>(())
/// ```
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum StoreUrl {
    /// A store on this machine, such as leases in the files of a directory
    /// ([`LeaseFileStore`](crate::LeaseFileStore)), or the kernel's locks on these files
    /// ([`FileLockStore`](crate::FileLockStore)).
    Local(LocalUrl),
    /// Leases on a server.
    #[cfg(feature = "server")]
    Server(Box<ServerUrl>),
}

/// The location of a store on this machine.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LocalUrl {
    pub(crate) scheme: &'static LocalScheme,
    pub(crate) path: StorePath,
}

/// The directory of a store of files, converted from its path.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct StorePath {
    /// The path of the directory.
    pub path: PathBuf,
    /// The group whose members share the directory, by name or number. With `None`, a new directory
    /// belongs to this user alone, and an existing one keeps the group for which it was created.
    pub group: Option<String>,
}

/// Returns the directory without a group.
impl<P: AsRef<Path> + ?Sized> From<&P> for StorePath {
    fn from(path: &P) -> Self {
        path.as_ref().to_owned().into()
    }
}

/// Returns the directory without a group.
impl From<PathBuf> for StorePath {
    fn from(path: PathBuf) -> Self {
        Self { path, group: None }
    }
}

impl StorePath {
    /// The separator between the directory and its group.
    const GROUP: &str = "?group=";

    /// Parses the text behind the scheme and its colon.
    fn parse(text: &OsStr) -> Self {
        match split_last(text, Self::GROUP) {
            Some((path, group)) if !group.contains('/') => Self {
                path: path.into(),
                group: Some(group.to_owned()),
            },
            _ => text.into(),
        }
    }

    /// Returns `options` with the group that shares this directory.
    pub(crate) fn shared(&self, options: &StoreOptions) -> StoreOptions {
        let mut options = options.clone();
        options.group = options.group.or_else(|| self.group.clone());
        options
    }
}

impl StoreUrl {
    /// Returns the directory of a store of files; `None` for a store on a server.
    pub fn directory(&self) -> Option<&StorePath> {
        match self {
            Self::Local(url) => Some(&url.path),
            #[cfg(feature = "server")]
            Self::Server(_) => None,
        }
    }

    /// Returns the scheme of the URL, without the colon: that of a server's engine also if the URL asks for
    /// TLS.
    pub fn scheme(&self) -> &'static str {
        match self {
            Self::Local(url) => url.scheme.name,
            #[cfg(feature = "server")]
            Self::Server(url) => url.engine().feature(),
        }
    }

    /// Returns the directory of the store, in which the records of other locks can be kept; `None` if the store is not a
    /// directory.
    pub(crate) fn records(&self) -> Option<&StorePath> {
        match self {
            Self::Local(url) if url.scheme.is_directory => Some(&url.path),
            _ => None,
        }
    }

    fn map_directory(mut self, change: impl FnOnce(&mut StorePath)) -> Self {
        match &mut self {
            Self::Local(url) => change(&mut url.path),
            #[cfg(feature = "server")]
            Self::Server(_) => {}
        }
        self
    }

    /// Returns the same store with an absolute path, valid in any working directory.
    #[must_use]
    pub fn absolute(self) -> Self {
        self.map_directory(|directory| {
            if let Ok(path) = std::path::absolute(&directory.path) {
                directory.path = path;
            }
        })
    }

    /// Returns the same store, shared with `group`. A store on a server is returned unchanged.
    #[must_use]
    pub fn shared_with(self, group: &str) -> Self {
        self.map_directory(|directory| directory.group = Some(group.to_owned()))
    }

    /// Returns the location of this user's default store: leases (on systems other than Linux, the
    /// kernel's locks) in `$XDG_STATE_HOME/verrou`; without that variable in `/var/lib/verrou` for
    /// root, and in `~/.local/state/verrou` for other users. A program that runs with more rights than
    /// its caller, such as one that is set-user-ID, does not read `XDG_STATE_HOME` or `HOME`.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidStoreUrl::NoHome`] if the environment names no directory, and
    /// [`InvalidStoreUrl::SecureExecution`] if the environment must not be used and the user is not
    /// root.
    pub fn default_location() -> Result<Self, InvalidStoreUrl> {
        // Other systems have no identifier of a boot, which leases in files need.
        let name = if cfg!(target_os = "linux") {
            "lease"
        } else {
            "file"
        };
        let path = default_directory()?.into();
        let scheme = LocalScheme::find(name).unwrap_or(&LOCAL_SCHEMES[0]);
        Ok(Self::Local(LocalUrl { scheme, path }))
    }
}

impl FromStr for StoreUrl {
    type Err = InvalidStoreUrl;

    fn from_str(text: &str) -> Result<Self, InvalidStoreUrl> {
        OsStr::new(text).try_into()
    }
}

impl TryFrom<&OsStr> for StoreUrl {
    type Error = InvalidStoreUrl;

    fn try_from(text: &OsStr) -> Result<Self, InvalidStoreUrl> {
        let url = || shown(&text.display().to_string());
        let unknown = || InvalidStoreUrl::unknown(&text.display().to_string());
        let (kind, directory) = split(text).ok_or_else(unknown)?;
        if let Some(engine) = Engine::of_scheme(kind) {
            return on_server(engine, kind, text);
        }
        if kind == "memory" {
            return Err(InvalidStoreUrl::Memory);
        }
        let scheme = LocalScheme::find(kind).ok_or_else(unknown)?;
        if is_misplaced_url(&directory.display().to_string()) {
            return Err(unknown());
        }
        if directory.as_encoded_bytes().starts_with(b"~") {
            return Err(InvalidStoreUrl::Tilde { url: url() });
        }
        let path = StorePath::parse(directory);
        if path.path.as_os_str().is_empty() {
            return Err(InvalidStoreUrl::NoDirectory { url: url() });
        }
        Ok(Self::Local(LocalUrl { scheme, path }))
    }
}

/// Returns `text`, or only its scheme if there may be a password behind it.
fn shown(text: &str) -> String {
    match password_range(text) {
        Some(password) => format!("{}:…", &text[..password.start]),
        None => text.to_owned(),
    }
}

/// Returns whether the text behind `lease:` or `file:` looks like the URL of a server with a password.
/// Messages would name it as a path. A path that begins with one `/`, or with a `.`, is taken as it is.
fn is_misplaced_url(directory: &str) -> bool {
    let is_path =
        directory.starts_with('.') || directory.starts_with('/') && !directory.starts_with("//");
    !is_path && password_range(directory).is_some()
}

#[cfg(feature = "server")]
fn on_server(_: Engine, _: &str, text: &OsStr) -> Result<StoreUrl, InvalidStoreUrl> {
    Ok(StoreUrl::Server(Box::new(text.try_into()?)))
}

#[cfg(not(feature = "server"))]
fn on_server(engine: Engine, scheme: &str, _: &OsStr) -> Result<StoreUrl, InvalidStoreUrl> {
    Err(engine.not_built_in(scheme).into())
}

/// Returns the URL as text; that of a server without its password.
impl From<&StoreUrl> for OsString {
    fn from(url: &StoreUrl) -> Self {
        let Some(directory) = url.directory() else {
            return url.to_string().into();
        };
        let mut text = Self::from(url.scheme());
        text.push(":");
        text.push(&directory.path);
        if let Some(group) = &directory.group {
            text.push(StorePath::GROUP);
            text.push(group);
        }
        text
    }
}

/// Splits `text` at the last `mark`: returns the part before it, and the part behind it.
#[cfg(unix)]
fn split_last<'a>(text: &'a OsStr, mark: &str) -> Option<(&'a OsStr, &'a str)> {
    use std::os::unix::ffi::OsStrExt;

    let bytes = text.as_bytes();
    let mut windows = bytes.windows(mark.len());
    let at = windows.rposition(|window| window == mark.as_bytes())?;
    let behind = str::from_utf8(&bytes[at + mark.len()..]).ok()?;
    Some((OsStr::from_bytes(&bytes[..at]), behind))
}

#[cfg(not(unix))]
fn split_last<'a>(text: &'a OsStr, mark: &str) -> Option<(&'a OsStr, &'a str)> {
    let (before, behind) = text.to_str()?.rsplit_once(mark)?;
    Some((OsStr::new(before), behind))
}

/// Splits `text` at the first colon: returns the part before it, and the part behind it.
#[cfg(unix)]
fn split(text: &OsStr) -> Option<(&str, &OsStr)> {
    use std::os::unix::ffi::OsStrExt;

    let bytes = text.as_bytes();
    let colon = bytes.iter().position(|&byte| byte == b':')?;
    let kind = str::from_utf8(&bytes[..colon]).ok()?;
    Some((kind, OsStr::from_bytes(&bytes[colon + 1..])))
}

#[cfg(not(unix))]
fn split(text: &OsStr) -> Option<(&str, &OsStr)> {
    let (kind, directory) = text.to_str()?.split_once(':')?;
    Some((kind, OsStr::new(directory)))
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            #[cfg(feature = "server")]
            Self::Server(url) => url.fmt(f),
            files => OsString::from(files).display().fmt(f),
        }
    }
}

impl InvalidStoreUrl {
    /// Returns the error for `text`. The error contains only the part before the first colon.
    pub(crate) fn unknown(text: &str) -> Self {
        let scheme = text.find([':', '%', '@']);
        let url = scheme.map_or_else(|| text.to_owned(), |end| format!("{}:…", &text[..end]));
        Self::Unknown { url }
    }
}

/// The reason why a text is not the URL of a store.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidStoreUrl {
    /// The URL `memory:`: a process shares no memory with other processes.
    #[error(
        "`memory:` would be this process's own memory, which no other process can access; \
         use `lease:DIR` or `file:DIR`"
    )]
    Memory,
    /// The directory is missing.
    #[error("`{url}` names no directory")]
    NoDirectory {
        /// The URL as it was given.
        url: String,
    },
    /// The environment names no directory for the default store.
    #[error(
        "neither XDG_STATE_HOME nor HOME is set to an absolute path, so there is no default store; name \
         one with --store or VERROU_STORE"
    )]
    NoHome,
    /// The program is set-user-ID or set-group-ID, or has file capabilities (`AT_SECURE` of
    /// `getauxval(3)`): its caller chose the environment.
    #[error(
        "this program runs with more rights than its caller, so XDG_STATE_HOME and HOME are not used, and \
         there is no default store; name one with --store or VERROU_STORE"
    )]
    SecureExecution,
    /// The path begins with `~`. A shell expands `~` only at the start of a word, and this library does
    /// not.
    #[error(
        "`{url}` would be a directory named `~`; write \"$HOME\" or the whole path instead, or `./~` \
         for a directory with that name"
    )]
    Tilde {
        /// The URL as it was given.
        url: String,
    },
    /// The URL of a server is invalid, or this program was built without support for it.
    #[error(transparent)]
    Server(#[from] InvalidServerUrl),
    /// The text is not the URL of a store.
    #[error(
        "`{url}` is not the URL of a store; write {}, or the URL of a server: `redis://HOST`, \
         `postgres://HOST/DATABASE`, `etcd://HOST`",
        local_urls()
    )]
    Unknown {
        /// The text up to its first colon: the rest may contain a password.
        url: String,
    },
}

/// Returns the forms of the URLs of local stores, for a message.
fn local_urls() -> String {
    let forms = LOCAL_SCHEMES.iter().map(|scheme| {
        let path = if scheme.is_directory { "DIR" } else { "FILE" };
        format!("`{}:{path}`", scheme.name)
    });
    forms.collect::<Vec<_>>().join(", ")
}

/// Returns the default store directory: below the state directory of the XDG Base Directory
/// Specification, or below `/var/lib` for root. A program that runs with more rights than its caller
/// does not read the environment, which its caller controls.
pub(crate) fn default_directory() -> Result<PathBuf, InvalidStoreUrl> {
    if process::is_secure_execution() {
        return if is_root() {
            Ok("/var/lib/verrou".into())
        } else {
            Err(InvalidStoreUrl::SecureExecution)
        };
    }
    // The specification: "All paths must be absolute … consider the path invalid and ignore it".
    let absolute = |variable| {
        env::var_os(variable)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let state = absolute("XDG_STATE_HOME")
        .or_else(|| is_root().then(|| "/var/lib".into()))
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")));
    Ok(state.ok_or(InvalidStoreUrl::NoHome)?.join("verrou"))
}

#[cfg(unix)]
fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[cfg(not(unix))]
fn is_root() -> bool {
    false
}
