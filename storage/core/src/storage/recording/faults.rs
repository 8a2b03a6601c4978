//! Calls that fail on request: the n-th read, every sync of one file, a write that stops half way.

use std::collections::HashMap;
use std::io;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Call {
    Create,
    Open,
    Remove,
    Rename,
    RemoveDir,
    List,
    SyncDir,
    Read,
    Write,
    Sync,
    Len,
    SetLen,
    Punch,
}

/// Every kind of call.
pub const CALLS: [Call; 13] = [
    Call::Create,
    Call::Open,
    Call::Remove,
    Call::Rename,
    Call::RemoveDir,
    Call::List,
    Call::SyncDir,
    Call::Read,
    Call::Write,
    Call::Sync,
    Call::Len,
    Call::SetLen,
    Call::Punch,
];

/// Makes calls of one kind fail: `skip` of them succeed first, then `times` fail.
#[derive(Clone, Debug)]
pub struct Fault {
    pub call: Call,
    /// Only for paths that contain this.
    pub path: String,
    pub skip: u64,
    pub times: u64,
    pub errno: i32,
    /// How much of a failing write is done all the same.
    pub done_per_mille: usize,
}

impl Fault {
    /// The call after `skip` more of its kind fails with `EIO`, once and without effect.
    pub fn once(call: Call, skip: u64) -> Fault {
        let path = String::new();
        Fault { call, path, skip, times: 1, errno: libc::EIO, done_per_mille: 0 }
    }
}

pub(super) enum Verdict {
    Pass,
    Fail { errno: i32, done_per_mille: usize },
}

impl Verdict {
    pub(super) fn result(&self) -> io::Result<()> {
        match self {
            Verdict::Pass => Ok(()),
            Verdict::Fail { errno, .. } => Err(io::Error::from_raw_os_error(*errno)),
        }
    }
}

#[derive(Default)]
pub(super) struct Faults {
    faults: Vec<Fault>,
    calls: HashMap<Call, u64>,
}

impl Faults {
    pub(super) fn set(&mut self, faults: Vec<Fault>) {
        self.faults = faults;
    }

    pub(super) fn calls(&self, call: Call) -> u64 {
        self.calls.get(&call).copied().unwrap_or(0)
    }

    pub(super) fn judge(&mut self, call: Call, path: &str) -> Verdict {
        *self.calls.entry(call).or_default() += 1;
        let concerned = |f: &&mut Fault| f.call == call && f.times > 0 && path.contains(&f.path);
        for fault in self.faults.iter_mut().filter(concerned) {
            if fault.skip > 0 {
                fault.skip -= 1;
                continue;
            }
            fault.times -= 1;
            let (errno, done_per_mille) = (fault.errno, fault.done_per_mille);
            return Verdict::Fail { errno, done_per_mille };
        }
        Verdict::Pass
    }

    pub(super) fn check(&mut self, call: Call, path: &str) -> io::Result<()> {
        self.judge(call, path).result()
    }
}
