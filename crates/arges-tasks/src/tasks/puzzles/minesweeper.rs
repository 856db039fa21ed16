//! Minesweeper: the mines that follow from the numbers revealed, and no others.

use serde::{Deserialize, Serialize};

use super::grid;
use super::puzzle::Puzzle;
use super::solver::constraints::Linear;
use super::solver::{Problem, values};
use crate::Random;

#[derive(Serialize, Deserialize)]
pub(crate) struct Minesweeper {
    columns: usize,
    /// Row by row; `None` is hidden.
    revealed: Vec<Option<u32>>,
    /// The cells that hold a mine in every arrangement of mines that fits the numbers.
    mines: Vec<usize>,
}

/// Size, the percentage of mines and that of revealed cells, of each difficulty.
const LEVELS: [(usize, usize, usize); 5] = [(3, 20, 50), (4, 20, 45), (5, 20, 40), (6, 22, 40), (8, 22, 40)];

const LARGEST_SIDE: usize = 16;

impl Puzzle for Minesweeper {
    const NAME: &'static str = "minesweeper";
    const SUMMARY: &'static str = "find the cells that must be mines, given the numbers revealed";
    const MAX_DIFFICULTY: u32 = LEVELS.len() as u32;

    fn draw(random: &mut Random, difficulty: u32) -> (Self, String) {
        let (size, mines, reveal) = LEVELS[difficulty as usize - 1];
        let cells = size * size;
        let (count, mut reveal) = ((cells * mines).div_ceil(100), cells * reveal / 100);
        loop {
            let order = random.sample(cells, cells);
            let (mined, safe) = order.split_at(count);
            reveal = reveal.min(safe.len());
            let mut revealed = vec![None; cells];
            for cell in &safe[..reveal] {
                let around = grid::surroundings(*cell, size, size).filter(|other| mined.contains(other));
                revealed[*cell] = Some(around.count() as u32);
            }
            let mines = certain_mines(&revealed, size);
            if !mines.is_empty() {
                let answer = grid::names(mines.iter().copied(), size);
                return (Self { columns: size, revealed, mines }, answer);
            }
            reveal += 1;
        }
    }

    fn is_well_formed(&self) -> bool {
        let Self { columns, revealed, mines } = self;
        (1..=LARGEST_SIDE).contains(columns)
            && (1..=LARGEST_SIDE * columns).contains(&revealed.len())
            && revealed.len() % columns == 0
            && revealed.iter().flatten().all(|number| *number <= 8)
            && mines.iter().all(|cell| *cell < revealed.len())
    }

    fn prompt(&self) -> String {
        let Self { columns, revealed, .. } = self;
        let shown: Vec<String> =
            revealed.iter().map(|number| number.map_or_else(|| "?".to_owned(), |n| n.to_string())).collect();
        let rows: Vec<String> = shown.chunks(*columns).map(|row| row.join(" ")).collect();
        format!(
            "This is a minesweeper board. A number is a cell without a mine; it says how many of the up to eight cells \
             around it hold a mine. A ? is hidden: it may hold a mine or not, and it is not known how many mines there \
             are.\n\n{}\n\nWhich hidden cells must hold a mine, whatever the others hold? Leave out those that only may. \
             End with a line `Answer:` and the cells, separated by spaces, where r1c2 is the cell in row 1, column 2.",
            rows.join("\n")
        )
    }

    fn check(&self, answer: &str) -> Result<(), String> {
        let columns = self.columns;
        let named = grid::parse_cells(answer, self.revealed.len() / columns, columns)?;
        if let Some(cell) = named.iter().find(|cell| !self.mines.contains(cell)) {
            return Err(format!("{} need not hold a mine", grid::name(*cell, columns)));
        }
        match self.mines.iter().find(|cell| !named.contains(cell)) {
            Some(cell) => Err(format!("{} must hold a mine and is missing", grid::name(*cell, columns))),
            None => Ok(()),
        }
    }

    /// What follows from one number after the other, and of the other cells those that cannot be safe since the
    /// numbers would then contradict each other.
    fn thinking(&self, _answer: &str) -> Option<String> {
        let (problem, columns) = (posed(&self.revealed, self.columns), self.columns);
        let mut lines = Vec::new();
        let domains = problem.propagated().ok()?;
        for cell in (0..self.revealed.len()).filter(|cell| self.revealed[*cell].is_none()) {
            match domains.value(cell) {
                Some(1) => lines.push(format!("{}: mine", grid::name(cell, columns))),
                Some(_) => lines.push(format!("{}: safe", grid::name(cell, columns))),
                None if self.mines.contains(&cell) => {
                    lines.push(format!("{}: safe would contradict, mine", grid::name(cell, columns)));
                }
                None => lines.push(format!("{}: may be safe", grid::name(cell, columns))),
            }
        }
        Some(lines.join("\n"))
    }
}

/// The hidden cells that cannot be without a mine.
fn certain_mines(revealed: &[Option<u32>], columns: usize) -> Vec<usize> {
    let mut problem = posed(revealed, columns);
    let Ok(domains) = problem.propagated() else {
        return Vec::new();
    };
    let mut mines = Vec::new();
    for cell in (0..revealed.len()).filter(|cell| revealed[*cell].is_none()) {
        let is_certain = match domains.value(cell) {
            Some(value) => value == 1,
            None => {
                problem.set_domain(cell, 1);
                let without = problem.solutions(1);
                problem.set_domain(cell, values(0, 1));
                without.complete && without.solutions.is_empty()
            }
        };
        if is_certain {
            mines.push(cell);
        }
    }
    mines
}

/// The variables are the cells, 1 for a mine.
fn posed(revealed: &[Option<u32>], columns: usize) -> Problem {
    let rows = revealed.len() / columns;
    let mut problem = Problem::new(revealed.len(), values(0, 1));
    for (cell, number) in revealed.iter().enumerate() {
        if let Some(number) = number {
            problem.set_domain(cell, 1);
            problem.add(Linear::sum(grid::surroundings(cell, rows, columns), i64::from(*number)));
        }
    }
    problem
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every arrangement of mines that fits, by trying all.
    fn arrangements(revealed: &[Option<u32>], columns: usize) -> Vec<u32> {
        let rows = revealed.len() / columns;
        let fits = |mines: &u32| {
            let mined = |cell: usize| mines >> cell & 1;
            revealed.iter().enumerate().all(|(cell, number)| {
                let around = || grid::surroundings(cell, rows, columns).map(mined).sum::<u32>();
                number.is_none_or(|number| mined(cell) == 0 && around() == number)
            })
        };
        (0..1 << revealed.len()).filter(fits).collect()
    }

    #[test]
    fn the_mines_are_those_of_every_arrangement_that_fits() {
        for seed in 0..30 {
            let (puzzle, _) = Minesweeper::draw(&mut Random::new("test", seed, 2), 2);
            let common =
                arrangements(&puzzle.revealed, 4).into_iter().fold(u32::MAX, |common, mines| common & mines);
            let expected: Vec<usize> = (0..16).filter(|cell| common >> cell & 1 == 1).collect();
            assert_eq!(puzzle.mines, expected);
        }
    }

    #[test]
    fn cells_that_only_may_be_mines_are_wrong() {
        assert_eq!(certain_mines(&[Some(1), None], 2), [1]);
        let puzzle = Minesweeper { columns: 3, revealed: vec![None, Some(1), None], mines: Vec::new() };
        assert!(certain_mines(&puzzle.revealed, 3).is_empty());
        assert_eq!(puzzle.check("r1c1"), Err("r1c1 need not hold a mine".to_owned()));
        assert_eq!(puzzle.check("none"), Ok(()));
    }
}
