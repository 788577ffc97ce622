//! The scripts of the operations, in `server/redis/*.lua`, and their keys and arguments.

use std::sync::LazyLock;
use std::time::Duration;

use ::redis::{Script, ScriptInvocation};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use verrou::{Name, Owner};

use crate::store::{RESERVATION, WAITER_TIMEOUT};

macro_rules! script {
    ($file:literal) => {
        LazyLock::new(|| Script::new(concat!(include_str!("queue.lua"), include_str!($file))))
    };
}

pub(super) static ACQUIRE: LazyLock<Script> = script!("acquire.lua");
pub(super) static EXTEND: LazyLock<Script> = script!("extend.lua");
pub(super) static RELEASE: LazyLock<Script> = script!("release.lua");
pub(super) static EVICT: LazyLock<Script> = script!("evict.lua");
pub(super) static WAIT: LazyLock<Script> = script!("wait.lua");
pub(super) static LEAVE: LazyLock<Script> = script!("leave.lua");

/// The characters of a name that are percent-encoded in a key: braces, which would end the hash tag of
/// Redis Cluster, `%` and control characters.
const BRACES: &AsciiSet = &CONTROLS.add(b'{').add(b'}').add(b'%');

/// Returns the key of the record of `name`. The name in braces is the hash tag of Redis Cluster.
pub(super) fn key(prefix: &str, name: &Name) -> String {
    let name = utf8_percent_encode(name.as_str(), BRACES);
    format!("{prefix}{{{name}}}")
}

/// Returns the name of the lock whose record has this key.
pub(super) fn name_of(prefix: &str, key: &str) -> Option<Name> {
    let braced = key.strip_prefix(prefix)?;
    let encoded = braced.strip_prefix('{')?.strip_suffix('}')?;
    Name::new(&percent_decode_str(encoded).decode_utf8().ok()?).ok()
}

/// Returns an invocation of `script` on the record with that key, and its three other keys.
pub(super) fn on_keys<'a>(script: &'a Script, key: &str) -> ScriptInvocation<'a> {
    let mut script = script.prepare_invoke();
    for suffix in ["", ":fence", ":queue", ":waiting"] {
        script.key(format!("{key}{suffix}"));
    }
    script
}

/// Returns an invocation of [`LEAVE`] or [`RELEASE`] with its arguments.
pub(super) fn of_owner<'a>(script: &'a Script, key: &str, owner: Owner) -> ScriptInvocation<'a> {
    let mut script = on_keys(script, key);
    script.arg(owner.to_string()).arg(millis(RESERVATION));
    script
}

/// Adds the arguments of [`WAIT`].
pub(super) fn in_queue(
    script: &mut ScriptInvocation<'_>,
    owner: &Owner,
    channel: &str,
    is_kept: bool,
) {
    script
        .arg(owner.to_string())
        .arg(millis(WAITER_TIMEOUT))
        .arg(channel)
        .arg(u8::from(is_kept));
}

/// Returns a number as text, or an empty argument.
pub(super) fn or_nothing(number: Option<u64>) -> String {
    number.map_or_else(String::new, |number| number.to_string())
}

/// Returns a length in whole milliseconds, rounded up.
pub(super) fn millis(length: Duration) -> u64 {
    // The latest expiry of a key.
    const LATEST: u128 = 1 << 53;

    length.as_nanos().div_ceil(1_000_000).min(LATEST) as u64
}
