//! A TCP proxy between a client and a server, whose connections can be cut.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// A proxy to a port of this machine, as long as the test runs.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    state: Arc<ProxyState>,
}

#[derive(Default)]
struct ProxyState {
    /// Whether the next answer is dropped, and its connection cut.
    swallows: AtomicBool,
    /// Whether new connections are refused.
    is_cut: AtomicBool,
    connections: Mutex<Vec<TcpStream>>,
    open: AtomicUsize,
    most: AtomicUsize,
}

impl Proxy {
    pub(crate) fn to(server: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let port = listener.local_addr().expect("it has an address").port();
        let state = Arc::new(ProxyState::default());
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if shared.is_cut.load(Ordering::SeqCst) {
                    continue;
                }
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)) else {
                    continue;
                };
                shared.connect(client, server);
            }
        });
        Self { port, state }
    }

    /// Drops the next answer and cuts its connection, after the server has executed the request.
    pub(crate) fn lose_the_next_answer(&self) {
        self.state.swallows.store(true, Ordering::SeqCst);
    }

    /// Cuts all connections.
    pub(crate) fn cut(&self) {
        for connection in self.state.connections.lock().unwrap().drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// Cuts all connections, and lets no new one through until [`reopen`](Self::reopen).
    pub(crate) fn cut_for_good(&self) {
        self.state.is_cut.store(true, Ordering::SeqCst);
        self.cut();
    }

    pub(crate) fn reopen(&self) {
        self.state.is_cut.store(false, Ordering::SeqCst);
    }

    /// Returns the greatest number of connections that were open at one time.
    pub(crate) fn most_connections(&self) -> usize {
        self.state.most.load(Ordering::SeqCst)
    }
}

impl ProxyState {
    fn connect(self: &Arc<Self>, client: TcpStream, server: TcpStream) {
        let open = self.open.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(open, Ordering::SeqCst);
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        {
            let mut connections = self.connections.lock().unwrap();
            connections.extend([client.try_clone().unwrap(), server.try_clone().unwrap()]);
        }
        let (from_client, to_client) = (client.try_clone().unwrap(), client);
        let (from_server, to_server) = (server.try_clone().unwrap(), server);
        thread::spawn(move || pass(from_client, to_server, |_| true));
        let state = Arc::clone(self);
        thread::spawn(move || {
            let other = to_client.try_clone().unwrap();
            pass(from_server, to_client, |_| {
                !state.swallows.swap(false, Ordering::SeqCst)
            });
            let _ = other.shutdown(Shutdown::Both);
            state.open.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

/// Forwards bytes from one stream to the other, as long as `goes_on` returns true.
fn pass(mut from: TcpStream, mut to: TcpStream, goes_on: impl Fn(&[u8]) -> bool) {
    let mut bytes = [0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut bytes) {
        if !goes_on(&bytes[..length]) || to.write_all(&bytes[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
