//! A client of etcd for the requests of [`EtcdStore`](super::EtcdStore).
//!
//! The messages of etcd's protocol (`etcdserverpb/rpc.proto`, version 3.4) are declared here by hand,
//! so that no compiler of `.proto` files is needed. Only the fields in use are declared; all other
//! fields are skipped when a message is read. Field numbers are those of that file.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use http::uri::PathAndQuery;
use prost::{Enumeration, Message, Oneof};
use tokio_stream::StreamExt as _;
use tonic::client::Grpc;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;

/// A failed request, or a failed connection to a server.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Status(#[from] Status),
    /// An invalid address or certificate.
    #[error(transparent)]
    Endpoint(#[from] tonic::transport::Error),
}

pub(crate) struct ConnectOptions {
    /// The timeout for a connection attempt, and for each answer to a keep-alive ping.
    pub(crate) timeout: Duration,
    pub(crate) user: Option<(String, String)>,
    pub(crate) tls: Option<ClientTlsConfig>,
}

/// A client with one connection to each member, shared by all clones.
#[derive(Clone)]
pub(crate) struct Client {
    grpc: Grpc<Channel>,
    user: Option<Arc<User>>,
}

struct User {
    name: String,
    password: String,
    token: RwLock<Option<Token>>,
    /// Locked by the request that renews the token, so that concurrent requests renew it only once.
    renewing: tokio::sync::Mutex<()>,
}

type Token = MetadataValue<Ascii>;

impl User {
    fn token(&self) -> Option<Token> {
        let token = self.token.read().unwrap_or_else(PoisonError::into_inner);
        token.clone()
    }
}

impl Client {
    /// Connects to the cluster with these members, given as URLs. With a user, this requests a token
    /// from one member; otherwise the first request connects.
    pub(crate) async fn connect(
        members: &[String],
        options: &ConnectOptions,
    ) -> Result<Self, Error> {
        let mut endpoints = Vec::new();
        for member in members {
            let mut endpoint = Endpoint::from_shared(member.clone())?
                .connect_timeout(options.timeout)
                // Servers close connections with more frequent pings, or with pings while no request is
                // open.
                .http2_keep_alive_interval(Duration::from_secs(10))
                .keep_alive_timeout(options.timeout)
                .keep_alive_while_idle(false);
            if let Some(tls) = &options.tls {
                endpoint = endpoint.tls_config(tls.clone())?;
            }
            endpoints.push(endpoint);
        }
        let user = options.user.clone().map(|(name, password)| {
            Arc::new(User {
                name,
                password,
                token: RwLock::default(),
                renewing: tokio::sync::Mutex::default(),
            })
        });
        let client = Self {
            grpc: Grpc::new(Channel::balance_list(endpoints.into_iter())),
            user,
        };
        if let Some(user) = &client.user {
            client.authenticate(user).await?;
        }
        Ok(client)
    }

    pub(crate) async fn status(&self) -> Result<StatusResponse, Error> {
        self.ask("/etcdserverpb.Maintenance/Status", Nothing {})
            .await
    }

    pub(crate) async fn range(&self, range: Range) -> Result<RangeResponse, Error> {
        self.ask("/etcdserverpb.KV/Range", range).await
    }

    pub(crate) async fn txn(&self, txn: Txn) -> Result<TxnResponse, Error> {
        self.ask("/etcdserverpb.KV/Txn", txn).await
    }

    /// Creates a lease, and returns its number.
    pub(crate) async fn lease_grant(&self, seconds: i64) -> Result<i64, Error> {
        let request = LeaseGrantRequest { ttl: seconds };
        let granted: Lease = self.ask("/etcdserverpb.Lease/LeaseGrant", request).await?;
        Ok(granted.id)
    }

    pub(crate) async fn lease_revoke(&self, id: i64) -> Result<(), Error> {
        let revoked = self.ask("/etcdserverpb.Lease/LeaseRevoke", LeaseRequest { id });
        let Nothing {} = revoked.await?;
        Ok(())
    }

    /// Keeps a lease alive; returns whether the lease still exists.
    pub(crate) async fn lease_keep_alive(&self, id: i64) -> Result<bool, Error> {
        let path = "/etcdserverpb.Lease/LeaseKeepAlive";
        let mut answers: Streaming<Lease> = self.open(path, LeaseRequest { id }).await?;
        let answer = answers.message().await?;
        let lease = answer.ok_or_else(|| Status::unavailable("the answer was cut off"))?;
        Ok(lease.ttl > 0)
    }

    pub(crate) async fn lease_time_to_live(
        &self,
        id: i64,
        with_keys: bool,
    ) -> Result<TimeToLiveResponse, Error> {
        let request = TimeToLiveRequest {
            id,
            keys: with_keys,
        };
        self.ask("/etcdserverpb.Lease/LeaseTimeToLive", request)
            .await
    }

    /// Returns the stream of events of `key` from now on. Its first message has no event; it confirms
    /// that the watch has begun.
    pub(crate) async fn watch(&self, key: Vec<u8>) -> Result<Streaming<WatchResponse>, Error> {
        let create = WatchCreateRequest { key };
        let request = WatchRequest {
            create: Some(create),
        };
        self.open("/etcdserverpb.Watch/Watch", request).await
    }

    /// Sends a request that has one answer.
    pub(crate) async fn ask<Q, A>(&self, path: &'static str, request: Q) -> Result<A, Error>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        let token = self.token();
        match self.call(path, request.clone(), token.clone()).await {
            Err(status) if self.is_expired(&status) => {
                self.renew(token).await?;
                Ok(self.call(path, request, self.token()).await?)
            }
            answered => Ok(answered?),
        }
    }

    /// Sends a request that has a stream of answers, which ends when the stream is dropped.
    async fn open<Q, A>(&self, path: &'static str, request: Q) -> Result<Streaming<A>, Error>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        let token = self.token();
        match self.stream(path, request.clone(), token.clone()).await {
            Err(status) if self.is_expired(&status) => {
                self.renew(token).await?;
                Ok(self.stream(path, request, self.token()).await?)
            }
            answered => Ok(answered?),
        }
    }

    async fn call<Q, A>(
        &self,
        path: &'static str,
        request: Q,
        token: Option<Token>,
    ) -> Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let (mut grpc, path) = (self.ready().await?, PathAndQuery::from_static(path));
        let request = with_metadata(request, token);
        let answered = grpc.unary(request, path, ProstCodec::default());
        Ok(answered.await?.into_inner())
    }

    async fn stream<Q, A>(
        &self,
        path: &'static str,
        request: Q,
        token: Option<Token>,
    ) -> Result<Streaming<A>, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let (mut grpc, path) = (self.ready().await?, PathAndQuery::from_static(path));
        // Keep the request stream open: its end would end the answer stream.
        let requests = tokio_stream::once(request).chain(tokio_stream::pending());
        let requests = with_metadata(requests, token);
        let answers = grpc.streaming(requests, path, ProstCodec::default());
        Ok(answers.await?.into_inner())
    }

    async fn ready(&self) -> Result<Grpc<Channel>, Status> {
        let mut grpc = self.grpc.clone();
        let ready = grpc.ready().await;
        ready.map_err(|err| Status::from_error(err.into()))?;
        Ok(grpc)
    }

    fn token(&self) -> Option<Token> {
        self.user.as_ref()?.token()
    }

    /// Returns whether a request failed because its token has expired.
    fn is_expired(&self, status: &Status) -> bool {
        self.user.is_some() && needs_new_token(status)
    }

    /// Replaces the `expired` token, unless a concurrent request has replaced it already.
    async fn renew(&self, expired: Option<Token>) -> Result<(), Status> {
        if let Some(user) = &self.user {
            let _renewing = user.renewing.lock().await;
            if user.token() == expired {
                self.authenticate(user).await?;
            }
        }
        Ok(())
    }

    /// Requests a new token for `user`.
    async fn authenticate(&self, user: &User) -> Result<(), Status> {
        let request = AuthenticateRequest {
            name: user.name.clone(),
            password: user.password.clone(),
        };
        let path = PathAndQuery::from_static("/etcdserverpb.Auth/Authenticate");
        let codec = ProstCodec::<_, AuthenticateResponse>::default();
        let mut grpc = self.ready().await?;
        let answered = grpc
            .unary(with_metadata(request, None), path, codec)
            .await?;
        let token = answered.into_inner().token.parse();
        let token = token.map_err(|err| Status::from_error(Box::new(err)))?;
        *user.token.write().unwrap_or_else(PoisonError::into_inner) = Some(token);
        Ok(())
    }
}

/// Returns whether a request that failed with `status` can succeed with a new token. etcd's own client
/// (`clientv3`, `shouldRefreshToken`) gets a new one in these cases.
fn needs_new_token(status: &Status) -> bool {
    match status.code() {
        Code::Unauthenticated => true,
        // With `--auth-token jwt`, after a change of users or roles.
        Code::InvalidArgument => status.message() == "etcdserver: revision of auth store is old",
        _ => false,
    }
}

/// Makes a request of a message.
fn with_metadata<T>(message: T, token: Option<Token>) -> Request<T> {
    let mut request = Request::new(message);
    // A member that is separated from the majority rejects a request with this metadata.
    let required = MetadataValue::from_static("true");
    request.metadata_mut().insert("hasleader", required);
    if let Some(token) = token {
        request.metadata_mut().insert("token", token);
    }
    request
}

/// A message without any field in use.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Nothing {}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ResponseHeader {
    #[prost(int64, tag = "3")]
    pub(crate) revision: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct StatusResponse {
    #[prost(string, tag = "2")]
    pub(crate) version: String,
}

#[derive(Clone, PartialEq, Message)]
struct AuthenticateRequest {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    password: String,
}

#[derive(Clone, PartialEq, Message)]
struct AuthenticateResponse {
    #[prost(string, tag = "2")]
    token: String,
}

#[derive(Clone, PartialEq, Message)]
struct LeaseGrantRequest {
    #[prost(int64, tag = "1")]
    ttl: i64,
}

/// A request to keep a lease alive, or to revoke it.
#[derive(Clone, PartialEq, Message)]
struct LeaseRequest {
    #[prost(int64, tag = "1")]
    id: i64,
}

/// A lease that was granted or kept alive.
#[derive(Clone, PartialEq, Message)]
struct Lease {
    #[prost(int64, tag = "2")]
    id: i64,
    /// In seconds; zero if the lease does not exist.
    #[prost(int64, tag = "3")]
    ttl: i64,
}

#[derive(Clone, PartialEq, Message)]
struct TimeToLiveRequest {
    #[prost(int64, tag = "1")]
    id: i64,
    #[prost(bool, tag = "2")]
    keys: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct TimeToLiveResponse {
    /// In seconds.
    #[prost(int64, tag = "3")]
    pub(crate) ttl: i64,
    #[prost(int64, tag = "4")]
    pub(crate) granted_ttl: i64,
    #[prost(bytes = "vec", repeated, tag = "5")]
    pub(crate) keys: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct WatchRequest {
    #[prost(message, optional, tag = "1")]
    create: Option<WatchCreateRequest>,
}

#[derive(Clone, PartialEq, Message)]
struct WatchCreateRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct WatchResponse {
    #[prost(message, optional, tag = "1")]
    pub(crate) header: Option<ResponseHeader>,
    #[prost(bool, tag = "4")]
    pub(crate) canceled: bool,
    #[prost(message, repeated, tag = "11")]
    pub(crate) events: Vec<Nothing>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct KeyValue {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) key: Vec<u8>,
    #[prost(int64, tag = "2")]
    pub(crate) create_revision: i64,
    #[prost(int64, tag = "3")]
    pub(crate) mod_revision: i64,
    #[prost(bytes = "vec", tag = "5")]
    pub(crate) value: Vec<u8>,
    /// The number of the key's lease; 0 if the key has none.
    #[prost(int64, tag = "6")]
    pub(crate) lease: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Range {
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
pub(crate) enum Order {
    /// The order of the keys.
    None = 0,
    Ascending = 1,
    Descending = 2,
}

impl Range {
    /// Selects all keys that begin with `prefix`.
    pub(crate) fn prefix(prefix: impl Into<Vec<u8>>) -> Self {
        let key = prefix.into();
        Self {
            end: end_of(&key),
            key,
            ..Self::default()
        }
    }

    /// Limits the result to the first `limit` keys.
    pub(crate) fn limit(self, limit: i64) -> Self {
        Self { limit, ..self }
    }

    /// Sorts the keys by the revision that created them.
    pub(crate) fn by_creation(self, order: Order) -> Self {
        const CREATE: i32 = 2;

        Self {
            sort_order: order.into(),
            sort_target: CREATE,
            ..self
        }
    }

    /// Limits the result to keys created at `revision` or before.
    pub(crate) fn created_by(self, revision: i64) -> Self {
        Self {
            max_create_revision: revision,
            ..self
        }
    }

    pub(crate) fn keys_only(self) -> Self {
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
pub(crate) struct RangeResponse {
    #[prost(message, repeated, tag = "2")]
    pub(crate) kvs: Vec<KeyValue>,
    /// Whether the limit left keys out.
    #[prost(bool, tag = "3")]
    pub(crate) more: bool,
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
pub(crate) struct Txn {
    #[prost(message, repeated, tag = "1")]
    compare: Vec<Compare>,
    #[prost(message, repeated, tag = "2")]
    success: Vec<TxnOp>,
    #[prost(message, repeated, tag = "3")]
    failure: Vec<TxnOp>,
}

impl Txn {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn when(self, compare: impl Into<Vec<Compare>>) -> Self {
        Self {
            compare: compare.into(),
            ..self
        }
    }

    pub(crate) fn and_then(self, operations: impl Into<Vec<TxnOp>>) -> Self {
        Self {
            success: operations.into(),
            ..self
        }
    }

    pub(crate) fn or_else(self, operations: impl Into<Vec<TxnOp>>) -> Self {
        Self {
            failure: operations.into(),
            ..self
        }
    }
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct TxnOp {
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
    pub(crate) fn get(key: impl Into<Vec<u8>>) -> Self {
        Self::range(Range {
            key: key.into(),
            ..Range::default()
        })
    }

    pub(crate) fn range(range: Range) -> Self {
        Operation::Range(range).into()
    }

    /// Writes a value that ends with `lease`, unless that is 0.
    pub(crate) fn put(key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>, lease: i64) -> Self {
        let (key, value) = (key.into(), value.into());
        Operation::Put(PutRequest { key, value, lease }).into()
    }

    pub(crate) fn delete(key: impl Into<Vec<u8>>) -> Self {
        Operation::Delete(DeleteRequest { key: key.into() }).into()
    }

    pub(crate) fn txn(txn: Txn) -> Self {
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
pub(crate) struct Compare {
    #[prost(enumeration = "CompareOp", tag = "1")]
    result: i32,
    #[prost(int32, tag = "2")]
    target: i32,
    #[prost(bytes = "vec", tag = "3")]
    key: Vec<u8>,
    #[prost(oneof = "Target", tags = "5, 6, 7")]
    value: Option<Target>,
    #[prost(bytes = "vec", tag = "64")]
    end: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Enumeration)]
#[repr(i32)]
pub(crate) enum CompareOp {
    Equal = 0,
    Greater = 1,
}

#[derive(Clone, PartialEq, Oneof)]
enum Target {
    #[prost(int64, tag = "5")]
    CreateRevision(i64),
    #[prost(int64, tag = "6")]
    ModRevision(i64),
    #[prost(bytes = "vec", tag = "7")]
    Value(Vec<u8>),
}

impl Compare {
    pub(crate) fn create_revision(
        key: impl Into<Vec<u8>>,
        compare: CompareOp,
        revision: i64,
    ) -> Self {
        Self::of(key.into(), compare, Target::CreateRevision(revision))
    }

    pub(crate) fn mod_revision(key: impl Into<Vec<u8>>, compare: CompareOp, revision: i64) -> Self {
        Self::of(key.into(), compare, Target::ModRevision(revision))
    }

    pub(crate) fn value(
        key: impl Into<Vec<u8>>,
        compare: CompareOp,
        value: impl Into<Vec<u8>>,
    ) -> Self {
        Self::of(key.into(), compare, Target::Value(value.into()))
    }

    /// Extends the comparison to all keys that begin with this one.
    pub(crate) fn with_prefix(self) -> Self {
        Self {
            end: end_of(&self.key),
            ..self
        }
    }

    fn of(key: Vec<u8>, compare: CompareOp, value: Target) -> Self {
        Self {
            result: compare.into(),
            target: match value {
                Target::CreateRevision(_) => 1,
                Target::ModRevision(_) => 2,
                Target::Value(_) => 3,
            },
            key,
            value: Some(value),
            end: Vec::new(),
        }
    }
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct TxnResponse {
    #[prost(message, optional, tag = "1")]
    pub(crate) header: Option<ResponseHeader>,
    #[prost(bool, tag = "2")]
    pub(crate) succeeded: bool,
    #[prost(message, repeated, tag = "3")]
    pub(crate) responses: Vec<TxnOpResponse>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct TxnOpResponse {
    /// `None` for a put or a delete.
    #[prost(oneof = "OperationResponse", tags = "1, 4")]
    pub(crate) response: Option<OperationResponse>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(crate) enum OperationResponse {
    #[prost(message, tag = "1")]
    Range(RangeResponse),
    #[prost(message, tag = "4")]
    Txn(TxnResponse),
}

#[test]
fn token_is_renewed_when_it_has_expired_or_users_have_changed() {
    let old = "etcdserver: revision of auth store is old";
    assert!(needs_new_token(&Status::unauthenticated(
        "etcdserver: invalid auth token"
    )));
    assert!(needs_new_token(&Status::invalid_argument(old)));
    assert!(!needs_new_token(&Status::invalid_argument(
        "etcdserver: user name is empty"
    )));
    assert!(!needs_new_token(&Status::permission_denied(
        "etcdserver: permission denied"
    )));
}

#[test]
fn prefix_ends_before_the_next_key() {
    assert_eq!(end_of(b"verrou/"), b"verrou0");
    assert_eq!(end_of(b"a\xff"), b"b");
    assert_eq!(end_of(b"\xff\xff"), b"\0");
}
