//! Puzzles on grids and with numbers. Those with one solution are drawn by choosing a solution and then the clues that
//! leave no other; answers are held against the rules, not against the stored solution.

mod grid;
mod numbers;
mod puzzle;
mod solver;

pub(crate) mod calcudoku;
pub(crate) mod campsite;
pub(crate) mod countdown;
pub(crate) mod cryptarithm;
pub(crate) mod futoshiki;
pub(crate) mod game_of_24;
pub(crate) mod kukurasu;
pub(crate) mod minesweeper;
pub(crate) mod numbrix;
pub(crate) mod skyscraper;
pub(crate) mod sudoku;
pub(crate) mod survo;

pub(crate) use puzzle::Puzzle;

use crate::Random;
use solver::constraints::Distinct;
use solver::{Problem, values};

/// A random square of `size` rows in which each row and each column holds each number from 1 to `size` once.
fn random_latin_square(random: &mut Random, size: usize) -> Vec<u32> {
    let mut problem = Problem::new(size * size, values(1, size as u32));
    grid::lines(size, size).for_each(|line| problem.add(Distinct(line)));
    random_solution(&problem, random)
}

/// A random solution of a problem that certainly has some.
fn random_solution(problem: &Problem, random: &mut Random) -> Vec<u32> {
    loop {
        if let Some(solution) = problem.random_solution(random) {
            return solution;
        }
    }
}

/// Fixes the variables whose given value is not zero.
fn give(problem: &mut Problem, givens: &[u32]) {
    for (variable, given) in givens.iter().enumerate().filter(|(_, given)| **given != 0) {
        problem.set_domain(variable, 1 << given);
    }
}
