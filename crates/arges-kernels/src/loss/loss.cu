// Log-probabilities of target tokens and entropies from rows of logits, a block a row; and gradients by the logits.

#if ACTIVATIONS_BF16
typedef bf16 A;
#else
typedef float A;
#endif

constexpr int THREADS = PART_WARPS * 32;

// The log-probability is that of sampling, to the bit. NaN where a logit is not finite.
extern "C" __global__ void __launch_bounds__(THREADS) score(
    const float* logits, const int* targets, float* logprobs, float* entropies, float* log_sums, int vocab) {
    static_assert(ROW_PARTS == PART_WARPS, "each warp joins the shares of a part");
    __shared__ ScaledSum shares[ROW_PARTS][PART_WARPS], parts[ROW_PARTS];
    // Of each share the sum of x e^x, x being the distance from its largest logit.
    __shared__ float weighted[ROW_PARTS][PART_WARPS];
    __shared__ double terms[PART_WARPS];
    wait_for_previous();
    let_next_start();
    i64 row = blockIdx.x;
    logits += row * vocab;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    // A maximum takes no notice of NaN.
    bool bad = false;
    for (int part = 0; part < ROW_PARTS; ++part) {
        int begin = part_begin(vocab, part), end = part_begin(vocab, part + 1);
        float largest = MINUS_INFINITY, sum = 0.0f;
#pragma unroll 4
        for (int i = begin + threadIdx.x; i < end; i += THREADS) {
            largest = fmaxf(largest, logits[i]);
            bad |= !(logits[i] < -MINUS_INFINITY);
        }
        // A token whose probability is 0 adds nothing, however far below it lies.
        auto weigh = [&](float x, float p) { sum = fmaf(p, fmaxf(x, -1e30f), sum); };
        ScaledSum share = share_sum(logits, begin, end, warp_max(largest), weigh);
        sum = warp_sum(sum);
        if (lane == 0) shares[part][warp] = share, weighted[part][warp] = sum;
    }
    bad = __syncthreads_or(bad);
    ScaledSum part = join_sums(shares[warp], PART_WARPS);
    if (lane == 0) parts[warp] = part;
    __syncthreads();
    double log_sum = bad ? double(nanf("")) : log_of(join_sums(parts, ROW_PARTS));
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
    if (threadIdx.x > 0) return;
    double entropy = 0.0;
    for (int i = 0; i < PART_WARPS; ++i) entropy += terms[i];
    log_sums[row] = float(log_sum);
    logprobs[row] = logprob_of(logits[targets[row]], log_sum);
    entropies[row] = float(entropy);
}

// out = weights[row] (1[i = target] - p_i); `out` may be `logits`.
extern "C" __global__ void __launch_bounds__(THREADS) score_backward(
    const float* logits, const int* targets, const float* log_sums, const float* weights, A* out, int vocab) {
    wait_for_previous();
    let_next_start();
    i64 row = blockIdx.x;
    float log_sum = log_sums[row], weight = weights[row];
    int target = targets[row];
    logits += row * vocab, out += row * vocab;
    auto gradient = [&](float logit, int i) { return weight * ((i == target ? 1.0f : 0.0f) - expf(logit - log_sum)); };
    if (vocab % 4 != 0) {
        for (int i = threadIdx.x; i < vocab; i += THREADS) out[i] = from_float<A>(gradient(logits[i], i));
        return;
    }
#pragma unroll 4
    for (int i = 4 * threadIdx.x; i < vocab; i += 4 * THREADS) {
        float4 x = *reinterpret_cast<const float4*>(logits + i);
        x = make_float4(gradient(x.x, i), gradient(x.y, i + 1), gradient(x.z, i + 2), gradient(x.w, i + 3));
#if ACTIVATIONS_BF16
        *reinterpret_cast<uint2*>(out + i) = make_uint2(pack_bf16(x.x, x.y), pack_bf16(x.z, x.w));
#else
        *reinterpret_cast<float4*>(out + i) = x;
#endif
    }
}
