//! The interface of a store: the only boundary between this crate and its backends.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use async_trait::async_trait;
use auto_impl::auto_impl;

use crate::claim::{Claim, Fence};
use crate::name::Name;
use crate::printable::Printable;

/// A backend that records leases by atomic operations.
///
/// The operations on one name are linearizable: they have one order, the same for all clients of the
/// store. A name is *free* when it has no record, or an expired one. A record expires at the instant
/// its ttl has passed.
///
/// After an error the outcome is unknown: the operation may or may not have taken effect, except where
/// a method states otherwise. A lock that is held by another owner is a reply, never an error.
///
/// A store has six required methods. The others are for stores that support more, as
/// [`capabilities`](Self::capabilities) declares. A store that changes only some methods of another one is a
/// [`StoreWrapper`](crate::StoreWrapper).
pub trait Store: fmt::Debug + Send + Sync {
    /// Records `claim` if its name is free.
    ///
    /// Afterwards `claim.owner` holds the name for `claim.ttl`, with a [`Fence`] greater than that of
    /// each earlier grant of the name. If `claim.owner` holds it already, this is the retry of a request
    /// whose reply was lost: the record lasts `claim.ttl` from now and keeps its fencing token.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the outcome is unknown. The claim may have been recorded; a retry, or a
    /// release, with the same owner is safe.
    fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError>;

    /// Extends the lease of `claim.owner`: its record lasts `claim.ttl` from now, under the same fencing
    /// token.
    ///
    /// Returns whether it was extended: `false` when that owner does not hold the name, or its lease has
    /// expired.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the outcome is unknown. The record then lasts as long as before, or
    /// `claim.ttl`.
    fn extend(&self, claim: &Claim) -> Result<bool, StoreError>;

    /// Frees the name that `claim.owner` holds.
    ///
    /// Returns whether that owner held it: `false` when its lease has expired, and the name is free or held
    /// by another owner. In either case no record of `claim.owner` is left.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the outcome is unknown. The name may have been freed; a retry is safe, and may
    /// then return `false`.
    fn release(&self, claim: &Claim) -> Result<bool, StoreError>;

    /// Force-releases `name`: frees it regardless of its holder, or only if it is held under the fencing
    /// token `only`.
    ///
    /// Returns whether a holder was removed: `false` when the name is free, or held under another fencing
    /// token.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the outcome is unknown; a permanent one, and nothing is changed, when the
    /// store's [`Capabilities`] lack `force_releases`.
    fn force_release(&self, name: &Name, only: Option<Fence>) -> Result<bool, StoreError>;

    /// Returns the current holders of `name`: none when it is free, and otherwise one, because every claim
    /// is exclusive. Changes nothing.
    ///
    /// The reply contains no owner token: the token of a grant stays with the process that was
    /// granted it.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the store cannot determine the holders.
    fn holders(&self, name: &Name) -> Result<Vec<Holder>, StoreError>;

    /// Returns the capabilities of this store, always the same.
    fn capabilities(&self) -> Capabilities;

    /// Renews the lease that `claim.owner` was granted under `fence`: its record lasts at least
    /// `claim.ttl` from now, under the same fencing token.
    ///
    /// A store with `revives` among its [`Capabilities`] never shortens the record by a renewal. It also
    /// takes an expired record back, in the same atomic operation, unless the name was granted or freed
    /// since. The default is for the other stores, which renew as [`extend`](Self::extend) does.
    ///
    /// Only auto-renewal calls this. An expired lease without auto-renewal stays expired.
    ///
    /// # Errors
    ///
    /// Returns a [`StoreError`] when the outcome is unknown. The record then lasts as long as before,
    /// or `claim.ttl`.
    fn renew(&self, claim: &Claim, fence: Option<Fence>) -> Result<Renewed, StoreError> {
        let _ = fence;
        self.extend(claim).map(Renewed::by_extension)
    }

    /// Returns whether the name is held under the grant of `claim.owner`, which had the fencing token
    /// `fence`. Changes nothing.
    ///
    /// The default compares fencing tokens. A store that grants none, but records owners, compares owners.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the outcome is unknown. The default returns a permanent one if the name is held
    /// and either grant has no fencing token.
    fn holds(&self, claim: &Claim, fence: Option<Fence>) -> Result<bool, StoreError> {
        is_among(&self.holders(&claim.name)?, fence)
    }

    /// Detaches the record of `claim.owner` from the client that made it: from now on it ends by its ttl
    /// alone.
    ///
    /// Returns whether that owner holds the name, as [`extend`](Self::extend) does. The default is for
    /// stores without `ephemeral` among their [`Capabilities`], whose records always outlive their clients.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the outcome is unknown; the record may have been detached.
    fn detach(&self, claim: &Claim) -> Result<bool, StoreError> {
        let _ = claim;
        Ok(true)
    }

    /// Returns the waiter of `claim`, which was not granted because the name was held; `None` when the
    /// store cannot wait, and the caller sleeps instead. That is the default.
    fn waiter<'s>(&'s self, claim: &Claim) -> Option<Box<dyn Waiter + 's>> {
        let _ = claim;
        None
    }

    /// Returns a watch for the loss of the lease of `claim.owner` before its expiry. From then on, no loss is
    /// missed. Returns `None` when the store cannot notify of losses, which is the default.
    fn watch<'s>(&'s self, claim: &Claim) -> Option<Box<dyn LossWatch + 's>> {
        let _ = claim;
        None
    }
}

/// A thread's wait for a lock, from the first attempt that was not granted until the grant, or the end of
/// the attempts.
///
/// In a store with a wait queue, this is a place in the queue: the store makes a ticket for the claim's owner
/// at the first wait. The ticket ends with the owner's grant, with its client, or when this value is dropped.
pub trait Waiter: Send {
    /// Waits until the claim may be granted, but at most `at_most`. The end of the wait guarantees nothing.
    ///
    /// The wait may end early without a reason, but must not always: each return costs an attempt to
    /// acquire.
    fn wait(&mut self, at_most: Duration);

    /// Returns whether the store notifies this waiter: [`wait`](Self::wait) ends when the claim may be
    /// granted. The caller may then wait longer than its retry delay without an attempt in between. The
    /// default is `false`.
    fn notifies(&self) -> bool {
        false
    }

    /// Ends the wait because the claim was granted. The default drops this value: in most stores the ticket
    /// has ended with the grant.
    fn granted(self: Box<Self>) {}
}

/// A watch for the loss of one lease before its expiry. Dropping it ends the watch.
pub trait LossWatch: Send + Sync {
    /// Waits until the record of the lease may have ended, or the watch is [cancelled](Self::cancel), but at
    /// most `at_most`. The end of the wait guarantees nothing.
    fn wait(&self, at_most: Duration);

    /// Ends the current [`wait`](Self::wait) of another thread, and all later ones at once.
    fn cancel(&self);
}

/// The async form of [`Store`]. Each method has the semantics of its counterpart there.
///
/// Dropping a future before its end leaves the outcome of its operation unknown, as an error does.
///
/// The futures are [`Send`] and boxed, so that any task can await them, and `dyn AsyncStore` is a store:
/// a program can choose one at run time. An implementation has the attribute
/// [`async_trait`](macro@async_trait).
#[async_trait]
#[auto_impl(&, Box, Arc)]
pub trait AsyncStore: fmt::Debug + Send + Sync {
    /// Records `claim` if its name is free; see [`Store::acquire`].
    async fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError>;

    /// Extends the lease, and returns whether it was extended; see [`Store::extend`].
    async fn extend(&self, claim: &Claim) -> Result<bool, StoreError>;

    /// Frees the name, and returns whether it was held; see [`Store::release`].
    async fn release(&self, claim: &Claim) -> Result<bool, StoreError>;

    /// Force-releases `name`, and returns whether it was held; see [`Store::force_release`].
    async fn force_release(&self, name: &Name, only: Option<Fence>) -> Result<bool, StoreError>;

    /// Returns the current holders of `name`; see [`Store::holders`].
    async fn holders(&self, name: &Name) -> Result<Vec<Holder>, StoreError>;

    /// Returns the capabilities of this store; see [`Store::capabilities`].
    fn capabilities(&self) -> Capabilities;

    /// Renews the lease; see [`Store::renew`].
    async fn renew(&self, claim: &Claim, fence: Option<Fence>) -> Result<Renewed, StoreError> {
        let _ = fence;
        self.extend(claim).await.map(Renewed::by_extension)
    }

    /// Returns whether the name is held under that grant; see [`Store::holds`].
    async fn holds(&self, claim: &Claim, fence: Option<Fence>) -> Result<bool, StoreError> {
        is_among(&self.holders(&claim.name).await?, fence)
    }

    /// Detaches the lease from its client; see [`Store::detach`].
    async fn detach(&self, claim: &Claim) -> Result<bool, StoreError> {
        let _ = claim;
        Ok(true)
    }

    /// Returns the waiter of `claim`; see [`Store::waiter`].
    fn waiter<'s>(&'s self, claim: &Claim) -> Option<Box<dyn AsyncWaiter + 's>> {
        let _ = claim;
        None
    }

    /// Returns a watch for the loss of the lease of `claim`; see [`Store::watch`].
    fn watch<'s>(&'s self, claim: &Claim) -> Option<Box<dyn AsyncLossWatch + 's>> {
        let _ = claim;
        None
    }
}

/// The async form of [`Waiter`].
#[async_trait]
pub trait AsyncWaiter: Send {
    /// Waits until the claim may be granted. The caller drops the future after `at_most`, so it need not end
    /// by itself. Dropping the future leaves nothing behind but the ticket of this waiter.
    async fn wait(&mut self, at_most: Duration);

    /// Returns whether the store notifies this waiter; see [`Waiter::notifies`].
    fn notifies(&self) -> bool {
        false
    }

    /// Ends the wait because the claim was granted; see [`Waiter::granted`].
    fn granted(self: Box<Self>) {}
}

/// The async form of [`LossWatch`]. Dropping it ends the watch.
#[async_trait]
pub trait AsyncLossWatch: Send {
    /// Waits until the record of the lease may have ended. Dropping the future loses no notification.
    async fn wait(&mut self);
}

/// The reply to a request to [acquire](Store::acquire).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[expect(
    clippy::exhaustive_enums,
    reason = "a third answer would be a new contract"
)]
pub enum Acquired {
    /// The claim was recorded.
    Granted {
        /// The grant's fencing token, if the store counts grants.
        fence: Option<Fence>,
    },
    /// Another owner holds the name.
    Busy {
        /// The maximum time for which the name stays held, if the store has recorded it.
        remaining: Option<Duration>,
    },
}

impl Acquired {
    /// The reply that another owner holds the name, for an unknown time.
    pub const BUSY: Self = Self::Busy { remaining: None };

    /// Returns whether the claim was recorded.
    pub const fn is_granted(self) -> bool {
        matches!(self, Self::Granted { .. })
    }
}

/// A store's reply to a [renewal](Store::renew).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[expect(
    clippy::exhaustive_enums,
    reason = "a fourth answer would be a new contract"
)]
pub enum Renewed {
    /// The record lasts at least as long as requested.
    Granted,
    /// The owner has released the lease itself, perhaps through another client. A store that cannot
    /// determine this returns [`Lost`](Self::Lost).
    Released,
    /// The name was granted to another owner, was force-released, or has no record to renew.
    Lost,
}

impl Renewed {
    /// Returns the reply of a store that renews by an extension, which was done or not.
    pub const fn by_extension(is_extended: bool) -> Self {
        if is_extended {
            Self::Granted
        } else {
            Self::Lost
        }
    }
}

/// The holder of a name. A store calls [`new`](Self::new), and sets the other fields that it has recorded.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Holder {
    /// The grant's fencing token, if the store counts grants. It identifies the grant; the owner token,
    /// which can release the lock, is not included.
    pub fence: Option<Fence>,
    /// The time of the grant since the start of 1970 (UTC), if the store records it.
    pub since: Option<Duration>,
    /// The remaining time of the lease, unless it is extended; `None` when it does not end by itself.
    pub remaining: Option<Duration>,
    /// The process that acquired the lock, if the store records it.
    pub process: Option<Process>,
    /// Whether the lease was [detached](Store::detach), so that `process` may have ended long ago. Set
    /// only by a store that binds leases to processes.
    pub detached: bool,
}

impl Holder {
    /// Returns the holder whose grant has the fencing token `fence`, and whose lease ends in `remaining`.
    pub fn new(fence: Option<Fence>, remaining: Option<Duration>) -> Self {
        Self {
            fence,
            remaining,
            ..Self::default()
        }
    }
}

/// Returns whether the grant with the fencing token `fence` is among `holders`.
fn is_among(holders: &[Holder], fence: Option<Fence>) -> Result<bool, StoreError> {
    let unknown = || StoreError::permanent(NoFence);
    let mut found = false;
    for holder in holders {
        found |= holder.fence.ok_or_else(unknown)? == fence.ok_or_else(unknown)?;
    }
    Ok(found)
}

/// The error of a comparison of two grants that lacks a fencing token.
#[derive(Debug)]
struct NoFence;

impl fmt::Display for NoFence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "cannot determine which acquisition holds the lock: a grant has no fencing token (the \
             store's capability `fences`)",
        )
    }
}

impl core::error::Error for NoFence {}

/// A human-readable description of a process.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Process {
    /// The process id on its machine.
    pub id: u32,
    /// The machine's name.
    pub host: String,
    /// The process's label, shortened: the program that runs, or the purpose of the lock.
    pub command: String,
}

impl Process {
    /// Returns the description of the process `id` on the machine `host`, with the label `command`.
    pub fn new(id: u32, host: impl Into<String>, command: impl Into<String>) -> Self {
        Self {
            id,
            host: host.into(),
            command: command.into(),
        }
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (host, command) = (Printable(&self.host), Printable(&self.command));
        write!(f, "process {} on {host} ({command})", self.id)
    }
}

/// The capabilities of a store, which some stores have and others lack.
///
/// A store begins with [`NONE`](Self::NONE) and sets those that it has, so that it lacks each one that a
/// later version adds.
///
/// The conformance suite asserts each of these both ways: that the store has each capability it declares,
/// and lacks each it does not declare.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
#[expect(
    clippy::struct_excessive_bools,
    reason = "capabilities are independent of each other"
)]
pub struct Capabilities {
    /// A record ends, and its name is free to all clients, when its ttl has passed.
    pub expires: bool,
    /// An ephemeral record ends, and its name is free to all clients, when its client has ended.
    pub ephemeral: bool,
    /// Another client that has the owner token can extend and release the lease.
    pub transfers: bool,
    /// A lock can be force-released.
    pub force_releases: bool,
    /// Grants carry a [`Fence`].
    pub fences: bool,
    /// A [renewal](Store::renew) never shortens a record, and takes back an expired one.
    pub revives: bool,
}

impl Capabilities {
    /// The capabilities of a store that has none.
    pub const NONE: Self = Self {
        expires: false,
        ephemeral: false,
        transfers: false,
        force_releases: false,
        fences: false,
        revives: false,
    };
}

/// The error of a store operation whose outcome is unknown, or that the store cannot perform.
#[derive(Clone, Debug)]
pub struct StoreError {
    temporary: bool,
    source: Arc<dyn core::error::Error + Send + Sync>,
}

impl StoreError {
    /// Returns a temporary error: a retry may succeed.
    pub fn temporary(source: impl Into<Box<dyn core::error::Error + Send + Sync>>) -> Self {
        Self {
            temporary: true,
            source: source.into().into(),
        }
    }

    /// Returns a permanent error: it remains until its cause is fixed.
    pub fn permanent(source: impl Into<Box<dyn core::error::Error + Send + Sync>>) -> Self {
        Self {
            temporary: false,
            source: source.into().into(),
        }
    }

    /// Returns the backend's error, for callers that can downcast it.
    pub fn get_ref(&self) -> &(dyn core::error::Error + Send + Sync + 'static) {
        &*self.source
    }

    /// Returns whether a retry may succeed.
    pub fn is_temporary(&self) -> bool {
        self.temporary
    }
}

/// Writes the text of the backend's error.
impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)
    }
}

impl core::error::Error for StoreError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        self.source.source()
    }
}
