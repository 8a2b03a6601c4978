//! Load for a guest's block device that knows what must be read back, and how long the device took.
//!
//! `verified-load DEVICE BYTES SEED STOP_FILE PROGRESS_FILE` writes, reads and flushes the first BYTES of
//! DEVICE, which are zero before, past the page cache, until STOP_FILE exists. Every sector written carries
//! its place and the number of its write. Then everything is read once more, and one line says what was done:
//! `writes=N reads=N flushes=N longest_ms=N`. Status 1: an error, or bytes that should not be there.
//!
//! The expected contents are in the guest's memory only, so they travel with a guest that migrates.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

const BLOCK_BYTES: usize = 4096;
const SECTOR_BYTES: usize = 512;
const BLOCKS_PER_REQUEST_MAX: usize = 16;
/// Linux's O_DIRECT on x86-64 and arm64 differ; the guest is the former.
const O_DIRECT: i32 = 0o40000;

/// A buffer that O_DIRECT accepts.
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
}

impl Aligned {
    fn new() -> Self {
        let bytes = vec![0; (BLOCKS_PER_REQUEST_MAX + 1) * BLOCK_BYTES];
        let start = bytes.as_ptr().align_offset(BLOCK_BYTES);
        Self { bytes, start }
    }

    fn blocks(&mut self, count: usize) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + count * BLOCK_BYTES]
    }
}

/// xorshift64*
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % bound
    }
}

/// What a block holds after its write of number `version`; zeros before the first.
fn fill(block: &mut [u8], number: usize, version: u64) {
    for (at, sector) in block.chunks_exact_mut(SECTOR_BYTES).enumerate() {
        let mut word = Random((version << 32 | (number * 8 + at) as u64) ^ 0x9E37_79B9_7F4A_7C15);
        for part in sector.chunks_exact_mut(16) {
            part.fill(0);
            if version != 0 {
                part[..8].copy_from_slice(&(word.below(1 << 30) as u64).to_le_bytes());
            }
        }
    }
}

struct Load {
    device: File,
    versions: Vec<u64>,
    writes: u64,
    reads: u64,
    flushes: u64,
    longest: Duration,
    buffer: Aligned,
}

impl Load {
    fn timed<T>(&mut self, work: impl FnOnce(&mut Self) -> io::Result<T>) -> io::Result<T> {
        let began = Instant::now();
        let result = work(self);
        self.longest = self.longest.max(began.elapsed());
        result
    }

    fn write(&mut self, first: usize, count: usize) -> io::Result<()> {
        self.writes += 1;
        for at in 0..count {
            fill(
                &mut self.buffer.blocks(count)[at * BLOCK_BYTES..][..BLOCK_BYTES],
                first + at,
                self.writes,
            );
            self.versions[first + at] = self.writes;
        }
        let offset = (first * BLOCK_BYTES) as u64;
        self.timed(|load| load.device.write_all_at(load.buffer.blocks(count), offset))
    }

    fn read(&mut self, first: usize, count: usize) -> io::Result<()> {
        self.reads += 1;
        let offset = (first * BLOCK_BYTES) as u64;
        self.timed(|load| load.device.read_exact_at(load.buffer.blocks(count), offset))?;
        let mut expected = [0; BLOCK_BYTES];
        for at in 0..count {
            fill(&mut expected, first + at, self.versions[first + at]);
            if self.buffer.blocks(count)[at * BLOCK_BYTES..][..BLOCK_BYTES] != expected {
                return Err(io::Error::other(format!(
                    "block {} is not what write {} left there",
                    first + at,
                    self.versions[first + at]
                )));
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.flushes += 1;
        self.timed(|load| load.device.sync_data())
    }

    fn operations(&self) -> u64 {
        self.writes + self.reads + self.flushes
    }

    fn step(&mut self, random: &mut Random) -> io::Result<()> {
        let count = 1 + random.below(BLOCKS_PER_REQUEST_MAX);
        let first = random.below(self.versions.len() - count + 1);
        match random.below(10) {
            0 => self.flush(),
            1..=3 => self.read(first, count),
            _ => self.write(first, count),
        }
    }

    fn verify_all(&mut self) -> io::Result<()> {
        for first in (0..self.versions.len()).step_by(BLOCKS_PER_REQUEST_MAX) {
            self.read(first, BLOCKS_PER_REQUEST_MAX.min(self.versions.len() - first))?;
        }
        Ok(())
    }
}

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, device, bytes, seed, stop_file, progress_file] = &arguments[..] else {
        return Err(io::Error::other("wrong number of arguments"));
    };
    let number = |text: &str| text.parse::<u64>().map_err(io::Error::other);
    let mut load = Load {
        device: OpenOptions::new().read(true).write(true).custom_flags(O_DIRECT).open(device)?,
        versions: vec![0; number(bytes)? as usize / BLOCK_BYTES],
        writes: 0,
        reads: 0,
        flushes: 0,
        longest: Duration::ZERO,
        buffer: Aligned::new(),
    };
    let mut random = Random(number(seed)? + 1);
    while !Path::new(stop_file).exists() {
        load.step(&mut random)?;
        fs::write(progress_file, load.operations().to_string())?;
    }
    let longest_ms = load.longest.as_millis();
    load.verify_all()?;
    println!(
        "writes={} reads={} flushes={} longest_ms={longest_ms}",
        load.writes, load.reads, load.flushes
    );
    Ok(())
}
