// The largest of each row of logits, the lower id among equals, and its log-probability. The parts of a row go
// to several blocks; one more kernel joins them.

struct Best {
    float logit;
    int token;
};

// What is known of a part: the largest of its logits that can be sampled, and the logarithm of the sum of e^logit over
// all of them.
struct Part {
    Best best;
    double sum;
};

__device__ __forceinline__ Best better(Best a, Best b) {
    return b.logit > a.logit || (b.logit == a.logit && b.token < a.token) ? b : a;
}

extern "C" __global__ void __launch_bounds__(512) greedy_parts(
    const float* logits, int vocabulary, int sampleable, Part* parts) {
    __shared__ Best bests[16];
    __shared__ float maxima[16];
    __shared__ double sums[16];
    wait_for_previous();
    let_next_start();
    const float* row = logits + i64(blockIdx.y) * vocabulary;
    int begin = i64(vocabulary) * blockIdx.x / gridDim.x, end = i64(vocabulary) * (blockIdx.x + 1) / gridDim.x;
    // What cannot be sampled counts for the sum, and so for the logit that it is taken relative to, alone.
    float largest = MINUS_INFINITY;
    Best best = {MINUS_INFINITY, 0x7fffffff};
#pragma unroll 4
    for (int i = begin + threadIdx.x; i < end; i += blockDim.x) {
        float logit = row[i];
        largest = fmaxf(largest, logit);
        if (i < sampleable) best = better(best, Best{logit, i});
    }
    largest = warp_max(largest);
    for (int lane = 16; lane > 0; lane >>= 1) {
        Best other = {__shfl_xor_sync(~0u, best.logit, lane), __shfl_xor_sync(~0u, best.token, lane)};
        best = better(best, other);
    }
    if (threadIdx.x % 32 == 0) bests[threadIdx.x / 32] = best, maxima[threadIdx.x / 32] = largest;
    __syncthreads();
    for (int i = 0; i < 16; ++i) largest = fmaxf(largest, maxima[i]);
    double sum = 0.0;
#pragma unroll 4
    for (int i = begin + threadIdx.x; i < end; i += blockDim.x) sum += double(expf(row[i] - largest));
    for (int lane = 16; lane > 0; lane >>= 1) sum += __shfl_xor_sync(~0u, sum, lane);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        double all = 0.0;
        for (int i = 0; i < 16; ++i) all += sums[i], best = better(best, bests[i]);
        double sum = largest > MINUS_INFINITY ? log(all) + double(largest) : double(MINUS_INFINITY);
        parts[blockIdx.y * gridDim.x + blockIdx.x] = {best, sum};
    }
}

// Joins the parts of a row, in order.
extern "C" __global__ void greedy_join(const Part* parts, int count, int* tokens, float* logprobs, int rows) {
    wait_for_previous();
    let_next_start();
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    parts += row * count;
    Best best = parts[0].best;
    double largest = parts[0].sum;
    for (int i = 1; i < count; ++i) best = better(best, parts[i].best), largest = fmax(largest, parts[i].sum);
    double sum = 0.0;
    for (int i = 0; i < count; ++i) sum += exp(parts[i].sum - largest);
    tokens[row] = best.token;
    logprobs[row] = float(double(best.logit) - largest - log(sum));
}
