//! The waits of the lock component: its places in the wait queue of a store, and the waits for them.

use verrou::Claim;
use wasmtime::Result;
use wasmtime::component::{Resource, ResourceTable};

/// The place of a claim in the wait queue of a store. The driver of the component waits there, while the component
/// polls.
#[derive(Debug)]
pub struct QueuePlace(pub(crate) Claim);

/// A wait for a place in the queue. The component only passes it to its driver.
#[derive(Debug)]
pub struct Wait(pub(crate) Claim);

/// Adds a place in the queue; `None` if the instance has too many.
pub(crate) fn join(table: &mut ResourceTable, claim: Claim) -> Option<Resource<QueuePlace>> {
    table.push(QueuePlace(claim)).ok()
}

/// Adds a wait for a place in the queue.
pub(crate) fn subscribe(
    table: &mut ResourceTable,
    place: &Resource<QueuePlace>,
) -> Result<Resource<Wait>> {
    let claim = table.get(place)?.0.clone();
    Ok(table.push(Wait(claim))?)
}
