//! `verrou serve`: the operations of a store, one line of JSON each. `SERVE.md` specifies them.

use std::collections::HashMap;
use std::io::{self, BufRead, IsTerminal, Read};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use verrou::{
    Acquired, Capabilities, Claim, Error, Fence, Holder, InvalidOwner, InvalidTtl, Name, Owner,
    Renewed, Store, StoreError, Ttl, Waiter,
};
use verrou_host::AnyStore;

use crate::arguments::{GlobalOptions, Serve};
use crate::exit::Exit;
use crate::notifier::Notifier;
use crate::output::{self, Failure};
#[cfg(unix)]
use crate::signals;
use crate::store;

/// The maximum length of a request in bytes, more than any valid request has.
const LONGEST: u64 = 64 * 1024;

/// The maximum length of one wait: during a wait, the end of the client is not detected.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// Answers the requests on standard input, until its end.
pub(crate) fn serve(global: &GlobalOptions, args: &Serve) -> Result<(), Failure> {
    // A client that receives the same signal still needs its locks until it ends, and with it this process's input.
    #[cfg(unix)]
    if !io::stdin().is_terminal() {
        signals::ignore_termination();
    }
    // Each lease keeps a file open. This process starts no other process that would inherit the limit.
    raise_descriptor_limit();
    let mut options = store::options(global);
    options.label = Some(args.label.clone());
    let (opened, _) = store::open_with(global, &options).inspect_err(|failure| {
        // The failure that the client gets is that of the store.
        let _ = write_line(&Answer::Error(Trouble {
            temporary: failure.is_temporary(),
            message: failure.what().to_owned(),
        }));
    })?;
    thread::scope(|scope| {
        Session {
            store: &opened,
            waiters: HashMap::new(),
            notifier: Notifier::new(scope, &opened),
        }
        .serve()
    })
}

/// The state of a client's requests.
struct Session<'scope, 'env> {
    store: &'env AnyStore,
    /// The waiters of the client's owners that are not notified, by name and owner.
    waiters: HashMap<(Name, Owner), Box<dyn Waiter + 'env>>,
    notifier: Notifier<'scope, 'env>,
}

/// Raises this process's soft limit of open files to the hard limit, by setrlimit(2).
fn raise_descriptor_limit() {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

        let limit = getrlimit(Resource::Nofile);
        let raised = Rlimit {
            current: limit.maximum,
            ..limit
        };
        // If the system refuses, the limit stays unchanged.
        let _ = setrlimit(Resource::Nofile, raised);
    }
}

/// The first line of the output, from which a client detects another protocol or version.
#[derive(Serialize)]
struct Greeting {
    protocol: &'static str,
    version: u32,
}

impl Default for Greeting {
    fn default() -> Self {
        Self {
            protocol: "verrou serve",
            version: 1,
        }
    }
}

/// A request. Unknown members are rejected, because they could change its meaning.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Request {
    Acquire(Claimed),
    Extend(Claimed),
    Renew(RenewalRequest),
    Release(Claimed),
    Detach(Claimed),
    Evict(Eviction),
    Inspect(Inspection),
    Abilities(NoMembers),
    Wait(Wait),
    Queue(Claimed),
    Notify(Notify),
    GiveUp(Claimed),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Claimed {
    name: String,
    owner: String,
    /// The ttl in nanoseconds. A mandatory member: an absent one must not be read as a lease without
    /// an end.
    #[serde(deserialize_with = "Option::deserialize")]
    ttl: Option<u64>,
    ephemeral: bool,
    /// The label of an acquisition, for display.
    #[serde(default)]
    label: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RenewalRequest {
    name: String,
    owner: String,
    #[serde(deserialize_with = "Option::deserialize")]
    ttl: Option<u64>,
    ephemeral: bool,
    /// A mandatory member: an absent one must not be read as any grant of the owner.
    #[serde(deserialize_with = "Option::deserialize")]
    fencing_token: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Eviction {
    name: String,
    /// A mandatory member: an absent one must not be read as any grant.
    #[serde(deserialize_with = "Option::deserialize")]
    only: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Inspection {
    name: String,
    /// An owner token: the answer states whether that owner is the holder.
    #[serde(default)]
    owner: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NoMembers {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wait {
    name: String,
    at_most: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Notify {
    name: String,
    owner: String,
    #[serde(deserialize_with = "Option::deserialize")]
    ttl: Option<u64>,
    ephemeral: bool,
    /// The number that each notification has.
    id: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Granted(Option<u64>),
    Refused(Option<u64>),
    Renewed(&'static str),
    Holder(Option<Holding>),
    Abilities(Able),
    Waited(bool),
    Queued(bool),
    /// No answer to a request, but a later line: the claim with this number may be granted.
    Notified(u64),
    Error(Trouble),
}

#[derive(Serialize)]
struct Holding {
    fencing_token: Option<u64>,
    remaining: Option<u64>,
    /// Whether the owner of the request is the holder; `None` where the holder changed meanwhile.
    #[serde(skip_serializing_if = "Option::is_none")]
    mine: Option<bool>,
}

#[derive(Serialize)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "capabilities are independent of each other"
)]
struct Able {
    expires: bool,
    ephemeral: bool,
    transfers: bool,
    evicts: bool,
    fences: bool,
    revives: bool,
}

#[derive(Serialize)]
struct Trouble {
    temporary: bool,
    message: String,
}

impl Answer {
    /// Returns the answer to an invalid request.
    fn wrong(why: &str) -> Self {
        Self::Error(Trouble {
            temporary: false,
            message: why.to_owned(),
        })
    }
}

impl From<StoreError> for Answer {
    fn from(error: StoreError) -> Self {
        Self::Error(Trouble {
            temporary: error.is_temporary(),
            message: output::chain(&error),
        })
    }
}

impl From<Error> for Answer {
    fn from(error: Error) -> Self {
        let code = error.code();
        Self::wrong(&format!("{} ({code})", output::chain(&error)))
    }
}

impl From<InvalidOwner> for Answer {
    fn from(why: InvalidOwner) -> Self {
        Self::wrong(&format!("`owner` is invalid: {why}"))
    }
}

impl From<Acquired> for Answer {
    fn from(reply: Acquired) -> Self {
        match reply {
            Acquired::Granted { fence } => Self::Granted(fence.map(Fence::get)),
            Acquired::Busy { remaining } => Self::Refused(remaining.map(nanos)),
        }
    }
}

/// The answer to another operation than an acquire request, which was done or not.
impl From<bool> for Answer {
    fn from(is_done: bool) -> Self {
        if is_done {
            Self::Granted(None)
        } else {
            Self::Refused(None)
        }
    }
}

impl From<Renewed> for Answer {
    fn from(renewed: Renewed) -> Self {
        Self::Renewed(match renewed {
            Renewed::Granted => "granted",
            Renewed::Released => "released",
            Renewed::Lost => "lost",
        })
    }
}

impl From<Option<Holder>> for Answer {
    fn from(holder: Option<Holder>) -> Self {
        Self::Holder(holder.map(|holder| Holding {
            fencing_token: holder.fence.map(Fence::get),
            remaining: holder.remaining.map(nanos),
            mine: None,
        }))
    }
}

impl From<Capabilities> for Answer {
    fn from(capabilities: Capabilities) -> Self {
        let Capabilities {
            expires,
            ephemeral,
            transfers,
            force_releases: evicts,
            fences,
            revives,
            ..
        } = capabilities;
        Self::Abilities(Able {
            expires,
            ephemeral,
            transfers,
            evicts,
            fences,
            revives,
        })
    }
}

impl TryFrom<Claimed> for Claim {
    type Error = Answer;

    fn try_from(claimed: Claimed) -> Result<Self, Answer> {
        let ttl: Result<Ttl, InvalidTtl> = claimed.ttl.map(Duration::from_nanos).try_into();
        let name = name(&claimed.name)?;
        let ttl = ttl.map_err(Error::from)?;
        Ok(Self::new(name, claimed.owner.parse::<Owner>()?, ttl).ephemeral(claimed.ephemeral))
    }
}

impl Session<'_, '_> {
    /// Answers the requests on standard input, until its end.
    fn serve(&mut self) -> Result<(), Failure> {
        let mut input = io::stdin().lock();
        let mut line = Vec::new();
        let mut has_reader = write_line(&Greeting::default())?;
        while has_reader {
            let answer = match read_line(&mut input, &mut line).map_err(|err| unread(&err))? {
                Line::End => return Ok(()),
                Line::TooLong => Answer::wrong(&format!("a request has at most {LONGEST} bytes")),
                Line::Whole => match serde_json::from_slice(line.trim_ascii_end()) {
                    Ok(request) => self.perform(request).unwrap_or_else(|refusal| refusal),
                    Err(why) => Answer::wrong(&format!(
                        "invalid request: {why}; `verrou serve --help` lists the valid ones"
                    )),
                },
            };
            has_reader = write_line(&answer)?;
        }
        Ok(())
    }

    /// Performs one operation. Errors are answers, too.
    fn perform(&mut self, request: Request) -> Result<Answer, Answer> {
        Ok(match request {
            Request::Acquire(claimed) => {
                self.store.set_label(claimed.label.as_deref());
                let claim: Claim = claimed.try_into()?;
                let reply = self.store.acquire(&claim)?;
                self.notifier.attempted(&claim, reply.is_granted());
                if reply.is_granted()
                    && let Some(waiter) = self.waiters.remove(&(claim.name, claim.owner))
                {
                    waiter.granted();
                }
                reply.into()
            }
            Request::Extend(claimed) => self.store.extend(&claimed.try_into()?)?.into(),
            Request::Renew(RenewalRequest {
                name,
                owner,
                ttl,
                ephemeral,
                fencing_token,
            }) => {
                let claimed = Claimed {
                    name,
                    owner,
                    ttl,
                    ephemeral,
                    label: None,
                };
                let fence = granted_fence("fencing_token", fencing_token)?;
                self.store.renew(&claimed.try_into()?, fence)?.into()
            }
            Request::Release(claimed) => self.store.release(&claimed.try_into()?)?.into(),
            Request::Detach(claimed) => self.store.detach(&claimed.try_into()?)?.into(),
            Request::Evict(Eviction { name: text, only }) => {
                let only = granted_fence("only", only)?;
                self.store.force_release(&name(&text)?, only)?.into()
            }
            Request::Inspect(Inspection { name: text, owner }) => match owner {
                None => self.store.holders(&name(&text)?)?.pop().into(),
                Some(owner) => inspected_for(self.store, &name(&text)?, &owner)?,
            },
            Request::Abilities(NoMembers {}) => self.store.capabilities().into(),
            Request::Wait(Wait {
                name: text,
                at_most,
            }) => {
                let at_most = Duration::from_nanos(at_most).min(LONGEST_WAIT);
                let name = name(&text)?;
                // A store that is not polled notifies waiters only.
                let waiter = self
                    .waiters
                    .iter_mut()
                    .find(|((queued, _), _)| *queued == name);
                match waiter {
                    Some((_, waiter)) if !waiter.notifies() => waiter.wait(at_most),
                    _ => self.store.wait_until_free(&name, at_most),
                }
                Answer::Waited(true)
            }
            Request::Queue(claimed) => {
                let claim: Claim = claimed.try_into()?;
                let Some(waiter) = self.store.waiter(&claim) else {
                    return Ok(Answer::Queued(false));
                };
                // The first wait makes the ticket.
                let waiter = self
                    .waiters
                    .entry((claim.name, claim.owner))
                    .or_insert(waiter);
                waiter.wait(Duration::ZERO);
                Answer::Queued(true)
            }
            Request::Notify(Notify {
                name,
                owner,
                ttl,
                ephemeral,
                id,
            }) => {
                let claimed = Claimed {
                    name,
                    owner,
                    ttl,
                    ephemeral,
                    label: None,
                };
                let claim: Claim = claimed.try_into()?;
                let notify = move || {
                    // The end of the client is detected by the next answer.
                    let _ = write_line(&Answer::Notified(id));
                };
                let is_queued = self.notifier.add(&claim, notify);
                Answer::Queued(is_queued.map_err(StoreError::temporary)?)
            }
            Request::GiveUp(claimed) => {
                let claim: Claim = claimed.try_into()?;
                self.notifier.remove(&claim);
                self.waiters.remove(&(claim.name, claim.owner));
                Answer::Queued(false)
            }
        })
    }
}

/// Answers an inspection for `owner`, which the answer does not name.
fn inspected_for(store: &impl Store, name: &Name, owner: &str) -> Result<Answer, Answer> {
    let claim = Claim::new(name.clone(), owner.parse::<Owner>()?, Ttl::NEVER);
    // Equal fencing tokens before and after are those of one grant, which `holds` is then about. An owner
    // may have several grants, one after the other.
    let before = store.holders(name)?.pop();
    let held = store.holds(&claim, None)?;
    let found = store.holders(name)?.pop();
    let fence = |holder: &Option<Holder>| holder.as_ref().map(|holder| holder.fence);
    let mine = (fence(&before) == fence(&found)).then_some(held);
    let Answer::Holder(Some(holding)) = found.into() else {
        return Ok(Answer::Holder(None));
    };
    Ok(Answer::Holder(Some(Holding { mine, ..holding })))
}

/// Returns the fencing token in the member `member` of the request.
fn granted_fence(member: &str, token: Option<u64>) -> Result<Option<Fence>, Answer> {
    match token.map(Fence::new) {
        Some(None) => Err(Answer::wrong(&format!(
            "`{member}` is 0, which no grant has"
        ))),
        fence => Ok(fence.flatten()),
    }
}

fn name(text: &str) -> Result<Name, Answer> {
    Ok(Name::new(text).map_err(Error::from)?)
}

fn nanos(length: Duration) -> u64 {
    length.as_nanos().try_into().unwrap_or(u64::MAX)
}

/// A line of standard input.
enum Line {
    Whole,
    TooLong,
    End,
}

fn read_line(input: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<Line> {
    line.clear();
    input.take(LONGEST).read_until(b'\n', line)?;
    Ok(if line.is_empty() {
        Line::End
    } else if line.ends_with(b"\n") || input.fill_buf()?.is_empty() {
        Line::Whole
    } else {
        input.skip_until(b'\n')?;
        Line::TooLong
    })
}

/// Writes `what` as one line; returns whether standard output still has a reader.
fn write_line(what: &impl Serialize) -> Result<bool, Failure> {
    let line = serde_json::to_string(what).map_err(|err| output::unwritten(&err.into()))?;
    match output::print(&line) {
        Ok(()) => Ok(true),
        Err(err) if err.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(err) => Err(output::unwritten(&err)),
    }
}

fn unread(why: &io::Error) -> Failure {
    Failure::new(
        Exit::Storage,
        format!("cannot read from standard input: {why}"),
    )
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    const OWNER: &str = "00112233445566778899aabbccddeeff";

    /// A store whose lock has a new grant at each request: to `OWNER` and to another owner, alternately.
    #[derive(Debug, Default)]
    struct Hurried(AtomicU64);

    impl Hurried {
        fn grant(&self) -> u64 {
            self.0.fetch_add(1, Ordering::Relaxed) + 1
        }
    }

    impl Store for Hurried {
        fn holders(&self, _: &Name) -> Result<Vec<Holder>, StoreError> {
            Ok(vec![Holder::new(Fence::new(self.grant()), None)])
        }
        fn holds(&self, _: &Claim, _: Option<Fence>) -> Result<bool, StoreError> {
            Ok(self.grant().is_multiple_of(2))
        }
        fn acquire(&self, _: &Claim) -> Result<Acquired, StoreError> {
            Ok(Acquired::BUSY)
        }
        fn extend(&self, _: &Claim) -> Result<bool, StoreError> {
            Ok(false)
        }
        fn release(&self, _: &Claim) -> Result<bool, StoreError> {
            Ok(false)
        }
        fn force_release(&self, _: &Name, _: Option<Fence>) -> Result<bool, StoreError> {
            Ok(false)
        }
        fn capabilities(&self) -> Capabilities {
            Capabilities::default()
        }
    }

    #[test]
    fn help_and_page_have_every_operation() {
        let unknown = serde_json::from_str::<Request>(r#"{"unknown":{}}"#).map(drop);
        let why = unknown.unwrap_err().to_string();
        let (_, operations) = why.split_once("expected one of ").expect("the operations");
        let (operations, _) = operations.rsplit_once('`').expect("the last operation");
        for operation in operations.split("`, `").map(|it| it.trim_matches('`')) {
            let request = format!("{{\"{operation}\":");
            for text in [crate::arguments::SERVE_HELP, include_str!("../SERVE.md")] {
                assert!(text.contains(&request), "{operation}");
            }
        }
    }

    #[test]
    fn fence_of_another_grant_is_not_mine() {
        let name = Name::new("x").unwrap();
        for grants in 1..=4 {
            let store = Hurried(AtomicU64::new(grants));
            let answer = inspected_for(&store, &name, OWNER).ok().unwrap();
            let Answer::Holder(Some(holding)) = answer else {
                panic!("the answer has no holder");
            };
            assert_eq!(holding.mine, None, "{:?}", holding.fencing_token);
        }
    }
}
