//! Child processes: starting them, waiting for their end, and their output.

use std::env;
use std::fs::{self, File, Permissions};
use std::io::{Read, Seek};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// The time within which every program ends, even on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// Copies the `verrou` command that was built with this program to `directory`, where every user
/// can run it, and returns its path.
pub(crate) fn verrou(directory: &Path) -> Result<PathBuf> {
    let this = env::current_exe().context("cannot find the path of this program")?;
    let built = this.with_file_name("verrou");
    ensure!(
        built.exists(),
        "{} does not exist: build it with `cargo build -p verrou-cli`, in the same \
         profile as this program",
        built.display()
    );
    fs::set_permissions(directory, Permissions::from_mode(0o755))?;
    let copied = directory.join("verrou");
    if !copied.exists() {
        fs::copy(&built, &copied).with_context(|| format!("copy {}", built.display()))?;
        fs::set_permissions(&copied, Permissions::from_mode(0o755))?;
    }
    Ok(copied)
}

/// The exit status and the output of a program.
#[derive(Debug)]
pub(crate) struct Ended {
    status: ExitStatus,
    pub(crate) out: String,
    pub(crate) err: String,
    pub(crate) took: Duration,
}

impl Ended {
    /// Returns its exit code; `None` if a signal ended it.
    pub(crate) fn code(&self) -> Option<i32> {
        self.status.code()
    }
}

/// A running program.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    began: Instant,
    /// The files of its standard output and error; not pipes, which a surviving child process could
    /// keep open.
    output: [File; 2],
}

impl Running {
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let output = [tempfile::tempfile()?, tempfile::tempfile()?];
        let [out, err] = [output[0].try_clone()?, output[1].try_clone()?];
        let began = Instant::now();
        let child = command.stdout(out).stderr(err).spawn();
        let child = child.with_context(|| format!("start {command:?}"))?;
        Ok(Self {
            child,
            began,
            output,
        })
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Waits for its end, for `length` at most, and returns whether it ended.
    pub(crate) fn ends_within(&mut self, length: Duration) -> Result<bool> {
        let end = Instant::now() + length;
        if self.child.try_wait()?.is_some() {
            return Ok(true);
        }
        let handle = pidfd_open(self.pid(), PidfdFlags::empty()).context("pidfd_open(2)")?;
        loop {
            if self.child.try_wait()?.is_some() {
                return Ok(true);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let left = Timespec {
                tv_sec: left.as_secs().cast_signed(),
                tv_nsec: left.subsec_nanos().into(),
            };
            let mut events = [PollFd::new(&handle, PollFlags::IN)];
            match poll(&mut events, Some(&left)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(err) => return Err(err).context("poll(2)"),
            }
        }
    }

    /// Waits for its end, and kills it after `deadline`.
    pub(crate) fn end_within(mut self, deadline: Duration) -> Result<Ended> {
        if !self.ends_within(deadline)? {
            self.child.kill()?;
        }
        let status = self.child.wait()?;
        let took = self.began.elapsed();
        let [out, err] = self.output.each_mut().map(|file| {
            let mut bytes = Vec::new();
            file.rewind()?;
            file.read_to_end(&mut bytes)?;
            anyhow::Ok(String::from_utf8_lossy(&bytes).into_owned())
        });
        Ok(Ended {
            status,
            out: out?,
            err: err?,
            took,
        })
    }

    pub(crate) fn end(self) -> Result<Ended> {
        self.end_within(DEADLINE)
    }

    /// Returns its standard output so far.
    pub(crate) fn output_so_far(&self) -> Result<String> {
        use std::os::unix::fs::FileExt;

        let mut bytes = vec![0; 1 << 16];
        let length = self.output[0].read_at(&mut bytes, 0)?;
        Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
    }

    /// Waits until its standard output contains `word`.
    pub(crate) fn wait_for_output(&mut self, word: &str) -> Result<()> {
        let began = Instant::now();
        while !self.output_so_far()?.contains(word) {
            let is_over = self.child.try_wait()?.is_some() && !self.output_so_far()?.contains(word);
            ensure!(
                !is_over && began.elapsed() < DEADLINE,
                "a program did not print `{word}`"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has usually ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `command` to its end, with an empty standard input.
pub(crate) fn run(command: &mut Command) -> Result<Ended> {
    Running::start(command.stdin(Stdio::null()))?.end()
}
