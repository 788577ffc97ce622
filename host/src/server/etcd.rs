//! Locks on etcd: each operation consists of transactions, which the members agree on.
//!
//! A lock is a range of keys, one for each owner that holds it or waits for it, ordered by the revisions
//! that created them. The holder is the owner of the first key, if that key has a record as its value; the
//! revision that created the key is the fencing token. A holder's key is attached to a lease of its own; the
//! keys of all waiters of one process are attached to one lease of that process. Each waiter watches the key
//! before its own.

use std::collections::{BTreeMap, HashMap};
use std::error::Error as _;
use std::fmt;
use std::io;
use std::iter;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tonic::Streaming;
use tonic::transport::{Certificate, ClientTlsConfig};
use verrou::blocking::Host;
use verrou::{
    Abilities, AsyncStore, Claim, Fence, Holder, Name, Owner, Renewed, Reply, StoreError, Ttl,
};

use super::cancelled_acquire::{CancelGuard, CancelledRequests};
use super::etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, Error, KeyValue, OperationResponse, Order, Range,
    Txn, TxnOp, TxnResponse, WatchResponse,
};
use super::store::{ABILITIES, About, record_ttl, request_timeout};
use super::{ServerError, ServerUrl};
use crate::System;
use crate::store::{Listed, StoreOptions};

/// Leases on etcd, version 3.4 or later.
///
/// Its operations run in the tokio runtime in which it was [connected](Self::connect). One connection to
/// each member serves all operations and all waiters. `host/ETCD.md` lists its guarantees.
pub struct EtcdStore {
    shared: Arc<EtcdShared>,
    prefix: String,
    about: serde_json::Value,
    /// The leases of acquire requests whose outcome is unknown.
    attempts: Mutex<HashMap<Owner, Vec<i64>>>,
    runtime: Handle,
    cancelled: CancelledRequests,
}

/// The state that the store shares with the task that renews the tickets.
struct EtcdShared {
    client: Client,
    members: usize,
    server: String,
    timeout: Duration,
    /// The tickets of this process's waiters.
    tickets: Mutex<HashMap<Owner, Ticket>>,
    /// The lease of all tickets.
    presence: tokio::sync::Mutex<Option<Presence>>,
    /// Notified when the lease of all tickets has ended, or is to be replaced.
    lease_replaced: Notify,
}

/// A waiter's ticket.
struct Ticket {
    key: String,
    /// The hand-off reservation for the ticket before this one, if that is the head waiter's and the lock is free:
    /// the ticket's revision, and when this process first saw it so. It is kept from one wait to the next.
    reservation: Option<(i64, Instant)>,
}

struct Presence {
    lease: i64,
    task: JoinHandle<()>,
}

/// The value of a holder's key; the value of a waiter's key is [`WAITS`].
#[derive(Debug, Deserialize, Serialize)]
struct Record {
    /// In milliseconds; `None` if the lease does not expire.
    ttl: Option<u64>,
    /// In milliseconds since 1970.
    since: u64,
    about: serde_json::Value,
}

const WAITS: &str = "waits";

/// The time in seconds that tickets outlive their process.
const PRESENCE: i64 = 10;

/// The hand-off reservation. It is longer than other stores', because etcd writes each operation to disks
/// before it answers.
const RESERVATION: Duration = Duration::from_secs(2);

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
                tickets: Mutex::default(),
                presence: tokio::sync::Mutex::default(),
                lease_replaced: Notify::new(),
            }),
            prefix,
            about,
            attempts: Mutex::default(),
            cancelled: CancelledRequests::new(Handle::current()),
            runtime: Handle::current(),
        })
    }

    /// Returns the names that are held now, and their holders.
    ///
    /// # Errors
    ///
    /// Returns [`StoreError`] if the server does not answer, or refuses the request.
    pub async fn list(&self) -> Result<Vec<Listed>, StoreError> {
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

    /// Leaves the queue as [`AsyncStore::give_up`] does, and waits until that is done.
    pub(crate) async fn leave(&self, claim: &Claim) {
        let ticket = self.shared.tickets().remove(&claim.owner);
        if let Some(ticket) = ticket {
            self.shared.leave(ticket.key).await;
        }
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

    fn record(&self, ttl: Ttl) -> Record {
        Record {
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

    async fn try_acquire(&self, claim: &Claim) -> Result<Reply, ServerError> {
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
                (Some(_), _) => return Ok(Reply::REFUSED),
            };
            let lease = self.lease_for(claim.ttl).await?;
            if lease != 0 {
                self.attempts().entry(claim.owner).or_default().push(lease);
            }
            let value = as_json(&self.record(claim.ttl));
            let put = TxnOp::put(&*key, value, lease);
            let taken = Txn::new().when(free).and_then([put]);
            let taken = self.attach(lease, taken).await?;
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
        record: Record,
    ) -> Result<bool, ServerError> {
        if record.ttl == claim.ttl.duration().map(millis) {
            return match own.lease {
                0 => Ok(true),
                lease => self.shared.keep_alive(lease).await,
            };
        }
        let lease = self.lease_for(claim.ttl).await?;
        let value = as_json(&Record {
            ttl: claim.ttl.duration().map(millis),
            ..record
        });
        let unchanged = Compare::mod_revision(&*own.key, CompareOp::Equal, own.mod_revision);
        let put = TxnOp::put(&*own.key, value, lease);
        let moved = Txn::new().when([unchanged]).and_then([put]);
        let moved = self.attach(lease, moved).await?;
        let is_moved = moved.is_some_and(|moved| moved.succeeded);
        self.shared
            .revoke(if is_moved { own.lease } else { lease })
            .await;
        Ok(is_moved)
    }

    async fn try_extend(&self, claim: &Claim) -> Result<Reply, ServerError> {
        let key = self.key(claim);
        loop {
            let look = Txn::new().and_then([TxnOp::get(&*key)]);
            let own = found(&self.shared.txn(look).await?).pop().flatten();
            let Some((own, record)) = own.and_then(|own| record_of(&own).map(|it| (own, it)))
            else {
                return Ok(Reply::REFUSED);
            };
            if self.renewed(claim, &own, record).await? {
                return Ok(Reply::Granted { fence: None });
            }
        }
    }

    async fn try_release(&self, claim: &Claim) -> Result<Reply, ServerError> {
        let key = self.key(claim);
        let delete = Txn::new().and_then([TxnOp::get(&*key), TxnOp::delete(&*key)]);
        let own = found(&self.shared.txn(delete).await?).swap_remove(0);
        // A request that is still in flight then fails, because its lease is gone.
        self.revoke_attempts(claim).await;
        let Some(own) = own.filter(|own| record_of(own).is_some()) else {
            return Ok(Reply::REFUSED);
        };
        self.shared.revoke(own.lease).await;
        Ok(Reply::Granted { fence: None })
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

    async fn try_evict(&self, name: &Name, only: Option<Fence>) -> Result<Reply, ServerError> {
        let Some(held) = self.first_of(name).await? else {
            return Ok(Reply::REFUSED);
        };
        if only.is_none() && record_of(&held).is_none() {
            return self.skip_process(name, held).await;
        }
        let made = held.create_revision;
        let is_meant = only.is_none_or(|only| Some(only) == fence(made));
        if !is_meant || record_of(&held).is_none() {
            return Ok(Reply::REFUSED);
        }
        let unchanged = Compare::create_revision(&*held.key, CompareOp::Equal, made);
        let delete = TxnOp::delete(&*held.key);
        let freed = Txn::new().when([unchanged]).and_then([delete]);
        if !self.shared.txn(freed).await?.succeeded {
            return Ok(Reply::REFUSED);
        }
        self.shared.revoke(held.lease).await;
        Ok(Reply::Granted { fence: None })
    }

    /// Skips `head`, the head waiter of a free lock, if it does not acquire the lock while that is reserved for
    /// it, and with it all waiters behind it whose tickets end with the same lease. Any user of etcd can keep that
    /// lease alive after the waiters' process was killed. A process that still waits takes new tickets.
    async fn skip_process(&self, name: &Name, head: KeyValue) -> Result<Reply, ServerError> {
        sleep(RESERVATION).await;
        if !self.shared.skip(&head).await? {
            return Ok(Reply::REFUSED);
        }
        while let Some(next) = self.first_of(name).await? {
            if next.lease != head.lease || record_of(&next).is_some() {
                break;
            }
            self.shared.skip(&next).await?;
        }
        Ok(Reply::Granted { fence: None })
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
        Ok(Some(Holder {
            fence: fence(first.create_revision),
            since: Some(Duration::from_millis(record.since)),
            remaining,
            process: About::process_of(&record.about.to_string()),
            detached: false,
        }))
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

    /// Takes a ticket and waits until the claim's owner is the head waiter of a free lock, but at most `at_most`.
    /// If that is zero, taking the ticket is not limited by it.
    pub(crate) async fn wait_in_queue(
        &self,
        claim: &Claim,
        at_most: Duration,
    ) -> Result<(), ServerError> {
        let shared = &self.shared;
        let until = Instant::now().checked_add(at_most);
        let key = self.key(claim);
        let ticket = || Ticket {
            key: key.clone(),
            reservation: None,
        };
        shared.tickets().entry(claim.owner).or_insert_with(ticket);
        let waiting = async {
            loop {
                let mut replaced = pin!(shared.lease_replaced.notified());
                replaced.as_mut().enable();
                let taken = shared.within(shared.timeout, self.take_ticket(claim, &key));
                let Some(made) = taken.await? else {
                    return Ok(());
                };
                if at_most.is_zero() {
                    return Ok(());
                }
                tokio::select! {
                    ended = self.turn(claim, &key, made) => if ended? {
                        return Ok(());
                    },
                    () = replaced => {}
                }
            }
        };
        match until {
            // The ticket is taken in any case.
            Some(_) if at_most.is_zero() => waiting.await,
            Some(until) => tokio::time::timeout_at(until, waiting)
                .await
                .unwrap_or(Ok(())),
            None => waiting.await,
        }
    }

    /// Takes a ticket, or finds the existing one. Returns the revision that created it, or `None` if there is
    /// nothing to wait for.
    async fn take_ticket(&self, claim: &Claim, key: &str) -> Result<Option<i64>, ServerError> {
        let range = self.range(&claim.name);
        loop {
            let lease = self.shared.presence().await?;
            // etcd reads the whole range for a comparison with it, so an existing ticket is looked up first.
            let exists = Compare::create_revision(key, CompareOp::Greater, 0);
            let put = TxnOp::put(key, WAITS, lease);
            let new = Txn::new().when([none(&range)]).or_else([put]);
            let taken = Txn::new()
                .when([exists])
                .and_then([TxnOp::get(key)])
                .or_else([TxnOp::txn(new)]);
            let Some(mut taken) = self.attach(lease, taken).await? else {
                self.shared.abandon_presence(lease).await;
                continue;
            };
            if !taken.succeeded {
                let new = taken.responses.pop().and_then(|new| new.response);
                let is_free = !matches!(new, Some(OperationResponse::Txn(new)) if !new.succeeded);
                return Ok((!is_free).then(|| revision(&taken)));
            }
            let Some(own) = found(&taken).pop().flatten() else {
                continue;
            };
            if record_of(&own).is_some() {
                return Ok(None);
            }
            if own.lease == lease {
                return Ok(Some(own.create_revision));
            }
            // The ticket is attached to an earlier lease.
            let unchanged = Compare::mod_revision(key, CompareOp::Equal, own.mod_revision);
            let put = TxnOp::put(key, WAITS, lease);
            let moved = Txn::new().when([unchanged]).and_then([put]);
            if self.attach(lease, moved).await?.is_none() {
                self.shared.abandon_presence(lease).await;
            }
        }
    }

    /// Commits a transaction that attaches a key to `lease`. Returns `None` if another user of etcd has revoked
    /// the lease; a new one is to be used then.
    async fn attach(&self, lease: i64, txn: Txn) -> Result<Option<TxnResponse>, ServerError> {
        match self.shared.txn(txn).await {
            Err(_) if lease != 0 && self.shared.is_gone(lease).await => Ok(None),
            committed => committed.map(Some),
        }
    }

    /// Waits until the ticket created at revision `made` is the first key. Returns false if the ticket is gone.
    async fn turn(&self, claim: &Claim, key: &str, made: i64) -> Result<bool, ServerError> {
        let (shared, range) = (&self.shared, self.range(&claim.name));
        let mut watch = None::<Watch>;
        loop {
            let before = Range::prefix(&*range)
                .created_by(made - 1)
                .by_creation(Order::Descending)
                .limit(1);
            let look = Txn::new().and_then([TxnOp::get(key), TxnOp::range(before)]);
            let seen = shared.within(shared.timeout, shared.txn(look)).await?;
            let [own, before] = &found(&seen)[..] else {
                return Ok(false);
            };
            if own.as_ref().map(|own| own.create_revision) != Some(made) {
                return Ok(false);
            }
            let Some(before) = before else {
                return Ok(true);
            };
            if watch.as_ref().is_none_or(|watch| watch.key != before.key) {
                let begun = shared.watch(&before.key).await?;
                let may_be_late = begun.since > revision(&seen);
                watch = Some(begun);
                if may_be_late {
                    continue;
                }
            }
            let Some(begun) = &mut watch else { continue };
            let is_first = !has_more(&seen);
            if !is_first || record_of(before).is_some() {
                if !begun.changed().await {
                    watch = None;
                }
                continue;
            }
            // The lock is free, and reserved for the waiter before this one.
            let head = before.mod_revision;
            let left = shared.reservation_left(claim.owner, head);
            match timeout(left, begun.changed()).await {
                Ok(true) => {}
                Ok(false) => watch = None,
                Err(_) => {
                    shared.within(shared.timeout, shared.skip(before)).await?;
                }
            }
        }
    }
}

impl EtcdShared {
    fn tickets(&self) -> MutexGuard<'_, HashMap<Owner, Ticket>> {
        self.tickets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the time that is left of the reservation for the head waiter's ticket, of `revision`, before `owner`
    /// skips it.
    fn reservation_left(&self, owner: Owner, revision: i64) -> Duration {
        let mut tickets = self.tickets();
        let Some(ticket) = tickets.get_mut(&owner) else {
            return RESERVATION;
        };
        let seen = match ticket.reservation {
            Some((same, seen)) if same == revision => seen,
            _ => Instant::now(),
        };
        ticket.reservation = Some((revision, seen));
        RESERVATION.saturating_sub(seen.elapsed())
    }

    async fn within<T>(
        &self,
        limit: Duration,
        step: impl Future<Output = Result<T, ServerError>>,
    ) -> Result<T, ServerError> {
        timeout(limit, step).await.unwrap_or_else(|_| {
            Err(ServerError::Timeout {
                server: self.server.clone(),
                after: limit,
            })
        })
    }

    async fn asked<T, A: Future<Output = Result<T, Error>>>(
        &self,
        ask: impl Fn(Client) -> A,
    ) -> Result<T, ServerError> {
        let answered = of_any(self.members, &self.client, ask).await;
        answered.map_err(|err| failed(&self.server, err))
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResponse, ServerError> {
        self.asked(|client| {
            let txn = txn.clone();
            async move { client.txn(txn).await }
        })
        .await
    }

    async fn grant(&self, seconds: i64) -> Result<i64, ServerError> {
        let granted = self.asked(|client| async move { client.lease_grant(seconds).await });
        granted.await
    }

    /// Keeps a lease alive; returns whether the lease still exists.
    async fn keep_alive(&self, lease: i64) -> Result<bool, ServerError> {
        self.asked(|client| async move { client.lease_keep_alive(lease).await })
            .await
    }

    /// Revokes a lease that is no longer needed. If that fails, the lease expires.
    async fn revoke(&self, lease: i64) {
        if lease != 0 {
            let revoked = self.asked(|client| async move { client.lease_revoke(lease).await });
            let _ = timeout(self.timeout / 4, revoked).await;
        }
    }

    /// Returns whether the new lease `lease` is gone. etcd lists all leases to every user, and every user can
    /// revoke a lease that has no key yet.
    async fn is_gone(&self, lease: i64) -> bool {
        let asked =
            self.asked(|client| async move { client.lease_time_to_live(lease, false).await });
        asked.await.is_ok_and(|left| left.ttl <= 0)
    }

    /// Makes all waiters of this process attach their tickets to a new lease instead of `lease`.
    async fn abandon_presence(&self, lease: i64) {
        let mut presence = self.presence.lock().await;
        if let Some(abandoned) = presence.take_if(|presence| presence.lease == lease) {
            abandoned.task.abort();
            self.lease_replaced.notify_waiters();
        }
    }

    /// Deletes a ticket as it was read. Returns false if the key has changed: it may have become a holder's.
    async fn skip(&self, ticket: &KeyValue) -> Result<bool, ServerError> {
        let unchanged = Compare::mod_revision(&*ticket.key, CompareOp::Equal, ticket.mod_revision);
        let delete = TxnOp::delete(&*ticket.key);
        let skip = Txn::new().when([unchanged]).and_then([delete]);
        Ok(self.txn(skip).await?.succeeded)
    }

    /// Deletes a ticket, unless the key has become a holder's.
    async fn leave(&self, key: impl Into<Vec<u8>>) {
        let key = key.into();
        let waits = Compare::value(key.clone(), CompareOp::Equal, WAITS);
        let left = Txn::new().when([waits]).and_then([TxnOp::delete(key)]);
        // After an error, the ticket ends with the lease of its process.
        let _ = self.within(self.timeout, self.txn(left)).await;
    }

    /// Deletes the tickets attached to `lease` that no waiter of this process uses.
    async fn delete_abandoned(&self, lease: i64) -> Result<(), ServerError> {
        let asked =
            self.asked(|client| async move { client.lease_time_to_live(lease, true).await });
        for key in asked.await?.keys {
            let is_kept = |ticket: &Ticket| ticket.key.as_bytes() == key;
            if !self.tickets().values().any(is_kept) {
                self.leave(key).await;
            }
        }
        Ok(())
    }

    /// Watches `key` from now on.
    async fn watch(&self, key: &[u8]) -> Result<Watch, ServerError> {
        let watching = async {
            let opened = self.asked(|client| async move { client.watch(key.to_vec()).await });
            let mut watch = Watch {
                key: key.to_vec(),
                since: i64::MAX,
                messages: opened.await?,
            };
            // The first message confirms that the watch has begun.
            if let Some(WatchResponse {
                header: Some(header),
                ..
            }) = watch.next().await
            {
                watch.since = header.revision;
            }
            Ok(watch)
        };
        self.within(self.timeout, watching).await
    }

    /// Returns the lease of all tickets of this process, which is kept alive as long as there are tickets.
    async fn presence(self: &Arc<Self>) -> Result<i64, ServerError> {
        let mut presence = self.presence.lock().await;
        if let Some(presence) = &*presence {
            return Ok(presence.lease);
        }
        let lease = self.grant(PRESENCE).await?;
        let task = tokio::spawn(Arc::clone(self).keep_tickets(lease));
        *presence = Some(Presence { lease, task });
        Ok(lease)
    }

    async fn keep_tickets(self: Arc<Self>, lease: i64) {
        let pause = Duration::from_secs(PRESENCE.unsigned_abs()) / 4;
        loop {
            sleep(pause).await;
            let mut presence = self.presence.lock().await;
            if self.tickets().is_empty() {
                *presence = None;
                self.revoke(lease).await;
                return;
            }
            // After an error, the next request comes before the lease expires.
            let kept = self.within(pause, self.keep_alive(lease)).await;
            if matches!(kept, Ok(false)) {
                *presence = None;
                self.lease_replaced.notify_waiters();
                return;
            }
            drop(presence);
            // A ticket whose deletion failed would hold up all waiters behind it.
            let leaving = Box::pin(self.delete_abandoned(lease));
            let _ = self.within(pause, leaving).await;
        }
    }
}

impl AsyncStore for EtcdStore {
    async fn acquire(&self, claim: &Claim) -> Result<Reply, StoreError> {
        self.cancelled.stop(&claim.owner).await;
        let limit = request_timeout(self.shared.timeout, claim);
        let guard = CancelGuard::new(|| self.release_cancelled(claim));
        let reply = self.shared.within(limit, self.try_acquire(claim)).await;
        guard.disarm();
        let reply = reply?;
        if reply.is_granted() {
            self.shared.tickets().remove(&claim.owner);
        }
        Ok(reply)
    }

    async fn extend(&self, claim: &Claim) -> Result<Reply, StoreError> {
        let limit = request_timeout(self.shared.timeout, claim);
        let extended = self.shared.within(limit, self.try_extend(claim));
        Ok(extended.await?)
    }

    async fn renew(&self, claim: &Claim, _: Option<Fence>) -> Result<Renewed, StoreError> {
        Ok(self.extend(claim).await?.into())
    }

    async fn release(&self, claim: &Claim) -> Result<Reply, StoreError> {
        let limit = request_timeout(self.shared.timeout, claim);
        let guard = CancelGuard::new(|| self.release_cancelled(claim));
        let released = self.shared.within(limit, self.try_release(claim)).await;
        guard.disarm();
        Ok(released?)
    }

    async fn evict(&self, name: &Name, only: Option<Fence>) -> Result<Reply, StoreError> {
        let limit = self.shared.timeout + RESERVATION;
        let evicted = self.shared.within(limit, self.try_evict(name, only));
        Ok(evicted.await?)
    }

    async fn inspect(&self, name: &Name) -> Result<Option<Holder>, StoreError> {
        let inspected = self.shared.within(self.shared.timeout, async {
            match self.first_of(name).await? {
                Some(first) => self.holder(&first).await,
                None => Ok(None),
            }
        });
        Ok(inspected.await?)
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

    async fn wait(&self, claim: &Claim, at_most: Duration) {
        if self.wait_in_queue(claim, at_most).await.is_err() {
            // The next operation returns the error.
            std::future::pending::<()>().await;
        }
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

    fn give_up(&self, claim: &Claim) {
        let ticket = self.shared.tickets().remove(&claim.owner);
        if let Some(ticket) = ticket {
            let shared = Arc::clone(&self.shared);
            self.runtime
                .spawn(async move { shared.leave(ticket.key).await });
        }
    }

    fn abilities(&self) -> Abilities {
        ABILITIES
    }
}

impl Drop for EtcdStore {
    fn drop(&mut self) {
        // If it is locked, the task is running, and ends because there are no tickets.
        self.shared.tickets().clear();
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

/// A watch of one key, from the time it was created.
///
/// It does not begin with an older revision: etcd would then send the events in rounds, 100 ms apart
/// (`syncWatchersLoop` in `mvcc/watchable_store.go`), instead of at once.
struct Watch {
    key: Vec<u8>,
    /// The revision after which all events are reported.
    since: i64,
    messages: Streaming<WatchResponse>,
}

impl Watch {
    /// Waits until the key has changed since the last call, or since the watch began. Returns false,
    /// after a pause, if the watch has ended.
    async fn changed(&mut self) -> bool {
        while let Some(message) = self.next().await {
            if !message.events.is_empty() {
                return true;
            }
        }
        // A new watch may end, too.
        sleep(Duration::from_millis(100)).await;
        false
    }

    /// Returns the next message; `None` if the watch has ended.
    async fn next(&mut self) -> Option<WatchResponse> {
        let message = self.messages.message().await.ok().flatten();
        message.filter(|message| !message.canceled)
    }
}

/// Returns the operation that reads the first key of a range, by creation revision.
fn first(range: &str) -> TxnOp {
    let range = Range::prefix(range).by_creation(Order::Ascending);
    TxnOp::range(range.limit(1))
}

/// Returns the condition that there is no key in the range.
fn none(range: &str) -> Compare {
    Compare::create_revision(range, CompareOp::Equal, 0).with_prefix()
}

/// Returns the key that each `get` of a transaction has found.
fn found(done: &TxnResponse) -> Vec<Option<KeyValue>> {
    let answers = done.responses.iter();
    answers
        .filter_map(|answer| match &answer.response {
            Some(OperationResponse::Range(got)) => Some(got.kvs.last().cloned()),
            _ => None,
        })
        .collect()
}

/// Returns whether the range of a `get` contains more keys than its limit, after the limit by revision.
fn has_more(done: &TxnResponse) -> bool {
    done.responses.iter().any(|answer| match &answer.response {
        Some(OperationResponse::Range(got)) => got.more,
        _ => false,
    })
}

fn revision(done: &TxnResponse) -> i64 {
    done.header.as_ref().map_or(0, |header| header.revision)
}

/// Returns the record of a key, if it is a holder's.
fn record_of(found: &KeyValue) -> Option<Record> {
    serde_json::from_slice(&found.value).ok()
}

fn as_json(record: &Record) -> String {
    serde_json::to_string(record).unwrap_or_default()
}

fn fence(made: i64) -> Option<Fence> {
    u64::try_from(made).ok().and_then(Fence::new)
}

fn granted(made: i64) -> Reply {
    Reply::Granted { fence: fence(made) }
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

/// Returns a client of the server, after checking that the server is usable.
async fn checked_client(
    url: &ServerUrl,
    server: &str,
    prefix: &str,
) -> Result<Client, ServerError> {
    let setup = |why: String, advice: &str| ServerError::Setup {
        server: server.to_owned(),
        why,
        advice: advice.to_owned(),
    };
    let unread = |err: io::Error| setup(err.to_string(), "name a file that can be read");
    let scheme = if url.is_encrypted() { "https" } else { "http" };
    let members: Vec<_> = url
        .hosts()
        .into_iter()
        .map(|(host, port)| format!("{scheme}://{host}:{}", port.unwrap_or(2379)))
        .collect();
    let user = match url.user() {
        Some(user) => {
            let password = url.password()?.unwrap_or_default();
            Some((user, password))
        }
        None => None,
    };
    let tls = if url.is_encrypted() {
        Some(match url.authorities().map_err(unread)? {
            Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
            None => ClientTlsConfig::new().with_enabled_roots(),
        })
    } else {
        None
    };
    let options = ConnectOptions {
        timeout: url.timeout(),
        user,
        tls,
    };
    let refused = |err| not_fit(server, prefix, err);
    let count = members.len();
    // With a user, this requests a token from one member.
    let connecting = of_any(count, &(), |()| Client::connect(&members, &options));
    let client = connecting.await.map_err(refused)?;
    let status = of_any(
        count,
        &client,
        |client| async move { client.status().await },
    );
    let status = status.await.map_err(refused)?;
    if is_too_old(&status.version) {
        return Err(setup(
            format!("this server is etcd {}", status.version),
            "use etcd 3.4 or later",
        ));
    }
    let look = of_any(count, &client, |client| async move {
        let one = Range::prefix(prefix).keys_only().limit(1);
        client.range(one).await
    });
    look.await.map_err(refused)?;
    Ok(client)
}

/// Returns the answer of a member that can be reached. A failed connection is retried, because the request has
/// not reached any member then.
async fn of_any<C: Clone, T, A: Future<Output = Result<T, Error>>>(
    members: usize,
    client: &C,
    ask: impl Fn(C) -> A,
) -> Result<T, Error> {
    // The channel selects members at random.
    const DRAWS: usize = 16;

    let mut draws = if members > 1 { DRAWS * members } else { 1 };
    loop {
        let answer = ask(client.clone()).await;
        draws -= 1;
        match answer {
            Err(err) if draws > 0 && unreached(&err).is_some() => tokio::task::yield_now().await,
            answer => return answer,
        }
    }
}

const NO_SPACE: &str =
    "make room (compact and defragment), then `etcdctl alarm disarm`; see `etcdctl alarm list`";

/// Returns whether this version does not support nested transactions.
fn is_too_old(version: &str) -> bool {
    let mut parts = version.split('.').map(|part| part.parse::<u32>().ok());
    match (parts.next().flatten(), parts.next().flatten()) {
        (Some(major), Some(minor)) => (major, minor) < (3, 4),
        _ => false,
    }
}

/// The status codes of gRPC.
mod code {
    pub(super) const UNKNOWN: i32 = 2;
    pub(super) const INVALID_ARGUMENT: i32 = 3;
    pub(super) const DEADLINE_EXCEEDED: i32 = 4;
    pub(super) const NOT_FOUND: i32 = 5;
    pub(super) const PERMISSION_DENIED: i32 = 7;
    pub(super) const RESOURCE_EXHAUSTED: i32 = 8;
    pub(super) const FAILED_PRECONDITION: i32 = 9;
    pub(super) const UNAVAILABLE: i32 = 14;
    pub(super) const UNAUTHENTICATED: i32 = 16;
}

/// Returns the error for a server that is not usable for a store.
fn not_fit(server: &str, prefix: &str, err: Error) -> ServerError {
    let setup = |why: String, advice: String| ServerError::Setup {
        server: server.to_owned(),
        why,
        advice,
    };
    let Error::Status(status) = &err else {
        return failed(server, err);
    };
    let said = status.message().to_owned();
    match i32::from(status.code()) {
        code::INVALID_ARGUMENT | code::UNAUTHENTICATED => setup(
            format!("the server refuses the user or the password ({said})"),
            "write etcd://USER:PASSWORD@HOST, or password-file=FILE; on another machine write etcds:// for TLS, \
             or add tls=off"
                .to_owned(),
        ),
        code::FAILED_PRECONDITION => setup(
            format!("authentication is not enabled on this server ({said})"),
            "leave the user out, or enable authentication".to_owned(),
        ),
        code::PERMISSION_DENIED => setup(
            format!("the user may not read and write keys that begin with {prefix} ({said})"),
            format!("etcdctl role grant-permission ROLE readwrite --prefix=true {prefix}"),
        ),
        _ if said.starts_with("etcdserver:") || unreached(&err).is_some() => failed(server, err),
        _ => setup(
            format!("the server at this address is not etcd ({said})"),
            "name the port for clients of etcd, and write etcds:// if it expects TLS".to_owned(),
        ),
    }
}

/// Returns the root cause if no connection was made, or `None` for any other error.
fn unreached(err: &Error) -> Option<String> {
    let Error::Status(status) = err else {
        return None;
    };
    let causes = || iter::successors(status.source(), |err| (*err).source());
    let is_unreached = causes().any(|err| {
        let kind = err.downcast_ref::<io::Error>().map(io::Error::kind);
        let is_io = matches!(
            kind,
            Some(
                io::ErrorKind::ConnectionRefused
                    | io::ErrorKind::HostUnreachable
                    | io::ErrorKind::NetworkUnreachable
                    | io::ErrorKind::TimedOut
            )
        );
        // Errors of name lookups have no `io::ErrorKind`.
        is_io || err.to_string() == "dns error"
    });
    let root = causes().last().filter(|_| is_unreached)?;
    Some(root.to_string())
}

/// Classifies the error of a failed request.
fn failed(server: &str, err: Error) -> ServerError {
    let server = server.to_owned();
    let Error::Status(status) = &err else {
        return ServerError::Disconnected {
            server,
            source: err.into(),
        };
    };
    let is_etcds = status.message().starts_with("etcdserver:");
    match i32::from(status.code()) {
        code::RESOURCE_EXHAUSTED if status.message().contains("space") => {
            ServerError::Unavailable {
                server,
                source: format!("{}: {NO_SPACE}", status.message()).into(),
            }
        }
        // `NOT_FOUND` is a lease that has ended before it was used.
        code::NOT_FOUND | code::RESOURCE_EXHAUSTED | code::DEADLINE_EXCEEDED => {
            ServerError::Unavailable {
                server,
                source: err.into(),
            }
        }
        code::UNAVAILABLE | code::UNKNOWN if is_etcds => ServerError::Unavailable {
            server,
            source: err.into(),
        },
        code::INVALID_ARGUMENT
        | code::PERMISSION_DENIED
        | code::FAILED_PRECONDITION
        | code::UNAUTHENTICATED => ServerError::Refused {
            server,
            source: err.into(),
        },
        _ => ServerError::Disconnected {
            server,
            source: unreached(&err).map_or_else(|| err.into(), Into::into),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_before_3_4_is_too_old() {
        assert!(is_too_old("3.3.25"));
        assert!(is_too_old("2.9.0"));
        assert!(!is_too_old("3.4.23"));
        assert!(!is_too_old("3.10.0-rc.1"));
        assert!(!is_too_old("4.0.0"));
        assert!(!is_too_old("not a version"));
    }

    #[test]
    fn lease_seconds_are_rounded_up() {
        assert_eq!(seconds(Duration::from_millis(1)), 1);
        assert_eq!(seconds(Duration::from_secs(4)), 4);
        assert_eq!(seconds(Duration::from_millis(4001)), 5);
        assert_eq!(seconds(Duration::MAX), 9_000_000_000);
    }
}
