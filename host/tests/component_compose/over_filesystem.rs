//! The store over `wasi:filesystem`, in wasmtime with its own WASI: the suite for stores, alone and beside the native
//! store of the same directory, and processes that exclude each other.

use std::env;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;
use verrou::blocking::LockFactory;
use verrou::conformance::{Fixture, TestClock};
use verrou::{Acquired, Claim, Name, Owner, Renewed, Retry, Store, Ttl, conformance};
use verrou_host::component::wasmtime::component::Component;
use verrou_host::{HardLinkStore, HostStore, StoreOptions, System};

use crate::common::{Started, assert_passed, eventually, test_process};
use crate::instances::{built, in_directory, load};
use crate::provider::{ErrorCode, Provider};
use crate::{Locks, with_store};

static OVER_FILESYSTEM: LazyLock<Component> = LazyLock::new(|| load(&built("provider-filesystem")));

conformance!(suite, Place::new(Clients::Components));
conformance!(mixed_suite, Place::new(Clients::Mixed));

/// The clients of a fixture.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Clients {
    Components,
    /// Instances of the component and native stores in turn.
    Mixed,
}

/// A directory with a store, and a clock that only the test advances.
struct Place {
    clients: Clients,
    directory: TempDir,
    clock: TestClock,
    opened: AtomicUsize,
}

impl Place {
    fn new(clients: Clients) -> Self {
        Self {
            clients,
            directory: TempDir::new().unwrap(),
            clock: TestClock::running(),
            opened: AtomicUsize::new(0),
        }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn component(&self) -> Provider {
        provider(self.path(), Some(self.clock.clone()))
    }

    fn native(&self) -> HardLinkStore {
        native(self.path()).with_clock(self.clock.clone())
    }

    /// Returns the directory of the only lock.
    fn lock(&self) -> PathBuf {
        let entries = fs::read_dir(self.path()).unwrap();
        let mut paths = entries.map(|entry| entry.unwrap().path());
        paths.find(|path| path.is_dir()).unwrap()
    }
}

impl Fixture for Place {
    type Store = Arc<dyn Store>;
    type Host = TestClock;

    fn client(&self) -> Arc<dyn Store> {
        let number = self.opened.fetch_add(1, Ordering::Relaxed);
        if self.clients == Clients::Mixed && number % 2 == 1 {
            Arc::new(self.native())
        } else {
            Arc::new(self.component())
        }
    }

    fn host(&self) -> TestClock {
        self.clock.clone()
    }

    fn pass(&self, time: Duration) {
        self.clock.advance(time);
    }
}

fn provider(directory: &Path, clock: Option<TestClock>) -> Provider {
    let around = in_directory(&OVER_FILESYSTEM, directory, clock);
    Provider::of(&OVER_FILESYSTEM, around)
}

fn native(directory: &Path) -> HardLinkStore {
    HardLinkStore::open(directory, &StoreOptions::default()).unwrap()
}

fn claim(owner: u8) -> Claim {
    Claim::new(
        Name::new("n").unwrap(),
        Owner::from_bytes([owner; 16]),
        Ttl::try_from(Duration::from_secs(2)).unwrap(),
    )
}

#[track_caller]
fn granted(store: &dyn Store, owner: u8) -> u64 {
    match store.acquire(&claim(owner)).unwrap() {
        Acquired::Granted { fence } => fence.unwrap().get(),
        busy @ Acquired::Busy { .. } => panic!("{busy:?}"),
    }
}

#[test]
fn component_and_native_store_see_each_others_grants() {
    let place = Place::new(Clients::Mixed);
    let (component, native) = (place.component(), place.native());
    let first = granted(&component, 1);
    assert!(!native.acquire(&claim(2)).unwrap().is_granted());
    let holder = |store: &dyn Store| {
        let mut holder = store.holders(&claim(1).name).unwrap().remove(0);
        let left = holder.remaining.take().unwrap();
        assert!(left <= Duration::from_secs(2), "{left:?}");
        holder
    };
    let one = holder(&native);
    assert_eq!(one, holder(&component));
    assert_eq!(one.process, None);
    let listed = native.list().unwrap().remove(0).unwrap();
    assert_eq!(listed.0, claim(1).name);

    assert!(component.release(&claim(1)).unwrap());
    assert_eq!(
        native.renew(&claim(1), one.fence).unwrap(),
        Renewed::Released
    );
    assert_eq!(granted(&native, 2), first + 1);
    assert!(!component.acquire(&claim(1)).unwrap().is_granted());
    let two = holder(&component);
    assert_eq!(two, holder(&native));
    assert_eq!(two.process.unwrap().id, std::process::id());

    place.clock.advance(Duration::from_secs(2));
    assert_eq!(granted(&component, 1), first + 2);
    assert_eq!(native.renew(&claim(2), two.fence).unwrap(), Renewed::Lost);
    assert!(native.force_release(&claim(1).name, None).unwrap());
    assert!(!component.release(&claim(1)).unwrap());
}

#[test]
fn error_names_the_file_and_has_a_code() {
    let place = Place::new(Clients::Components);
    let store = place.component();
    granted(&store, 1);
    let state = place.lock().join("0000000000000000001.state");
    let whole = fs::read(&state).unwrap();
    fs::write(&state, &whole[..40]).unwrap();
    let err = store.acquire(&claim(2)).unwrap_err();
    let text = err.to_string();
    assert!(!err.is_temporary(), "{text}");
    let file = format!(
        "locks/{}/0000000000000000001.state",
        place.lock().file_name().unwrap().to_str().unwrap()
    );
    assert!(text.starts_with(&file), "{text}");
    assert!(text.contains("move its directory away"), "{text}");
    assert!(matches!(store.error_code(&claim(2)), ErrorCode::Corrupt));
    fs::write(&state, whole).unwrap();

    let planted = place.lock().join("notes.txt");
    fs::write(&planted, "").unwrap();
    let err = store.acquire(&claim(2)).unwrap_err().to_string();
    assert!(
        err.contains("notes.txt: this file does not belong"),
        "{err}"
    );
    fs::remove_file(planted).unwrap();

    fs::remove_file(&state).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", &state).unwrap();
    let err = store.acquire(&claim(2)).unwrap_err().to_string();
    assert!(err.contains("cannot read this file"), "{err}");
}

#[test]
fn settings_of_the_directory_are_followed() {
    let place = Place::new(Clients::Components);
    let settings = place.path().join("store");
    fs::write(&settings, "verrou hard links 1\nskew-milliseconds 500\n").unwrap();
    let store = place.component();
    granted(&store, 1);
    place.clock.advance(Duration::from_secs(2));
    assert!(!store.acquire(&claim(2)).unwrap().is_granted());
    place.clock.advance(Duration::from_millis(500));
    granted(&store, 2);

    fs::write(settings, "verrou hard links 2\n").unwrap();
    let store = place.component();
    assert!(matches!(store.error_code(&claim(3)), ErrorCode::Corrupt));
}

#[test]
fn clocks_that_differ_by_less_than_the_allowance_make_no_second_holder() {
    let place = Place::new(Clients::Components);
    let settings = place.path().join("store");
    fs::write(settings, "verrou hard links 1\nskew-milliseconds 60000\n").unwrap();
    let ahead = TestClock::still();
    ahead.advance(Duration::from_secs(59));
    let (behind, ahead) = (
        provider(place.path(), Some(TestClock::still())),
        provider(place.path(), Some(ahead)),
    );
    granted(&behind, 1);
    assert!(!ahead.acquire(&claim(2)).unwrap().is_granted());
    assert!(behind.extend(&claim(1)).unwrap());
    assert!(behind.release(&claim(1)).unwrap());
    granted(&ahead, 2);
    // For the clock that is behind, the lease lasts longer.
    let Acquired::Busy { remaining } = behind.acquire(&claim(1)).unwrap() else {
        panic!("two holders");
    };
    assert_eq!(remaining, Some(Duration::from_secs(2 + 59 + 60)));
}

/// Leaves no free byte and no free inode in a file system.
#[cfg(target_os = "linux")]
fn fill(root: &Path) {
    let mut ballast = File::create(root.join("ballast")).unwrap();
    for length in [4096, 1] {
        while ballast.write_all(&vec![7; length]).is_ok() {}
    }
    let mut inodes = (0..).map(|number| root.join(format!("inode-{number}")));
    while File::create(inodes.next().unwrap()).is_ok() {}
}

#[cfg(target_os = "linux")]
#[test]
fn full_disk_prevents_no_release_of_a_component() {
    use crate::namespaces::{DIRECTORY, in_namespaces};

    let Some(root) = env::var_os(DIRECTORY) else {
        let name = "over_filesystem::full_disk_prevents_no_release_of_a_component";
        return in_namespaces("a full file system", name, &["--mount"]);
    };
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", "size=256k,nr_inodes=64", "tmpfs"]);
    assert!(mount.arg(&root).status().unwrap().success());
    let locks = Path::new(&root).join("locks");
    fs::create_dir(&locks).unwrap();
    let (store, other) = (provider(&locks, None), provider(&locks, None));
    let long = |owner| claim(owner).with_ttl(Ttl::NEVER);
    assert!(store.acquire(&long(1)).unwrap().is_granted());
    assert!(store.extend(&long(1)).unwrap());
    fill(Path::new(&root));

    let err = store.extend(&long(1)).unwrap_err();
    assert!(err.to_string().contains("insufficient-space"), "{err}");
    let another = Name::new("another").unwrap();
    let code = other.error_code(&long(2).with_name(another));
    assert!(matches!(code, ErrorCode::Full), "{code:?}");
    assert!(!other.acquire(&long(2)).unwrap().is_granted());
    assert!(store.release(&long(1)).unwrap());
    assert_eq!(other.holders(&long(1).name).unwrap(), []);
    fs::remove_file(Path::new(&root).join("ballast")).unwrap();
    fs::remove_file(Path::new(&root).join("inode-0")).unwrap();
    assert!(other.acquire(&long(2)).unwrap().is_granted());
}

#[test]
fn component_without_the_directory_is_denied_with_the_way_out() {
    let place = Place::new(Clients::Components);
    let clock = place.clock.clone();
    let around = crate::instances::without_directory(&OVER_FILESYSTEM, clock);
    let store = Provider::of(&OVER_FILESYSTEM, around);
    let err = store.acquire(&claim(1)).unwrap_err().to_string();
    assert!(err.contains("--dir DIR::locks"), "{err}");
    let code = store.error_code(&claim(1));
    assert!(
        matches!(&code, ErrorCode::Other(name) if name == "no-directory"),
        "{code:?}"
    );
    assert!(!store.has_queue(&claim(1)));
}

/// The environment variables of the processes.
const COMPONENT: &str = "OVER_FILESYSTEM_COMPONENT";
const STORE: &str = "OVER_FILESYSTEM_STORE";
const LOG: &str = "OVER_FILESYSTEM_LOG";
const GRANTS: &str = "OVER_FILESYSTEM_GRANTS";
const NAME: &str = "OVER_FILESYSTEM_NAME";

/// Does the work of a holder: two lines of the log.
fn work(log: &Path, fence: u64) {
    let mut log = File::options().append(true).create(true).open(log).unwrap();
    writeln!(log, "begin {fence}").unwrap();
    thread::sleep(Duration::from_millis(1));
    writeln!(log, "end {fence}").unwrap();
}

/// A process with the composed component; not a test. Without a number of grants it keeps the first one.
#[test]
#[ignore = "this is the process that others start"]
fn guest() {
    let variable = |name| env::var(name).unwrap();
    let component = load(Path::new(&variable(COMPONENT)));
    let around = in_directory(&component, Path::new(&variable(STORE)), None);
    let mut locks = Locks::of(&component, around);
    let lock = locks.lock();
    let mut left = env::var(GRANTS).map_or(1, |number| number.parse().unwrap());
    while left > 0 {
        let Some(fence) = locks.take(lock) else {
            thread::sleep(Duration::from_millis(1));
            continue;
        };
        work(Path::new(&variable(LOG)), fence);
        if env::var(GRANTS).is_err() {
            loop {
                thread::park();
            }
        }
        locks.release(lock).unwrap();
        left -= 1;
    }
}

/// A native process; not a test.
#[test]
#[ignore = "this is the process that others start"]
fn native_process() {
    let variable = |name| env::var(name).unwrap();
    let store = native(Path::new(&variable(STORE)));
    let retry = Retry::FOR_EVER.delay(Duration::from_millis(1)).unwrap();
    let locks = LockFactory::new(&store, System).retry(retry);
    let name = env::var(NAME).unwrap_or_else(|_| "n".to_owned());
    let lock = locks.create_lock(&name, "2s").unwrap();
    for _ in 0..variable(GRANTS).parse().unwrap() {
        lock.run(|held| work(Path::new(&variable(LOG)), held.fence().unwrap().get()))
            .unwrap();
    }
}

/// A directory with the composed component, a store and a log.
struct Processes(TempDir);

impl Processes {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let component = directory.path().join("composed.wasm");
        crate::compose_store("provider-filesystem", &component);
        fs::create_dir(directory.path().join("locks")).unwrap();
        Self(directory)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn process(&self, name: &str, grants: Option<usize>) -> Command {
        let mut command = test_process(&format!("over_filesystem::{name}"));
        command
            .arg("--ignored")
            .env(COMPONENT, self.path("composed.wasm"))
            .env(STORE, self.path("locks"))
            .env(LOG, self.path("log"));
        if let Some(grants) = grants {
            command.env(GRANTS, grants.to_string());
        }
        command
    }

    /// Returns the fencing tokens in the log, which must be those of holders that excluded each other.
    #[track_caller]
    fn fences(&self) -> Vec<u64> {
        let log = fs::read_to_string(self.path("log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        let fence = |lines: &[&str]| {
            let fence = lines[0].strip_prefix("begin ");
            let fence = fence.unwrap_or_else(|| panic!("two at a time:\n{log}"));
            assert_eq!(
                lines.get(1),
                Some(&&*format!("end {fence}")),
                "two at a time:\n{log}"
            );
            fence.parse().unwrap()
        };
        lines.chunks(2).map(fence).collect()
    }
}

#[test]
fn guests_and_native_processes_exclude_each_other() {
    const EACH: usize = 10;

    let processes = Processes::new();
    let started = ["guest", "native_process", "guest", "native_process"]
        .map(|name| Started::new(&mut processes.process(name, Some(EACH))));
    for process in started {
        assert_passed(&process.end());
    }
    let fences = processes.fences();
    let expected: Vec<_> = (fences[0]..).take(4 * EACH).collect();
    assert_eq!(fences, expected);
}

/// Returns the command `wasmtime`: the one that `VERROU_WASMTIME` names, or that of the path; `None` if there is none.
fn wasmtime_command() -> Option<PathBuf> {
    let command = env::var_os("VERROU_WASMTIME").map_or("wasmtime".into(), PathBuf::from);
    let output = Command::new(&command).arg("--version").output();
    let works = output.is_ok_and(|output| output.status.success());
    works.then_some(command)
}

#[test]
fn jobs_in_the_command_wasmtime_and_native_processes_exclude_each_other() {
    let Some(wasmtime) = wasmtime_command() else {
        eprintln!("there is no command `wasmtime`: jobs in it are not tested");
        return;
    };
    let processes = Processes::new();
    let job = processes.path("nightly.wasm");
    let composed = crate::compose(&[
        "--store".as_ref(),
        &built("provider-filesystem"),
        "--into".as_ref(),
        &built("cron-job"),
        "--output".as_ref(),
        &job,
    ]);
    crate::succeeded(&composed);
    let mut log = File::options();
    let log = log.append(true).create(true).open(processes.path("log"));
    let log = log.unwrap();
    let jobs = [(); 2].map(|()| {
        let mut command = Command::new(&wasmtime);
        let directory = format!("{}::locks", processes.path("locks").display());
        command.args(["run", "--dir", &directory]).arg(&job);
        command.args(["0", "50"]).stdout(log.try_clone().unwrap());
        command.spawn().unwrap()
    });
    let mut native = processes.process("native_process", Some(5));
    let native = Started::new(native.env(NAME, "nightly"));
    for mut job in jobs {
        assert!(job.wait().unwrap().success());
    }
    assert_passed(&native.end());
    let fences = processes.fences();
    let expected: Vec<_> = (fences[0]..).take(7).collect();
    assert_eq!(fences, expected);
}

#[test]
fn killed_guest_is_taken_over_when_its_lease_has_expired() {
    let processes = Processes::new();
    let mut guest = Started::new(&mut processes.process("guest", None));
    eventually("the guest holds the lock", || {
        let log = fs::read_to_string(processes.path("log"));
        log.is_ok_and(|log| log.contains("end"))
    });
    guest.kill().unwrap();
    let store = native(&processes.path("locks"));
    let holder = store.holders(&claim(1).name).unwrap().remove(0);
    let until = holder.since.unwrap() + Duration::from_secs(2);
    let next = Started::new(&mut processes.process("native_process", Some(1)));
    assert_passed(&next.end());
    let first = processes.fences()[0];
    assert_eq!(processes.fences(), [first, first + 1]);
    let current = fs::read_dir(processes.path("locks")).unwrap();
    let lock = current
        .map(|entry| entry.unwrap().path())
        .find(|path| path.is_dir());
    let state = fs::read_dir(lock.unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .max();
    let text = fs::read_to_string(state.unwrap()).unwrap();
    let since = text.lines().find_map(|line| line.strip_prefix("since "));
    let since = Duration::from_nanos(since.unwrap().parse().unwrap());
    assert!(since >= until, "{since:?} is before {until:?}");
}

#[test]
fn composed_component_locks() {
    let component = with_store("provider-filesystem");
    let place = Place::new(Clients::Components);
    let locks = || {
        let around = in_directory(&component, place.path(), None);
        Locks::of(&component, around)
    };
    let (mut first, mut second) = (locks(), locks());
    let (one, other) = (first.lock(), second.lock());
    let fence = first.take(one).expect("it is free");
    assert_eq!(second.take(other), None);
    // A lock that is dropped is released.
    first.drop(one);
    assert_eq!(second.take(other), Some(fence + 1));
}
