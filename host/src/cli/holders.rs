//! Who holds what: `show`, `list`, `force-release`.

use std::fmt::Write as _;

use serde_json::{Value, json};
use verrou::{Error, Fence, Holder, Name, Store};
use verrou_host::AnyStore;

use super::arguments::{ForceRelease, Place, Show};
use super::exit::Exit;
use super::report::{self, Failure};
use super::store;

/// Says who holds a lock.
pub(crate) fn show(place: &Place, wish: &Show) -> Result<(), Failure> {
    let name = store::name(&wish.name)?;
    let found = store::open(place)?.inspect(name).map_err(Error::from)?;
    if place.json {
        return report::answer_json(&report::holder_json(name, found.as_ref()));
    }
    report::answer(&match found {
        Some(found) => format!("the lock `{name}` is {}", report::holder(&found)),
        None => format!("the lock `{name}` is free"),
    })
}

/// Lists the locks that are held, and says of which that cannot be told.
pub(crate) fn list(place: &Place) -> Result<(), Failure> {
    let listed = store::open(place)?.list().map_err(Error::from)?;
    let (mut held, mut untold) = (Vec::new(), Vec::new());
    for one in listed {
        match one {
            Ok(row) => held.push(row),
            Err(err) => untold.push(Failure::from(Error::from(err))),
        }
    }
    if place.json {
        let list = held
            .iter()
            .map(|(name, holder)| report::holder_json(name, Some(holder)));
        report::answer_json(&Value::Array(list.collect()))?;
    } else if !held.is_empty() {
        report::answer(&table(&held))?;
    } else if untold.is_empty() {
        report::say("no lock is held");
    }
    let Some(last) = untold.pop() else {
        return Ok(());
    };
    for failure in untold {
        failure.report(place.json);
    }
    Err(last)
}

/// Name, fence, for how long, how long still, and who: each column as wide as it has to be.
fn table(held: &[(Name, Holder)]) -> String {
    let titles = ["NAME", "FENCE", "HELD FOR", "LEFT", "HOLDER"].map(str::to_owned);
    let rows = held.iter().map(|(name, holder)| {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        [
            name.as_str().replace('\n', "\\n"),
            or_dash(holder.fence.map(|fence| fence.to_string())),
            or_dash(report::age(holder).map(report::length)),
            or_dash(holder.remaining.map(report::length)),
            or_dash(holder.process.as_ref().map(ToString::to_string)),
        ]
    });
    let rows: Vec<_> = std::iter::once(titles).chain(rows).collect();
    let width = |column: usize| {
        let widths = rows.iter().map(|row| row[column].chars().count());
        widths.max().unwrap_or_default()
    };
    let widths = [0, 1, 2, 3].map(width);
    let mut text = String::new();
    for row in &rows {
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(text, "{cell:width$}  ");
        }
        let _ = writeln!(text, "{}", row[4]);
    }
    text.trim_end().to_owned()
}

/// Frees a lock, whoever holds it, and says whose it was.
pub(crate) fn force_release(place: &Place, wish: &ForceRelease) -> Result<(), Failure> {
    let name = store::name(&wish.name)?;
    let opened = store::open(place)?;
    let (freed, fence, who) = match wish.fence {
        Some(fence) => {
            let who = opened.inspect(name).ok().flatten();
            if !evict(&opened, name, Some(fence))? {
                return Err(mismatch(name, fence, who.as_ref()));
            }
            (true, Some(fence), who)
        }
        None => evict_anyone(&opened, name)?,
    };
    if place.json {
        let fence = fence.map(Fence::get);
        let answer = json!({ "name": name.as_str(), "freed": freed, "fence": fence });
        return report::answer_json(&answer);
    }
    report::answer(&match who {
        Some(who) if freed => format!(
            "freed the lock `{name}`, which was {}",
            report::holder(&who)
        ),
        _ if freed => format!("freed the lock `{name}`"),
        _ => format!("nobody holds the lock `{name}`"),
    })
}

/// Evicts exactly the grant that is seen, until one was evicted or none is left: what is said to
/// have been freed is what was freed.
fn evict_anyone(
    store: &AnyStore,
    name: &Name,
) -> Result<(bool, Option<Fence>, Option<Holder>), Failure> {
    loop {
        match store.inspect(name) {
            Ok(Some(who)) => {
                if evict(store, name, who.fence)? {
                    return Ok((true, who.fence, Some(who)));
                }
            }
            Ok(None) => return Ok((false, None, None)),
            // Some locks can be freed although nobody can tell how they stand.
            Err(_) => return Ok((evict(store, name, None)?, None, None)),
        }
    }
}

fn evict(store: &AnyStore, name: &Name, only: Option<Fence>) -> Result<bool, Failure> {
    let reply = store.evict(name, only).map_err(Error::from)?;
    Ok(reply.is_granted())
}

fn mismatch(name: &Name, fence: Fence, who: Option<&Holder>) -> Failure {
    let now = match who {
        Some(who) => report::holder(who),
        None => "free".to_owned(),
    };
    Failure::coded(
        Exit::NotOwner,
        "E_LOCK_NOT_OWNER",
        format!("the lock `{name}` is not held under fence {fence}: it is {now}"),
    )
}
