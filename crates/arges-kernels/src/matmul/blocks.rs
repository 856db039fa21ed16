//! Products of small blocks that lie in slices: [`strided_product`] with its bounds checked and one compiled form
//! for each instruction set, for code that does many products and is not compiled for each itself.

use super::small::{Block, Start, Strided, strided_product};
use crate::device::cpu::Isa;
use crate::device::cpu::simd::{Simd, simd_dispatch};

/// A matrix in a slice.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    data: &'a [f32],
    /// Elements from one row to the next.
    stride: usize,
    /// Elements from one column to the next.
    step: usize,
}

impl<'a> View<'a> {
    /// A row-major matrix whose rows begin `stride` elements apart.
    pub(crate) fn rows(data: &'a [f32], stride: usize) -> Self {
        Self { data, stride, step: 1 }
    }

    /// The transpose of such a matrix.
    pub(crate) fn columns(data: &'a [f32], stride: usize) -> Self {
        Self { data, stride: 1, step: stride }
    }

    fn holds(&self, rows: usize, columns: usize) -> bool {
        rows * columns == 0 || (rows - 1) * self.stride + (columns - 1) * self.step < self.data.len()
    }
}

/// A row-major matrix to write.
pub(crate) struct ViewMut<'a> {
    data: &'a mut [f32],
    stride: usize,
}

impl<'a> ViewMut<'a> {
    /// Rows begin `stride` elements apart.
    pub(crate) fn rows(data: &'a mut [f32], stride: usize) -> Self {
        Self { data, stride }
    }
}

/// What the sums of a product start from.
#[derive(Clone, Copy)]
pub(crate) enum Initial<'a> {
    /// Zero.
    Zero,
    /// What the output holds.
    Kept,
    /// What the output holds, times a factor.
    Scaled(f32),
    /// What the output holds, row `r` times factor `r`.
    RowsScaled(&'a [f32]),
}

/// `out[m, n] = initial + left[m, k] · right[k, n]`, every element one chain of multiply-adds in ascending `k`.
/// `n` is a multiple of 16 and `right` row-major.
///
/// # Panics
/// When a matrix is too small, or `n` or `right` is not as said.
pub(crate) fn product(
    isa: Isa,
    [m, n, k]: [usize; 3],
    left: View<'_>,
    right: View<'_>,
    out: ViewMut<'_>,
    initial: Initial<'_>,
) {
    assert!(n.is_multiple_of(16) && right.step == 1, "{n} columns, right-hand step {}", right.step);
    assert!(left.holds(m, k) && right.holds(k, n), "an operand is smaller than [{m}, {k}] · [{k}, {n}]");
    assert!(View::rows(out.data, out.stride).holds(m, n), "the output is smaller than [{m}, {n}]");
    let start = match &initial {
        Initial::Zero => Start::Zero,
        Initial::Kept => Start::Kept,
        Initial::Scaled(factor) => Start::Scaled { scales: factor, stride: 0 },
        Initial::RowsScaled(factors) => {
            assert!(factors.len() >= m, "{} factors for {m} rows", factors.len());
            Start::Scaled { scales: factors.as_ptr(), stride: 1 }
        }
    };
    let left = Strided { start: left.data.as_ptr(), stride: left.stride, step: left.step };
    let right = Block { start: right.data.as_ptr(), stride: right.stride };
    let out = Block { start: out.data.as_mut_ptr(), stride: out.stride };
    // SAFETY: the assertions above; the output is borrowed mutably, so it overlaps neither operand.
    unsafe { product_on(isa, [m, n, k], left, right, out, start) }
}

simd_dispatch!(
    fn product_on(
        dims: [usize; 3],
        left: Strided,
        right: Block<*const f32>,
        out: Block<*mut f32>,
        start: Start,
    ) => product_kernel
);

#[inline(always)]
unsafe fn product_kernel<S: Simd>(
    dims: [usize; 3],
    left: Strided,
    right: Block<*const f32>,
    out: Block<*mut f32>,
    start: Start,
) {
    // SAFETY: the caller's promise.
    unsafe { strided_product::<S, f32>(dims, left, right, out, start) }
}

/// Side of the squares that are transposed at once.
const SQUARE: usize = 8;

/// `to[c, r] = from[r, c]` for `[rows, columns]` of the row-major `from`; rows of `to` begin `to_stride` apart.
///
/// # Panics
/// When a slice is too small, or a size is not a multiple of 8.
pub(crate) fn transpose(
    isa: Isa,
    [rows, columns]: [usize; 2],
    from: View<'_>,
    to: &mut [f32],
    to_stride: usize,
) {
    assert!(rows.is_multiple_of(SQUARE) && columns.is_multiple_of(SQUARE), "[{rows}, {columns}]");
    assert!(from.step == 1 && from.holds(rows, columns), "the source is smaller than [{rows}, {columns}]");
    assert!(View::rows(to, to_stride).holds(columns, rows), "the target is smaller than [{columns}, {rows}]");
    // SAFETY: the kernel is safe code.
    unsafe { transpose_on(isa, [rows, columns], from.data, from.stride, to, to_stride) }
}

simd_dispatch!(
    fn transpose_on(
        sizes: [usize; 2],
        from: &[f32],
        from_stride: usize,
        to: &mut [f32],
        to_stride: usize,
    ) => transpose_kernel
);

#[inline(always)]
unsafe fn transpose_kernel<S: Simd>(
    [rows, columns]: [usize; 2],
    from: &[f32],
    from_stride: usize,
    to: &mut [f32],
    to_stride: usize,
) {
    for row in (0..rows).step_by(SQUARE) {
        for column in (0..columns).step_by(SQUARE) {
            let square: [[f32; SQUARE]; SQUARE] = std::array::from_fn(|r| {
                *from[(row + r) * from_stride + column..].first_chunk().expect("checked by the caller")
            });
            for c in 0..SQUARE {
                let target = &mut to[(column + c) * to_stride + row..][..SQUARE];
                target.copy_from_slice(&square.map(|values| values[c]));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    #[test]
    fn products_of_either_orientation_and_start_agree_with_f64_sums() {
        let mut random = Random::new(1);
        for isa in Isa::available() {
            for (m, n, k) in [(1, 16, 1), (5, 32, 7), (13, 80, 64), (64, 128, 33)] {
                let (left, right) = (random.normal(m * k), random.normal(k * n));
                let (before, factors) = (random.normal(m * n), random.normal(m));
                let starts = [
                    (Initial::Zero, vec![0.0; m]),
                    (Initial::Kept, vec![1.0; m]),
                    (Initial::Scaled(0.5), vec![0.5; m]),
                    (Initial::RowsScaled(&factors), factors.clone()),
                ];
                for (initial, factors) in starts {
                    let [mut by_rows, mut by_columns] = [before.clone(), before.clone()];
                    let (right_view, mut transposed) = (View::rows(&right, n), vec![0.0; k * m]);
                    let out = ViewMut::rows(&mut by_rows, n);
                    product(isa, [m, n, k], View::rows(&left, k), right_view, out, initial);
                    for (i, x) in left.iter().enumerate() {
                        transposed[i % k * m + i / k] = *x;
                    }
                    let out = ViewMut::rows(&mut by_columns, n);
                    product(isa, [m, n, k], View::columns(&transposed, m), right_view, out, initial);
                    assert_eq!(by_rows, by_columns, "{isa} [{m}, {n}, {k}]");
                    for (i, got) in by_rows.iter().enumerate() {
                        let sum: f64 = (0..k)
                            .map(|c| f64::from(left[i / n * k + c]) * f64::from(right[c * n + i % n]))
                            .sum();
                        let expected = f64::from(factors[i / n]) * f64::from(before[i]) + sum;
                        assert!((f64::from(*got) - expected).abs() < 1e-5, "{isa}: {got}, not {expected}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_transpose_moves_every_element_and_touches_nothing_else() {
        let from = Random::new(2).normal(24 * 40);
        for isa in Isa::available() {
            let mut to = vec![-1.0; 32 * 20];
            transpose(isa, [16, 32], View::rows(&from, 40), &mut to, 20);
            for (i, got) in to.iter().enumerate() {
                let (column, row) = (i / 20, i % 20);
                assert_eq!(*got, if row < 16 { from[row * 40 + column] } else { -1.0 }, "{isa}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "an operand is smaller than [3, 4] · [4, 16]")]
    fn an_operand_that_is_too_small_is_refused() {
        let (left, right, mut out) = ([0.0; 11], [0.0; 64], [0.0; 48]);
        let out = ViewMut::rows(&mut out, 16);
        product(Isa::Plain, [3, 16, 4], View::rows(&left, 4), View::rows(&right, 16), out, Initial::Zero);
    }
}
