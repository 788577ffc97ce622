//! The subcommands on locks that outlive the command: `acquire`, `extend`, `release`.

use std::env::{self, VarError};
use std::io;

use verrou::blocking::Host;
use verrou::{Clock, Error, SerializedLock, Store};
use verrou_host::System;

use crate::arguments::{AcquireOptions, Extend, GlobalOptions, Release, Serialized};
use crate::exit::Exit;
use crate::output::{self, Failure};
use crate::store;

/// The maximum length of a serialized lock in bytes: that of its name, and less than this for the rest.
const LONGEST: u64 = 64 * 1024;

/// Acquires a lock, prints it, and leaves it held.
pub(crate) fn acquire(global: &GlobalOptions, args: &AcquireOptions) -> Result<(), Failure> {
    let name = store::name(args.name.name())?;
    let (opened, retry) = store::open_to_take(global, &args.taking, "verrou acquire")?;
    if !opened.capabilities().transfers {
        let name = name.clone();
        return Err(Failure::from(Error::NotSerializable { name })
            .advising("use `verrou run`, which holds the lock itself, or a `lease:` store"));
    }
    store::with_lock(&opened, name, &args.taking, &retry, |lock, held| {
        // Print first: until the text is written, the lock must not outlive this process.
        if let Err(err) = output::print(&held.to_serialized().to_string()) {
            let failure = output::unwritten(&err);
            return Err(match held.release() {
                Ok(()) => failure.advising("the lock was released"),
                Err(err) => failure.advising(&output::chain(&err)),
            });
        }
        held.leave();
        lock.serialize().map_err(|err| {
            // The reader of the text may have released the lock already; otherwise release it now.
            let _ = lock.release();
            Failure::from(err)
        })?;
        Ok(())
    })
}

/// Extends a lease, and prints the lock with its new end.
pub(crate) fn extend(global: &GlobalOptions, args: &Extend) -> Result<(), Failure> {
    let serialized = read(&args.lock)?;
    let opened = open_for(global, &serialized)?;
    // The text may be older than the last extension, so the store decides whether the lease has expired.
    let (now, wall) = (System.now(), System.wall_clock());
    let mut lease = serialized.lease(now, wall);
    let ttl = args.ttl.unwrap_or(serialized.ttl());
    let claim = lease.claim().clone().with_ttl(ttl);
    done(opened.extend(&claim), &serialized)?;
    lease.extend(ttl, now);
    let extended = SerializedLock::new(&lease, serialized.ttl(), now, wall);
    output::print(&extended.to_string()).map_err(|err| {
        output::unwritten(&err).advising("the lock was extended, and the old text still names it")
    })
}

/// Releases a lock.
pub(crate) fn release(global: &GlobalOptions, args: &Release) -> Result<(), Failure> {
    let serialized = read(&args.lock)?;
    let opened = open_for(global, &serialized)?;
    let lease = serialized.lease(System.now(), System.wall_clock());
    done(opened.release(lease.claim()), &serialized)
}

fn done(
    reply: Result<bool, verrou::StoreError>,
    serialized: &SerializedLock,
) -> Result<(), Failure> {
    if reply.map_err(Error::from)? {
        return Ok(());
    }
    let name = serialized.name().clone();
    Err(Failure::from(Error::NotOwner { name })
        .advising("it was released or force-released, or its lease has expired"))
}

/// Opens the store of `serialized`, if its locks can be serialized and the store exists.
fn open_for(
    global: &GlobalOptions,
    serialized: &SerializedLock,
) -> Result<verrou_host::AnyStore, Failure> {
    let name = serialized.name().clone();
    let url = store::url(global)?;
    match store::open_existing(global)? {
        Some(opened) if opened.capabilities().transfers => Ok(opened),
        None if url.scheme() != "file" => {
            Err(Failure::from(Error::NotOwner { name }).advising(&store::missing(&url)))
        }
        _ => Err(Failure::from(Error::NotSerializable { name })
            .advising("name the `lease:` store in which it was acquired")),
    }
}

/// Reads the serialized lock from the command line, standard input, or the environment.
fn read(lock: &Serialized) -> Result<SerializedLock, Failure> {
    let text = match lock.text.as_deref() {
        Some("-") => {
            let mut text = String::new();
            io::Read::read_to_string(&mut io::Read::take(io::stdin(), LONGEST), &mut text)
                .map_err(|err| {
                    Failure::new(
                        Exit::Usage,
                        format!("cannot read the lock from standard input: {err}"),
                    )
                })?;
            text
        }
        Some(text) => text.to_owned(),
        None => match env::var("VERROU_LOCK") {
            Ok(text) => text,
            Err(VarError::NotUnicode(_)) => {
                return Err(Failure::new(Exit::Usage, "VERROU_LOCK is not UTF-8"));
            }
            Err(VarError::NotPresent) => {
                return Err(Failure::new(
                    Exit::Usage,
                    "no lock was given: write the text that `verrou acquire` printed, or `-` to read it \
                     from standard input, or set VERROU_LOCK",
                ));
            }
        },
    };
    Ok(text.trim().parse()?)
}
