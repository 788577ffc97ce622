//! Hostile input.

mod input;

use anyhow::Result;

use crate::results::{Findings, Part, Setting};

pub(crate) const PART: Part = Part {
    name: "security",
    about: "hostile names, serialized locks and command lines",
    share: 0,
    run,
};

fn run(setting: &Setting, findings: &mut Findings) -> Result<()> {
    type Section = fn(&Setting, &mut Findings) -> Result<()>;
    let sections: [(&str, Section); 5] = [
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
