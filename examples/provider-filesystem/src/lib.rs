//! A store for the lock component over `wasi:filesystem`: locks as hard links in the preopened directory `locks`.
//! `verrou-hard-links` has the protocol, which `verrou run --store wasi:DIR` follows, too; this component performs
//! its file operations, and converts types.

mod directory;
mod failure;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use ::verrou::{Acquired, Claim, Fence, Holder, InvalidOwner, Name, Owner, Renewed, Ttl};
use directory::Directory;
use exports::verrou::lock::store::{
    self as wit, Capabilities, FencingToken, Guest, GuestWaiter, Mode, StoreError, StoreErrorCode,
    Waiter,
};
use verrou_hard_links::{LockDirectory, Moment, OperationError, Settings, lock_directory_name};
use wasip2::clocks::wall_clock;
use wasip2::io::poll::Pollable;

use crate::failure::FileFailure;
use crate::verrou::lock::types;

wit_bindgen::generate!({
    inline: "
        package example:provider;

        world provider {
          include verrou:lock/store-provider@0.1.0;
        }
    ",
    path: "../../wit",
    with: { "wasi:io/poll@0.2.0": wasip2::io::poll },
    generate_all,
});
export!(Provider);

struct Provider;

/// The store's directory, and its settings.
struct Store {
    directory: Directory,
    settings: Settings,
}

thread_local! {
    static STORE: RefCell<Option<Rc<Store>>> = const { RefCell::new(None) };
}

/// Returns the store; opens it at the first call.
fn store() -> Result<Rc<Store>, StoreError> {
    STORE.with_borrow_mut(|opened| {
        if let Some(store) = opened {
            return Ok(Rc::clone(store));
        }
        let directory = Directory::preopened()?;
        let settings =
            verrou_hard_links::open(&directory).map_err(|err| failure::of(&directory, err))?;
        let store = Rc::new(Store {
            directory,
            settings,
        });
        Ok(Rc::clone(opened.insert(store)))
    })
}

/// Does an operation in the directory of the lock `name`; returns `None` if there is none, and `create` is not set.
fn operate<T>(
    name: &Name,
    create: bool,
    operation: impl FnOnce(&LockDirectory<'_, Directory>) -> Result<T, OperationError<FileFailure>>,
) -> Result<Option<T>, StoreError> {
    let store = store()?;
    let Some(directory) = store.directory.below(&lock_directory_name(name), create)? else {
        return Ok(None);
    };
    let now = wall_clock::now();
    let moment = Moment {
        now: Duration::new(now.seconds, now.nanoseconds),
        skew: store.settings.skew,
    };
    let done = operation(&LockDirectory::new(&directory, name, moment));
    done.map(Some).map_err(|err| failure::of(&directory, err))
}

fn name(name: &str) -> Result<Name, StoreError> {
    Name::new(name).map_err(|err| failure::invalid(err.to_string()))
}

fn claim(claim: &wit::Claim) -> Result<Claim, StoreError> {
    let Mode::Exclusive = claim.mode else {
        return Err(failure::permanent(
            StoreErrorCode::Unsupported,
            "this store has exclusive locks only".to_owned(),
        ));
    };
    let owner: Owner = claim
        .owner
        .parse()
        .map_err(|err: InvalidOwner| failure::invalid(err.to_string()))?;
    let ttl = Ttl::try_from(claim.ttl.map(Duration::from_nanos));
    let ttl = ttl.map_err(|err| failure::invalid(err.to_string()))?;
    Ok(Claim::new(name(&claim.name)?, owner, ttl))
}

fn nanos(length: Duration) -> u64 {
    u64::try_from(length.as_nanos()).unwrap_or(u64::MAX)
}

fn holder(holder: Holder) -> wit::Holder {
    wit::Holder {
        fencing_token: holder.fence.map(Fence::get),
        mode: Mode::Exclusive,
        remaining: holder.remaining.map(nanos),
        since: holder.since.map(nanos),
        process: holder.process.map(|process| types::Process {
            id: process.id,
            host: process.host,
            command: process.command,
        }),
        detached: false,
    }
}

/// The place in a wait queue, which this store does not have.
enum NoWaiter {}

impl GuestWaiter for NoWaiter {
    fn subscribe(&self) -> Pollable {
        match *self {}
    }
}

impl Guest for Provider {
    type Waiter = NoWaiter;

    fn acquire(asked: wit::Claim) -> Result<wit::Acquired, StoreError> {
        let claim = claim(&asked)?;
        let acquired = operate(&claim.name, true, |lock| lock.acquire(&claim, None))?;
        Ok(match acquired.unwrap_or(Acquired::BUSY) {
            Acquired::Granted { fence } => wit::Acquired::Granted(fence.map(Fence::get)),
            Acquired::Busy { remaining } => wit::Acquired::Busy(remaining.map(nanos)),
        })
    }

    fn extend(asked: wit::Claim) -> Result<bool, StoreError> {
        let claim = claim(&asked)?;
        let extended = operate(&claim.name, false, |lock| lock.extend(&claim))?;
        Ok(extended.unwrap_or(false))
    }

    fn renew(
        asked: wit::Claim,
        fencing_token: Option<FencingToken>,
    ) -> Result<wit::Renewed, StoreError> {
        let claim = claim(&asked)?;
        let fence = fencing_token.and_then(Fence::new);
        let renewed = operate(&claim.name, false, |lock| lock.renew(&claim, fence))?;
        Ok(match renewed.unwrap_or(Renewed::Lost) {
            Renewed::Granted => wit::Renewed::Granted,
            Renewed::Released => wit::Renewed::Released,
            Renewed::Lost => wit::Renewed::Lost,
        })
    }

    fn release(asked: wit::Claim) -> Result<bool, StoreError> {
        let claim = claim(&asked)?;
        let released = operate(&claim.name, false, |lock| lock.release(&claim))?;
        Ok(released.unwrap_or(false))
    }

    fn force_release(asked: String, only: Option<FencingToken>) -> Result<bool, StoreError> {
        let only = match only.map(Fence::new) {
            // No grant has the fencing token zero.
            Some(None) => return Ok(false),
            only => only.flatten(),
        };
        let released = operate(&name(&asked)?, false, |lock| lock.force_release(only))?;
        Ok(released.unwrap_or(false))
    }

    fn holders(asked: String) -> Result<Vec<wit::Holder>, StoreError> {
        let found = operate(&name(&asked)?, false, |lock| {
            Ok(lock.holder()?.into_iter().map(holder).collect())
        })?;
        Ok(found.unwrap_or_default())
    }

    /// Changes nothing, because no record is ephemeral.
    fn detach(_: wit::Claim) -> Result<bool, StoreError> {
        Ok(true)
    }

    fn get_capabilities() -> Capabilities {
        Capabilities::EXPIRES
            | Capabilities::TRANSFERS
            | Capabilities::FORCE_RELEASES
            | Capabilities::FENCES
            | Capabilities::REVIVES
    }

    fn join(_: wit::Claim) -> Option<Waiter> {
        None
    }
}
