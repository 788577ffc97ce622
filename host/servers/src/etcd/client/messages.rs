//! The messages of etcd's protocol (`etcdserverpb/rpc.proto`, version 3.4).
//!
//! They are declared by hand, so that no compiler of `.proto` files is needed. Only the fields in use are
//! declared; all other fields are skipped when a message is read. Field numbers are those of that file.

use prost::{Enumeration, Message, Oneof};

/// A message without any field in use.
#[derive(Clone, PartialEq, Message)]
pub struct Nothing {}

#[derive(Clone, PartialEq, Message)]
pub struct ResponseHeader {
    #[prost(int64, tag = "3")]
    pub revision: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct StatusResponse {
    #[prost(string, tag = "2")]
    pub version: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct AuthenticateRequest {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub password: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct AuthenticateResponse {
    #[prost(string, tag = "2")]
    pub token: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct LeaseGrantRequest {
    #[prost(int64, tag = "1")]
    pub ttl: i64,
}

/// A request to keep a lease alive, or to revoke it.
#[derive(Clone, PartialEq, Message)]
pub struct LeaseRequest {
    #[prost(int64, tag = "1")]
    pub id: i64,
}

/// A lease that was granted or kept alive.
#[derive(Clone, PartialEq, Message)]
pub struct LeaseResponse {
    #[prost(int64, tag = "2")]
    pub id: i64,
    /// In seconds; zero if the lease does not exist.
    #[prost(int64, tag = "3")]
    pub ttl: i64,
}

/// The leases of the server. Stores list only their own; tests list all.
#[derive(Clone, PartialEq, Message)]
pub struct LeaseList {
    #[prost(message, repeated, tag = "2")]
    pub leases: Vec<LeaseStatus>,
}

#[derive(Clone, PartialEq, Message)]
pub struct LeaseStatus {
    #[prost(int64, tag = "1")]
    pub id: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct TimeToLiveRequest {
    #[prost(int64, tag = "1")]
    pub id: i64,
    #[prost(bool, tag = "2")]
    pub keys: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct TimeToLiveResponse {
    /// In seconds.
    #[prost(int64, tag = "3")]
    pub ttl: i64,
    #[prost(int64, tag = "4")]
    pub granted_ttl: i64,
    #[prost(bytes = "vec", repeated, tag = "5")]
    pub keys: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub struct WatchRequest {
    #[prost(message, optional, tag = "1")]
    pub create: Option<WatchCreateRequest>,
}

#[derive(Clone, PartialEq, Message)]
pub struct WatchCreateRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub key: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub struct WatchResponse {
    #[prost(message, optional, tag = "1")]
    pub header: Option<ResponseHeader>,
    #[prost(bool, tag = "4")]
    pub canceled: bool,
    #[prost(message, repeated, tag = "11")]
    pub events: Vec<Nothing>,
}

#[derive(Clone, PartialEq, Message)]
pub struct KeyValue {
    #[prost(bytes = "vec", tag = "1")]
    pub key: Vec<u8>,
    #[prost(int64, tag = "2")]
    pub create_revision: i64,
    #[prost(int64, tag = "3")]
    pub mod_revision: i64,
    #[prost(bytes = "vec", tag = "5")]
    pub value: Vec<u8>,
    /// The number of the key's lease; 0 if the key has none.
    #[prost(int64, tag = "6")]
    pub lease: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Range {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    end: Vec<u8>,
    #[prost(int64, tag = "3")]
    limit: i64,
    #[prost(enumeration = "Order", tag = "5")]
    sort_order: i32,
    #[prost(int32, tag = "6")]
    sort_target: i32,
    #[prost(bool, tag = "8")]
    keys_only: bool,
    #[prost(int64, tag = "13")]
    max_create_revision: i64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Enumeration)]
#[repr(i32)]
pub enum Order {
    /// The order of the keys.
    None = 0,
    Ascending = 1,
    Descending = 2,
}

impl Range {
    /// Selects all keys that begin with `prefix`.
    pub fn prefix(prefix: impl Into<Vec<u8>>) -> Self {
        let key = prefix.into();
        Self {
            end: end_of(&key),
            key,
            ..Self::default()
        }
    }

    /// Limits the result to the first `limit` keys.
    #[must_use]
    pub fn limit(self, limit: i64) -> Self {
        Self { limit, ..self }
    }

    /// Sorts the keys by the revision that created them.
    #[must_use]
    pub fn by_creation(self, order: Order) -> Self {
        const CREATE: i32 = 2;

        Self {
            sort_order: order.into(),
            sort_target: CREATE,
            ..self
        }
    }

    /// Limits the result to keys created at `revision` or before.
    #[must_use]
    pub fn created_by(self, revision: i64) -> Self {
        Self {
            max_create_revision: revision,
            ..self
        }
    }

    #[must_use]
    pub fn keys_only(self) -> Self {
        Self {
            keys_only: true,
            ..self
        }
    }
}

/// Returns the end of the range of all keys that begin with `prefix`, as etcd defines it.
fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if let Some(next) = last.checked_add(1) {
            end.push(next);
            return end;
        }
    }
    vec![0]
}

#[derive(Clone, PartialEq, Message)]
pub struct RangeResponse {
    #[prost(message, repeated, tag = "2")]
    pub kvs: Vec<KeyValue>,
    /// Whether the limit left keys out.
    #[prost(bool, tag = "3")]
    pub more: bool,
}

#[derive(Clone, PartialEq, Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
    #[prost(int64, tag = "3")]
    lease: i64,
}

#[derive(Clone, PartialEq, Message)]
struct DeleteRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Txn {
    #[prost(message, repeated, tag = "1")]
    compare: Vec<Compare>,
    #[prost(message, repeated, tag = "2")]
    success: Vec<TxnOp>,
    #[prost(message, repeated, tag = "3")]
    failure: Vec<TxnOp>,
}

impl Txn {
    pub fn new() -> Self {
        Self::default()
    }

    #[must_use]
    pub fn when(self, compare: impl Into<Vec<Compare>>) -> Self {
        Self {
            compare: compare.into(),
            ..self
        }
    }

    #[must_use]
    pub fn and_then(self, operations: impl Into<Vec<TxnOp>>) -> Self {
        Self {
            success: operations.into(),
            ..self
        }
    }

    #[must_use]
    pub fn or_else(self, operations: impl Into<Vec<TxnOp>>) -> Self {
        Self {
            failure: operations.into(),
            ..self
        }
    }
}

#[derive(Clone, PartialEq, Message)]
pub struct TxnOp {
    #[prost(oneof = "Operation", tags = "1, 2, 3, 4")]
    operation: Option<Operation>,
}

#[derive(Clone, PartialEq, Oneof)]
enum Operation {
    #[prost(message, tag = "1")]
    Range(Range),
    #[prost(message, tag = "2")]
    Put(PutRequest),
    #[prost(message, tag = "3")]
    Delete(DeleteRequest),
    #[prost(message, tag = "4")]
    Txn(Txn),
}

impl TxnOp {
    /// Reads one key.
    pub fn get(key: impl Into<Vec<u8>>) -> Self {
        Self::range(Range {
            key: key.into(),
            ..Range::default()
        })
    }

    pub fn range(range: Range) -> Self {
        Operation::Range(range).into()
    }

    /// Writes a value that ends with `lease`, unless that is 0.
    pub fn put(key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>, lease: i64) -> Self {
        let (key, value) = (key.into(), value.into());
        Operation::Put(PutRequest { key, value, lease }).into()
    }

    pub fn delete(key: impl Into<Vec<u8>>) -> Self {
        Operation::Delete(DeleteRequest { key: key.into() }).into()
    }

    pub fn txn(txn: Txn) -> Self {
        Operation::Txn(txn).into()
    }
}

impl From<Operation> for TxnOp {
    fn from(operation: Operation) -> Self {
        Self {
            operation: Some(operation),
        }
    }
}

#[derive(Clone, PartialEq, Message)]
pub struct Compare {
    #[prost(enumeration = "CompareOp", tag = "1")]
    result: i32,
    #[prost(int32, tag = "2")]
    target: i32,
    #[prost(bytes = "vec", tag = "3")]
    key: Vec<u8>,
    #[prost(oneof = "CompareTarget", tags = "5, 6, 7")]
    value: Option<CompareTarget>,
    #[prost(bytes = "vec", tag = "64")]
    end: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Enumeration)]
#[repr(i32)]
pub enum CompareOp {
    Equal = 0,
    Greater = 1,
}

#[derive(Clone, PartialEq, Oneof)]
enum CompareTarget {
    #[prost(int64, tag = "5")]
    CreateRevision(i64),
    #[prost(int64, tag = "6")]
    ModRevision(i64),
    #[prost(bytes = "vec", tag = "7")]
    Value(Vec<u8>),
}

impl Compare {
    pub fn create_revision(key: impl Into<Vec<u8>>, compare: CompareOp, revision: i64) -> Self {
        Self::of(key.into(), compare, CompareTarget::CreateRevision(revision))
    }

    pub fn mod_revision(key: impl Into<Vec<u8>>, compare: CompareOp, revision: i64) -> Self {
        Self::of(key.into(), compare, CompareTarget::ModRevision(revision))
    }

    pub fn value(key: impl Into<Vec<u8>>, compare: CompareOp, value: impl Into<Vec<u8>>) -> Self {
        Self::of(key.into(), compare, CompareTarget::Value(value.into()))
    }

    /// Extends the comparison to all keys that begin with this one.
    #[must_use]
    pub fn with_prefix(self) -> Self {
        Self {
            end: end_of(&self.key),
            ..self
        }
    }

    fn of(key: Vec<u8>, compare: CompareOp, value: CompareTarget) -> Self {
        Self {
            result: compare.into(),
            target: match value {
                CompareTarget::CreateRevision(_) => 1,
                CompareTarget::ModRevision(_) => 2,
                CompareTarget::Value(_) => 3,
            },
            key,
            value: Some(value),
            end: Vec::new(),
        }
    }
}

#[derive(Clone, PartialEq, Message)]
pub struct TxnResponse {
    #[prost(message, optional, tag = "1")]
    pub header: Option<ResponseHeader>,
    #[prost(bool, tag = "2")]
    pub succeeded: bool,
    #[prost(message, repeated, tag = "3")]
    pub responses: Vec<TxnOpResponse>,
}

#[derive(Clone, PartialEq, Message)]
pub struct TxnOpResponse {
    /// `None` for a put or a delete.
    #[prost(oneof = "OperationResponse", tags = "1, 4")]
    pub response: Option<OperationResponse>,
}

#[derive(Clone, PartialEq, Oneof)]
pub enum OperationResponse {
    #[prost(message, tag = "1")]
    Range(RangeResponse),
    #[prost(message, tag = "4")]
    Txn(TxnResponse),
}

#[test]
fn prefix_ends_before_the_next_key() {
    assert_eq!(end_of(b"verrou/"), b"verrou0");
    assert_eq!(end_of(b"a\xff"), b"b");
    assert_eq!(end_of(b"\xff\xff"), b"\0");
}
