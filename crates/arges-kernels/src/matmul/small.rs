//! Products of small blocks that lie in cache, the inner step of both attentions.

use crate::device::cpu::simd::Simd;

/// The right-hand matrix of a small product: f32, or bf16 that is widened as it is read.
pub(crate) trait Operand: Copy {
    /// `LANES` elements from `p` on.
    ///
    /// # Safety
    /// They are valid, and the machine has the instruction set of `S`.
    unsafe fn load<S: Simd>(p: *const Self) -> S::F;
}

impl Operand for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const f32) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { S::load(p) }
    }
}

impl Operand for u16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u16) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { S::load_bf16(p) }
    }
}

/// A row-major block in memory.
#[derive(Clone, Copy)]
pub(crate) struct Block<T> {
    pub(crate) start: T,
    /// Elements from one row to the next.
    pub(crate) stride: usize,
}

impl<T> Block<*const T> {
    /// The block from row `rows` on.
    ///
    /// # Safety
    /// It has more than `rows` rows.
    #[inline(always)]
    pub(crate) unsafe fn skip(self, rows: usize) -> Self {
        // SAFETY: the caller's promise.
        Self { start: unsafe { self.start.add(rows * self.stride) }, ..self }
    }
}

/// A left-hand matrix in memory, read element by element: row-major, or the transpose of such a one.
#[derive(Clone, Copy)]
pub(crate) struct Strided {
    pub(crate) start: *const f32,
    /// Elements from one row to the next.
    pub(crate) stride: usize,
    /// Elements from one column to the next.
    pub(crate) step: usize,
}

impl Strided {
    /// # Safety
    /// It has more than `rows` rows.
    #[inline(always)]
    unsafe fn skip(self, rows: usize) -> Self {
        // SAFETY: the caller's promise.
        Self { start: unsafe { self.start.add(rows * self.stride) }, ..self }
    }
}

/// What the sums start from.
#[derive(Clone, Copy)]
pub(crate) enum Start {
    /// Zero.
    Zero,
    /// What the output holds.
    Kept,
    /// What the output holds, row `r` times `scales[r * stride]`.
    Scaled { scales: *const f32, stride: usize },
}

/// `out[m, n] = start + a[m, k] · b[k, n]`, every element one chain of multiply-adds in ascending `k`.
///
/// # Safety
/// The blocks hold that many elements, `n` is a multiple of 16, `out` overlaps neither `a` nor `b`, and the
/// machine has the instruction set of `S`.
#[inline(always)]
pub(crate) unsafe fn small_product<S: Simd, B: Operand>(
    [m, n, k]: [usize; 3],
    a: Block<*const f32>,
    b: Block<*const B>,
    out: Block<*mut f32>,
    start: Start,
) {
    let a = Strided { start: a.start, stride: a.stride, step: 1 };
    // SAFETY: the caller's promise.
    unsafe { strided_product::<S, B>([m, n, k], a, b, out, start) }
}

/// [`small_product`] with any left-hand matrix.
///
/// # Safety
/// As for [`small_product`].
#[inline(always)]
pub(crate) unsafe fn strided_product<S: Simd, B: Operand>(
    [m, n, k]: [usize; 3],
    a: Strided,
    b: Block<*const B>,
    out: Block<*mut f32>,
    start: Start,
) {
    // SAFETY: the tiles cover the output once and stay within it.
    unsafe {
        let mut row = 0;
        while row < m {
            let rows = (m - row).min(S::TILE_ROWS);
            let a = a.skip(row);
            let out = Block { start: out.start.add(row * out.stride), ..out };
            let start = match start {
                Start::Zero | Start::Kept => start,
                Start::Scaled { scales, stride } => {
                    Start::Scaled { scales: scales.add(row * stride), stride }
                }
            };
            match rows {
                1 => strip::<S, B, 1>(n, k, a, b, out, start),
                2 => strip::<S, B, 2>(n, k, a, b, out, start),
                3 if S::TILE_ROWS > 2 => strip::<S, B, 3>(n, k, a, b, out, start),
                4 if S::TILE_ROWS > 2 => strip::<S, B, 4>(n, k, a, b, out, start),
                5 if S::TILE_ROWS > 4 => strip::<S, B, 5>(n, k, a, b, out, start),
                6 if S::TILE_ROWS > 4 => strip::<S, B, 6>(n, k, a, b, out, start),
                _ => unreachable!("tiles of {rows} rows"),
            }
            row += rows;
        }
    }
}

#[inline(always)]
unsafe fn strip<S: Simd, B: Operand, const M: usize>(
    n: usize,
    k: usize,
    a: Strided,
    b: Block<*const B>,
    out: Block<*mut f32>,
    start: Start,
) {
    // SAFETY: as for `small_product`.
    unsafe {
        let mut column = 0;
        if S::LANES == 16 {
            while column + 4 * S::LANES <= n {
                tile::<S, B, M, 4>(k, a, b, out, start, column);
                column += 4 * S::LANES;
            }
        }
        while column + 2 * S::LANES <= n {
            tile::<S, B, M, 2>(k, a, b, out, start, column);
            column += 2 * S::LANES;
        }
        while column < n {
            tile::<S, B, M, 1>(k, a, b, out, start, column);
            column += S::LANES;
        }
    }
}

#[inline(always)]
unsafe fn tile<S: Simd, B: Operand, const M: usize, const V: usize>(
    k: usize,
    a: Strided,
    b: Block<*const B>,
    out: Block<*mut f32>,
    start: Start,
    column: usize,
) {
    // SAFETY: as for `small_product`.
    unsafe {
        let mut sums = [[S::splat(0.0); V]; M];
        if !matches!(start, Start::Zero) {
            for (r, sums) in sums.iter_mut().enumerate() {
                for (v, sum) in sums.iter_mut().enumerate() {
                    *sum = S::load(out.start.add(r * out.stride + column + v * S::LANES));
                }
            }
        }
        if let Start::Scaled { scales, stride } = start {
            for (r, sums) in sums.iter_mut().enumerate() {
                let scale = S::splat(*scales.add(r * stride));
                for sum in sums {
                    *sum = S::mul(*sum, scale);
                }
            }
        }
        let b_start = b.start.add(column);
        for i in 0..k {
            let mut right = [S::splat(0.0); V];
            for (v, right) in right.iter_mut().enumerate() {
                *right = B::load::<S>(b_start.add(i * b.stride + v * S::LANES));
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let left = S::splat(*a.start.add(r * a.stride + i * a.step));
                for (sum, right) in sums.iter_mut().zip(right) {
                    *sum = S::fma(left, right, *sum);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                S::store(out.start.add(r * out.stride + column + v * S::LANES), *sum);
            }
        }
    }
}
