//! The text forms of the core's types for serde (feature `serde`).
#![cfg(feature = "serde")]

use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, from_value, json, to_value};
use verrou::{Backoff, Fence, Name, Retry, SerializedLock, Ttl};

const LOCK: &str = r#"{"version":1,"name":"demo","owner":"000102030405060708090a0b0c0d0e0f","ttl":2000,"expires":1763892000000,"fence":7}"#;

fn seconds(seconds: u64) -> Ttl {
    Ttl::new(Duration::from_secs(seconds)).unwrap()
}

#[test]
fn ttl_is_a_text_a_number_of_milliseconds_or_null() {
    for (value, ttl) in [
        (json!("1m 30s"), seconds(90)),
        (
            json!("1500"),
            Ttl::new(Duration::from_millis(1500)).unwrap(),
        ),
        (json!(2000), seconds(2)),
        (
            json!(500.5),
            Ttl::new(Duration::from_micros(500_500)).unwrap(),
        ),
        (json!("none"), Ttl::NEVER),
        (json!(null), Ttl::NEVER),
    ] {
        assert_eq!(from_value::<Ttl>(value.clone()).unwrap(), ttl, "{value}");
    }
    assert_eq!(to_value(seconds(90)).unwrap(), json!("1m 30s"));
    assert_eq!(to_value(Ttl::NEVER).unwrap(), json!("none"));
    for value in [json!(0), json!(-1), json!("0s"), json!("soon"), json!([1])] {
        from_value::<Ttl>(value.clone()).expect_err(&value.to_string());
    }
}

#[test]
fn name_and_fencing_token_are_checked() {
    assert_eq!(to_value(Name::new("demo").unwrap()).unwrap(), json!("demo"));
    assert_eq!(from_value::<Name>(json!("demo")).unwrap().as_str(), "demo");
    let why = from_value::<Name>(json!("")).unwrap_err().to_string();
    assert_eq!(why, Name::new("").unwrap_err().to_string());
    let fence = Fence::new(7).unwrap();
    assert_eq!(to_value(fence).unwrap(), json!(7));
    assert_eq!(from_value::<Fence>(json!(7)).unwrap(), fence);
    let why = from_value::<Fence>(json!(0)).unwrap_err().to_string();
    assert!(why.contains("expected a fencing token"), "{why}");
}

#[test]
fn retry_policy_is_a_map() {
    let value = json!({"attempts": 5, "delay": "100ms", "max_delay": 2000, "timeout": "1m"});
    let backoff = Backoff::Jittered {
        first: Duration::from_millis(100),
        cap: Duration::from_secs(2),
    };
    let retry = Retry::default().attempts(5).unwrap().backoff(backoff);
    let retry = retry.unwrap().timeout(Duration::from_mins(1));
    assert_eq!(from_value::<Retry>(value).unwrap(), retry);
    assert_eq!(
        to_value(&retry).unwrap(),
        json!({"attempts": 5, "delay": "100ms", "max_delay": "2s", "timeout": "1m"})
    );
    assert_eq!(from_value::<Retry>(json!({})).unwrap(), Retry::default());
    assert_eq!(
        from_value::<Retry>(json!({"timeout": 0})).unwrap(),
        Retry::default().timeout(Duration::ZERO)
    );
    for (value, why) in [
        (json!({"attempts": 0}), "attempt"),
        (json!({"delay": "0s"}), "delay"),
        (json!({"delays": "1s"}), "unknown field `delays`"),
        (json!({"timeout": -1}), "a number of milliseconds"),
    ] {
        let message = from_value::<Retry>(value.clone()).unwrap_err().to_string();
        assert!(message.contains(why), "{value}: {message}");
    }
}

#[test]
fn serialized_lock_has_the_members_of_its_text() {
    let lock: SerializedLock = LOCK.parse().unwrap();
    let value: Value = serde_json::from_str(LOCK).unwrap();
    assert_eq!(to_value(&lock).unwrap(), value);
    assert_eq!(serde_json::to_string(&lock).unwrap(), LOCK);
    assert_eq!(from_value::<SerializedLock>(value.clone()).unwrap(), lock);
    let changed = |member: &str, to: Option<Value>| {
        let mut changed = value.clone();
        let members = changed.as_object_mut().unwrap();
        match to {
            Some(to) => members.insert(member.to_owned(), to),
            None => members.remove(member),
        };
        let text = changed.to_string().parse::<SerializedLock>();
        (from_value::<SerializedLock>(changed), text)
    };
    // Both readers accept and refuse the same members.
    for (member, to) in [
        ("future", Some(json!("ignored"))),
        ("expires", Some(json!(null))),
        ("expires", None),
        ("fence", None),
        ("fence", Some(json!(0))),
        ("ttl", Some(json!("2s"))),
        ("name", Some(json!(""))),
        ("owner", Some(json!("0"))),
        ("version", Some(json!(2))),
    ] {
        let (read, text) = changed(member, to.clone());
        assert_eq!(read.ok(), text.ok(), "{member}: {to:?}");
    }
    let (newer, _) = changed("version", Some(json!(2)));
    let why = newer.unwrap_err().to_string();
    assert!(why.contains("version 2"), "{why}");
}

proptest! {
    #[test]
    fn every_ttl_is_read_as_it_was_written(nanos in 1..=u64::try_from(Ttl::MAX.as_nanos()).unwrap()) {
        let ttl = Ttl::new(Duration::from_nanos(nanos)).unwrap();
        prop_assert_eq!(from_value::<Ttl>(to_value(ttl).unwrap()).unwrap(), ttl);
    }
}
