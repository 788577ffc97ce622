//! The command that runs under a lock, in its own process group.

use std::io::{self, IsTerminal};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitIdStatus, getpgrp, getpid, getppid,
    kill_current_process_group, kill_process_group, test_kill_process, waitid,
};

use verrou_host::LossSignal;

use crate::broken_pipe;
use crate::ending::{Ending, Lifeline};
use crate::guardian::{Guardian, Post};
use crate::output;
use crate::process_group::{self, GroupMembers};
use crate::signals::{self, Signals};
use crate::terminal::Terminal;

/// A running command.
#[derive(Debug)]
pub(crate) struct Job {
    /// Not waited for by the standard library, which does not report stops.
    _child: Child,
    /// The process ID of the command, which is also its process group ID. The process is not reaped
    /// before [`end`](Self::end): until then the kernel does not reuse the number, and the group can be
    /// signalled.
    leader: Pid,
    ended: Option<WaitIdStatus>,
    /// A process of the group that outlived the leader.
    left_behind: Option<Pid>,
    stopped_by: Option<Signal>,
    signals: Signals,
    terminal: Option<Terminal>,
    /// Whether the command uses the terminal: from its start, or since it requested the terminal.
    uses_terminal: bool,
    /// Whether this process has made the command's group the foreground group of the terminal.
    lent: bool,
    guardian: Guardian,
    /// Whether the command was stopped while this process and its group could not be stopped.
    left_stopped: bool,
}

/// A change of the state of a [`Job`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum JobEvent {
    /// No relevant change.
    Nothing,
    /// The command ended.
    Ended,
    /// The user at the terminal, or the terminal itself, stopped the command.
    Stopped,
    /// This process was stopped and has been continued.
    Continued,
}

impl Job {
    /// Starts `command` in a separate process group, which becomes the foreground group if this
    /// process's group is.
    ///
    /// If this process dies first, the command is ended as `ending` specifies, and `lifeline` keeps the lock
    /// until then: a [`Guardian`] does both.
    pub(crate) fn start(
        mut command: Command,
        lifeline: Option<Lifeline>,
        ending: Ending,
    ) -> io::Result<Self> {
        // Handle SIGCHLD before a child exists whose end could be missed. The forwarded signals are
        // handled once the child exists. Until then they end this process, and the lock and the child
        // end with it.
        let signals = Signals::new()?;
        let terminal = Terminal::open();
        let uses_terminal = terminal.is_some() && has_terminal_streams();
        let ours = terminal
            .as_ref()
            .filter(|terminal| uses_terminal && terminal.is_ours());
        let post = Arc::new(Post::new(ending, lifeline)?);
        let preparation = Preparation {
            parent: getpid(),
            death_signal: match ending {
                Ending::Kill => Signal::KILL,
                Ending::Terminate { .. } => Signal::TERM,
            },
            post: Arc::clone(&post),
            terminal: ours.map(Terminal::try_clone).transpose()?,
        };
        let lent = preparation.terminal.is_some();
        command.process_group(0);
        preparation.attach(&mut command);
        let spawned = command.spawn();
        if spawned.is_err() {
            Guardian::cancel(&post);
            if lent {
                take_back(terminal.as_ref());
            }
        }
        let child = spawned?;
        let leader = Pid::from_child(&child);
        let mut job = Self {
            leader,
            _child: child,
            ended: None,
            left_behind: None,
            stopped_by: None,
            signals,
            terminal,
            uses_terminal,
            lent,
            guardian: Guardian::default(),
            left_stopped: false,
        };
        let guarded = Guardian::of(leader, &post).map(|guardian| job.guardian = guardian);
        if let Err(err) = guarded.and_then(|()| job.signals.listen())
            && !job.abandon()
        {
            return Err(err);
        }
        Ok(job)
    }

    /// Waits until the state of the command changes, but at most for `at_most`, and forwards received
    /// signals.
    pub(crate) fn wait(&mut self, at_most: Duration) -> JobEvent {
        self.wait_with(None, at_most)
    }

    /// Waits as [`wait`](Self::wait) does, and also returns when a notification of `loss` is pending.
    pub(crate) fn wait_with(
        &mut self,
        loss: Option<&dyn LossSignal>,
        at_most: Duration,
    ) -> JobEvent {
        // First the signals: after a SIGCONT, the terminal may not be lent any more.
        let mut is_continued = self.forward_signals();
        // The child may have changed its state before the signal handler was installed.
        let mut event = self.look();
        if event == JobEvent::Nothing && !is_continued {
            self.guardian.reap_if_ended();
            self.signals
                .wait(loss.and_then(LossSignal::descriptor), at_most);
        }
        is_continued |= self.forward_signals();
        if is_continued && event == JobEvent::Nothing {
            event = JobEvent::Continued;
        }
        match self.look() {
            JobEvent::Nothing => event,
            change => change,
        }
    }

    /// Forwards pending signals to the command; returns whether SIGCONT was among them.
    fn forward_signals(&mut self) -> bool {
        let mut is_continued = false;
        let pending: Vec<_> = self.signals.pending().collect();
        for signal in pending {
            match signal {
                Signal::CONT => {
                    is_continued = true;
                    // While this process was stopped, a shell may have taken the terminal back.
                    self.lent &= self.is_in_foreground() || self.has_terminal();
                }
                Signal::CHILD => {}
                Signal::TTIN | Signal::TTOU if self.return_terminal() => {}
                _ => {
                    let _ = kill_process_group(self.leader, signal);
                    if signal != Signal::WINCH
                        && let Some(obstacle) = self.obstacle()
                    {
                        output::say(&obstacle);
                    }
                    // No other process continues the command.
                    if self.left_stopped && matches!(signal, Signal::TERM | Signal::HUP) {
                        self.resume();
                    }
                }
            }
        }
        is_continued
    }

    /// Returns the terminal to this process's group, whose processes were stopped when one of them
    /// requested it, and continues them. Returns false if the group is in the background.
    fn return_terminal(&mut self) -> bool {
        if self.has_terminal() {
            take_back(self.terminal.as_ref());
            self.lent = false;
            self.uses_terminal = false;
        } else if !self.is_in_foreground() {
            return false;
        }
        let _ = kill_current_process_group(Signal::CONT);
        true
    }

    /// Returns whether the command's group is the foreground group of the terminal.
    fn has_terminal(&self) -> bool {
        self.terminal
            .as_ref()
            .is_some_and(|terminal| terminal.is_foreground(self.leader))
    }

    /// Returns whether this process's own group is the foreground group of the terminal.
    fn is_in_foreground(&self) -> bool {
        self.terminal.as_ref().is_some_and(Terminal::is_ours)
    }

    /// Returns the change of the command's state since the last call.
    fn look(&mut self) -> JobEvent {
        if self.ended.is_some() {
            return JobEvent::Nothing;
        }
        #[cfg(target_os = "linux")]
        self.reap_orphans();
        let any = WaitIdOptions::EXITED | WaitIdOptions::STOPPED | WaitIdOptions::NOWAIT;
        let Some(status) = self.wait_for(any) else {
            return JobEvent::Nothing;
        };
        if status.stopped() {
            // `waitid` reports a stop until it is consumed. A zombie is not reaped here.
            self.wait_for(WaitIdOptions::STOPPED);
        }
        match status.stopping_signal().and_then(Signal::from_named_raw) {
            Some(signal @ (Signal::TSTP | Signal::TTIN | Signal::TTOU))
                if self.terminal.is_some() =>
            {
                self.stopped_by = Some(signal);
                JobEvent::Stopped
            }
            // No other process could use the terminal until the command continues.
            Some(signal @ Signal::STOP) if self.has_terminal() => {
                self.stopped_by = Some(signal);
                JobEvent::Stopped
            }
            // Any other stop concerns the command alone: the process that stopped it continues it, and
            // renewal continues meanwhile.
            Some(_) => JobEvent::Nothing,
            None => {
                self.ended = Some(status);
                self.guardian.dismiss();
                if self.lent || self.has_terminal() {
                    take_back(self.terminal.as_ref());
                    // A process of this group that requested the terminal before that is stopped.
                    self.forward_signals();
                }
                JobEvent::Ended
            }
        }
    }

    /// Reaps orphans, if this process is the first one of its PID namespace.
    #[cfg(target_os = "linux")]
    fn reap_orphans(&self) {
        use nix::sys::wait::{Id, WaitPidFlag, waitid};

        if !getpid().is_init() {
            return;
        }
        let ended = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
        while let Ok(status) = waitid(Id::All, ended | WaitPidFlag::WNOWAIT)
            && let Some(orphan) = status.pid()
            && orphan.as_raw() != self.leader.as_raw_pid()
        {
            let _ = waitid(Id::Pid(orphan), ended);
        }
    }

    /// Returns the leader's state if it is one of `options`.
    fn wait_for(&self, options: WaitIdOptions) -> Option<WaitIdStatus> {
        waitid(WaitId::Pid(self.leader), options | WaitIdOptions::NOHANG).unwrap_or_default()
    }

    /// Returns whether the command has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// Returns whether the command and all processes of its group have ended, as far as this system
    /// shows.
    pub(crate) fn is_gone(&mut self) -> bool {
        if !self.has_ended() {
            return false;
        }
        self.guardian.wait();
        // To check one known process costs much less than to search for one.
        if self
            .left_behind
            .is_some_and(|one| process_group::has(self.leader, one))
        {
            return false;
        }
        match process_group::members(self.leader) {
            Ok(GroupMembers::Running(process)) => {
                self.left_behind = Some(process);
                false
            }
            Ok(GroupMembers::Zombies | GroupMembers::Unseen) => {
                self.left_behind = None;
                true
            }
            Err(_) => false,
        }
    }

    /// Stops this process and its group, as the command was stopped, until they are continued. Returns
    /// whether the command must be continued, too.
    ///
    /// The kernel does not stop an orphaned process group. In that case the command continues in the
    /// foreground, as it would have in that group, and stays stopped in the background.
    pub(crate) fn stop(&mut self) -> bool {
        if self.requests_terminal() {
            return true;
        }
        let signal = self.stopped_by.take().unwrap_or(Signal::TSTP);
        if self.lent || self.has_terminal() {
            take_back(self.terminal.as_ref());
            self.lent = false;
        }
        if matches!(signal, Signal::TTIN | Signal::TTOU) {
            // A signal to end the command continues it, also meanwhile.
            self.left_stopped = true;
            let is_returned = self.neighbour_returns_terminal(signal);
            let is_stopped = std::mem::take(&mut self.left_stopped);
            if is_returned || !is_stopped {
                return is_stopped;
            }
        }
        signals::signal_own_group(match signal {
            Signal::STOP => Signal::TSTP,
            signal => signal,
        });
        self.left_stopped = !self.forward_signals();
        if self.left_stopped && signal == Signal::TSTP && self.is_in_foreground() {
            self.left_stopped = false;
        }
        !self.left_stopped
    }

    /// Requests the terminal from another `verrou` of this process's group, which may have lent it to its
    /// own command; returns whether this group has it then.
    ///
    /// This process is not stopped meanwhile. Two that request the terminal at the same time would both be
    /// stopped, and none could continue the other.
    fn neighbour_returns_terminal(&mut self, signal: Signal) -> bool {
        const AT_MOST: Duration = Duration::from_millis(100);

        let began = Instant::now();
        let _ = kill_current_process_group(signal);
        loop {
            self.forward_signals();
            let left = AT_MOST.saturating_sub(began.elapsed());
            if self.is_in_foreground() || left.is_zero() || !self.left_stopped {
                return self.is_in_foreground();
            }
            self.signals.wait(None, left.min(Duration::from_millis(5)));
        }
    }

    /// Returns whether the command was stopped because it requests the terminal, and may have it.
    pub(crate) fn requests_terminal(&mut self) -> bool {
        let requests = matches!(self.stopped_by, Some(Signal::TTIN | Signal::TTOU));
        self.uses_terminal |= requests;
        requests && (self.is_in_foreground() || self.has_terminal())
    }

    /// Continues the command. Makes its group the foreground group of the terminal if the command uses
    /// the terminal and this process's group is the foreground group.
    pub(crate) fn resume(&mut self) {
        if let Some(terminal) = &self.terminal {
            self.lent = if terminal.is_ours() {
                self.uses_terminal && terminal.set_foreground(self.leader).is_ok()
            } else {
                terminal.is_foreground(self.leader)
            };
        }
        self.stopped_by = None;
        self.left_stopped = false;
        let _ = kill_process_group(self.leader, Signal::CONT);
    }

    /// Returns why the remaining processes of the command cannot be signalled, and what to do about it:
    /// they have changed their user. Returns `None` if they can be signalled.
    pub(crate) fn obstacle(&self) -> Option<String> {
        let process = match self.ended {
            Some(_) => self.left_behind?,
            None => self.leader,
        };
        // A group can be signalled if one of its processes can: for example the guardian, which has
        // this process's user.
        (test_kill_process(process) == Err(Errno::PERM)).then(|| {
            format!(
                "process {process} cannot be signalled: Operation not permitted; use `sudo verrou …`"
            )
        })
    }

    /// Sends SIGTERM to all processes of the command, and continues stopped ones.
    pub(crate) fn terminate(&self) {
        let _ = kill_process_group(self.leader, Signal::TERM);
        let _ = kill_process_group(self.leader, Signal::CONT);
    }

    /// Sends SIGKILL to all processes of the command.
    pub(crate) fn kill(&self) {
        self.guardian.step_aside();
        let _ = kill_process_group(self.leader, Signal::KILL);
    }

    /// Ends a command that must not run. Returns whether it had ended by itself: no process can be started in
    /// a PID namespace whose first process has ended.
    fn abandon(&mut self) -> bool {
        self.kill();
        // A PID namespace that begins with the command ends after the guardian in it is reaped.
        self.guardian.wait();
        let status = loop {
            // A process that cannot be signalled may never end.
            if test_kill_process(self.leader).is_err() {
                break None;
            }
            let ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            match waitid(WaitId::Pid(self.leader), ended) {
                Err(Errno::INTR) => {}
                status => break status.unwrap_or_default(),
            }
        };
        if status.is_some_and(|status| status.terminating_signal() != Some(Signal::KILL.as_raw())) {
            return true;
        }
        self.reap();
        if self.lent {
            take_back(self.terminal.as_ref());
        }
        false
    }

    /// Leaves a command that cannot be ended running when this process ends, and its lock held until the
    /// command ends.
    pub(crate) fn leave(&mut self) {
        self.guardian.leave();
    }

    /// Returns the exit code of the command, as a shell reports it.
    pub(crate) fn code(&self) -> u8 {
        let Some(status) = self.ended else { return 0 };
        let code = match status.terminating_signal() {
            Some(signal) => 128 + signal,
            None => status.exit_status().unwrap_or_default(),
        };
        code.try_into().unwrap_or(u8::MAX)
    }

    /// Reaps the command if it has ended.
    pub(crate) fn reap(&mut self) {
        self.forward_signals();
        self.wait_for(WaitIdOptions::EXITED);
    }

    /// Reaps the command, and returns its exit code. A Ctrl-C that ended the command also ends this
    /// process's group: the user meant everything that was started with the command, such as the
    /// script that runs this process.
    pub(crate) fn end(mut self) -> u8 {
        self.reap();
        let signal = self.ended.and_then(|status| status.terminating_signal());
        if self.lent && signal == Some(Signal::INT.as_raw()) {
            signals::signal_own_group(Signal::INT);
        }
        self.code()
    }
}

/// Returns whether the command gets the terminal at its start. In a pipeline other processes of this
/// group may read from the terminal, too, and a background job of a script reads from /dev/null: such a
/// command has to request the terminal.
fn has_terminal_streams() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

fn take_back(terminal: Option<&Terminal>) {
    if let Some(terminal) = terminal {
        // This fails only if the terminal has lost its session; then no user is at it.
        let _ = terminal.set_foreground(getpgrp());
    }
}

/// The work of a child before it executes the command.
struct Preparation {
    parent: Pid,
    #[cfg_attr(
        not(target_os = "linux"),
        expect(dead_code, reason = "only Linux sends one when a parent dies")
    )]
    death_signal: Signal,
    post: Arc<Post>,
    terminal: Option<Terminal>,
}

impl Preparation {
    fn attach(self, command: &mut Command) {
        #[expect(
            unsafe_code,
            reason = "no safe call does these things between fork(2) and exec(2)"
        )]
        // SAFETY: `run` only makes system calls, on values that exist already; it neither
        // allocates nor locks anything.
        unsafe {
            command.pre_exec(move || self.run());
        }
    }

    fn run(&self) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        rustix::process::set_parent_process_death_signal(Some(self.death_signal))?;
        // The parent may have died before the death signal was set. In a PID namespace that begins with
        // this child, the parent has no process ID.
        let parent = getppid();
        if parent.is_some_and(|parent| parent != self.parent) {
            return Err(Errno::SRCH.into());
        }
        broken_pipe::restore()?;
        self.post.start_in_child(parent.is_none())?;
        if let Some(terminal) = &self.terminal {
            terminal.set_foreground(getpid())?;
        }
        Ok(())
    }
}
