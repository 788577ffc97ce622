//! Entry points of the fuzzers to the parsers of bytes and texts. Each function takes any bytes,
//! returns whether they were accepted, and panics when an invariant is violated. `host/fuzz` calls
//! them.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use serde::de::IgnoredAny;
use serde_json::Value;
use verrou::{
    Acquire, AcquireStep, Acquired, Backoff, Claim, Fence, InvalidName, InvalidTtl, Lease, Name,
    Owner, Retry, SerializedLock, Timestamp, Ttl,
};

use crate::{AnyStore, InvalidServerUrl, InvalidStoreUrl, StoreOptions, StoreUrl};

#[expect(
    dead_code,
    reason = "only the parsers of the command's arguments are fuzzed"
)]
#[path = "../cli/src/value_parsers.rs"]
mod arguments;

/// Parses the text of a serialized lock. Written and parsed again, the lock must be equal, and
/// `serde_json` must parse it to the same result.
pub fn serialized(bytes: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(bytes) else {
        return false;
    };
    let read = text.parse::<SerializedLock>();
    match &read {
        Ok(lock) => {
            reads_back(lock);
            let json = serde_json::from_str::<IgnoredAny>(text);
            assert!(json.is_ok(), "{text} is not JSON: {json:?}");
        }
        Err(why) => assert!(!why.to_string().is_empty()),
    }
    if let Ok(Value::Object(members)) = serde_json::from_str(text) {
        let members = Value::Object(members);
        // The value has no duplicate members.
        let written = members.to_string();
        let again = written.parse::<SerializedLock>();
        let expected = depth(&members) <= 100 && is_lock(&members);
        assert_eq!(again.is_ok(), expected, "{written}: {again:?}");
        if let (Ok(read), Ok(again)) = (&read, &again) {
            assert_eq!(read, again, "{text} and {written}");
        }
    }
    read.is_ok()
}

fn reads_back(lock: &SerializedLock) {
    let text = lock.to_string();
    assert_eq!(text.parse().as_ref(), Ok(lock), "{text}");
    assert!(!text.contains('\n'), "{text}");
    let (now, wall) = (Timestamp::new(NOW), Duration::from_hours(489_970));
    let lease = lock.lease(now, wall);
    assert_eq!(lease.remaining(now).is_none(), lock.expires().is_none());
    assert!(!lease.claim().ephemeral);
}

/// Returns whether `members` are those of a serialized lock, by the table in its documentation.
fn is_lock(members: &Value) -> bool {
    let text = |member| members.get(member).and_then(Value::as_str);
    let number_or_null = |member, fits: fn(u64) -> bool| match members.get(member) {
        Some(Value::Null) => true,
        Some(number) => number.as_u64().is_some_and(fits),
        None => false,
    };
    let longest = Ttl::MAX.as_millis();
    assert_eq!(longest, 9_223_372_036_854);
    members.get("version").and_then(Value::as_u64) == Some(1)
        && text("name").is_some_and(|name| (1..=Name::MAX_BYTES).contains(&name.len()))
        && text("owner").is_some_and(|owner| {
            owner.len() == 32 && owner.bytes().all(|digit| digit.is_ascii_hexdigit())
        })
        && number_or_null("ttl", |millis| (1..=9_223_372_036_854).contains(&millis))
        && number_or_null("expires", |_| true)
        && number_or_null("fence", |number| number != 0)
}

/// Returns how deeply the values in `value` are nested; a text in an object is at depth 1.
fn depth(value: &Value) -> usize {
    let deepest = |values: &mut dyn Iterator<Item = &Value>| values.map(depth).max();
    match value {
        Value::Array(values) => deepest(&mut values.iter()).map_or(0, |it| it + 1),
        Value::Object(members) => deepest(&mut members.values()).map_or(0, |it| it + 1),
        _ => 0,
    }
}

/// Parses two names, separated by a line feed. Returns whether the first is a name.
pub fn name(bytes: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(bytes) else {
        return false;
    };
    let (one, other) = text.split_once('\n').unwrap_or((text, text));
    let names = [one, other].map(|text| {
        let name = Name::new(text);
        match &name {
            Ok(name) => {
                assert_eq!(name.as_str(), text);
                assert_eq!(name.to_string().parse().as_ref(), Ok(name));
                reads_back(&SerializedLock::new(
                    &lease_of(name.clone(), Ttl::DEFAULT),
                    Ttl::DEFAULT,
                    Timestamp::default(),
                    Duration::ZERO,
                ));
            }
            Err(InvalidName::Empty) => assert!(text.is_empty()),
            Err(why) => assert!(text.len() > Name::MAX_BYTES, "{why}"),
        }
        assert_eq!(arguments::name(text).ok(), name.clone().ok());
        name
    });
    names[0].is_ok()
}

/// Parses a length of time, as users type it: a ttl, a retry delay, or a timeout. Returns whether one of
/// these parsers accepts it.
pub fn duration(bytes: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(bytes) else {
        return false;
    };
    let ttl = text.parse::<Ttl>();
    if let Ok(ttl) = ttl {
        let length = ttl.duration();
        assert!(length.is_none_or(|length| !length.is_zero() && length <= Ttl::MAX));
        assert_eq!(ttl.to_string().parse(), Ok(ttl), "{ttl}");
        let lease = lease_of(Name::new("n").expect("a name"), ttl);
        let now = Timestamp::new(NOW);
        let written = SerializedLock::new(&lease, ttl, now, NOW);
        let text = written.to_string();
        // The text has whole milliseconds, rounded up, so the longest ttl may exceed the maximum.
        match text.parse::<SerializedLock>() {
            Ok(read) => reads_back(&read),
            Err(why) => panic!("{text}: {why}"),
        }
    }
    let length = arguments::length(text);
    match (&ttl, &length) {
        (Ok(ttl), Ok(length)) => assert_eq!(ttl.duration(), Some(*length), "{text}"),
        (Err(InvalidTtl::Zero), Ok(length)) => assert!(length.is_zero(), "{text}"),
        (Err(InvalidTtl::TooLong), Ok(length)) => assert!(*length > Ttl::MAX, "{text}"),
        (Err(why), Ok(length)) => panic!("{text:?} is {length:?}, but not a ttl: {why}"),
        (_, Err(why)) => assert!(why.contains(text.trim()), "{why}"),
    }
    // The command line rejects a number without a unit.
    let is_bare =
        matches!(text.trim().parse::<f64>(), Ok(number) if 0.0 < number && number.is_finite());
    let is_long_enough = |ttl: &Ttl| ttl.duration().is_none_or(|it| it.as_millis() >= 10);
    assert_eq!(
        arguments::ttl(text).ok(),
        ttl.clone()
            .ok()
            .filter(|ttl| !is_bare && is_long_enough(ttl))
    );
    let delay = length.clone().ok().filter(|length| !length.is_zero());
    assert_eq!(arguments::delay(text).ok(), delay);
    if let Ok(length) = length {
        waits(length);
    }
    ttl.is_ok() || delay.is_some()
}

/// Waits for a lock, with `length` as each duration of the retry policy.
fn waits(length: Duration) {
    let now = Timestamp::new(NOW);
    let claim = Claim::new(
        Name::new("n").expect("a name"),
        Owner::from_bytes(*b"0123456789abcdef"),
        Ttl::new(length).unwrap_or_default(),
    )
    .ephemeral(true);
    let policies = [
        Ok(Retry::default().timeout(length)),
        Retry::default().delay(length),
        Retry::default().backoff(Backoff::Jittered {
            first: Duration::from_millis(1).min(length),
            cap: length,
        }),
    ];
    for retry in policies.into_iter().flatten() {
        let longest = retry.longest();
        let mut waiting = Acquire::new(claim.clone(), retry, now);
        let mut now = now;
        for _ in 0..8 {
            match waiting.next(now) {
                AcquireStep::Wait(_, pause) | AcquireStep::Sleep(pause) => {
                    assert!(longest.is_none_or(|longest| pause <= longest));
                    now = now.saturating_add(pause);
                    waiting.waited(now);
                }
                AcquireStep::Acquire(_) => {
                    let remaining = Some(length);
                    waiting.received(now, Ok(Acquired::Busy { remaining }));
                }
                AcquireStep::Done(Err(_)) => break,
                other => panic!("{other:?} after a refusal"),
            }
        }
    }
}

/// Parses a store URL, as users type it. Written and parsed again, it must be equal.
pub fn store_url(bytes: &[u8]) -> bool {
    let typed = OsStr::from_bytes(bytes);
    let url = StoreUrl::try_from(typed);
    match &url {
        #[cfg(feature = "server")]
        Ok(StoreUrl::Server(url)) => {
            let printed = url.to_string();
            let again = StoreUrl::try_from(OsStr::new(&printed));
            let Ok(StoreUrl::Server(again)) = &again else {
                panic!("{printed} is read as {again:?}");
            };
            assert_eq!(again.to_string(), printed);
            assert_eq!(again.hosts(), url.hosts());
            let has_file = url.option("password-file").is_some();
            assert!(
                has_file || matches!(again.password(), Ok(None)),
                "{printed}"
            );
        }
        Ok(url) => {
            assert_eq!(OsString::from(url), typed);
            if let Some(text) = typed.to_str() {
                assert_eq!(url.to_string(), text);
                assert_eq!(text.parse().as_ref(), Ok(url));
            }
            if bytes.contains(&0) {
                // No directory can have this name, so none is created.
                let opened = AnyStore::open(url, &StoreOptions::default());
                assert!(opened.is_err(), "{opened:?}");
            }
        }
        Err(InvalidStoreUrl::Memory) => assert!(bytes.starts_with(b"memory:")),
        // The error does not repeat the text, which may contain a password.
        Err(InvalidStoreUrl::Server(
            InvalidServerUrl::Invalid { scheme, .. } | InvalidServerUrl::NotBuiltIn { scheme, .. },
        )) => {
            assert!(bytes.starts_with(format!("{scheme}:").as_bytes()));
        }
        Err(why) => {
            let shown = typed.display().to_string();
            let shown = shown.split([':', '%', '@']).next().unwrap_or_default();
            assert!(why.to_string().contains(shown), "{why}");
        }
    }
    assert_eq!(arguments::store(typed.to_owned()).ok(), url.clone().ok());
    url.is_ok()
}

/// The time since boot in all of these functions.
const NOW: Duration = Duration::from_secs(100_000);

/// Returns a lease of `name` that was granted at [`NOW`].
fn lease_of(name: Name, ttl: Ttl) -> Lease {
    let claim = Claim::new(name, Owner::from_bytes(*b"0123456789abcdef"), ttl).ephemeral(true);
    Lease::granted(claim, Some(Fence::FIRST), Timestamp::new(NOW))
}

#[cfg(test)]
#[path = "../tests/common/seeds.rs"]
mod seeds;

#[cfg(test)]
mod tests {
    use std::fs;

    use super::seeds::{assert_seeds, files};

    #[test]
    fn seeds_of_serialized_locks() {
        assert_seeds("serialized", &["good"], super::serialized);
        for golden in files("tests/golden") {
            let bytes = fs::read(&golden).expect("a file");
            assert!(super::serialized(&bytes), "{}", golden.display());
        }
    }

    #[test]
    fn seeds_of_names() {
        assert_seeds("name", &["good"], super::name);
    }

    #[test]
    fn seeds_of_durations() {
        assert_seeds("duration", &["good"], super::duration);
    }

    #[test]
    fn seeds_of_store_urls() {
        let good: &[&str] = if cfg!(feature = "redis") {
            &["good", "redis-good"]
        } else {
            &["good"]
        };
        assert_seeds("store_url", good, super::store_url);
    }
}
