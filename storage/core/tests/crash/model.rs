//! What a disk must hold: the state after a prefix of what was done to it.
//!
//! The model keeps the contents before the first operation of this life and every operation since as
//! atomic steps, with the drive's change count when each began and was acknowledged. From a crash after
//! so many changes follow the bounds of the prefix: at least what was acknowledged (process crash) or
//! covered by a completed flush (power loss), at most what had begun.

use std::cmp::Reverse;
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;

use _core::units::{BLOCK_SIZE, GROUP_BYTES_MAX};

#[derive(Clone, Debug)]
pub enum Patch {
    Bytes { offset: u64, data: Arc<[u8]> },
    Zeros { offset: u64, length: u64 },
}

impl Patch {
    fn apply(&self, to: &mut [u8]) {
        match self {
            Patch::Bytes { offset, data } => {
                to[*offset as usize..*offset as usize + data.len()].copy_from_slice(data)
            }
            Patch::Zeros { offset, length } => {
                to[*offset as usize..(*offset + *length) as usize].fill(0)
            }
        }
    }
}

/// How the disk cuts a request into atomic groups: all of it up to 1 MiB from a block boundary.
pub fn groups(offset: u64, length: u64) -> Vec<(u64, u64)> {
    let (mut at, end, mut parts) = (offset, offset + length, Vec::new());
    while at < end {
        let room = GROUP_BYTES_MAX as u64 - at % BLOCK_SIZE as u64;
        let part = room.min(end - at);
        parts.push((at, part));
        at += part;
    }
    parts
}

#[derive(Clone, Debug)]
struct Step {
    begin: usize,
    /// Change count at the acknowledgement; `usize::MAX` until then.
    end: usize,
    patch: Patch,
    /// The operation failed: reads do not show it, but a crash may bring it back until the next flush.
    is_failed: bool,
}

#[derive(Clone, Debug)]
pub struct DiskModel {
    base: Vec<u8>,
    steps: Vec<Step>,
    /// `(change count at the acknowledgement, steps covered)`.
    flushes: Vec<(usize, usize)>,
    now: Vec<u8>,
}

/// Failed operations since the last flush that are tried as there and as not there.
const FAILED_MAX: usize = 6;

/// What a crash has left: the first `steps`, and of those that had failed the ones in `revived`.
#[derive(Clone, Debug)]
pub struct Prefix {
    steps: usize,
    revived: Vec<usize>,
}

/// What a crash takes away.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Crash {
    Process,
    Power,
}

impl DiskModel {
    /// A new disk of at most `capacity_bytes`, all zeros.
    pub fn new(capacity_bytes: u64) -> DiskModel {
        DiskModel::holding(vec![0; capacity_bytes as usize])
    }

    /// A disk that holds `base`, durably.
    pub fn holding(base: Vec<u8>) -> DiskModel {
        DiskModel { now: base.clone(), base, steps: Vec::new(), flushes: Vec::new() }
    }

    /// What reads must return now.
    pub fn now(&self) -> &[u8] {
        &self.now
    }

    /// An operation begins: its patches, each atomic. Returns its steps for `acknowledge` or `fail`.
    pub fn begin(&mut self, patches: Vec<Patch>, changes: usize) -> Range<usize> {
        let first = self.steps.len();
        let step = |patch| Step { begin: changes, end: usize::MAX, patch, is_failed: false };
        self.steps.extend(patches.into_iter().map(step));
        first..self.steps.len()
    }

    pub fn acknowledge(&mut self, steps: Range<usize>, changes: usize) {
        for step in &mut self.steps[steps] {
            step.end = changes;
            step.patch.apply(&mut self.now);
        }
    }

    /// The operation failed. Those of its first steps that `found`, read just after, shows have happened;
    /// panics if it shows anything else.
    pub fn fail(&mut self, steps: Range<usize>, changes: usize, found: &[u8]) {
        for at in steps.clone() {
            if self.now[..found.len()] == *found {
                for step in &mut self.steps[at..steps.end] {
                    (step.end, step.is_failed) = (changes, true);
                }
                return;
            }
            self.acknowledge(at..at + 1, changes);
        }
        assert!(self.now[..found.len()] == *found, "a failed request left something else");
    }

    /// A flush was acknowledged that covers everything acknowledged before.
    pub fn flushed(&mut self, changes: usize) {
        self.flushes.push((changes, self.steps.len()));
    }

    /// How many steps must and may have survived a crash after so many changes.
    pub fn bounds(&self, changes: usize, crash: Crash) -> RangeInclusive<usize> {
        let is_begun = |s: &&Step| s.begin < changes || s.end <= changes;
        let begun = self.steps.iter().take_while(is_begun).count();
        let flushes = self.flushes.iter().filter(|(end, _)| *end <= changes);
        let flushed = flushes.map(|(_, steps)| *steps).max().unwrap_or(0);
        let acknowledged = self.steps[..begun].iter().take_while(|s| s.end <= changes).count();
        let least = match crash {
            Crash::Process => acknowledged.max(flushed),
            Crash::Power => flushed,
        };
        least..=begun
    }

    /// The longest prefix within the bounds whose contents begin with `found`.
    ///
    /// Failed steps may be there or not if they come after the last flush; before it they are not. No
    /// more of them are taken to be there than it needs.
    pub fn matching(&self, found: &[u8], bounds: RangeInclusive<usize>) -> Option<Prefix> {
        let flushed = self.flushes.iter().map(|f| f.1).filter(|n| *n <= *bounds.start()).max();
        let open = flushed.unwrap_or(0)..*bounds.end();
        let failed: Vec<usize> = open.filter(|i| self.steps[*i].is_failed).collect();
        let choices = 0..1usize << failed.len().min(FAILED_MAX);
        let prefixes = choices.filter_map(|choice| {
            let chosen = failed.iter().enumerate().filter(|(i, _)| choice >> i.min(&31) & 1 == 1);
            let revived: Vec<usize> = chosen.map(|(_, step)| *step).collect();
            let steps = self.longest(found, bounds.clone(), &revived)?;
            Some(Prefix { steps, revived })
        });
        prefixes.max_by_key(|p| (p.steps, Reverse(p.revived.len())))
    }

    fn longest(
        &self,
        found: &[u8],
        bounds: RangeInclusive<usize>,
        revived: &[usize],
    ) -> Option<usize> {
        let mut state = self.base.clone();
        let mut best = None;
        for steps in 0..=*bounds.end() {
            if steps >= *bounds.start() && state[..found.len()] == *found {
                best = Some(steps);
            }
            if let Some(step) = self.steps.get(steps)
                && (!step.is_failed || revived.contains(&steps))
            {
                step.patch.apply(&mut state);
            }
        }
        best
    }

    /// Goes on after a crash after so many changes that kept `prefix` and left `found`.
    ///
    /// After a power loss everything found is on stable storage and must not be lost again.
    pub fn survive(&mut self, found: &[u8], prefix: &Prefix, changes: usize, crash: Crash) {
        let flushed = *self.bounds(changes, Crash::Power).start();
        let mut now = self.base.clone();
        self.steps.truncate(prefix.steps);
        for (i, step) in self.steps.iter_mut().enumerate() {
            (step.begin, step.end) = (0, 0);
            step.is_failed &= !prefix.revived.contains(&i);
            if !step.is_failed {
                step.patch.apply(&mut now);
            }
        }
        now[..found.len()].copy_from_slice(found);
        if crash == Crash::Power {
            *self = DiskModel::holding(now);
            return;
        }
        self.flushes = vec![(0, flushed)];
        self.now = now;
    }

    /// Where `found` differs from what each possible prefix would hold, for a report.
    pub fn explain(&self, found: &[u8], bounds: RangeInclusive<usize>) -> String {
        let mut state = self.base.clone();
        let mut lines = vec![format!("allowed: {bounds:?} steps of {}", self.steps.len())];
        for steps in 0..=*bounds.end() {
            let blocks = found.chunks(BLOCK_SIZE).zip(state.chunks(BLOCK_SIZE)).enumerate();
            let wrong: Vec<usize> = blocks
                .filter(|(_, (found, wanted))| **found != wanted[..found.len()])
                .map(|(i, _)| i)
                .collect();
            lines.push(format!("after {steps} steps these blocks differ: {wrong:?}"));
            if let Some(step) = self.steps.get(steps) {
                let (begin, end, failed) = (step.begin, step.end, step.is_failed);
                lines.push(match &step.patch {
                    Patch::Bytes { offset, data } => format!(
                        "  step {steps}: {} bytes at {offset}, changes {begin}..{end} {failed}",
                        data.len()
                    ),
                    Patch::Zeros { offset, length } => format!(
                        "  step {steps}: {length} zeros at {offset}, changes {begin}..{end} {failed}"
                    ),
                });
                if !step.is_failed {
                    step.patch.apply(&mut state);
                }
            }
        }
        lines.join("\n")
    }
}
