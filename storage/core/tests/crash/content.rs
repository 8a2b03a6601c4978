//! What tests write: bytes that are a function of a stamp, and unlike those of any other stamp.

use _core::storage::recording::fates::Rng;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Style {
    /// The stamp over and over: compresses to almost nothing.
    Plain,
    /// No two bytes alike: stored raw.
    Noise,
    /// Noise with whole blocks of zeros in between.
    Gaps,
    /// Half noise, half plain.
    Mixed,
}

pub const STYLES: [Style; 4] = [Style::Plain, Style::Noise, Style::Gaps, Style::Mixed];

/// `length` bytes for one write.
pub fn bytes(stamp: u64, style: Style, length: u64) -> Vec<u8> {
    let mut rng = Rng::new(stamp);
    let mut out = Vec::with_capacity(length as usize + 8);
    while out.len() < length as usize {
        let chunk = out.len() / 512;
        let word = match style {
            Style::Plain => stamp | 1,
            Style::Noise => rng.next_u64(),
            Style::Gaps if (stamp >> (chunk / 8 % 32)) & 1 == 1 => 0,
            Style::Gaps => rng.next_u64(),
            Style::Mixed if chunk % 2 == 0 => stamp | 1,
            Style::Mixed => rng.next_u64(),
        };
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.truncate(length as usize);
    out
}
