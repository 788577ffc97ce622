//! A worker process that holds a lock.

use std::path::Path;
use std::process;
use std::thread;

use anyhow::{Context, Result, bail};
use verrou::blocking::Host;
use verrou_host::System;

use crate::store_call::{BoxedStore, Kind, Outcome, claim};

/// Runs `torture worker hold KIND DIRECTORY NAME TTL`: acquires the lock, prints its fencing token,
/// and holds it until the process ends.
pub(crate) fn hold(arguments: &[String]) -> Result<()> {
    let [kind, directory, name, ttl] = arguments else {
        bail!("KIND DIRECTORY NAME TTL");
    };
    let (store, _) = open_by_kind(kind, directory)?;
    let mine = claim(name, 0)?
        .with_owner(verrou::Owner::from_bytes(System.random()))
        .with_ttl(ttl.parse()?);
    let fence = Outcome::by(|| store.acquire(&mine)).granted()?;
    println!("held {fence} {}", process::id());
    loop {
        thread::park();
    }
}

pub(super) fn open_by_kind(kind: &str, directory: &str) -> Result<(BoxedStore, Kind)> {
    let kind = Kind::BOTH.into_iter().find(|it| it.to_string() == kind);
    let kind = kind.context("unknown kind of store")?;
    Ok((kind.open(Path::new(directory))?, kind))
}
