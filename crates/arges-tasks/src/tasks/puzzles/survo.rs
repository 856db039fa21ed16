//! Survo: a grid of all numbers from 1 on, by the sums of its rows and columns.

use serde::{Deserialize, Serialize};

use super::grid;
use super::puzzle::{Puzzle, worked};
use super::solver::clues::free_while_unique;
use super::solver::constraints::{Distinct, Linear};
use super::solver::{Problem, values};
use crate::Random;

#[derive(Serialize, Deserialize)]
pub(crate) struct Survo {
    row_sums: Vec<u32>,
    column_sums: Vec<u32>,
    /// Row by row; 0 is empty.
    givens: Vec<u32>,
}

/// Rows, columns, and the numbers given at least, of each difficulty.
const LEVELS: [(usize, usize, usize); 6] = [(2, 3, 3), (3, 3, 5), (3, 3, 2), (3, 4, 6), (3, 4, 3), (4, 4, 7)];

const LARGEST_SIDE: usize = 5;

impl Puzzle for Survo {
    const NAME: &'static str = "survo";
    const SUMMARY: &'static str = "place the numbers from 1 on in a grid by the sums of its rows and columns";
    const MAX_DIFFICULTY: u32 = LEVELS.len() as u32;

    fn draw(random: &mut Random, difficulty: u32) -> (Self, String) {
        let (rows, columns, givens) = LEVELS[difficulty as usize - 1];
        let count = rows * columns;
        let mut solution: Vec<u32> = (1..=count as u32).collect();
        random.shuffle(&mut solution);
        let sums: Vec<u32> =
            grid::lines(rows, columns).map(|line| line.iter().map(|cell| solution[*cell]).sum()).collect();
        let (row_sums, column_sums) = sums.split_at(rows);

        let mut problem = rules(row_sums, column_sums);
        super::give(&mut problem, &solution);
        let any = values(1, count as u32);
        let kept = free_while_unique(&mut problem, &solution, (0..count).collect(), givens, |_| any, random);
        let givens = grid::only(&solution, &kept);
        let puzzle = Self { row_sums: row_sums.to_vec(), column_sums: column_sums.to_vec(), givens };
        (puzzle, grid::text(&solution, columns, None))
    }

    fn is_well_formed(&self) -> bool {
        let (rows, columns) = (self.row_sums.len(), self.column_sums.len());
        (1..=LARGEST_SIDE).contains(&rows)
            && (1..=LARGEST_SIDE).contains(&columns)
            && self.givens.len() == rows * columns
            && self.givens.iter().all(|given| *given <= (rows * columns) as u32)
    }

    fn prompt(&self) -> String {
        let (rows, columns) = (self.row_sums.len(), self.column_sums.len());
        let sums = |sums: &[u32]| sums.iter().map(u32::to_string).collect::<Vec<String>>().join(" ");
        format!(
            "Solve this survo puzzle. Fill the {rows}x{columns} grid with each number from 1 to {} once, so that rows \
             and columns have the sums given. A dot is an empty cell.\n\n{}\n\nSums of the rows: {}\nSums of the \
             columns: {}\n\n{}",
            rows * columns,
            grid::text(&self.givens, columns, Some(0)),
            sums(&self.row_sums),
            sums(&self.column_sums),
            grid::GRID_FORMAT
        )
    }

    fn check(&self, answer: &str) -> Result<(), String> {
        let (rows, columns) = (self.row_sums.len(), self.column_sums.len());
        let cells = grid::parse(answer, rows, columns)?;
        grid::check_range(&cells, columns, (rows * columns) as u32)?;
        grid::check_different(&cells, &(0..rows * columns).collect::<Vec<usize>>(), || {
            "the grid".to_owned()
        })?;
        grid::check_givens(&cells, &self.givens, columns)?;
        let wanted = self.row_sums.iter().chain(&self.column_sums);
        for (number, (line, wanted)) in grid::lines(rows, columns).zip(wanted).enumerate() {
            let sum: u32 = line.iter().map(|cell| cells[*cell]).sum();
            if sum != *wanted {
                return Err(format!("{} has the sum {sum}, not {wanted}", grid::line_name(number, rows)));
            }
        }
        Ok(())
    }

    fn thinking(&self, _answer: &str) -> Option<String> {
        let mut problem = rules(&self.row_sums, &self.column_sums);
        super::give(&mut problem, &self.givens);
        worked(problem.steps(), |cell, value| {
            format!("{} = {value}", grid::name(cell, self.column_sums.len()))
        })
    }
}

fn rules(row_sums: &[u32], column_sums: &[u32]) -> Problem {
    let (rows, columns) = (row_sums.len(), column_sums.len());
    let mut problem = Problem::new(rows * columns, values(1, (rows * columns) as u32));
    problem.add(Distinct((0..rows * columns).collect()));
    for (line, sum) in grid::lines(rows, columns).zip(row_sums.iter().chain(column_sums)) {
        problem.add(Linear::sum(line, i64::from(*sum)));
    }
    problem
}
