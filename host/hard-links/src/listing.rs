//! The entries of a lock's directory, as one listing returns them.

use alloc::string::String;
use alloc::vec::Vec;

use crate::file_names::Entry;

/// The entries of a lock's directory.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// The numbers of the states, in ascending order.
    states: Vec<u64>,
    /// The number of the state that each draft is to follow, and the draft's name.
    drafts: Vec<(u64, String)>,
}

impl Listing {
    /// Returns the entries with these names.
    ///
    /// # Errors
    ///
    /// Returns the name of a file that is not this store's.
    pub(crate) fn of(names: Vec<String>) -> Result<Self, String> {
        let mut listing = Self::default();
        for name in names {
            match Entry::of(&name) {
                Entry::State(number) => {
                    // There are few of them.
                    let at = listing.states.partition_point(|&state| state < number);
                    listing.states.insert(at, number);
                }
                Entry::Draft(base) => listing.drafts.push((base, name)),
                Entry::Hidden => {}
                Entry::Foreign => return Err(name),
            }
        }
        Ok(listing)
    }

    /// Returns the number of the current state; zero if the lock was never granted.
    pub(crate) fn current(&self) -> u64 {
        self.states.last().copied().unwrap_or_default()
    }

    /// Returns the states before `number`, in ascending order.
    pub(crate) fn states_before(&self, number: u64) -> impl Iterator<Item = u64> {
        self.states
            .iter()
            .copied()
            .take_while(move |&state| state < number)
    }

    /// Returns the drafts that were to follow a state before `number`.
    pub(crate) fn drafts_before(&self, number: u64) -> impl Iterator<Item = &str> {
        let drafts = self.drafts.iter();
        drafts
            .filter(move |(base, _)| *base < number)
            .map(|(_, name)| &**name)
    }
}
