//! Lock servers on this machine, which run as long as this program.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::Result;

/// A running server, and its URL.
pub(crate) struct Server {
    process: Child,
    pub(crate) url: String,
}

impl Server {
    /// Starts Redis, without persistence.
    pub(crate) fn redis() -> Result<Self> {
        let port = free_port()?;
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string()]);
        command.args(["--save", "", "--appendonly", "no"]);
        Self::start(&mut command, format!("redis://127.0.0.1:{port}"), port)
    }

    /// Starts one member of etcd, which writes to `directory`.
    pub(crate) fn etcd(directory: &Path) -> Result<Self> {
        let (port, peers) = (free_port()?, free_port()?);
        let url = format!("http://127.0.0.1:{port}");
        let peers = format!("http://127.0.0.1:{peers}");
        let mut command = Command::new("etcd");
        command.arg("--data-dir").arg(directory.join("etcd"));
        command.args([
            "--listen-client-urls",
            &url,
            "--advertise-client-urls",
            &url,
        ]);
        command.args(["--listen-peer-urls", &peers]);
        command.args(["--initial-advertise-peer-urls", &peers]);
        command.args(["--initial-cluster", &format!("default={peers}")]);
        Self::start(&mut command, url, port)
    }

    fn start(command: &mut Command, url: String, port: u16) -> Result<Self> {
        let command = command.stdout(Stdio::null()).stderr(Stdio::null());
        let process = command
            .spawn()
            .map_err(|err| format!("{}: {err}", command.get_program().display()))?;
        let server = Self { process, url };
        let began = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            if began.elapsed() > Duration::from_secs(20) {
                return Err(format!("the server at {} does not answer", server.url).into());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?.port())
}
