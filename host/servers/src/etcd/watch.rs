//! The watch of one key.

use std::time::Duration;

use tokio::time::sleep;
use tonic::Streaming;

use super::client::messages::WatchResponse;
use super::session::EtcdShared;
use crate::error::ServerError;

/// A watch of one key, from the time it was created.
///
/// It does not begin with an older revision: etcd would then send the events in rounds, 100 ms apart
/// (`syncWatchersLoop` in `mvcc/watchable_store.go`), instead of at once.
pub(super) struct Watch {
    pub(super) key: Vec<u8>,
    /// The revision after which all events are reported.
    pub(super) since: i64,
    messages: Streaming<WatchResponse>,
}

impl Watch {
    /// Waits until the key has changed since the last call, or since the watch began. Returns false,
    /// after a pause, if the watch has ended.
    pub(super) async fn changed(&mut self) -> bool {
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

impl EtcdShared {
    /// Watches `key` from now on.
    pub(super) async fn watch(&self, key: &[u8]) -> Result<Watch, ServerError> {
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
}
