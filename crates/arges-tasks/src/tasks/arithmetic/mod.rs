//! Arithmetic, worked out digit by digit.

pub(crate) mod addition;
pub(crate) mod chained_arithmetic;
pub(crate) mod columns;
pub(crate) mod multiplication;
pub(crate) mod subtraction;
