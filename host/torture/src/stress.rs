//! Many processes that contend for one lock, under kills, stops, removed files and timeouts.

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use rustix::process::{Pid, Signal, kill_process};
use verrou::blocking::LockFactory;
use verrou_host::{AnyStore, StoreOptions, StoreUrl, System};

use crate::checked_log::{Resource, Word};
use crate::contender::{Contender, LOCK};
use crate::results::{Findings, Part, Setting};

pub(crate) const CONTENTION: Part = Part {
    name: "contention",
    about: "2, 8 and 64 processes contend for one lock",
    share: 6,
    run: contention,
};
pub(crate) const KILLS: Part = Part {
    name: "kills",
    about: "kill -9 of holders and waiters every few milliseconds",
    share: 7,
    run: kills,
};
pub(crate) const STOPS: Part = Part {
    name: "stops",
    about: "SIGSTOP of holders and waiters for up to three times the TTL",
    share: 4,
    run: stops,
};
pub(crate) const REMOVED_FILES: Part = Part {
    name: "removed-files",
    about: "the lock file and its directory are removed, renamed and replaced all the time",
    share: 2,
    run: removed_files,
};
pub(crate) const CHILDREN: Part = Part {
    name: "children",
    about: "other threads fork and spawn all the time, and a released lock is free at once",
    share: 1,
    run: children,
};
pub(crate) const TIMEOUTS: Part = Part {
    name: "timeouts",
    about: "waiters time out at the moment of the hand-off",
    share: 1,
    run: timeouts,
};
pub(crate) const EXPIRIES: Part = Part {
    name: "expiries",
    about: "leases of a few milliseconds that expire instead of being released",
    share: 1,
    run: expiries,
};

/// The names of the kinds of store.
const KINDS: [&str; 2] = ["file", "lease"];

/// The longest time that a wanted lock may stay free in a store that detects dead holders.
const LONGEST_GAP: Duration = Duration::from_millis(500);

/// The configuration of the processes of a crowd.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "the options are independent")]
struct Workload {
    kind: &'static str,
    processes: usize,
    ttl: Option<u64>,
    detaches: bool,
    hold: u64,
    pause: u64,
    timeout: Option<u64>,
    releases: bool,
    files_are_removed: bool,
    directory_moves: bool,
}

impl Workload {
    fn new(kind: &'static str, processes: usize) -> Self {
        Self {
            kind,
            processes,
            ttl: None,
            detaches: false,
            hold: 20,
            pause: 0,
            timeout: None,
            releases: true,
            files_are_removed: false,
            directory_moves: false,
        }
    }
}

/// Processes that contend for one lock.
struct Crowd {
    workload: Workload,
    seed: u64,
    directory: PathBuf,
    resource: Resource,
    members: BTreeMap<u64, Child>,
    started: u64,
}

impl Crowd {
    /// Starts the processes.
    fn new(setting: &Setting, workload: Workload) -> Result<Self> {
        let directory = tempfile::tempdir_in(&setting.directory)?.keep();
        fs::create_dir(directory.join("locks"))?;
        let mut crowd = Self {
            seed: setting.seed,
            resource: Resource::create(&directory.join("words"))?,
            members: BTreeMap::new(),
            started: 0,
            workload,
            directory,
        };
        while crowd.members.len() < crowd.workload.processes {
            crowd.start_one()?;
        }
        Ok(crowd)
    }

    fn locks(&self) -> PathBuf {
        self.directory.join("locks")
    }

    fn store(&self) -> String {
        format!("{}:{}", self.workload.kind, self.locks().display())
    }

    fn violations_log(&self) -> PathBuf {
        self.directory.join("violations")
    }

    fn start_one(&mut self) -> Result<()> {
        self.started += 1;
        let Workload {
            ttl,
            detaches,
            hold,
            pause,
            timeout,
            releases,
            files_are_removed,
            directory_moves,
            ..
        } = self.workload;
        let contender = Contender {
            number: self.started,
            seed: self.seed,
            store: self.store(),
            resource: self.directory.join("words"),
            ttl,
            detaches,
            hold,
            pause,
            timeout,
            releases,
            files_are_removed,
            directory_moves,
        };
        let violations_log = File::options()
            .append(true)
            .create(true)
            .open(self.violations_log())?;
        let child = Command::new(env::current_exe()?)
            .args(["worker", "contend", &serde_json::to_string(&contender)?])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(violations_log)
            .spawn()?;
        self.members.insert(self.started, child);
        Ok(())
    }

    /// Returns the number of a random process.
    fn any(&self, random: &mut Rng) -> u64 {
        let which = random.usize(..self.members.len());
        *self
            .members
            .keys()
            .nth(which)
            .expect("the index is in range")
    }

    fn signal(&self, number: u64, signal: Signal) -> Result<()> {
        kill_process(self.pid(number), signal).context("cannot signal a child process")
    }

    fn pid(&self, number: u64) -> Pid {
        Pid::from_child(&self.members[&number])
    }

    /// Kills a process, and starts another in its place.
    fn replace(&mut self, number: u64) -> Result<()> {
        self.resource.mark_dead(number);
        self.signal(number, Signal::KILL)?;
        if let Some(mut child) = self.members.remove(&number) {
            child.wait()?;
        }
        if self.resource.get(Word::Inside) == number {
            self.resource.mark_free();
        }
        self.start_one()
    }

    /// Ends the processes, and records what they did and the violations that they reported.
    fn end(mut self, findings: &mut Findings, longest_gap: Option<Duration>) -> Result<()> {
        /// The time within which a process acquires the lock, even on a busy machine.
        const STUCK: Duration = Duration::from_secs(20);

        let kind = self.workload.kind;
        self.resource.word(Word::Stop).store(1, SeqCst);
        let began = Instant::now();
        let mut stuck = 0;
        for (number, child) in &mut self.members {
            loop {
                if let Some(status) = child.try_wait()? {
                    findings.check(status.success(), || {
                        format!("{kind}: process {number} ended with {status}")
                    });
                    break;
                }
                if began.elapsed() > STUCK {
                    stuck += 1;
                    child.kill()?;
                    child.wait()?;
                    break;
                }
                thread::sleep(Duration::from_millis(1));
            }
        }
        findings.check(stuck == 0, || {
            format!("{kind}: {stuck} processes did not end within {STUCK:?} without faults")
        });
        let violations_log = fs::read_to_string(self.violations_log())?;
        let lines = violations_log.lines().count();
        for line in violations_log.lines().take(20) {
            findings.violation(format!("{kind}: {line}"));
        }
        findings.check(lines <= 20, || {
            format!("{kind}: {} more violations", lines - 20)
        });

        let get = |word| self.resource.get(word);
        findings.count("acquisitions", get(Word::Entered));
        findings.count("contended acquisitions", get(Word::Contended));
        let others = [
            (Word::Zombies, "taken over after expiry"),
            (Word::Stale, "grants that expired before use"),
            (Word::TimedOut, "timed out"),
            (Word::DirectoryMissing, "found no directory"),
            (
                Word::Displaced,
                "acquired beside a holder whose file was removed",
            ),
        ];
        for (word, what) in others {
            if get(word) > 0 {
                findings.count(what, get(word));
            }
        }
        findings.check(get(Word::Entered) > 0, || {
            format!("{kind}: no process acquired the lock")
        });
        let (counted, acknowledged) = (get(Word::Counter), get(Word::Acknowledged));
        findings.check(counted >= acknowledged, || {
            format!(
                "{kind}: of {acknowledged} updates, {} were lost",
                acknowledged - counted
            )
        });
        let gap = Duration::from_nanos(get(Word::LongestGap));
        findings.worst(format!("longest gap, {}", self.title()), gap);
        if let Some(longest) = longest_gap {
            findings.check(gap <= longest, || {
                format!(
                    "{}: no process acquired the free lock for {gap:?}",
                    self.title()
                )
            });
        }
        self.check_store(findings);
        Ok(())
    }

    fn title(&self) -> String {
        let lease = match self.workload.ttl {
            Some(ttl) if self.workload.detaches => format!(" detached, ttl {ttl} ms"),
            Some(ttl) => format!(", ttl {ttl} ms"),
            None => String::new(),
        };
        format!("{}{lease}", self.workload.kind)
    }

    /// Checks that the store works after the processes have ended, and has no foreign files.
    fn check_store(&self, findings: &mut Findings) {
        let kind = self.workload.kind;
        let store = self
            .store()
            .parse::<StoreUrl>()
            .map_err(|err| err.to_string());
        let store = store.and_then(|url| {
            AnyStore::open(&url, &StoreOptions::default()).map_err(|err| err.to_string())
        });
        let taken = store.and_then(|store| {
            for listed in store.list().map_err(|err| err.to_string())? {
                listed.map_err(|err| err.to_string())?;
            }
            let lock = LockFactory::new(&store, System)
                .create_lock(LOCK, "none")
                .map_err(|err| err.to_string())?;
            let wait = verrou::Retry::FOR_EVER.timeout(Duration::from_secs(10));
            let lease = lock.acquire_with(&wait).map_err(|err| err.to_string())?;
            lock.release().map_err(|err| err.to_string())?;
            Ok(lease.fence().map_or(0, verrou::Fence::get))
        });
        match taken {
            Ok(fence) => findings.check(fence > self.resource.get(Word::Fence), || {
                format!("{kind}: after the end: fencing token {fence} is not the greatest")
            }),
            Err(err) => findings.violation(format!("{kind}: after the end: {err}")),
        }
        match foreign_files(&self.locks()) {
            Ok(names) => findings.check(names.is_empty(), || {
                format!("{kind}: these foreign files are left: {names:?}")
            }),
            Err(err) => findings.violation(format!("{kind}: cannot read the directory: {err}")),
        }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for child in self.members.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Returns the names of files in the store's directory that are not the store's.
pub(crate) fn foreign_files(directory: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let is_ours = name == "fences"
            || [".lease", ".lock", ".bell"]
                .iter()
                .any(|extension| name.ends_with(extension));
        if !is_ours {
            names.push(name);
        }
    }
    Ok(names)
}

/// Runs `each` for all of `of`, each for an equal part of the time.
fn for_each<T: Copy>(
    setting: &Setting,
    of: &[T],
    mut each: impl FnMut(T, Duration) -> Result<()>,
) -> Result<()> {
    let length = setting.length / u32::try_from(of.len())?;
    for &it in of {
        each(it, length.max(Duration::from_millis(200)))?;
    }
    Ok(())
}

fn contention(setting: &Setting, findings: &mut Findings) -> Result<()> {
    // The number of processes, and the longest time that they hold the lock, in microseconds.
    let crowds: Vec<_> = KINDS
        .iter()
        .flat_map(|&kind| [(2, 0), (8, 20), (64, 100)].map(|crowd| (kind, crowd)))
        .collect();
    for_each(setting, &crowds, |(kind, (processes, hold)), length| {
        setting
            .progress
            .set_message(format!("{kind}, {processes} processes"));
        let workload = Workload {
            hold,
            ..Workload::new(kind, processes)
        };
        let crowd = Crowd::new(setting, workload)?;
        thread::sleep(length);
        crowd.end(findings, Some(LONGEST_GAP))
    })
}

/// The TTL of detached leases, in milliseconds.
const DETACHED_TTL: u64 = 300;

fn kills(setting: &Setting, findings: &mut Findings) -> Result<()> {
    let cases = [("file", false), ("lease", false), ("lease", true)];
    for_each(setting, &cases, |(kind, detaches), length| {
        setting.progress.set_message(kind);
        let workload = Workload {
            hold: 300,
            ttl: detaches.then_some(DETACHED_TTL),
            detaches,
            ..Workload::new(kind, 8)
        };
        let longest = if detaches {
            // A process that is killed between its grant and its entry keeps the lock for the TTL
            // while the resource counts it as free. Two such kills in a row occurred once in 35,000
            // kills (600.7 ms).
            Duration::from_millis(4 * DETACHED_TTL)
        } else {
            LONGEST_GAP
        };
        let mut random = Rng::with_seed(setting.seed);
        let mut crowd = Crowd::new(setting, workload)?;
        let began = Instant::now();
        while began.elapsed() < length {
            thread::sleep(Duration::from_micros(random.u64(300..2000)));
            // Half of the killed processes are inside.
            let inside = crowd.resource.get(Word::Inside);
            let number = if random.bool() && crowd.members.contains_key(&inside) {
                inside
            } else {
                crowd.any(&mut random)
            };
            crowd.replace(number)?;
            findings.count("kills", 1);
        }
        crowd.end(findings, Some(longest))
    })
}

fn stops(setting: &Setting, findings: &mut Findings) -> Result<()> {
    let cases = [
        ("file", None, false),
        ("lease", Some(60), false),
        ("lease", Some(1000), true),
    ];
    for_each(setting, &cases, |(kind, ttl, detaches), length| {
        setting.progress.set_message(kind);
        let workload = Workload {
            ttl,
            detaches,
            hold: 3000,
            ..Workload::new(kind, 8)
        };
        let ttl = ttl.unwrap_or(60);
        let longest = if detaches {
            Duration::from_millis(2 * ttl)
        } else {
            LONGEST_GAP
        };
        let mut random = Rng::with_seed(setting.seed);
        let crowd = Crowd::new(setting, workload)?;
        let began = Instant::now();
        let mut stopped: BTreeMap<u64, Instant> = BTreeMap::new();
        while began.elapsed() < length {
            thread::sleep(Duration::from_micros(random.u64(1000..20_000)));
            resume_stopped(&crowd, &mut stopped, |until| until <= Instant::now())?;
            // In half of the cases the process inside is stopped; never more than half of all
            // processes are.
            let inside = crowd.resource.get(Word::Inside);
            let number = if random.bool() && crowd.members.contains_key(&inside) {
                inside
            } else {
                crowd.any(&mut random)
            };
            if stopped.len() < 4 && !stopped.contains_key(&number) {
                crowd.signal(number, Signal::STOP)?;
                let until = Duration::from_millis(random.u64(..=3 * ttl));
                stopped.insert(number, Instant::now() + until);
                findings.count("stops", 1);
            }
        }
        resume_stopped(&crowd, &mut stopped, |_| true)?;
        crowd.end(findings, Some(longest))
    })
}

/// Continues those of the `stopped` processes for whose end of the stop `is_over` is true.
fn resume_stopped(
    crowd: &Crowd,
    stopped: &mut BTreeMap<u64, Instant>,
    is_over: impl Fn(Instant) -> bool,
) -> Result<()> {
    let over: Vec<_> = stopped
        .iter()
        .filter(|(_, until)| is_over(**until))
        .map(|(number, _)| *number)
        .collect();
    for number in over {
        stopped.remove(&number);
        // No process can take over a flock(2) lock of a stopped process.
        let kept_others_out = holds_a_file(crowd.pid(number), &crowd.locks())?;
        crowd.signal(number, Signal::CONT)?;
        if kept_others_out {
            crowd.resource.mark_free();
        }
    }
    Ok(())
}

/// Returns whether the process holds a flock(2) lock on a file in `directory`, by `/proc/locks`.
fn holds_a_file(process: Pid, directory: &Path) -> Result<bool> {
    use std::os::unix::fs::MetadataExt;

    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        files.push(entry?.metadata()?.ino().to_string());
    }
    // With one read, because the contents change between two.
    let mut locks = vec![0; 1 << 20];
    let length = File::open("/proc/locks")?.read(&mut locks)?;
    let locks = String::from_utf8_lossy(&locks[..length]);
    Ok(locks.lines().any(|line| {
        // `1: FLOCK  ADVISORY  WRITE 708 00:2c:1234 0 EOF`
        let words: Vec<_> = line.split_whitespace().collect();
        let [_, "FLOCK", _, _, owner, file, ..] = words[..] else {
            return false;
        };
        let inode = file.rsplit(':').next().unwrap_or_default();
        owner == process.as_raw_nonzero().to_string() && files.iter().any(|it| it == inode)
    }))
}

fn removed_files(setting: &Setting, findings: &mut Findings) -> Result<()> {
    let cases: Vec<_> = KINDS
        .iter()
        .flat_map(|&kind| [(kind, true), (kind, false)])
        .collect();
    for_each(setting, &cases, |(kind, carefully), length| {
        let workload = Workload {
            files_are_removed: !carefully,
            directory_moves: true,
            hold: 100,
            ..Workload::new(kind, 6)
        };
        let mut random = Rng::with_seed(setting.seed);
        let crowd = Crowd::new(setting, workload)?;
        let url: StoreUrl = crowd.store().parse()?;
        let store = AnyStore::open(&url, &StoreOptions::default())?;
        let lock = LockFactory::new(&store, System).create_lock(LOCK, "none")?;
        let began = Instant::now();
        while began.elapsed() < length {
            if carefully {
                lock.acquire()?;
            } else {
                thread::sleep(Duration::from_micros(random.u64(200..2000)));
            }
            let what = remove(&crowd.locks(), carefully, &mut random)?;
            findings.count(what, 1);
            if carefully {
                // It returns an error if its file is gone, unless the removal is not visible yet.
                let _ = lock.release();
                thread::sleep(Duration::from_micros(random.u64(..1000)));
            }
        }
        // The directory is missing at times, so the gaps mean nothing.
        crowd.end(findings, None)
    })
}

/// Removes the lock file, or replaces it, or renames it or, for a moment, its directory.
fn remove(directory: &Path, carefully: bool, random: &mut Rng) -> Result<&'static str> {
    let lock = fs::read_dir(directory)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            path.extension()
                .is_some_and(|it| it == "lease" || it == "lock")
        });
    let Some(lock) = lock else {
        return Ok("times without a file to remove");
    };
    let aside = directory.with_extension("aside");
    match random.u8(..if carefully { 4 } else { 3 }) {
        0 => {
            // The file may have been removed already.
            let _ = fs::remove_file(&lock);
            Ok("files removed")
        }
        1 => {
            // A copy of the current contents, which no process has locked. A grant between the two
            // reads would leave a copy with half of its record, which is a corrupt file and an error.
            let copy = directory.with_extension("copy");
            if let (Ok(once), Ok(twice)) = (fs::read(&lock), fs::read(&lock))
                && once == twice
            {
                fs::write(&copy, twice)?;
                fs::set_permissions(&copy, fs::metadata(directory)?.permissions())?;
                fs::rename(&copy, &lock)?;
            }
            Ok("files replaced by a copy")
        }
        2 => {
            fs::rename(directory, &aside)?;
            thread::sleep(Duration::from_micros(random.u64(..500)));
            fs::rename(&aside, directory)?;
            Ok("directories renamed and put back")
        }
        _ => {
            let _ = fs::rename(&lock, directory.with_extension("gone"));
            Ok("files renamed")
        }
    }
}

fn children(setting: &Setting, findings: &mut Findings) -> Result<()> {
    for_each(setting, &KINDS, |kind, length| {
        let directory = tempfile::tempdir_in(&setting.directory)?;
        let url: StoreUrl = format!("{kind}:{}", directory.path().display()).parse()?;
        let store = AnyStore::open(&url, &StoreOptions::default())?;
        let (other, over) = (
            AnyStore::open(&url, &StoreOptions::default())?,
            AtomicBool::new(false),
        );
        let lock = LockFactory::new(&store, System).create_lock(LOCK, "none")?;
        let other = LockFactory::new(&other, System).create_lock(LOCK, "none")?;
        let mut cycles = 0;
        let mut children = 0_u64;
        thread::scope(|scope| -> Result<()> {
            let parents: Vec<_> = [false, true]
                .into_iter()
                .map(|forks| {
                    let over = &over;
                    scope.spawn(move || {
                        let mut children = 0_u64;
                        while !over.load(Relaxed) {
                            let mut command = Command::new("true");
                            if forks {
                                use std::os::unix::process::CommandExt;
                                // This makes the standard library fork.
                                command.gid(rustix::process::getgid().as_raw());
                            }
                            if command.status().is_ok() {
                                children += 1;
                            }
                        }
                        children
                    })
                })
                .collect();
            let began = Instant::now();
            let mut result = Ok(());
            while began.elapsed() < length {
                let (one, next) = if cycles % 2 == 0 {
                    (&lock, &other)
                } else {
                    (&other, &lock)
                };
                if let Err(err) = one.try_acquire().and_then(|_| one.release()) {
                    findings.violation(format!("{kind}: a released lock was not free: {err}"));
                }
                if let Err(err) = next.try_acquire().and_then(|_| next.release()) {
                    findings.violation(format!("{kind}: a released lock was not free: {err}"));
                    if findings.violations.len() > 20 {
                        result = Err(anyhow::anyhow!("too many violations"));
                        break;
                    }
                }
                cycles += 2;
            }
            over.store(true, Relaxed);
            for parent in parents {
                children += parent.join().unwrap_or_default();
            }
            result
        })?;
        findings.count("acquisitions", cycles);
        findings.count("children", children);
        ensure!(children > 0, "no child could be started");
        Ok(())
    })
}

fn timeouts(setting: &Setting, findings: &mut Findings) -> Result<()> {
    for_each(setting, &KINDS, |kind, length| {
        let workload = Workload {
            hold: 2000,
            timeout: Some(5000),
            ..Workload::new(kind, 8)
        };
        let crowd = Crowd::new(setting, workload)?;
        thread::sleep(length);
        let over = Duration::from_nanos(crowd.resource.get(Word::Overshoot));
        findings.worst(format!("waited beyond the timeout, {kind}"), over);
        crowd.end(findings, Some(LONGEST_GAP))
    })
}

fn expiries(setting: &Setting, findings: &mut Findings) -> Result<()> {
    for_each(setting, &[1, 2, 5], |ttl, length| {
        let workload = Workload {
            ttl: Some(ttl),
            detaches: true,
            releases: false,
            hold: 0,
            ..Workload::new("lease", 6)
        };
        let crowd = Crowd::new(setting, workload)?;
        thread::sleep(length);
        crowd.end(findings, Some(LONGEST_GAP))
    })
}
