//! What the map costs: nanoseconds a call and bytes an entry, for the working points that count.
//!
//! `cargo run --release --example map_cost`. Figures are printed, never judged: they belong to a machine.

use std::cell::Cell;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use _core::error::{Error, Result};
use _core::format::node::Node;
use _core::map::{Delta, NodeCache, NodeStore, TreeRoot, UsageSink, merge};
use _core::units::{BlockIndex, DiskId, Location, SegmentId};

const MIB: usize = 1 << 20;
/// Blocks of a 1 TiB disk.
const DISK_BLOCKS: u64 = 1 << 28;
const ENTRIES: usize = 8_000_000;

/// Nodes in the cache and nowhere else, as long as it is large enough.
struct CachedNodes {
    cache: NodeCache,
    appended: Cell<u32>,
}

impl NodeStore for CachedNodes {
    fn load(&self, at: Location, _: u8, _: BlockIndex) -> Result<Arc<Node>> {
        let missing = || Err(Error::corrupt(DiskId(1), at.segment(), at.offset(), "evicted"));
        self.cache.get_or_load(at, missing)
    }

    fn append(&self, node: &Node, _: u8, _: BlockIndex) -> Result<Location> {
        self.appended.set(self.appended.get() + 1);
        let at = location(u64::from(self.appended.get()));
        self.cache.insert(at, Arc::new(*node));
        Ok(at)
    }
}

struct Count(u64);

impl UsageSink for Count {
    fn added(&mut self, _: Location) {
        self.0 += 1;
    }
    fn removed(&mut self, _: Location) {
        self.0 -= 1;
    }
}

/// A stream of numbers without pattern.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 9
    }
}

fn location(number: u64) -> Location {
    let offset = (number % 16_000) as usize * 4096;
    Location::new(SegmentId(1 + (number / 16_000) as u32), offset, 2600, 0)
}

fn time(what: &str, calls: usize, mut call: impl FnMut()) {
    let start = Instant::now();
    for _ in 0..calls {
        call();
    }
    let ns = start.elapsed().as_nanos() as f64 / calls as f64;
    println!("{what:<58} {ns:>9.1} ns");
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * 4096
}

fn print_memory(what: &str, delta: &Delta, resident_before: usize) {
    let counted = delta.memory_bytes();
    println!(
        "{what:<58} {:>6} MiB counted, {} MiB resident, {:.1} bytes an entry ({})",
        counted / MIB,
        (resident_bytes() - resident_before) / MIB,
        counted as f64 / delta.entries().max(1) as f64,
        delta.entries(),
    );
}

/// A delta that takes random writes over `blocks`, with a look at its memory on the way.
fn random_delta(blocks: u64, entries: usize) -> Delta {
    let before = resident_bytes();
    let mut delta = Delta::new();
    let mut random = Random(1);
    for eighth in 1..=8 {
        time(&format!("delta.set_run of 1, random, eighth {eighth}"), entries / 8, || {
            let number = random.next();
            delta.set_run(number % blocks, location(number % 1_000_000), 1);
        });
        print_memory("  memory", &delta, before);
    }
    delta
}

fn measure_delta(name: &str, delta: &mut Delta, blocks: u64) {
    let mut random = Random(2);
    time(&format!("delta.get, random, {name}"), 2_000_000, || {
        black_box(delta.get(random.next() % blocks));
    });
    time(&format!("delta.set_run of 1 again, random, {name}"), 2_000_000, || {
        let number = random.next();
        delta.set_run(number % blocks, location(number % 1_000_000), 1);
    });
    let mut out = [None; 256];
    time(&format!("delta.fill of 256, random, {name}"), 100_000, || {
        delta.fill(random.next() % blocks, black_box(&mut out));
    });
}

fn measure_sequential() {
    let before = resident_bytes();
    let mut delta = Delta::new();
    let mut block = 0;
    for _ in 0..4 {
        time("delta.set_run of 16, sequential", 65_536, || {
            delta.set_run(block, location(block), 16);
            block += 16;
        });
    }
    print_memory("  memory", &delta, before);
    measure_delta("4 GiB all known", &mut delta, block);
}

fn measure_tree(blocks: u64, entries: usize) -> Result<()> {
    let store = CachedNodes { cache: NodeCache::new(1 << 30), appended: Cell::new(0) };
    let mut usage = Count(0);
    let mut delta = Delta::new();
    let mut random = Random(1);
    for _ in 0..entries {
        let number = random.next();
        delta.set_run(number % blocks, location(number % 1_000_000), 1);
    }
    delta.set_run(DISK_BLOCKS - 1, location(7), 1);
    let mut root = TreeRoot::EMPTY;
    for round in 1..=2 {
        let (start, appended) = (Instant::now(), store.appended.get());
        root = merge(root, &delta, &store, &mut usage)?.root;
        let seconds = start.elapsed().as_secs_f64();
        println!("merge {round} of {} entries: {seconds:.3} s", delta.entries());
        println!("  {} nodes appended, {} in use", store.appended.get() - appended, usage.0);
    }
    println!("tree of {} levels, cache {} MiB", root.levels, store.cache.memory_bytes() / MIB);
    let mut out = [Location::HOLE; 256];
    for (count, range) in [(1, blocks / 64), (1, blocks), (256, blocks)] {
        let what = format!("tree.fill of {count} over {} GiB, cached", range >> 18);
        time(&what, 1_000_000 / count, || {
            let first = random.next() % range;
            root.fill(&store, first, black_box(&mut out[..count])).expect("all nodes are cached");
        });
    }
    let start = Instant::now();
    let mut whole = Delta::new();
    whole.set_holes(0..DISK_BLOCKS);
    println!("trim of 1 TiB over nothing: {:?}, {} bytes", start.elapsed(), whole.memory_bytes());
    let start = Instant::now();
    let empty = merge(root, &whole, &store, &mut usage)?;
    println!(
        "merge of that: {:?}, {} levels, {} in use",
        start.elapsed(),
        empty.root.levels,
        usage.0
    );
    Ok(())
}

fn main() -> Result<()> {
    let mut delta = random_delta(DISK_BLOCKS, ENTRIES);
    measure_delta("1 TiB, 8 million known", &mut delta, DISK_BLOCKS);
    drop(delta);
    let mut delta = random_delta(DISK_BLOCKS >> 10, 100_000);
    measure_delta("1 GiB, 100 thousand known", &mut delta, DISK_BLOCKS >> 10);
    measure_sequential();
    measure_tree(DISK_BLOCKS >> 3, 1_000_000)
}
