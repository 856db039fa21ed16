//! Futoshiki: a Latin square with inequalities between neighbours.

use serde::{Deserialize, Serialize};

use super::grid;
use super::puzzle::{Puzzle, worked};
use super::solver::clues::{free_while_unique, thin};
use super::solver::constraints::{Distinct, Less};
use super::solver::{Problem, values};
use crate::Random;

#[derive(Serialize, Deserialize)]
pub(crate) struct Futoshiki {
    size: usize,
    /// Row by row; 0 is empty.
    givens: Vec<u32>,
    /// Pairs of neighbouring cells, the smaller first.
    less: Vec<[usize; 2]>,
}

/// Size, and the inequalities there are at least, of each difficulty.
const LEVELS: [(usize, usize); 6] = [(3, 5), (4, 10), (4, 6), (5, 14), (5, 9), (6, 16)];

impl Puzzle for Futoshiki {
    const NAME: &'static str = "futoshiki";
    const SUMMARY: &'static str = "fill a Latin square in which neighbours are less or greater";
    const MAX_DIFFICULTY: u32 = LEVELS.len() as u32;

    fn draw(random: &mut Random, difficulty: u32) -> (Self, String) {
        let (size, inequalities) = LEVELS[difficulty as usize - 1];
        let solution = super::random_latin_square(random, size);
        let mut less = inequalities_of(&solution, size);
        random.shuffle(&mut less);
        less.truncate(2 * inequalities);

        let mut problem = rules(size, &less);
        for (cell, value) in solution.iter().enumerate() {
            problem.set_domain(cell, 1 << value);
        }
        let any = values(1, size as u32);
        let cells = (0..size * size).collect();
        let kept = free_while_unique(&mut problem, &solution, cells, 0, |_| any, random);
        let givens = grid::only(&solution, &kept);
        let mut less =
            thin(less, inequalities, random, |less| posed(size, &givens, less).solutions(2).is_unique());
        less.sort_unstable_by_key(|[a, b]| (*a.min(b), *a.max(b)));
        (Self { size, givens, less }, grid::text(&solution, size, None))
    }

    fn is_well_formed(&self) -> bool {
        let cells = self.size.saturating_mul(self.size);
        (2..=9).contains(&self.size)
            && self.givens.len() == cells
            && self.givens.iter().all(|value| *value <= self.size as u32)
            && self.less.iter().flatten().all(|cell| *cell < cells)
    }

    fn prompt(&self) -> String {
        let Self { size, givens, less } = self;
        let less: Vec<String> = less
            .iter()
            .map(|[a, b]| format!("{} < {}", grid::name(*a, *size), grid::name(*b, *size)))
            .collect();
        format!(
            "Solve this {size}x{size} futoshiki. Each row and each column holds each number from 1 to {size} once, and \
             all inequalities hold. A dot is an empty cell; r1c2 is the cell in row 1, column 2.\n\n{}\n\n{}\n\n{}",
            grid::text(givens, *size, Some(0)),
            less.join("\n"),
            grid::GRID_FORMAT
        )
    }

    fn check(&self, answer: &str) -> Result<(), String> {
        let cells = grid::parse(answer, self.size, self.size)?;
        grid::check_latin(&cells, self.size)?;
        grid::check_givens(&cells, &self.givens, self.size)?;
        match self.less.iter().find(|[a, b]| cells[*a] >= cells[*b]) {
            Some([a, b]) => {
                Err(format!("{} is not less than {}", grid::name(*a, self.size), grid::name(*b, self.size)))
            }
            None => Ok(()),
        }
    }

    fn thinking(&self, _answer: &str) -> Option<String> {
        let problem = posed(self.size, &self.givens, &self.less);
        worked(problem.steps(), |cell, value| format!("{} = {value}", grid::name(cell, self.size)))
    }
}

/// The inequalities between all neighbours.
fn inequalities_of(solution: &[u32], size: usize) -> Vec<[usize; 2]> {
    let pairs = (0..solution.len())
        .flat_map(|cell| grid::neighbours(cell, size, size).map(move |other| [cell, other]));
    pairs.filter(|[a, b]| solution[*a] < solution[*b]).collect()
}

fn rules(size: usize, less: &[[usize; 2]]) -> Problem {
    let mut problem = Problem::new(size * size, values(1, size as u32));
    grid::lines(size, size).for_each(|line| problem.add(Distinct(line)));
    less.iter().for_each(|[smaller, larger]| problem.add(Less::new(*smaller, *larger)));
    problem
}

fn posed(size: usize, givens: &[u32], less: &[[usize; 2]]) -> Problem {
    let mut problem = rules(size, less);
    super::give(&mut problem, givens);
    problem
}
