//! Checks the words of the project's text: comments, messages, names of tests and pages are plain technical
//! English. [`RULES`] lists constructions that readers had to guess at, each with the words to use instead.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use xshell::{Shell, cmd};

use crate::project;

/// A construction that the text must not contain.
struct Rule {
    /// Words that follow each other, in upper or lower case; `a|b` stands for either word. With a leading `^`
    /// only at the beginning of a sentence that is not a question.
    words: &'static str,
    /// The words to use instead.
    instead: &'static str,
}

const fn rule(words: &'static str, instead: &'static str) -> Rule {
    Rule { words, instead }
}

const RULES: &[Rule] = &[
    rule(
        "whoever|whomever",
        "the noun: the holder, a waiter, the process, the user",
    ),
    rule(
        "^who|whom|whose",
        "the noun: the holder, a waiter, the process, the user",
    ),
    rule("^what", "a noun: the result, the reply, the files"),
    rule(
        "those who|whom",
        "the noun: the waiters, the holders, the processes",
    ),
    rule("process|holder|waiter|client|task|thread who|whom", "that"),
    rule(
        "nobody|somebody|anybody|everybody",
        "the noun: no process, another owner, every user",
    ),
    rule("no one", "the noun: no process, no owner, no user"),
    rule("told", "notified, given, reported"),
    rule(
        "tell|tells",
        "notify, report, return; for `tell apart`, distinguish",
    ),
    rule("hear|hears|deaf|deafen", "is notified, receives"),
    rule(
        "know|knows|knew|learn|learns|learned|learnt",
        "has, reads, records, detects",
    ),
    rule("believe|believes|believed", "assume"),
    rule("give|gives|given|giving|gave back", "release, return"),
    rule(
        "give|gives|given|giving|gave it|them|locks back",
        "release, return",
    ),
    rule("gives|given|giving|gave up", "cancel, stop, drop"),
    rule("in doubt", "outcome unknown"),
    rule("wish|wishes", "acquire request, claim"),
    rule("afresh|anew", "again; `make anew` is recreate"),
    rule("mend|mends|mended|mending", "fix"),
    rule("heed|heeds|heeded", "consider, follow"),
    rule("for ever", "forever, without a limit"),
    rule("folder|folders", "directory"),
];

/// The extensions of the files to check.
const EXTENSIONS: [&str; 12] = [
    "html", "js", "lua", "md", "mjs", "py", "rs", "sh", "sql", "toml", "ts", "wit",
];

/// Parts of paths with text of other projects, and this file.
const EXEMPT: [&str; 4] = [
    "src/js/package/compat/",
    "wit/deps/",
    "wit/async/deps/",
    "xtask/src/words.rs",
];

/// Names in public interfaces that contain a construction.
const NAMES: [&str; 1] = ["_believed"];

/// Checks the tracked files; without git, as in an archive, all files except those of builds.
///
/// # Errors
///
/// Lists the lines with a construction of [`RULES`].
pub(crate) fn check(shell: &Shell) -> Result<()> {
    let mut found = Vec::new();
    for path in files(shell)? {
        let Ok(text) = fs::read_to_string(project().join(&path)) else {
            continue;
        };
        found.extend(findings(&text).map(|finding| format!("{}:{finding}", path.display())));
    }
    if found.is_empty() {
        return Ok(());
    }
    bail!("{} lines to rephrase\n{}", found.len(), found.join("\n"))
}

/// Returns the line, the construction and the words to use instead, for each construction in `text`.
fn findings(text: &str) -> impl Iterator<Item = String> {
    text.lines().zip(1..).flat_map(|(line, number)| {
        let words = words(line);
        RULES.iter().filter_map(move |rule| {
            let found = rule.find(line, &words)?;
            Some(format!("{number}: `{found}`; instead: {}", rule.instead))
        })
    })
}

impl Rule {
    /// Returns the first part of `line`, which consists of `words`, that matches.
    fn find<'a>(&self, line: &'a str, words: &[(usize, &str)]) -> Option<&'a str> {
        let (begins, pattern) = match self.words.strip_prefix('^') {
            Some(pattern) => (true, pattern),
            None => (false, self.words),
        };
        let pattern: Vec<_> = pattern.split(' ').collect();
        words.windows(pattern.len()).find_map(|candidate| {
            let (start, _) = candidate.first()?;
            let (last, word) = candidate.last()?;
            let end = last + word.len();
            let matches = candidate.iter().zip(&pattern).all(|((_, word), choice)| {
                choice.split('|').any(|it| it.eq_ignore_ascii_case(word))
            });
            let is_phrase = candidate.windows(2).all(|pair| {
                line[pair[0].0 + pair[0].1.len()..pair[1].0]
                    .trim()
                    .is_empty()
            });
            let is_there = matches && is_phrase && (!begins || begins_sentence(line, *start));
            is_there.then(|| &line[*start..end])
        })
    }
}

/// Returns the words of `line`, also those that an identifier consists of, but not those of [`NAMES`], each
/// with its offset.
fn words(line: &str) -> Vec<(usize, &str)> {
    let is_between = |char: char| !char.is_alphanumeric();
    let mut at = 0;
    let pieces = line.split_inclusive(is_between).map(|piece| {
        let start = at;
        at += piece.len();
        (start, piece.trim_end_matches(is_between))
    });
    pieces
        .filter(|(start, word)| !word.is_empty() && !is_in_public_name(line, *start))
        .collect()
}

/// Returns whether one of [`NAMES`] contains the word at `start` in `line`.
fn is_in_public_name(line: &str, start: usize) -> bool {
    let mut occurrences = NAMES.iter().flat_map(|name| {
        let matches = line.match_indices(name);
        matches.map(|(at, name)| at..at + name.len())
    });
    occurrences.any(|range| range.contains(&start))
}

/// Returns whether a sentence begins at `start` in `line`, and is not a question.
fn begins_sentence(line: &str, start: usize) -> bool {
    let (before, after) = line.split_at(start);
    let before = before.trim_end_matches(|char: char| " \t*/!#|>\"'`_([".contains(char));
    after.starts_with(char::is_uppercase)
        && (before.is_empty() || before.ends_with(['.', ':', ';', '-']))
        && !after
            .split(". ")
            .next()
            .is_some_and(|sentence| sentence.contains('?'))
}

/// Returns the paths of all files with text of this project, relative to it.
fn files(shell: &Shell) -> Result<Vec<PathBuf>> {
    let tracked = cmd!(shell, "git ls-files").quiet().ignore_stderr().read();
    let mut files: Vec<PathBuf> = match tracked {
        Ok(list) if !list.is_empty() => list.lines().map(PathBuf::from).collect(),
        _ => {
            let mut files = Vec::new();
            walk(&project(), Path::new(""), &mut files)?;
            files
        }
    };
    files.retain(|path| {
        let is_text = path
            .extension()
            .is_some_and(|it| EXTENSIONS.iter().any(|known| it == *known));
        let path = path.to_string_lossy();
        is_text && !EXEMPT.iter().any(|exempt| path.contains(exempt))
    });
    Ok(files)
}

/// Adds the files in `directory` below `root` to `files`, except in directories of builds and hidden ones.
fn walk(root: &Path, directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(root.join(directory))? {
        let entry = entry?;
        let name = entry.file_name();
        let path = directory.join(&name);
        if !entry.file_type()?.is_dir() {
            files.push(path);
        } else if !["target", "node_modules"].iter().any(|it| name == *it)
            && !name.to_string_lossy().starts_with('.')
        {
            walk(root, &path, files)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// For each rule, in order, a line with its construction and a similar line without it.
    const EXAMPLES: &[(&str, &str)] = &[
        ("/// Wakes whoever waits.", "/// Wakes the next waiter."),
        (
            "/// Waits. Who comes later waits, too.",
            "/// Who holds the lock?",
        ),
        (
            "//! What the stores do.",
            "/// Returns what the store replied.",
        ),
        ("wakes those who wait", "wakes those that wait"),
        ("/// The process who waits.", "/// A user who may write."),
        ("fn nobody_waits()", "fn no_process_waits()"),
        ("because no one waits", "no, one process waits"),
        ("fn is_told_of_a_release()", "a toolchain"),
        ("the kernel tells of a write", "the kernel reports a write"),
        ("the holder hears of it", "the machine is heard"),
        ("a client that knows the token", "the acknowledged write"),
        ("is believed to live", "unbelievable"),
        ("Gives back the lock", "gives the lock that is back"),
        ("a process that gave it back", "gave it. Back there"),
        ("the process gives up", "self.give_up(claim)"),
        ("a request in doubt", "without doubt"),
        ("a wish of this owner", "a wishbone"),
        ("is made anew", "a new file"),
        ("a remedy that mends it", "amended"),
        ("is heeded", "needed"),
        ("waits for ever", "waits forever"),
        ("in its folder", "a folderol"),
    ];

    #[test]
    fn each_rule_finds_its_example_and_no_similar_line() {
        assert_eq!(RULES.len(), EXAMPLES.len());
        for (rule, (example, similar)) in RULES.iter().zip(EXAMPLES) {
            let find = |line| rule.find(line, &words(line));
            assert!(find(example).is_some(), "{}: {example}", rule.words);
            assert_eq!(find(similar), None, "{}: {similar}", rule.words);
        }
    }

    #[test]
    fn finding_has_its_line_and_the_words_to_use_instead() {
        let found: Vec<_> = findings("one\nis told in a folder\n").collect();
        assert_eq!(
            found,
            [
                "2: `told`; instead: notified, given, reported",
                "2: `folder`; instead: directory"
            ]
        );
    }

    #[test]
    fn files_are_found_with_and_without_git() {
        let shell = Shell::new().unwrap();
        shell.change_dir(project());
        let mut walked = Vec::new();
        walk(&project(), Path::new(""), &mut walked).unwrap();
        for files in [files(&shell).unwrap(), walked] {
            assert!(files.contains(&PathBuf::from("src/lib.rs")), "{files:?}");
            assert!(!files.iter().any(|path| path.starts_with("target")));
        }
    }
}
