//! The SQL statements of all operations, and the form of their parameters and results.

use std::time::Duration;

use percent_encoding::{AsciiSet, utf8_percent_encode};
use tokio_postgres::Row;
use verrou::{Fence, Holder, Name};

use crate::store::{About, drift};

/// The statements of all operations.
pub(super) struct Statements {
    pub(super) acquire: String,
    pub(super) extend: String,
    pub(super) release: String,
    pub(super) evict: String,
    pub(super) inspect: String,
    pub(super) list: String,
    pub(super) wait: String,
    pub(super) leave: String,
}

impl Statements {
    pub(super) fn new(schema: &str) -> Self {
        // The columns of `Holder`, and the owner.
        let columns = "name, owner, fence, ttl, about, \
                       (extract(epoch from since) * 1000000)::bigint as since, \
                       (extract(epoch from expires - pg_catalog.clock_timestamp()) * 1000000)::bigint \
                       as remaining";
        let held =
            "owner is not null and (expires is null or expires > pg_catalog.clock_timestamp())";
        Self {
            acquire: format!(
                "select granted, number from {schema}.acquire($1, $2, $3, $4, $5, $6, $7)"
            ),
            extend: format!("select {schema}.extend($1, $2, $3, $4, $5)"),
            release: format!("select {schema}.release($1, $2, $3)"),
            evict: format!("select {schema}.evict($1, $2, $3)"),
            inspect: format!("select {columns} from {schema}.lock where name = $1 and {held}"),
            list: format!("select {columns} from {schema}.lock where {held} order by name"),
            wait: format!("select {schema}.wait($1, $2, $3, $4, $5)"),
            leave: format!("select {schema}.leave($1, $2, $3)"),
        }
    }
}

/// The characters of a name that are percent-encoded: NUL, which no text in a database can contain, and `%`.
const NUL: &AsciiSet = &AsciiSet::EMPTY.add(0).add(b'%');

pub(super) fn text(name: &Name) -> String {
    utf8_percent_encode(name.as_str(), NUL).to_string()
}

/// Returns a length in whole microseconds, rounded up.
pub(super) fn micros(length: Duration) -> i64 {
    // A length that the server can add to any time.
    const LONGEST: u128 = 1 << 60;

    let micros = length.as_nanos().div_ceil(1000).min(LONGEST);
    i64::try_from(micros).unwrap_or(i64::MAX)
}

/// Returns the holder that a row describes.
pub(super) fn holder(row: &Row) -> Option<Holder> {
    let number = |column| {
        let number: Option<i64> = row.try_get(column).ok()?;
        number.and_then(|number| u64::try_from(number).ok())
    };
    let micros = |column| number(column).map(Duration::from_micros);
    // Subtract the time by which the record outlives the lease at its holder; never return zero.
    let remaining = row.try_get::<_, Option<i64>>("remaining").ok()?;
    let remaining = remaining.map(|_| {
        let drift = micros("ttl").map_or(Duration::ZERO, drift);
        let left = micros("remaining").unwrap_or_default();
        left.saturating_sub(drift).max(Duration::from_micros(1))
    });
    let mut holder = Holder::new(number("fence").and_then(Fence::new), remaining);
    holder.since = micros("since");
    let about: Option<&str> = row.try_get("about").ok()?;
    holder.process = about.and_then(About::process_of);
    Some(holder)
}
