//! The tasks, one file each.

pub(crate) mod arithmetic;
pub(crate) mod expression;
pub(crate) mod language;
pub(crate) mod programs;
pub(crate) mod puzzles;
pub(crate) mod worlds;
