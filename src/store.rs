//! What a backend is: the one boundary between this crate and the world.

use alloc::string::String;
use alloc::sync::Arc;
use core::fmt;
use core::future::{self, Future};
use core::time::Duration;

use crate::claim::{Claim, Fence};
use crate::name::Name;
use crate::printable::Printable;

/// A place where leases are recorded, each by one atomic step.
///
/// The steps on one name have one order that all clients of the store agree on. A name is *free*
/// when it has no record, or one whose time has passed (it has passed from the instant it ends).
///
/// A reply is a fact, an error is the lack of one: after an error the step may or may not have
/// been taken, except where it says otherwise. Someone else holding the lock is a reply, never an
/// error.
pub trait Store {
    /// Records `claim` if its name is free.
    ///
    /// Afterwards the name is `claim.owner`'s for `claim.ttl`, under a [`Fence`] greater than any
    /// it was ever held under. If `claim.owner` holds it already, this is the retry of a request
    /// whose reply was lost: the record lasts `claim.ttl` from now and keeps its fence.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the store cannot tell. The claim may have been recorded all the same;
    /// asking again, or releasing, with the same owner is safe.
    fn acquire(&self, claim: &Claim) -> Result<Reply, StoreError>;

    /// Lets the record that `claim.owner` holds last `claim.ttl` from now, under the same fence.
    ///
    /// Refused when that owner does not hold the name, or its time has passed.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the store cannot tell. The record lasts as long as it did before, or
    /// `claim.ttl`.
    fn extend(&self, claim: &Claim) -> Result<Reply, StoreError>;

    /// Renews the lease that `claim.owner` was granted under `fence`: its record lasts at least
    /// `claim.ttl` from now, under the same fence.
    ///
    /// A store with `revives` among its [`Abilities`] never shortens the record by a renewal. It also
    /// takes an expired record back, in the same atomic operation, unless the name was granted or freed
    /// since. A store without it does what [`extend`](Self::extend) does.
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
    /// Refused when that owner does not hold it, or its time has passed; the name may be free or
    /// another's then. Nothing of `claim.owner` is left in either case.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the store cannot tell. The name may have been freed all the same;
    /// asking again is safe, and may then be refused.
    fn release(&self, claim: &Claim) -> Result<Reply, StoreError>;

    /// Frees `name`, whoever holds it, or only if it is held under the fence `only`.
    ///
    /// Refused when nobody holds it, or it is held under another fence.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the store cannot tell, or, permanently, when its
    /// [`Abilities`] lack `evicts`; the latter changes nothing.
    fn evict(&self, name: &Name, only: Option<Fence>) -> Result<Reply, StoreError>;

    /// Who holds `name` now, if anyone does. Changes nothing.
    ///
    /// No part of the reply is an owner token: the token of a grant stays with the process that was
    /// granted it.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the store cannot tell.
    fn inspect(&self, name: &Name) -> Result<Option<Holder>, StoreError>;

    /// Returns whether the name is held under the grant of `claim.owner`, which had the fencing token
    /// `fence`. Changes nothing.
    ///
    /// The default compares fencing tokens. A store that grants none, but records owners, compares those.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the outcome is unknown. The default returns a permanent one if the name is held
    /// and either grant has no fencing token.
    fn holds(&self, claim: &Claim, fence: Option<Fence>) -> Result<bool, StoreError> {
        is_grant(self.inspect(&claim.name)?, fence)
    }

    /// Lets the record that `claim.owner` holds outlive the client that made it: from now on it
    /// ends by its ttl alone.
    ///
    /// Refused as [`extend`](Self::extend) is. The default is for stores without `ephemeral`
    /// among their [`Abilities`], whose records have always outlived their clients.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the store cannot tell; the record may have been detached all the same.
    fn detach(&self, claim: &Claim) -> Result<Reply, StoreError> {
        let _ = claim;
        Ok(Reply::Granted { fence: None })
    }

    /// Waits until `claim`, which was refused, may be granted, but at most `at_most`. Promises
    /// nothing.
    ///
    /// May end early for no reason, but not always: each return costs an attempt to acquire. A
    /// store that cannot wait says so at once, and the caller pauses by itself; that is the
    /// default.
    ///
    /// A store that serves those who wait in their order keeps a place for `claim.owner` from its
    /// first wait until it is granted the name, or [gives up](Self::give_up).
    fn wait(&self, claim: &Claim, at_most: Duration) -> Waited {
        let _ = (claim, at_most);
        Waited::Unable
    }

    /// Returns whether [`wait`](Self::wait) ends when the claim may be granted. The caller may then
    /// wait longer than its retry delay without a request in between. The default is `false`.
    fn notifies(&self) -> bool {
        false
    }

    /// Waits until the record that `claim.owner` holds may be gone before its time, or it
    /// [gives up](Self::give_up), but at most `at_most`. Promises nothing.
    ///
    /// The first call returns at once. From then on, until `claim.owner` gives up, nothing is
    /// missed that happens between two calls. A store that cannot tell says so at once; that is the
    /// default.
    fn lost(&self, claim: &Claim, at_most: Duration) -> Waited {
        let _ = (claim, at_most);
        Waited::Unable
    }

    /// Takes note that `claim.owner`, which has waited, does so no more: it keeps no place among
    /// those who do. Whoever waits calls this at the end, unless granted the name; a place whose
    /// client is gone ends by itself. Ends, too, its wait for a [loss](Self::lost).
    fn give_up(&self, claim: &Claim) {
        let _ = claim;
    }

    /// What this store can do that others cannot.
    fn abilities(&self) -> Abilities;
}

/// [`Store`], for backends whose steps are awaited. Each method means what it means there.
///
/// A future that is dropped half-way leaves its step in doubt, as an error does.
pub trait AsyncStore {
    /// [`Store::acquire`].
    fn acquire(&self, claim: &Claim) -> impl Future<Output = Result<Reply, StoreError>>;

    /// [`Store::extend`].
    fn extend(&self, claim: &Claim) -> impl Future<Output = Result<Reply, StoreError>>;

    /// Renews the lease; see [`Store::renew`].
    fn renew(
        &self,
        claim: &Claim,
        fence: Option<Fence>,
    ) -> impl Future<Output = Result<Renewed, StoreError>>;

    /// [`Store::release`].
    fn release(&self, claim: &Claim) -> impl Future<Output = Result<Reply, StoreError>>;

    /// [`Store::evict`].
    fn evict(
        &self,
        name: &Name,
        only: Option<Fence>,
    ) -> impl Future<Output = Result<Reply, StoreError>>;

    /// [`Store::inspect`].
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

    /// [`Store::detach`].
    fn detach(&self, claim: &Claim) -> impl Future<Output = Result<Reply, StoreError>> {
        let _ = claim;
        future::ready(Ok(Reply::Granted { fence: None }))
    }

    /// Ends when `claim`, which was refused, may be granted. The caller drops it after `at_most`,
    /// so it need not end by itself, and the default never does; being dropped, it leaves nothing
    /// behind but the place that [`Store::wait`] speaks of.
    fn wait(&self, claim: &Claim, at_most: Duration) -> impl Future<Output = ()> {
        let _ = (claim, at_most);
        future::pending()
    }

    /// Returns whether waits end by notification; see [`Store::notifies`].
    fn notifies(&self) -> bool {
        false
    }

    /// Ends when the record that `claim.owner` holds may be gone before its time; being dropped, it
    /// leaves nothing behind. The default never ends.
    fn lost(&self, claim: &Claim) -> impl Future<Output = ()> {
        let _ = claim;
        future::pending()
    }

    /// [`Store::give_up`], at once: this is called where nothing can be awaited.
    fn give_up(&self, claim: &Claim) {
        let _ = claim;
    }

    /// [`Store::abilities`].
    fn abilities(&self) -> Abilities;
}

/// What a store says to a request.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[expect(
    clippy::exhaustive_enums,
    reason = "a third answer would be a new contract"
)]
pub enum Reply {
    /// Done as asked.
    Granted {
        /// The grant's fencing token, when an acquisition was asked for and the store counts.
        fence: Option<Fence>,
    },
    /// Not done: the name is another's, or there is nothing to act on.
    Refused {
        /// For how long at most the name stays taken, as far as the store knows.
        remaining: Option<Duration>,
    },
}

impl Reply {
    /// Not done, and nothing is known about when it could be.
    pub const REFUSED: Self = Self::Refused { remaining: None };

    /// Whether it was done.
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

/// Returns the reply of a store whose renewal is an extension.
impl From<Reply> for Renewed {
    fn from(reply: Reply) -> Self {
        match reply {
            Reply::Granted { .. } => Self::Granted,
            Reply::Refused { .. } => Self::Lost,
        }
    }
}

/// Who holds a name.
#[derive(Clone, Debug, Eq, PartialEq)]
#[expect(clippy::exhaustive_structs, reason = "stores build it")]
pub struct Holder {
    /// The grant's fencing token, from a store that counts. It identifies the grant; the owner token,
    /// which can release the lock, is not told.
    pub fence: Option<Fence>,
    /// When it was granted, as time since the start of 1970 (UTC), from a store that knows.
    pub since: Option<Duration>,
    /// How long it will still be held unless extended; `None` when it does not end by itself.
    pub remaining: Option<Duration>,
    /// The process that asked for it, from a store that knows.
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
             store's ability `fences`)",
        )
    }
}

impl core::error::Error for NoFence {}

/// A process, as people recognise it.
#[derive(Clone, Debug, Eq, PartialEq)]
#[expect(clippy::exhaustive_structs, reason = "stores build it")]
pub struct Process {
    /// Its number on its machine.
    pub id: u32,
    /// The machine's name.
    pub host: String,
    /// Its label, shortened: the program that runs, or the purpose of the lock.
    pub command: String,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (host, command) = (Printable(&self.host), Printable(&self.command));
        write!(f, "process {} on {host} ({command})", self.id)
    }
}

/// How a [`Store::wait`] went.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(clippy::exhaustive_enums, reason = "either it waited or it did not")]
pub enum Waited {
    /// The store waited, and the name may be free now.
    Done,
    /// The store cannot wait, and has not.
    Unable,
}

/// What some stores can do and others cannot.
///
/// The conformance suite asserts each of these both ways: that the store does what it declares,
/// and that it does not do what it does not declare.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[expect(clippy::exhaustive_structs, reason = "stores build it")]
#[expect(
    clippy::struct_excessive_bools,
    reason = "abilities are independent of each other"
)]
pub struct Abilities {
    /// A record ends, and its name is free to all, when its ttl has passed.
    pub expires: bool,
    /// An ephemeral record ends, and its name is free to all, when its client is gone.
    pub ephemeral: bool,
    /// A lease can be extended and released by another client that knows its owner.
    pub transfers: bool,
    /// A holder can be evicted.
    pub evicts: bool,
    /// Grants carry a [`Fence`].
    pub fences: bool,
    /// A [renewal](Store::renew) never shortens a record, and takes back one whose ttl has passed.
    pub revives: bool,
}

/// A store that could not tell.
#[derive(Clone, Debug)]
pub struct StoreError {
    temporary: bool,
    source: Arc<dyn core::error::Error + Send + Sync>,
}

impl StoreError {
    /// An error that may go away by itself: asking again may help.
    pub fn temporary(
        source: impl Into<alloc::boxed::Box<dyn core::error::Error + Send + Sync>>,
    ) -> Self {
        Self {
            temporary: true,
            source: source.into().into(),
        }
    }

    /// An error that stays until somebody does something about it.
    pub fn permanent(
        source: impl Into<alloc::boxed::Box<dyn core::error::Error + Send + Sync>>,
    ) -> Self {
        Self {
            temporary: false,
            source: source.into().into(),
        }
    }

    /// What the backend said, for those who know its error types.
    pub fn get_ref(&self) -> &(dyn core::error::Error + Send + Sync + 'static) {
        &*self.source
    }

    /// Whether asking again may help.
    pub fn is_temporary(&self) -> bool {
        self.temporary
    }
}

/// The text of what the backend said.
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

/// Every method of [`Store`], as the store behind a pointer has it.
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
