//! Nonsense near a valid sample.

use _core::storage::recording::fates::Rng;

/// Values at which decoders have edges.
const EDGES: [u64; 10] =
    [0, 1, 15, 16, 17, 4096, 0xffff, 0xffff_ffff, 0x7fff_ffff_ffff_ffff, u64::MAX];

/// A few random changes to `sample`; sometimes bytes that have nothing to do with it.
pub fn mutate(rng: &mut Rng, sample: &[u8]) -> Vec<u8> {
    let mut bytes = sample.to_vec();
    if rng.chance(1, 16) {
        bytes = (0..rng.below(300)).map(|_| rng.next_u64() as u8).collect();
    }
    for _ in 0..=rng.below(4) {
        change(rng, &mut bytes);
    }
    bytes
}

fn change(rng: &mut Rng, bytes: &mut Vec<u8>) {
    if bytes.is_empty() {
        bytes.push(rng.next_u64() as u8);
        return;
    }
    let at = rng.below(bytes.len() as u64) as usize;
    let span = (1 + rng.below(64) as usize).min(bytes.len() - at);
    match rng.below(9) {
        0..3 => bytes[at] ^= 1 << rng.below(8),
        3 => bytes[at] = rng.next_u64() as u8,
        4 => {
            let width = [1, 2, 4, 8][rng.below(4) as usize].min(bytes.len() - at);
            let edge = EDGES[rng.below(EDGES.len() as u64) as usize];
            bytes[at..at + width].copy_from_slice(&edge.to_le_bytes()[..width]);
        }
        5 => bytes.truncate(at),
        6 => bytes.extend_from_within(at..at + span),
        7 => bytes[at..at + span].fill(0),
        _ => {
            let from = rng.below((bytes.len() - span + 1) as u64) as usize;
            bytes.copy_within(from..from + span, at);
        }
    }
}
