//! The pool: drives, the disks in service, and the threads behind them.

use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hashbrown::HashMap;
use parking_lot::Mutex;

use crate::anchor_file::{self, AnchorFile};
use crate::budget::{Budget, Chore, DiskChores};
use crate::disk::{Counters, Disk};
use crate::disk_map::DiskMap;
use crate::error::{Error, Result};
use crate::fetch::Fetcher;
use crate::format::Root;
use crate::holds::{Holds, held_by};
use crate::log::{Log, LogContext};
use crate::map::{NodeCache, TreeRoot};
use crate::pending::Pending;
use crate::recovery::{self, Recovered};
use crate::segments::Segments;
use crate::storage::{Drive, Space};
use crate::throttle::{Limits, Throttle};
use crate::units::{DISK_SIZE_BYTES_MAX, DiskId, SEGMENT_SIZE_BYTES_MAX, SegmentId};

#[derive(Clone, Debug)]
pub struct Options {
    pub pool_uuid: [u8; 16],
    /// Bounds changes not yet checkpointed plus cached map nodes.
    pub memory_bytes: usize,
    /// Small drives make it smaller.
    pub segment_size_bytes: usize,
    /// Without threads, chores wait for [`Pool::run_background`].
    pub background: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            pool_uuid: [0; 16],
            memory_bytes: 256 << 20,
            segment_size_bytes: SEGMENT_SIZE_BYTES_MAX,
            background: true,
        }
    }
}

pub struct Pool {
    pub(crate) options: Options,
    pub(crate) anchors: Arc<dyn Drive>,
    segment_size: usize,
    pub(crate) segments: Arc<Segments>,
    nodes: Arc<NodeCache>,
    pub(crate) holds: Arc<Holds>,
    pub(crate) pending: Arc<Pending>,
    pub(crate) budget: Arc<Budget>,
    pub(crate) disks: Mutex<HashMap<DiskId, Arc<Disk>>>,
    /// Held by whoever makes or deletes disks that share segments.
    pub(crate) sharing: Mutex<()>,
    is_closed: AtomicBool,
}

/// What a pool holds at the moment, in bytes unless named otherwise.
#[derive(Clone, Copy, Debug)]
pub struct PoolStats {
    pub space: Space,
    pub segments: usize,
    pub open_disks: usize,
    pub delta_bytes: usize,
    pub node_cache_bytes: usize,
}

impl Pool {
    /// Opens a pool: `anchors` holds the anchors, `drives` the segments, by index; `None` is a missing one.
    pub fn open(
        anchors: Arc<dyn Drive>,
        drives: Vec<(u32, Option<Arc<dyn Drive>>)>,
        options: Options,
    ) -> Result<Arc<Pool>> {
        if drives.iter().any(|(index, _)| *index >= u64::BITS) {
            return Err(Error::InvalidRequest("a pool has at most 64 drives".into()));
        }
        let mut id_floor = SegmentId::NONE;
        for disk in anchor_file::list(&*anchors)? {
            // A damaged anchor concerns its own disk, when that is opened.
            if let Ok(anchor) = AnchorFile::open(&anchors, options.pool_uuid, disk) {
                id_floor = id_floor.max(anchor.root().segment_high);
            }
        }
        let segments = Arc::new(Segments::scan(drives, id_floor)?);
        let budget = Budget::new(options.memory_bytes, options.background, segments.clone());
        let pool = Arc::new(Pool {
            segment_size: options.segment_size_bytes.min(segments.segment_size()),
            segments,
            nodes: Arc::new(NodeCache::new(Budget::node_cache_bytes(options.memory_bytes))),
            holds: Arc::default(),
            pending: Arc::new(Pending::new(anchors.clone(), options.pool_uuid)),
            sharing: Mutex::new(()),
            budget,
            anchors,
            options,
            disks: Mutex::default(),
            is_closed: AtomicBool::new(false),
        });
        pool.load_holds()?;
        Ok(pool)
    }

    /// Makes a new, empty disk; durable on return.
    pub fn create_disk(&self, disk: DiskId) -> Result<()> {
        self.check_open()?;
        let root = Root { disk, replay_lsn: 1, clean: true, ..Root::default() };
        AnchorFile::create(&self.anchors, self.options.pool_uuid, &[root])
    }

    /// Puts a disk into service, recovering it first; the same object while it is in service.
    pub fn open_disk(&self, disk: DiskId, size_bytes: u64) -> Result<Arc<Disk>> {
        self.check_open()?;
        if size_bytes > DISK_SIZE_BYTES_MAX {
            let reason = format!("a disk has at most {DISK_SIZE_BYTES_MAX} bytes");
            return Err(Error::InvalidRequest(reason));
        }
        self.settle(disk)?;
        let opened = self.in_service(disk)?;
        // One that is in service already has its size, unless only the pool itself has used it.
        let _ = opened.size_bytes.compare_exchange(0, size_bytes, AcqRel, Acquire);
        Ok(opened)
    }

    /// The disk in service, recovered if it was not; nobody can use it until it has been opened.
    pub(crate) fn in_service(&self, disk: DiskId) -> Result<Arc<Disk>> {
        let mut disks = self.disks.lock();
        if let Some(open) = disks.get(&disk).filter(|d| d.check_open().is_ok()) {
            return Ok(open.clone());
        }
        let anchor = Arc::new(AnchorFile::open(&self.anchors, self.options.pool_uuid, disk)?);
        anchor.settle()?;
        let fetcher = self.fetcher(disk);
        let cuts = self.pending.cuts_of(disk, anchor.root().replay_lsn);
        let has_cuts = !cuts.is_empty();
        let recovered = recovery::recover(&anchor.root(), self.options.pool_uuid, &fetcher, cuts)?;
        let opened = self.assemble(disk, anchor, fetcher, recovered);
        self.budget.register(&opened);
        if has_cuts {
            self.budget.request(&opened, Chore::Checkpoint);
        }
        disks.insert(disk, opened.clone());
        Ok(opened)
    }

    pub(crate) fn fetcher(&self, disk: DiskId) -> Fetcher {
        let (segments, nodes) = (self.segments.clone(), self.nodes.clone());
        Fetcher { disk, segments, nodes, holds: self.holds.clone() }
    }

    fn assemble(
        &self,
        disk: DiskId,
        anchor: Arc<AnchorFile>,
        fetcher: Fetcher,
        recovered: Recovered,
    ) -> Arc<Disk> {
        let root = anchor.root();
        let context = LogContext {
            disk,
            pool: self.options.pool_uuid,
            segment_size: self.segment_size,
            segments: self.segments.clone(),
            anchor: anchor.clone(),
        };
        let tree = TreeRoot { location: root.tree, levels: root.levels };
        let held = held_by(&root, &recovered.usage, &self.segments);
        Arc::new_cyclic(|me| Disk {
            id: disk,
            size_bytes: AtomicU64::new(0),
            anchor,
            log: Log::new(context, recovered.log),
            map: DiskMap::new(recovered.delta, recovered.frozen, tree),
            fetcher,
            budget: self.budget.clone(),
            pending: self.pending.clone(),
            chores: DiskChores::new(me.clone()),
            checkpointing: Mutex::new(()),
            sealing: Mutex::new(()),
            checkpointed_bytes: AtomicU64::new(0),
            trimmed_blocks: AtomicU64::new(0),
            may_gain_by_cleaning: AtomicBool::new(true),
            usage: Mutex::new(recovered.usage),
            held: Mutex::new(held),
            is_closed: AtomicBool::new(false),
            throttle: Throttle::new(),
            is_compressed: AtomicBool::new(true),
            counters: Counters::default(),
        })
    }

    /// Lets requests that wait for their disk's limits go on, for the end of service.
    pub fn lift_limits(&self) {
        self.disks.lock().values().for_each(|disk| disk.throttle.set(Limits::default()));
    }

    /// Disks that have an anchor or segments, ascending.
    pub fn stored_disks(&self) -> Result<Vec<DiskId>> {
        let mut disks = anchor_file::list(&*self.anchors)?;
        disks.extend(self.segments.disks());
        disks.sort_unstable();
        disks.dedup();
        Ok(disks)
    }

    pub fn stats(&self) -> Result<PoolStats> {
        Ok(PoolStats {
            space: self.segments.space()?,
            segments: self.segments.count(),
            open_disks: self.disks.lock().len(),
            delta_bytes: self.budget.delta_bytes(),
            node_cache_bytes: self.nodes.memory_bytes(),
        })
    }

    /// Does all waiting chores now, and what is done when there are none for a while, on the caller's
    /// thread.
    pub fn run_background(&self) -> Result<()> {
        self.budget.run_waiting();
        self.segments.drop_spares().map(|_| ())
    }

    /// Ends service in order. The first error is returned, after every disk has been tried.
    pub fn close(&self) -> Result<()> {
        if self.is_closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        self.lift_limits();
        let disks: Vec<_> = self.disks.lock().drain().map(|(_, disk)| disk).collect();
        let outcomes: Vec<_> = disks.iter().map(|disk| disk.close()).collect();
        self.budget.stop();
        let spares = self.segments.drop_spares().map(|_| ());
        outcomes.into_iter().chain([spares]).collect()
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        if self.is_closed.load(Ordering::Acquire) { Err(Error::PoolClosed) } else { Ok(()) }
    }
}

impl Drop for Pool {
    /// Dropping without `close` is a crash as far as the drives are concerned.
    fn drop(&mut self) {
        self.budget.stop();
    }
}
