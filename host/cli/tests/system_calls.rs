//! System calls of `verrou`: no path of a store is resolved as a whole. The tests trace by ptrace(2), because
//! strace(1) is not installed on every machine.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod common;

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Command;

use common::{KINDS, Started, TestDir, stopped};
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

/// A system call that has a path among its arguments.
#[derive(Debug)]
struct Call {
    number: i64,
    paths: Vec<String>,
    flags: u64,
}

/// Returns the indexes of a call's arguments that are paths.
fn paths_of(number: i64) -> &'static [usize] {
    match number {
        libc::SYS_open
        | libc::SYS_stat
        | libc::SYS_lstat
        | libc::SYS_access
        | libc::SYS_chdir
        | libc::SYS_readlink
        | libc::SYS_mkdir
        | libc::SYS_mknod
        | libc::SYS_chmod
        | libc::SYS_chown
        | libc::SYS_lchown
        | libc::SYS_unlink
        | libc::SYS_statfs
        | libc::SYS_creat => &[0],
        libc::SYS_rename | libc::SYS_link => &[0, 1],
        libc::SYS_openat
        | libc::SYS_openat2
        | libc::SYS_newfstatat
        | libc::SYS_statx
        | libc::SYS_faccessat
        | libc::SYS_faccessat2
        | libc::SYS_readlinkat
        | libc::SYS_mkdirat
        | libc::SYS_mknodat
        | libc::SYS_fchmodat
        | libc::SYS_fchownat
        | libc::SYS_unlinkat
        | libc::SYS_inotify_add_watch => &[1],
        libc::SYS_symlinkat => &[2],
        libc::SYS_renameat | libc::SYS_renameat2 | libc::SYS_linkat => &[1, 3],
        _ => &[],
    }
}

fn text_at(memory: &File, address: u64) -> Option<String> {
    let mut bytes = [0; 4096];
    // Reads the rest of a page first, because the next page may not be mapped.
    let length = 4096 - usize::try_from(address % 4096).ok()?;
    let mut read = memory.read_at(&mut bytes[..length], address).ok()?;
    if !bytes[..read].contains(&0) {
        read += memory
            .read_at(&mut bytes[length..], address + length as u64)
            .unwrap_or(0);
    }
    let end = bytes[..read].iter().position(|&byte| byte == 0)?;
    let text = CString::new(&bytes[..end]).ok()?;
    Some(text.to_string_lossy().into_owned())
}

/// Returns the calls with paths of `verrou` with these arguments, without those of the processes that it starts;
/// `None` where programs cannot be traced.
fn calls(dir: &TestDir, words: &str) -> Option<Vec<Call>> {
    let mut command = Command::new("sh");
    // The process stops itself until it is traced.
    command.args(["-c", "kill -STOP $$; exec \"$@\"", "sh"]);
    command
        .arg(env!("CARGO_BIN_EXE_verrou"))
        .args(words.split(' '));
    command.env("XDG_STATE_HOME", dir.path("state"));
    command.env_remove("VERROU_STORE").current_dir("/");
    let traced = Started::new(&mut command);
    stopped(traced.pid());
    let process = Pid::from_raw(traced.id().try_into().unwrap());
    if let Err(err) = ptrace::attach(process) {
        eprintln!("no program can be traced here ({err}): system calls are not tested");
        return None;
    }
    waitpid(process, None).unwrap();
    ptrace::setoptions(
        process,
        Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL | Options::PTRACE_O_TRACEEXEC,
    )
    .unwrap();
    let mut calls = Vec::new();
    let (mut execs, mut is_inside, mut signal) = (0, false, None);
    loop {
        ptrace::syscall(process, signal.take()).unwrap();
        match waitpid(process, None).unwrap() {
            WaitStatus::PtraceSyscall(_) => {
                is_inside = !is_inside;
                // The first program is the shell.
                if !is_inside || execs == 0 {
                    continue;
                }
                let registers = ptrace::getregs(process).unwrap();
                let number = registers.orig_rax.cast_signed();
                let arguments = [registers.rdi, registers.rsi, registers.rdx, registers.r10];
                let memory = File::open(format!("/proc/{process}/mem")).unwrap();
                let paths = paths_of(number).iter();
                let paths: Vec<_> = paths
                    .filter_map(|&at| text_at(&memory, arguments[at]))
                    .collect();
                if !paths.is_empty() {
                    let flags = registers.rdx;
                    calls.push(Call {
                        number,
                        paths,
                        flags,
                    });
                }
            }
            WaitStatus::PtraceEvent(..) => execs += 1,
            WaitStatus::Stopped(_, other) => signal = Some(other),
            WaitStatus::Exited(_, code) => {
                assert_eq!(code, 0, "{words}");
                return Some(calls);
            }
            other => panic!("{words}: {other:?}"),
        }
    }
}

/// A path that is resolved twice may lead to two different files.
#[test]
fn no_path_of_a_store_is_resolved_as_a_whole() {
    for kind in KINDS {
        let dir = TestDir::new(kind);
        let directory = dir.path("");
        let directory = directory.to_str().unwrap().trim_end_matches('/');
        // The first run creates the store, the second finds it.
        for _ in 0..2 {
            let words = format!("run --store {} k -- true", dir.store());
            let Some(calls) = calls(&dir, &words) else {
                return;
            };
            // `O_PATH` without `O_DIRECTORY` would not mount an automount point.
            let path = u64::from(libc::O_PATH.unsigned_abs());
            let must_be_directory = u64::from(libc::O_DIRECTORY.unsigned_abs());
            let walked = calls
                .iter()
                .filter(|call| call.number == libc::SYS_openat && call.flags & path != 0);
            let walked: Vec<_> = walked.collect();
            assert!(!walked.is_empty());
            for call in walked {
                assert!(call.flags & must_be_directory != 0, "{call:?}");
            }
            let named: Vec<_> = calls.iter().flat_map(|call| &call.paths).collect();
            assert!(named.contains(&&"locks".to_owned()), "{named:?}");
            for path in named {
                assert!(!path.starts_with(directory), "{path}: {calls:#?}");
                let is_two = path.starts_with("locks/") && path.matches('/').count() == 1;
                let is_one = !path.trim_matches('/').contains('/');
                let is_elsewhere = path.starts_with('/');
                assert!(is_one || is_two || is_elsewhere, "{path}");
            }
        }
    }
}

/// `fs.protected_regular` (proc(5)) applies to calls with `O_CREAT` only. A directory is opened by another
/// call, which opens no file that was put in its place.
#[test]
fn file_is_opened_as_flock_does() {
    let dir = TestDir::new("file");
    let (file, directory) = (dir.path("app.lock"), dir.path("directory"));
    std::fs::create_dir(&directory).unwrap();
    for file in [&file, &file, &directory] {
        let words = format!("run --file {} -- true", file.display());
        let Some(calls) = calls(&dir, &words) else {
            return;
        };
        let opened = calls.iter().filter(|call| {
            call.number == libc::SYS_openat
                && call.paths.iter().any(|path| OsStr::new(path) == *file)
        });
        let opened: Vec<_> = opened.collect();
        assert!(!opened.is_empty());
        for call in opened {
            let safe = u64::from((libc::O_CREAT | libc::O_DIRECTORY).unsigned_abs());
            assert!(call.flags & safe != 0, "{call:?}");
        }
    }
}
