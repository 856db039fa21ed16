//! Skyscrapers: a Latin square of heights, with how many are seen from each side.

use serde::{Deserialize, Serialize};

use super::grid;
use super::puzzle::{Puzzle, worked};
use super::solver::clues::{fix_until_unique, thin};
use super::solver::constraints::{Distinct, Enumerated};
use super::solver::{Problem, values};
use crate::Random;

#[derive(Serialize, Deserialize)]
pub(crate) struct Skyscraper {
    size: usize,
    /// What is seen along each line of [`grid::lines`], from its first cell and from its last; 0 is unknown.
    seen: Vec<[u32; 2]>,
    /// Row by row; 0 is empty.
    givens: Vec<u32>,
}

/// Size, and the views there are at least, of each difficulty.
const LEVELS: [(usize, usize); 5] = [(3, 8), (4, 14), (4, 9), (5, 16), (5, 11)];

const LARGEST_SIZE: usize = 6;

impl Puzzle for Skyscraper {
    const NAME: &'static str = "skyscraper";
    const SUMMARY: &'static str = "fill a Latin square of heights by how many are seen from each side";
    const MAX_DIFFICULTY: u32 = LEVELS.len() as u32;

    fn draw(random: &mut Random, difficulty: u32) -> (Self, String) {
        let (size, views) = LEVELS[difficulty as usize - 1];
        let solution = super::random_latin_square(random, size);
        let seen: Vec<[u32; 2]> = grid::lines(size, size)
            .map(|line| {
                let heights: Vec<u32> = line.iter().map(|cell| solution[*cell]).collect();
                [visible(heights.iter()), visible(heights.iter().rev())]
            })
            .collect();
        let mut problem = rules(size, &seen);
        let givens = grid::only(&solution, &fix_until_unique(&mut problem, &solution, size * size, random));

        let ends: Vec<(usize, usize)> = (0..2 * size).flat_map(|line| [(line, 0), (line, 1)]).collect();
        let shown = |ends: &[(usize, usize)]| {
            let mut shown = vec![[0; 2]; 2 * size];
            ends.iter().for_each(|(line, end)| shown[*line][*end] = seen[*line][*end]);
            shown
        };
        let ends =
            thin(ends, views, random, |ends| posed(size, &shown(ends), &givens).solutions(2).is_unique());
        (Self { size, seen: shown(&ends), givens }, grid::text(&solution, size, None))
    }

    fn is_well_formed(&self) -> bool {
        (2..=LARGEST_SIZE).contains(&self.size)
            && self.givens.len() == self.size * self.size
            && self.seen.len() == 2 * self.size
            && self.givens.iter().chain(self.seen.iter().flatten()).all(|value| *value <= self.size as u32)
    }

    fn prompt(&self) -> String {
        let Self { size, seen, givens } = self;
        let (rows, columns) = seen.split_at(*size);
        let side = |lines: &[[u32; 2]], end: usize| {
            grid::text(&lines.iter().map(|line| line[end]).collect::<Vec<u32>>(), *size, Some(0))
        };
        let mut prompt = format!(
            "Solve this {size}x{size} skyscraper puzzle. Each row and each column holds each height from 1 to {size} \
             once. A number at an end of a line says how many buildings are seen from there: a building hides all lower \
             ones behind it. A dot is unknown.\n\nColumns from the top: {}\nColumns from the bottom: {}\nRows from the \
             left: {}\nRows from the right: {}\n\n",
            side(columns, 0),
            side(columns, 1),
            side(rows, 0),
            side(rows, 1)
        );
        if givens.iter().any(|given| *given != 0) {
            prompt += &format!("These heights are known:\n\n{}\n\n", grid::text(givens, *size, Some(0)));
        }
        prompt + grid::GRID_FORMAT
    }

    fn check(&self, answer: &str) -> Result<(), String> {
        let cells = grid::parse(answer, self.size, self.size)?;
        grid::check_latin(&cells, self.size)?;
        grid::check_givens(&cells, &self.givens, self.size)?;
        for (number, line) in grid::lines(self.size, self.size).enumerate() {
            let heights: Vec<u32> = line.iter().map(|cell| cells[*cell]).collect();
            let [first, last] = self.seen[number];
            for (wanted, seen, end) in
                [(first, visible(heights.iter()), "first"), (last, visible(heights.iter().rev()), "last")]
            {
                if wanted != 0 && wanted != seen {
                    let name = grid::line_name(number, self.size);
                    return Err(format!("from the {end} cell of {name}, {seen} are seen, not {wanted}"));
                }
            }
        }
        Ok(())
    }

    fn thinking(&self, _answer: &str) -> Option<String> {
        let problem = posed(self.size, &self.seen, &self.givens);
        worked(problem.steps(), |cell, value| format!("{} = {value}", grid::name(cell, self.size)))
    }
}

/// How many heights are above all before them.
fn visible<'a>(heights: impl Iterator<Item = &'a u32>) -> u32 {
    let (mut highest, mut count) = (0, 0);
    for height in heights {
        if *height > highest {
            (highest, count) = (*height, count + 1);
        }
    }
    count
}

fn rules(size: usize, seen: &[[u32; 2]]) -> Problem {
    let mut problem = Problem::new(size * size, values(1, size as u32));
    for (line, [first, last]) in grid::lines(size, size).zip(seen.iter().copied()) {
        problem.add(Distinct(line.clone()));
        if first != 0 || last != 0 {
            problem.add(Enumerated::new(line, move |prefix: &[u32]| {
                let differs = prefix.split_last().is_none_or(|(last, before)| !before.contains(last));
                let complete = prefix.len() == size;
                let from_first = visible(prefix.iter());
                let first_holds = first == 0 || from_first == first || (!complete && from_first < first);
                let last_holds = last == 0 || !complete || visible(prefix.iter().rev()) == last;
                differs && first_holds && last_holds
            }));
        }
    }
    problem
}

fn posed(size: usize, seen: &[[u32; 2]], givens: &[u32]) -> Problem {
    let mut problem = rules(size, seen);
    super::give(&mut problem, givens);
    problem
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn higher_buildings_hide_lower_ones() {
        for (heights, seen) in [([1, 2, 3, 4], 4), ([4, 1, 2, 3], 1), ([2, 1, 4, 3], 2)] {
            assert_eq!(visible(heights.iter()), seen);
        }
    }

    #[test]
    fn a_latin_square_with_another_view_is_wrong() {
        let puzzle = Skyscraper { size: 2, seen: vec![[0, 0], [0, 0], [1, 0], [0, 0]], givens: vec![0; 4] };
        assert_eq!(puzzle.check("2 1\n1 2"), Ok(()));
        let reason = "from the first cell of column 1, 2 are seen, not 1";
        assert_eq!(puzzle.check("1 2\n2 1"), Err(reason.to_owned()));
    }
}
