//! Replies to callers, built from a lock's record.

use std::time::Duration;

use verrou::{Acquired, Fence, Holder, Process};

use crate::liveness;
use crate::record::Record;

pub(crate) fn granted(record: &Record) -> Acquired {
    Acquired::Granted {
        fence: Fence::new(record.fence),
    }
}

pub(crate) fn holder(record: &Record, remaining: Option<Duration>) -> Holder {
    let mut holder = Holder::new(Fence::new(record.fence), remaining);
    holder.since = Some(record.since_wall);
    holder.process = Some(Process::clone(&record.process));
    holder.detached = liveness::AVAILABLE && !record.ephemeral;
    holder
}
