//! Map nodes: 512 locations, stored LZ4-compressed when that helps.
//!
//! Neighbouring locations share their high bytes; rearranged as eight planes of bytes they compress
//! far better than as they stand.

use crate::codec;
use crate::format::record::Codec;
use crate::units::{Location, NODE_ENTRIES};

/// Bytes of a node as it is before compression.
pub const NODE_LEN: usize = NODE_ENTRIES * 8;

/// A map node: locations of blocks (leaf) or of child nodes (inner); holes where there is nothing.
pub type Node = [Location; NODE_ENTRIES];

/// Appends the stored form of `node` to `out`; tells the codec it used.
pub fn encode(node: &Node, out: &mut Vec<u8>) -> Codec {
    let mut planes = [0u8; NODE_LEN];
    for (i, location) in node.iter().enumerate() {
        for (plane, byte) in location.0.to_le_bytes().into_iter().enumerate() {
            planes[plane * NODE_ENTRIES + i] = byte;
        }
    }
    if codec::compress(&planes, NODE_LEN - NODE_LEN / 16, out).is_some() {
        return Codec::Lz4Planes;
    }
    for location in node {
        out.extend_from_slice(&location.0.to_le_bytes());
    }
    Codec::Raw
}

/// The node stored in `payload`, which has passed its checksum; `None` if it is nonsense all the same.
pub fn decode(codec: Codec, payload: &[u8]) -> Option<Box<Node>> {
    let mut node = Box::new([Location::HOLE; NODE_ENTRIES]);
    let mut bytes = [0u8; NODE_LEN];
    match codec {
        Codec::Raw if payload.len() == NODE_LEN => {
            for (entry, raw) in node.iter_mut().zip(payload.chunks_exact(8)) {
                *entry = Location(u64::from_le_bytes(raw.try_into().expect("eight bytes")));
            }
            return Some(node);
        }
        Codec::Lz4Planes => codec::decompress(payload, &mut bytes)?,
        _ => return None,
    }
    for (i, entry) in node.iter_mut().enumerate() {
        let raw = std::array::from_fn(|plane| bytes[plane * NODE_ENTRIES + i]);
        *entry = Location(u64::from_le_bytes(raw));
    }
    Some(node)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_survive_the_round_trip_and_compress() {
        let ascending: Node =
            std::array::from_fn(|i| Location((7 << 32) + ((i as u64 * 131) << 10)));
        let mut seed = 1u64;
        let random: Node = std::array::from_fn(|_| {
            seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29) ^ 0x5555;
            Location(seed)
        });
        for (node, len_max) in [(ascending, 2200), (random, NODE_LEN), ([Location::HOLE; 512], 64)]
        {
            let mut stored = Vec::new();
            let codec = encode(&node, &mut stored);
            assert!(stored.len() <= len_max, "{codec:?} {}", stored.len());
            assert_eq!(decode(codec, &stored).as_deref(), Some(&node));
        }
        assert_eq!(decode(Codec::Lz4, &[0; 9]), None);
        assert_eq!(decode(Codec::Raw, &[0; 9]), None);
    }
}
