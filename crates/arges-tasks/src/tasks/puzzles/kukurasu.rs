//! Kukurasu: which cells are filled, by the weighted sums of rows and columns.

use serde::{Deserialize, Serialize};

use super::grid;
use super::puzzle::{Puzzle, worked};
use super::solver::clues::fix_until_unique;
use super::solver::constraints::Linear;
use super::solver::{Problem, values};
use crate::Random;

#[derive(Serialize, Deserialize)]
pub(crate) struct Kukurasu {
    /// A filled cell counts its column's number, from 1.
    row_sums: Vec<u32>,
    /// A filled cell counts its row's number, from 1.
    column_sums: Vec<u32>,
    /// Cells that are known, with 1 for filled and 0 for empty.
    known: Vec<(usize, u32)>,
}

/// Size of each difficulty.
const LEVELS: [usize; 5] = [3, 4, 5, 6, 7];

/// Grids tried for one that needs no known cell.
const MAX_GRIDS: usize = 10;

impl Puzzle for Kukurasu {
    const NAME: &'static str = "kukurasu";
    const SUMMARY: &'static str = "find the filled cells by the weighted sums of rows and columns";
    const MAX_DIFFICULTY: u32 = LEVELS.len() as u32;

    fn draw(random: &mut Random, difficulty: u32) -> (Self, String) {
        let size = LEVELS[difficulty as usize - 1];
        let mut best: Option<(Self, String)> = None;
        for _ in 0..MAX_GRIDS {
            let solution: Vec<u32> = (0..size * size).map(|_| u32::from(random.chance(1, 2))).collect();
            let sums: Vec<u32> = grid::lines(size, size).map(|line| weighted_sum(&solution, &line)).collect();
            let (row_sums, column_sums) = sums.split_at(size);
            let mut problem = rules(row_sums, column_sums);
            let fixed = fix_until_unique(&mut problem, &solution, size * size, random);
            let known: Vec<(usize, u32)> = fixed.into_iter().map(|cell| (cell, solution[cell])).collect();
            if best.as_ref().is_none_or(|(best, _)| known.len() < best.known.len()) {
                let puzzle = Self { row_sums: row_sums.to_vec(), column_sums: column_sums.to_vec(), known };
                best = Some((puzzle, grid::text(&solution, size, None)));
            }
            if best.as_ref().is_some_and(|(best, _)| best.known.is_empty()) {
                break;
            }
        }
        best.expect("the first grid is the best so far")
    }

    fn is_well_formed(&self) -> bool {
        let size = self.row_sums.len();
        (1..=9).contains(&size)
            && self.column_sums.len() == size
            && self.known.iter().all(|(cell, value)| *cell < size * size && *value <= 1)
    }

    fn prompt(&self) -> String {
        let size = self.row_sums.len();
        let sums = |sums: &[u32]| sums.iter().map(u32::to_string).collect::<Vec<String>>().join(" ");
        let mut prompt = format!(
            "Solve this {size}x{size} kukurasu. Each cell is filled (1) or empty (0). In a row, a filled cell counts the \
             number of its column, from 1 on the left to {size}; in a column, it counts the number of its row, from 1 at \
             the top to {size}. The counts of each row and each column have the sums given.\n\nSums of the rows: {}\n\
             Sums of the columns: {}\n",
            sums(&self.row_sums),
            sums(&self.column_sums)
        );
        if !self.known.is_empty() {
            let known: Vec<String> = self
                .known
                .iter()
                .map(|(cell, value)| format!("{} = {value}", grid::name(*cell, size)))
                .collect();
            prompt += &format!("Known, with r1c2 for row 1, column 2: {}\n", known.join(", "));
        }
        format!("{prompt}\n{}", grid::GRID_FORMAT)
    }

    fn check(&self, answer: &str) -> Result<(), String> {
        let size = self.row_sums.len();
        let cells = grid::parse(answer, size, size)?;
        if let Some(cell) = cells.iter().position(|value| *value > 1) {
            return Err(format!("{} is neither 0 nor 1", grid::name(cell, size)));
        }
        if let Some((cell, value)) = self.known.iter().find(|(cell, value)| cells[*cell] != *value) {
            return Err(format!("{} is known to be {value}", grid::name(*cell, size)));
        }
        let wanted = self.row_sums.iter().chain(&self.column_sums);
        for (number, (line, wanted)) in grid::lines(size, size).zip(wanted).enumerate() {
            let sum = weighted_sum(&cells, &line);
            if sum != *wanted {
                return Err(format!("{} has the sum {sum}, not {wanted}", grid::line_name(number, size)));
            }
        }
        Ok(())
    }

    fn thinking(&self, _answer: &str) -> Option<String> {
        let mut problem = rules(&self.row_sums, &self.column_sums);
        self.known.iter().for_each(|(cell, value)| problem.set_domain(*cell, 1 << value));
        worked(problem.steps(), |cell, value| format!("{} = {value}", grid::name(cell, self.row_sums.len())))
    }
}

/// The sum of the filled cells' places in the line, from 1.
fn weighted_sum(cells: &[u32], line: &[usize]) -> u32 {
    line.iter().zip(1..).map(|(cell, weight)| weight * cells[*cell]).sum()
}

fn rules(row_sums: &[u32], column_sums: &[u32]) -> Problem {
    let size = row_sums.len();
    let mut problem = Problem::new(size * size, values(0, 1));
    for (line, sum) in grid::lines(size, size).zip(row_sums.iter().chain(column_sums)) {
        problem.add(Linear::new((1..).zip(line), i64::from(*sum)));
    }
    problem
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filled_cell_counts_its_place_in_row_and_column() {
        let puzzle = Kukurasu { row_sums: vec![2, 3], column_sums: vec![2, 3], known: Vec::new() };
        assert_eq!(puzzle.check("0 1\n1 1"), Ok(()));
        assert_eq!(puzzle.check("1 1\n1 1"), Err("row 1 has the sum 3, not 2".to_owned()));
        assert_eq!(puzzle.check("0 2\n1 1"), Err("r1c2 is neither 0 nor 1".to_owned()));
    }
}
