//! The parsing of text: names, owner tokens, ttls and serialized locks. All text that is written can be
//! read again, in every later version, and no other text is accepted.

use std::time::Duration;

use proptest::prelude::*;
use verrou::{
    Claim, Error, Fence, InvalidName, InvalidOwner, InvalidSerializedLock, InvalidTtl, Lease, Loss,
    Name, Owner, Printable, Process, SerializedLock, Timestamp, Ttl,
};

/// Generates texts that resemble durations.
fn nearly_a_ttl() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[-+]?[0-9]{0,25}(\\.[0-9]{0,25})?([eE][-+]?[0-9]{1,4})?",
        "( ?[-+0-9.]{0,22} ?(ns|us|ms|s|sec|m|min|h|d|w|M|y|years)){0,4}",
        "-?(NaN|nan|inf|infinity|none|null)",
    ]
}

fn ttls() -> impl Strategy<Value = Ttl> {
    let longest = u64::try_from(Ttl::MAX.as_nanos()).expect("64 bits");
    let lengths = (1..=longest).prop_map(Duration::from_nanos);
    proptest::option::weighted(0.9, lengths)
        .prop_map(|length| Ttl::try_from(length).expect("a ttl"))
}

fn names() -> impl Strategy<Value = Name> {
    // They include control characters, which `any::<String>()` omits.
    let characters = prop_oneof![any::<char>(), (0_u8..0x30).prop_map(char::from)];
    let texts = proptest::collection::vec(characters, 1..40).prop_map(String::from_iter);
    texts.prop_filter_map("a name", |text: String| Name::new(&text).ok())
}

/// Generates the parts of JSON in any order.
fn nearly_json() -> impl Strategy<Value = String> {
    let pieces = [
        "{", "}", "[", "]", ",", ":", "\"", "\\", "null", "true", "fals", "e", "0", "12", "-",
        ".5", "e+1", " ", "\"a\"", "\"a\":1", "\\u00e9", "\\ud83d", "\\ude00", "\\b", "\u{1}", "é",
        "\"\\/\"",
    ];
    let some = proptest::collection::vec(proptest::sample::select(pieces.to_vec()), 0..8);
    let values = any::<i32>().prop_map(|number| number.to_string());
    prop_oneof![
        2 => some.prop_map(|pieces| pieces.concat()),
        1 => values,
    ]
}

fn leases() -> impl Strategy<Value = (Lease, Ttl)> {
    let fence = any::<Option<u64>>().prop_map(|number| number.and_then(Fence::new));
    (names(), any::<[u8; 16]>(), ttls(), fence).prop_map(|(name, owner, ttl, fence)| {
        let claim = Claim::new(name, Owner::from_bytes(owner), ttl).ephemeral(true);
        (Lease::granted(claim, fence, Timestamp::default()), ttl)
    })
}

proptest! {
    #[test]
    fn parsing_a_ttl_never_panics_and_stays_in_range(text in nearly_a_ttl()) {
        if let Ok(ttl) = text.parse::<Ttl>() {
            prop_assert!(ttl.duration().is_none_or(|length| !length.is_zero()));
            prop_assert!(ttl.duration().is_none_or(|length| length <= Ttl::MAX));
        }
    }

    #[test]
    fn serialized_lock_is_valid_json(lease in leases()) {
        let (lease, ttl) = lease;
        let written = SerializedLock::new(&lease, ttl, Timestamp::default(), Duration::ZERO);
        let value: serde_json::Value = serde_json::from_str(&written.to_string()).expect("JSON");
        prop_assert_eq!(&value["name"], lease.name().as_str());
        let read: SerializedLock = value.to_string().parse().expect("a serialized lock");
        prop_assert_eq!(read.to_string(), written.to_string());
    }

    /// An unknown member is skipped if it is JSON, and rejected otherwise.
    #[test]
    fn unknown_member_must_be_json(junk in nearly_json()) {
        let known = golden("never").to_string();
        let text = known.replacen('{', &format!("{{\"unknown\":{junk},"), 1);
        let is_json = serde_json::from_str::<serde_json::Value>(&text).is_ok();
        match text.parse::<SerializedLock>() {
            Ok(lock) => prop_assert!(is_json && lock == golden("never"), "{text}"),
            Err(why) => prop_assert!(!is_json, "{text}: {why}"),
        }
    }

    #[test]
    fn displayed_ttl_parses_to_the_same_ttl(ttl in ttls()) {
        prop_assert_eq!(ttl.to_string().parse(), Ok(ttl));
    }

    #[test]
    fn a_number_is_milliseconds(millis in 1..=9_223_372_036_854_u64) {
        let ttl = Ttl::new(Duration::from_millis(millis)).expect("a ttl");
        prop_assert_eq!(millis.to_string().parse(), Ok(ttl));
        prop_assert_eq!(format!("  {millis}ms\n").parse(), Ok(ttl));
    }

    #[test]
    fn javascript_number_out_of_range_is_rejected(millis in any::<f64>()) {
        let made = Ttl::from_millis_f64(millis);
        if millis.is_nan() {
            prop_assert_eq!(made, Err(InvalidTtl::NotANumber));
        } else if millis < 0.0 {
            prop_assert_eq!(made, Err(InvalidTtl::Negative));
        } else if millis > 1e13 {
            prop_assert_eq!(made, Err(InvalidTtl::TooLong));
        } else if millis < 1e-7 {
            prop_assert_eq!(made, Err(InvalidTtl::Zero));
        }
    }

    #[test]
    fn a_small_javascript_number_is_that_many_milliseconds(millis in 1..1_000_000_u32) {
        let ttl = Ttl::new(Duration::from_millis(millis.into()));
        prop_assert_eq!(Ttl::from_millis_f64(millis.into()), ttl);
    }

    #[test]
    fn length_out_of_range_is_rejected(length in any::<Duration>()) {
        let expected = if length.is_zero() {
            Err(InvalidTtl::Zero)
        } else if length > Ttl::MAX {
            Err(InvalidTtl::TooLong)
        } else {
            Ok(Some(length))
        };
        prop_assert_eq!(Ttl::new(length).map(Ttl::duration), expected);
    }

    #[test]
    fn any_text_of_the_right_length_is_a_name(text in any::<String>()) {
        match Name::new(&text) {
            Ok(name) => {
                prop_assert_eq!(name.as_str(), &text);
                prop_assert_eq!(name.to_string().parse(), Ok(name));
            }
            Err(InvalidName::Empty) => prop_assert!(text.is_empty()),
            Err(InvalidName::TooLong { bytes }) => {
                prop_assert_eq!(bytes, text.len());
                prop_assert!(bytes > Name::MAX_BYTES);
            }
            Err(other) => prop_assert!(false, "{other}"),
        }
    }

    #[test]
    fn displayed_owner_parses_to_the_same_owner(bytes in any::<[u8; 16]>()) {
        let owner = Owner::from_bytes(bytes);
        let text = owner.to_string();
        prop_assert_eq!(text.len(), 32);
        prop_assert_eq!(text.parse(), Ok(owner));
        prop_assert_eq!(text.to_uppercase().parse(), Ok(owner));
        // A log line does not disclose the token.
        let logged = format!("{owner:?}");
        prop_assert!(!logged.contains(&text[..7]), "{}", logged);
    }

    #[test]
    fn text_other_than_32_hex_digits_is_no_owner(text in "[+-]?[0-9a-fA-Fg]{30,34}|\\PC*") {
        let hex = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        match text.parse::<Owner>() {
            Ok(owner) => {
                prop_assert!(hex);
                prop_assert_eq!(owner.to_string(), text.to_lowercase());
            }
            Err(InvalidOwner) => prop_assert!(!hex),
        }
    }

    #[test]
    fn serialized_lock_is_restored(
        (lease, ttl) in leases(),
        now in 0..10_000_000_u64,
        wall in 0..4_000_000_000_000_u64,
    ) {
        let (now, wall) = (Timestamp::new(Duration::from_millis(now)), Duration::from_millis(wall));
        let serialized = SerializedLock::new(&lease, ttl, now, wall);
        let text = serialized.to_string();
        prop_assert!(!text.contains('\n'));
        let read: SerializedLock = text.parse().expect("what was written");
        prop_assert_eq!(read.name(), lease.name());
        prop_assert_eq!(read.owner(), lease.owner());
        prop_assert_eq!(read.fence(), lease.fence());
        prop_assert_eq!(&read.to_string(), &text);
        // Whole milliseconds, rounded up, so that no length becomes zero.
        let rounded = |read: Option<Duration>, written: Option<Duration>| match (read, written) {
            (Some(read), Some(written)) => {
                (written..written + Duration::from_millis(1)).contains(&read)
            }
            (read, written) => read == written,
        };
        prop_assert!(rounded(read.ttl().duration(), ttl.duration()), "{}", text);
        prop_assert!(rounded(read.expires(), serialized.expires()), "{}", text);
        let again = read.lease(now, wall);
        prop_assert!(rounded(again.remaining(now), lease.remaining(now)), "{}", text);
        prop_assert!(!again.claim().ephemeral);
    }

    #[test]
    fn arbitrary_text_is_no_serialized_lock(text in any::<String>()) {
        prop_assert!(text.parse::<SerializedLock>().is_err());
    }

    #[test]
    fn truncated_serialized_lock_is_rejected(cut in 0..GOLDEN[0].1.trim_end().len()) {
        let text = GOLDEN[0].1;
        if let Some(part) = text.get(..cut) {
            let end = part.parse::<SerializedLock>();
            prop_assert!(matches!(end, Err(InvalidSerializedLock::Unreadable { .. })), "{end:?}");
        }
    }
}

#[test]
fn each_invalid_ttl_has_its_own_error() {
    use InvalidTtl::{Negative, NotANumber, TooLong, Zero};
    let bad = [
        ("0", Zero),
        ("0.0", Zero),
        ("-0", Zero),
        ("0s", Zero),
        ("0ms", Zero),
        ("1e-9", Zero),
        ("-1", Negative),
        ("-0.5", Negative),
        ("-1s", Negative),
        ("- 1 s", Negative),
        ("-inf", Negative),
        ("NaN", NotANumber),
        ("-NaN", NotANumber),
        ("inf", TooLong),
        ("1e300", TooLong),
        ("300y", TooLong),
        ("9223372036855", TooLong),
        ("18446744073709551616", TooLong),
        ("99999999999999999999s", TooLong),
        ("9999999999999999y", TooLong),
        ("18446744073709551615.5s0.5s", TooLong),
        ("18446744073709551615.5s 500ms\u{a0}0ns", TooLong),
        ("18446744073709551615.5s0.5s ?", TooLong),
    ];
    for (text, why) in bad {
        assert_eq!(text.parse::<Ttl>(), Err(why), "{text}");
    }
    for text in ["", " ", "soon", "1 parsec", "s", "1s1", "None", "1,5s"] {
        let end = text.parse::<Ttl>();
        assert!(
            matches!(&end, Err(InvalidTtl::Unreadable { text: named, .. }) if *named == text.trim()),
            "{text}: {end:?}"
        );
    }
}

#[test]
fn human_readable_ttls_are_parsed() {
    let good = [
        ("1s", Some(1_000_000)),
        ("1m 30s", Some(90_000_000)),
        ("1m30s", Some(90_000_000)),
        ("500ms", Some(500_000)),
        ("500", Some(500_000)),
        ("1.5", Some(1_500)),
        ("2h", Some(7_200_000_000)),
        ("none", None),
        ("null", None),
        (" none ", None),
    ];
    for (text, micros) in good {
        let ttl = Ttl::try_from(micros.map(Duration::from_micros)).expect("a ttl");
        assert_eq!(text.parse(), Ok(ttl), "{text}");
        assert_eq!(Ttl::try_from(text), Ok(ttl), "{text}");
    }
    assert_eq!(Ttl::default().duration(), Some(Duration::from_secs(30)));
    assert_eq!(Ttl::try_from(None), Ok(Ttl::NEVER));
}

#[test]
fn debug_text_of_a_name_is_quoted() {
    let name: Name = "a\nb".parse().expect("a name");
    assert_eq!(format!("{name:?}"), r#""a\nb""#);
}

#[test]
fn each_part_of_a_claim_can_be_replaced() {
    let name = |text| Name::new(text).expect("a name");
    let second = Ttl::new(Duration::from_secs(1)).expect("a ttl");
    let old = Claim::new(name("old"), Owner::from_bytes([1; 16]), Ttl::NEVER);
    let owner = Owner::from_bytes([2; 16]);
    let new = old
        .with_name(name("new"))
        .with_owner(owner)
        .with_ttl(second);
    assert_eq!(new, Claim::new(name("new"), owner, second));
}

/// The units of lukeed/ms, by which `@verrou/core` parses durations, in milliseconds.
const MS_UNITS: [(&str, f64); 8] = [
    ("", 1.0),
    ("ms msec msecs millisecond milliseconds", 1.0),
    ("s sec secs second seconds", 1_000.0),
    ("m min mins minute minutes", 60_000.0),
    ("h hr hrs hour hours", 3_600_000.0),
    ("d day days", 86_400_000.0),
    ("w wk wks week weeks", 604_800_000.0),
    ("y yr yrs year years", 31_557_600_000.0),
];

#[test]
fn text_of_lukeed_ms_is_parsed_alike_or_rejected() {
    let mut read = Vec::new();
    for (units, millis) in MS_UNITS {
        for unit in units.split(' ') {
            let title = unit.get(..1).unwrap_or_default().to_uppercase()
                + unit.get(1..).unwrap_or_default();
            for unit in [unit, &unit.to_uppercase(), &title] {
                for number in ["1", "100", "007", "1.5", "0.5", ".5", "2.25"] {
                    for text in [format!("{number}{unit}"), format!("{number} {unit}")] {
                        let expected = number.parse::<f64>().expect("a number") * millis;
                        if let Ok(ttl) = text.parse::<Ttl>() {
                            let length = ttl.duration().expect("an end");
                            assert!(
                                (length.as_secs_f64() * 1000.0 - expected).abs() < 1e-6 * expected,
                                "{text} is {expected} ms, and was read as {length:?}"
                            );
                            read.push(text);
                        }
                    }
                }
            }
        }
    }
    for text in [
        "1S",
        "1 Day",
        ".5m",
        "1MS",
        "100 Msec",
        "1.5 Hours",
        "2.25 wks",
        "1 MIN",
        ".5",
    ] {
        assert!(read.iter().any(|it| it == text), "{text} is refused");
    }
}

#[test]
fn a_capital_m_is_neither_minutes_nor_months() {
    for text in ["1M", "1 M", "1.5M", "1h 1M", "1M 2s"] {
        match text.parse::<Ttl>() {
            Err(InvalidTtl::Unreadable { why, .. }) => {
                let number = if text.contains('.') { "1.5" } else { "1" };
                let ways = format!("write {number}m or {number}month");
                assert!(why.contains(&ways), "{text}: {why}");
            }
            other => panic!("{text} is {other:?}"),
        }
    }
    assert_eq!("1month".parse(), Ttl::new(Duration::from_secs(2_630_016)));
}

/// Texts that the first version wrote, which every later version must read.
const GOLDEN: [(&str, &str); 3] = [
    ("held", include_str!("golden/serialized-v1.json")),
    ("never", include_str!("golden/serialized-v1-never.json")),
    (
        "unfenced",
        include_str!("golden/serialized-v1-unfenced.json"),
    ),
];

fn golden(which: &str) -> SerializedLock {
    let (_, text) = GOLDEN
        .iter()
        .find(|(name, _)| *name == which)
        .expect("a golden file");
    text.parse().expect("a serialized lock")
}

#[test]
fn first_version_is_still_read() {
    let held = golden("held");
    assert_eq!(held.name().as_str(), "nightly/backup of ‘web1’");
    let owner: [u8; 16] = std::array::from_fn(|at| u8::try_from(at).expect("a small number"));
    assert_eq!(held.owner(), Owner::from_bytes(owner));
    assert_eq!(held.ttl().duration(), Some(Duration::from_secs(2)));
    let expires = Duration::from_millis(1_763_892_001_500);
    assert_eq!(held.expires(), Some(expires));
    assert_eq!(held.fence(), Fence::new(7));
    let now = Timestamp::new(Duration::from_secs(100));
    let lease = held.lease(now, Duration::from_secs(1_763_892_001));
    assert_eq!(lease.remaining(now), Some(Duration::from_millis(500)));
    assert!(held.lease(now, expires).is_expired(now));

    let never = golden("never");
    assert_eq!((never.ttl(), never.expires()), (Ttl::NEVER, None));
    assert_eq!(never.fence(), Fence::new(u64::MAX));
    assert_eq!(never.owner(), Owner::from_bytes([0xff; 16]));
    assert_eq!(never.lease(now, expires).ends(), None);

    let unfenced = golden("unfenced");
    assert_eq!(unfenced.fence(), None);
    assert_eq!(unfenced.expires(), Some(Duration::ZERO));
    assert!(unfenced.lease(now, expires).is_expired(now));
}

#[test]
fn serialized_lock_escapes_hidden_characters_and_is_read_back() {
    for name in [
        "\u{202e}txt.exe",
        "👩\u{200d}👧",
        "\u{e0041}\u{1d173}",
        "a\u{85}\u{feff}b",
    ] {
        let held = golden("held");
        let text = held.to_string().replace("nightly/backup of ‘web1’", name);
        let read: SerializedLock = text.parse().expect("a serialized lock");
        assert_eq!(read.name().as_str(), name);
        let written = read.to_string();
        assert!(!written.contains(verrou::is_hidden), "{written:?}");
        assert_eq!(written.parse(), Ok(read));
        let json: serde_json::Value = serde_json::from_str(&written).expect("JSON");
        assert_eq!(json["name"], name);
    }
}

/// The maximum ttl is not a whole number of milliseconds, and the next whole number is not a ttl.
#[test]
fn maximum_ttl_can_be_serialized() {
    let longest = Ttl::new(Ttl::MAX).expect("a ttl");
    let claim = Claim::new(
        Name::new("demo").expect("a name"),
        Owner::from_bytes([7; 16]),
        longest,
    );
    let lease = Lease::granted(claim, None, Timestamp::default());
    let written = SerializedLock::new(&lease, longest, Timestamp::default(), Duration::ZERO);
    let read: SerializedLock = written.to_string().parse().expect("what was written");
    let millis = Duration::from_millis(9_223_372_036_854);
    assert_eq!(read.ttl().duration(), Some(millis));
}

#[test]
fn first_version_is_still_written() {
    for (which, text) in GOLDEN {
        assert_eq!(golden(which).to_string(), text.trim_end(), "{which}");
    }
}

#[test]
fn members_can_be_added_and_come_in_any_order() {
    let text = r#" {"fence":7,"expires":1763892001500,"since":0,"ttl":2000,
        "owner":"000102030405060708090A0B0C0D0E0F","process":{"id":1},
        "name":"nightly\/backup of \u2018web1\u2019","version":1} "#;
    assert_eq!(text.parse(), Ok(golden("held")));
}

#[test]
fn each_corruption_has_its_own_error() {
    use InvalidSerializedLock as Why;
    let corrupted = |from: &str, to: &str| {
        let text = GOLDEN[0].1;
        assert!(text.contains(from), "{from}");
        text.replace(from, to).parse::<SerializedLock>()
    };
    assert_eq!(
        corrupted(r#""version":1"#, r#""version":2"#),
        Err(Why::UnknownVersion { version: 2 })
    );
    assert_eq!(
        r#"{"version":3,"lease":"of another kind"}"#.parse::<SerializedLock>(),
        Err(Why::UnknownVersion { version: 3 })
    );
    assert_eq!(
        corrupted("nightly/backup of ‘web1’", ""),
        Err(Why::Name(InvalidName::Empty))
    );
    assert_eq!(corrupted("0e0f", "0e"), Err(Why::Owner(InvalidOwner)));
    assert_eq!(corrupted("0e0f", "0e0g"), Err(Why::Owner(InvalidOwner)));
    assert_eq!(corrupted("0001", "+001"), Err(Why::Owner(InvalidOwner)));
    assert_eq!(corrupted("2000", "0"), Err(Why::Ttl(InvalidTtl::Zero)));
    assert_eq!(
        corrupted("2000", "9223372036855"),
        Err(Why::Ttl(InvalidTtl::TooLong))
    );
    assert_eq!(
        corrupted(r#""fence":7"#, r#""fence":0"#),
        Err(Why::ZeroFence)
    );
    for (from, to) in [
        (r#""version":1"#, r#""version":"1""#),
        (r#""version":1"#, r#""version":-1"#),
        (r#""version":1,"#, ""),
        (r#""owner":"#, r#""Owner":"#),
        ("2000", "-2000"),
        ("2000", "2000.5"),
        ("2000", r#""2s""#),
        ("1763892001500", "18446744073709551616"),
        ("}", ""),
        ("}", "} and more"),
        ("{", "[{"),
    ] {
        let end = corrupted(from, to);
        assert!(
            matches!(&end, Err(Why::Unreadable { why }) if !why.is_empty()),
            "{from} → {to}: {end:?}"
        );
    }
    for err in [
        corrupted(r#""version":1"#, r#""version":2"#),
        corrupted("0e0f", "0e"),
    ] {
        let text = err.expect_err("a corrupt text").to_string();
        assert!(text.starts_with("it") && !text.ends_with('.'), "{text}");
    }
}

/// A truncated text is not that of a lease without an expiry.
#[test]
fn nullable_members_are_required() {
    for member in [
        r#""ttl":2000,"#,
        r#""expires":1763892001500,"#,
        r#","fence":7"#,
    ] {
        let text = GOLDEN[0].1;
        assert!(text.contains(member), "{member}");
        let end = text.replace(member, "").parse::<SerializedLock>();
        assert!(
            matches!(end, Err(InvalidSerializedLock::Unreadable { .. })),
            "{member}: {end:?}"
        );
    }
}

/// Each control character has a short escape, a long escape, or both.
#[test]
fn control_characters_are_as_in_json() {
    for code in (0..0x20_u8).chain(0x7f..0xa0) {
        let name = format!("a{}b", char::from(code));
        let text = golden("held").to_string();
        let quoted = serde_json::to_string(&name).expect("JSON");
        let text = text.replacen("\"nightly/backup of ‘web1’\"", &quoted, 1);
        let read: SerializedLock = text.parse().expect("a serialized lock");
        assert_eq!(read.name().as_str(), name);
        let text = read.to_string();
        assert!(!text.contains(char::is_control), "{code:#x}: {text:?}");
        let again: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(again["name"], *name);
    }
}

#[test]
fn too_deep_nesting_is_rejected() {
    let nested = |depth| {
        let value = format!("{}0{}", "[".repeat(depth), "]".repeat(depth));
        golden("held")
            .to_string()
            .replacen('{', &format!("{{\"x\":{value},"), 1)
    };
    assert_eq!(nested(99).parse(), Ok(golden("held")));
    for depth in [101, 1 << 20] {
        let end = nested(depth).parse::<SerializedLock>();
        assert!(matches!(end, Err(InvalidSerializedLock::Unreadable { .. })));
    }
}

#[test]
fn only_hidden_characters_are_escaped() {
    let hidden = [
        '\0',
        '\n',
        '\r',
        '\t',
        '\u{1b}',
        '\u{7f}',
        '\u{85}',
        '\u{ad}',
        '\u{61c}',
        '\u{180e}',
        '\u{200b}',
        '\u{200c}',
        '\u{200d}',
        '\u{200e}',
        '\u{200f}',
        '\u{2028}',
        '\u{2029}',
        '\u{202a}',
        '\u{202b}',
        '\u{202c}',
        '\u{202d}',
        '\u{202e}',
        '\u{2060}',
        '\u{2066}',
        '\u{2067}',
        '\u{2068}',
        '\u{2069}',
        '\u{3164}',
        '\u{fe0f}',
        '\u{feff}',
        '\u{fff9}',
        '\u{e0001}',
        '\u{e0041}',
        '\u{e0100}',
    ];
    for char in hidden {
        let text = Printable(&format!("a{char}b")).to_string();
        assert_eq!(text, format!("a{}b", char.escape_default()));
    }
    for text in [
        "",
        "nightly/backup of ‘web1’",
        "e\u{301}",
        "日本語",
        "עברית",
        "🔒",
        r"C:\x",
    ] {
        assert_eq!(Printable(text).to_string(), text);
    }
}

/// All errors that contain a lock's name are one line.
#[test]
fn errors_escape_the_name_of_a_lock() {
    let name: Name = "a\nb\u{202e}\u{200b}c".parse().expect("a name");
    let errors = [
        Error::NotOwner { name: name.clone() },
        Error::NotSerializable { name: name.clone() },
        Error::Lost {
            name: name.clone(),
            loss: Loss::Expired,
            source: None,
        },
        Error::Timeout { attempts: 1, name },
        Error::UnknownStore {
            store: "a\nb\u{202e}\u{200b}c".to_owned(),
        },
    ];
    for error in errors {
        let text = error.to_string();
        assert!(text.contains(r"`a\nb\u{202e}\u{200b}c`"), "{text}");
        assert!(!text.contains(verrou::is_hidden), "{text:?}");
    }
    let process = Process::new(7, "web\n1", "sh\u{202e}");
    assert_eq!(process.to_string(), r"process 7 on web\n1 (sh\u{202e})");
}
