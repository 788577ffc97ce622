//! Locks on etcd: each operation consists of transactions, which the members agree on.
//!
//! A lock is a range of keys, one for each owner that holds it or waits for it, ordered by the revisions
//! that created them. The holder is the owner of the first key, if that key has a record as its value; the
//! revision that created the key is the fencing token. A holder's key is attached to a lease of its own; the
//! keys of all waiters of one process are attached to one lease of that process. Each waiter watches the key
//! before its own.

#[expect(
    clippy::missing_errors_doc,
    missing_debug_implementations,
    missing_docs,
    reason = "for this crate, and for tests on servers: the names are those of the etcd API"
)]
pub mod client;
mod connect;
mod error;
mod queue;
mod record;
mod session;
mod transaction;
mod watch;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use scopeguard::ScopeGuard;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use verrou::blocking::Host;
use verrou::{
    Acquired, AsyncLossWatch, AsyncStore, AsyncWaiter, Capabilities, Claim, Fence, Holder, Name,
    Owner, StoreError, Ttl, async_trait,
};
use verrou_machine::{Listed, StoreOptions, System};

use self::client::messages::{Compare, CompareOp, KeyValue, Range, Txn, TxnOp};
use self::connect::checked_client;
use self::queue::{EtcdWaiter, RESERVATION};
use self::record::{EtcdRecord, as_json, record_of};
use self::session::EtcdShared;
use self::transaction::{first, found, none, revision};
use self::watch::Watch;
use crate::cancelled_acquire::CancelledRequests;
use crate::error::ServerError;
use crate::store::{
    About, CAPABILITIES, ServerStore, ServerWaiter, loss_watch, record_ttl, request_timeout, waiter,
};
use crate::url::ServerUrl;

/// Leases on etcd, version 3.4 or later.
///
/// Its operations run in the tokio runtime in which it was [connected](Self::connect). One connection to
/// each member serves all operations and all waiters. `host/servers/ETCD.md` lists its guarantees.
pub struct EtcdStore {
    shared: Arc<EtcdShared>,
    prefix: String,
    about: serde_json::Value,
    /// The leases of acquire requests whose outcome is unknown.
    attempts: Mutex<HashMap<Owner, Vec<i64>>>,
    cancelled: CancelledRequests,
}

/// The characters of a name that are percent-encoded in a key: `/`, which ends the name there, `%` and control
/// characters.
const SLASHES: &AsciiSet = &CONTROLS.add(b'/').add(b'%');

impl EtcdStore {
    /// Connects to the store at `url`, after checking that its server is usable.
    ///
    /// # Errors
    ///
    /// Returns [`ServerError`], which says what is wrong with the server, and what to do about it.
    pub async fn connect(url: &ServerUrl, options: &StoreOptions) -> Result<Self, ServerError> {
        let server = url.to_string();
        let late = |_| ServerError::Timeout {
            server: server.clone(),
            after: url.timeout(),
        };
        let mut prefix = url.option("prefix").unwrap_or_else(|| "verrou/".to_owned());
        if !prefix.ends_with('/') {
            prefix.push('/');
        }
        let client = timeout(url.timeout(), checked_client(url, &server, &prefix))
            .await
            .map_err(late)??;
        let about = serde_json::from_str(&About::this(options).to_json()).unwrap_or_default();
        Ok(Self {
            shared: Arc::new(EtcdShared {
                client,
                members: url.hosts().len(),
                server,
                timeout: url.timeout(),
                runtime: Handle::current(),
                tickets: Mutex::default(),
                presence: tokio::sync::Mutex::default(),
                lease_replaced: Notify::new(),
            }),
            prefix,
            about,
            attempts: Mutex::default(),
            cancelled: CancelledRequests::new(Handle::current()),
        })
    }

    /// Deletes the key that a dropped request may have written.
    fn release_cancelled(&self, claim: &Claim) {
        let (shared, key) = (Arc::clone(&self.shared), self.key(claim));
        self.cancelled
            .release_later(claim.owner, shared.timeout, move || {
                let (shared, delete) = (Arc::clone(&shared), TxnOp::delete(&*key));
                async move {
                    let delete = Txn::new().and_then([delete]);
                    let _ = shared.within(shared.timeout, shared.txn(delete)).await;
                }
            });
    }

    /// Returns the prefix of the keys of the holder of `name` and its waiters.
    fn range(&self, name: &Name) -> String {
        let name = utf8_percent_encode(name.as_str(), SLASHES);
        format!("{}{name}/", self.prefix)
    }

    fn key(&self, claim: &Claim) -> String {
        format!("{}{}", self.range(&claim.name), claim.owner)
    }

    /// Returns the name of the lock that the key belongs to.
    fn name_of(&self, key: &[u8]) -> Option<Name> {
        let key = str::from_utf8(key).ok()?;
        let (encoded, _) = key.strip_prefix(&self.prefix)?.split_once('/')?;
        Name::new(&percent_decode_str(encoded).decode_utf8().ok()?).ok()
    }

    fn attempts(&self) -> MutexGuard<'_, HashMap<Owner, Vec<i64>>> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, ttl: Ttl) -> EtcdRecord {
        EtcdRecord {
            ttl: ttl.duration().map(millis),
            since: millis(System.wall_clock()),
            about: self.about.clone(),
        }
    }

    /// Creates the etcd lease for a holder with `ttl`; returns 0 if the holder's lease does not expire.
    async fn lease_for(&self, ttl: Ttl) -> Result<i64, ServerError> {
        match record_ttl(ttl) {
            Some(ttl) => self.shared.grant(seconds(ttl)).await,
            None => Ok(0),
        }
    }

    async fn try_acquire(&self, claim: &Claim) -> Result<Acquired, ServerError> {
        let (range, key) = (self.range(&claim.name), self.key(claim));
        loop {
            let look = [first(&range), TxnOp::get(&*key)];
            let mut seen = found(&self.shared.txn(Txn::new().and_then(look)).await?);
            let (own, first) = (seen.pop().flatten(), seen.pop().flatten());
            let free = match (first, &own) {
                (None, _) => vec![none(&range)],
                (Some(first), Some(own)) if first.key == own.key => {
                    if let Some(record) = record_of(own) {
                        if self.renewed(claim, own, record).await? {
                            return Ok(granted(own.create_revision));
                        }
                        continue;
                    }
                    let made = own.create_revision;
                    // The ticket still exists, and is the first key.
                    vec![
                        Compare::create_revision(&*key, CompareOp::Equal, made),
                        Compare::create_revision(&*range, CompareOp::Greater, made - 1)
                            .with_prefix(),
                    ]
                }
                (Some(_), _) => return Ok(Acquired::BUSY),
            };
            let lease = self.lease_for(claim.ttl).await?;
            if lease != 0 {
                self.attempts().entry(claim.owner).or_default().push(lease);
            }
            let value = as_json(&self.record(claim.ttl));
            let put = TxnOp::put(&*key, value, lease);
            let taken = Txn::new().when(free).and_then([put]);
            let taken = self.shared.attach(lease, taken).await?;
            if let Some(taken) = taken.filter(|taken| taken.succeeded) {
                self.attempts().remove(&claim.owner);
                let made = own.map_or_else(|| revision(&taken), |own| own.create_revision);
                return Ok(granted(made));
            }
            self.revoke_attempts(claim).await;
        }
    }

    /// Extends the record of `claim` by its ttl from now. Returns false if the record has changed since it was
    /// read as `own`.
    async fn renewed(
        &self,
        claim: &Claim,
        own: &KeyValue,
        record: EtcdRecord,
    ) -> Result<bool, ServerError> {
        if record.ttl == claim.ttl.duration().map(millis) {
            return match own.lease {
                0 => Ok(true),
                lease => self.shared.keep_alive(lease).await,
            };
        }
        let lease = self.lease_for(claim.ttl).await?;
        let value = as_json(&EtcdRecord {
            ttl: claim.ttl.duration().map(millis),
            ..record
        });
        let unchanged = Compare::mod_revision(&*own.key, CompareOp::Equal, own.mod_revision);
        let put = TxnOp::put(&*own.key, value, lease);
        let moved = Txn::new().when([unchanged]).and_then([put]);
        let moved = self.shared.attach(lease, moved).await?;
        let is_moved = moved.is_some_and(|moved| moved.succeeded);
        self.shared
            .revoke(if is_moved { own.lease } else { lease })
            .await;
        Ok(is_moved)
    }

    async fn try_extend(&self, claim: &Claim) -> Result<bool, ServerError> {
        let key = self.key(claim);
        loop {
            let look = Txn::new().and_then([TxnOp::get(&*key)]);
            let own = found(&self.shared.txn(look).await?).pop().flatten();
            let Some((own, record)) = own.and_then(|own| record_of(&own).map(|it| (own, it)))
            else {
                return Ok(false);
            };
            if self.renewed(claim, &own, record).await? {
                return Ok(true);
            }
        }
    }

    async fn try_release(&self, claim: &Claim) -> Result<bool, ServerError> {
        let key = self.key(claim);
        let delete = Txn::new().and_then([TxnOp::get(&*key), TxnOp::delete(&*key)]);
        let own = found(&self.shared.txn(delete).await?).swap_remove(0);
        // A request that is still in flight then fails, because its lease is gone.
        self.revoke_attempts(claim).await;
        let Some(own) = own.filter(|own| record_of(own).is_some()) else {
            return Ok(false);
        };
        self.shared.revoke(own.lease).await;
        Ok(true)
    }

    async fn revoke_attempts(&self, claim: &Claim) {
        let leases = self.attempts().remove(&claim.owner);
        for lease in leases.into_iter().flatten() {
            self.shared.revoke(lease).await;
        }
    }

    async fn first_of(&self, name: &Name) -> Result<Option<KeyValue>, ServerError> {
        let look = Txn::new().and_then([first(&self.range(name))]);
        Ok(found(&self.shared.txn(look).await?).pop().flatten())
    }

    async fn try_evict(&self, name: &Name, only: Option<Fence>) -> Result<bool, ServerError> {
        let Some(held) = self.first_of(name).await? else {
            return Ok(false);
        };
        if only.is_none() && record_of(&held).is_none() {
            return self.skip_process(name, held).await;
        }
        let made = held.create_revision;
        let is_meant = only.is_none_or(|only| Some(only) == fence(made));
        if !is_meant || record_of(&held).is_none() {
            return Ok(false);
        }
        let unchanged = Compare::create_revision(&*held.key, CompareOp::Equal, made);
        let delete = TxnOp::delete(&*held.key);
        let freed = Txn::new().when([unchanged]).and_then([delete]);
        if !self.shared.txn(freed).await?.succeeded {
            return Ok(false);
        }
        self.shared.revoke(held.lease).await;
        Ok(true)
    }

    /// Returns the holder that the first key of a range describes, or `None` if the key is a waiter's.
    async fn holder(&self, first: &KeyValue) -> Result<Option<Holder>, ServerError> {
        let Some(record) = record_of(first) else {
            return Ok(None);
        };
        let remaining = match (first.lease, record.ttl) {
            (0, _) | (_, None) => None,
            (lease, Some(ttl)) => Some(self.remaining(lease, Duration::from_millis(ttl)).await?),
        };
        let mut holder = Holder::new(fence(first.create_revision), remaining);
        holder.since = Some(Duration::from_millis(record.since));
        holder.process = About::process_of(&record.about.to_string());
        Ok(Some(holder))
    }

    /// Returns the least time that the holder's lease, of `ttl`, still lasts.
    async fn remaining(&self, lease: i64, ttl: Duration) -> Result<Duration, ServerError> {
        let left = self
            .shared
            .asked(|client| async move { client.lease_time_to_live(lease, false).await });
        let left = left.await?;
        let whole = |seconds: i64| Duration::from_secs(seconds.try_into().unwrap_or(0));
        let longer = whole(left.granted_ttl).saturating_sub(ttl);
        let left = whole(left.ttl).saturating_sub(longer).min(ttl);
        Ok(left.max(Duration::from_millis(1)))
    }
}

#[async_trait]
impl ServerStore for EtcdStore {
    async fn list(&self) -> Result<Vec<Listed>, StoreError> {
        let shared = &self.shared;
        let asked = shared.within(shared.timeout, async {
            let got = shared
                .asked(|client| async move { client.range(Range::prefix(&*self.prefix)).await });
            got.await
        });
        let mut firsts = BTreeMap::<Name, KeyValue>::new();
        for found in asked.await?.kvs {
            let Some(name) = self.name_of(&found.key) else {
                continue;
            };
            let first = firsts.entry(name).or_insert_with(|| found.clone());
            if found.create_revision < first.create_revision {
                *first = found;
            }
        }
        let mut listed = Vec::new();
        for (name, first) in firsts {
            let described = shared.within(shared.timeout, self.holder(&first));
            if let Some(holder) = described.await? {
                listed.push(Ok((name, holder)));
            }
        }
        Ok(listed)
    }

    fn queue_waiter(&self, claim: &Claim) -> Box<dyn ServerWaiter> {
        Box::new(EtcdWaiter::new(
            &self.shared,
            self.range(&claim.name),
            self.key(claim),
        ))
    }

    async fn lost(&self, claim: &Claim) {
        const PAUSE: Duration = Duration::from_millis(100);

        let (shared, key) = (&self.shared, self.key(claim));
        let mut watch = None::<Watch>;
        loop {
            let look = Txn::new().and_then([TxnOp::get(&*key)]);
            let seen = shared.within(shared.timeout, shared.txn(look)).await;
            let Ok(seen) = seen else {
                // There is no event for the return of the server, so poll.
                sleep(PAUSE).await;
                continue;
            };
            let own = found(&seen).pop().flatten();
            let Some(own) = own.filter(|own| record_of(own).is_some()) else {
                return;
            };
            if let Some(begun) = &mut watch {
                if !begun.changed().await {
                    watch = None;
                }
                continue;
            }
            // The next read notices an event before the watch began.
            match shared.watch(&own.key).await {
                Ok(begun) => watch = Some(begun),
                Err(_) => sleep(PAUSE).await,
            }
        }
    }
}

#[async_trait]
impl AsyncStore for EtcdStore {
    async fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
        self.cancelled.stop(&claim.owner).await;
        let limit = request_timeout(self.shared.timeout, claim);
        let guard = scopeguard::guard((), |()| self.release_cancelled(claim));
        let reply = self.shared.within(limit, self.try_acquire(claim)).await;
        ScopeGuard::into_inner(guard);
        Ok(reply?)
    }

    async fn extend(&self, claim: &Claim) -> Result<bool, StoreError> {
        let limit = request_timeout(self.shared.timeout, claim);
        let extended = self.shared.within(limit, self.try_extend(claim));
        Ok(extended.await?)
    }

    async fn release(&self, claim: &Claim) -> Result<bool, StoreError> {
        let limit = request_timeout(self.shared.timeout, claim);
        let guard = scopeguard::guard((), |()| self.release_cancelled(claim));
        let released = self.shared.within(limit, self.try_release(claim)).await;
        ScopeGuard::into_inner(guard);
        Ok(released?)
    }

    async fn force_release(&self, name: &Name, only: Option<Fence>) -> Result<bool, StoreError> {
        let limit = self.shared.timeout + RESERVATION;
        let evicted = self.shared.within(limit, self.try_evict(name, only));
        Ok(evicted.await?)
    }

    async fn holders(&self, name: &Name) -> Result<Vec<Holder>, StoreError> {
        let found = self.shared.within(self.shared.timeout, async {
            match self.first_of(name).await? {
                Some(first) => self.holder(&first).await,
                None => Ok(None),
            }
        });
        Ok(found.await?.into_iter().collect())
    }

    async fn holds(&self, claim: &Claim, _fence: Option<Fence>) -> Result<bool, StoreError> {
        let shared = &self.shared;
        let first = shared.within(shared.timeout, self.first_of(&claim.name));
        let first = first.await?;
        // A holder's key ends with its owner.
        Ok(first.is_some_and(|first| {
            first.key == self.key(claim).as_bytes() && record_of(&first).is_some()
        }))
    }

    fn waiter<'s>(&'s self, claim: &Claim) -> Option<Box<dyn AsyncWaiter + 's>> {
        Some(waiter(self, claim))
    }

    fn watch<'s>(&'s self, claim: &Claim) -> Option<Box<dyn AsyncLossWatch + 's>> {
        Some(loss_watch(self, claim))
    }

    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }
}

impl Drop for EtcdStore {
    fn drop(&mut self) {
        // If it is locked, the task is running, and ends because there are no tickets.
        if let Ok(presence) = self.shared.presence.try_lock()
            && let Some(presence) = &*presence
        {
            presence.task.abort();
        }
    }
}

impl fmt::Debug for EtcdStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdStore")
            .field("server", &self.shared.server)
            .finish_non_exhaustive()
    }
}

fn fence(made: i64) -> Option<Fence> {
    u64::try_from(made).ok().and_then(Fence::new)
}

fn granted(made: i64) -> Acquired {
    Acquired::Granted { fence: fence(made) }
}

fn millis(length: Duration) -> u64 {
    length.as_millis().try_into().unwrap_or(u64::MAX)
}

/// Returns a length in whole seconds, rounded up.
fn seconds(length: Duration) -> i64 {
    // The longest lease that etcd accepts.
    const LONGEST: u64 = 9_000_000_000;

    let whole = length.as_nanos().div_ceil(1_000_000_000);
    i64::try_from(whole.min(u128::from(LONGEST))).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lease_seconds_are_rounded_up() {
        assert_eq!(seconds(Duration::from_millis(1)), 1);
        assert_eq!(seconds(Duration::from_secs(4)), 4);
        assert_eq!(seconds(Duration::from_millis(4001)), 5);
        assert_eq!(seconds(Duration::MAX), 9_000_000_000);
    }
}
