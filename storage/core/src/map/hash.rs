//! A hasher for keys that are one integer: two multiplications, no protection against chosen keys
//! (nobody outside chooses region numbers or locations).

use std::hash::{BuildHasher, Hasher};

/// Odd, without pattern: 2^64 divided by the golden ratio.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

#[derive(Clone, Copy, Default, Debug)]
pub(super) struct IntegerHash;

impl BuildHasher for IntegerHash {
    type Hasher = IntegerHasher;

    fn build_hasher(&self) -> IntegerHasher {
        IntegerHasher(0)
    }
}

#[derive(Debug)]
pub(super) struct IntegerHasher(u64);

impl Hasher for IntegerHasher {
    fn write_u64(&mut self, value: u64) {
        // Both halves of the product, since hash tables take bits from either end.
        let product = u128::from(self.0 ^ value) * u128::from(FACTOR);
        self.0 = (product >> 64) as u64 ^ product as u64;
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
