// The largest of each row of logits, the lower id among equals, and its log-probability. A block a row.

struct Best {
    float logit;
    int token;
};

__device__ __forceinline__ Best better(Best a, Best b) {
    return b.logit > a.logit || (b.logit == a.logit && b.token < a.token) ? b : a;
}

extern "C" __global__ void __launch_bounds__(1024) greedy(
    const float* logits, int vocabulary, int sampleable, int* tokens, float* logprobs) {
    __shared__ Best bests[32];
    __shared__ double sums[32];
    wait_for_previous();
    let_next_start();
    const float* row = logits + i64(blockIdx.x) * vocabulary;
    Best best = {MINUS_INFINITY, 0x7fffffff};
    for (int i = threadIdx.x; i < sampleable; i += blockDim.x) best = better(best, Best{row[i], i});
    for (int lane = 16; lane > 0; lane >>= 1) {
        Best other = {__shfl_xor_sync(~0u, best.logit, lane), __shfl_xor_sync(~0u, best.token, lane)};
        best = better(best, other);
    }
    if (threadIdx.x % 32 == 0) bests[threadIdx.x / 32] = best;
    __syncthreads();
    best = bests[0];
    for (int i = 1; i < 32; ++i) best = better(best, bests[i]);
    double sum = 0.0;
    for (int i = threadIdx.x; i < vocabulary; i += blockDim.x) sum += double(expf(row[i] - best.logit));
    for (int lane = 16; lane > 0; lane >>= 1) sum += __shfl_xor_sync(~0u, sum, lane);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        double all = 0.0;
        for (int i = 0; i < 32; ++i) all += sums[i];
        tokens[blockIdx.x] = best.token;
        logprobs[blockIdx.x] = float(-log(all));
    }
}
