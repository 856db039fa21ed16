// Log-probabilities of target tokens and entropies from rows of logits, a block a row; and gradients by the logits.

#if ACTIVATIONS_BF16
typedef bf16 A;
#else
typedef float A;
#endif

constexpr int THREADS = 512;

// The largest of a block's values, or the sums of two.
__device__ __forceinline__ float block_max(float x, float* partial) {
    x = warp_max(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
    __syncthreads();
    float most = partial[0];
    for (int i = 1; i < THREADS / 32; ++i) most = fmaxf(most, partial[i]);
    return most;
}

__device__ __forceinline__ float block_sum(float x, float* partial) {
    x = warp_sum(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0.0f;
    for (int i = 0; i < THREADS / 32; ++i) sum += partial[i];
    return sum;
}

// NaN where a logit is not finite.
extern "C" __global__ void __launch_bounds__(THREADS) score(
    const float* logits, const int* targets, float* logprobs, float* entropies, float* log_sums, int vocab) {
    __shared__ float partial[THREADS / 32];
    wait_for_previous();
    let_next_start();
    i64 row = blockIdx.x;
    logits += row * vocab;
    float most = MINUS_INFINITY;
    for (int i = threadIdx.x; i < vocab; i += THREADS) most = fmaxf(most, logits[i]);
    most = block_max(most, partial);
    float sum = 0.0f, weighted = 0.0f;
    for (int i = threadIdx.x; i < vocab; i += THREADS) {
        float x = logits[i] - most, p = expf(x);
        sum += p;
        // A token whose probability is 0 adds nothing, however far below it lies.
        weighted = fmaf(p, fmaxf(x, -1e30f), weighted);
    }
    sum = block_sum(sum, partial);
    weighted = block_sum(weighted, partial);
    if (threadIdx.x > 0) return;
    float log_sum = logf(sum);
    log_sums[row] = most + log_sum;
    logprobs[row] = logits[targets[row]] - most - log_sum;
    entropies[row] = log_sum - weighted / sum;
}

// out = weights[row] (1[i = target] - p_i); `out` may be `logits`.
extern "C" __global__ void __launch_bounds__(THREADS) score_backward(
    const float* logits, const int* targets, const float* log_sums, const float* weights, A* out, int vocab) {
    wait_for_previous();
    let_next_start();
    i64 row = blockIdx.x;
    float log_sum = log_sums[row], weight = weights[row];
    int target = targets[row];
    for (int i = threadIdx.x; i < vocab; i += THREADS) {
        float p = expf(logits[row * vocab + i] - log_sum);
        out[row * vocab + i] = from_float<A>(weight * ((i == target ? 1.0f : 0.0f) - p));
    }
}
