//! The parts of WASI 0.2 that the example `cron-job` needs from its host.

use std::fs::File;
use std::io::Write;
use std::thread;
use std::time::Duration;

use verrou::Clock;
use verrou::blocking::Host;
use verrou_host::System;
use verrou_host::component::wasmtime;
use verrou_host::component::wasmtime::component::{
    ComponentType, Lift, Linker, Lower, Resource, ResourceTable, ResourceType,
};
use verrou_host::component::wasmtime::{Result, StoreContextMut};

/// The arguments, the streams and the handles of a command.
pub(crate) struct Wasi {
    pub(crate) arguments: Vec<String>,
    /// Standard output and standard error.
    pub(crate) streams: [File; 2],
    pub(crate) handles: ResourceTable,
}

/// A handle of the stream with its number.
struct Stream;

/// The error of a failed stream operation, which never occurs.
struct IoError;

/// The length of a wait.
struct Pollable(Duration);

#[derive(ComponentType, Lift, Lower)]
#[component(variant)]
enum StreamError {
    #[component(name = "last-operation-failed")]
    Failed(Resource<IoError>),
    #[component(name = "closed")]
    Closed,
}

type Written = std::result::Result<(), StreamError>;

/// Links the imports of a command; `wasi` returns the [`Wasi`] in its state.
pub(crate) fn add_to_linker<T: 'static>(
    linker: &mut Linker<T>,
    wasi: fn(&mut T) -> &mut Wasi,
) -> Result<()> {
    let mut environment = linker.instance("wasi:cli/environment@0.2.0")?;
    environment.func_wrap(
        "get-arguments",
        move |mut wasm: StoreContextMut<'_, T>, ()| Ok((wasi(wasm.data_mut()).arguments.clone(),)),
    )?;
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
        move |mut wasm: StoreContextMut<'_, T>, (stream, bytes): (Resource<Stream>, Vec<u8>)| {
            let streams = &mut wasi(wasm.data_mut()).streams;
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
        move |mut wasm: StoreContextMut<'_, T>, (nanos,): (u64,)| {
            let handles = &mut wasi(wasm.data_mut()).handles;
            Ok((handles.push(Pollable(Duration::from_nanos(nanos)))?,))
        },
    )?;
    let mut poll = linker.instance("wasi:io/poll@0.2.0")?;
    poll.resource(
        "pollable",
        ResourceType::host::<Pollable>(),
        move |mut wasm, number| {
            let handles = &mut wasi(wasm.data_mut()).handles;
            handles.delete(Resource::<Pollable>::new_own(number))?;
            Ok(())
        },
    )?;
    poll.func_wrap(
        "[method]pollable.block",
        move |mut wasm: StoreContextMut<'_, T>, (pollable,): (Resource<Pollable>,)| {
            let Pollable(length) = *wasi(wasm.data_mut()).handles.get(&pollable)?;
            thread::sleep(length);
            Ok(())
        },
    )?;
    Ok(())
}
