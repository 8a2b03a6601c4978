//! Who decides what a power loss leaves: an odometer that visits every outcome, or a seeded sampler.

/// One write, truncation or hole that no completed sync covers.
#[derive(Clone, Copy, Debug)]
pub struct Unsynced {
    pub inode: usize,
    /// Number of the change since the drive was made.
    pub seq: u64,
    /// The 512-byte sectors it touches; `sectors` is 0 for what happens wholly or not at all.
    pub first_sector: u64,
    pub sectors: usize,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fate {
    Lost,
    Kept,
    /// Kept in the sectors that are `true`.
    Torn(Vec<bool>),
}

/// The choices of one power loss. Asked in an order that depends only on the image and the answers.
pub trait Fates {
    /// Which of a name's states is found: 0 the last durable one, then one for each change since.
    fn name(&mut self, states: usize) -> usize;
    fn write(&mut self, write: &Unsynced) -> Fate;
    /// Is the file found as long as it ever was, though the bytes that made it so are lost?
    fn is_long(&mut self, inode: usize) -> bool;
}

/// Everything survives: what a crash of the process leaves.
pub struct EverythingKept;

impl Fates for EverythingKept {
    fn name(&mut self, states: usize) -> usize {
        states - 1
    }

    fn write(&mut self, _: &Unsynced) -> Fate {
        Fate::Kept
    }

    fn is_long(&mut self, _: usize) -> bool {
        false
    }
}

/// Nothing survives but what was synced.
pub struct NothingKept;

impl Fates for NothingKept {
    fn name(&mut self, _: usize) -> usize {
        0
    }

    fn write(&mut self, _: &Unsynced) -> Fate {
        Fate::Lost
    }

    fn is_long(&mut self, _: usize) -> bool {
        false
    }
}

/// Visits every combination of answers, one after the other, counting like an odometer.
///
/// A write of several sectors is lost, kept, or torn in one of the ways of [`torn_masks`]; at most
/// `torn_max` writes of one outcome are torn.
pub struct Odometer {
    /// Answers given, each with the number of answers there are.
    digits: Vec<(usize, usize)>,
    asked: usize,
    torn_max: usize,
    torn: usize,
    /// Outcomes that lose this change were visited before it was made.
    survivor: Option<u64>,
}

impl Odometer {
    pub fn new(torn_max: usize, survivor: Option<u64>) -> Odometer {
        Odometer { digits: Vec::new(), asked: 0, torn_max, torn: 0, survivor }
    }

    fn choose(&mut self, answers: usize) -> usize {
        if self.asked == self.digits.len() {
            self.digits.push((0, answers));
        }
        let (answer, of) = self.digits[self.asked];
        debug_assert_eq!(of, answers, "the order of questions must depend on the answers only");
        self.asked += 1;
        answer
    }

    /// Goes on to the next combination; `false` once all have been visited.
    pub fn advance(&mut self) -> bool {
        self.digits.truncate(self.asked);
        self.asked = 0;
        self.torn = 0;
        while let Some((answer, of)) = self.digits.pop() {
            if answer + 1 < of {
                self.digits.push((answer + 1, of));
                return true;
            }
        }
        false
    }

    /// The answers of the present combination, for a report.
    pub fn answers(&self) -> Vec<usize> {
        self.digits.iter().map(|(answer, _)| *answer).collect()
    }
}

/// The ways in which a write of so many sectors is torn by the odometer: first or last sector alone,
/// all but the first or the last.
pub fn torn_masks(sectors: usize) -> Vec<Vec<bool>> {
    if sectors < 2 {
        return Vec::new();
    }
    let last = sectors - 1;
    let mut masks = vec![
        (0..sectors).map(|i| i == 0).collect::<Vec<bool>>(),
        (0..sectors).map(|i| i == last).collect(),
    ];
    if sectors > 2 {
        masks.push((0..sectors).map(|i| i != 0).collect());
        masks.push((0..sectors).map(|i| i != last).collect());
    }
    masks
}

impl Fates for Odometer {
    fn name(&mut self, states: usize) -> usize {
        self.choose(states)
    }

    fn write(&mut self, write: &Unsynced) -> Fate {
        let mut masks = torn_masks(write.sectors);
        if self.torn == self.torn_max {
            masks.clear();
        }
        let lost = usize::from(self.survivor != Some(write.seq));
        match self.choose(lost + 1 + masks.len()) {
            answer if answer < lost => Fate::Lost,
            answer if answer == lost => Fate::Kept,
            answer => {
                self.torn += 1;
                Fate::Torn(masks.swap_remove(answer - lost - 1))
            }
        }
    }

    fn is_long(&mut self, _: usize) -> bool {
        self.choose(2) == 1
    }
}

/// A small seeded generator (SplitMix64): the same numbers everywhere, for ever.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        ((self.next_u64() as u128 * end as u128) >> 64) as u64
    }

    /// True in `times` of `of` cases.
    pub fn chance(&mut self, times: u64, of: u64) -> bool {
        self.below(of) < times
    }
}

fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// What the writeback of the lost machine was like.
#[derive(Clone, Copy, Debug)]
enum Weather {
    /// Each write survives in `kept` of eight cases, some are torn.
    Dice { kept: u64 },
    /// Each sector shows the file at a moment of its own, as the page cache writes it.
    Clocks { since: u64, span: u64 },
    /// All is kept up to one change and lost after it, but for one that is treated the other way.
    Order { until: u64, odd: u64 },
}

/// Draws outcomes at random; the same seed gives the same outcome.
pub struct Sampler {
    rng: Rng,
    weather: Weather,
    seed: u64,
}

impl Sampler {
    /// `since..until`: numbers of the changes that may be unsynced.
    pub fn new(seed: u64, since: u64, until: u64) -> Sampler {
        let mut rng = Rng::new(seed);
        let span = until.saturating_sub(since) + 1;
        let weather = match rng.below(4) {
            0 => Weather::Clocks { since, span },
            1 => Weather::Order { until: since + rng.below(span), odd: since + rng.below(span) },
            _ => Weather::Dice { kept: rng.below(9) },
        };
        Sampler { rng, weather, seed }
    }

    fn dice(&mut self, write: &Unsynced, kept: u64) -> Fate {
        if write.sectors > 1 && self.rng.chance(1, 6) {
            return self.tear(write);
        }
        if self.rng.chance(kept, 8) { Fate::Kept } else { Fate::Lost }
    }

    fn tear(&mut self, write: &Unsynced) -> Fate {
        let cut = self.rng.below(write.sectors as u64) as usize;
        let style = self.rng.below(3);
        let mask = (0..write.sectors).map(|i| match style {
            0 => i < cut,
            1 => i >= cut,
            _ => self.rng.chance(1, 2),
        });
        Fate::Torn(mask.collect())
    }

    fn clocks(&self, write: &Unsynced, since: u64, span: u64) -> Fate {
        let sector = |i: usize| {
            let place = (write.inode as u64) << 48 ^ (write.first_sector + i as u64);
            write.seq <= since + mix(self.seed ^ mix(place)) % span
        };
        Fate::Torn((0..write.sectors.max(1)).map(sector).collect())
    }
}

impl Fates for Sampler {
    fn name(&mut self, states: usize) -> usize {
        self.rng.below(states as u64) as usize
    }

    fn write(&mut self, write: &Unsynced) -> Fate {
        match self.weather {
            Weather::Dice { kept } => self.dice(write, kept),
            Weather::Clocks { since, span } => self.clocks(write, since, span),
            Weather::Order { until, odd } => match (write.seq <= until) != (write.seq == odd) {
                true => Fate::Kept,
                false => Fate::Lost,
            },
        }
    }

    fn is_long(&mut self, _: usize) -> bool {
        self.rng.chance(1, 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(seq: u64, sectors: usize) -> Unsynced {
        Unsynced { inode: 0, seq, first_sector: 0, sectors }
    }

    #[test]
    fn the_odometer_visits_every_combination_once() {
        let mut odometer = Odometer::new(1, Some(7));
        let mut seen = Vec::new();
        loop {
            let name = odometer.name(2);
            let first = (name == 1).then(|| odometer.write(&write(6, 3)));
            seen.push((name, first, odometer.write(&write(7, 1)), odometer.is_long(0)));
            if !odometer.advance() {
                break;
            }
        }
        // Name absent: the survivor kept × length. Present: (lost, kept, 4 torn) × the same.
        assert_eq!(seen.len(), 2 + 6 * 2);
        assert!(seen.iter().all(|s| s.2 == Fate::Kept));
        for (i, one) in seen.iter().enumerate() {
            assert!(!seen[..i].contains(one), "{one:?}");
        }
    }

    #[test]
    fn the_sampler_is_a_function_of_its_seed() {
        let draw = |seed| {
            let mut sampler = Sampler::new(seed, 10, 20);
            (10..20).map(|seq| sampler.write(&write(seq, 9))).collect::<Vec<Fate>>()
        };
        assert_eq!(draw(3), draw(3));
        assert!((0..20).any(|seed| draw(seed) != draw(3)));
    }
}
