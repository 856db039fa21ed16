//! Campsite, also known as tents and trees: a tent beside each tree, none beside another tent.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::grid;
use super::puzzle::{Puzzle, worked};
use super::solver::clues::fix_until_unique;
use super::solver::constraints::{Enumerated, Linear};
use super::solver::{Constraint, Contradiction, Domains, Problem, values};
use crate::Random;

#[derive(Serialize, Deserialize)]
pub(crate) struct Campsite {
    size: usize,
    trees: Vec<usize>,
    /// Tents in each row and column.
    row_tents: Vec<u32>,
    column_tents: Vec<u32>,
    /// Cells that are known, with 1 for a tent and 0 for none.
    known: Vec<(usize, u32)>,
}

/// Size, and the tents, of each difficulty.
const LEVELS: [(usize, usize); 5] = [(4, 3), (5, 5), (6, 7), (7, 9), (8, 12)];

/// Sites tried for one that needs no known cell.
const MAX_SITES: usize = 20;

impl Puzzle for Campsite {
    const NAME: &'static str = "campsite";
    const SUMMARY: &'static str =
        "put a tent beside each tree, none beside another, by the counts of rows and columns";
    const MAX_DIFFICULTY: u32 = LEVELS.len() as u32;

    fn draw(random: &mut Random, difficulty: u32) -> (Self, String) {
        let (size, tents) = LEVELS[difficulty as usize - 1];
        let mut best: Option<(Self, String)> = None;
        for _ in 0..MAX_SITES {
            let (mut site, tents) = random_site(random, size, tents);
            let solution: Vec<u32> = (0..size * size).map(|cell| u32::from(tents.contains(&cell))).collect();
            let fixed = fix_until_unique(&mut site.rules(), &solution, size * size, random);
            site.known = fixed.into_iter().map(|cell| (cell, solution[cell])).collect();
            if best.as_ref().is_none_or(|(best, _)| site.known.len() < best.known.len()) {
                best = Some((site, grid::names(tents, size)));
            }
            if best.as_ref().is_some_and(|(best, _)| best.known.is_empty()) {
                break;
            }
        }
        best.expect("the first site is the best so far")
    }

    fn is_well_formed(&self) -> bool {
        let cells = self.size.saturating_mul(self.size);
        let distinct: BTreeSet<&usize> = self.trees.iter().collect();
        (1..=12).contains(&self.size)
            && self.row_tents.len() == self.size
            && self.column_tents.len() == self.size
            && distinct.len() == self.trees.len()
            && self.trees.iter().all(|tree| *tree < cells)
            && self.known.iter().all(|(cell, value)| *cell < cells && *value <= 1)
    }

    fn prompt(&self) -> String {
        let size = self.size;
        let shown: Vec<&str> =
            (0..size * size).map(|cell| if self.trees.contains(&cell) { "T" } else { "." }).collect();
        let rows: Vec<String> = shown.chunks(size).map(|row| row.join(" ")).collect();
        let counts = |counts: &[u32]| counts.iter().map(u32::to_string).collect::<Vec<String>>().join(" ");
        let mut prompt = format!(
            "Solve this {size}x{size} campsite. T is a tree, a dot is free. Put tents on free cells so that trees and \
             tents make pairs: each tree has one tent of its own, which shares an edge with it. No two tents touch, not \
             even at a corner. Rows and columns have the numbers of tents given.\n\n{}\n\nTents in the rows: {}\nTents \
             in the columns: {}\n",
            rows.join("\n"),
            counts(&self.row_tents),
            counts(&self.column_tents)
        );
        for (value, words) in [(1, "Known to hold a tent"), (0, "Known to hold no tent")] {
            let cells: Vec<usize> =
                self.known.iter().filter(|known| known.1 == value).map(|known| known.0).collect();
            if !cells.is_empty() {
                prompt += &format!("{words}: {}\n", grid::names(cells, size));
            }
        }
        prompt
            + "\nEnd with a line `Answer:` and the cells with tents, separated by spaces, where r1c2 is the cell in row \
               1, column 2."
    }

    fn check(&self, answer: &str) -> Result<(), String> {
        let size = self.size;
        let name = |cell: usize| grid::name(cell, size);
        let tents = grid::parse_cells(answer, size, size)?;
        if let Some(cell) = tents.iter().find(|cell| self.trees.contains(cell)) {
            return Err(format!("{} is a tree", name(*cell)));
        }
        if let Some((cell, _)) = self.known.iter().find(|(cell, value)| tents.contains(cell) != (*value == 1))
        {
            return Err(format!("{} is known to be otherwise", name(*cell)));
        }
        for cell in &tents {
            if let Some(other) = grid::surroundings(*cell, size, size).find(|other| tents.contains(other)) {
                return Err(format!("the tents on {} and {} touch", name(*cell), name(other)));
            }
        }
        for (number, (line, wanted)) in
            grid::lines(size, size).zip(self.row_tents.iter().chain(&self.column_tents)).enumerate()
        {
            let count = line.iter().filter(|cell| tents.contains(cell)).count();
            if count != *wanted as usize {
                return Err(format!("{} has {count} tents, not {wanted}", grid::line_name(number, size)));
            }
        }
        if tents.len() != self.trees.len() || !can_pair(&self.trees, |cell| tents.contains(&cell), size) {
            return Err("trees and tents do not make pairs".to_owned());
        }
        Ok(())
    }

    fn thinking(&self, _answer: &str) -> Option<String> {
        let mut problem = self.rules();
        self.known.iter().for_each(|(cell, value)| problem.set_domain(*cell, 1 << value));
        let phrase = |cell: usize, value: u32| {
            format!("{}: {}", grid::name(cell, self.size), if value == 1 { "tent" } else { "no tent" })
        };
        worked(problem.steps(), phrase)
    }
}

/// A site with up to that many trees, nothing known of it, and its tents.
fn random_site(random: &mut Random, size: usize, wanted: usize) -> (Campsite, BTreeSet<usize>) {
    let (mut trees, mut tents) = (BTreeSet::new(), BTreeSet::new());
    for cell in random.sample(size * size, size * size) {
        if tents.len() == wanted {
            break;
        }
        let is_crowded = grid::surroundings(cell, size, size).any(|other| tents.contains(&other));
        if is_crowded || trees.contains(&cell) {
            continue;
        }
        let places: Vec<usize> = grid::neighbours(cell, size, size)
            .filter(|place| !trees.contains(place) && !tents.contains(place))
            .collect();
        if !places.is_empty() {
            trees.insert(*random.choose(&places));
            tents.insert(cell);
        }
    }
    let counts: Vec<u32> = grid::lines(size, size)
        .map(|line| line.iter().filter(|cell| tents.contains(cell)).count() as u32)
        .collect();
    let (rows, columns) = counts.split_at(size);
    let (row_tents, column_tents) = (rows.to_vec(), columns.to_vec());
    (Campsite { size, trees: trees.into_iter().collect(), row_tents, column_tents, known: Vec::new() }, tents)
}

impl Campsite {
    /// The variables are the cells, 1 for a tent; what is known beforehand is left out.
    fn rules(&self) -> Problem {
        let size = self.size;
        let mut problem = Problem::new(size * size, values(0, 1));
        for (line, count) in grid::lines(size, size).zip(self.row_tents.iter().chain(&self.column_tents)) {
            problem.add(Linear::sum(line, i64::from(*count)));
        }
        for cell in 0..size * size {
            let beside_tree = grid::neighbours(cell, size, size).any(|other| self.trees.contains(&other));
            if self.trees.contains(&cell) || !beside_tree {
                problem.set_domain(cell, 1);
            }
            for other in grid::surroundings(cell, size, size).filter(|other| *other > cell) {
                problem.add(Enumerated::new(vec![cell, other], |prefix: &[u32]| {
                    prefix.iter().sum::<u32>() <= 1
                }));
            }
        }
        for tree in &self.trees {
            let places: Vec<usize> = grid::neighbours(*tree, size, size).collect();
            let count = places.len();
            problem.add(Enumerated::new(places, move |prefix: &[u32]| {
                prefix.len() < count || prefix.contains(&1)
            }));
        }
        problem.add(Pairs { cells: (0..size * size).collect(), trees: self.trees.clone(), size });
        problem
    }
}

/// Each tree can have a tent of its own among the cells that may hold one.
struct Pairs {
    cells: Vec<usize>,
    trees: Vec<usize>,
    size: usize,
}

impl Constraint for Pairs {
    fn variables(&self) -> &[usize] {
        &self.cells
    }

    fn propagate(&self, domains: &mut Domains) -> Result<(), Contradiction> {
        let may_hold = |cell: usize| domains.get(cell) != 1;
        if can_pair(&self.trees, may_hold, self.size) { Ok(()) } else { Err(Contradiction) }
    }
}

/// Whether each tree can have a place of its own beside it (augmenting paths).
fn can_pair(trees: &[usize], is_place: impl Fn(usize) -> bool, size: usize) -> bool {
    let mut owner: Vec<Option<usize>> = vec![None; size * size];
    trees.iter().all(|tree| find_place(*tree, &is_place, &mut owner, &mut vec![false; size * size], size))
}

/// Finds the tree a place, moving other trees to other places where needed.
fn find_place(
    tree: usize,
    is_place: &impl Fn(usize) -> bool,
    owner: &mut [Option<usize>],
    tried: &mut [bool],
    size: usize,
) -> bool {
    for place in grid::neighbours(tree, size, size) {
        if !is_place(place) || std::mem::replace(&mut tried[place], true) {
            continue;
        }
        if owner[place].is_none_or(|other| find_place(other, is_place, owner, tried, size)) {
            owner[place] = Some(tree);
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ```text
    /// . T T .
    /// . . . .
    /// ```
    /// on four rows, of which the others are free.
    fn site(row_tents: [u32; 4], column_tents: [u32; 4]) -> Campsite {
        let (row_tents, column_tents) = (row_tents.to_vec(), column_tents.to_vec());
        Campsite { size: 4, trees: vec![1, 2], row_tents, column_tents, known: Vec::new() }
    }

    #[test]
    fn each_tree_needs_a_tent_of_its_own() {
        let puzzle = site([2, 0, 0, 0], [1, 0, 0, 1]);
        assert_eq!(puzzle.check("r1c1 r1c4"), Ok(()));
        assert_eq!(puzzle.check("r1c1"), Err("row 1 has 1 tents, not 2".to_owned()));
        assert_eq!(puzzle.check("r1c1 r1c2"), Err("r1c2 is a tree".to_owned()));
        let apart = site([1, 0, 1, 0], [1, 1, 0, 0]);
        assert_eq!(apart.check("r1c1 r3c2"), Err("trees and tents do not make pairs".to_owned()));
    }

    #[test]
    fn tents_do_not_touch_at_corners() {
        let puzzle = site([1, 1, 0, 0], [1, 1, 0, 0]);
        assert_eq!(puzzle.check("r1c1 r2c2"), Err("the tents on r1c1 and r2c2 touch".to_owned()));
    }

    #[test]
    fn the_tents_are_the_only_ones_that_fit() {
        for seed in 0..20 {
            let (puzzle, answer) = Campsite::draw(&mut Random::new("test", seed, 3), 3);
            let mut problem = puzzle.rules();
            puzzle.known.iter().for_each(|(cell, value)| problem.set_domain(*cell, 1 << value));
            let found = problem.solutions(2);
            assert!(found.is_unique());
            let tents = (0..36).filter(|cell| found.solutions[0][*cell] == 1);
            assert_eq!(grid::names(tents, 6), answer);
        }
    }
}
