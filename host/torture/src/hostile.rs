//! Other users, hostile words, and stores that lie.

mod files;
mod stores;
mod words;

use anyhow::Result;

use crate::findings::{Findings, Part, Setting};

pub(crate) const PART: Part = Part {
    name: "security",
    about: "planted files, other users, hostile words, and stores that lie",
    share: 0,
    run,
};

fn run(setting: &Setting, findings: &mut Findings) -> Result<()> {
    type Section = fn(&Setting, &mut Findings) -> Result<()>;
    let sections: [(&str, Section); 13] = [
        ("planted files", files::planted),
        ("planted bells", files::planted_bells),
        ("other users' folders and files", files::of_other_users),
        ("group stores", files::of_groups),
        ("umasks", files::umasks),
        ("a file that is kept locked", files::denied),
        ("names in the library", words::names_in_the_library),
        ("names typed", words::names_typed),
        ("serialized locks", words::serialized),
        ("serialized locks typed", words::serialized_typed),
        ("command lines", words::command_lines),
        ("stores that lie", stores::lies),
        (
            "stores that lie to those who keep a lease",
            stores::lies_to_keepers,
        ),
    ];
    setting.progress.set_length(sections.len() as u64);
    for (what, section) in sections {
        setting.progress.set_message(what);
        section(setting, findings)?;
        setting.progress.inc(1);
    }
    Ok(())
}
