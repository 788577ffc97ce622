//! A client of etcd for the requests of [`EtcdStore`](super::EtcdStore).

pub mod messages;

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use http::uri::PathAndQuery;
use prost::Message;
use tokio_stream::StreamExt as _;
use tonic::client::Grpc;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;

use self::messages::{
    AuthenticateRequest, AuthenticateResponse, LeaseGrantRequest, LeaseRequest, LeaseResponse,
    Nothing, Range, RangeResponse, StatusResponse, TimeToLiveRequest, TimeToLiveResponse, Txn,
    TxnResponse, WatchCreateRequest, WatchRequest, WatchResponse,
};

/// A failed request, or a failed connection to a server.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(transparent)]
    Status(#[from] Status),
    /// An invalid address or certificate.
    #[error(transparent)]
    Endpoint(#[from] tonic::transport::Error),
}

pub struct ConnectOptions {
    /// The timeout for a connection attempt, and for each answer to a keep-alive ping.
    pub timeout: Duration,
    pub user: Option<(String, String)>,
    pub tls: Option<ClientTlsConfig>,
}

/// A client with one connection to each member, shared by all clones.
#[derive(Clone)]
pub struct Client {
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
    pub async fn connect(
        members: &[String],
        options: &ConnectOptions,
    ) -> Result<Self, ClientError> {
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

    pub async fn status(&self) -> Result<StatusResponse, ClientError> {
        self.ask("/etcdserverpb.Maintenance/Status", Nothing {})
            .await
    }

    pub async fn range(&self, range: Range) -> Result<RangeResponse, ClientError> {
        self.ask("/etcdserverpb.KV/Range", range).await
    }

    pub async fn txn(&self, txn: Txn) -> Result<TxnResponse, ClientError> {
        self.ask("/etcdserverpb.KV/Txn", txn).await
    }

    /// Creates a lease, and returns its number.
    pub async fn lease_grant(&self, seconds: i64) -> Result<i64, ClientError> {
        let request = LeaseGrantRequest { ttl: seconds };
        let granted: LeaseResponse = self.ask("/etcdserverpb.Lease/LeaseGrant", request).await?;
        Ok(granted.id)
    }

    pub async fn lease_revoke(&self, id: i64) -> Result<(), ClientError> {
        let revoked = self.ask("/etcdserverpb.Lease/LeaseRevoke", LeaseRequest { id });
        let Nothing {} = revoked.await?;
        Ok(())
    }

    /// Keeps a lease alive; returns whether the lease still exists.
    pub async fn lease_keep_alive(&self, id: i64) -> Result<bool, ClientError> {
        let path = "/etcdserverpb.Lease/LeaseKeepAlive";
        let mut answers: Streaming<LeaseResponse> = self.open(path, LeaseRequest { id }).await?;
        let answer = answers.message().await?;
        let lease = answer.ok_or_else(|| Status::unavailable("the answer was cut off"))?;
        Ok(lease.ttl > 0)
    }

    pub async fn lease_time_to_live(
        &self,
        id: i64,
        with_keys: bool,
    ) -> Result<TimeToLiveResponse, ClientError> {
        let request = TimeToLiveRequest {
            id,
            keys: with_keys,
        };
        self.ask("/etcdserverpb.Lease/LeaseTimeToLive", request)
            .await
    }

    /// Returns the stream of events of `key` from now on. Its first message has no event; it confirms
    /// that the watch has begun.
    pub async fn watch(&self, key: Vec<u8>) -> Result<Streaming<WatchResponse>, ClientError> {
        let create = WatchCreateRequest { key };
        let request = WatchRequest {
            create: Some(create),
        };
        self.open("/etcdserverpb.Watch/Watch", request).await
    }

    /// Sends a request that has one answer.
    pub async fn ask<Q, A>(&self, path: &'static str, request: Q) -> Result<A, ClientError>
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
    async fn open<Q, A>(&self, path: &'static str, request: Q) -> Result<Streaming<A>, ClientError>
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
