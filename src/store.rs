//! The interface of a store: the only boundary between this crate and its backends.

use alloc::string::String;
use alloc::sync::Arc;
use core::fmt;
use core::future::{self, Future};
use core::time::Duration;

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
pub trait Store {
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
    fn acquire(&self, claim: &Claim) -> Result<Reply, StoreError>;

    /// Extends the lease of `claim.owner`: its record lasts `claim.ttl` from now, under the same fencing
    /// token.
    ///
    /// Refused when that owner does not hold the name, or its lease has expired.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the outcome is unknown. The record then lasts as long as before, or
    /// `claim.ttl`.
    fn extend(&self, claim: &Claim) -> Result<Reply, StoreError>;

    /// Renews the lease that `claim.owner` was granted under `fence`: its record lasts at least
    /// `claim.ttl` from now, under the same fencing token.
    ///
    /// A store with `revives` among its [`Abilities`] never shortens the record by a renewal. It also
    /// takes an expired record back, in the same atomic operation, unless the name was granted or freed
    /// since. A store without it renews as [`extend`](Self::extend) does.
    ///
    /// Only auto-renewal calls this. An expired lease without auto-renewal stays expired.
    ///
    /// # Errors
    ///
    /// Returns a [`StoreError`] when the outcome is unknown. The record then lasts as long as before,
    /// or `claim.ttl`.
    fn renew(&self, claim: &Claim, fence: Option<Fence>) -> Result<Renewed, StoreError>;

    /// Frees the name that `claim.owner` holds.
    ///
    /// Refused when that owner does not hold it, or its lease has expired; the name is then free, or held
    /// by another owner. In either case no record of `claim.owner` is left.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the outcome is unknown. The name may have been freed; a retry is safe, and may
    /// then be refused.
    fn release(&self, claim: &Claim) -> Result<Reply, StoreError>;

    /// Force-releases `name`: frees it regardless of its holder, or only if it is held under the fencing
    /// token `only`.
    ///
    /// Refused when it is free, or held under another fencing token.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the outcome is unknown; a permanent one, and nothing is changed, when the
    /// store's [`Abilities`] lack `evicts`.
    fn evict(&self, name: &Name, only: Option<Fence>) -> Result<Reply, StoreError>;

    /// Returns the current holder of `name`, if it is held. Changes nothing.
    ///
    /// The reply contains no owner token: the token of a grant stays with the process that was
    /// granted it.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the store cannot determine the holder.
    fn inspect(&self, name: &Name) -> Result<Option<Holder>, StoreError>;

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
        is_grant(self.inspect(&claim.name)?, fence)
    }

    /// Detaches the record of `claim.owner` from the client that made it: from now on it ends by its ttl
    /// alone.
    ///
    /// Refused in the same cases as [`extend`](Self::extend). The default is for stores without
    /// `ephemeral` among their [`Abilities`], whose records always outlive their clients.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the outcome is unknown; the record may have been detached.
    fn detach(&self, claim: &Claim) -> Result<Reply, StoreError> {
        let _ = claim;
        Ok(Reply::Granted { fence: None })
    }

    /// Waits until `claim`, which was refused, may be granted, but at most `at_most`. The end of the wait
    /// guarantees nothing.
    ///
    /// The wait may end early without a reason, but must not always: each return costs an attempt to
    /// acquire. A store that cannot wait returns [`Waited::Unable`] at once, and the caller sleeps
    /// instead; that is the default.
    ///
    /// A store with a wait queue keeps a ticket for `claim.owner` from its first wait until the name is
    /// granted to it, or the waiter [stops waiting](Self::give_up).
    fn wait(&self, claim: &Claim, at_most: Duration) -> Waited {
        let _ = (claim, at_most);
        Waited::Unable
    }

    /// Returns whether the store notifies waiters: [`wait`](Self::wait) ends when the claim may be granted.
    /// The caller may then wait longer than its retry delay without a request in between. The default is
    /// `false`.
    fn notifies(&self) -> bool {
        false
    }

    /// Waits until the record of `claim.owner` may have ended before its expiry, or the watch is
    /// [cancelled](Self::give_up), but at most `at_most`. The end of the wait guarantees nothing.
    ///
    /// The first call starts the watch, and returns at once. From then on, until the watch is cancelled, no
    /// loss between two calls is missed. A store that does not notify of losses returns
    /// [`Waited::Unable`] at once; that is the default.
    fn lost(&self, claim: &Claim, at_most: Duration) -> Waited {
        let _ = (claim, at_most);
        Waited::Unable
    }

    /// Removes `claim.owner`, which has stopped waiting, from the wait queue. A waiter calls this when it
    /// stops waiting without a grant; the ticket of a client that has ended is removed without a call.
    /// Also cancels the owner's watch for a [loss](Self::lost).
    fn give_up(&self, claim: &Claim) {
        let _ = claim;
    }

    /// Returns the capabilities of this store.
    fn abilities(&self) -> Abilities;
}

/// The async form of [`Store`]. Each method has the semantics of its counterpart there.
///
/// Dropping a future before its end leaves the outcome of its operation unknown, as an error does.
pub trait AsyncStore {
    /// Records `claim` if its name is free; see [`Store::acquire`].
    fn acquire(&self, claim: &Claim) -> impl Future<Output = Result<Reply, StoreError>>;

    /// Extends the lease; see [`Store::extend`].
    fn extend(&self, claim: &Claim) -> impl Future<Output = Result<Reply, StoreError>>;

    /// Renews the lease; see [`Store::renew`].
    fn renew(
        &self,
        claim: &Claim,
        fence: Option<Fence>,
    ) -> impl Future<Output = Result<Renewed, StoreError>>;

    /// Frees the name that `claim.owner` holds; see [`Store::release`].
    fn release(&self, claim: &Claim) -> impl Future<Output = Result<Reply, StoreError>>;

    /// Force-releases `name`; see [`Store::evict`].
    fn evict(
        &self,
        name: &Name,
        only: Option<Fence>,
    ) -> impl Future<Output = Result<Reply, StoreError>>;

    /// Returns the current holder of `name`; see [`Store::inspect`].
    fn inspect(&self, name: &Name) -> impl Future<Output = Result<Option<Holder>, StoreError>>;

    /// Returns whether the name is held under that grant; see [`Store::holds`].
    fn holds(
        &self,
        claim: &Claim,
        fence: Option<Fence>,
    ) -> impl Future<Output = Result<bool, StoreError>> {
        let holder = self.inspect(&claim.name);
        async move { is_grant(holder.await?, fence) }
    }

    /// Detaches the lease from its client; see [`Store::detach`].
    fn detach(&self, claim: &Claim) -> impl Future<Output = Result<Reply, StoreError>> {
        let _ = claim;
        future::ready(Ok(Reply::Granted { fence: None }))
    }

    /// Waits until `claim`, which was refused, may be granted. The caller drops the future after
    /// `at_most`, so it need not end by itself, and the default never does. Dropping it leaves nothing
    /// behind but the ticket of [`Store::wait`].
    fn wait(&self, claim: &Claim, at_most: Duration) -> impl Future<Output = ()> {
        let _ = (claim, at_most);
        future::pending()
    }

    /// Returns whether the store notifies waiters; see [`Store::notifies`].
    fn notifies(&self) -> bool {
        false
    }

    /// Waits until the record of `claim.owner` may have ended before its expiry. Dropping the future
    /// leaves nothing behind. The default never ends.
    fn lost(&self, claim: &Claim) -> impl Future<Output = ()> {
        let _ = claim;
        future::pending()
    }

    /// Removes `claim.owner` from the wait queue, as [`Store::give_up`]. This is not async, because it is
    /// called on drop.
    fn give_up(&self, claim: &Claim) {
        let _ = claim;
    }

    /// Returns the capabilities of this store; see [`Store::abilities`].
    fn abilities(&self) -> Abilities;
}

/// A store's reply to a request.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[expect(
    clippy::exhaustive_enums,
    reason = "a third answer would be a new contract"
)]
pub enum Reply {
    /// The operation was done.
    Granted {
        /// The grant's fencing token, in the reply to an acquire request, if the store counts grants.
        fence: Option<Fence>,
    },
    /// The operation was not done: another owner holds the name, or there is no record to act on.
    Refused {
        /// The maximum time for which the name stays held, if the store has recorded it.
        remaining: Option<Duration>,
    },
}

impl Reply {
    /// A refusal without a remaining time.
    pub const REFUSED: Self = Self::Refused { remaining: None };

    /// Returns whether the operation was done.
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

/// Converts the reply of a store whose renewal is an extension.
impl From<Reply> for Renewed {
    fn from(reply: Reply) -> Self {
        match reply {
            Reply::Granted { .. } => Self::Granted,
            Reply::Refused { .. } => Self::Lost,
        }
    }
}

/// The holder of a name.
#[derive(Clone, Debug, Eq, PartialEq)]
#[expect(clippy::exhaustive_structs, reason = "stores build it")]
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

/// Returns whether `holder` is the grant with the fencing token `fence`.
fn is_grant(holder: Option<Holder>, fence: Option<Fence>) -> Result<bool, StoreError> {
    let Some(holder) = holder else {
        return Ok(false);
    };
    match (holder.fence, fence) {
        (Some(held), Some(fence)) => Ok(held == fence),
        _ => Err(StoreError::permanent(NoFence)),
    }
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
#[expect(clippy::exhaustive_structs, reason = "stores build it")]
pub struct Process {
    /// The process id on its machine.
    pub id: u32,
    /// The machine's name.
    pub host: String,
    /// The process's label, shortened: the program that runs, or the purpose of the lock.
    pub command: String,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (host, command) = (Printable(&self.host), Printable(&self.command));
        write!(f, "process {} on {host} ({command})", self.id)
    }
}

/// The result of a [`Store::wait`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(clippy::exhaustive_enums, reason = "either it waited or it did not")]
pub enum Waited {
    /// The store waited, and the name may be free now.
    Done,
    /// The store cannot wait, and has not waited.
    Unable,
}

/// The capabilities of a store, which some stores have and others lack.
///
/// The conformance suite asserts each of these both ways: that the store has each capability it declares,
/// and lacks each it does not declare.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[expect(clippy::exhaustive_structs, reason = "stores build it")]
#[expect(
    clippy::struct_excessive_bools,
    reason = "capabilities are independent of each other"
)]
pub struct Abilities {
    /// A record ends, and its name is free to all clients, when its ttl has passed.
    pub expires: bool,
    /// An ephemeral record ends, and its name is free to all clients, when its client has ended.
    pub ephemeral: bool,
    /// Another client that has the owner token can extend and release the lease.
    pub transfers: bool,
    /// A lock can be force-released.
    pub evicts: bool,
    /// Grants carry a [`Fence`].
    pub fences: bool,
    /// A [renewal](Store::renew) never shortens a record, and takes back an expired one.
    pub revives: bool,
}

/// The error of a store operation whose outcome is unknown, or that the store cannot perform.
#[derive(Clone, Debug)]
pub struct StoreError {
    temporary: bool,
    source: Arc<dyn core::error::Error + Send + Sync>,
}

impl StoreError {
    /// Returns a temporary error: a retry may succeed.
    pub fn temporary(
        source: impl Into<alloc::boxed::Box<dyn core::error::Error + Send + Sync>>,
    ) -> Self {
        Self {
            temporary: true,
            source: source.into().into(),
        }
    }

    /// Returns a permanent error: it remains until its cause is fixed.
    pub fn permanent(
        source: impl Into<alloc::boxed::Box<dyn core::error::Error + Send + Sync>>,
    ) -> Self {
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

/// Implements every method of [`Store`] for a pointer, by a call of the store behind it.
macro_rules! forward_store {
    () => {
        fn acquire(&self, claim: &Claim) -> Result<Reply, StoreError> {
            (**self).acquire(claim)
        }
        fn extend(&self, claim: &Claim) -> Result<Reply, StoreError> {
            (**self).extend(claim)
        }
        fn renew(&self, claim: &Claim, fence: Option<Fence>) -> Result<Renewed, StoreError> {
            (**self).renew(claim, fence)
        }
        fn release(&self, claim: &Claim) -> Result<Reply, StoreError> {
            (**self).release(claim)
        }
        fn evict(&self, name: &Name, only: Option<Fence>) -> Result<Reply, StoreError> {
            (**self).evict(name, only)
        }
        fn inspect(&self, name: &Name) -> Result<Option<Holder>, StoreError> {
            (**self).inspect(name)
        }
        fn holds(&self, claim: &Claim, fence: Option<Fence>) -> Result<bool, StoreError> {
            (**self).holds(claim, fence)
        }
        fn detach(&self, claim: &Claim) -> Result<Reply, StoreError> {
            (**self).detach(claim)
        }
        fn wait(&self, claim: &Claim, at_most: Duration) -> Waited {
            (**self).wait(claim, at_most)
        }
        fn notifies(&self) -> bool {
            (**self).notifies()
        }
        fn lost(&self, claim: &Claim, at_most: Duration) -> Waited {
            (**self).lost(claim, at_most)
        }
        fn give_up(&self, claim: &Claim) {
            (**self).give_up(claim);
        }
        fn abilities(&self) -> Abilities {
            (**self).abilities()
        }
    };
}

impl<S: Store + ?Sized> Store for &S {
    forward_store!();
}

impl<S: Store + ?Sized> Store for Arc<S> {
    forward_store!();
}

impl<S: AsyncStore + ?Sized> AsyncStore for Arc<S> {
    fn acquire(&self, claim: &Claim) -> impl Future<Output = Result<Reply, StoreError>> {
        (**self).acquire(claim)
    }
    fn extend(&self, claim: &Claim) -> impl Future<Output = Result<Reply, StoreError>> {
        (**self).extend(claim)
    }
    fn renew(
        &self,
        claim: &Claim,
        fence: Option<Fence>,
    ) -> impl Future<Output = Result<Renewed, StoreError>> {
        (**self).renew(claim, fence)
    }
    fn release(&self, claim: &Claim) -> impl Future<Output = Result<Reply, StoreError>> {
        (**self).release(claim)
    }
    fn evict(
        &self,
        name: &Name,
        only: Option<Fence>,
    ) -> impl Future<Output = Result<Reply, StoreError>> {
        (**self).evict(name, only)
    }
    fn inspect(&self, name: &Name) -> impl Future<Output = Result<Option<Holder>, StoreError>> {
        (**self).inspect(name)
    }
    fn holds(
        &self,
        claim: &Claim,
        fence: Option<Fence>,
    ) -> impl Future<Output = Result<bool, StoreError>> {
        (**self).holds(claim, fence)
    }
    fn detach(&self, claim: &Claim) -> impl Future<Output = Result<Reply, StoreError>> {
        (**self).detach(claim)
    }
    fn wait(&self, claim: &Claim, at_most: Duration) -> impl Future<Output = ()> {
        (**self).wait(claim, at_most)
    }
    fn notifies(&self) -> bool {
        (**self).notifies()
    }
    fn lost(&self, claim: &Claim) -> impl Future<Output = ()> {
        (**self).lost(claim)
    }
    fn give_up(&self, claim: &Claim) {
        (**self).give_up(claim);
    }
    fn abilities(&self) -> Abilities {
        (**self).abilities()
    }
}
