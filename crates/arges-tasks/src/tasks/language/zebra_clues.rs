//! Clues about houses in a row, and what follows from each.

use crate::Random;

/// A clue about items, which are values of attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Clue {
    At(usize, usize),
    NotAt(usize, usize),
    /// Both are of one house.
    Same(usize, usize),
    Different(usize, usize),
    DirectlyLeft(usize, usize),
    Beside(usize, usize),
    /// Somewhere to the left.
    Left(usize, usize),
}

impl Clue {
    /// A true clue that needs thought: none that says the house.
    fn draw(random: &mut Random, houses: usize, solution: &[usize]) -> Self {
        loop {
            let pair = random.sample(solution.len(), 2);
            let (a, b) = (pair[0], pair[1]);
            // Items of one attribute are of different houses anyway.
            let attributes_differ = a / houses != b / houses;
            let (at_a, at_b) = (solution[a], solution[b]);
            match random.index(8) {
                0 | 1 if at_a == at_b => return Self::Same(a, b),
                2 if at_a != at_b && attributes_differ => return Self::Different(a, b),
                3 if at_a + 1 == at_b => return Self::DirectlyLeft(a, b),
                4 | 5 if at_a.abs_diff(at_b) == 1 && houses > 2 => return Self::Beside(a, b),
                6 if at_a < at_b && houses > 2 => return Self::Left(a, b),
                7 => {
                    let house = random.index(houses);
                    if house != at_a {
                        return Self::NotAt(a, house);
                    }
                }
                _ => {}
            }
        }
    }

    /// Clues from which the solution follows by single deductions; without any of them it does not.
    pub(super) fn draw_enough(random: &mut Random, houses: usize, solution: &[usize]) -> Vec<Self> {
        let items = solution.len();
        let mut clues: Vec<Self> = Vec::new();
        while clues.len() < 3 * items {
            clues.push(Self::draw(random, houses, solution));
            if clues.len().is_multiple_of(4) && Possible::after(houses, items, &clues).is_solved() {
                break;
            }
        }
        // Where these are not enough, houses are told of until they are.
        for item in random.sample(items, items) {
            if Possible::after(houses, items, &clues).is_solved() {
                break;
            }
            clues.push(Self::At(item, solution[item]));
        }
        for place in (0..clues.len()).rev() {
            let clue = clues.remove(place);
            if !Possible::after(houses, items, &clues).is_solved() {
                clues.insert(place, clue);
            }
        }
        random.shuffle(&mut clues);
        clues
    }
}

/// The houses that each item may still be of, as bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Possible {
    houses: usize,
    items: Vec<u8>,
}

impl Possible {
    pub(super) fn new(houses: usize, items: usize) -> Self {
        Self { houses, items: vec![((1_u32 << houses) - 1) as u8; items] }
    }

    /// What is possible when all that follows from single clues is taken into account.
    fn after(houses: usize, items: usize, clues: &[Clue]) -> Self {
        let mut possible = Self::new(houses, items);
        loop {
            let before = possible.items.clone();
            clues.iter().for_each(|clue| possible.restrict(*clue));
            possible.restrict_different();
            if possible.items == before {
                return possible;
            }
        }
    }

    pub(super) fn is_solved(&self) -> bool {
        self.items.iter().all(|houses| houses.count_ones() == 1)
    }

    pub(super) fn houses(&self, item: usize) -> impl Iterator<Item = usize> {
        let bits = self.items[item];
        (0..self.houses).filter(move |house| bits >> house & 1 == 1)
    }

    /// Takes a clue into account; the items with fewer houses than before.
    pub(super) fn apply(&mut self, clue: Clue) -> Vec<usize> {
        self.changed(|possible| possible.restrict(clue))
    }

    /// Takes into account, as far as it goes, that values of an attribute are of different houses.
    pub(super) fn apply_different(&mut self) -> Vec<usize> {
        self.changed(|possible| {
            loop {
                let before = possible.items.clone();
                possible.restrict_different();
                if possible.items == before {
                    break;
                }
            }
        })
    }

    fn changed(&mut self, change: impl FnOnce(&mut Self)) -> Vec<usize> {
        let before = self.items.clone();
        change(self);
        (0..before.len()).filter(|item| before[*item] != self.items[*item]).collect()
    }

    fn restrict(&mut self, clue: Clue) {
        let at = |item: usize| self.items[item];
        let (a, b, for_a, for_b) = match clue {
            Clue::At(a, house) => (a, a, 1 << house, 1 << house),
            Clue::NotAt(a, house) => (a, a, !(1 << house), !(1 << house)),
            Clue::Same(a, b) => (a, b, at(b), at(a)),
            Clue::Different(a, b) => (a, b, unless_settled(at(b)), unless_settled(at(a))),
            Clue::DirectlyLeft(a, b) => (a, b, at(b) >> 1, at(a) << 1),
            Clue::Beside(a, b) => (a, b, at(b) >> 1 | at(b) << 1, at(a) >> 1 | at(a) << 1),
            Clue::Left(a, b) => (a, b, below_highest(at(b)), above_lowest(at(a))),
        };
        self.items[a] &= for_a;
        self.items[b] &= for_b;
    }

    /// A house of one item is of no other of its attribute; a house that only one item is left for is that item's.
    fn restrict_different(&mut self) {
        for attribute in self.items.chunks_mut(self.houses) {
            for item in 0..attribute.len() {
                let others = (0..attribute.len()).filter(|other| *other != item);
                let taken =
                    others.clone().map(|other| !unless_settled(attribute[other])).fold(0, |a, b| a | b);
                let elsewhere = others.map(|other| attribute[other]).fold(0, |a, b| a | b);
                attribute[item] &= !taken;
                let only = attribute[item] & !elsewhere;
                if only != 0 {
                    attribute[item] = only;
                }
            }
        }
    }
}

/// All houses but the one that is the only one left.
fn unless_settled(houses: u8) -> u8 {
    if houses.count_ones() == 1 { !houses } else { u8::MAX }
}

/// The houses left of the last one.
fn below_highest(houses: u8) -> u8 {
    houses.checked_ilog2().map_or(0, |highest| ((1_u32 << highest) - 1) as u8)
}

/// The houses right of the first one.
fn above_lowest(houses: u8) -> u8 {
    match houses.trailing_zeros() {
        8.. => 0,
        lowest => (u32::from(u8::MAX) << (lowest + 1)) as u8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_clue_leaves_the_houses_for_which_it_can_hold() {
        // Two attributes of four houses; items 0 and 4 are what the clues are about.
        let holds = |clue: Clue, a: usize, b: usize| match clue {
            Clue::At(_, house) => a == house,
            Clue::NotAt(_, house) => a != house,
            Clue::Same(..) => a == b,
            Clue::Different(..) => a != b,
            Clue::DirectlyLeft(..) => a + 1 == b,
            Clue::Beside(..) => a.abs_diff(b) == 1,
            Clue::Left(..) => a < b,
        };
        let clues = [
            Clue::At(0, 1),
            Clue::NotAt(0, 2),
            Clue::Same(0, 4),
            Clue::Different(0, 4),
            Clue::DirectlyLeft(0, 4),
            Clue::Beside(0, 4),
            Clue::Left(0, 4),
        ];
        for clue in clues {
            for bits in 1..16_u8 {
                for other in 1..16_u8 {
                    let mut possible = Possible::new(4, 8);
                    (possible.items[0], possible.items[4]) = (bits, other);
                    let pairs: Vec<(usize, usize)> = possible
                        .houses(0)
                        .flat_map(|a| possible.houses(4).map(move |b| (a, b)).collect::<Vec<_>>())
                        .filter(|(a, b)| holds(clue, *a, *b))
                        .collect();
                    let left = pairs.iter().fold(0, |bits, (a, _)| bits | 1 << a);
                    possible.apply(clue);
                    assert_eq!(possible.items[0], left, "{clue:?} of {bits:b} and {other:b}");
                }
            }
        }
    }

    #[test]
    fn no_clue_can_be_left_out() {
        let solution = [0, 1, 2, 2, 0, 1, 1, 2, 0];
        for seed in 0..50 {
            let clues = Clue::draw_enough(&mut Random::new("test", seed, 1), 3, &solution);
            assert!(Possible::after(3, 9, &clues).is_solved());
            for place in 0..clues.len() {
                let fewer = [&clues[..place], &clues[place + 1..]].concat();
                assert!(!Possible::after(3, 9, &fewer).is_solved());
            }
        }
    }
}
