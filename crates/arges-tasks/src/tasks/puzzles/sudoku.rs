//! Sudoku of 4×4, 6×6 and 9×9.

use serde::{Deserialize, Serialize};

use super::grid;
use super::puzzle::{Puzzle, worked};
use super::solver::clues::free_while_unique;
use super::solver::constraints::Distinct;
use super::solver::{Problem, values};
use crate::Random;

#[derive(Serialize, Deserialize)]
pub(crate) struct Sudoku {
    size: usize,
    /// Row by row; 0 is empty.
    givens: Vec<u32>,
}

/// Size, and the clues that are left at least, of each difficulty.
const LEVELS: [(usize, usize); 7] = [(4, 10), (4, 5), (6, 22), (6, 12), (9, 45), (9, 34), (9, 26)];

impl Puzzle for Sudoku {
    const NAME: &'static str = "sudoku";
    const SUMMARY: &'static str = "fill a grid of 4x4, 6x6 or 9x9 by the rules of sudoku";
    const MAX_DIFFICULTY: u32 = LEVELS.len() as u32;

    fn draw(random: &mut Random, difficulty: u32) -> (Self, String) {
        let (size, clues) = LEVELS[difficulty as usize - 1];
        let mut problem = rules(size);
        let solution = super::random_solution(&problem, random);
        for (cell, value) in solution.iter().enumerate() {
            problem.set_domain(cell, 1 << value);
        }
        let any = values(1, size as u32);
        let cells = (0..size * size).collect();
        let kept = free_while_unique(&mut problem, &solution, cells, clues, |_| any, random);
        (Self { size, givens: grid::only(&solution, &kept) }, grid::text(&solution, size, None))
    }

    fn is_well_formed(&self) -> bool {
        let Self { size, givens } = self;
        [4, 6, 9].contains(size)
            && givens.len() == size * size
            && givens.iter().all(|value| *value <= *size as u32)
    }

    fn prompt(&self) -> String {
        let Self { size, givens } = self;
        let (rows, columns) = box_of(*size);
        format!(
            "Solve this {size}x{size} sudoku. Each row, each column and each box of {rows} rows and {columns} columns \
             holds each number from 1 to {size} once. A dot is an empty cell.\n\n{}\n\n{}",
            grid::text(givens, *size, Some(0)),
            grid::GRID_FORMAT
        )
    }

    fn check(&self, answer: &str) -> Result<(), String> {
        let cells = grid::parse(answer, self.size, self.size)?;
        grid::check_latin(&cells, self.size)?;
        for (number, group) in boxes(self.size).iter().enumerate() {
            grid::check_different(&cells, group, || format!("box {}", number + 1))?;
        }
        grid::check_givens(&cells, &self.givens, self.size)
    }

    fn thinking(&self, _answer: &str) -> Option<String> {
        let mut problem = rules(self.size);
        super::give(&mut problem, &self.givens);
        worked(problem.steps(), |cell, value| format!("{} = {value}", grid::name(cell, self.size)))
    }
}

/// Rows and columns of a box.
fn box_of(size: usize) -> (usize, usize) {
    match size {
        4 => (2, 2),
        6 => (2, 3),
        _ => (3, 3),
    }
}

/// The cells of each box.
fn boxes(size: usize) -> Vec<Vec<usize>> {
    let (rows, columns) = box_of(size);
    let mut boxes = vec![Vec::new(); size];
    for cell in 0..size * size {
        let (row, column) = (cell / size, cell % size);
        boxes[row / rows * rows + column / columns].push(cell);
    }
    boxes
}

fn rules(size: usize) -> Problem {
    let mut problem = Problem::new(size * size, values(1, size as u32));
    grid::lines(size, size).chain(boxes(size)).for_each(|group| problem.add(Distinct(group)));
    problem
}
