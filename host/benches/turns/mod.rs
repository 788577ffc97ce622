//! Measuring side by side: the machines this runs on are noisy, so the subjects of a comparison take
//! turns, round by round, and what is told is the median of each and its ratio to the first. No
//! library that was found lets them take turns.

#![allow(dead_code, reason = "each benchmark uses some of it")]

use std::time::{Duration, Instant};

const ROUNDS: usize = 41;

/// What is measured, and what people call it.
pub(crate) type Subject<'a> = (&'a str, Box<dyn FnMut() + 'a>);

/// Lets the subjects take turns, each `times` times in a round, and tells their medians.
pub(crate) fn compare<const N: usize>(
    title: &str,
    times: u32,
    mut subjects: [Subject<'_>; N],
) -> [Duration; N] {
    let mut taken: [Vec<Duration>; N] = std::array::from_fn(|_| Vec::with_capacity(ROUNDS));
    for _ in 0..ROUNDS {
        for ((_, subject), taken) in subjects.iter_mut().zip(&mut taken) {
            let began = Instant::now();
            for _ in 0..times {
                subject();
            }
            taken.push(began.elapsed() / times);
        }
    }
    println!("\n{title} (median of {ROUNDS} rounds of {times})");
    let medians = taken.map(median);
    for ((name, _), median) in subjects.iter().zip(medians) {
        let ratio = median.as_secs_f64() / medians[0].as_secs_f64();
        println!("  {name:<40} {median:>12.3?} {ratio:>8.2} ×");
    }
    medians
}

/// The one in the middle.
pub(crate) fn median(mut taken: Vec<Duration>) -> Duration {
    taken.sort_unstable();
    taken.get(taken.len() / 2).copied().unwrap_or_default()
}
