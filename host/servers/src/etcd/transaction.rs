//! The conditions, operations and answers of transactions.

use super::client::messages::{
    Compare, CompareOp, KeyValue, OperationResponse, Order, Range, TxnOp, TxnResponse,
};

/// Returns the operation that reads the first key of a range, by creation revision.
pub(super) fn first(range: &str) -> TxnOp {
    let range = Range::prefix(range).by_creation(Order::Ascending);
    TxnOp::range(range.limit(1))
}

/// Returns the condition that there is no key in the range.
pub(super) fn none(range: &str) -> Compare {
    Compare::create_revision(range, CompareOp::Equal, 0).with_prefix()
}

/// Returns the key that each `get` of a transaction has found.
pub(super) fn found(done: &TxnResponse) -> Vec<Option<KeyValue>> {
    let answers = done.responses.iter();
    answers
        .filter_map(|answer| match &answer.response {
            Some(OperationResponse::Range(got)) => Some(got.kvs.last().cloned()),
            _ => None,
        })
        .collect()
}

/// Returns whether the range of a `get` contains more keys than its limit, after the limit by revision.
pub(super) fn has_more(done: &TxnResponse) -> bool {
    done.responses.iter().any(|answer| match &answer.response {
        Some(OperationResponse::Range(got)) => got.more,
        _ => false,
    })
}

pub(super) fn revision(done: &TxnResponse) -> i64 {
    done.header.as_ref().map_or(0, |header| header.revision)
}
