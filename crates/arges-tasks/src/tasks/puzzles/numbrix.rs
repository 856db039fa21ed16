//! Numbrix: a path of consecutive numbers through all cells of a square.

use serde::{Deserialize, Serialize};

use super::grid;
use super::puzzle::{Puzzle, worked};
use super::solver::clues::free_while_unique;
use super::solver::constraints::Distinct;
use super::solver::{Constraint, Contradiction, Domains, Problem, Set, members, values};
use crate::Random;

#[derive(Serialize, Deserialize)]
pub(crate) struct Numbrix {
    size: usize,
    /// Row by row; 0 is empty.
    givens: Vec<u32>,
}

/// Size, and the percentage of cells given at least, of each difficulty.
const LEVELS: [(usize, usize); 6] = [(3, 40), (4, 45), (4, 30), (5, 40), (5, 30), (6, 35)];

/// Largest square whose cells fit a set.
const LARGEST_SIZE: usize = 8;

impl Puzzle for Numbrix {
    const NAME: &'static str = "numbrix";
    const SUMMARY: &'static str = "find the path of consecutive numbers through all cells of a square";
    const MAX_DIFFICULTY: u32 = LEVELS.len() as u32;

    fn draw(random: &mut Random, difficulty: u32) -> (Self, String) {
        let (size, percent) = LEVELS[difficulty as usize - 1];
        let count = size * size;
        let path = random_path(random, size);
        let mut problem = rules(size);
        for (number, cell) in path.iter().enumerate() {
            problem.set_domain(number, 1 << cell);
        }
        let any = values(0, count as u32 - 1);
        let keep = (count * percent).div_ceil(100);
        let kept = free_while_unique(&mut problem, &path, (0..count).collect(), keep, |_| any, random);
        let mut solution = vec![0; count];
        for (cell, number) in path.iter().zip(1..) {
            solution[*cell as usize] = number;
        }
        let cells: Vec<usize> = kept.into_iter().map(|number| path[number] as usize).collect();
        (Self { size, givens: grid::only(&solution, &cells) }, grid::text(&solution, size, None))
    }

    fn is_well_formed(&self) -> bool {
        let Self { size, givens } = self;
        (1..=LARGEST_SIZE).contains(size)
            && givens.len() == size * size
            && givens.iter().all(|given| *given as usize <= size * size)
    }

    fn prompt(&self) -> String {
        let Self { size, givens } = self;
        format!(
            "Solve this {size}x{size} numbrix. Fill the grid with each number from 1 to {} once, so that consecutive \
             numbers are in cells that share an edge. A dot is an empty cell.\n\n{}\n\n{}",
            size * size,
            grid::text(givens, *size, Some(0)),
            grid::GRID_FORMAT
        )
    }

    fn check(&self, answer: &str) -> Result<(), String> {
        let (size, count) = (self.size, self.size * self.size);
        let cells = grid::parse(answer, size, size)?;
        grid::check_range(&cells, size, count as u32)?;
        grid::check_different(&cells, &(0..count).collect::<Vec<usize>>(), || "the grid".to_owned())?;
        grid::check_givens(&cells, &self.givens, size)?;
        let lonely = |cell: &usize| {
            let next = cells[*cell] + 1;
            next as usize <= count && grid::neighbours(*cell, size, size).all(|other| cells[other] != next)
        };
        match (0..count).find(lonely) {
            Some(cell) => Err(format!("{} and {} do not share an edge", cells[cell], cells[cell] + 1)),
            None => Ok(()),
        }
    }

    fn thinking(&self, _answer: &str) -> Option<String> {
        let mut problem = rules(self.size);
        for (cell, given) in self.givens.iter().enumerate().filter(|(_, given)| **given != 0) {
            problem.set_domain(*given as usize - 1, 1 << cell);
        }
        let phrase =
            |number: usize, cell: u32| format!("{} = {}", grid::name(cell as usize, self.size), number + 1);
        worked(problem.steps(), phrase)
    }
}

/// A path through all cells, as the cells in its order: a snake, whose ends are turned over and over ("backbite",
/// Oberdorf et al., "Secondary structures in long compact polymers", 2006).
fn random_path(random: &mut Random, size: usize) -> Vec<u32> {
    let snake = |cell: usize| {
        let (row, column) = (cell / size, cell % size);
        row * size + if row % 2 == 0 { column } else { size - 1 - column }
    };
    let mut path: Vec<usize> = (0..size * size).map(snake).collect();
    for _ in 0..20 * size * size {
        if random.chance(1, 2) {
            path.reverse();
        }
        let Some(end) = path.last() else { break };
        let neighbours: Vec<usize> = grid::neighbours(*end, size, size).collect();
        let chosen = *random.choose(&neighbours);
        if let Some(place) = path.iter().position(|cell| *cell == chosen) {
            path[place + 1..].reverse();
        }
    }
    path.into_iter().map(|cell| cell as u32).collect()
}

/// The variables are the numbers from 1 on, their values the cells.
fn rules(size: usize) -> Problem {
    let count = size * size;
    let mut problem = Problem::new(count, values(0, count as u32 - 1));
    problem.add(Distinct((0..count).collect()));
    let around: Vec<Set> = (0..count)
        .map(|cell| grid::neighbours(cell, size, size).fold(0, |set: Set, other| set | 1 << other))
        .collect();
    for number in 1..count {
        problem.add(Adjacent { numbers: [number - 1, number], around: around.clone() });
    }
    problem
}

/// Two numbers are in cells that share an edge.
struct Adjacent {
    numbers: [usize; 2],
    /// The neighbours of each cell.
    around: Vec<Set>,
}

impl Adjacent {
    fn reachable(&self, from: Set) -> Set {
        members(from).fold(0, |set, cell| set | self.around[cell as usize])
    }
}

impl Constraint for Adjacent {
    fn variables(&self) -> &[usize] {
        &self.numbers
    }

    fn propagate(&self, domains: &mut Domains) -> Result<(), Contradiction> {
        let [first, second] = self.numbers;
        domains.keep(second, self.reachable(domains.get(first)))?;
        domains.keep(first, self.reachable(domains.get(second)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_go_through_each_cell_once() {
        for seed in 0..50 {
            let path = random_path(&mut Random::new("test", seed, 1), 5);
            let mut cells = path.clone();
            cells.sort_unstable();
            assert!(cells.into_iter().eq(0..25));
            let touch =
                |pair: &[u32]| grid::neighbours(pair[0] as usize, 5, 5).any(|cell| cell == pair[1] as usize);
            assert!(path.windows(2).all(touch));
        }
    }

    #[test]
    fn a_broken_path_is_wrong() {
        let puzzle = Numbrix { size: 2, givens: vec![1, 0, 0, 0] };
        assert_eq!(puzzle.check("1 2\n4 3"), Ok(()));
        assert_eq!(puzzle.check("1 3\n4 2"), Err("1 and 2 do not share an edge".to_owned()));
    }
}
