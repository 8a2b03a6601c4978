//! The store under every kind of misfortune: power loss, process crash, full drive, failing calls, flipped
//! bits, concurrency. `README.md` beside this file tells how to read a failure.

mod content;
mod copies;
mod exhaustive;
mod faults;
mod flips;
mod hostile;
mod model;
mod property;
mod regressions;
mod reuse;
mod sampled;
mod threads;
mod workload;
mod world;

/// How many rounds a test of `rounds` rounds does: many more in a soak run.
pub fn rounds(rounds: u64) -> u64 {
    match std::env::var_os("NEARSTONE_SOAK") {
        Some(_) => rounds * 100,
        None => rounds,
    }
}

/// The first seed of a series: always the same in continuous integration, a new one in a soak run, the
/// given one when a failure is looked into.
pub fn first_seed(series: u64) -> u64 {
    let given = std::env::var("NEARSTONE_SEED").ok();
    if let Some(seed) = given.and_then(|s| u64::from_str_radix(s.trim_start_matches("0x"), 16).ok())
    {
        return seed;
    }
    match std::env::var_os("NEARSTONE_SOAK") {
        Some(_) => {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            series ^ (now.expect("after 1970").as_nanos() as u64) << 16
        }
        None => series,
    }
}

/// Runs `act`; a panic in it becomes an error.
pub fn caught(act: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(act)) {
        Ok(outcome) => outcome,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string()));
            Err(format!("panic: {}", text.unwrap_or_default()))
        }
    }
}
