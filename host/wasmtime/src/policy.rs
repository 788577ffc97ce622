//! The permissions and limits of a guest that uses the locks of its host.

use std::time::Duration;

use verrou::Ttl;

/// The permissions and limits of a guest that uses the locks of its host.
///
/// The default separates nothing but the guest's resources: a guest may use any name, and do all that a lock can do. For
/// guests that must not disturb each other, give each a [`prefix`](Self::prefix) and forbid what it does not need.
///
/// ```
/// use std::time::Duration;
/// use verrou_wasmtime::locks::GuestPolicy;
///
/// let mut policy = GuestPolicy::default();
/// policy.prefix = "tenant-7/".to_owned();
/// policy.force_release = false;
/// policy.longest_ttl = Some(Duration::from_secs(60));
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a permission of its own"
)]
pub struct GuestPolicy {
    /// Stands before each name in the store. The guest sees its names without it, and can restore no lock with another
    /// one.
    pub prefix: String,
    /// Whether the guest may force-release locks of its names, also those of other holders.
    pub force_release: bool,
    /// Whether the guest may ask for the holders of its names, and whether they are held.
    pub inspect: bool,
    /// Whether the guest may detach and serialize locks, which then outlive it, and restore them.
    pub transfer: bool,
    /// The longest ttl; with `Some`, a lease must expire.
    pub longest_ttl: Option<Duration>,
    /// How many locks the guest may hold, or be acquiring, at a time.
    pub grants: usize,
    /// How many handles of locks, attempts and renewals the guest may have at a time.
    pub handles: usize,
    /// How many places in wait queues the guest may have at a time.
    pub waits: usize,
    /// Whether the guest sees the messages of the store's errors, which may contain paths, addresses and names of other
    /// guests. Otherwise the message says only that the store has failed.
    pub store_errors: bool,
}

impl Default for GuestPolicy {
    fn default() -> Self {
        Self {
            prefix: String::new(),
            force_release: true,
            inspect: true,
            transfer: true,
            longest_ttl: None,
            grants: 1 << 10,
            handles: 1 << 15,
            waits: 1 << 10,
            store_errors: false,
        }
    }
}

impl GuestPolicy {
    /// Returns whether a lease of `ttl` is permitted.
    pub(crate) fn permits(&self, ttl: Ttl) -> bool {
        let Some(longest) = self.longest_ttl else {
            return true;
        };
        ttl.duration().is_some_and(|ttl| ttl <= longest)
    }
}
