//! The parts of WASI 0.2 that the example `cron-job` needs from its host.

use std::fs::File;
use std::future::pending;
use std::io::Write;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use verrou::blocking::Host;
use verrou::{Clock, async_trait};
use verrou_host::System;
use verrou_host::component::wasmtime;
use verrou_host::component::wasmtime::component::{
    ComponentType, HasData, Lift, Linker, Lower, Resource, ResourceTable, ResourceType,
};
use verrou_host::component::wasmtime::{Result, StoreContextMut};
use verrou_host::component::wasmtime_wasi_io::bindings::wasi::io::poll;
use verrou_host::component::wasmtime_wasi_io::poll::{Pollable, subscribe};

/// The arguments, the streams, the clock and the handles of a command.
pub(crate) struct Wasi {
    pub(crate) arguments: Vec<String>,
    /// Standard output and standard error.
    pub(crate) streams: [File; 2],
    /// Begins a wait for the clock. An error ends the command by a trap.
    pub(crate) sleep: Box<dyn FnMut(Duration) -> Result<Sleep> + Send>,
    pub(crate) handles: ResourceTable,
}

/// The state of a command, which has its [`Wasi`].
pub(crate) trait WasiView: Send + 'static {
    fn wasi(&mut self) -> &mut Wasi;
}

/// A wait for the clock.
pub(crate) enum Sleep {
    Until(Instant),
    Forever,
}

impl Sleep {
    pub(crate) fn for_length(length: Duration) -> Self {
        Self::Until(Instant::now() + length)
    }
}

#[async_trait]
impl Pollable for Sleep {
    async fn ready(&mut self) {
        match self {
            Self::Until(end) => sleep_until(*end).await,
            Self::Forever => pending().await,
        }
    }
}

/// The table with the pollables.
struct Pollables;

impl HasData for Pollables {
    type Data<'a> = &'a mut ResourceTable;
}

/// A handle of the stream with its number.
struct Stream;

/// The error of a failed stream operation, which never occurs.
struct IoError;

#[derive(ComponentType, Lift, Lower)]
#[component(variant)]
enum StreamError {
    #[component(name = "last-operation-failed")]
    Failed(Resource<IoError>),
    #[component(name = "closed")]
    Closed,
}

type Written = std::result::Result<(), StreamError>;

/// Links the imports of a command.
pub(crate) fn add_to_linker<T: WasiView>(linker: &mut Linker<T>) -> Result<()> {
    let mut environment = linker.instance("wasi:cli/environment@0.2.0")?;
    environment.func_wrap("get-arguments", |mut wasm: StoreContextMut<'_, T>, ()| {
        Ok((wasm.data_mut().wasi().arguments.clone(),))
    })?;
    for (number, name) in [(0, "stdout"), (1, "stderr")] {
        let mut stream = linker.instance(&format!("wasi:cli/{name}@0.2.0"))?;
        stream.func_wrap(&format!("get-{name}"), move |_, ()| {
            Ok((Resource::<Stream>::new_own(number),))
        })?;
    }
    let mut error = linker.instance("wasi:io/error@0.2.0")?;
    error.resource("error", ResourceType::host::<IoError>(), |_, _| Ok(()))?;

    let mut streams = linker.instance("wasi:io/streams@0.2.0")?;
    streams.resource("output-stream", ResourceType::host::<Stream>(), |_, _| {
        Ok(())
    })?;
    streams.func_wrap(
        "[method]output-stream.blocking-write-and-flush",
        |mut wasm: StoreContextMut<'_, T>, (stream, bytes): (Resource<Stream>, Vec<u8>)| {
            let streams = &mut wasm.data_mut().wasi().streams;
            let written = streams[stream.rep() as usize].write_all(&bytes);
            Ok((Written::from(written.map_err(|_| StreamError::Closed)),))
        },
    )?;

    let mut random = linker.instance("wasi:random/random@0.2.0")?;
    random.func_wrap("get-random-u64", |_, ()| {
        let [first, ..] = *System.random().as_chunks().0 else {
            unreachable!("there are two halves");
        };
        Ok((u64::from_le_bytes(first),))
    })?;

    let mut clock = linker.instance("wasi:clocks/monotonic-clock@0.2.0")?;
    clock.func_wrap("now", |_, ()| {
        Ok((crate::instances::nanos(System.now().since_start()),))
    })?;
    clock.func_wrap(
        "subscribe-duration",
        |mut wasm: StoreContextMut<'_, T>, (nanos,): (u64,)| {
            let wasi = wasm.data_mut().wasi();
            let sleep = (wasi.sleep)(Duration::from_nanos(nanos))?;
            let sleep = wasi.handles.push(sleep)?;
            Ok((subscribe(&mut wasi.handles, sleep)?,))
        },
    )?;
    poll::add_to_linker::<T, Pollables>(linker, |state| &mut state.wasi().handles)
}
