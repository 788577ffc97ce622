//! A host of `wasi:keyvalue`, in memory, with an atomic compare-and-swap.
#![allow(unreachable_pub, reason = "the bindings need it")]

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use verrou_host::component::wasmtime::Result;
use verrou_host::component::wasmtime::component::{HasSelf, Linker, Resource, ResourceTable};

use self::bindings::wasi::keyvalue::atomics::{self, CasError};
use self::bindings::wasi::keyvalue::store::{self, Error};

mod bindings {
    verrou_host::component::wasmtime::component::bindgen!({
        wasmtime_crate: verrou_host::component::wasmtime,
        inline: "
            package verrou:host-of-keyvalue;
            world imports { import wasi:keyvalue/atomics@0.2.0-draft2; }
        ",
        path: "../examples/provider-keyvalue/wit/deps/keyvalue.wit",
        imports: { default: trappable },
        with: {
            "wasi:keyvalue/store.bucket": super::Bucket,
            "wasi:keyvalue/atomics.cas": super::Look,
        },
    });
}

/// A bucket, which any number of instances share.
#[derive(Clone, Default)]
pub struct Bucket(Arc<Mutex<Values>>);

#[derive(Default)]
struct Values {
    by_key: HashMap<String, Value>,
    swaps: u64,
    before_swap: Option<Box<dyn FnOnce() + Send>>,
    trouble: Option<Error>,
}

#[derive(Clone)]
struct Value {
    /// The number of the swap that set the value.
    version: u64,
    bytes: Vec<u8>,
}

impl Bucket {
    pub(crate) fn set(&self, key: &str, text: &str) {
        let mut values = self.0.lock().unwrap();
        values.swaps += 1;
        let (version, bytes) = (values.swaps, text.into());
        values
            .by_key
            .insert(key.to_owned(), Value { version, bytes });
    }

    pub(crate) fn get(&self, key: &str) -> Option<String> {
        let values = self.0.lock().unwrap();
        let value = values.by_key.get(key)?;
        Some(String::from_utf8(value.bytes.clone()).unwrap())
    }

    /// Calls `what` once, between a client's read of a value and its swap.
    pub(crate) fn before_swap(&self, what: impl FnOnce() + Send + 'static) {
        self.0.lock().unwrap().before_swap = Some(Box::new(what));
    }

    /// Makes opening the bucket fail with `trouble`, or succeed again.
    pub(crate) fn trouble(&self, trouble: Option<Error>) {
        self.0.lock().unwrap().trouble = trouble;
    }

    fn look(&self, key: String) -> Look {
        let seen = self.0.lock().unwrap().by_key.get(&key).cloned();
        let bucket = self.clone();
        Look { bucket, key, seen }
    }
}

pub(crate) use store::Error as Trouble;

/// A key's value as it was read.
pub struct Look {
    bucket: Bucket,
    key: String,
    seen: Option<Value>,
}

impl Look {
    /// Sets the value if it has not changed since it was read.
    fn swap(&self, bytes: Vec<u8>) -> bool {
        let first = self.bucket.0.lock().unwrap().before_swap.take();
        if let Some(first) = first {
            first();
        }
        let mut values = self.bucket.0.lock().unwrap();
        let version = |value: &Value| value.version;
        if values.by_key.get(&self.key).map(version) != self.seen.as_ref().map(version) {
            return false;
        }
        values.swaps += 1;
        let version = values.swaps;
        values
            .by_key
            .insert(self.key.clone(), Value { version, bytes });
        true
    }
}

/// The bucket and the handles of one instance.
pub struct Host {
    bucket: Bucket,
    handles: ResourceTable,
}

impl Host {
    pub(crate) fn new(bucket: Bucket) -> Self {
        let handles = ResourceTable::new();
        Self { bucket, handles }
    }
}

pub(crate) fn add_to_linker<T: 'static>(
    linker: &mut Linker<T>,
    host: fn(&mut T) -> &mut Host,
) -> Result<()> {
    bindings::Imports::add_to_linker::<_, HasSelf<Host>>(linker, host)
}

impl store::Host for Host {
    fn open(&mut self, name: String) -> Result<Result<Resource<Bucket>, Error>> {
        if name != "default" {
            return Ok(Err(Error::NoSuchStore));
        }
        if let Some(trouble) = self.bucket.0.lock().unwrap().trouble.clone() {
            return Ok(Err(trouble));
        }
        Ok(Ok(self.handles.push(self.bucket.clone())?))
    }
}

impl store::HostBucket for Host {
    fn drop(&mut self, bucket: Resource<Bucket>) -> Result<()> {
        self.handles.delete(bucket)?;
        Ok(())
    }
}

impl atomics::Host for Host {
    fn swap(&mut self, cas: Resource<Look>, bytes: Vec<u8>) -> Result<Result<(), CasError>> {
        let look = self.handles.delete(cas)?;
        if look.swap(bytes) {
            return Ok(Ok(()));
        }
        let again = look.bucket.look(look.key.clone());
        Ok(Err(CasError::CasFailed(self.handles.push(again)?)))
    }
}

impl atomics::HostCas for Host {
    fn new(
        &mut self,
        bucket: Resource<Bucket>,
        key: String,
    ) -> Result<Result<Resource<Look>, Error>> {
        let look = self.handles.get(&bucket)?.look(key);
        Ok(Ok(self.handles.push(look)?))
    }

    fn current(&mut self, cas: Resource<Look>) -> Result<Result<Option<Vec<u8>>, Error>> {
        let seen = &self.handles.get(&cas)?.seen;
        Ok(Ok(seen.as_ref().map(|value| value.bytes.clone())))
    }

    fn drop(&mut self, cas: Resource<Look>) -> Result<()> {
        self.handles.delete(cas)?;
        Ok(())
    }
}
