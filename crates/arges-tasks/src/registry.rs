//! The list of all tasks.

use crate::Task;
use crate::tasks::arithmetic::{addition, chained_arithmetic, multiplication, subtraction};
use crate::tasks::language::tools::{tool_call, tool_call_none, tool_call_parallel};
use crate::tasks::language::{
    boolean_expressions, dyck_completion, dyck_errors, goods_exchange, knights_and_knaves, needle,
    object_counting, propositional_logic, shortest_path, time_sequence, web_of_lies, word_sorting, zebra,
};
use crate::tasks::programs::{python_function, repair, shell_script};
use crate::tasks::puzzles::{
    Puzzle as _, calcudoku, campsite, countdown, cryptarithm, futoshiki, game_of_24, kukurasu, minesweeper,
    numbrix, skyscraper, sudoku, survo,
};
use crate::tasks::worlds::{booking, calculator, lookup_chain};

/// One line a task, ordered by name.
static TASKS: &[&dyn Task] = &[
    &addition::Addition,
    &booking::TASK,
    &boolean_expressions::TASK,
    &calcudoku::Calcudoku::TASK,
    &calculator::TASK,
    &campsite::Campsite::TASK,
    &chained_arithmetic::ChainedArithmetic,
    &countdown::Countdown::TASK,
    &cryptarithm::Cryptarithm::TASK,
    &dyck_completion::TASK,
    &dyck_errors::TASK,
    &futoshiki::Futoshiki::TASK,
    &game_of_24::GameOf24::TASK,
    &goods_exchange::TASK,
    &knights_and_knaves::TASK,
    &kukurasu::Kukurasu::TASK,
    &lookup_chain::TASK,
    &minesweeper::Minesweeper::TASK,
    &multiplication::Multiplication,
    &needle::TASK,
    &numbrix::Numbrix::TASK,
    &object_counting::TASK,
    &propositional_logic::TASK,
    &python_function::TASK,
    &repair::TASK,
    &shell_script::TASK,
    &shortest_path::TASK,
    &skyscraper::Skyscraper::TASK,
    &subtraction::Subtraction,
    &sudoku::Sudoku::TASK,
    &survo::Survo::TASK,
    &time_sequence::TASK,
    &tool_call::TASK,
    &tool_call_none::TASK,
    &tool_call_parallel::TASK,
    &web_of_lies::TASK,
    &word_sorting::TASK,
    &zebra::TASK,
];

/// All tasks, ordered by name.
pub fn all() -> &'static [&'static dyn Task] {
    TASKS
}

/// The task of that name.
pub fn find(name: &str) -> Option<&'static dyn Task> {
    TASKS.binary_search_by(|task| task.name().cmp(name)).ok().map(|place| TASKS[place])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_are_ordered_by_name_and_found_by_it() {
        assert!(TASKS.windows(2).all(|pair| pair[0].name() < pair[1].name()));
        for task in all() {
            assert_eq!(find(task.name()).map(Task::name), Some(task.name()));
        }
        assert!(find("no_such_task").is_none());
    }
}
