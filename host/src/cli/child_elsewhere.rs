//! The command that runs under a lock, on systems without groups of processes and signals.

use std::io;
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::Duration;

use verrou_host::LossWatch;

use super::run::{Ending, Lifeline};

/// A running command.
#[derive(Debug)]
pub(crate) struct Job {
    child: Child,
    ended: Option<ExitStatus>,
}

/// What has become of a [`Job`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(dead_code, reason = "nothing is stopped or continued here")]
pub(crate) enum Event {
    /// Nothing that matters.
    Nothing,
    /// It ended.
    Ended,
    /// Never here.
    Stopped,
    /// Never here.
    Continued,
}

impl Job {
    /// How late the end of the command may be noticed.
    const LOOK: Duration = Duration::from_millis(20);

    /// Starts `command`.
    pub(crate) fn start(
        mut command: Command,
        _lifeline: Option<Lifeline>,
        _ending: Ending,
    ) -> io::Result<Self> {
        let child = command.spawn()?;
        Ok(Self { child, ended: None })
    }

    /// Waits until the command ends, but at most this long.
    pub(crate) fn wait(&mut self, at_most: Duration) -> Event {
        thread::sleep(at_most.min(Self::LOOK));
        if self.ended.is_none()
            && let Ok(Some(status)) = self.child.try_wait()
        {
            self.ended = Some(status);
            return Event::Ended;
        }
        Event::Nothing
    }

    /// [`wait`](Self::wait): nothing here tells of a loss.
    pub(crate) fn wait_with(&mut self, _news: Option<&LossWatch<'_>>, at_most: Duration) -> Event {
        self.wait(at_most)
    }

    /// Whether the command has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// Whether the command has ended.
    pub(crate) fn is_gone(&self) -> bool {
        self.has_ended()
    }

    /// Nothing here.
    pub(crate) fn stop(&mut self) -> bool {
        false
    }

    /// Returns false: a command never requests the terminal on this system.
    pub(crate) fn asks_for_terminal(&mut self) -> bool {
        false
    }

    /// Nothing here.
    pub(crate) fn resume(&mut self) {}

    /// Returns `None`.
    #[expect(clippy::unused_self, reason = "other systems read a field")]
    pub(crate) fn obstacle(&self) -> Option<String> {
        None
    }

    /// Ends the command: there is no way to ask it.
    pub(crate) fn terminate(&mut self) {
        self.kill();
    }

    /// Ends the command.
    pub(crate) fn kill(&mut self) {
        // It fails when the command has ended already.
        let _ = self.child.kill();
    }

    /// Does nothing: a command can always be ended on this system.
    pub(crate) fn leave(&mut self) {}

    /// What the command ended with, as far as it fits.
    pub(crate) fn code(&self) -> u8 {
        let code = self.ended.and_then(|status| status.code());
        code.unwrap_or_default().try_into().unwrap_or(u8::MAX)
    }

    /// Nothing here.
    pub(crate) fn reap(&mut self) {}

    /// The end, when all is done.
    pub(crate) fn end(self) -> u8 {
        self.code()
    }
}
