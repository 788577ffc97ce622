//! The subcommands on holders: `show`, `list`, `force-release`, and `store`.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};
use verrou::{Error, Fence, Holder, Name, Store};
use verrou_host::{AnyStore, FileError};

use crate::arguments::{ForceRelease, GlobalOptions, Show};
use crate::exit::Exit;
use crate::output::{self, Failure};
use crate::store;

/// Prints the URL of the store that is used.
pub(crate) fn store(global: &GlobalOptions) -> Result<(), Failure> {
    let url = store::url(global)?.absolute().to_string();
    if global.json {
        return output::answer_json(&json!({ "store": url }));
    }
    output::answer(&url)
}

/// Prints the holder of a lock. Creates nothing.
pub(crate) fn show(global: &GlobalOptions, args: &Show) -> Result<(), Failure> {
    if let Some(path) = &args.target.file {
        return show_file(global, path);
    }
    let name = store::name(args.target.name())?;
    let url = store::url(global)?.absolute();
    let opened = store::open_existing(global)?;
    let found = match &opened {
        Some(opened) => opened.holders(name).map_err(Error::from)?.pop(),
        None => None,
    };
    if global.json {
        let mut answer = output::holder_json(name, found.as_ref());
        answer["store"] = url.to_string().into();
        return output::answer_json(&answer);
    }
    output::answer(&match (found, opened) {
        (Some(found), _) => format!("the lock `{name}` is {}", output::holder(&found)),
        (None, Some(_)) => format!("the lock `{name}` is free in {url}"),
        (None, None) => format!("the lock `{name}` is free: {}", store::missing(&url)),
    })
}

/// Prints the holder of the kernel's lock on a file.
fn show_file(global: &GlobalOptions, path: &Path) -> Result<(), Failure> {
    let found = AnyStore::find_path(path, global.store.as_ref(), &store::options(global))?;
    let shown = path.display().to_string();
    let Some(opened) = found else {
        if global.json {
            return output::answer_json(&json!({ "name": shown, "held": false }));
        }
        return output::answer(&format!("`{shown}` is free: there is no such file"));
    };
    let name = opened.name;
    let holder = opened.store.holders(&name).map_err(Error::from)?.pop();
    if global.json {
        return output::answer_json(&output::holder_json(&name, holder.as_ref()));
    }
    output::answer(&match holder {
        Some(holder) => format!("`{shown}` is {}", output::holder(&holder)),
        None => format!("`{shown}` is free"),
    })
}

/// Prints the locks that are held, and reports those whose state cannot be determined.
pub(crate) fn list(global: &GlobalOptions) -> Result<(), Failure> {
    let url = store::url(global)?.absolute();
    let opened = store::open_existing(global)?;
    let listed = match &opened {
        Some(opened) => opened.list().map_err(Error::from)?,
        None => Vec::new(),
    };
    let (mut held, mut unknown) = (Vec::new(), Vec::new());
    for one in listed {
        match one {
            Ok(row) => held.push(row),
            Err(err) => unknown.push(Failure::from(Error::from(err))),
        }
    }
    if global.json {
        if opened.is_none() {
            output::warn(true, &store::missing(&url));
        }
        let list = held
            .iter()
            .map(|(name, holder)| output::holder_json(name, Some(holder)));
        output::answer_json(&Value::Array(list.collect()))?;
    } else if !held.is_empty() {
        output::answer_lines(&table(&held))?;
    } else if unknown.is_empty() {
        output::say(&match &opened {
            Some(_) => format!("no lock is held in {url}"),
            None => format!("no lock is held: {}", store::missing(&url)),
        });
    }
    let Some(last) = unknown.pop() else {
        return Ok(());
    };
    for failure in unknown {
        failure.report(global.json);
    }
    Err(last)
}

/// Returns a table of the held locks, with columns as wide as their contents.
fn table(held: &[(Name, Holder)]) -> String {
    let titles = ["NAME", "FENCE", "HELD FOR", "LEFT", "HOLDER"].map(str::to_owned);
    let rows = held.iter().map(|(name, holder)| {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        [
            output::one_line(name.as_str()),
            or_dash(holder.fence.map(|fence| fence.to_string())),
            or_dash(output::age(holder).map(output::length)),
            or_dash(holder.remaining.map(output::length)),
            or_dash(holder.process.as_ref().map(|process| {
                let detached = if holder.detached {
                    "detached, acquired by "
                } else {
                    ""
                };
                output::one_line(&format!("{detached}{process}"))
            })),
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

/// Force-releases a lock, and prints its previous holder.
pub(crate) fn force_release(global: &GlobalOptions, args: &ForceRelease) -> Result<(), Failure> {
    let name = store::name(args.name.name())?;
    let Some(opened) = store::open_existing(global)? else {
        return nothing_released(global, args, name);
    };
    let (freed, fence, holder) = match args.fence {
        Some(fence) => {
            let holder = opened.holders(name).unwrap_or_default().pop();
            if !try_force_release(&opened, name, Some(fence))? {
                return Err(mismatch(name, fence, holder.as_ref()));
            }
            (true, Some(fence), holder)
        }
        None => release_any_holder(&opened, name)?,
    };
    if global.json {
        let fence = fence.map(Fence::get);
        let answer = json!({ "name": name.as_str(), "freed": freed, "fence": fence });
        return output::answer_json(&answer);
    }
    output::answer(&match holder {
        Some(holder) if freed => format!(
            "freed the lock `{name}`, which was {}",
            output::holder(&holder)
        ),
        _ if freed => format!("freed the lock `{name}`"),
        _ => format!("the lock `{name}` is not held"),
    })
}

/// Reports that the store does not exist, so that no lock was force-released.
fn nothing_released(
    global: &GlobalOptions,
    args: &ForceRelease,
    name: &Name,
) -> Result<(), Failure> {
    let missing = store::missing(&store::url(global)?);
    if let Some(fence) = args.fence {
        return Err(mismatch(name, fence, None).advising(&missing));
    }
    if global.json {
        output::warn(true, &missing);
        let answer = json!({ "name": name.as_str(), "freed": false, "fence": Value::Null });
        return output::answer_json(&answer);
    }
    output::answer(&format!("the lock `{name}` is not held: {missing}"))
}

/// Force-releases exactly the grant that was inspected. Repeats that until one was force-released or the
/// lock is free, so that the command reports the holder that was in fact released.
fn release_any_holder(
    store: &AnyStore,
    name: &Name,
) -> Result<(bool, Option<Fence>, Option<Holder>), Failure> {
    loop {
        match store.holders(name).map(|mut holders| holders.pop()) {
            Ok(Some(holder)) => {
                if try_force_release(store, name, holder.fence)? {
                    return Ok((true, holder.fence, Some(holder)));
                }
            }
            // An expired lease cannot be renewed after a force-release. Some locks can be
            // force-released although their state cannot be read.
            Ok(None) | Err(_) => return Ok((try_force_release(store, name, None)?, None, None)),
        }
    }
}

fn try_force_release(store: &AnyStore, name: &Name, only: Option<Fence>) -> Result<bool, Failure> {
    store.force_release(name, only).map_err(|err| {
        match err.get_ref().downcast_ref() {
            // The store does not support force-release.
            Some(err @ FileError::NotEvictable { .. }) => {
                Failure::new(Exit::Usage, err.to_string())
            }
            _ => Error::from(err).into(),
        }
    })
}

fn mismatch(name: &Name, fence: Fence, holder: Option<&Holder>) -> Failure {
    let now = match holder {
        Some(holder) => output::holder(holder),
        None => "free".to_owned(),
    };
    Failure::coded(
        Exit::NotOwner,
        "E_LOCK_NOT_OWNER",
        format!("the lock `{name}` is not held under fence {fence}: it is {now}"),
    )
}
