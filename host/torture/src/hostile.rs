//! Hostile files, users and input.

mod files;
mod input;

use anyhow::Result;

use crate::results::{Findings, Part, Setting};

pub(crate) const PART: Part = Part {
    name: "security",
    about: "planted files, other users, hostile input",
    share: 0,
    run,
};

fn run(setting: &Setting, findings: &mut Findings) -> Result<()> {
    type Section = fn(&Setting, &mut Findings) -> Result<()>;
    let sections: [(&str, Section); 11] = [
        ("planted files", files::planted),
        ("planted wake pipes", files::planted_wake_pipes),
        ("other users' directories and files", files::other_users),
        ("group stores", files::group_stores),
        ("umasks", files::umasks),
        (
            "a file that another process keeps locked",
            files::locked_files,
        ),
        ("names through the library", input::names_in_the_library),
        (
            "names on the command line",
            input::names_on_the_command_line,
        ),
        ("serialized locks through the library", input::serialized),
        (
            "serialized locks on the command line",
            input::serialized_on_the_command_line,
        ),
        ("command lines", input::command_lines),
    ];
    setting.progress.set_length(sections.len() as u64);
    for (what, section) in sections {
        setting.progress.set_message(what);
        section(setting, findings)?;
        setting.progress.inc(1);
    }
    Ok(())
}
