//! The command line, as clap parses it.

#![expect(
    clippy::doc_markdown,
    reason = "these comments are the help, which is plain text"
)]

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use verrou::{Fence, InvalidRetry, Name, Retry, Ttl};
use verrou_host::{StoreUrl, Zombies};

use crate::value_parsers::{attempts, delay, fence, length, likely_name, name, store, ttl};

const EXAMPLES: &str = "\
Examples:
  verrou run backup -- rsync -a /home /mnt/backup
      Runs rsync while no other `verrou run backup` runs; waits until the lock is granted.
  verrou run backup --no-wait -- ./backup.sh || echo 'it is running already'
      Fails at once with exit code 75 if the lock is held.
  verrou run --file /var/lock/app.lock -- ./deploy
      Excludes, and is excluded by, every program that locks that file with flock(1).
  export VERROU_LOCK; VERROU_LOCK=$(verrou acquire deploy --ttl 10m)
  verrou extend --ttl 10m; verrou release
      Acquires a lock that outlives the command; any process can release it later.
  verrou list; verrou show backup; verrou force-release backup
      Prints the held locks and their holders; ends a lock that another process holds.
  verrou fence check --file app.fence -- ./write
      Under `verrou run`: writes, unless a later holder of the lock has written already.

Stores (--store or VERROU_STORE):
  lease:DIR  leases in files: they end by their ttl, and when their processes have ended;
             they can be transferred to other processes
  file:DIR   the kernel's locks (flock) on files: they end when their processes have ended
  wasi:DIR   leases as hard links, which WebAssembly programs use, too: they end by their ttl
  redis://HOST, postgres://HOST/DATABASE, etcd://HOST
             leases on a server, for the processes of many machines, if this program is built with
             the feature for it; they end by their ttl. All users who can list processes can read
             a password in a URL: put it into VERROU_STORE, or add ?password-file=FILE
  lease:DIR?group=G, file:DIR?group=G, wasi:DIR?group=G
             shared with the members of a group, as with --group
  The default is lease:$XDG_STATE_HOME/verrou, for root lease:/var/lib/verrou, else
  lease:~/.local/state/verrou.

Lengths of time are written like 500ms, 10s, 1m 30s, each number with its unit.

Exit codes:
  of CMD   the exit code of CMD; 128+n when signal n ended it
  64       the command line is invalid, or the store does not support the operation
  73       the store cannot be created or opened, or its server cannot be reached
  74       the store failed, or the output could not be written
  75       the lock was not acquired in time (or the code of -E)
  76       the lock was lost while CMD ran, whatever the exit code of CMD
  77       not the owner: the lock was released or force-released, or its lease has expired
  78       `fence check`: a greater fencing token has been accepted
  126      CMD could not be started
  127      CMD was not found";

/// Runs a command while holding a named lock, so that it never runs twice at once.
///
/// A lock is a name. Its holder has a lease, which is renewed while the holder runs, and ends by
/// itself after the holder has ended.
#[derive(Debug, Parser)]
#[command(name = "verrou", version, after_help = EXAMPLES, max_term_width = 100)]
#[command(disable_help_subcommand = true, subcommand_required = true)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: GlobalOptions,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The options of all subcommands: the store, and the format of the output.
#[derive(Args, Debug)]
#[command(next_help_heading = "Global options")]
pub(crate) struct GlobalOptions {
    /// The store: `lease:DIR`, `file:DIR`, `wasi:DIR`, or a server; without it, VERROU_STORE
    #[arg(long, global = true, value_name = "URL", value_parser = OsStringValueParser::new().try_map(store))]
    pub(crate) store: Option<StoreUrl>,
    /// Shares the store with all members of GROUP, a name or number, as `lease:DIR?group=GROUP` does
    #[arg(long, global = true, value_name = "GROUP")]
    pub(crate) group: Option<String>,
    /// Accepts any file system for the store
    #[arg(long, global = true)]
    pub(crate) any_file_system: bool,
    /// Prints results and errors as JSON, one value per line
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Prints grants, losses and releases of locks to standard error; `-vv` also waits and renewals
    #[cfg(feature = "tracing")]
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a command while holding a lock
    ///
    /// Acquires the lock NAME, runs CMD, renews the lease while CMD runs, and releases the lock
    /// when CMD ends. CMD has VERROU_NAME, VERROU_FENCE, VERROU_LOCK, VERROU_STORE and
    /// VERROU_HELD in its environment, and is sent the signals INT, TERM, HUP, QUIT, USR1, USR2
    /// and WINCH that this process receives.
    #[command(after_help = RUN_HELP, override_usage = RUN_USAGE)]
    Run(Run),
    /// Acquire a lock that outlives this command, and print it
    ///
    /// The printed text is all that `extend` and `release` need, from any process: keep it
    /// secret. The lease ends by its ttl unless it is extended.
    Acquire(AcquireOptions),
    /// Extend the lease of an acquired lock, and print it
    Extend(Extend),
    /// Release an acquired lock
    Release(Release),
    /// Release a lock, even if another process holds it
    ///
    /// The holder's `verrou run` detects this, at its next renewal at the latest, and ends its
    /// command. Exit code 77 if --fence is given and the lock is not held under it.
    ForceRelease(ForceRelease),
    /// Show the holder of a lock
    Show(Show),
    /// List the locks that are held
    List,
    /// Print the URL of the store that is used
    Store,
    /// Reject writes of processes that have lost the lock
    #[command(subcommand, disable_help_subcommand = true)]
    Fence(FenceCommand),
    /// Answer a program's requests to the store, one line of JSON each
    ///
    /// For programs in any language that use this machine's locks: they start this command, write
    /// each request to its standard input, and read the answer, until they close the input.
    /// Ephemeral leases end with this command, however it ends.
    #[command(after_help = SERVE_HELP)]
    Serve(Serve),
}

/// The resource's operations on fencing tokens.
#[derive(Debug, Subcommand)]
pub(crate) enum FenceCommand {
    /// Accept a fencing token, unless a greater one has been accepted
    ///
    /// FILE keeps the greatest accepted token. The token of a later grant of the lock is greater,
    /// so a holder that has lost the lock without noticing, for example because it was stopped for
    /// longer than its lease lasts, is rejected: exit code 78.
    ///
    /// With CMD, FILE accepts no other token before CMD has ended. Without it, a process that is
    /// stopped after the check can still write after the next holder.
    #[command(after_help = FENCE_CHECK_HELP, override_usage = FENCE_CHECK_USAGE)]
    Check(FenceCheck),
    /// Set the greatest accepted token of FILE, if FILE rejects every holder
    ///
    /// For a FILE that is corrupt, or that has accepted a number that no store has granted.
    ///
    /// DANGER: with N less than the fencing token of the last holder, FILE accepts holders that have
    /// lost the lock, and they overwrite newer work. End them first. N is right if it is the token
    /// that `verrou show` prints for the present holder, or that VERROU_FENCE has under a new
    /// `verrou run`.
    ///
    /// Only FILE's owner, or root, can do this, and only while no `fence check` runs a CMD. The
    /// previous token of FILE is printed.
    #[command(after_help = FENCE_RESET_HELP)]
    Reset(FenceReset),
}

const FENCE_RESET_HELP: &str = "\
Exit codes: 0; 75 a CMD of `fence check` runs, 74 FILE does not exist, belongs to another user, is
not a file of `fence check`, or cannot be read or written, 73 its directory does not exist or is
refused, 64 usage.";

const FENCE_CHECK_USAGE: &str = "verrou fence check [OPTIONS] --file <FILE> [FENCE] [-- <CMD>...]";

const FENCE_CHECK_HELP: &str = "\
Example:
  verrou run report -- sh -c '
      make-report > report.$VERROU_FENCE &&
      verrou fence check --file report.fence -- mv report.$VERROU_FENCE report'

One FILE is for one resource, and for the fencing tokens of one lock. If it does not exist, it is
created; its directory is not. Removing FILE discards the greatest accepted token.

Exit codes: 0, or those of CMD, 128+n when signal n ended it; 78 a greater token was accepted,
75 the CMD of another check kept FILE for too long, 74 FILE cannot be opened, read or written, or
is corrupt, 73 its directory does not exist or is refused, 64 usage, 126/127 CMD could not be
started / was not found. CMD is run only if the token is accepted.";

const RUN_USAGE: &str = "\
verrou run [OPTIONS] <NAME> -- <CMD>...
       verrou run [OPTIONS] --file <PATH> -- <CMD>...";

const RUN_HELP: &str = "\
Exit codes: those of CMD, 128+n when signal n ended it; 75 not acquired in time (or the code of
-E), 76 lost while CMD ran, 77 not the owner, 74 the store failed, 73 no store, 64 usage,
126/127 CMD could not be started / was not found.";

pub(crate) const SERVE_HELP: &str = "\
Prints {\"protocol\":\"verrou serve\",\"version\":1} first, or an error if the store cannot be opened, and
then one line for each line of input. It ignores SIGTERM, SIGINT and SIGHUP: it ends with its input.
Requests, and their answers:
  {\"acquire\":{\"name\":\"x\",\"owner\":\"00112233445566778899aabbccddeeff\",\"ttl\":30000000000,
              \"ephemeral\":true}}
      {\"granted\":7}, with the fencing token; {\"refused\":29000000000}, the time left, or null
  {\"extend\":{...}}, {\"release\":{...}}, {\"detach\":{...}}, with the members of `acquire`
      {\"granted\":7} or {\"granted\":null}; {\"refused\":null}
  {\"renew\":{...}}, with those and \"fencing_token\": for a client that keeps a lease alive
      {\"renewed\":\"granted\"}, \"released\" or \"lost\"
  {\"evict\":{\"name\":\"x\",\"only\":7}}, with null for any holder
      {\"granted\":7} or {\"granted\":null}; {\"refused\":null}
  {\"inspect\":{\"name\":\"x\"}}
      {\"holder\":{\"owner\":\"0011...\",\"fencing_token\":7,\"remaining\":29000000000}};
      {\"holder\":null}
  {\"abilities\":{}}
      {\"abilities\":{\"expires\":true,\"ephemeral\":true,\"transfers\":true,\"evicts\":true,
                    \"fences\":true,\"revives\":true}}
  {\"wait\":{\"name\":\"x\",\"at_most\":500000000}}
      {\"waited\":true}; {\"waited\":false} from a store that cannot wait
  {\"notify\":{\"id\":1,...}}, with the members of `acquire`: joins the wait queue
      {\"queued\":true}, and later a line {\"notified\":1} when an attempt may succeed
  {\"queue\":{...}}, with the members of `acquire`: joins the wait queue without notifications
      {\"queued\":true}; {\"queued\":false} from a store without a queue
  {\"give_up\":{...}}, with those members: leaves the wait queue
      {\"queued\":false}
  A request that fails, or an invalid one:
      {\"error\":{\"temporary\":false,\"message\":\"...\"}}

An owner is 32 hexadecimal digits, generated for each acquisition. A \"label\" in an acquire
request is the purpose of the lock. Lengths of time are whole nanoseconds; null is one without an
end, or unknown. host/cli/SERVE.md specifies the protocol.

Exit codes: 0 at the end of the input; 73 no store, 74 input or output failed, 64 usage.";

/// The name of a lock.
#[derive(Args, Debug)]
pub(crate) struct Named {
    /// The lock's name: any text of 1 to 1024 bytes
    #[arg(value_parser = likely_name, required_unless_present = "exact_name", conflicts_with = "exact_name")]
    name: Option<Name>,
    /// The lock's name, also one that looks like a path or begins with `-`
    #[arg(long = "name", value_name = "NAME", value_parser = name, allow_hyphen_values = true)]
    exact_name: Option<Name>,
}

impl Named {
    /// Returns the name; every accepted command line has one.
    pub(crate) fn name(&self) -> Option<&Name> {
        self.name.as_ref().or(self.exact_name.as_ref())
    }
}

/// The name of a lock, or the file that is locked.
#[derive(Args, Debug)]
pub(crate) struct Target {
    /// The lock's name: any text of 1 to 1024 bytes
    #[arg(value_parser = likely_name, required_unless_present_any = ["exact_name", "file"], conflicts_with_all = ["exact_name", "file"])]
    name: Option<Name>,
    /// The lock's name, also one that looks like a path or begins with `-`
    #[arg(long = "name", value_name = "NAME", value_parser = name, allow_hyphen_values = true, conflicts_with = "file")]
    exact_name: Option<Name>,
    /// Instead of NAME: the kernel's lock on exactly this file, as flock(1) takes it
    #[arg(long, value_name = "PATH")]
    pub(crate) file: Option<PathBuf>,
}

impl Target {
    pub(crate) fn name(&self) -> Option<&Name> {
        self.name.as_ref().or(self.exact_name.as_ref())
    }
}

/// `verrou run`.
#[derive(Args, Debug)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) target: Target,
    #[command(flatten)]
    pub(crate) taking: Taking,
    /// The action on CMD when the lock is lost while it runs
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    pub(crate) on_lost: OnLost,
    /// How long CMD may take to end before it is killed
    #[arg(long, default_value = "5s", value_parser = length, value_name = "TIME")]
    pub(crate) grace: Duration,
    /// Lets CMD inherit nothing: the lock does not outlive this process and CMD's process group
    ///
    /// Like the option of flock(1). Without it, CMD inherits the write end of a pipe. If this
    /// process is killed, the lock is held until every process that has inherited that end has
    /// closed it, also one that left CMD's process group.
    #[arg(short = 'o', long)]
    pub(crate) close: bool,
    /// The command to run, and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(crate) command: Vec<OsString>,
}

/// The options of acquiring a lock.
#[derive(Args, Debug)]
pub(crate) struct Taking {
    /// How long the lease lasts unless it is renewed; `none` for a lease without an end
    #[arg(long, default_value = "30s", allow_hyphen_values = true, value_parser = ttl, value_name = "TIME")]
    pub(crate) ttl: Ttl,
    /// How long to wait for the lock; without it, forever [0: one attempt]
    #[arg(long, value_parser = length, allow_hyphen_values = true, value_name = "TIME")]
    wait: Option<Duration>,
    /// Fails at once if the lock is held
    #[arg(long, conflicts_with_all = ["wait", "attempts"])]
    no_wait: bool,
    /// The maximum number of attempts to acquire the lock
    #[arg(long, value_parser = attempts, allow_hyphen_values = true, value_name = "N")]
    attempts: Option<u32>,
    /// How long to pause between two attempts, unless the store notifies of a release sooner
    #[arg(long, default_value = "250ms", value_parser = delay, allow_hyphen_values = true, value_name = "TIME")]
    retry_delay: Duration,
    /// The action on an expired lease whose holder's processes still run: take it over, or wait for
    /// them to end
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    zombie: Zombie,
    /// Label of the holder, which `show` and `list` print instead of the program's name
    #[arg(long, value_name = "TEXT")]
    label: Option<String>,
    /// Exits with N instead of 75 when the lock was not acquired in time
    #[arg(short = 'E', long, allow_hyphen_values = true, value_name = "N")]
    pub(crate) conflict_exit_code: Option<u8>,
}

impl Taking {
    /// Returns the retry policy.
    pub(crate) fn retry(&self) -> Result<Retry, InvalidRetry> {
        if self.no_wait {
            return Ok(Retry::NEVER);
        }
        let mut retry = Retry::default().delay(self.retry_delay)?;
        if let Some(attempts) = self.attempts {
            retry = retry.attempts(attempts)?;
        }
        Ok(match self.wait {
            Some(wait) => retry.timeout(wait),
            None => retry,
        })
    }

    /// Returns the label of the holder: the given one, or else the name of `program`. Arguments may be
    /// secret, and records outlive their locks.
    pub(crate) fn described(&self, program: &OsStr) -> String {
        let name = || Path::new(program).file_name().unwrap_or(program);
        let label = self.label.clone();
        label.unwrap_or_else(|| name().to_string_lossy().into_owned())
    }

    pub(crate) fn zombies(&self) -> Zombies {
        match self.zombie {
            Zombie::Take => Zombies::Take,
            Zombie::Wait => Zombies::Wait,
        }
    }
}

/// The action on the command when its lock is lost.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub(crate) enum OnLost {
    /// SIGTERM, and SIGKILL after the grace
    #[default]
    Term,
    /// SIGKILL at once
    Kill,
    /// No action: CMD continues
    Ignore,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
enum Zombie {
    /// Take the lease over, and print a warning
    #[default]
    Take,
    /// Wait until the processes have ended
    Wait,
}

/// `verrou acquire`.
#[derive(Args, Debug)]
pub(crate) struct AcquireOptions {
    #[command(flatten)]
    pub(crate) name: Named,
    #[command(flatten)]
    pub(crate) taking: Taking,
}

/// `verrou extend`.
#[derive(Args, Debug)]
pub(crate) struct Extend {
    /// How long the lease lasts from now; without it, the ttl with which the lock was acquired
    #[arg(long, allow_hyphen_values = true, value_parser = ttl, value_name = "TIME")]
    pub(crate) ttl: Option<Ttl>,
    #[command(flatten)]
    pub(crate) lock: Serialized,
}

/// `verrou release`.
#[derive(Args, Debug)]
pub(crate) struct Release {
    #[command(flatten)]
    pub(crate) lock: Serialized,
}

/// A lock as `verrou acquire` prints it.
#[derive(Args, Debug)]
pub(crate) struct Serialized {
    /// The text that `acquire` printed; other users can read it in an argument; `-` reads it from
    /// standard input; without it, VERROU_LOCK
    #[arg(value_name = "LOCK")]
    pub(crate) text: Option<String>,
}

/// `verrou force-release`.
#[derive(Args, Debug)]
pub(crate) struct ForceRelease {
    #[command(flatten)]
    pub(crate) name: Named,
    /// Releases the lock only if it is held under this fencing token, as `show` prints it
    #[arg(long, value_parser = fence, value_name = "N")]
    pub(crate) fence: Option<Fence>,
}

/// `verrou show`.
#[derive(Args, Debug)]
pub(crate) struct Show {
    #[command(flatten)]
    pub(crate) target: Target,
}

/// `verrou serve`.
#[derive(Args, Debug)]
pub(crate) struct Serve {
    /// Label of the holder, which `show` and `list` print; a request can replace it
    #[arg(long, default_value = "verrou serve", value_name = "TEXT")]
    pub(crate) label: String,
}

/// `verrou fence check`.
#[derive(Args, Debug)]
pub(crate) struct FenceCheck {
    /// The file that keeps the greatest token: a separate file, next to the resource
    #[arg(long, value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// The fencing token to check; without it, VERROU_FENCE, which `verrou run` sets
    #[arg(value_parser = fence, allow_hyphen_values = true, value_name = "FENCE")]
    pub(crate) fence: Option<Fence>,
    /// How long to wait while the CMD of another check runs; without it, forever [0: one attempt]
    #[arg(long, value_parser = length, allow_hyphen_values = true, value_name = "TIME")]
    wait: Option<Duration>,
    /// Fails at once if the CMD of another check runs
    #[arg(long, conflicts_with = "wait")]
    no_wait: bool,
    /// Lets CMD inherit nothing, as `--close` of `verrou run`
    #[arg(short = 'o', long)]
    pub(crate) close: bool,
    /// A command that writes, and its arguments; run only if the token is accepted
    #[arg(last = true, value_name = "CMD")]
    pub(crate) command: Vec<OsString>,
}

/// `verrou fence reset`.
#[derive(Args, Debug)]
pub(crate) struct FenceReset {
    /// The file of `fence check`
    #[arg(long, value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// The smallest fencing token that is accepted from now on
    #[arg(long, value_parser = fence, allow_hyphen_values = true, value_name = "N")]
    pub(crate) to: Fence,
}

impl FenceCheck {
    /// Returns how long to wait at most; `None` for no limit.
    pub(crate) fn at_most(&self) -> Option<Duration> {
        if self.no_wait {
            return Some(Duration::ZERO);
        }
        self.wait
    }
}
