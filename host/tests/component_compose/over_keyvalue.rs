//! The store over `wasi:keyvalue`: the suite for stores, and its records in the bucket.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use verrou::conformance::{Fixture, TestClock};
use verrou::{Acquired, Claim, Fence, Name, Owner, Store, Ttl, conformance};
use verrou_host::component::wasmtime::component::Component;

use crate::instances::{built, load};
use crate::keyvalue::{Bucket, Trouble};
use crate::provider::{ErrorCode, Provider};

static OVER_KEYVALUE: LazyLock<Component> = LazyLock::new(|| load(&built("provider-keyvalue")));

conformance!(suite, OverKeyValue::new());

/// One bucket, and an instance for each client.
struct OverKeyValue {
    clock: TestClock,
    bucket: Bucket,
}

impl OverKeyValue {
    fn new() -> Self {
        Self {
            clock: TestClock::running(),
            bucket: Bucket::default(),
        }
    }
}

impl Fixture for OverKeyValue {
    type Store = Provider;
    type Host = TestClock;

    fn client(&self) -> Provider {
        Provider::new(&OVER_KEYVALUE, self.clock.clone(), self.bucket.clone())
    }

    fn host(&self) -> TestClock {
        self.clock.clone()
    }

    fn pass(&self, time: Duration) {
        self.clock.advance(time);
    }
}

fn claim(owner: u8) -> Claim {
    Claim::new(
        Name::new("n").unwrap(),
        Owner::from_bytes([owner; 16]),
        Ttl::try_from(Duration::from_secs(2)).unwrap(),
    )
}

#[test]
fn client_overtaken_between_read_and_swap_is_refused() {
    let place = OverKeyValue::new();
    let (slow, fast) = (place.client(), Arc::new(place.client()));
    let overtaker = Arc::clone(&fast);
    place.bucket.before_swap(move || {
        let granted = overtaker.acquire(&claim(1)).unwrap();
        assert!(matches!(granted, Acquired::Granted { .. }), "{granted:?}");
    });
    let said = slow.acquire(&claim(2)).unwrap();
    assert!(matches!(said, Acquired::Busy { .. }), "{said:?}");
    assert!(fast.extend(&claim(1)).unwrap());
}

#[test]
fn store_without_a_wait_queue_has_no_waiter() {
    let place = OverKeyValue::new();
    let store = place.client();
    store.acquire(&claim(1)).unwrap();
    assert!(!store.has_queue(&claim(2)));
}

#[test]
fn released_lock_keeps_its_fencing_token_in_the_bucket() {
    let place = OverKeyValue::new();
    place.bucket.set("verrou:n", "verrou1 41");
    let store = place.client();
    let said = store.acquire(&claim(1)).unwrap();
    assert_eq!(
        said,
        Acquired::Granted {
            fence: Fence::new(42)
        }
    );
    let record = place.bucket.get("verrou:n").unwrap();
    assert!(record.starts_with("verrou1 42 1763"), "{record}");
    store.release(&claim(1)).unwrap();
    assert_eq!(place.bucket.get("verrou:n").unwrap(), "verrou1 42");
}

#[test]
fn invalid_record_is_an_error_and_not_a_free_lock() {
    let place = OverKeyValue::new();
    for value in [
        "verrou2 7",
        "",
        "verrou1",
        "verrou1 x",
        "verrou1 1 2",
        "verrou1 1 2 o more",
    ] {
        place.bucket.set("verrou:n", value);
        let err = place.client().acquire(&claim(1)).unwrap_err();
        assert!(!err.is_temporary(), "{value}: {err}");
        assert!(err.to_string().contains("verrou:n"), "{err}");
        let code = place.client().error_code(&claim(1));
        assert!(matches!(code, ErrorCode::Corrupt), "{code:?}: {err}");
        assert_eq!(place.bucket.get("verrou:n").as_deref(), Some(value));
    }
}

#[test]
fn bucket_error_has_a_code_and_is_temporary_or_permanent() {
    let place = OverKeyValue::new();
    for (trouble, temporary) in [
        (Trouble::NoSuchStore, false),
        (Trouble::AccessDenied, false),
        (Trouble::Other("away".into()), true),
    ] {
        place.bucket.trouble(Some(trouble.clone()));
        let err = place.client().acquire(&claim(1)).unwrap_err();
        assert_eq!(err.is_temporary(), temporary, "{err}");
        let code = place.client().error_code(&claim(1));
        let is_expected = match trouble {
            Trouble::NoSuchStore => {
                matches!(&code, ErrorCode::Other(name) if name == "no-such-store")
            }
            Trouble::AccessDenied => matches!(code, ErrorCode::Denied),
            Trouble::Other(_) => matches!(code, ErrorCode::Unavailable),
        };
        assert!(is_expected, "{code:?}: {err}");
    }
    place.bucket.trouble(None);
    place.client().acquire(&claim(1)).unwrap();
}
