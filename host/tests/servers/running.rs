//! Real servers, each on a free port of this machine, in a temporary directory.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
#[cfg(feature = "postgres")]
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
#[cfg(feature = "postgres")]
use std::sync::OnceLock;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use tempfile::TempDir;

use crate::common::{children, lives};

/// Longer than any server needs to start, or to end.
const LONG: Duration = Duration::from_mins(1);

/// A running server. It is killed when this value is dropped, and when this process ends.
pub(crate) struct Running {
    command: Vec<String>,
    pub(crate) port: u16,
    pub(crate) directory: TempDir,
    child: Child,
}

impl Running {
    /// Starts Redis; `options` are further arguments.
    #[cfg(feature = "redis")]
    pub(crate) fn redis(options: &[&str]) -> Self {
        Self::start(|directory, port| {
            let mut words = vec!["redis-server".to_owned()];
            words.extend(["--port".to_owned(), port.to_string()]);
            words.extend(["--bind", "127.0.0.1", "--save", "", "--dir"].map(str::to_owned));
            words.push(directory.display().to_string());
            words.extend(options.iter().map(ToString::to_string));
            words
        })
    }

    /// Starts `PostgreSQL`, with a superuser `verrou` that needs no password; `options` are settings.
    #[cfg(feature = "postgres")]
    pub(crate) fn postgres(options: &[&str]) -> Self {
        Self::start(|directory, port| {
            let words = ["cp", "--archive", "--reflink=auto"].map(str::to_owned);
            let paths = [initialized_cluster(), &directory.join("data")];
            must_succeed(&[&words[..], &paths.map(|path| path.display().to_string())].concat());
            postgres_on(directory, port, options)
        })
    }

    /// Starts a `PostgreSQL` standby of `primary`, with a copy of its data; `options` are settings.
    #[cfg(feature = "postgres")]
    pub(crate) fn standby_of(primary: &Self, options: &[&str]) -> Self {
        Self::start(|directory, port| {
            let data = directory.join("data").display().to_string();
            must_succeed(&[
                postgres_program("pg_basebackup"),
                "--host=127.0.0.1".to_owned(),
                format!("--port={}", primary.port),
                "--username=verrou".to_owned(),
                "--no-sync".to_owned(),
                "--checkpoint=fast".to_owned(),
                "--write-recovery-conf".to_owned(),
                "--pgdata".to_owned(),
                data,
            ]);
            postgres_on(directory, port, options)
        })
    }

    /// Starts `PgBouncer` in front of the `PostgreSQL` server at port `server`; `mode` is the pool mode.
    #[cfg(feature = "postgres")]
    pub(crate) fn pgbouncer(server: u16, mode: &str) -> Self {
        Self::start(|directory, port| {
            let settings = directory.join("pgbouncer.ini");
            let text = format!(
                "[databases]\npostgres = host=127.0.0.1 port={server} user=verrou\n\
                 [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
                 unix_socket_dir =\nauth_type = any\npool_mode = {mode}\n"
            );
            fs::write(&settings, text).expect("there is room for it");
            vec!["pgbouncer".to_owned(), settings.display().to_string()]
        })
    }

    /// Starts a single etcd member; in `options`, `PORT` is replaced by the port.
    #[cfg(feature = "etcd")]
    pub(crate) fn etcd(options: &[&str]) -> Self {
        let peers = [free_port()];
        Self::start(|directory, port| {
            let mut words = member(0, &peers, directory, port);
            let port = port.to_string();
            words.extend(options.iter().map(|option| option.replace("PORT", &port)));
            words
        })
    }

    /// Starts the members of an etcd cluster, which answer once a majority is running.
    #[cfg(feature = "etcd")]
    pub(crate) fn etcd_cluster() -> [Self; 3] {
        let peers = [(); 3].map(|()| free_port());
        [0, 1, 2]
            .map(|number| Self::start(|directory, port| member(number, &peers, directory, port)))
    }

    fn start(words: impl Fn(&Path, u16) -> Vec<String>) -> Self {
        let directory = tempfile::tempdir().expect("there is room for a directory");
        open_to_all(directory.path());
        let port = free_port();
        let command = words(directory.path(), port);
        let mut running = Self {
            child: spawn(&command, directory.path()),
            command,
            port,
            directory,
        };
        running.wait_until_ready();
        running
    }

    /// Stops the server's processes by SIGSTOP.
    pub(crate) fn stop(&self) {
        self.signal(Signal::STOP);
    }

    /// Continues a stopped server.
    pub(crate) fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    /// Kills the server, and starts it again on the same data.
    pub(crate) fn restart(&mut self) {
        self.kill();
        self.child = spawn(&self.command, self.directory.path());
        self.wait_until_ready();
    }

    /// Kills the server and all its processes.
    pub(crate) fn kill(&mut self) {
        let children = children(self.id());
        let _ = self.child.kill();
        let _ = self.child.wait();
        for child in children {
            // A process that is left could keep the data locked against the next start.
            let _ = kill_process(child, Signal::KILL);
            let began = Instant::now();
            while lives(child) && began.elapsed() < LONG {
                thread::sleep(Duration::from_millis(1));
            }
        }
    }

    fn id(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Sends a signal to all processes of the server.
    fn signal(&self, signal: Signal) {
        kill_process(self.id(), signal).expect("it runs");
        for child in children(self.id()) {
            // The process may have ended.
            let _ = kill_process(child, signal);
        }
    }

    fn is_ready(&self) -> bool {
        if self.command[0].ends_with("/postgres") {
            // PostgreSQL listens before it can answer.
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
            let log = || fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
            assert_eq!(ended, None, "{:?}: {}", self.command, log());
            let waited = began.elapsed();
            assert!(waited < LONG, "{:?}: {}", self.command, log());
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Returns the children of the process `parent`, and their descendants.
pub(crate) fn descendants(parent: Pid) -> Vec<Pid> {
    let children = children(parent).into_iter();
    children
        .flat_map(|child| std::iter::once(child).chain(descendants(child)))
        .collect()
}

/// Returns a port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("it has an address").port()
}

/// Starts a server that is killed when this process ends for any reason. The kernel kills the server when the
/// thread that started it ends, so that thread does not end before this process.
fn spawn(words: &[String], directory: &Path) -> Child {
    let log = fs::File::create(directory.join("log")).expect("a log");
    let mut command = as_user(words);
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a log"))
        .stderr(log);
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let _ = sender.send(command.spawn());
        loop {
            thread::park();
        }
    });
    let started = receiver.recv().expect("the thread sends the child");
    started.unwrap_or_else(|err| {
        panic!("{words:?} cannot be started: {err}; `cargo xtask test` installs what is missing")
    })
}

/// Returns the command `words`, as an unprivileged user if the program refuses to run as root.
fn as_user(words: &[String]) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]);
    let program = Path::new(&words[0]).file_name().unwrap_or_default();
    let refuses_root = ["initdb", "postgres", "pg_basebackup", "pgbouncer"];
    if geteuid().is_root() && refuses_root.iter().any(|name| program == *name) {
        // The unprivileged user and group of every system.
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    }
    command.arg("--").args(words);
    command
}

/// Returns the command of a member of an etcd cluster, whose members use the ports `peers` among themselves.
#[cfg(feature = "etcd")]
fn member(number: usize, peers: &[u16], directory: &Path, port: u16) -> Vec<String> {
    let client = format!("http://127.0.0.1:{port}");
    let peer = |port: &u16| format!("http://127.0.0.1:{port}");
    let all = peers.iter().enumerate();
    let all = all.map(|(number, port)| format!("member{number}={}", peer(port)));
    let (this, all) = (peer(&peers[number]), all.collect::<Vec<_>>().join(","));
    vec![
        "etcd".to_owned(),
        format!("--name=member{number}"),
        format!("--data-dir={}", directory.join("data").display()),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={this}"),
        format!("--initial-advertise-peer-urls={this}"),
        format!("--initial-cluster={all}"),
        "--logger=zap".to_owned(),
        // As with PostgreSQL.
        "--unsafe-no-fsync".to_owned(),
    ]
}

/// Returns the data of a new `PostgreSQL` cluster, to be copied: initdb(1) runs once for all servers.
#[cfg(feature = "postgres")]
fn initialized_cluster() -> &'static Path {
    static DATA: OnceLock<PathBuf> = OnceLock::new();

    DATA.get_or_init(|| {
        // The path has the version.
        let version = newest_postgres().display().to_string().replace('/', "-");
        let tests = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let cluster = tests.join(format!("initdb{version}"));
        if !cluster.exists() {
            let directory = tempfile::tempdir_in(tests).expect("there is room for a directory");
            open_to_all(directory.path());
            must_succeed(&[
                postgres_program("initdb"),
                "--no-sync".to_owned(),
                "--auth=trust".to_owned(),
                "--username=verrou".to_owned(),
                "--encoding=UTF8".to_owned(),
                "--locale=C".to_owned(),
                directory.path().join("data").display().to_string(),
            ]);
            // Fails if another process was faster.
            let _ = fs::rename(directory.path(), &cluster);
        }
        cluster.join("data")
    })
}

/// Lets the unprivileged user, as which `PostgreSQL` runs, write to `directory`.
fn open_to_all(directory: &Path) {
    if geteuid().is_root() {
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        fs::set_permissions(directory, open).expect("it is ours");
    }
}

/// Runs a short command, which must succeed.
#[cfg(feature = "postgres")]
fn must_succeed(words: &[String]) {
    let output = as_user(words).output().expect("it can be run");
    assert!(output.status.success(), "{words:?}: {output:?}");
}

/// Returns the command that starts `PostgreSQL` on the data in `directory`.
#[cfg(feature = "postgres")]
fn postgres_on(directory: &Path, port: u16, options: &[&str]) -> Vec<String> {
    let mut words = vec![postgres_program("postgres"), "-D".to_owned()];
    words.push(directory.join("data").display().to_string());
    words.extend(["-p".to_owned(), port.to_string()]);
    let sockets = format!("unix_socket_directories={}", directory.display());
    // The tests kill servers, never the kernel: what was written is there without fsync(2), for which a
    // busy disk takes longer than a request may last.
    let always = ["listen_addresses=127.0.0.1", "fsync=off", &sockets];
    for setting in always.iter().chain(options) {
        words.extend(["-c".to_owned(), (*setting).to_owned()]);
    }
    words
}

/// Returns the path of a program of `PostgreSQL`.
#[cfg(feature = "postgres")]
fn postgres_program(name: &str) -> String {
    newest_postgres().join(name).display().to_string()
}

/// Returns the directory of `PostgreSQL`'s programs: in `PATH`, or where Debian installs them.
#[cfg(feature = "postgres")]
fn newest_postgres() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Follow a link in `PATH` to the directory of all programs.
    let mut found =
        std::env::split_paths(&path).filter_map(|it| it.join("initdb").canonicalize().ok());
    if let Some(directory) = found
        .next()
        .and_then(|initdb| Some(initdb.parent()?.to_owned()))
    {
        return directory;
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
