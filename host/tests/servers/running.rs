//! Real servers, each on a free port of this machine, with data that is thrown away.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
#[cfg(feature = "postgres")]
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use tempfile::TempDir;

/// A server, which ends with this value, and with this process.
pub(crate) struct Running {
    command: Vec<String>,
    pub(crate) port: u16,
    pub(crate) folder: TempDir,
    child: Child,
}

impl Running {
    /// Redis; `options` are more of its words.
    #[cfg(feature = "redis")]
    pub(crate) fn redis(options: &[&str]) -> Self {
        Self::start(|folder, port| {
            let mut words = vec!["redis-server".to_owned()];
            words.extend(["--port".to_owned(), port.to_string()]);
            words.extend(["--bind", "127.0.0.1", "--save", "", "--dir"].map(str::to_owned));
            words.push(folder.display().to_string());
            words.extend(options.iter().map(ToString::to_string));
            words
        })
    }

    /// `PostgreSQL`, with a superuser `verrou` that needs no password; `options` are settings.
    #[cfg(feature = "postgres")]
    pub(crate) fn postgres(options: &[&str]) -> Self {
        Self::start(|folder, port| {
            let programs = newest_postgres();
            let data = folder.join("data");
            let data = data.display().to_string();
            let mut made = as_user(&[
                programs.join("initdb").display().to_string(),
                "--no-sync".to_owned(),
                "--auth=trust".to_owned(),
                "--username=verrou".to_owned(),
                "--encoding=UTF8".to_owned(),
                "--locale=C".to_owned(),
                data.clone(),
            ]);
            let made = made.output().expect("initdb can be run");
            assert!(made.status.success(), "{made:?}");
            let mut words = vec![
                programs.join("postgres").display().to_string(),
                "-D".to_owned(),
                data,
                "-p".to_owned(),
                port.to_string(),
            ];
            let sockets = format!("unix_socket_directories={}", folder.display());
            for setting in ["listen_addresses=127.0.0.1", &sockets]
                .iter()
                .chain(options)
            {
                words.extend(["-c".to_owned(), (*setting).to_owned()]);
            }
            words
        })
    }

    /// etcd, alone; in `options`, `PORT` is the port.
    #[cfg(feature = "etcd")]
    pub(crate) fn etcd(options: &[&str]) -> Self {
        Self::start(|folder, port| {
            let peers = free_port();
            let client = format!("http://127.0.0.1:{port}");
            let peer = format!("http://127.0.0.1:{peers}");
            let mut words = vec![
                "etcd".to_owned(),
                format!("--data-dir={}", folder.join("data").display()),
                format!("--listen-client-urls={client}"),
                format!("--advertise-client-urls={client}"),
                format!("--listen-peer-urls={peer}"),
                format!("--initial-advertise-peer-urls={peer}"),
                format!("--initial-cluster=default={peer}"),
                "--logger=zap".to_owned(),
            ];
            let port = port.to_string();
            words.extend(options.iter().map(|option| option.replace("PORT", &port)));
            words
        })
    }

    fn start(words: impl Fn(&Path, u16) -> Vec<String>) -> Self {
        let folder = tempfile::tempdir().expect("there is room for a folder");
        if geteuid().is_root() {
            // PostgreSQL does not run as root.
            let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
            fs::set_permissions(folder.path(), open).expect("it is ours");
        }
        let port = free_port();
        let command = words(folder.path(), port);
        let mut running = Self {
            child: spawn(&command, folder.path()),
            command,
            port,
            folder,
        };
        running.wait_until_ready();
        running
    }

    /// Stops it, in the middle of whatever it does.
    pub(crate) fn stop(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub(crate) fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    /// Kills it, and starts it again with what it has kept.
    pub(crate) fn restart(&mut self) {
        self.kill();
        self.child = spawn(&self.command, self.folder.path());
        self.wait_until_ready();
    }

    /// Kills it.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Signals all its processes.
    fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.child.id()).expect("a process number");
        let id = Pid::from_raw(id).expect("a process number");
        kill_process(id, signal).expect("it runs");
        for child in children(id) {
            // It may have ended.
            let _ = kill_process(child, signal);
        }
    }

    fn is_ready(&self) -> bool {
        if self.command[0].ends_with("/postgres") {
            // It listens before it answers.
            let mut asked = Command::new(Path::new(&self.command[0]).with_file_name("pg_isready"));
            asked.args(["--quiet", "--host=127.0.0.1", "--port"]);
            let asked = asked.arg(self.port.to_string()).status();
            return asked.is_ok_and(|status| status.success());
        }
        TcpStream::connect(("127.0.0.1", self.port)).is_ok()
    }

    fn wait_until_ready(&mut self) {
        let began = Instant::now();
        while !self.is_ready() {
            let ended = self.child.try_wait().expect("it can be asked");
            let log = || fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            assert_eq!(ended, None, "{:?}: {}", self.command, log());
            let waited = began.elapsed();
            assert!(
                waited < Duration::from_mins(1),
                "{:?}: {}",
                self.command,
                log()
            );
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The processes that `parent` has started.
fn children(parent: Pid) -> Vec<Pid> {
    let parent = parent.as_raw_pid().to_string();
    let ids = fs::read_dir("/proc")
        .expect("the processes")
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let id = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)?;
            let status = fs::read_to_string(entry.path().join("stat")).ok()?;
            // After its name, which may have anything in it: its state, and who started it.
            let (_, rest) = status.rsplit_once(')')?;
            (rest.split_whitespace().nth(1)? == parent).then_some(id)
        });
    ids.collect()
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("it has an address").port()
}

/// Starts a server that is killed when this process ends, however it does: the kernel does so when the
/// thread ends that started it, so that one lives as long.
fn spawn(words: &[String], folder: &Path) -> Child {
    let log = fs::File::create(folder.join("log")).expect("a log");
    let mut command = as_user(words);
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a log"))
        .stderr(log);
    let (said, heard) = mpsc::channel();
    thread::spawn(move || {
        let _ = said.send(command.spawn());
        loop {
            thread::park();
        }
    });
    let started = heard.recv().expect("the thread says so");
    started.unwrap_or_else(|err| {
        panic!("{words:?} cannot be started: {err}; `cargo xtask test` installs what is missing")
    })
}

/// `words`, for one who is not root where they are `PostgreSQL`'s.
fn as_user(words: &[String]) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]);
    let is_postgres = words[0].ends_with("/postgres") || words[0].ends_with("/initdb");
    if geteuid().is_root() && is_postgres {
        // Nobody, as every system calls it.
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    }
    command.arg("--").args(words);
    command
}

/// Where the programs of `PostgreSQL` are: in `PATH`, or where Debian has them.
#[cfg(feature = "postgres")]
fn newest_postgres() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Of a link there, the folder where all of them are.
    let mut found =
        std::env::split_paths(&path).filter_map(|it| it.join("initdb").canonicalize().ok());
    if let Some(folder) = found
        .next()
        .and_then(|initdb| Some(initdb.parent()?.to_owned()))
    {
        return folder;
    }
    let versions = fs::read_dir("/usr/lib/postgresql").map(|entries| {
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path().join("bin")));
        paths.filter(|path| path.join("postgres").exists()).max()
    });
    versions
        .ok()
        .flatten()
        .expect("PostgreSQL is installed; `cargo xtask test` does so")
}
