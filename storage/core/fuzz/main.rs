//! Every decoder of the on-disk format, fed with nonsense.
//!
//! Each target is a function of bytes that must return, whatever they are. The input is made from valid
//! samples by seeded mutation, so that a failure is repeated by its seed alone (`NEARSTONE_SEED=…`), runs
//! with the stable toolchain and in continuous integration; `NEARSTONE_SOAK=1` runs a hundred times as
//! many. Damage to whole pools is in `tests/crash/flips.rs`.

mod mutation;
mod targets;

use _core::storage::recording::fates::Rng;
use mutation::mutate;
use targets::TARGETS;

const ROUNDS: u64 = 60_000;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    u64::from_str_radix(text.trim_start_matches("0x"), 16).ok()
}

#[test]
fn decoders_survive_nonsense() {
    let rounds = if std::env::var_os("NEARSTONE_SOAK").is_some() { 100 * ROUNDS } else { ROUNDS };
    for target in TARGETS {
        let samples = (target.samples)();
        let seeds = match number("NEARSTONE_SEED") {
            Some(seed) => seed..seed + 1,
            None => 0..rounds,
        };
        for seed in seeds {
            let mut rng = Rng::new(seed);
            let sample = &samples[rng.below(samples.len() as u64) as usize];
            let input = mutate(&mut rng, sample);
            let outcome = std::panic::catch_unwind(|| (target.run)(&input));
            assert!(outcome.is_ok(), "{} panics: seed {seed:#x}, input {input:02x?}", target.name);
        }
    }
}

/// Samples themselves are accepted, so that mutation starts from something that reaches deep.
#[test]
fn decoders_accept_the_samples() {
    for target in TARGETS {
        for sample in (target.samples)() {
            assert!((target.run)(&sample), "{} refuses its sample {sample:02x?}", target.name);
        }
    }
}

/// No flipped bit of a checksummed structure goes unnoticed.
#[test]
fn checksummed_structures_notice_every_flipped_bit() {
    for target in TARGETS.iter().filter(|t| t.is_checksummed) {
        for sample in (target.samples)() {
            let mut bytes = sample;
            for bit in 0..bytes.len() * 8 {
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert!(!(target.run)(&bytes), "{} overlooks bit {bit}", target.name);
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
        }
    }
}
