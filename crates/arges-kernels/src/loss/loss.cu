// Log-probabilities of target tokens and entropies from rows of logits, a block a row; and gradients by the logits.

#if ACTIVATIONS_BF16
typedef bf16 A;
#else
typedef float A;
#endif

constexpr int THREADS = PART_WARPS * 32;
// Parts of a row whose shares are summed side by side, and logits of each that a thread holds where rows are short enough.
constexpr int SIDE_BY_SIDE = 4, HELD = 4;

// The same as `warp_max` of a value that is not NaN, in one step.
__device__ __forceinline__ float largest_of_warp(float x) {
    int bits = __float_as_int(x);
    bits = __reduce_max_sync(~0u, bits >= 0 ? bits : bits ^ 0x7fffffff);
    return __int_as_float(bits >= 0 ? bits : bits ^ 0x7fffffff);
}

__device__ __forceinline__ float add_rounded(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ double add_rounded(double a, double b) { return __dadd_rn(a, b); }

// Sums of four values over a warp, in lane l that of value l / 8, with the bits of `warp_sum`: every step adds the same
// pairs, but of two values that one lane need not keep, each goes to the lane that keeps it.
template <typename T> __device__ __forceinline__ T warp_sums(const T (&x)[SIDE_BY_SIDE]) {
    static_assert(SIDE_BY_SIDE == 4, "two steps part the values");
    bool upper = threadIdx.x & 16, odd = threadIdx.x & 8;
    T pair[2];
#pragma unroll
    for (int i = 0; i < 2; ++i)
        pair[i] = add_rounded(upper ? x[2 + i] : x[i], __shfl_xor_sync(~0u, upper ? x[i] : x[2 + i], 16));
    T sum = add_rounded(odd ? pair[1] : pair[0], __shfl_xor_sync(~0u, odd ? pair[0] : pair[1], 8));
#pragma unroll
    for (int step = 4; step > 0; step >>= 1) sum = add_rounded(sum, __shfl_xor_sync(~0u, sum, step));
    return sum;
}

// Writes the warp's shares of all parts, and of each the sum of x e^x, x being the distance from its largest logit.
// Returns whether it has seen a logit that is not finite and not the least. With ROW_HELD all reads of some parts are
// under way together, and logits are read once.
template <bool ROW_HELD>
__device__ __forceinline__ bool sum_shares(
    const float* logits, int vocab, ScaledSum (&shares)[ROW_PARTS][PART_WARPS], float (&weighted)[ROW_PARTS][PART_WARPS]) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    // A maximum takes no notice of NaN.
    bool bad = false;
    for (int first = 0; first < ROW_PARTS; first += SIDE_BY_SIDE) {
        float held[SIDE_BY_SIDE][HELD], largest[SIDE_BY_SIDE], product[SIDE_BY_SIDE] = {};
        double sum[SIDE_BY_SIDE] = {};
        auto for_logits = [&](int p, auto body) {
            int begin = part_begin(vocab, first + p) + threadIdx.x, end = part_begin(vocab, first + p + 1);
            if constexpr (ROW_HELD) {
#pragma unroll
                for (int k = 0; k < HELD; ++k) body(held[p][k], begin + k * THREADS, end);
            } else {
#pragma unroll 4
                for (int i = begin; i < end; i += THREADS) {
                    float logit = logits[i];
                    body(logit, i, end);
                }
            }
        };
        if constexpr (ROW_HELD) {
#pragma unroll
            for (int p = 0; p < SIDE_BY_SIDE; ++p)
                for_logits(p, [&](float& x, int i, int end) { x = i < end ? logits[i] : MINUS_INFINITY; });
        }
#pragma unroll
        for (int p = 0; p < SIDE_BY_SIDE; ++p) {
            float most = MINUS_INFINITY;
            for_logits(p, [&](float x, int, int) {
                most = fmaxf(most, x);
                bad |= !(x < -MINUS_INFINITY);
            });
            largest[p] = largest_of_warp(most);
        }
#pragma unroll
        for (int p = 0; p < SIDE_BY_SIDE; ++p) {
            // What is not there, and a token whose probability is 0, adds nothing, however far below it lies.
            for_logits(p, [&](float x, int, int) {
                float distance = __fsub_rn(x, largest[p]), e = expf(distance);
                product[p] = fmaf(e, fmaxf(distance, -1e30f), product[p]);
                sum[p] = __dadd_rn(sum[p], double(e));
            });
        }
        double own = warp_sums(sum);
        float own_product = warp_sums(product);
#pragma unroll
        for (int p = 0; p < SIDE_BY_SIDE; ++p) {
            if (lane != 8 * p) continue;
            shares[first + p][warp] = {largest[p], largest[p] > MINUS_INFINITY ? own : 0.0};
            weighted[first + p][warp] = own_product;
        }
    }
    return bad;
}

// What a row gives, to the block's first thread; the logarithm of the sum to all. The log-probability is that of sampling,
// to the bit. NaN where a logit is not finite.
struct Score {
    float logprob, entropy, log_sum;
};

__device__ __forceinline__ Score score_row(const float* logits, int target, int vocab) {
    static_assert(ROW_PARTS == PART_WARPS, "each warp joins the shares of a part");
    __shared__ ScaledSum shares[ROW_PARTS][PART_WARPS], parts[ROW_PARTS];
    __shared__ float weighted[ROW_PARTS][PART_WARPS];
    __shared__ double terms[PART_WARPS], whole;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    bool bad = vocab <= ROW_PARTS * THREADS * HELD ? sum_shares<true>(logits, vocab, shares, weighted)
                                                   : sum_shares<false>(logits, vocab, shares, weighted);
    bad = __syncthreads_or(bad);
    ScaledSum part = join_sums(shares[warp], PART_WARPS);
    if (lane == 0) parts[warp] = part;
    __syncthreads();
    if (warp == 0) {
        double all = log_of(join_sums(parts, ROW_PARTS));
        if (lane == 0) whole = bad ? double(nanf("")) : all;
    }
    __syncthreads();
    double log_sum = whole;
    // The entropy: the sum of p (log_sum - logit).
    double term = 0.0;
    if (lane < PART_WARPS && shares[warp][lane].largest > MINUS_INFINITY) {
        ScaledSum share = shares[warp][lane];
        double below = log_sum - double(share.largest);
        term = exp(-below) * (below * share.sum - double(weighted[warp][lane]));
    }
    term = warp_sum(term);
    if (lane == 0) terms[warp] = term;
    __syncthreads();
    if (threadIdx.x > 0) return {0.0f, 0.0f, float(log_sum)};
    double entropy = 0.0;
    for (int i = 0; i < PART_WARPS; ++i) entropy += terms[i];
    return {logprob_of(logits[target], log_sum), float(entropy), float(log_sum)};
}

__device__ __forceinline__ void store_gradients(float* to, float4 x) {
    asm volatile("st.global.cs.v4.f32 [%0], {%1,%2,%3,%4};" ::"l"(to), "f"(x.x), "f"(x.y), "f"(x.z), "f"(x.w) : "memory");
}
__device__ __forceinline__ void store_gradients(bf16* to, float4 x) {
    asm volatile("st.global.cs.v2.b32 [%0], {%1,%2};" ::"l"(to), "r"(pack_bf16(x.x, x.y)), "r"(pack_bf16(x.z, x.w)) : "memory");
}

// e^x for x up to 0, as exact as it is stored.
__device__ __forceinline__ float power_of_e(float x) {
#if ACTIVATIONS_BF16
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(x) : "f"(x * 1.4426950408889634f));
    return x;
#else
    return expf(x);
#endif
}

// out = weight (1[i = target] - p_i) for a row; `out` may be `logits`. Written past the cache, so that logits that were
// just read are found there.
__device__ __forceinline__ void row_gradients(
    const float* logits, int target, float log_sum, float weight, A* out, int vocab) {
    auto gradient = [&](float logit) { return -weight * power_of_e(logit - log_sum); };
    if (vocab % 4 != 0) {
        for (int i = threadIdx.x; i < vocab; i += THREADS)
            out[i] = from_float<A>(gradient(logits[i]) + (i == target ? weight : 0.0f));
        return;
    }
#pragma unroll 4
    for (int i = 4 * threadIdx.x; i < vocab; i += 4 * THREADS) {
        float4 x = *reinterpret_cast<const float4*>(logits + i);
        x = make_float4(gradient(x.x), gradient(x.y), gradient(x.z), gradient(x.w));
        if (target / 4 == i / 4) {
            x.x += target == i ? weight : 0.0f, x.y += target == i + 1 ? weight : 0.0f;
            x.z += target == i + 2 ? weight : 0.0f, x.w += target == i + 3 ? weight : 0.0f;
        }
        store_gradients(out + i, x);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) score(
    const float* logits, const int* targets, float* logprobs, float* entropies, float* log_sums, int vocab) {
    wait_for_previous();
    let_next_start();
    int row = blockIdx.x;
    Score score = score_row(logits + i64(row) * vocab, targets[row], vocab);
    if (threadIdx.x > 0) return;
    logprobs[row] = score.logprob, entropies[row] = score.entropy, log_sums[row] = score.log_sum;
}

// Gradients by rows that were scored, a weight for each.
extern "C" __global__ void __launch_bounds__(THREADS) score_backward(
    const float* logits, const int* targets, const float* log_sums, const float* weights, A* out, int vocab) {
    wait_for_previous();
    let_next_start();
    i64 row = blockIdx.x, at = row * vocab;
    row_gradients(logits + at, targets[row], log_sums[row], weights[row], out + at, vocab);
}

// Both at once, for a weight that is known before: logits come from memory once.
extern "C" __global__ void __launch_bounds__(THREADS, 2) score_and_backward(
    const float* logits, const int* targets, float* logprobs, float* entropies, float weight, A* out, int vocab) {
    wait_for_previous();
    let_next_start();
    i64 row = blockIdx.x, at = row * vocab;
    int target = targets[row];
    Score score = score_row(logits + at, target, vocab);
    if (threadIdx.x == 0) logprobs[row] = score.logprob, entropies[row] = score.entropy;
    row_gradients(logits + at, target, score.log_sum, weight, out + at, vocab);
}
