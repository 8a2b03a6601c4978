//! A disk against an array of bytes, by proptest: operations, restarts and crashes of the process, with
//! reads in between.

use proptest::prelude::*;

use crate::content::{STYLES, Style};
use crate::rounds;
use crate::workload::{AMPLE, Op, Shape};
use crate::world::World;

const CAPACITY: u64 = 40 * 4096 + 1024;

fn style() -> impl Strategy<Value = Style> {
    (0..STYLES.len()).prop_map(|i| STYLES[i])
}

/// Ranges that begin and end anywhere, near block boundaries more often than not.
fn range() -> impl Strategy<Value = (u64, u64)> {
    let edge = prop_oneof![
        3 => (0..CAPACITY / 4096).prop_map(|block| block * 4096),
        1 => (0..CAPACITY / 512).prop_map(|sector| sector * 512),
        1 => 0..CAPACITY,
    ];
    (edge.clone(), edge).prop_map(|(a, b)| (a.min(b), a.abs_diff(b).max(1)))
}

fn op() -> impl Strategy<Value = Op> {
    let disk = 0..2u32;
    let write = (disk.clone(), range(), any::<u64>(), style(), any::<bool>()).prop_map(
        |(disk, (offset, length), stamp, style, fua)| Op::Write {
            disk,
            offset,
            length,
            stamp,
            style,
            fua,
        },
    );
    let zero = (disk.clone(), range(), any::<bool>())
        .prop_map(|(disk, (offset, length), fua)| Op::Zero { disk, offset, length, fua });
    let size = prop_oneof![Just(CAPACITY), (0..=CAPACITY / 512).prop_map(|sectors| sectors * 512)];
    let resize =
        (disk.clone(), size).prop_map(|(disk, size_bytes)| Op::Resize { disk, size_bytes });
    prop_oneof![
        10 => write,
        4 => zero,
        2 => disk.clone().prop_map(|disk| Op::Flush { disk }),
        2 => disk.clone().prop_map(|disk| Op::Checkpoint { disk }),
        2 => Just(Op::Background),
        1 => resize,
        1 => Just(Op::Restart),
        1 => Just(Op::Crash),
        1 => disk.clone().prop_map(|disk| Op::Delete { disk }),
        1 => disk.prop_map(|disk| Op::Create { disk }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: rounds(200) as u32,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_disk_is_an_array_of_bytes(
        ops in prop::collection::vec(op(), 1..40),
        segment_size_bytes in prop::sample::select(vec![16384usize, 65536, 1 << 20]),
    ) {
        let shape = Shape {
            disks: 2,
            capacity_bytes: CAPACITY,
            request_bytes_max: CAPACITY,
            drives: 1,
            segment_size_bytes,
            memory_bytes: 4 << 20,
            drive_bytes: AMPLE,
    is_syncing: false,
        };
        let mut world = World::new(shape).expect("a pool");
        for op in &ops {
            match op {
                Op::Crash => world.crash(op).map_err(TestCaseError::fail)?,
                _ => world.apply(op).map_err(|e| TestCaseError::fail(format!("{op:?}: {e}")))?,
            }
            world.compare().map_err(|e| TestCaseError::fail(format!("after {op:?}: {e}")))?;
        }
    }
}
