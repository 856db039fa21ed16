// Gradients of the mixture. For an expert with inner activations h, down projection D and weight w, and g = dout D the
// gradient by h if the weight were 1, the derivative by the weight is h . g, the gradient by h is w g, and that by D is
// dout^T (w h): the experts' outputs are not needed.

#if ACTIVATIONS_BF16
typedef bf16 A;
#else
typedef float A;
#endif

__device__ __forceinline__ float4 load_four(const float* at) { return *reinterpret_cast<const float4*>(at); }
__device__ __forceinline__ float4 load_four(const bf16* at) {
    uint2 pair = *reinterpret_cast<const uint2*>(at);
    return make_float4(low_float(pair.x), high_float(pair.x), low_float(pair.y), high_float(pair.y));
}
__device__ __forceinline__ void store_four(float* at, float4 x) { *reinterpret_cast<float4*>(at) = x; }
__device__ __forceinline__ void store_four(bf16* at, float4 x) {
    *reinterpret_cast<uint2*>(at) = make_uint2(pack_bf16(x.x, x.y), pack_bf16(x.z, x.w));
}

// Weight of each packed row: that of its choice, times what a shared MLP leaves where there is one.
extern "C" __global__ void __launch_bounds__(256) row_weights(
    const int* places, const float* weights, const float* coefficients, float* out, int count, int choices) {
    wait_for_previous();
    let_next_start();
    int i = blockIdx.x * 256 + threadIdx.x;
    if (i >= count || places[i] < 0) return;
    float left = coefficients ? 1.0f - sigmoid(coefficients[i / choices]) : 1.0f;
    out[places[i]] = weights[i] * left;
}

// A block a row: from gates and ups `pre`, which take turns in groups of 8, and g, to w h, to the gradient by `pre` and
// to the derivative by w. The weight is `weights[row]`, or the sigmoid of it, or 1 without any.
extern "C" __global__ void swiglu_backward(
    const A* pre, const A* g, const float* weights, int through_sigmoid, const int* end, int width, A* inner,
    A* dpre, float* dots) {
    __shared__ float partial[32];
    wait_for_previous();
    let_next_start();
    i64 row = blockIdx.x;
    if (end && row >= *end) return;
    float weight = weights ? weights[row] : 1.0f;
    if (through_sigmoid) weight = sigmoid(weight);
    float sum = 0.0f;
    for (int i = 4 * threadIdx.x; i < width; i += 4 * blockDim.x) {
        i64 at = row * 2 * width + i / 8 * 16 + i % 8;
        float4 gates = load_four(pre + at), ups = load_four(pre + at + 8), gs = load_four(g + row * width + i);
        float gate[4] = {gates.x, gates.y, gates.z, gates.w}, up[4] = {ups.x, ups.y, ups.z, ups.w};
        float slope[4] = {gs.x, gs.y, gs.z, gs.w}, h[4], dgate[4], dup[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            float open = sigmoid(gate[j]), value = gate[j] * open, d = weight * slope[j];
            sum = fmaf(value * up[j], slope[j], sum);
            h[j] = weight * (value * up[j]);
            dgate[j] = d * up[j] * (open * fmaf(gate[j], 1.0f - open, 1.0f));
            dup[j] = d * value;
        }
        store_four(inner + row * width + i, make_float4(h[0], h[1], h[2], h[3]));
        store_four(dpre + at, make_float4(dgate[0], dgate[1], dgate[2], dgate[3]));
        store_four(dpre + at + 8, make_float4(dup[0], dup[1], dup[2], dup[3]));
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x > 0) return;
    float all = 0.0f;
    for (int i = 0; i < int(blockDim.x) / 32; ++i) all += partial[i];
    dots[row] = all;
}

// Through out = moe (1 - c) + shared c, where c is a sigmoid: the derivative by it before the sigmoid.
extern "C" __global__ void __launch_bounds__(256) shared_backward(
    const int* places, const float* weights, const float* dots, const float* shared_dots, const float* coefficients,
    float* dcoefficients, int rows, int choices) {
    wait_for_previous();
    let_next_start();
    int t = blockIdx.x * 256 + threadIdx.x;
    if (t >= rows) return;
    float c = sigmoid(coefficients[t]), moe = 0.0f;
    for (int i = t * choices; i < (t + 1) * choices; ++i)
        if (places[i] >= 0) moe = fmaf(weights[i], dots[places[i]], moe);
    dcoefficients[t] = (shared_dots[t] - moe) * c * (1.0f - c);
}

// A warp a row: the gradient by the router's logits. The weights are a softmax over the chosen ones; a single choice has
// none, to the bit, as its term is rounded alike in both places. The load-balancing
// loss adds p_e (slope_e - mean), with the mean of the slopes under p.
extern "C" __global__ void __launch_bounds__(256) router_backward(
    const float* logits, const int* chosen, const float* weights, const int* places, const float* dots,
    const float* coefficients, const float* slopes, float* dlogits, int rows, int experts, int choices) {
    wait_for_previous();
    let_next_start();
    int t = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (t >= rows) return;
    logits += i64(t) * experts;
    float left = coefficients ? 1.0f - sigmoid(coefficients[t]) : 1.0f, mean = 0.0f;
    for (int i = t * choices; i < (t + 1) * choices; ++i)
        if (places[i] >= 0) mean = fmaf(weights[i], __fmul_rn(left, dots[places[i]]), mean);
    float most = MINUS_INFINITY, total = 0.0f, slope = 0.0f;
    if (slopes) {
        for (int e = lane; e < experts; e += 32) most = fmaxf(most, logits[e]);
        most = warp_max(most);
        for (int e = lane; e < experts; e += 32) {
            float p = expf(logits[e] - most);
            total += p;
            slope = fmaf(p, slopes[e], slope);
        }
        total = warp_sum(total);
        slope = warp_sum(slope) / total;
    }
    for (int e = lane; e < experts; e += 32) {
        float d = 0.0f;
        for (int i = t * choices; i < (t + 1) * choices; ++i)
            if (chosen[i] == e && places[i] >= 0) d = weights[i] * (__fmul_rn(left, dots[places[i]]) - mean);
        if (slopes) d += expf(logits[e] - most) / total * (slopes[e] - slope);
        dlogits[i64(t) * experts + e] = d;
    }
}

// Sums of the softmax of 64 rows of logits, [blocks, experts].
extern "C" __global__ void __launch_bounds__(256) balance_parts(
    const float* logits, double* parts, int rows, int experts) {
    extern __shared__ double sums[];
    wait_for_previous();
    let_next_start();
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    double* own = sums + warp * experts;
    for (int e = lane; e < experts; e += 32) own[e] = 0.0;
    for (int t = blockIdx.x * 64 + warp; t < min(rows, (int(blockIdx.x) + 1) * 64); t += 8) {
        const float* row = logits + i64(t) * experts;
        float most = MINUS_INFINITY, total = 0.0f;
        for (int e = lane; e < experts; e += 32) most = fmaxf(most, row[e]);
        most = warp_max(most);
        for (int e = lane; e < experts; e += 32) total += expf(row[e] - most);
        total = warp_sum(total);
        for (int e = lane; e < experts; e += 32) own[e] += double(expf(row[e] - most) / total);
    }
    __syncthreads();
    for (int e = threadIdx.x; e < experts; e += 256) {
        double sum = 0.0;
        for (int w = 0; w < 8; ++w) sum += sums[w * experts + e];
        parts[i64(blockIdx.x) * experts + e] = sum;
    }
}

// Adds a layer to the sums of probabilities and choices of each expert.
extern "C" __global__ void __launch_bounds__(256) balance_add(
    const double* parts, const int* offsets, double* probabilities, i64* counts, int blocks, int experts) {
    wait_for_previous();
    let_next_start();
    for (int e = threadIdx.x; e < experts; e += 256) {
        double sum = 0.0;
        for (int b = 0; b < blocks; ++b) sum += parts[i64(b) * experts + e];
        probabilities[e] += sum;
        counts[e] += offsets[e + 1] - offsets[e];
    }
}

// slopes[e] = scale * counts[e].
extern "C" __global__ void __launch_bounds__(256) balance_slopes(
    const i64* counts, float* slopes, int experts, float scale) {
    wait_for_previous();
    let_next_start();
    for (int e = threadIdx.x; e < experts; e += 256) slopes[e] = float(double(scale) * double(counts[e]));
}
