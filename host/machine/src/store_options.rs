//! The options of a store.

/// Options of a store. A caller begins with the default ones, and sets those that it needs.
///
/// ```
/// let mut options = verrou_machine::StoreOptions::default();
/// options.label = Some("invoice 12".to_owned());
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct StoreOptions {
    /// Lets all members of this group, given by name or number, use the store. With `None`, a new
    /// directory belongs to this user alone, and an existing one keeps the group for which it was
    /// created.
    pub group: Option<String>,
    /// Allows the directory to be on any file system.
    pub any_file_system: bool,
    /// The label of the holder, for display: the program that runs, or the purpose of the lock. The
    /// default is the name of this process's program. The label stays in the record after the release.
    pub label: Option<String>,
    /// Whether a lease that has expired while processes of its holder still live is free.
    pub zombies: Zombies,
    /// Makes the descriptors that programs inherit unable to write the lock's file: a lock of the
    /// kernel is then taken on a second, read-only descriptor.
    pub handed_on: bool,
}

/// Whether an expired lease of which processes of the holder still live is free or held.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[expect(clippy::exhaustive_enums, reason = "it is taken or it is not")]
pub enum Zombies {
    /// The lease is free, because it has expired.
    #[default]
    Take,
    /// The lease is held until those processes have ended.
    Wait,
}

impl StoreOptions {
    /// Returns what these options ask for that only stores in files have, for a message.
    #[doc(hidden)]
    pub fn for_files(&self) -> Option<&'static str> {
        let Self {
            group,
            any_file_system,
            label: _,
            handed_on: _,
            zombies,
        } = self;
        let asked = [
            ("a group", group.is_some()),
            ("a choice of file system", *any_file_system),
            (
                "waiting for a zombie of the holder",
                *zombies == Zombies::Wait,
            ),
        ];
        let found = asked.into_iter().find(|(_, is_asked)| *is_asked);
        found.map(|(what, _)| what)
    }
}
