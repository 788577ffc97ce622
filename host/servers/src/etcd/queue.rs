//! The wait queue: the tickets of waiters, and the lease of all tickets of this process.

use std::pin::pin;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use verrou::{Name, async_trait};

use super::EtcdStore;
use super::client::messages::{
    Compare, CompareOp, KeyValue, OperationResponse, Order, Range, Txn, TxnOp,
};
use super::record::{WAITS, record_of};
use super::session::EtcdShared;
use super::transaction::{found, has_more, none, revision};
use super::watch::Watch;
use crate::error::ServerError;
use crate::store::ServerWaiter;
use crate::tickets::Tickets;

/// The waiter of one claim.
pub(super) struct EtcdWaiter {
    shared: Arc<EtcdShared>,
    /// The prefix of the keys of the holder and all waiters, and the key of this one.
    range: String,
    key: String,
    /// The ticket: its key, which stays on etcd until this ends.
    ticket: Option<Arc<String>>,
    /// The hand-off reservation for the ticket before this one, if that is the head waiter's and the lock is free:
    /// the ticket's revision, and when this waiter first saw it so.
    reservation: Option<(i64, Instant)>,
}

/// The lease of all tickets of this process, and the task that keeps it alive.
pub(super) struct Presence {
    lease: i64,
    pub(super) task: JoinHandle<()>,
}

/// The time in seconds that tickets outlive their process.
const PRESENCE: i64 = 10;

/// The hand-off reservation. It is longer than other stores', because etcd writes each operation to disks
/// before it answers.
pub(super) const RESERVATION: Duration = Duration::from_secs(2);

impl EtcdWaiter {
    pub(super) fn new(shared: &Arc<EtcdShared>, range: String, key: String) -> Self {
        Self {
            shared: Arc::clone(shared),
            range,
            key,
            ticket: None,
            reservation: None,
        }
    }

    /// Deletes the ticket on etcd, if there is one.
    fn left(&mut self) -> Option<impl Future<Output = ()> + Send + use<>> {
        drop(self.ticket.take()?);
        let (shared, key) = (Arc::clone(&self.shared), self.key.clone());
        Some(async move { shared.leave(key).await })
    }

    /// Takes a ticket, or finds the existing one. Returns the revision that created it, or `None` if there is
    /// nothing to wait for.
    async fn take_ticket(&self) -> Result<Option<i64>, ServerError> {
        let (range, key) = (&*self.range, &*self.key);
        loop {
            let lease = self.shared.presence().await?;
            // etcd reads the whole range for a comparison with it, so an existing ticket is looked up first.
            let exists = Compare::create_revision(key, CompareOp::Greater, 0);
            let put = TxnOp::put(key, WAITS, lease);
            let new = Txn::new().when([none(range)]).or_else([put]);
            let taken = Txn::new()
                .when([exists])
                .and_then([TxnOp::get(key)])
                .or_else([TxnOp::txn(new)]);
            let Some(mut taken) = self.shared.attach(lease, taken).await? else {
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
            if self.shared.attach(lease, moved).await?.is_none() {
                self.shared.abandon_presence(lease).await;
            }
        }
    }

    /// Waits until the ticket created at revision `made` is the first key. Returns false if the ticket is gone.
    async fn turn(&mut self, made: i64) -> Result<bool, ServerError> {
        let shared = Arc::clone(&self.shared);
        let mut watch = None::<Watch>;
        loop {
            let before = Range::prefix(&*self.range)
                .created_by(made - 1)
                .by_creation(Order::Descending)
                .limit(1);
            let look = Txn::new().and_then([TxnOp::get(&*self.key), TxnOp::range(before)]);
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
            let left = self.reservation_left(head);
            match timeout(left, begun.changed()).await {
                Ok(true) => {}
                Ok(false) => watch = None,
                Err(_) => {
                    shared.within(shared.timeout, shared.skip(before)).await?;
                }
            }
        }
    }

    /// Returns the time that is left of the reservation for the head waiter's ticket, of `revision`, before this
    /// waiter skips it.
    fn reservation_left(&mut self, revision: i64) -> Duration {
        let seen = match self.reservation {
            Some((same, seen)) if same == revision => seen,
            _ => Instant::now(),
        };
        self.reservation = Some((revision, seen));
        RESERVATION.saturating_sub(seen.elapsed())
    }
}

#[async_trait]
impl ServerWaiter for EtcdWaiter {
    async fn wait(&mut self, at_most: Duration) -> Result<(), ServerError> {
        let until = Instant::now().checked_add(at_most);
        let shared = Arc::clone(&self.shared);
        self.ticket
            .get_or_insert_with(|| shared.tickets().add(self.key.clone()));
        let waiting = async {
            loop {
                let mut replaced = pin!(shared.lease_replaced.notified());
                replaced.as_mut().enable();
                let taken = shared.within(shared.timeout, self.take_ticket());
                let Some(made) = taken.await? else {
                    return Ok(());
                };
                if at_most.is_zero() {
                    return Ok(());
                }
                tokio::select! {
                    ended = self.turn(made) => if ended? {
                        return Ok(());
                    },
                    () = replaced => {}
                }
            }
        };
        match until {
            // The ticket is made in any case.
            Some(_) if at_most.is_zero() => waiting.await,
            Some(until) => tokio::time::timeout_at(until, waiting)
                .await
                .unwrap_or(Ok(())),
            None => waiting.await,
        }
    }

    async fn leave(&mut self) {
        if let Some(left) = self.left() {
            left.await;
        }
    }

    fn granted(&mut self) {
        self.ticket = None;
    }
}

impl Drop for EtcdWaiter {
    fn drop(&mut self) {
        if let Some(left) = self.left() {
            self.shared.runtime.spawn(left);
        }
    }
}

impl EtcdStore {
    /// Skips `head`, the head waiter of a free lock, if it does not acquire the lock while that is reserved for
    /// it, and with it all waiters behind it whose tickets end with the same lease. Any user of etcd can keep that
    /// lease alive after the waiters' process was killed. A process that still waits takes new tickets.
    pub(super) async fn skip_process(
        &self,
        name: &Name,
        head: KeyValue,
    ) -> Result<bool, ServerError> {
        sleep(RESERVATION).await;
        if !self.shared.skip(&head).await? {
            return Ok(false);
        }
        while let Some(next) = self.first_of(name).await? {
            if next.lease != head.lease || record_of(&next).is_some() {
                break;
            }
            self.shared.skip(&next).await?;
        }
        Ok(true)
    }
}

impl EtcdShared {
    fn tickets(&self) -> MutexGuard<'_, Tickets<String>> {
        self.tickets.lock().unwrap_or_else(PoisonError::into_inner)
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
    pub(super) async fn leave(&self, key: impl Into<Vec<u8>>) {
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
            let is_kept = self.tickets().all().any(|ticket| ticket.as_bytes() == key);
            if !is_kept {
                self.leave(key).await;
            }
        }
        Ok(())
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
            if self.tickets().all().next().is_none() {
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
