//! What locks on one machine cost, beside the bare system calls and beside other libraries.
//!
//! Processes are started from this program itself, with a role as their first argument.
#![cfg(target_os = "linux")]

mod turns;

use std::collections::BTreeMap;
use std::env;
use std::error::Error;
use std::fs::{self, File};
use std::hint::{black_box, spin_loop};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::time::{ClockId, clock_gettime};
use turns::{compare, median};
use verrou::blocking::{Host, LockFactory};
use verrou::{Claim, Name, Owner, Store, Ttl};
use verrou_host::{FileStore, StoreOptions, StoreUrl, System};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// For how long each holds the lock where many want it.
const HOLD: Duration = Duration::from_micros(20);

/// For how long many want it.
const STORM: Duration = Duration::from_secs(3);

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["wait", kind, folder] => wait(&mut *lock(kind, Path::new(folder))?),
        ["hold", kind, folder] => hold(&mut *lock(kind, Path::new(folder))?),
        ["storm", kind, folder] => storm(&mut *lock(kind, Path::new(folder))?),
        _ => measure(),
    }
}

fn measure() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    uncontended(folder)?;
    start_up(folder);
    handed_over(folder)?;
    killed(folder)?;
    for processes in [8, 64] {
        many(folder, processes)?;
    }
    names(folder)?;
    growth(folder)
}

/// Something that excludes others.
trait Exclusion {
    fn acquire(&mut self);
    fn release(&mut self);
}

/// The kernel's lock, on a file that stays open.
struct Flock(File);

impl Exclusion for Flock {
    fn acquire(&mut self) {
        flock(&self.0, FlockOperation::LockExclusive).expect("a lock");
    }
    fn release(&mut self) {
        flock(&self.0, FlockOperation::Unlock).expect("my lock");
    }
}

/// One of ours.
struct Ours {
    store: FileStore,
    held: Option<Claim>,
}

impl Exclusion for Ours {
    fn acquire(&mut self) {
        let factory = LockFactory::new(&self.store, System);
        let lock = factory.create_lock("lock", "1h").expect("a lock");
        self.held = Some(lock.acquire().expect("a lease").claim().clone());
    }
    fn release(&mut self) {
        let claim = self.held.take().expect("a lease");
        self.store.release(&claim).expect("a reply");
    }
}

/// The lock of that kind in `folder`.
fn lock(kind: &str, folder: &Path) -> Result<Box<dyn Exclusion>> {
    Ok(match kind {
        "flock" => Box::new(Flock(create(&folder.join("flock"))?)),
        _ => Box::new(Ours {
            store: open(kind, folder)?,
            held: None,
        }),
    })
}

fn open(kind: &str, folder: &Path) -> Result<FileStore> {
    let url: StoreUrl = format!("{kind}:{}", folder.join(kind).display()).parse()?;
    Ok(FileStore::open(&url, &StoreOptions::default())?)
}

fn create(path: &Path) -> Result<File> {
    let options = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path);
    Ok(options?)
}

/// The time by a clock that all processes share, in nanoseconds.
fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec * 1_000_000_000 + now.tv_nsec).unwrap_or_default()
}

fn say(what: impl std::fmt::Display) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{what}")?;
    Ok(out.flush()?)
}

/// The role of one who waits: for each line that comes, when it had the lock.
fn wait(lock: &mut dyn Exclusion) -> Result<()> {
    for line in std::io::stdin().lines() {
        line?;
        lock.acquire();
        let taken = now();
        lock.release();
        say(taken)?;
    }
    Ok(())
}

/// The role of one who is killed.
fn hold(lock: &mut dyn Exclusion) -> Result<()> {
    lock.acquire();
    say("held")?;
    loop {
        thread::park();
    }
}

/// The role of one of many: how often it had the lock, and how long it waited at most.
fn storm(lock: &mut dyn Exclusion) -> Result<()> {
    std::io::stdin().lines().next();
    let (mut times, mut longest) = (0u64, Duration::ZERO);
    let began = Instant::now();
    while began.elapsed() < STORM {
        let asked = Instant::now();
        lock.acquire();
        longest = longest.max(asked.elapsed());
        let held = Instant::now();
        while held.elapsed() < HOLD {
            spin_loop();
        }
        lock.release();
        times += 1;
    }
    say(format_args!("{times} {}", longest.as_nanos()))
}

/// A process with a role.
struct Actor {
    process: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Actor {
    fn new(role: &str, kind: &str, folder: &Path) -> Result<Self> {
        let mut command = Command::new(env::current_exe()?);
        command.args([role, kind]).arg(folder);
        Self::start(&mut command)
    }

    fn start(command: &mut Command) -> Result<Self> {
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = process.stdin.take().ok_or("no input")?;
        let stdout = process.stdout.take().ok_or("no output")?;
        Ok(Self {
            process,
            stdin,
            stdout: BufReader::new(stdout),
        })
    }

    fn tell(&mut self) -> Result<()> {
        Ok(self.stdin.write_all(b"\n")?)
    }

    fn hear(&mut self) -> Result<String> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// One who waits with the Python package `filelock`, for the file that [`Flock`] locks.
fn python(folder: &Path, options: &str) -> Option<Actor> {
    let program = format!(
        "import sys, time, filelock\n\
         lock = filelock.FileLock(sys.argv[1]{options})\n\
         for line in sys.stdin:\n\
         \x20   lock.acquire()\n\
         \x20   taken = time.monotonic_ns()\n\
         \x20   lock.release()\n\
         \x20   print(taken, flush=True)"
    );
    let mut command = Command::new(env::var_os("VERROU_PYTHON")?);
    command.args(["-c", &program]).arg(folder.join("flock"));
    Actor::start(&mut command).ok()
}

fn uncontended(folder: &Path) -> Result<()> {
    let path = folder.join("uncontended");
    let file = create(&path)?;
    file.write_all_at(&[0; 4096], 0)?;
    let (files, leases) = (open("file", folder)?, open("lease", folder)?);
    let claims = || Claim {
        name: Name::new("uncontended").expect("a name"),
        owner: Owner::from_bytes(System.random()),
        ttl: Ttl::NEVER,
        ephemeral: true,
    };
    let pair = |store: &FileStore| {
        let claim = claims();
        assert!(store.acquire(&claim).expect("a reply").is_granted());
        store.release(&claim).expect("a reply");
    };
    let (std_file, fs4_file) = (create(&path)?, create(&path)?);
    let mut fd_lock = fd_lock::RwLock::new(create(&path)?);
    compare(
        "uncontended: acquire and release",
        1_000,
        [
            (
                "bare: open, flock, unlock, close",
                Box::new(|| {
                    let file = File::options().read(true).write(true).open(&path);
                    let file = file.expect("a file");
                    flock(&file, FlockOperation::NonBlockingLockExclusive).expect("a free lock");
                    flock(&file, FlockOperation::Unlock).expect("my lock");
                }),
            ),
            (
                "bare: 2 × (flock, pread, pwrite, unlock)",
                Box::new(|| {
                    for _ in 0..2 {
                        let mut bytes = [0; 512];
                        flock(&file, FlockOperation::LockExclusive).expect("a free lock");
                        file.read_exact_at(&mut bytes, 0).expect("bytes");
                        file.write_all_at(black_box(&bytes), 0).expect("room");
                        flock(&file, FlockOperation::Unlock).expect("my lock");
                    }
                }),
            ),
            ("verrou, file lock", Box::new(|| pair(&files))),
            ("verrou, lease file", Box::new(|| pair(&leases))),
            (
                "std File::try_lock, open file",
                Box::new(|| {
                    std_file.try_lock().expect("a free lock");
                    std_file.unlock().expect("my lock");
                }),
            ),
            (
                "fs4, open file",
                Box::new(|| {
                    fs4::FileExt::try_lock(&fs4_file).expect("a free lock");
                    fs4::FileExt::unlock(&fs4_file).expect("my lock");
                }),
            ),
            (
                "fd-lock, open file",
                Box::new(|| drop(black_box(fd_lock.try_write().expect("a free lock")))),
            ),
        ],
    );
    Ok(())
}

fn start_up(folder: &Path) {
    let verrou = env!("CARGO_BIN_EXE_verrou");
    let run = |command: &mut Command| {
        assert!(command.status().expect("it starts").success());
    };
    let with_store = |kind: &str| {
        let store = format!("{kind}:{}", folder.join(kind).display());
        move || {
            let arguments = ["run", "start-up", "--store", &store, "--", "true"];
            run(Command::new(verrou).args(arguments));
        }
    };
    compare(
        "start-up: a command that does nothing, under a lock",
        5,
        [
            (
                "flock f true",
                Box::new(|| run(Command::new("flock").arg(folder.join("f")).arg("true"))),
            ),
            (
                "verrou run k -- true, file lock",
                Box::new(with_store("file")),
            ),
            (
                "verrou run k -- true, lease file",
                Box::new(with_store("lease")),
            ),
        ],
    );
}

/// Medians, with the ratio of each to the first.
fn tell(title: &str, taken: BTreeMap<usize, (&str, Vec<Duration>)>) {
    println!("\n{title}");
    let mut first = None;
    for (name, taken) in taken.into_values() {
        let times = taken.len();
        let median = median(taken);
        let first = *first.get_or_insert(median);
        let ratio = median.as_secs_f64() / first.as_secs_f64();
        println!("  {name:<40} {median:>12.3?} {ratio:>8.2} ×   ({times} times)");
    }
}

/// From the release in one process to the moment when another, which waits, has the lock.
fn handed_over(folder: &Path) -> Result<()> {
    let names = [
        ("bare flock, blocking", "flock", 300),
        ("verrou, file lock", "file", 300),
        ("verrou, lease file", "lease", 300),
    ];
    let mut actors = Vec::new();
    for (name, kind, times) in names {
        let actor = Actor::new("wait", kind, folder)?;
        actors.push((name, kind, times, actor));
    }
    for (name, options) in [
        ("python filelock, default", ""),
        ("python filelock, poll 1 ms", ", poll_interval=0.001"),
    ] {
        match python(folder, options) {
            Some(actor) => actors.push((name, "flock", 40, actor)),
            None => println!("\n{name}: not measured, VERROU_PYTHON is not set"),
        }
    }
    let mut taken = BTreeMap::new();
    for round in 0..300 {
        for (number, (name, kind, times, actor)) in actors.iter_mut().enumerate() {
            if round >= *times {
                continue;
            }
            let mut lock = lock(kind, folder)?;
            lock.acquire();
            actor.tell()?;
            // Long enough for it to wait, however it does.
            thread::sleep(Duration::from_millis(3 + round % 7));
            let released = now();
            lock.release();
            let entered: u64 = actor.hear()?.parse()?;
            let length = Duration::from_nanos(entered.saturating_sub(released));
            let (_, lengths) = taken.entry(number).or_insert((*name, Vec::new()));
            lengths.push(length);
        }
    }
    tell(
        "hand-over: released in one process, taken in another",
        taken,
    );
    Ok(())
}

/// From the death of the holder to the moment when another has the lock.
fn killed(folder: &Path) -> Result<()> {
    let mut taken = BTreeMap::new();
    for _ in 0..60 {
        let kinds = [
            ("bare flock, blocking", "flock"),
            ("verrou, file lock", "file"),
            ("verrou, lease file, ttl 1 h", "lease"),
        ];
        for (number, (name, kind)) in kinds.into_iter().enumerate() {
            let mut holder = Actor::new("hold", kind, folder)?;
            holder.hear()?;
            let mut waiter = Actor::new("wait", kind, folder)?;
            waiter.tell()?;
            thread::sleep(Duration::from_millis(20));
            let killed = now();
            holder.process.kill()?;
            let entered: u64 = waiter.hear()?.parse()?;
            let length = Duration::from_nanos(entered.saturating_sub(killed));
            let (_, lengths) = taken.entry(number).or_insert((name, Vec::new()));
            lengths.push(length);
        }
    }
    tell("kill -9 of the holder, taken by another", taken);
    Ok(())
}

fn many(folder: &Path, processes: usize) -> Result<()> {
    println!("\n{processes} processes, each holds it for {HOLD:?} and asks again, for {STORM:?}");
    let mut first = None;
    for (name, kind) in [
        ("bare flock, blocking", "flock"),
        ("verrou, file lock", "file"),
        ("verrou, lease file", "lease"),
    ] {
        let mut actors = Vec::new();
        for _ in 0..processes {
            actors.push(Actor::new("storm", kind, folder)?);
        }
        for actor in &mut actors {
            actor.tell()?;
        }
        let (mut counts, mut longest) = (Vec::new(), Duration::ZERO);
        for actor in &mut actors {
            let said = actor.hear()?;
            let (count, nanos) = said.split_once(' ').ok_or("no answer")?;
            counts.push(count.parse::<u32>()?);
            longest = longest.max(Duration::from_nanos(nanos.parse()?));
        }
        let per_second = f64::from(counts.iter().sum::<u32>()) / STORM.as_secs_f64();
        let share = f64::from(counts.iter().copied().max().unwrap_or(0))
            / f64::from(counts.iter().copied().min().unwrap_or(0).max(1));
        let first = *first.get_or_insert(per_second);
        println!(
            "  {name:<40} {per_second:>9.0} grants/s {:>6.2} ×   longest wait {longest:>9.1?}   \
             most to least {share:.2}",
            per_second / first,
        );
    }
    Ok(())
}

/// Whether a folder of many files makes a step dearer.
fn names(folder: &Path) -> Result<()> {
    let many: u32 = match env::var("VERROU_BENCH_NAMES") {
        Ok(number) => number.parse()?,
        Err(_) => 20_000,
    };
    for kind in ["file", "lease"] {
        let stores = [1_000, many].map(|count| (count, folder.join(format!("{kind}-{count}"))));
        let mut subjects = Vec::new();
        for (count, path) in &stores {
            let store = open(kind, path)?;
            for number in 0..*count {
                pair(&store, number);
            }
            subjects.push(store);
        }
        let [few, all] = [0, 1].map(|at| (&subjects[at], stores[at].0));
        let (mut one, mut other) = (0u32, 0u32);
        // Far from one another, so that no cache of ours has them.
        let next = |at: &mut u32, count: u32| {
            *at = (*at + 617) % count;
            *at
        };
        compare(
            &format!("names: acquire and release one of many, {kind}"),
            500,
            [
                ("of 1,000", Box::new(|| pair(few.0, next(&mut one, few.1)))),
                (
                    &format!("of {many}"),
                    Box::new(|| pair(all.0, next(&mut other, all.1))),
                ),
            ],
        );
    }
    Ok(())
}

fn pair(store: &FileStore, number: u32) {
    let claim = Claim {
        name: Name::new(&format!("name {number}")).expect("a name"),
        owner: Owner::from_bytes(System.random()),
        ttl: Ttl::NEVER,
        ephemeral: true,
    };
    assert!(store.acquire(&claim).expect("a reply").is_granted());
    store.release(&claim).expect("a reply");
}

/// What is left of many operations.
fn growth(folder: &Path) -> Result<()> {
    const OPERATIONS: u32 = 1_000_000;

    println!("\ngrowth over {OPERATIONS} operations");
    for kind in ["file", "lease"] {
        let store = open(kind, folder)?;
        let used = || -> Result<(u64, usize)> {
            let status = fs::read_to_string("/proc/self/status")?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            let kib = line.and_then(|line| line.split_whitespace().next());
            let descriptors = fs::read_dir(PathBuf::from("/proc/self/fd"))?.count();
            Ok((kib.ok_or("no VmRSS")?.parse()?, descriptors))
        };
        for number in 0..OPERATIONS / 100 {
            pair(&store, number % 300);
        }
        let before = used()?;
        for number in 0..OPERATIONS / 2 {
            pair(&store, number % 300);
        }
        let after = used()?;
        println!(
            "  {kind:<6} memory {} KiB, then {} KiB; descriptors {}, then {}",
            before.0, after.0, before.1, after.1,
        );
    }
    Ok(())
}
