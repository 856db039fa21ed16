//! Which clues a puzzle needs to have one solution.

use super::{Problem, Set};
use crate::Random;

/// Fixes variables to their values in `solution` until that is the only solution; gives the fixed ones, ascending.
/// Each is one in which the solution and another that was still possible differ. Only the first `fixable` variables
/// are fixed; they must determine the rest.
pub(in super::super) fn fix_until_unique(
    problem: &mut Problem,
    solution: &[u32],
    fixable: usize,
    random: &mut Random,
) -> Vec<usize> {
    let mut fixed = Vec::new();
    loop {
        let found = problem.solutions(2);
        if found.is_unique() {
            fixed.sort_unstable();
            return fixed;
        }
        let other = found.solutions.iter().find(|other| *other != solution);
        let candidates: Vec<usize> = match other {
            Some(other) => (0..fixable).filter(|variable| other[*variable] != solution[*variable]).collect(),
            // The search gave up: any variable that is open makes it shorter.
            None => (0..fixable).filter(|variable| !problem.domain(*variable).is_power_of_two()).collect(),
        };
        let variable = *random.choose(&candidates);
        problem.set_domain(variable, 1 << solution[variable]);
        fixed.push(variable);
    }
}

/// Frees fixed variables in random order while the solution stays the only one, until `keep` of them are left; gives
/// those still fixed, ascending. `domain` is what a freed variable may be.
pub(in super::super) fn free_while_unique(
    problem: &mut Problem,
    solution: &[u32],
    mut fixed: Vec<usize>,
    keep: usize,
    domain: impl Fn(usize) -> Set,
    random: &mut Random,
) -> Vec<usize> {
    random.shuffle(&mut fixed);
    let mut kept = Vec::new();
    while let Some(variable) = fixed.pop() {
        if kept.len() + fixed.len() < keep {
            kept.push(variable);
            break;
        }
        // The solution was the only one with the variable fixed: it stays so if none has another value there.
        let value = 1 << solution[variable];
        problem.set_domain(variable, domain(variable) & !value);
        let others = problem.solutions(1);
        if others.complete && others.solutions.is_empty() {
            problem.set_domain(variable, domain(variable));
        } else {
            problem.set_domain(variable, value);
            kept.push(variable);
        }
    }
    kept.append(&mut fixed);
    kept.sort_unstable();
    kept
}

/// Removes items in random order while `is_unique` holds for the rest, until `keep` are left; the rest stays in order.
pub(in super::super) fn thin<T: Clone>(
    items: Vec<T>,
    keep: usize,
    random: &mut Random,
    is_unique: impl Fn(&[T]) -> bool,
) -> Vec<T> {
    let order = random.sample(items.len(), items.len());
    let mut present = vec![true; items.len()];
    let rest = |present: &[bool]| -> Vec<T> {
        items.iter().zip(present).filter(|(_, present)| **present).map(|(item, _)| item.clone()).collect()
    };
    let mut left = items.len();
    for place in order {
        if left <= keep {
            break;
        }
        present[place] = false;
        if is_unique(&rest(&present)) {
            left -= 1;
        } else {
            present[place] = true;
        }
    }
    rest(&present)
}
