//! A fault at every system call of every operation: the process is killed there, or the call fails.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use fastrand::Rng;
use nix::errno::Errno;
use syscalls::Sysno;

use crate::results::{Findings, Part, Setting};
use crate::steps::{Act, AttemptResult, OPERATIONS, Scene, Stage};
use crate::tracer::{self, Fault};

pub(crate) const CRASH_POINTS: Part = Part {
    name: "crash-points",
    about: "kill -9 at every system call of every operation",
    share: 0,
    run: crash_points,
};
pub(crate) const FAILING_CALLS: Part = Part {
    name: "failing-calls",
    about: "every system call of every operation fails with every error, or reads and writes half",
    share: 0,
    run: failing_calls,
};

/// The time within which another process acquires the lock of a dead holder; the next waiter may
/// have died, too.
const BOUND: Duration = Duration::from_millis(500);

/// The errors that calls fail with.
const ERRORS: [Errno; 10] = [
    Errno::ENOSPC,
    Errno::EIO,
    Errno::EINTR,
    Errno::EMFILE,
    Errno::ENFILE,
    Errno::ENOLCK,
    Errno::EDQUOT,
    Errno::EROFS,
    Errno::ENOMEM,
    Errno::EACCES,
];

/// Calls whose failure no program survives, or that cannot fail.
const BEYOND_US: [Sysno; 13] = [
    Sysno::brk,
    Sysno::mmap,
    Sysno::mprotect,
    Sysno::mremap,
    Sysno::munmap,
    Sysno::madvise,
    Sysno::rt_sigprocmask,
    Sysno::rt_sigaction,
    Sysno::sched_yield,
    Sysno::getpid,
    Sysno::geteuid,
    // Without randomness there are no locks, as documented.
    Sysno::getrandom,
    Sysno::clock_nanosleep,
];

/// One fault at one call of an operation.
struct Trial<'a> {
    stage: &'a Stage,
    at: usize,
    call: Sysno,
    fault: Fault,
}

fn crash_points(setting: &Setting, findings: &mut Findings) -> Result<()> {
    if let Err(why) = tracer::is_possible() {
        findings.not_done(why);
        return Ok(());
    }
    let stages = stages(setting)?;
    let calls = calls(setting, &stages)?;
    let mut trials = Vec::new();
    for (stage, calls) in stages.iter().zip(&calls) {
        for (at, &call) in calls.iter().enumerate() {
            let fault = Fault::Killed;
            trials.push(Trial {
                stage,
                at,
                call,
                fault,
            });
        }
    }
    findings.count("operations", stages.len() as u64);
    try_all(setting, findings, &trials, |scene, trial| {
        let traced = tracer::trace(&scene.process, Some((trial.at, trial.fault)))?;
        let mut wrong = if traced.is_gone || !traced.did_occur {
            Vec::new()
        } else {
            vec!["the process survived SIGKILL".to_owned()]
        };
        scene.end_process()?;
        wrong.extend(scene.others_get_in(BOUND)?);
        Ok((traced.did_occur.then_some("crash points"), wrong))
    })
}

fn failing_calls(setting: &Setting, findings: &mut Findings) -> Result<()> {
    if let Err(why) = tracer::is_possible() {
        findings.not_done(why);
        return Ok(());
    }
    let stages = stages(setting)?;
    let calls = calls(setting, &stages)?;
    let mut trials = Vec::new();
    for (stage, calls) in stages.iter().zip(&calls) {
        for (at, &call) in calls.iter().enumerate() {
            if BEYOND_US.contains(&call) {
                continue;
            }
            let faults = ERRORS.into_iter().map(Fault::Fails);
            let faults = faults.chain([Fault::DoneButFails(Errno::EIO)]);
            let is_long = matches!(
                call,
                Sysno::pread64 | Sysno::pwrite64 | Sysno::read | Sysno::write
            );
            let faults = faults.chain(is_long.then_some(Fault::Half));
            trials.extend(faults.map(|fault| Trial {
                stage,
                at,
                call,
                fault,
            }));
        }
    }
    findings.count("operations", stages.len() as u64);
    if !setting.is_long {
        // Each call still fails in some way.
        let mut random = Rng::with_seed(setting.seed);
        random.shuffle(&mut trials);
        trials.truncate(trials.len() / 3);
    }
    try_all(setting, findings, &trials, failing_call)
}

/// Makes one call fail, and lets the process retry the operation.
fn failing_call(
    scene: &mut Scene<'_>,
    trial: &Trial<'_>,
) -> Result<(Option<&'static str>, Vec<String>)> {
    let act = trial.stage.act();
    let mut wrong = Vec::new();
    let traced = tracer::trace(&scene.process, Some((trial.at, trial.fault)))?;
    let mut result = scene.receive()?;
    if let Some(AttemptResult::Error { text }) = &result {
        if !text.contains(&*scene.directory.to_string_lossy()) {
            wrong.push(format!("the error does not name the directory: {text}"));
        }
        if act == Act::Release && !scene.is_free_to_others_soon()? {
            wrong.push(format!("still held after a failed release: {text}"));
        }
        scene.resume()?;
        result = scene.receive()?;
        if let Some(AttemptResult::Error { text }) = &result {
            wrong.push(format!("the retry fails, too: {text}"));
        }
    }
    match &result {
        Some(AttemptResult::Granted { fence }) if matches!(act, Act::Acquire | Act::Extend) => {
            if scene.is_free_to_others()? {
                wrong.push("granted to two owners".to_owned());
            }
            let under = scene.held_under()?;
            // An extension keeps the fencing token, which its reply does not have.
            let expected = match act {
                Act::Extend => Some(scene.fence),
                _ => *fence,
            };
            if under != expected {
                wrong.push(format!(
                    "granted under {expected:?}, inspected as {under:?}"
                ));
            }
            scene.fence = fence.unwrap_or_default().max(scene.fence);
        }
        Some(AttemptResult::Refused) if act == Act::Acquire => {
            wrong.push("a free lock was refused".to_owned());
        }
        Some(AttemptResult::Granted { .. }) if act == Act::Wait => {
            wrong.push("a lock that another process holds was granted".to_owned());
        }
        _ => {}
    }
    let (errors, ended_well) = scene.end_process()?;
    if !ended_well || !errors.is_empty() {
        wrong.push(format!("the process failed: {errors}"));
    }
    wrong.extend(scene.others_get_in(BOUND)?);
    Ok((traced.did_occur.then_some("failing calls"), wrong))
}

fn stages(setting: &Setting) -> Result<Vec<Stage>> {
    let mut stages = Vec::new();
    for operation in OPERATIONS {
        for kind in operation.kinds {
            stages.push(Stage::new(&setting.directory, operation, kind)?);
        }
    }
    Ok(stages)
}

/// Returns the system calls that each operation makes without a fault.
fn calls(setting: &Setting, stages: &[Stage]) -> Result<Vec<Vec<Sysno>>> {
    let mut all = Vec::new();
    for (number, stage) in stages.iter().enumerate() {
        let directory = setting.directory.join(format!("calls-{number}"));
        let other = stage.open_copy(&directory)?;
        let scene = stage.scene(directory, &other)?;
        all.push(tracer::trace(&scene.process, None)?.calls);
    }
    Ok(all)
}

/// Runs a trial; returns the name under which it is counted, and the violations.
type Try = fn(&mut Scene<'_>, &Trial<'_>) -> Result<(Option<&'static str>, Vec<String>)>;

/// Runs all trials, as many at once as there are processors.
fn try_all(
    setting: &Setting,
    findings: &mut Findings,
    trials: &[Trial<'_>],
    attempt: Try,
) -> Result<()> {
    /// The number of violations after which the part stops.
    const MOST: usize = 50;

    setting.progress.set_length(trials.len() as u64);
    let next = AtomicUsize::new(0);
    let shared = Mutex::new(findings);
    let work = || -> Result<()> {
        loop {
            let number = next.fetch_add(1, Relaxed);
            let Some(trial) = trials.get(number) else {
                return Ok(());
            };
            let directory: PathBuf = setting.directory.join(format!("trial-{number}"));
            let other = trial.stage.open_copy(&directory)?;
            let mut scene = trial.stage.scene(directory, &other)?;
            let title = scene.title();
            let (what, wrong) = attempt(&mut scene, trial)
                .unwrap_or_else(|err| (None, vec![format!("the trial failed to run: {err:#}")]));
            setting.progress.inc(1);
            let mut findings = shared
                .lock()
                .expect("no thread panics while it holds this mutex");
            if let Some(what) = what {
                findings.count(what, 1);
            }
            let Trial {
                at, call, fault, ..
            } = trial;
            for wrong in wrong {
                findings.violation(format!("{title}, call {at} ({call}), {fault:?}: {wrong}"));
            }
            if findings.violations.len() > MOST {
                next.store(trials.len(), Relaxed);
            }
        }
    };
    thread::scope(|scope| {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let workers: Vec<_> = (0..processors).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            worker.join().expect("a worker returns its errors")?;
        }
        Ok(())
    })
}
