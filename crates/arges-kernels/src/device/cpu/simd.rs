//! One vector abstraction, so that a kernel is written once and compiled for each instruction set.
//!
//! Kernels are generic over [`Simd`], marked `#[inline(always)]`, and entered through [`simd_dispatch!`], whose
//! wrappers carry the `#[target_feature]` attributes. Every lane is computed by the same sequence of
//! operations, so a result depends on the instruction set but never on how work was divided.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// A vector of `f32` lanes.
///
/// # Safety
/// All methods need the instruction set of the implementing type; loads and stores need `LANES` valid elements.
#[allow(clippy::missing_safety_doc)]
pub(crate) trait Simd: Copy {
    type F: Copy;
    const LANES: usize;
    /// Rows of a register tile of small products, see `lightning::cpu`.
    const TILE_ROWS: usize;

    unsafe fn splat(x: f32) -> Self::F;
    unsafe fn load(p: *const f32) -> Self::F;
    unsafe fn store(p: *mut f32, x: Self::F);
    /// `LANES` bf16 values, widened.
    unsafe fn load_bf16(p: *const u16) -> Self::F;
    /// `2 * LANES` bf16 values as (those at even places, those at odd places).
    unsafe fn load_bf16_pairs(p: *const u16) -> (Self::F, Self::F);
    /// `2 * LANES` values from `p`, each two rounded to a pair of bf16 (the first in the low half), to
    /// `out[i * stride]`.
    unsafe fn store_bf16_pairs(p: *const f32, out: *mut u32, stride: usize);
    /// Asks for the two vectors at `p`, an address that need not be valid.
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        #[cfg(target_arch = "x86_64")]
        for offset in (0..8 * Self::LANES).step_by(64) {
            // SAFETY: a prefetch reads nothing.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(p.wrapping_add(offset).cast()) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = p;
    }
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, fused where the instruction set can.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `2^n` where `t = n + EXP_MAGIC` in f32, n integer in -126..=127.
    unsafe fn pow2(t: Self::F) -> Self::F;
    /// `x` where `a >= b`, else 0.
    unsafe fn keep_ge(a: Self::F, b: Self::F, x: Self::F) -> Self::F;
}

/// 1.5 * 2^23: adding it to a small f32 rounds that to an integer, kept in the low bits.
const EXP_MAGIC: f32 = 12_582_912.0;

/// e^x to about 1 unit in the last place; 0 below -87.3 (no denormals), finite at the top (x is cut at 88.3).
#[inline(always)]
pub(crate) unsafe fn exp<S: Simd>(x: S::F) -> S::F {
    // SAFETY: the caller runs with the instruction set of S.
    unsafe {
        let clamped = S::max(S::min(x, S::splat(88.3)), S::splat(-87.3));
        let t = S::fma(clamped, S::splat(std::f32::consts::LOG2_E), S::splat(EXP_MAGIC));
        let n = S::sub(t, S::splat(EXP_MAGIC));
        // ln 2 in two parts: the first has few bits, so n times it is exact.
        let r = S::fma(n, S::splat(-0.693_359_4), clamped);
        let r = S::fma(n, S::splat(2.121_944_4e-4), r);
        // Taylor's polynomial; |r| <= ln2 / 2, so the first term left out is below 6e-9.
        let mut p = S::splat(1.0 / 5040.0);
        for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            p = S::fma(p, r, S::splat(c));
        }
        S::keep_ge(x, S::splat(-87.3), S::mul(p, S::pow2(t)))
    }
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub(crate) unsafe fn sigmoid<S: Simd>(x: S::F) -> S::F {
    // SAFETY: the caller runs with the instruction set of S.
    unsafe {
        let one = S::splat(1.0);
        S::div(one, S::add(one, exp::<S>(S::sub(S::splat(0.0), x))))
    }
}

/// x * sigmoid(x).
#[inline(always)]
pub(crate) unsafe fn silu<S: Simd>(x: S::F) -> S::F {
    // SAFETY: the caller runs with the instruction set of S.
    unsafe { S::mul(x, sigmoid::<S>(x)) }
}

/// Adds up the lanes, pairwise in a fixed order.
#[inline(always)]
pub(crate) unsafe fn sum<S: Simd>(x: S::F) -> f32 {
    // SAFETY: the caller runs with the instruction set of S; the array holds LANES (at most 16) elements.
    unsafe { fold::<S>(x, |a, b| a + b) }
}

/// The largest lane.
#[inline(always)]
pub(crate) unsafe fn largest<S: Simd>(x: S::F) -> f32 {
    // SAFETY: the caller runs with the instruction set of S.
    unsafe { fold::<S>(x, f32::max) }
}

#[inline(always)]
unsafe fn fold<S: Simd>(x: S::F, combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; 16];
    // SAFETY: LANES is at most 16.
    unsafe { S::store(lanes.as_mut_ptr(), x) };
    let mut width = S::LANES;
    while width > 1 {
        width /= 2;
        for i in 0..width {
            lanes[i] = combine(lanes[i], lanes[i + width]);
        }
    }
    lanes[0]
}

/// Widens one bf16 value.
#[inline(always)]
pub(crate) fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Rounds to bf16, to nearest even; NaN stays NaN.
#[inline(always)]
pub(crate) fn f32_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    if x.is_nan() { 0x7fc0 } else { rounded as u16 }
}

/// Portable vectors.
#[derive(Clone, Copy)]
pub(crate) struct Plain;

#[allow(clippy::needless_range_loop)]
impl Simd for Plain {
    type F = [f32; 8];
    const LANES: usize = 8;
    const TILE_ROWS: usize = 2;

    #[inline(always)]
    unsafe fn splat(x: f32) -> [f32; 8] {
        [x; 8]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> [f32; 8] {
        // SAFETY: 8 valid elements by the trait's contract.
        unsafe { p.cast::<[f32; 8]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: [f32; 8]) {
        // SAFETY: as for `load`.
        unsafe { p.cast::<[f32; 8]>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> [f32; 8] {
        // SAFETY: as for `load`.
        let bits = unsafe { p.cast::<[u16; 8]>().read_unaligned() };
        bits.map(bf16_to_f32)
    }
    #[inline(always)]
    unsafe fn load_bf16_pairs(p: *const u16) -> ([f32; 8], [f32; 8]) {
        // SAFETY: 16 valid elements by the trait's contract.
        let pairs = unsafe { p.cast::<[u32; 8]>().read_unaligned() };
        (pairs.map(|x| f32::from_bits(x << 16)), pairs.map(|x| f32::from_bits(x & 0xffff_0000)))
    }
    #[inline(always)]
    unsafe fn store_bf16_pairs(p: *const f32, out: *mut u32, stride: usize) {
        for i in 0..Self::LANES {
            // SAFETY: the caller gives 2 * LANES values and LANES places.
            unsafe {
                let (low, high) = (f32_to_bf16(*p.add(2 * i)), f32_to_bf16(*p.add(2 * i + 1)));
                *out.add(i * stride) = u32::from(low) | u32::from(high) << 16;
            }
        }
    }
    #[inline(always)]
    unsafe fn add(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn div(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i] / b[i])
    }
    #[inline(always)]
    unsafe fn max(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn min(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn fma(a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn pow2(t: [f32; 8]) -> [f32; 8] {
        t.map(|t| f32::from_bits((t.to_bits() << 23).wrapping_add(0x3f80_0000)))
    }
    #[inline(always)]
    unsafe fn keep_ge(a: [f32; 8], b: [f32; 8], x: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| if a[i] < b[i] { 0.0 } else { x[i] })
    }
}

/// AVX2 with FMA.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

// SAFETY (of every block below): the trait's contract gives the instruction set and valid addresses.
#[cfg(target_arch = "x86_64")]
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Avx2 {
    type F = __m256;
    const LANES: usize = 8;
    const TILE_ROWS: usize = 4;

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m256 {
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: __m256) {
        unsafe { _mm256_storeu_ps(p, x) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> __m256 {
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn load_bf16_pairs(p: *const u16) -> (__m256, __m256) {
        unsafe {
            let pairs = _mm256_loadu_si256(p.cast());
            let odd = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000_u32.cast_signed()));
            (_mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs)), _mm256_castsi256_ps(odd))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16_pairs(p: *const f32, out: *mut u32, stride: usize) {
        for i in 0..Self::LANES {
            unsafe {
                let (low, high) = (f32_to_bf16(*p.add(2 * i)), f32_to_bf16(*p.add(2 * i + 1)));
                *out.add(i * stride) = u32::from(low) | u32::from(high) << 16;
            }
        }
    }
    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn pow2(t: __m256) -> __m256 {
        unsafe {
            let n = _mm256_slli_epi32::<23>(_mm256_castps_si256(t));
            _mm256_castsi256_ps(_mm256_add_epi32(n, _mm256_set1_epi32(0x3f80_0000)))
        }
    }
    #[inline(always)]
    unsafe fn keep_ge(a: __m256, b: __m256, x: __m256) -> __m256 {
        unsafe { _mm256_and_ps(x, _mm256_cmp_ps::<_CMP_NLT_UQ>(a, b)) }
    }
}

/// AVX-512 F, BW, DQ, VL.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(crate) struct Avx512;

// SAFETY (of every block below): the trait's contract gives the instruction set and valid addresses.
#[cfg(target_arch = "x86_64")]
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Avx512 {
    type F = __m512;
    const LANES: usize = 16;
    const TILE_ROWS: usize = 6;

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: __m512) {
        unsafe { _mm512_storeu_ps(p, x) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> __m512 {
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn load_bf16_pairs(p: *const u16) -> (__m512, __m512) {
        unsafe {
            let pairs = _mm512_loadu_si512(p.cast());
            let odd = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32.cast_signed()));
            (_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)), _mm512_castsi512_ps(odd))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16_pairs(p: *const f32, out: *mut u32, stride: usize) {
        unsafe {
            let round = |x: __m512| {
                let bits = _mm512_castps_si512(x);
                let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
                let sum = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
                let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
                _mm512_mask_mov_epi32(sum, nan, _mm512_set1_epi32(0x7fc0_0000))
            };
            let (first, second) = (round(_mm512_loadu_ps(p)), round(_mm512_loadu_ps(p.add(16))));
            // The upper halves of both, in order.
            let halves = _mm512_set_epi16(
                63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27, 25, 23, 21, 19,
                17, 15, 13, 11, 9, 7, 5, 3, 1,
            );
            let pairs = _mm512_permutex2var_epi16(first, halves, second);
            if stride == 1 {
                _mm512_storeu_si512(out.cast(), pairs);
            } else {
                let mut words = [0u32; 16];
                _mm512_storeu_si512(words.as_mut_ptr().cast(), pairs);
                for (i, word) in words.into_iter().enumerate() {
                    *out.add(i * stride) = word;
                }
            }
        }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn pow2(t: __m512) -> __m512 {
        unsafe {
            let n = _mm512_slli_epi32::<23>(_mm512_castps_si512(t));
            _mm512_castsi512_ps(_mm512_add_epi32(n, _mm512_set1_epi32(0x3f80_0000)))
        }
    }
    #[inline(always)]
    unsafe fn keep_ge(a: __m512, b: __m512, x: __m512) -> __m512 {
        unsafe { _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(a, b), x) }
    }
}

/// Defines `fn name(isa, args)`, which runs the generic kernel `name::<S>(args)` compiled for `isa`.
///
/// The function is unsafe as the kernel is; that the instruction set exists follows from how an `Isa` is made.
macro_rules! simd_dispatch {
    ($vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) => $kernel:ident) => {
        #[allow(clippy::too_many_arguments)]
        $vis unsafe fn $name(isa: $crate::device::cpu::Isa, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            {
                use $crate::device::cpu::simd::{Avx2, Avx512};

                #[allow(clippy::too_many_arguments)]
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                unsafe fn avx512($($arg: $ty),*) {
                    // SAFETY: the caller's promise, passed on; the features are enabled here.
                    unsafe { $kernel::<Avx512>($($arg),*) }
                }

                #[allow(clippy::too_many_arguments)]
                #[target_feature(enable = "avx2,fma")]
                unsafe fn avx2($($arg: $ty),*) {
                    // SAFETY: the caller's promise, passed on; the features are enabled here.
                    unsafe { $kernel::<Avx2>($($arg),*) }
                }

                if isa >= $crate::device::cpu::Isa::Avx512 {
                    // SAFETY: the caller's promise, and an `Isa` in use is one that this machine has.
                    return unsafe { avx512($($arg),*) };
                }
                if isa == $crate::device::cpu::Isa::Avx2 {
                    // SAFETY: as above.
                    return unsafe { avx2($($arg),*) };
                }
            }
            let _ = isa;
            // SAFETY: the caller's promise; plain code needs no instruction set.
            unsafe { $kernel::<$crate::device::cpu::simd::Plain>($($arg),*) }
        }
    };
}
pub(crate) use simd_dispatch;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cpu::Isa;

    #[inline(always)]
    unsafe fn exp_all<S: Simd>(x: &[f32], out: &mut [f32]) {
        for (x, out) in x.chunks_exact(S::LANES).zip(out.chunks_exact_mut(S::LANES)) {
            // SAFETY: chunks hold LANES elements.
            unsafe { S::store(out.as_mut_ptr(), exp::<S>(S::load(x.as_ptr()))) }
        }
    }
    simd_dispatch!(fn exp_on(x: &[f32], out: &mut [f32]) => exp_all);

    #[test]
    fn exp_is_accurate_over_its_range_on_every_instruction_set() {
        let x: Vec<f32> = (0..32_000).map(|i| -87.0 + i as f32 * (175.0 / 32_000.0)).collect();
        for isa in Isa::available() {
            let mut out = vec![0.0; x.len()];
            // SAFETY: the slices are equally long.
            unsafe { exp_on(isa, &x, &mut out) };
            for (x, y) in x.iter().zip(&out) {
                let expected = f64::from(*x).exp();
                let error = (f64::from(*y) - expected).abs() / expected;
                assert!(error < 3e-7, "{isa}: exp({x}) = {y}, relative error {error:e}");
            }
        }
    }

    #[test]
    fn exp_of_minus_infinity_is_zero() {
        for isa in Isa::available() {
            let mut out = [1.0; 16];
            // SAFETY: the slices are equally long.
            unsafe { exp_on(isa, &[f32::NEG_INFINITY; 16], &mut out) };
            assert_eq!(out, [0.0; 16], "{isa}");
        }
    }

    #[test]
    fn bf16_rounding_agrees_with_half() {
        for bits in (0..=u32::MAX).step_by(65_521) {
            let x = f32::from_bits(bits);
            let expected = half::bf16::from_f32(x);
            let got = f32_to_bf16(x);
            assert!(expected.is_nan() && bf16_to_f32(got).is_nan() || expected.to_bits() == got, "{x}");
        }
    }
}
