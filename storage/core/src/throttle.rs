//! Limits on what clients may ask of a disk: requests and bytes a second, with a burst.
//!
//! Each limit is a token bucket kept as one number: the moment at which the bucket is empty. Idle time
//! fills it, up to the burst; a request takes its share and waits until that moment if it lies ahead.
//! Places are given out in order of arrival, so that no connection starves another. Nobody holds a lock
//! while waiting, and a disk without limits pays for one relaxed load.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// Zero stands for no limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Limits {
    pub requests_per_s: u64,
    pub bytes_per_s: u64,
    /// How much idle time can be made up for.
    pub burst: Duration,
}

/// The limits and, in nanoseconds, the moments at which the buckets are empty.
#[derive(Default)]
struct Buckets {
    limits: Limits,
    requests_empty_ns: u64,
    bytes_empty_ns: u64,
}

/// Takes `amount` out of a bucket that fills at `per_s`; the moment from which on it had that much.
fn take(empty_ns: &mut u64, per_s: u64, burst: Duration, now_ns: u64, amount: u64) -> u64 {
    if per_s == 0 {
        return now_ns;
    }
    let burst_ns = u64::try_from(burst.as_nanos()).unwrap_or(u64::MAX);
    let cost_ns = u128::from(amount) * 1_000_000_000 / u128::from(per_s);
    let full_ns = now_ns.saturating_sub(burst_ns);
    let cost_ns = u64::try_from(cost_ns).unwrap_or(u64::MAX);
    *empty_ns = (*empty_ns).max(full_ns).saturating_add(cost_ns);
    *empty_ns
}

impl Buckets {
    /// Takes a request of `bytes` into account and tells when it may go on.
    fn reserve(&mut self, now_ns: u64, bytes: u64) -> u64 {
        let Limits { requests_per_s, bytes_per_s, burst } = self.limits;
        let by_requests = take(&mut self.requests_empty_ns, requests_per_s, burst, now_ns, 1);
        let by_bytes = take(&mut self.bytes_empty_ns, bytes_per_s, burst, now_ns, bytes);
        by_requests.max(by_bytes)
    }
}

#[derive(Default)]
struct State {
    buckets: Buckets,
    /// Counts changes of the limits; those who wait then ask again.
    changes: u64,
}

pub struct Throttle {
    is_limited: AtomicBool,
    start: Instant,
    state: Mutex<State>,
    changed: Condvar,
}

impl Throttle {
    /// Without limits.
    pub fn new() -> Throttle {
        Throttle {
            is_limited: AtomicBool::new(false),
            start: Instant::now(),
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Counts from now on, for those too who wait already. Buckets start full.
    pub fn set(&self, limits: Limits) {
        let mut state = self.state.lock();
        let is_limited = limits.requests_per_s > 0 || limits.bytes_per_s > 0;
        state.buckets = Buckets { limits, ..Buckets::default() };
        state.changes += 1;
        self.is_limited.store(is_limited, Ordering::Relaxed);
        drop(state);
        self.changed.notify_all();
    }

    /// Waits until a request of `bytes` may go on. Call without any lock.
    pub fn admit(&self, bytes: u64) {
        if self.is_limited.load(Ordering::Relaxed) {
            self.wait(bytes);
        }
    }

    #[cold]
    fn wait(&self, bytes: u64) {
        let mut state = self.state.lock();
        loop {
            let now_ns = self.start.elapsed().as_nanos() as u64;
            let due_ns = state.buckets.reserve(now_ns, bytes);
            let due = self.start + Duration::from_nanos(due_ns.min(u64::MAX / 4));
            let changes = state.changes;
            while state.changes == changes {
                if self.start.elapsed().as_nanos() as u64 >= due_ns {
                    return;
                }
                self.changed.wait_until(&mut state, due);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    const S: u64 = 1_000_000_000;

    fn buckets(requests_per_s: u64, bytes_per_s: u64, burst_s: u64) -> Buckets {
        let burst = Duration::from_secs(burst_s);
        Buckets { limits: Limits { requests_per_s, bytes_per_s, burst }, ..Buckets::default() }
    }

    #[test]
    fn a_burst_goes_at_once_and_the_rest_at_the_rate() {
        let mut buckets = buckets(100, 0, 2);
        let due: Vec<_> = (0..400).map(|_| buckets.reserve(10 * S, 4096)).collect();
        assert!(due[..200].iter().all(|at| *at <= 10 * S));
        assert_eq!((due[200], due[399]), (10 * S + S / 100, 12 * S));
    }

    #[test]
    fn the_tighter_limit_counts() {
        let mut buckets = buckets(1000, 4096, 0);
        assert_eq!(buckets.reserve(10 * S, 8192), 12 * S);
        assert_eq!(buckets.reserve(10 * S, 0), 12 * S);
    }

    #[test]
    fn who_waits_hears_of_new_limits() {
        let throttle = Arc::new(Throttle::new());
        throttle.set(Limits { requests_per_s: 1, bytes_per_s: 1, burst: Duration::ZERO });
        let waiting = std::thread::spawn({
            let throttle = throttle.clone();
            move || throttle.admit(1 << 40)
        });
        // The first has its place in the bucket: it waits, or will.
        while throttle.state.lock().buckets.bytes_empty_ns == 0 {
            std::thread::yield_now();
        }
        throttle.set(Limits::default());
        waiting.join().expect("it goes on");
    }

    proptest! {
        /// In any window the requests that go on are at most the burst and what the window's time allows,
        /// and one more, which is under way; and no request waits longer than that asks for.
        #[test]
        fn rates_hold_over_every_window(
            per_s in 1u64..2000,
            burst_s in 0u64..4,
            gaps in proptest::collection::vec(0u64..50_000_000, 1..200),
        ) {
            let mut buckets = buckets(per_s, 0, burst_s);
            let mut now = 100 * S;
            let mut gone = Vec::new();
            for gap in gaps {
                now += gap;
                let due = buckets.reserve(now, 0).max(now);
                prop_assert!(gone.last().is_none_or(|last| *last <= due));
                gone.push(due);
            }
            for from in 0..gone.len() {
                for to in from..gone.len() {
                    let window_ns = gone[to] - gone[from] + burst_s * S;
                    let allowed = u128::from(window_ns) * u128::from(per_s) / u128::from(S) + 2;
                    prop_assert!((to - from + 1) as u128 <= allowed + allowed / 100);
                }
            }
        }
    }
}
