//! Calcudoku: a Latin square cut into cages, each with an operation and its result.

use serde::{Deserialize, Serialize};

use super::grid;
use super::puzzle::{Puzzle, worked};
use super::solver::constraints::{Distinct, Enumerated};
use super::solver::{Problem, values};
use crate::Random;

#[derive(Serialize, Deserialize)]
pub(crate) struct Calcudoku {
    size: usize,
    /// Each cell is in one of them.
    cages: Vec<Cage>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Cage {
    cells: Vec<usize>,
    operation: Operation,
    target: u32,
}

/// What a cage's numbers give, in any order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Operation {
    /// A single cell.
    Is,
    Sum,
    Product,
    /// The larger of two less the smaller.
    Difference,
    /// The larger of two by the smaller.
    Quotient,
}

impl Operation {
    fn symbol(self) -> &'static str {
        match self {
            Self::Is => "=",
            Self::Sum => "+",
            Self::Product => "*",
            Self::Difference => "-",
            Self::Quotient => "/",
        }
    }

    /// Whether the values give the target. There are one for [`Self::Is`], two for a difference or a quotient.
    fn gives(self, values: &[u32], target: u32) -> bool {
        let (low, high) =
            (values.iter().min().copied().unwrap_or(0), values.iter().max().copied().unwrap_or(0));
        match self {
            Self::Is => low == target,
            Self::Sum => values.iter().sum::<u32>() == target,
            Self::Product => values.iter().product::<u32>() == target,
            Self::Difference => high - low == target,
            Self::Quotient => low > 0 && low * target == high,
        }
    }
}

/// Size, and the largest cage, of each difficulty.
const LEVELS: [(usize, usize); 6] = [(3, 2), (4, 2), (4, 3), (5, 3), (5, 4), (6, 4)];

const LARGEST_SIZE: usize = 9;
const LARGEST_CAGE: usize = 4;

impl Puzzle for Calcudoku {
    const NAME: &'static str = "calcudoku";
    const SUMMARY: &'static str =
        "fill a Latin square whose cages give sums, products, differences and quotients";
    const MAX_DIFFICULTY: u32 = LEVELS.len() as u32;

    fn draw(random: &mut Random, difficulty: u32) -> (Self, String) {
        let (size, largest) = LEVELS[difficulty as usize - 1];
        let solution = super::random_latin_square(random, size);
        let mut cages: Vec<Cage> = random_cages(random, size, largest)
            .into_iter()
            .map(|cells| random_cage(random, cells, &solution))
            .collect();
        while let Some(cell) = undetermined(size, &cages, &solution, random) {
            split_off(&mut cages, cell, &solution, size, random);
        }
        cages.sort_unstable_by_key(|cage| cage.cells[0]);
        (Self { size, cages }, grid::text(&solution, size, None))
    }

    fn is_well_formed(&self) -> bool {
        let cells = self.size.saturating_mul(self.size);
        let fits = |cage: &Cage| match cage.operation {
            Operation::Is => cage.cells.len() == 1,
            Operation::Difference | Operation::Quotient => cage.cells.len() == 2,
            Operation::Sum | Operation::Product => (2..=LARGEST_CAGE).contains(&cage.cells.len()),
        };
        (2..=LARGEST_SIZE).contains(&self.size)
            && self.cages.iter().all(|cage| fits(cage) && cage.target <= (LARGEST_SIZE as u32).pow(4))
            && self.cages.iter().flat_map(|cage| &cage.cells).all(|cell| *cell < cells)
    }

    fn prompt(&self) -> String {
        let size = self.size;
        let cages: Vec<String> = self
            .cages
            .iter()
            .map(|cage| {
                let names = grid::names(cage.cells.iter().copied(), size);
                format!("{names}: {}{}", cage.operation.symbol(), cage.target)
            })
            .collect();
        format!(
            "Solve this {size}x{size} calcudoku. Each row and each column holds each number from 1 to {size} once. The \
             numbers of each cage give its result: + is their sum, * their product, - the larger less the smaller, / \
             the larger divided by the smaller, = the number itself. r1c2 is the cell in row 1, column 2.\n\n\
             {}\n\n{}",
            cages.join("\n"),
            grid::GRID_FORMAT
        )
    }

    fn check(&self, answer: &str) -> Result<(), String> {
        let cells = grid::parse(answer, self.size, self.size)?;
        grid::check_latin(&cells, self.size)?;
        let fails = |cage: &&Cage| {
            let values: Vec<u32> = cage.cells.iter().map(|cell| cells[*cell]).collect();
            !cage.operation.gives(&values, cage.target)
        };
        match self.cages.iter().find(fails) {
            Some(Cage { cells, operation, target }) => {
                let names = grid::names(cells.iter().copied(), self.size);
                Err(format!("the cage {names} does not give {}{target}", operation.symbol()))
            }
            None => Ok(()),
        }
    }

    fn thinking(&self, _answer: &str) -> Option<String> {
        let problem = posed(self.size, &self.cages);
        worked(problem.steps(), |cell, value| format!("{} = {value}", grid::name(cell, self.size)))
    }
}

/// Cuts the square into connected pieces of up to `largest` cells, each ascending.
fn random_cages(random: &mut Random, size: usize, largest: usize) -> Vec<Vec<usize>> {
    let mut free = vec![true; size * size];
    let mut cages = Vec::new();
    for start in random.sample(size * size, size * size) {
        if !free[start] {
            continue;
        }
        let wanted = random.range(2, largest as i64) as usize;
        let mut cage = vec![start];
        free[start] = false;
        while cage.len() < wanted {
            let around = cage.iter().flat_map(|cell| grid::neighbours(*cell, size, size));
            let open: Vec<usize> = around.filter(|cell| free[*cell]).collect();
            if open.is_empty() {
                break;
            }
            let cell = *random.choose(&open);
            free[cell] = false;
            cage.push(cell);
        }
        cage.sort_unstable();
        cages.push(cage);
    }
    cages
}

/// The cells with a random operation that they can have.
fn random_cage(random: &mut Random, cells: Vec<usize>, solution: &[u32]) -> Cage {
    let values: Vec<u32> = cells.iter().map(|cell| solution[*cell]).collect();
    let (sum, product) = (values.iter().sum(), values.iter().product());
    let mut choices = vec![(Operation::Sum, sum), (Operation::Product, product)];
    match values[..] {
        [value] => choices = vec![(Operation::Is, value)],
        [a, b] => {
            let (low, high) = (a.min(b), a.max(b));
            choices.push((Operation::Difference, high - low));
            if high % low == 0 {
                choices.push((Operation::Quotient, high / low));
            }
        }
        _ => {}
    }
    let (operation, target) = *random.choose(&choices);
    Cage { cells, operation, target }
}

/// A cell in which the solution and another one differ; `None` if it is the only one.
fn undetermined(size: usize, cages: &[Cage], solution: &[u32], random: &mut Random) -> Option<usize> {
    let found = posed(size, cages).solutions(2);
    if found.is_unique() {
        return None;
    }
    let alone = |cell: usize| cages.iter().any(|cage| cage.cells == [cell]);
    let other = found.solutions.iter().find(|other| *other != solution);
    let differs = |cell: usize| other.is_none_or(|other| other[cell] != solution[cell]);
    let cells: Vec<usize> = (0..solution.len()).filter(|cell| !alone(*cell) && differs(*cell)).collect();
    Some(*random.choose(&cells))
}

/// Makes the cell a cage of its own, and new cages of what is left of its old one.
fn split_off(cages: &mut Vec<Cage>, cell: usize, solution: &[u32], size: usize, random: &mut Random) {
    let Some(place) = cages.iter().position(|cage| cage.cells.contains(&cell)) else {
        return;
    };
    let mut rest = cages.swap_remove(place).cells;
    rest.retain(|other| *other != cell);
    cages.push(random_cage(random, vec![cell], solution));
    while let Some(start) = rest.pop() {
        let mut piece = vec![start];
        let mut next = 0;
        while next < piece.len() {
            let (touching, apart): (Vec<usize>, Vec<usize>) = rest
                .iter()
                .partition(|other| grid::neighbours(piece[next], size, size).any(|n| n == **other));
            piece.extend(touching);
            rest = apart;
            next += 1;
        }
        piece.sort_unstable();
        cages.push(random_cage(random, piece, solution));
    }
}

fn posed(size: usize, cages: &[Cage]) -> Problem {
    let mut problem = Problem::new(size * size, values(1, size as u32));
    grid::lines(size, size).for_each(|line| problem.add(Distinct(line)));
    for Cage { cells, operation, target } in cages {
        let (count, operation, target) = (cells.len(), *operation, *target);
        let admits = move |prefix: &[u32]| prefix.len() < count || operation.gives(prefix, target);
        problem.add(Enumerated::new(cells.clone(), admits));
    }
    problem
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cell_is_in_one_connected_cage_and_the_solution_is_the_only_one() {
        for seed in 0..20 {
            let (puzzle, answer) = Calcudoku::draw(&mut Random::new("test", seed, 5), 5);
            let mut cells: Vec<usize> = puzzle.cages.iter().flat_map(|cage| cage.cells.clone()).collect();
            cells.sort_unstable();
            assert!(cells.into_iter().eq(0..25));
            for cage in puzzle.cages.iter().filter(|cage| cage.cells.len() > 1) {
                let touches =
                    |cell: &usize| grid::neighbours(*cell, 5, 5).any(|other| cage.cells.contains(&other));
                assert!(cage.cells.iter().all(touches));
            }
            let found = posed(puzzle.size, &puzzle.cages).solutions(2);
            assert!(found.is_unique());
            assert_eq!(grid::text(&found.solutions[0], 5, None), answer);
        }
    }
}
