//! No printed form of a store URL has its password, also if it is malformed.
#![cfg(feature = "server")]

use verrou_host::{ServerUrl, StoreUrl, password_range};

/// Marks the password, in a form that percent-encoding leaves as it is.
const SECRET: &str = "hunter2hunter2";

/// Returns whether the [`SECRET`] in `text` is behind a colon and before an `@` that could separate it
/// from a user and a host: in one part of a URL, or anywhere in a text that is not a URL.
fn is_password(text: &str) -> bool {
    let schemes = ["redis", "rediss", "postgres", "etcd", "etcds"];
    let rest = text
        .split_once("://")
        .filter(|(scheme, _)| schemes.contains(scheme))
        .map(|(_, rest)| rest);
    let has_secret = |text: &str| {
        let range = password_range(text);
        range.is_some_and(|range| text[range].contains(SECRET))
    };
    let Some(rest) = rest else {
        return has_secret(text);
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    let parts = if tail.contains('@') {
        [rest, ""]
    } else {
        [authority, tail]
    };
    parts.into_iter().any(has_secret)
}

/// Asserts that no printed form of `text` contains its password.
fn assert_hidden(text: &str) {
    let parsed = text.parse::<StoreUrl>();
    let printed = match &parsed {
        // A path that begins as a URL does.
        Ok(StoreUrl::Local(_)) => return,
        Ok(url) => format!("{url} {url:?} {:?}", text.parse::<ServerUrl>()),
        Err(why) => format!("{why} {why:?} {:?}", text.parse::<ServerUrl>()),
    };
    assert!(
        !is_password(text) || !printed.to_lowercase().contains(SECRET),
        "{text}: {printed}"
    );
}

#[test]
fn password_of_malformed_url_is_not_printed() {
    for text in [
        "redis//app:hunter2hunter2@h",
        "app:hunter2hunter2@h",
        "redis:/app:hunter2hunter2@h",
        "redis:app:hunter2hunter2@h",
        "REDIS://app:hunter2hunter2@h",
        "redis%3A%2F%2Fapp%3Ahunter2hunter2%40h",
        "redis%253A//app%253ahunter2hunter2%2540h",
        "redis://app%3Ahunter2hunter2@h",
        "redis://app%3Ahunter2hunter2%40h",
        "redis://app:hunter2hunter2@x@h",
        "redis://app@x:hunter2hunter2@h",
        "redis://h/app:hunter2hunter2%40x",
        "redis://h?prefix=app:hunter2hunter2%40x",
        "redis://h?app:hunter2hunter2%40x",
        "redis://h?timeout=1:hunter2hunter2%40x",
        "postgres://h/db?sslmode=a:hunter2hunter2%40x",
        "lease:redis://app:hunter2hunter2@h",
        "lease://app:hunter2hunter2@h",
        "file:app:hunter2hunter2@h",
        "lease:~app:hunter2hunter2@h",
        "memory:app:hunter2hunter2@h",
    ] {
        assert!(is_password(text), "{text}");
        assert_hidden(text);
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(20_000))]

    /// Up to five characters of a URL around its password are removed, replaced or inserted.
    #[test]
    fn password_of_mutated_url_is_not_printed(
        base in proptest::sample::select(&[
            ("redis://app:", "@h"),
            ("redis://:", "@localhost:6379/0?prefix=shop:&timeout=1s"),
            ("rediss://app:x", "y@h?ca-file=/a"),
            ("postgres://app:", "@one:5432,two/db?schema=s&sslmode=disable"),
            ("etcds://app:", "@one:1,two:2?prefix=a%2F"),
            ("lease:redis://app:", "@h"),
        ][..]),
        mutations in proptest::collection::vec(
            (
                proptest::bool::ANY,
                proptest::num::usize::ANY,
                0_u8..3,
                proptest::sample::select(&[
                    ":", "/", "@", "?", "#", "%", "&", "=", ",", " ", ".", "~", "[", "]", "\\", "\n", "a",
                    "%3A", "%3a", "%40", "%2F", "%253A", "%2540", "://",
                ][..]),
            ),
            0..5,
        ),
    ) {
        let mut parts = [base.0.to_owned(), base.1.to_owned()];
        for (is_first, at, kind, inserted) in mutations {
            let part = &mut parts[usize::from(is_first)];
            let at = at % (part.len() + 1);
            let end = if kind == 2 { at } else { (at + 1).min(part.len()) };
            part.replace_range(at..end, if kind == 0 { "" } else { inserted });
        }
        assert_hidden(&format!("{}{SECRET}{}", parts[0], parts[1]));
    }
}
