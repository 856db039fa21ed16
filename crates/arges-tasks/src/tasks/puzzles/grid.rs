//! Grids as text, and the cells of grids by their names: `r2c3` is row 2, column 3, counted from 1. Cells are numbered
//! row by row from 0.

use std::collections::BTreeSet;

/// How an answer that is a grid is written.
pub(super) const GRID_FORMAT: &str = "End with a line `Answer:`, and after it the whole grid: one row a line, the numbers separated by spaces.";

/// The name of a cell.
pub(super) fn name(cell: usize, columns: usize) -> String {
    format!("r{}c{}", cell / columns + 1, cell % columns + 1)
}

/// The names of cells, separated by spaces.
pub(super) fn names(cells: impl IntoIterator<Item = usize>, columns: usize) -> String {
    cells.into_iter().map(|cell| name(cell, columns)).collect::<Vec<String>>().join(" ")
}

/// Rows of numbers with spaces between them; `empty` is the number that is written as `.`.
pub(super) fn text(cells: &[u32], columns: usize, empty: Option<u32>) -> String {
    let shown = |value: &u32| if Some(*value) == empty { ".".to_owned() } else { value.to_string() };
    let row = |row: &[u32]| row.iter().map(shown).collect::<Vec<String>>().join(" ");
    cells.chunks(columns).map(row).collect::<Vec<String>>().join("\n")
}

/// Reads rows of whole numbers separated by spaces or commas.
pub(super) fn parse(answer: &str, rows: usize, columns: usize) -> Result<Vec<u32>, String> {
    let mut cells = Vec::with_capacity(rows * columns);
    let lines = answer.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut count = 0;
    for line in lines {
        count += 1;
        if count > rows {
            return Err(format!("the grid has more than {rows} rows"));
        }
        let numbers = line.split([' ', '\t', ',']).filter(|piece| !piece.is_empty());
        for (column, piece) in numbers.enumerate() {
            if column >= columns {
                return Err(format!("row {count} has more than {columns} numbers"));
            }
            let is_number = piece.bytes().all(|byte| byte.is_ascii_digit());
            let number = piece.parse::<u32>().ok().filter(|_| is_number);
            cells.push(number.ok_or_else(|| format!("row {count} has something that is not a number"))?);
        }
        if cells.len() != count * columns {
            return Err(format!("row {count} has fewer than {columns} numbers"));
        }
    }
    if count < rows { Err(format!("the grid has {count} rows, not {rows}")) } else { Ok(cells) }
}

/// Reads names of cells separated by spaces or commas, each at most once; `none` is no cell.
pub(super) fn parse_cells(answer: &str, rows: usize, columns: usize) -> Result<BTreeSet<usize>, String> {
    let mut cells = BTreeSet::new();
    if answer.trim().eq_ignore_ascii_case("none") {
        return Ok(cells);
    }
    for piece in answer.split(|c: char| c.is_whitespace() || c == ',').filter(|piece| !piece.is_empty()) {
        let Some((row, column)) = parse_name(piece) else {
            return Err("the answer has something that is not a cell like r1c1".to_owned());
        };
        if !(1..=rows).contains(&row) || !(1..=columns).contains(&column) {
            return Err(format!("r{row}c{column} is outside of the grid"));
        }
        if !cells.insert((row - 1) * columns + column - 1) {
            return Err(format!("r{row}c{column} is named twice"));
        }
    }
    if cells.is_empty() { Err("the answer names no cell".to_owned()) } else { Ok(cells) }
}

/// Row and column of a name.
fn parse_name(name: &str) -> Option<(usize, usize)> {
    let number = |text: &str| -> Option<usize> {
        let is_number = (1..=3).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| text.parse().ok()).flatten()
    };
    let (row, column) = name.strip_prefix(['r', 'R'])?.split_once(['c', 'C'])?;
    Some((number(row)?, number(column)?))
}

/// The cells of each row, and then of each column.
pub(super) fn lines(rows: usize, columns: usize) -> impl Iterator<Item = Vec<usize>> {
    let row = move |row: usize| (0..columns).map(|column| row * columns + column).collect();
    let column = move |column: usize| (0..rows).map(|row| row * columns + column).collect();
    (0..rows).map(row).chain((0..columns).map(column))
}

/// The name of a line of [`lines`].
pub(super) fn line_name(line: usize, rows: usize) -> String {
    if line < rows { format!("row {}", line + 1) } else { format!("column {}", line - rows + 1) }
}

/// The cells that share an edge with a cell.
pub(super) fn neighbours(cell: usize, rows: usize, columns: usize) -> impl Iterator<Item = usize> {
    let (row, column) = (cell / columns, cell % columns);
    let up = (row > 0).then(|| cell - columns);
    let left = (column > 0).then(|| cell - 1);
    let right = (column + 1 < columns).then(|| cell + 1);
    let down = (row + 1 < rows).then(|| cell + columns);
    [up, left, right, down].into_iter().flatten()
}

/// The cells that share an edge or a corner with a cell.
pub(super) fn surroundings(cell: usize, rows: usize, columns: usize) -> impl Iterator<Item = usize> {
    let (row, column) = (cell / columns, cell % columns);
    let around = move |row: usize| {
        (column.saturating_sub(1)..=(column + 1).min(columns - 1)).map(move |c| row * columns + c)
    };
    (row.saturating_sub(1)..=(row + 1).min(rows - 1)).flat_map(around).filter(move |other| *other != cell)
}

/// Checks that each of `cells` is from 1 to `high` and that none of `lines` has one twice.
pub(super) fn check_latin(cells: &[u32], size: usize) -> Result<(), String> {
    check_range(cells, size, size as u32)?;
    for (number, line) in lines(size, size).enumerate() {
        check_different(cells, &line, || line_name(number, size))?;
    }
    Ok(())
}

/// Checks that each cell is from 1 to `high`.
pub(super) fn check_range(cells: &[u32], columns: usize, high: u32) -> Result<(), String> {
    match cells.iter().position(|value| !(1..=high).contains(value)) {
        Some(cell) => Err(format!("{} is {}, not from 1 to {high}", name(cell, columns), cells[cell])),
        None => Ok(()),
    }
}

/// Checks that the cells of a group have different values.
pub(super) fn check_different(
    cells: &[u32],
    group: &[usize],
    named: impl Fn() -> String,
) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    match group.iter().find(|cell| !seen.insert(cells[**cell])) {
        Some(cell) => Err(format!("{} has {} twice", named(), cells[*cell])),
        None => Ok(()),
    }
}

/// Checks that the cells keep the given numbers; zeros of `givens` are open.
pub(super) fn check_givens(cells: &[u32], givens: &[u32], columns: usize) -> Result<(), String> {
    match (0..cells.len()).find(|cell| givens[*cell] != 0 && givens[*cell] != cells[*cell]) {
        Some(cell) => {
            Err(format!("{} is given as {}, not {}", name(cell, columns), givens[cell], cells[cell]))
        }
        None => Ok(()),
    }
}

/// The solution with all cells but the kept ones emptied.
pub(super) fn only(solution: &[u32], kept: &[usize]) -> Vec<u32> {
    let mut givens = vec![0; solution.len()];
    kept.iter().for_each(|cell| givens[*cell] = solution[*cell]);
    givens
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_is_read_as_it_is_written() {
        let cells = [1, 12, 3, 4, 5, 6];
        let written = text(&cells, 3, None);
        assert_eq!(written, "1 12 3\n4 5 6");
        assert_eq!(parse(&written, 2, 3), Ok(cells.to_vec()));
        assert_eq!(text(&[0, 2], 2, Some(0)), ". 2");
    }

    #[test]
    fn grids_of_another_shape_are_refused() {
        for answer in
            ["", "1 2\n3", "1 2\n3 4\n5 6", "1 2 3\n4 5", "1 2\n3 x", "1 2\n3 +4", "1 2\n3 4 # done"]
        {
            assert!(parse(answer, 2, 2).is_err(), "{answer:?}");
        }
    }

    #[test]
    fn cells_are_read_by_their_names() {
        assert_eq!(parse_cells("r1c2, R2C1", 2, 2), Ok(BTreeSet::from([1, 2])));
        assert_eq!(parse_cells("None", 2, 2), Ok(BTreeSet::new()));
        for answer in ["", "r1c3", "r0c1", "r1c1 r1c1", "r1c1 and r2c2", "r1c", "r99999999999c1", "r+1c1"] {
            assert!(parse_cells(answer, 2, 2).is_err(), "{answer:?}");
        }
    }

    #[test]
    fn neighbours_and_surroundings_stay_within_the_grid() {
        assert_eq!(neighbours(0, 2, 3).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(neighbours(4, 2, 3).collect::<Vec<_>>(), [1, 3, 5]);
        assert_eq!(surroundings(1, 2, 3).collect::<Vec<_>>(), [0, 2, 3, 4, 5]);
        assert_eq!(surroundings(0, 1, 1).count(), 0);
    }
}
