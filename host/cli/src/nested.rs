//! Detection of self-deadlock: a lock that is held by an ancestor of this process, which waits for this
//! process to end. `VERROU_HELD` lists these locks.

use std::env;

use serde_json::{Value, json};
use verrou::{Holder, Lease, Name, Store};

use crate::exit::Exit;
use crate::output::{self, Failure};

/// The environment variable with a JSON array of objects, which have the `name`, the `fence` and the
/// `process` of a grant.
pub(crate) const VARIABLE: &str = "VERROU_HELD";

/// Returns the value of `VERROU_HELD` for a command that runs under `lease`, in addition to the locks
/// listed so far.
pub(crate) fn with(lease: &Lease) -> String {
    let mut held = held();
    held.push(json!({
        "name": lease.name().as_str(),
        "fence": lease.fence().map(verrou::Fence::get),
        "process": std::process::id(),
    }));
    Value::Array(held).to_string()
}

/// Fails if an ancestor holds the lock `name`: waiting for it would never end.
pub(crate) fn refuse(store: &impl Store, name: &Name) -> Result<(), Failure> {
    let mut held = held();
    held.retain(|grant| grant["name"] == name.as_str());
    if held.is_empty() {
        return Ok(());
    }
    // The variable was set when the process was started and may be outdated: check the store.
    match store.holders(name).map(|mut holders| holders.pop()) {
        Ok(Some(holder)) if held.iter().any(|grant| is_of(&holder, grant)) => Err(Failure::coded(
            Exit::NotAcquired,
            "E_LOCK_TIMEOUT",
            format!(
                "the lock `{name}` is {}, and this process runs under that one: waiting would never end",
                output::holder(&holder)
            ),
        )),
        _ => Ok(()),
    }
}

fn held() -> Vec<Value> {
    let text = env::var(VARIABLE).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

fn is_of(holder: &Holder, grant: &Value) -> bool {
    let process = holder.process.as_ref().map(|process| process.id);
    process.is_some_and(|id| grant["process"] == id)
        && grant["fence"] == json!(holder.fence.map(verrou::Fence::get))
}
