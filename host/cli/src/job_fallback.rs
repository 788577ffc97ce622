//! The command that runs under a lock, on systems without process groups and signals.

use std::io;
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::Duration;

use verrou_host::LossSignal;

use crate::ending::{Ending, Lifeline};

/// A running command.
#[derive(Debug)]
pub(crate) struct Job {
    child: Child,
    ended: Option<ExitStatus>,
}

/// A change of the state of a [`Job`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(dead_code, reason = "nothing is stopped or continued here")]
pub(crate) enum JobEvent {
    /// No relevant change.
    Nothing,
    /// The command ended.
    Ended,
    /// Does not occur on this system.
    Stopped,
    /// Does not occur on this system.
    Continued,
}

impl Job {
    /// The interval of the checks whether the command has ended.
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

    /// Waits until the command ends, but at most for `at_most`.
    pub(crate) fn wait(&mut self, at_most: Duration) -> JobEvent {
        thread::sleep(at_most.min(Self::LOOK));
        if self.ended.is_none()
            && let Ok(Some(status)) = self.child.try_wait()
        {
            self.ended = Some(status);
            return JobEvent::Ended;
        }
        JobEvent::Nothing
    }

    /// Waits as [`wait`](Self::wait) does: this system does not notify of losses.
    pub(crate) fn wait_with(
        &mut self,
        _loss: Option<&dyn LossSignal>,
        at_most: Duration,
    ) -> JobEvent {
        self.wait(at_most)
    }

    /// Returns whether the command has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// Returns whether the command has ended.
    pub(crate) fn is_gone(&self) -> bool {
        self.has_ended()
    }

    /// Does nothing: processes cannot be stopped on this system.
    pub(crate) fn stop(&mut self) -> bool {
        false
    }

    /// Returns false: a command never requests the terminal on this system.
    pub(crate) fn requests_terminal(&mut self) -> bool {
        false
    }

    /// Does nothing: processes cannot be stopped on this system.
    pub(crate) fn resume(&mut self) {}

    /// Returns `None`.
    #[expect(clippy::unused_self, reason = "other systems read a field")]
    pub(crate) fn obstacle(&self) -> Option<String> {
        None
    }

    /// Ends the command: this system has no request to terminate.
    pub(crate) fn terminate(&mut self) {
        self.kill();
    }

    /// Ends the command.
    pub(crate) fn kill(&mut self) {
        // This fails if the command has ended already.
        let _ = self.child.kill();
    }

    /// Does nothing: a command can always be ended on this system.
    pub(crate) fn leave(&mut self) {}

    /// Returns the exit code of the command, at most 255.
    pub(crate) fn code(&self) -> u8 {
        let code = self.ended.and_then(|status| status.code());
        code.unwrap_or_default().try_into().unwrap_or(u8::MAX)
    }

    /// Does nothing: ended processes need not be reaped on this system.
    pub(crate) fn reap(&mut self) {}

    /// Returns the exit code of the command.
    pub(crate) fn end(self) -> u8 {
        self.code()
    }
}
