//! Locks on etcd: each step is one transaction, which all members agree on.
//!
//! A lock is a range of keys, one for each owner that holds it or waits for it, in the order in which
//! they were made. Its holder is the first of them, if it says so; the revision that made the key is its
//! fence. A holder's key ends with a lease of its own, those of all who wait in one process with that of
//! the process. Each who waits watches the key before its own.

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

use super::etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, Error, KeyValue, OperationResponse, Order, Range,
    Txn, TxnOp, TxnResponse, WatchResponse,
};
use super::given_back::{CancelGuard, CancelledRequests};
use super::store::{ABILITIES, About, record_ttl, request_timeout};
use super::{ServerError, ServerUrl};
use crate::System;
use crate::store::{Listed, StoreOptions};

/// Leases on etcd, version 3.4 or later.
///
/// Its steps wait in a tokio runtime, that in which it was [connected](Self::connect). One connection to
/// each member serves all of them, and all who wait. See `host/ETCD.md` for what it promises.
pub struct EtcdStore {
    shared: Arc<Shared>,
    prefix: String,
    about: serde_json::Value,
    /// Leases of attempts that are in doubt.
    attempts: Mutex<HashMap<Owner, Vec<i64>>>,
    runtime: Handle,
    cancelled: CancelledRequests,
}

/// What the task has, too, that keeps the places of those who wait.
struct Shared {
    client: Client,
    members: usize,
    server: String,
    timeout: Duration,
    /// Those who wait here: their keys.
    tickets: Mutex<HashMap<Owner, Ticket>>,
    /// The lease of all places.
    presence: tokio::sync::Mutex<Option<Presence>>,
    /// Told when all places are gone.
    lease_replaced: Notify,
}

/// The place of one who waits.
struct Ticket {
    key: String,
    /// The revision of the first place, when it is the one before and the lock is free, and since when that is
    /// seen here, however many waits that takes.
    reservation: Option<(i64, Instant)>,
}

struct Presence {
    lease: i64,
    task: JoinHandle<()>,
}

/// What the key of a holder says; that of one who waits says [`WAITS`].
#[derive(Debug, Deserialize, Serialize)]
struct Record {
    /// Milliseconds, or nothing.
    ttl: Option<u64>,
    /// Milliseconds since 1970.
    since: u64,
    about: serde_json::Value,
}

const WAITS: &str = "waits";

/// How long places outlive their process, in seconds.
const PRESENCE: i64 = 10;

/// How long a lock that was given back is kept for the first of those who wait for it: each step is
/// written to disks before it is answered.
const RESERVATION: Duration = Duration::from_secs(2);

/// What of a name would end its part of a key, and what stands for it.
const SLASHES: &AsciiSet = &CONTROLS.add(b'/').add(b'%');

impl EtcdStore {
    /// The store at `url`, whose server is asked whether it is fit for one.
    ///
    /// # Errors
    ///
    /// [`ServerError`] says what is wrong with the server, and what to do about it.
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
            shared: Arc::new(Shared {
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

    /// The names that are held now, and by whom.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the server cannot tell.
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

    /// [`AsyncStore::give_up`], awaited.
    pub(crate) async fn leave(&self, claim: &Claim) {
        let ticket = self.shared.tickets().remove(&claim.owner);
        if let Some(ticket) = ticket {
            self.shared.leave(ticket.key).await;
        }
    }

    /// Removes what a request may have recorded that nobody waits for any more.
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

    /// What the keys of all who hold `name`, or wait for it, begin with.
    fn range(&self, name: &Name) -> String {
        let name = utf8_percent_encode(name.as_str(), SLASHES);
        format!("{}{name}/", self.prefix)
    }

    fn key(&self, claim: &Claim) -> String {
        format!("{}{}", self.range(&claim.name), claim.owner)
    }

    /// Whose lock the key is one of.
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

    /// A lease for a holder that counts on `ttl`; 0 when it does not end.
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
                    // A place that is still there, and nobody before it.
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

    /// Lets the record that `claim` holds, as it was seen, last for its ttl from now; false if it was
    /// not as it was seen.
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
        // An attempt that is still on its way finds its lease gone.
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
    /// it, and with it all waiters behind it whose places end with the same lease. Any user of etcd can keep that
    /// lease alive after the waiters' process was killed. A process that still waits takes new places.
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

    /// Whom the first key of a range names, if it is a holder's.
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

    /// How long whoever counts on `ttl` still does, at least.
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

    /// Takes a place, however long that takes, and waits until its turn has come, but at most
    /// `at_most`.
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
            // The place is taken in any case.
            Some(_) if at_most.is_zero() => waiting.await,
            Some(until) => tokio::time::timeout_at(until, waiting)
                .await
                .unwrap_or(Ok(())),
            None => waiting.await,
        }
    }

    /// Takes a place, or finds it; nothing if there is nothing to wait for. Says which revision made
    /// it.
    async fn take_ticket(&self, claim: &Claim, key: &str) -> Result<Option<i64>, ServerError> {
        let range = self.range(&claim.name);
        loop {
            let lease = self.shared.presence().await?;
            // etcd reads the whole range for a comparison with it, so a place that exists is looked up first.
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
            // It was to end with another lease.
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

    /// Ends with true when the place that `made` made is the first, with false if it is gone.
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
            // It is free, and kept for the one before.
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

impl Shared {
    fn tickets(&self) -> MutexGuard<'_, HashMap<Owner, Ticket>> {
        self.tickets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How much longer the lock is kept for the first place, that of `revision`, before `owner` passes it.
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

    /// Whether the lease was there to be kept alive.
    async fn keep_alive(&self, lease: i64) -> Result<bool, ServerError> {
        self.asked(|client| async move { client.lease_keep_alive(lease).await })
            .await
    }

    /// Ends a lease that nobody needs; otherwise it ends by itself.
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

    /// Lets all places of this process end with a new lease instead of `lease`.
    async fn abandon_presence(&self, lease: i64) {
        let mut presence = self.presence.lock().await;
        if let Some(abandoned) = presence.take_if(|presence| presence.lease == lease) {
            abandoned.task.abort();
            self.lease_replaced.notify_waiters();
        }
    }

    /// Deletes a place as it was seen. Returns false if it has changed: it may have become a holder's.
    async fn skip(&self, ticket: &KeyValue) -> Result<bool, ServerError> {
        let unchanged = Compare::mod_revision(&*ticket.key, CompareOp::Equal, ticket.mod_revision);
        let delete = TxnOp::delete(&*ticket.key);
        let skip = Txn::new().when([unchanged]).and_then([delete]);
        Ok(self.txn(skip).await?.succeeded)
    }

    /// Gives up a place, unless it has become a holder's.
    async fn leave(&self, key: impl Into<Vec<u8>>) {
        let key = key.into();
        let waits = Compare::value(key.clone(), CompareOp::Equal, WAITS);
        let left = Txn::new().when([waits]).and_then([TxnOp::delete(key)]);
        // Otherwise it ends with its process.
        let _ = self.within(self.timeout, self.txn(left)).await;
    }

    /// Gives up the places that end with `lease`, and that nobody here waits in any more.
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

    /// The lease of all places of this process, which is kept alive as long as there are some.
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
            // Without an answer it is asked again before the lease ends.
            let kept = self.within(pause, self.keep_alive(lease)).await;
            if matches!(kept, Ok(false)) {
                *presence = None;
                self.lease_replaced.notify_waiters();
                return;
            }
            drop(presence);
            // What was given up while nobody answered would be in the way of all behind it.
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
        // The name of a holder's key ends with its owner.
        Ok(first.is_some_and(|first| {
            first.key == self.key(claim).as_bytes() && record_of(&first).is_some()
        }))
    }

    async fn wait(&self, claim: &Claim, at_most: Duration) {
        if self.wait_in_queue(claim, at_most).await.is_err() {
            // Whoever asks next is told why.
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
                // Nothing says when the server can be reached again.
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
            // The next look notices an event before the watch began.
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
        // Where it is locked the task is just at work; then it ends when there are no places.
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

/// The first of a range, in the order in which they were made.
fn first(range: &str) -> TxnOp {
    let range = Range::prefix(range).by_creation(Order::Ascending);
    TxnOp::range(range.limit(1))
}

/// That there is no key in the range.
fn none(range: &str) -> Compare {
    Compare::create_revision(range, CompareOp::Equal, 0).with_prefix()
}

/// What each `get` of a transaction has found.
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

/// What a key says, if it is a holder's.
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

/// In whole seconds, and no less.
fn seconds(length: Duration) -> i64 {
    // etcd takes no longer leases.
    const LONGEST: u64 = 9_000_000_000;

    let whole = length.as_nanos().div_ceil(1_000_000_000);
    i64::try_from(whole.min(u128::from(LONGEST))).unwrap_or(i64::MAX)
}

/// A client of a server that was found fit.
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
    // Where there is a user, one of them is asked for a token.
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
            format!("it is etcd {}", status.version),
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

/// What one of several members says that can be reached: where one is away, nothing was asked.
async fn of_any<C: Clone, T, A: Future<Output = Result<T, Error>>>(
    members: usize,
    client: &C,
    ask: impl Fn(C) -> A,
) -> Result<T, Error> {
    // They are drawn by lot.
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

/// Whether transactions within transactions are unknown to this version.
fn is_too_old(version: &str) -> bool {
    let mut parts = version.split('.').map(|part| part.parse::<u32>().ok());
    match (parts.next().flatten(), parts.next().flatten()) {
        (Some(major), Some(minor)) => (major, minor) < (3, 4),
        _ => false,
    }
}

/// gRPC's numbers for what went wrong.
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

/// Why a server is not fit for a store.
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
            format!("it refuses the user or the password ({said})"),
            "write etcd://USER:PASSWORD@HOST, or password-file=FILE; on another machine write etcds:// for TLS, \
             or add tls=off"
                .to_owned(),
        ),
        code::FAILED_PRECONDITION => setup(
            format!("it knows no users ({said})"),
            "leave the user out, or enable its authentication".to_owned(),
        ),
        code::PERMISSION_DENIED => setup(
            format!("the user may not read and write keys that begin with {prefix} ({said})"),
            format!("etcdctl role grant-permission ROLE readwrite --prefix=true {prefix}"),
        ),
        _ if said.starts_with("etcdserver:") || unreached(&err).is_some() => failed(server, err),
        _ => setup(
            format!("what answers there is no etcd ({said})"),
            "name the port for clients of etcd, and write etcds:// if it expects TLS".to_owned(),
        ),
    }
}

/// Why there was no connection at all, where there was none, without the wrappings.
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
        // What looks up names has no kind of its own.
        is_io || err.to_string() == "dns error"
    });
    let root = causes().last().filter(|_| is_unreached)?;
    Some(root.to_string())
}

/// What a request that failed means.
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
        // A lease that has ended before it was used.
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
    fn an_old_server_is_found_out() {
        assert!(is_too_old("3.3.25"));
        assert!(is_too_old("2.9.0"));
        assert!(!is_too_old("3.4.23"));
        assert!(!is_too_old("3.10.0-rc.1"));
        assert!(!is_too_old("4.0.0"));
        assert!(!is_too_old("not a version"));
    }

    #[test]
    fn a_lease_is_no_shorter_than_what_it_is_for() {
        assert_eq!(seconds(Duration::from_millis(1)), 1);
        assert_eq!(seconds(Duration::from_secs(4)), 4);
        assert_eq!(seconds(Duration::from_millis(4001)), 5);
        assert_eq!(seconds(Duration::MAX), 9_000_000_000);
    }
}
