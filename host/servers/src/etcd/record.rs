//! The values of the keys of holders and waiters.

use serde::{Deserialize, Serialize};

use super::client::messages::KeyValue;

/// The value of a holder's key; the value of a waiter's key is [`WAITS`].
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct EtcdRecord {
    /// In milliseconds; `None` if the lease does not expire.
    pub(super) ttl: Option<u64>,
    /// In milliseconds since 1970.
    pub(super) since: u64,
    pub(super) about: serde_json::Value,
}

pub(super) const WAITS: &str = "waits";

/// Returns the record of a key, if it is a holder's.
pub(super) fn record_of(found: &KeyValue) -> Option<EtcdRecord> {
    serde_json::from_slice(&found.value).ok()
}

pub(super) fn as_json(record: &EtcdRecord) -> String {
    serde_json::to_string(record).unwrap_or_default()
}
